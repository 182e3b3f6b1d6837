"""An actor-critic of DreamerV3 that learns in the dream of World Models' M."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import dream
from dreamjax.dreamerv3 import imagination
from dreamjax.dreamerv3.config import BehaviourConfig, HeadsConfig
from dreamjax.dreamerv3.imagination import ActorCriticLearner
from dreamjax.optim import LaPropConfig
from dreamjax.types import AgentParams, EnvSpec, LatentModel, Space
from dreamjax.worldmodels import MemoryConfig, VisionConfig, WorldModelConfig, WorldModelParams, make, memory

WORLD = WorldModelConfig(VisionConfig(4), MemoryConfig(latent_size=4, hidden_size=8, mixtures=2, predict_reward=True))
SPEC = EnvSpec(Space((64, 64, 3), np.uint8, 0, 256), Space((), np.float32, -1.0, 1.0), 20)


def model_and_params() -> tuple[LatentModel, WorldModelParams, AgentParams]:
    """An untrained M, whose rewards and ends follow from its state; V takes no part in dreams."""
    model, _ = make(WORLD, SPEC)
    params = WorldModelParams({}, memory.init(WORLD.memory, jax.random.key(0)))
    starts = jax.random.normal(jax.random.key(1), (5, 4)), jnp.zeros((5, 4))  # as V encodes first frames
    return model, params, starts


def test_an_actor_and_a_critic_learn_in_the_dream_of_m() -> None:
    model, params, starts = model_and_params()
    learner = ActorCriticLearner(
        model, BehaviourConfig(horizon=5), HeadsConfig(8, 41, 1, 1, 1, 1), LaPropConfig(3e-2, warmup=0, clip=10.0)
    )
    reset = dream.environment(model, params, starts).reset
    latents = jax.jit(jax.vmap(reset))(jax.random.split(jax.random.key(2), 64))[0].latent

    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiled in half the time, and run once
    def train(key: jax.Array) -> tuple[imagination.TrainState, dict[str, jax.Array]]:
        step = lambda state, _: imagination.train_step(learner, params, key, state, latents)  # noqa: E731
        return jax.lax.scan(step, imagination.init(learner, jax.random.key(3)), length=100)

    with jax.debug_key_reuse(False):  # every update folds its number into the key
        state, metrics = train(jax.random.key(4))
    returns = np.asarray(metrics["imagined_return"])
    assert np.isfinite(returns).all() and int(state.step) == 100
    assert returns[-10:].mean() > returns[:10].mean() + 0.1, returns
    assert abs(float(metrics["value"][-1]) - returns[-1]) < abs(returns[0]), "the critic has not learned"


def test_an_update_that_is_not_finite_changes_nothing() -> None:
    model, params, starts = model_and_params()
    learner = ActorCriticLearner(model, BehaviourConfig(horizon=2), HeadsConfig(8, 41, 1, 1, 1, 1))
    latents = jax.vmap(dream.environment(model, params, starts).reset)(jax.random.split(jax.random.key(2), 4))[0].latent
    broken = params._replace(memory=jax.tree.map(lambda leaf: leaf.at[...].set(jnp.nan), params.memory))
    before = imagination.init(learner, jax.random.key(3))
    with jax.debug_key_reuse(False):  # the check takes keys that are scanned under vmap for used ones
        after, metrics = imagination.train_step(
            learner, broken, jax.random.key(4), jax.tree.map(jnp.array, before), latents
        )
    assert int(metrics["skipped"]) == 1 and not np.isfinite(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, after, before._replace(step=after.step))


def test_a_trajectory_is_what_the_model_says_of_a_dream() -> None:
    model, params, starts = model_and_params()
    agent = imagination.agent(ActorCriticLearner(model, heads=HeadsConfig(8, 41, 1, 1, 1, 1)))
    assert agent is imagination.agent(ActorCriticLearner(model, heads=HeadsConfig(8, 41, 1, 1, 1, 1)))
    whole = AgentParams(params, agent.policy.init(jax.random.key(0)), starts)
    begin = jax.tree.map(lambda x: jnp.stack([x, x]), model.start(params))._replace(z=jnp.ones((2, 4)).at[0].set(0))
    key = jax.random.key(1)
    with jax.debug_key_reuse(False):  # the check takes keys that are scanned under vmap for used ones
        found = jax.jit(partial(imagination.trajectory, agent, horizon=3, discount=0.5))(whole, key, begin)
    assert found.features.shape == (4, 2, 4 + 2 * 8) and found.actions["action"].shape == (3, 2)
    one = jax.tree.map(lambda x: x[1], begin)
    alone = dream.imagine(agent, whole, jax.random.split(jax.random.clone(key))[1], one, 3)
    outcome = jax.vmap(partial(model.outcome, params))(alone.states)
    np.testing.assert_allclose(found.reward[:, 1], outcome.reward, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.continues[:, 1], 0.5 * outcome.continues, rtol=1e-4)
    np.testing.assert_allclose(found.actions["action"][:, 1], alone.actions, rtol=1e-4)


def test_an_action_that_the_actor_cannot_choose_is_named() -> None:
    model, _, _ = model_and_params()
    with pytest.raises(ValueError, match=r"action 'action' must lie in \[-1, 1\]"):
        ActorCriticLearner(model._replace(spec=SPEC._replace(action=Space((), np.float32, 0.0, 1.0))))
