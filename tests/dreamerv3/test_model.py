"""DreamerV3 behind the contracts: it acts, it dreams, and its dream is an environment."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import dream, planning, rollout
from dreamjax.dreamerv3 import actor_critic, codec, experience, heads, model, rssm
from dreamjax.dreamerv3.config import debug
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.envs import probes, to_gymnasium
from dreamjax.types import AgentParams, EnvSpec, Space, Step

CFG = replace(debug(), compute_dtype="float32")
GAME = probes.counter()
DREAMER = Dreamer.of(CFG, GAME.spec)
AGENT = model.make(CFG, GAME.spec)
WORLD = AGENT.model
ALL = jax.jit(partial(model.init, DREAMER))(jax.random.key(0))
PARAMS, POLICY, _ = ALL


def test_it_acts_in_an_environment():
    agent = rollout.step_policy(AGENT, PARAMS)
    state, seen = jax.jit(lambda key: rollout.unroll(GAME, agent, POLICY, key, 30))(jax.random.key(1))
    assert set(np.unique(seen.action)) == {0, 1}
    assert seen.step.is_first.sum() > 1
    assert state.agent.latent.deter.shape == (CFG.rssm.deter,)
    np.testing.assert_array_equal(state.agent.latent.stoch.sum(-1), 1)


def test_its_dream_is_an_environment():
    starts = WORLD.encode(PARAMS, jnp.eye(5))
    world = dream.environment(WORLD, PARAMS, starts, temperature=1.0)
    state, step = jax.jit(world.reset)(jax.random.key(2))
    assert step.observation.shape == WORLD.features(WORLD.start(PARAMS)).shape
    advance = jax.jit(world.step)
    for i in range(3):
        state, step = advance(jax.random.key(3 + i), state, jnp.int32(1))
        assert np.isfinite(step.reward)
        assert not step.is_first


def test_others_play_in_its_dream_through_gymnasium():
    world = model.make(debug(), GAME.spec).model
    dreamed = dream.environment(world, PARAMS, world.encode(PARAMS, jnp.eye(5)))
    assert dreamed.spec.observation.dtype == jnp.bfloat16  # which Gymnasium does not know
    env = to_gymnasium(dreamed)
    first, _ = env.reset(seed=0)
    assert first.dtype == np.float32 and env.observation_space.contains(first)
    assert env.observation_space.contains(env.step(np.int64(1))[0])


def test_actor_and_critic_help_to_plan():
    """The only candidates are the actor's, which the critic tells apart: what follows is all that counts."""
    value = actor_critic.value(DREAMER.actor_critic)
    assert value is actor_critic.value(DREAMER.actor_critic), "jitted functions would compile again"
    shaken = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape), ALL)
    cfg = planning.PlanConfig(2, 6, 1, 1, from_prior=6, takes_best=True)
    planner = planning.Planner(WORLD, cfg, AGENT.policy, value)
    params = planning.PlannerParams(shaken.model, shaken.policy, shaken.value)
    state, actions = WORLD.start(PARAMS), jnp.array([1, 0])
    with jax.debug_key_reuse(False):  # the check takes keys that are scanned under vmap for used ones
        plan, action = planning.search(planner, params, jax.random.key(0), state, planning.start(planner))
    assert np.isfinite(plan.promised) and int(action) in (0, 1)
    promise = lambda one: planning.plan_return(one, params, jax.random.key(1), WORLD.start(PARAMS), actions)  # noqa: E731
    weight = 1.0
    for key, taken in zip(jax.random.split(jax.random.key(1)), actions, strict=True):
        state = WORLD.imagine(shaken.model, key, state, taken, 1.0)
        weight *= WORLD.outcome(shaken.model, state).continues
    follows = weight * value(shaken.value, WORLD.features(state))
    found = promise(planner) - promise(replace(planner, value=None))
    np.testing.assert_allclose(found, follows, rtol=1e-4)
    assert abs(float(follows)) > 1e-3


def unrolled(length: int) -> rollout.Transition:
    agent = rollout.step_policy(AGENT, PARAMS)
    return jax.jit(lambda key: rollout.unroll(GAME, agent, POLICY, key, length))(jax.random.key(1))[1]


def open_loop(recorded: rollout.Transition, observed: int):
    memory = rollout.AgentState(WORLD.start(PARAMS), jnp.int32(0))
    return jax.jit(lambda *args: dream.open_loop(WORLD, PARAMS, jax.random.key(5), memory, *args))(recorded, observed)


