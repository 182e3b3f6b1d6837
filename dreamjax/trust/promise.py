"""The return that an agent's dreams promise, beside the one that the game pays.

Dreams begin where the real episodes began, follow the agent's own policy, end by the rule of `dream.environment`, and
are cut at the same number of steps as the game. So all that differs is the world.

An agent that learns in dreams finds what they get wrong in its favour: Ha & Schmidhuber 2018, section 4.5, saw policies
that earned in cold dreams what no game pays. `overpromises` names such dreams: those whose mean return lies above the
best of all real episodes that were played, by more than 1 % of it, for rounding. The more episodes, the less this
accuses a dream wrongly.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from dreamjax import dream, rollout
from dreamjax.rollout import Returns, reactive
from dreamjax.types import Agent, AgentParams, Array, Key, PyTree, StepPolicy

Series = tuple[np.ndarray, np.ndarray]  # steps [T], values [T]
MARGIN = 0.01  # of the best real return


class Learned(NamedTuple):
    """Returns that a run noted while it trained."""

    dreamed: Series  # by generation
    paid: Series | None  # in the game, placed at the generation with which an iteration ended


@partial(jax.jit, static_argnames=("agent", "samples"))
def dreamed(agent: Agent, params: AgentParams, key: Key, starts: PyTree, temperatures: Array, samples: int) -> Returns:
    """Dream from each start, at each temperature, several times, all at once; temperatures share their keys.

    Shapes: starts [E, ...], embeddings of first observations; temperatures [T] -> [E, T, samples].
    """
    policy = reactive(agent.policy)
    # One policy for all, not a copy of its parameters for each episode.
    alone = StepPolicy(
        lambda nothing: policy.start(params.policy), lambda nothing, *now: policy.act(params.policy, *now)
    )

    def one(key: Key, start: PyTree, temperature: Array) -> Returns:
        begun = jax.tree.map(lambda leaf: leaf[None], start)
        dreams = dream.environment(agent.model, params.model, begun, temperature)
        return rollout.episodes(dreams, alone, (), jax.random.split(key, samples))

    count = jax.tree.leaves(starts)[0].shape[0]
    each = jax.vmap(jax.vmap(one, (None, None, 0)), (0, 0, None))
    return each(jax.random.split(key, count), starts, temperatures)


def overpromises(paid: np.ndarray, dreams: Mapping[float, float]) -> list[float]:
    """Temperatures at which a dream's mean return is more than any real episode paid.

    Shapes: paid [E], returns of real episodes.
    """
    best = float(np.max(paid))
    return [temperature for temperature, mean in dreams.items() if mean > best + MARGIN * abs(best)]


def along_training(metrics: Mapping[str, Mapping[str, Series]], dreaming: str, acting: str = "") -> Learned:
    """Find what a run noted of its returns: the stage that evolved in dreams, and the one that let it act in between.

    `metrics` are those of `read_metrics`; the population's mean fitness is what was dreamed.
    """
    at, fitness = metrics[dreaming]["fitness_mean"]
    noted = metrics.get(acting, {})
    means = next((noted[name] for name in ("evaluation_mean", "returns") if name in noted), None)
    if means is None:
        return Learned((at, fitness), None)
    iterations, paid = means
    return Learned((at, fitness), (iterations * (len(at) / iterations[-1]), paid))
