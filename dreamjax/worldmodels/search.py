"""The search for C: CMA-ES proposes, the dream of V and M judges; the real game is not asked.

Source: Ha & Schmidhuber 2018, section 4.3 (training inside the dream), appendix A.4.
"""

from typing import NamedTuple

import jax
from jax.sharding import Mesh

from dreamjax import dream, evolution
from dreamjax.evolution import EvolutionConfig, EvolutionState
from dreamjax.types import AnyPolicy, Array, Key, LatentModel, Metrics, Params, PyTree


class Dreaming(NamedTuple):
    """Where candidates are judged. `model` and `policy` are told apart by identity: make them once."""

    model: LatentModel
    policy: AnyPolicy
    params: Params  # of the model
    starts: PyTree  # [S, ...] embeddings of real first frames
    temperature: Array | float = 1.0


def generation(
    cfg: EvolutionConfig,
    dreaming: Dreaming,
    key: Key,
    search: EvolutionState,
    episodes: int,
    mesh: Mesh | None = None,
) -> tuple[EvolutionState, Metrics]:
    """Ask for a population, let each of it dream the same `episodes`, tell what they got on average.

    With a mesh of one axis the population is split over its devices.
    """
    key_ask, key_dream = jax.random.split(key)
    search, population = evolution.ask(cfg, key_ask, search)
    totals = dream.returns(*dreaming[:4], population, jax.random.split(key_dream, episodes), dreaming.temperature, mesh)
    return evolution.tell(cfg, search, population, totals.total.mean(1))


def score(dreaming: Dreaming, controller: Params, key: Key, episodes: int) -> Array:
    """Sum of rewards that one controller dreams. Shapes: -> [episodes]."""
    alone = jax.tree.map(lambda leaf: leaf[None], controller)
    return dream.returns(*dreaming[:4], alone, jax.random.split(key, episodes), dreaming.temperature).total[0]