def test_an_open_loop_that_sees_everything_is_the_posterior():
    recorded = unrolled(30)
    assert recorded.step.is_first[1:].any()  # it runs across the end of an episode
    state, action = WORLD.start(PARAMS), jnp.int32(1)
    observe, states = jax.jit(WORLD.observe), []
    for t, key in enumerate(jax.random.split(jax.random.key(5), 30)):
        step = jax.tree.map(lambda x, t=t: x[t], recorded.step)
        state = observe(PARAMS, key, state, action, WORLD.encode(PARAMS, step.observation), step.is_first)
        action = recorded.action[t]
        states.append(state)
    expected = jax.tree.map(lambda *x: jnp.stack(x), *states)
    seen = open_loop(recorded, 30)
    np.testing.assert_array_equal(seen.stoch, expected.stoch)
    np.testing.assert_allclose(seen.deter, expected.deter, atol=1e-6)


def test_what_comes_after_the_observed_steps_tells_an_open_loop_nothing():
    recorded, observed = unrolled(12), 5
    later = jnp.arange(12) >= observed
    changed = recorded.step._replace(
        observation=jnp.where(later[:, None], 7.0, recorded.step.observation),
        reward=recorded.step.reward + later,
        is_first=recorded.step.is_first ^ later,
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        open_loop(recorded, observed),
        open_loop(recorded._replace(step=changed), observed),
    )
    acted = open_loop(recorded._replace(action=recorded.action.at[observed].set(1 - recorded.action[observed])), 5)
    same = (acted.deter == open_loop(recorded, observed).deter).all(-1)
    np.testing.assert_array_equal(same[: observed + 1], True)
    assert not same[observed + 1]


def test_outcomes_and_pictures_of_the_mind():
    latent = WORLD.start(PARAMS)
    outcome = WORLD.outcome(PARAMS, latent)
    assert float(outcome.reward) == 0  # zero initialisation
    assert 0 <= float(outcome.continues) <= 1
    assert WORLD.decode(PARAMS, latent).shape == (5,)


MIXED = EnvSpec(
    {
        "camera": {
            "left": Space((48, 64, 1), np.uint8, 0, 256),
            "right": Space((48, 64, 3), np.uint8, 0, 256),
        },
        "body": (Space((2, 3)), Space((2,), np.int32, 1, 5)),
    },
    (Space((2,), np.float32, -1, 1), {"press": Space((2,), np.int32, 3, 5)}),
    10,
)


def test_leaves_are_named_by_their_paths() -> None:
    dreamer = Dreamer.of(CFG, MIXED)
    assert [name for name, _ in dreamer.observation] == ["body/0", "body/1", "camera/left", "camera/right"]
    assert [name for name, _ in dreamer.action] == ["0", "1/press"]
    assert [name for name, _ in (*DREAMER.observation, *DREAMER.action)] == ["observation", "action"]
    assert dreamer.spec == MIXED and DREAMER.spec == GAME.spec
    with pytest.raises(ValueError, match="'a/b'"):
        Dreamer.of(CFG, GAME.spec._replace(observation={"a/b": Space(()), "a": {"b": Space(())}}))
    with pytest.raises(ValueError, match=r"leaves \['0', '1/press'\], got \['action'\]"):
        dreamer.action_by_name(jnp.zeros(2))


def test_observations_and_actions_are_the_pytrees_of_the_environment() -> None:
    agent = model.make(CFG, MIXED)
    params = AgentParams(*(jax.jit(part.init)(jax.random.key(0)) for part in agent))
    empty = jax.tree.map(lambda space: jnp.zeros(space.shape, space.dtype), MIXED.observation)
    no = jnp.array(False)
    step = Step(empty, jnp.float32(0), ~no, no, no)
    state, action = rollout.act(agent, params, jax.random.key(1), rollout.start(agent, params), step)
    seen = jax.jit(agent.model.decode)(params.model, state.latent)
    alike = lambda tree: jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), tree)  # noqa: E731
    assert alike(seen) == alike(MIXED.observation)
    assert alike(action) == alike(MIXED.action)
    assert seen["body"][1].min() >= 1
    assert set(np.asarray(action[1]["press"]).tolist()) <= {3, 4}
    stored = experience.example(Dreamer.of(CFG, MIXED))
    assert alike((stored.step.observation, stored.action)) == alike((MIXED.observation, MIXED.action))


