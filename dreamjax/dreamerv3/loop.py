"""Collecting and learning as one pure program, for environments written in JAX.

All is pure: jit it, scan it, or `vmap` it over seeds and over `Hyper`. `init` and `iterate` are the whole; `start`,
`act` and `learn` are its parts, for environments that step elsewhere.
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
        if self.capacity >= 2**31:
            raise ValueError(f"capacity must be below 2**31 steps, which are counted in 32 bits, got {self.capacity:,}")
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
    environment: State  # [E, ...], or () where the environments step elsewhere
    step: Step  # [E, ...] to act on next
    agent: AgentState  # [E, ...]
    replay: Ring  # of `Experience`
    total: Array  # [E] float32, sum of the rewards of the current episode


class Ended(NamedTuple):
    """The episodes that ended."""

    finished: Array  # [] int32, how many
    returns: Array  # [] float32, sum of their returns


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
    key_start, key_environment, key_fill = jax.random.split(key, 3)
    steps = prefill(dreamer, cfg)
    checks.same_spaces(dreamer.spec, environment.spec)
    environments, step = jax.vmap(checks.contract(environment).reset)(jax.random.split(key_environment, cfg.envs))
    state = start(dreamer, cfg, key_start, step, hyper)._replace(environment=environments)
    return _collect(dreamer, environment, key_fill, state, steps)[0]


def prefill(dreamer: Dreamer, cfg: LoopConfig) -> int:
    """Count the steps of every environment that the first batch needs.

    Raises: ValueError if the capacity cannot hold them.
    """
    size = cfg.capacity // cfg.envs
    steps = max(dreamer.cfg.context + cfg.batch_length, -(-cfg.batch_size * cfg.batch_length // cfg.envs))
    if size < steps:
        raise ValueError(f"a capacity of {cfg.capacity} steps holds {size} of each environment, but {steps} are needed")
    return steps


def start(dreamer: Dreamer, cfg: LoopConfig, key: Key, step: Step, hyper: Hyper | None = None) -> LoopState:
    """Start a new agent on the first steps of E environments, with an empty replay. Shapes: step [E, ...]."""
    replay = ring.init(experience.example(dreamer), cfg.envs, cfg.capacity // cfg.envs)
    trained, agent = learner.init(dreamer, key, hyper), experience.start(dreamer, cfg.envs)
    return LoopState(trained, (), step, agent, replay, jnp.zeros(cfg.envs))


@checks.arguments
def iterate(
    dreamer: Dreamer, environment: Environment, cfg: LoopConfig, key: Key, state: LoopState, mesh: Mesh | None = None
) -> tuple[LoopState, Progress]:
    """Collect a few steps and make the updates that the train ratio allows for them: see `LoopConfig.rhythm`.

    With a mesh of one axis the sequences of each batch are split over its devices, as a state may be whose environments
    are.
    """
    _, steps = cfg.rhythm
    key_collect, key_learn = jax.random.split(key)
    state, ended = _collect(dreamer, environment, key_collect, state, steps)
    trained, replay, metrics = learn(dreamer, cfg, key_learn, state.learner, state.replay, mesh)
    return state._replace(learner=trained, replay=replay), Progress(*ended, metrics)


def act(dreamer: Dreamer, key: Key, state: LoopState) -> tuple[LoopState, Ended]:
    """Act once in E environments and remember it; `state.agent.action` [E, ...] is what they are to do."""
    now = state.step
    agent, latent = experience.act(dreamer, state.learner.params, key, state.agent, now)
    replay = ring.add(state.replay, Experience(now, agent.action, latent))
    total = jnp.where(now.is_first, 0.0, state.total) + now.reward
    ended = Ended(now.is_last.sum(), jnp.where(now.is_last, total, 0.0).sum())
    return state._replace(agent=agent, replay=replay, total=total), ended


def learn(
    dreamer: Dreamer, cfg: LoopConfig, key: Key, trained: TrainState, replay: Ring, mesh: Mesh | None = None
) -> tuple[TrainState, Ring, Metrics]:
    """Make the updates of an iteration, each on a batch from the replay; the metrics are those of the last.

    The mesh is as in `iterate`.
    """
    key_sample, key_learn = jax.random.split(key)
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

    (trained, replay), metrics = jax.lax.scan(update, (trained, replay), jax.random.split(key_sample, cfg.rhythm[0]))
    return trained, replay, jax.tree.map(lambda x: x[-1], metrics)


def _collect(
    dreamer: Dreamer, environment: Environment, key: Key, state: LoopState, steps: int
) -> tuple[LoopState, Ended]:
    """Act for some steps in every environment; also the episodes that ended."""
    environment = checks.contract(environment)

    def arrive(key: Key, state: State, step: Step, action: Action) -> tuple[State, Step]:
        key_reset, key_step = jax.random.split(key)
        return jax.lax.cond(
            step.is_last, lambda: environment.reset(key_reset), lambda: environment.step(key_step, state, action)
        )

    def advance(state: LoopState, key: Key) -> tuple[LoopState, Ended]:
        key_act, key_arrive = jax.random.split(key)
        state, ended = act(dreamer, key_act, state)
        keys = jax.random.split(key_arrive, len(state.total))
        environments, step = jax.vmap(arrive)(keys, state.environment, state.step, state.agent.action)
        return state._replace(environment=environments, step=step), ended

    state, ended = jax.lax.scan(advance, state, jax.random.split(key, steps))
    return state, jax.tree.map(jnp.sum, ended)
