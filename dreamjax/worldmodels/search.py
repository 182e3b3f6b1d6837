"""The search for C: CMA-ES proposes, dreams of V and M evaluate; the real environment takes no part.

Source: Ha & Schmidhuber 2018, section 4.3 (training inside the dream), appendix A.4.
"""

import jax
from jax.sharding import Mesh

from dreamjax import checks, dream, evolution
from dreamjax.evolution import EvolutionConfig, EvolutionState
from dreamjax.rollout import population_of_one
from dreamjax.types import Agent, AgentParams, Array, Key, Metrics


@checks.arguments
def generation(
    cfg: EvolutionConfig,
    agent: Agent,
    params: AgentParams,
    key: Key,
    state: EvolutionState,
    episodes: int,
    temperature: Array | float = 1.0,
    mesh: Mesh | None = None,
) -> tuple[EvolutionState, Metrics]:
    """Ask for a population, let all of it dream the same `episodes`, and tell the search their mean returns.

    `params` provide the world model and the starts [S, ...]; their policy is not read. With a mesh of one axis the
    population is split over its devices.

    Raises: ValueError if there are no episodes, or the devices do not divide the population.
    """
    if episodes < 1:
        raise ValueError(f"a policy is judged by 1 episode or more, got {episodes}")
    key_ask, key_dream = jax.random.split(key)
    state, population = evolution.ask(cfg, key_ask, state)
    keys = jax.random.split(key_dream, episodes)
    dreamed = dream.returns(agent, params._replace(policy=population), keys, temperature, mesh)
    return evolution.tell(cfg, state, population, dreamed.total.mean(1))


@checks.arguments
def score(agent: Agent, params: AgentParams, key: Key, episodes: int, temperature: Array | float = 1.0) -> Array:
    """Returns that one agent dreams. Shapes: -> [episodes]."""
    alone = params._replace(policy=population_of_one(params.policy))
    return dream.returns(agent, alone, jax.random.split(key, episodes), temperature).total[0]