def test_equal_arguments_make_the_same_agent() -> None:
    again = EnvSpec({name: MIXED.observation[name] for name in ("body", "camera")}, MIXED.action, MIXED.max_steps)
    assert model.make(replace(CFG), again) is model.make(CFG, MIXED)
    assert model.make(replace(CFG, context=2), MIXED) is not model.make(CFG, MIXED)
    assert model.make(CFG, MIXED._replace(max_steps=11)).model.spec.max_steps == 11
    assert model.make(CFG, GAME.spec._replace(observation={"observation": GAME.spec.observation})) is not AGENT


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (Space((64, 64, 3)), GAME.spec.action, "uint8 to be read as a picture"),
        (Space((4, 64, 64, 3), np.uint8, 0, 256), GAME.spec.action, "fewer axes"),
        (Space((50, 64, 3), np.uint8, 0, 256), GAME.spec.action, "multiples of 16"),
        ({"a": Space((64, 64, 3), np.uint8, 0, 256), "b": Space((48, 48, 3), np.uint8, 0, 256)}, None, "one size"),
        (Space((), np.int32), GAME.spec.action, "finite bounds"),
        (GAME.spec.observation, Space((2,)), r"\[-1, 1\]"),
        (GAME.spec.observation, Space((), np.int32), "finite bounds"),
        (GAME.spec.observation, Space((2,), np.float32, (-1, 0), 1), r"\[-1, 1\]"),
        (GAME.spec.observation, Space((2,), np.int32, 0, (2, 3)), "the same for all its entries"),
        (Space((2,), np.int32, 0, (2, 3)), GAME.spec.action, "the same for all its entries"),
    ],
)
def test_spaces_that_cannot_be_used_are_refused(observation, action, message: str):
    with pytest.raises(ValueError, match=message):
        Dreamer.of(CFG, EnvSpec(observation, action or GAME.spec.action, 10))


def test_small_grids_are_read_as_vectors_and_come_back_in_their_shape():
    grid = {"grid": Space((5, 5, 2), np.bool_, 0, 2), "heat": Space((4, 4, 1))}
    dreamer = Dreamer.of(CFG, EnvSpec(grid, GAME.spec.action, 10))
    seen = {"grid": jax.random.bernoulli(jax.random.key(0), 0.5, (3, 5, 5, 2)), "heat": jnp.ones((3, 4, 4, 1))}
    params = model.init(dreamer, jax.random.key(1))
    tokens = heads.apply(dreamer.encoder, params.model.enc, seen)
    assert tokens.shape == (3, CFG.codec.units)
    painted = heads.apply(dreamer.decoder, params.model.dec, *rssm.start(CFG.rssm, (3,), np.float32))
    losses = codec.reconstruction_losses(CFG.codec, dreamer.observation, painted, seen)
    assert {name: x.shape for name, x in losses.items()} == {"grid": (3,), "heat": (3,)}


def test_stored_latents_come_back_as_they_were():
    for dtype in ("float32", "bfloat16"):
        dreamer = replace(DREAMER, cfg=replace(CFG, compute_dtype=dtype))
        memory = experience.start(dreamer, 3)
        step = jax.vmap(GAME.reset)(jax.random.split(jax.random.key(0), 3))[1]
        memory, latent = experience.act(dreamer, ALL, jax.random.key(1), memory, step)
        again = experience.unpack(dreamer, latent)
        jax.tree.map(np.testing.assert_array_equal, again, memory.latent)
        assert again.deter.dtype == dtype
        assert latent.stoch.dtype == np.uint8


def test_temperature_one_changes_nothing_and_a_low_one_draws_the_likeliest():
    logits = jax.random.normal(jax.random.key(0), (500, 2, 4))
    uniform = jax.random.uniform(jax.random.key(1), (500, 2))
    plain = rssm.sample(CFG.rssm, uniform, logits)
    np.testing.assert_array_equal(rssm.sample(CFG.rssm, uniform, logits, jnp.float32(1.0)), plain)
    cold = rssm.sample(CFG.rssm, uniform, logits, jnp.float32(1e-6))
    np.testing.assert_array_equal(cold.argmax(-1), logits.argmax(-1))
