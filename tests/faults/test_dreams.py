"""What people dream, draw and play with by mistake: policies stacked or not, broken models, other embeddings."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import dream, evolution, rollout
from dreamjax.evolution import EvolutionConfig
from dreamjax.replay.latents import Chunk
from dreamjax.types import Agent, AgentParams, EnvSpec, Key, LatentModel, Outcome, Space
from dreamjax.worldmodels import MemoryConfig, MemoryLearner, controller, learner, search


def key() -> Key:
    return jax.random.key(0)


LINEAR = controller.make(controller.ControllerConfig(bias=False), 3, Space((), np.float32, -1, 1))
WORLD = LatentModel(
    init=lambda key: (),
    start=lambda params: jnp.zeros(3),
    encode=lambda params, observation: observation,
    observe=lambda params, key, state, action, embedding, is_first: embedding,
    imagine=lambda params, key, state, action, temperature: state / (1 - action),
    features=lambda state: state,
    outcome=lambda params, state: Outcome(jnp.float32(1), 1 - 0 * state[0]),
    decode=lambda params, state: state,
    spec=EnvSpec(Space((3,)), Space((), np.float32, -1, 1), 5),
)
LINEAR_AGENT, WEIGHTS = Agent(WORLD, LINEAR), {"kernel": jnp.array([[0.0, 0, 0], [jnp.inf, 0, 0], [0.1, 0, 0]])}
DREAMING = AgentParams((), WEIGHTS, jnp.ones((2, 3)))


def test_a_dream_that_breaks_down_is_a_failure_and_no_survival() -> None:
    got = dream.returns(LINEAR_AGENT, DREAMING, jax.random.split(key(), 2))
    np.testing.assert_array_equal(got.total, [[5, 5], [np.nan, np.nan], [5, 5]])  # an action of 1 divides by 0
    np.testing.assert_array_equal(got.steps, [[5, 5], [1, 1], [5, 5]])


def test_a_policy_that_is_stacked_or_not_where_it_should_be_is_named() -> None:
    one, keys = DREAMING._replace(policy={"kernel": jnp.ones(3)}), jax.random.split(key(), 2)
    with pytest.raises(
        ValueError, match=r"\['kernel'\] must be \[3\], .* got \[\]. A population is stacked \[N, ...\]"
    ):
        dream.returns(LINEAR_AGENT, one, keys)
    with pytest.raises(ValueError, match=r"must be \[3\], as its `init` makes them, got \[3, 3\]"):
        dream.imagine(LINEAR_AGENT, DREAMING, key(), jnp.zeros(3), 2)
    with pytest.raises(ValueError, match=r"must be \[3\], as its `init` makes them, got \[3, 3\]"):
        rollout.unroll(dream.environment(WORLD, (), DREAMING.starts), rollout.reactive(LINEAR), WEIGHTS, key(), 2)


@pytest.mark.parametrize("temperature", [0.0, -1.0, np.nan])
def test_there_is_no_temperature_of_nothing(temperature: float) -> None:
    for call in (
        lambda: dream.environment(WORLD, (), DREAMING.starts, temperature),
        lambda: dream.returns(LINEAR_AGENT, DREAMING, jax.random.split(key(), 2), temperature),
        lambda: search.score(LINEAR_AGENT, DREAMING, key(), 2, temperature=temperature),
    ):
        with pytest.raises(ValueError, match=r"temperature of .* must be above 0, got"):
            call()


def test_what_is_not_an_embedding_is_noted() -> None:
    with pytest.raises(ValueError, match="must return a state") as caught:
        dream.environment(WORLD, (), jnp.ones((2, 4))).reset(key())
    assert caught.value.__notes__ == [
        "`starts` must be embeddings as `model.encode` returns them, stacked [S, ...], got (2, 4)"
    ]


def test_actions_of_a_recording_are_followed_and_others_named() -> None:
    follow = lambda actions: dream.imagine_actions(WORLD, (), key(), jnp.ones(3), actions)  # noqa: E731
    np.testing.assert_array_equal(follow(np.float32([0, 0.5])).states[:, 0], [1, 1, 2])
    for wrong in (np.float32(0), np.zeros(0, np.float32)):
        with pytest.raises(ValueError, match=r"actions must be stacked \[H, ...\], H at least 1, got \(0?,?\)"):
            follow(wrong)


@pytest.mark.parametrize(
    "space",
    [Space((2,), np.int32, -(2**31), 2**31), Space((), np.uint32, 0, 2**32), Space((), np.float32, -3e38, 3e38)],
)
def test_what_jax_cannot_draw_uniformly_is_refused(space: Space) -> None:
    with pytest.raises(ValueError, match="can be drawn uniformly"):
        rollout.random_policy({"a": space})


def test_fitness_may_be_a_list() -> None:
    search, cfg = evolution.init(EvolutionConfig(4), jnp.zeros(2)), EvolutionConfig(4)
    search, population = evolution.ask(cfg, key(), search)
    listed, _ = evolution.tell(cfg, search, population, [1.0, 2.0, 3.0, 4.0])
    told, _ = evolution.tell(cfg, search, population, jnp.arange(1.0, 5.0))
    np.testing.assert_array_equal(listed.mean, told.mean)


def test_a_chunk_of_other_streams_is_refused() -> None:
    cfg = MemoryLearner(MemoryConfig(latent_size=2, hidden_size=4, mixtures=1), streams=3)
    z, flat, no = np.zeros((3, 2, 2), np.float32), np.zeros((3, 2), np.float32), np.zeros((3, 2), bool)
    chunk = Chunk(z, z, flat, flat, no, no, no, np.array(True))
    with pytest.raises(ValueError, match="the chunk has 2 streams, but the learner 3"):
        learner.train_step(cfg, key(), learner.init(cfg, key()), chunk)


def test_numbers_of_64_bits_are_refused_with_the_reason() -> None:
    code = "import jax; from dreamjax.envs import check_environment, probes; check_environment(probes.counter())"
    settings = os.environ | {"JAX_ENABLE_X64": "1"}
    ended = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "got float64 [5]; dreamjax does not support jax_enable_x64" in ended.stderr


def test_noise_is_of_the_kind_of_the_action() -> None:
    space = Space((2,), jnp.bfloat16, -1, 1)
    noisy = rollout.noisy(controller.make(controller.ControllerConfig(), 3, space), space)
    _, action = noisy.act((noisy.init(key())[0], jnp.float32(1)), key(), (), jnp.ones(3))
    assert action.dtype == jnp.bfloat16 and (action != 0).all()
    for wrong in (Space((), np.int32, 0, 3), {"a": space}):
        with pytest.raises(ValueError, match="a lone continuous action, got"):
            rollout.noisy(LINEAR, wrong)
