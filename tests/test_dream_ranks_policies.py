"""Learning end to end on a small probe: a dream learned from random play ranks policies as the world does.

The probe is a walk against the wind. Only the position is seen; the wind has to be inferred from it, so that M must
remember. Everything else is the code of the Doom experiment: M, its learner, chunks of latents, dreams, CMA-ES. In the
place of V stands a posterior that is known.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import dream, evolution, rollout
from dreamjax.evolution import EvolutionConfig
from dreamjax.optim import AdamConfig
from dreamjax.replay.latents import Latents, chunks, end_to_end
from dreamjax.rollout import Returns
from dreamjax.types import (
    Action,
    Agent,
    AgentParams,
    Array,
    Environment,
    EnvSpec,
    Key,
    LatentModel,
    Params,
    Policy,
    Space,
    Step,
    StepPolicy,
)
from dreamjax.worldmodels import learner, model
from dreamjax.worldmodels.learner import MemoryLearner
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.model import WorldModelConfig, WorldModelParams
from dreamjax.worldmodels.vision import FRAME, VisionConfig

SPEED, WIND, CALM = 0.1, 0.06, 0.05  # of the walker, of the wind, and how often the wind turns
MAX_STEPS = 100
SCALE, LOG_VARIANCE = 2.0, -6.0  # of the latent, a position that is seen with a standard deviation of 0.025

WORLD = WorldModelConfig(
    vision=VisionConfig(latent_size=1),
    memory=MemoryConfig(latent_size=1, hidden_size=32, mixtures=2),
    step_reward=1.0,
)
EVOLUTION = EvolutionConfig(population_size=8, sigma=0.3)
LENGTH, UPDATES, GENERATIONS = 32, 600, 25
LEARNER = MemoryLearner(WORLD.memory, AdamConfig(1e-2, 1e-3, 0.998, clip=1.0), streams=32)
LANES = 16  # few of them compile quickly, as they are never repacked; so episodes are played in rounds
FEATURES = model.feature_size(WORLD)


class Walk(NamedTuple):
    position: Array
    wind: Array
    time: Array


def walk() -> Environment:
    """Stay within [-1, 1] for as long as possible: reward 1 for every step."""

    def observe(state: Walk, is_first: bool) -> Step:
        dead = jnp.abs(state.position) > 1
        reward = jnp.float32(0 if is_first else 1)
        is_last = dead | (state.time >= MAX_STEPS)
        return Step(state.position[None], reward, jnp.array(is_first), is_last, dead)

    def reset(key: Key) -> tuple[Walk, Step]:
        key_position, key_wind = jax.random.split(key)
        position = jax.random.uniform(key_position, (), minval=-0.5, maxval=0.5)
        state = Walk(position, WIND * jax.random.rademacher(key_wind, (), jnp.float32), jnp.int32(0))
        return state, observe(state, True)

    def step(key: Key, state: Walk, action: Action) -> tuple[Walk, Step]:
        position = state.position + SPEED * action + state.wind
        wind = jnp.where(jax.random.bernoulli(key, CALM), -state.wind, state.wind)
        state = Walk(position, wind, state.time + 1)
        return state, observe(state, False)

    return Environment(reset, step, EnvSpec(Space((1,)), Space((), np.float32, -1.0, 1.0), MAX_STEPS))


def world_model() -> LatentModel:
    """M behind a posterior that is known: the position, and how sharply it is seen."""

    def encode(params: Params, position: Array) -> tuple[Array, Array]:
        return SCALE * position, jnp.full_like(position, LOG_VARIANCE)

    pictures = EnvSpec(Space(FRAME, np.uint8, 0, 256), walk().spec.action, MAX_STEPS)
    return model.make(WORLD, pictures).model._replace(encode=encode, spec=walk().spec)


def linear() -> Policy:
    """tanh(w . features + b)."""

    def init(key: Key) -> Params:
        return {"w": jnp.zeros(FEATURES), "b": jnp.zeros(())}

    return Policy(init, lambda params, key, features: jnp.tanh((params["w"] * features).sum() + params["b"]))


MODEL, POLICY = world_model(), linear()
AGENT = Agent(MODEL, POLICY)
STILL = POLICY.init(jax.random.key(0))
POLICIES = {  # worst first
    "always left": STILL | {"b": jnp.float32(-5)},
    "still": STILL,
    "weakly towards the middle": STILL | {"w": STILL["w"].at[0].set(-0.2)},
}


def random_play() -> StepPolicy:
    """Uniform actions, each held for five steps on average, so that all of the world is seen."""

    def act(params: Params, key: Key, held: Array, step: Step) -> tuple[Array, Action]:
        key_redraw, key_action = jax.random.split(key)
        redraw = step.is_first | jax.random.bernoulli(key_redraw, 0.2)
        action = jnp.where(redraw, jax.random.uniform(key_action, (), minval=-1, maxval=1), held)
        return action, action

    return StepPolicy(lambda params: jnp.float32(0), act)


def collect(key: Key, steps: int) -> Latents:
    """Episodes of random play. What the world shows after the last action of an episode is not kept."""
    _, path = jax.jit(partial(rollout.unroll, walk(), random_play()), static_argnums=2)((), key, steps)
    recorded = end_to_end(*jax.tree.map(lambda leaf: leaf[None], path))
    mean, log_variance = MODEL.encode(None, recorded.observation)
    return Latents(mean, np.asarray(log_variance), *recorded[1:])


def learn(key: Key, data: Latents) -> WorldModelParams:
    key_init, key_train = jax.random.split(key)
    state = learner.init(LEARNER, key_init)
    for _, chunk in zip(range(UPDATES), chunks(data, 0, LEARNER.streams, LENGTH), strict=False):
        state, _ = learner.train_step(LEARNER, jax.random.clone(key_train), state, chunk)
    return WorldModelParams({}, state.params)


def mean_returns(play: Callable[[Params, Key], Returns], policies: Params, key: Key, rounds: int) -> Array:
    """Mean return of each policy, in calls of `LANES` episodes. Shapes: policies [N, ...] -> [N]."""
    count = LANES // len(policies["b"])
    keys = jax.random.split(key, (rounds, count))
    return jnp.concatenate([play(policies, some).total for some in keys], 1).mean(1)


def dreamed_returns(params: WorldModelParams, starts: tuple[Array, Array], policies: Params, keys: Key) -> Returns:
    return dream.returns(AGENT, AgentParams(params, policies, starts), keys)


def evolve(key: Key, params: WorldModelParams, starts: tuple[Array, Array]) -> Params:
    """The mean of a search that never meets the world."""
    search = evolution.init(EVOLUTION, STILL)
    for number in range(GENERATIONS):
        key_ask, key_dream = jax.random.split(jax.random.fold_in(key, number))
        search, population = evolution.ask(EVOLUTION, key_ask, search)
        fitness = mean_returns(partial(dreamed_returns, params, starts), population, key_dream, 6)
        search, _ = evolution.tell(EVOLUTION, search, population, fitness)
    return search.mean


class Scores(NamedTuple):
    """Mean returns of random play, and of `POLICIES` with the evolved one after them, in the dream and in the world."""

    random: float
    dreamed: np.ndarray  # [P + 1]
    real: np.ndarray  # [P + 1]


def run(seed: int) -> Scores:
    """Collect, learn, evolve, and play."""
    key_collect, key_learn, key_evolve, key_dream, key_play = jax.random.split(jax.random.key(seed), 5)
    data = collect(key_collect, 20_000)
    params = learn(key_learn, data)
    starts = data.first_frames(100)
    evolved = evolve(key_evolve, params, starts)
    policies = jax.tree.map(lambda *leaves: jnp.stack(leaves), *POLICIES.values(), evolved)
    dreamed = mean_returns(partial(dreamed_returns, params, starts), policies, key_dream, 24)
    play = jax.jit(partial(rollout.population_returns, walk(), rollout.step_policy(AGENT, params)))
    real = mean_returns(play, policies, key_play, 24)
    return Scores(data.length.mean(), np.asarray(dreamed), np.asarray(real))


@pytest.fixture(scope="module")
def scores() -> Scores:
    return run(seed=0)


def test_the_dream_ranks_policies_as_the_world_does(scores: Scores) -> None:
    """By clear margins, and it is not far off in how long they live."""
    assert (scores.real[1:] > 1.25 * scores.real[:-1]).all(), scores
    assert (scores.dreamed[1:] > 1.25 * scores.dreamed[:-1]).all(), scores
    np.testing.assert_allclose(scores.dreamed, scores.real, rtol=0.3)


def test_what_was_evolved_in_the_dream_lives_in_the_world(scores: Scores) -> None:
    """It nearly always reaches the step limit; standing still and random play live a third of that."""
    assert scores.real[-1] > 0.9 * MAX_STEPS, scores
    assert max(scores.random, scores.real[1]) < 0.45 * MAX_STEPS, scores
