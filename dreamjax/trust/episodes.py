"""Real episodes of an agent, recorded: on the device where the environment is written in JAX, by workers elsewhere."""

from collections.abc import Callable
from functools import partial

import gymnasium
import jax
import numpy as np

from dreamjax import checks
from dreamjax.acting import seeds
from dreamjax.acting.evaluation import play_all
from dreamjax.rollout import Transition
from dreamjax.storage.progress import progress
from dreamjax.training import recorded
from dreamjax.types import Agent, AgentParams, Environment, Key

AnyEnvironment = Environment | Callable[[], gymnasium.Env]  # pure, or what makes one for the host


def shortened(agent: Agent, max_steps: int) -> Agent:
    """The same agent, whose episodes are cut after so many steps, in the game and in dreams."""
    spec = agent.model.spec
    if spec.max_steps <= max_steps:
        return agent
    return Agent(agent.model._replace(spec=spec._replace(max_steps=max_steps)), agent.policy)


def play(
    agent: Agent,
    params: AgentParams,
    environment: AnyEnvironment,
    key: Key,
    count: int,
    *,
    workers: int | None = None,
) -> list[Transition]:
    """Play and record episodes of the agent, each cut at the step limit of its model.

    Those of a host environment have the first test seeds, and are the ones that `acting.evaluate` plays with the same
    key. `workers` are as there. All are kept in memory.

    Shapes: -> [steps + 1, ...] of each. Raises: ValueError for an environment with other spaces; as
    `acting.playing.play` does.
    """
    if isinstance(environment, Environment):
        checks.same_spaces(agent.model.spec, environment.spec)
        limit = agent.model.spec.max_steps
        act = jax.jit(partial(recorded.act, environment), static_argnums=(0, 3, 4))
        acted = jax.device_get(act(agent, params, key, count, limit + 1))
        ends = np.where(acted.step.is_last.any(1), acted.step.is_last.argmax(1), limit)
        return [
            jax.tree.map(lambda leaf, i=i, end=end: leaf[i, : end + 1], acted) for i, end in enumerate(ends.tolist())
        ]
    played = play_all(agent, params, environment, seeds.test(count), key, workers=workers, record=True)
    with progress(count, "play", unit="episode") as bar:
        found = {}
        for one in played:
            found[one.seed] = one.recorded
            bar.update()
    return [episode for _, episode in sorted(found.items()) if episode is not None]
