"""Collecting and learning as one pure program, for environments written in JAX.

`init` and `iterate` are pure: jit them, scan them, or `vmap` them over seeds and over `Hyper`.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dreamjax import checks
from dreamjax.dreamerv3 import experience, learner
from dreamjax.dreamerv3.experience import Experience
from dreamjax.dreamerv3.learner import Hyper, TrainState
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.replay import ring
from dreamjax.replay.ring import Ring
from dreamjax.rollout import AgentState
from dreamjax.types import Action, Array, Environment, Key, Metrics, State, Step

_LONGEST = 1_000_000  # updates, or steps, of an iteration


@dataclass(frozen=True)
class LoopConfig:
    """How much is collected and replayed."""

    envs: int = 16  # stepped together
    batch_size: int = 16  # sequences of an update
    batch_length: int = 64  # trained steps of each; the context comes on top
    train_ratio: float = 32.0  # replayed steps per collected one, context not counted
    capacity: int = 100_000  # steps that are kept

    def __post_init__(self) -> None:
        if min(self.envs, self.batch_size, self.batch_length, self.capacity) < 1 or self.rhythm[0] < 1:
            raise ValueError(f"every number must be positive, got {self}")
        if max(self.rhythm) > _LONGEST:
            raise ValueError(
                f"a train_ratio of {self.train_ratio} asks for {self.rhythm[0]:,} updates after every "
                f"{self.rhythm[1]:,} steps of each environment: round it"
            )

    @property
    def rhythm(self) -> tuple[int, int]:
        """Updates of an iteration, and steps of every environment before them, that give the train ratio exactly."""
        # A decimal such as 0.1 is a binary fraction of 55 digits; what is meant is 1 / 10.
        per_step = (
            Fraction(self.train_ratio).limit_denominator(_LONGEST) * self.envs / (self.batch_size * self.batch_length)
        )
        return per_step.numerator, per_step.denominator


class LoopState(NamedTuple):
    """State of the loop, for E environments."""

    learner: TrainState
    environment: State  # [E, ...]
    step: Step  # [E, ...] to act on next
    agent: AgentState  # [E, ...]
    replay: Ring  # of `Experience`
    total: Array  # [E] float32, sum of the rewards of the current episode


class Progress(NamedTuple):
    """Results of one iteration."""

    finished: Array  # [] int32, episodes that ended
    returns: Array  # [] float32, sum of their returns
    metrics: Metrics  # of the last update


@checks.arguments
def init(
    dreamer: Dreamer, environment: Environment, cfg: LoopConfig, key: Key, hyper: Hyper | None = None
) -> LoopState:
    """Start a new agent, reset the environments, and collect enough steps to draw the first batch.

    `hyper` holds the traced settings, by default those of the agent's configuration.

    Raises: ValueError if the capacity cannot hold a sequence of every environment, if the agent was made for other
        spaces, or if the environment returns what its spec does not declare.
    """
    key_learner, key_environment, key_fill = jax.random.split(key, 3)
    size = cfg.capacity // cfg.envs
    fill = max(dreamer.cfg.context + cfg.batch_length, -(-cfg.batch_size * cfg.batch_length // cfg.envs))
    if size < fill:
        raise ValueError(f"a capacity of {cfg.capacity} steps holds {size} of each environment, but {fill} are needed")
    checks.same_spaces(dreamer.spec, environment.spec)
    environments, step = jax.vmap(checks.contract(environment).reset)(jax.random.split(key_environment, cfg.envs))
    replay = ring.init(experience.example(dreamer), cfg.envs, size)
    trained, agent = learner.init(dreamer, key_learner, hyper), experience.start(dreamer, cfg.envs)
    state = LoopState(trained, environments, step, agent, replay, jnp.zeros(cfg.envs))
    return _collect(dreamer, environment, key_fill, state, fill)[0]


@checks.arguments
def iterate(
    dreamer: Dreamer, environment: Environment, cfg: LoopConfig, key: Key, state: LoopState, mesh: Mesh | None = None
) -> tuple[LoopState, Progress]:
    """Collect a few steps and make the updates that the train ratio allows for them: see `LoopConfig.rhythm`.

    With a mesh of one axis the sequences of each batch are split over its devices, as a state may be whose environments
    are.
    """
    updates, steps = cfg.rhythm
    key_collect, key_sample, key_learn = jax.random.split(key, 3)
    state, finished, returns = _collect(dreamer, environment, key_collect, state, steps)
    context = dreamer.cfg.context

    def update(carry: tuple[TrainState, Ring], key: Key) -> tuple[tuple[TrainState, Ring], Metrics]:
        trained, replay = carry
        drawn, address = ring.sample(replay, key, cfg.batch_size, context + cfg.batch_length)
        if mesh is not None:
            drawn = jax.lax.with_sharding_constraint(drawn, NamedSharding(mesh, PartitionSpec(*mesh.axis_names)))
        # `learn` folds in the number of the update.
        trained, learned = experience.learn(dreamer, key_learn, trained, drawn)
        replay = ring.update(replay, address, context, experience.refreshed(dreamer, learned.latent))
        return (trained, replay), learned.metrics

    carry, metrics = jax.lax.scan(update, (state.learner, state.replay), jax.random.split(key_sample, updates))
    state = state._replace(learner=carry[0], replay=carry[1])
    return state, Progress(finished, returns, jax.tree.map(lambda x: x[-1], metrics))


def _collect(
    dreamer: Dreamer, environment: Environment, key: Key, state: LoopState, steps: int
) -> tuple[LoopState, Array, Array]:
    """Act for some steps in every environment; also the number of episodes that ended, and the sum of their returns."""
    environment = checks.contract(environment)

    def arrive(key: Key, state: State, step: Step, action: Action) -> tuple[State, Step]:
        key_reset, key_step = jax.random.split(key)
        return jax.lax.cond(
            step.is_last, lambda: environment.reset(key_reset), lambda: environment.step(key_step, state, action)
        )

    def advance(state: LoopState, key: Key) -> tuple[LoopState, tuple[Array, Array]]:
        key_act, key_arrive = jax.random.split(key)
        now = state.step
        agent, latent = experience.act(dreamer, state.learner.params, key_act, state.agent, now)
        replay = ring.add(state.replay, Experience(now, agent.action, latent))
        keys = jax.random.split(key_arrive, len(now.reward))
        environments, step = jax.vmap(arrive)(keys, state.environment, now, agent.action)
        total = jnp.where(now.is_first, 0.0, state.total) + now.reward
        state = LoopState(state.learner, environments, step, agent, replay, total)
        return state, (now.is_last.sum(), jnp.where(now.is_last, total, 0.0).sum())

    state, (finished, returns) = jax.lax.scan(advance, state, jax.random.split(key, steps))
    return state, finished.sum(), returns.sum()
