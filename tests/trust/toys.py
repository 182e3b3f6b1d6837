"""A walk whose every number is known, and models of it that are right, or wrong in one respect."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.rollout import Transition
from dreamjax.trust import TrustConfig, episodes, measurement
from dreamjax.trust.measurement import Measured
from dreamjax.types import Agent, AgentParams, Array, Environment, EnvSpec, LatentModel, Outcome, Policy, Space, Step

END = 30  # where a walk ends


class World(NamedTuple):
    """The parameters of a model: nothing of it is learned."""

    drift: Array = jnp.float32(0)  # of a dreamed step
    noise: Array = jnp.float32(0)  # standard deviation of a dreamed step at temperature 1
    gain: Array = jnp.float32(1)  # of dreamed rewards
    end: Array = jnp.float32(END)  # where dreams end


def walk(end: int | None = END, max_steps: int = 40) -> Environment:
    """Begin at 0 to 4 and walk on by the action; the reward is the place arrived at; `end`, if any, is terminal."""

    def arrive(place: Array, steps: Array) -> tuple[tuple[Array, Array], Step]:
        is_over = jnp.bool_(False) if end is None else place >= end
        is_first, reward = steps == 0, jnp.where(steps == 0, 0.0, place)
        return (place, steps), Step(place[None], reward, is_first, is_over | (steps >= max_steps), is_over)

    def reset(key: Array) -> tuple[tuple[Array, Array], Step]:
        return arrive(jax.random.randint(key, (), 0, 5).astype(jnp.float32), jnp.int32(0))

    def step(key: Array, state: tuple[Array, Array], action: Array) -> tuple[tuple[Array, Array], Step]:
        return arrive(state[0] + action, state[1] + 1)

    return Environment(reset, step, EnvSpec(Space((1,)), Space((), np.float32, -1, 1), max_steps))


def walker(environment: Environment) -> Agent:
    """Walk on by 1 at every step, with a model whose parameters are a `World`."""

    def imagine(params: World, key: Array, state: Array, action: Array, temperature: Array | float) -> Array:
        noise = params.noise * jnp.sqrt(temperature) * jax.random.normal(key)
        return state + action + params.drift + noise

    model = LatentModel(
        init=lambda key: World(),
        start=lambda params: jnp.float32(0),
        encode=lambda params, observation: observation[0],
        observe=lambda params, key, state, action, embedding, is_first: embedding,
        imagine=imagine,
        features=lambda state: state[None],
        outcome=lambda params, state: Outcome(params.gain * state, (state < params.end).astype(jnp.float32)),
        decode=lambda params, state: state[None],
        spec=environment.spec,
    )
    return Agent(model, Policy(lambda key: (), lambda params, key, features: jnp.float32(1)))


def params(**world: float) -> AgentParams:
    """What an agent of `walker` acts and dreams with."""
    return AgentParams(World(**{name: jnp.float32(value) for name, value in world.items()}), ())


def played(
    environment: Environment, of: AgentParams, key: Array, count: int, max_steps: int = 1000
) -> list[Transition]:
    """Let the walker of an environment play."""
    agent = episodes.shortened(walker(environment), max_steps)
    return episodes.play(agent, of, environment, key, count)


def measured(environment: Environment, of: AgentParams, cfg: TrustConfig) -> list[Measured]:
    """Measure the walker of an environment as `trust.measure` does."""
    agent = episodes.shortened(walker(environment), cfg.max_steps)
    key_play, key_errors, key_returns = jax.random.split(jax.random.key(5), 3)
    found = played(environment, of, key_play, cfg.episodes, cfg.max_steps)
    errors, films = measurement.errors(agent, of, key_errors, found, cfg)
    assert films == {}  # there are no pictures
    return measurement.returns(agent, of, key_returns, found, cfg) + errors
