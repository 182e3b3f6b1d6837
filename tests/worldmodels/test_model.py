"""V and M as one `LatentModel`: what happens in which order, and what a dream draws."""

from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import dream
from dreamjax.distributions import mixture_sample
from dreamjax.envs.car_racing import car_racing_spec
from dreamjax.envs.vizdoom import take_cover_spec
from dreamjax.nets.lstm import LSTMState
from dreamjax.optim import parameter_count
from dreamjax.types import Agent, EnvSpec, LatentModel, Space
from dreamjax.worldmodels import memory, model, vision
from dreamjax.worldmodels.controller import ControllerConfig
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.model import CAR_RACING, DOOM, WorldModelConfig, WorldModelParams, WorldModelState
from dreamjax.worldmodels.vision import VisionConfig

DODGER = replace(
    DOOM,
    vision=VisionConfig(latent_size=4),
    memory=MemoryConfig(latent_size=4, action_size=1, hidden_size=5, mixtures=2),
)
DRIVER = replace(
    CAR_RACING,
    vision=VisionConfig(latent_size=4),
    memory=MemoryConfig(latent_size=4, action_size=3, hidden_size=5, mixtures=2, predict_done=False),
)
SPECS = {1: take_cover_spec(), 3: car_racing_spec()}  # by the size of the action
both = pytest.mark.parametrize("cfg", [DODGER, DRIVER], ids=["doom", "carracing"])
YES, NO = jnp.array(True), jnp.array(False)


@pytest.fixture(scope="module")
def vision_params():
    return jax.jit(vision.init, static_argnums=0)(DODGER.vision, jax.random.key(0))


def draw_params(cfg: WorldModelConfig) -> WorldModelParams:
    """Without V, which only `encode` and `decode` may ask for."""
    return WorldModelParams({}, jax.tree.map(lambda x: 2 * x, memory.init(cfg.memory, jax.random.key(0))))


def bind(cfg: WorldModelConfig) -> LatentModel:
    return model.make(cfg, SPECS[cfg.memory.action_size]).model


def normals(cfg: WorldModelConfig, seed: int):
    """A posterior and an action."""
    rng = np.random.default_rng(seed)
    mean, log_variance = jnp.asarray(rng.normal(size=(2, cfg.vision.latent_size)), jnp.float32)
    shape = bind(cfg).spec.action.shape
    return (mean, log_variance), jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)


def somewhere(cfg: WorldModelConfig, is_first: jax.Array = NO) -> WorldModelState:
    rng = np.random.default_rng(9)
    sizes = (cfg.vision.latent_size, cfg.memory.hidden_size, cfg.memory.hidden_size)
    return WorldModelState(*(jnp.asarray(rng.normal(size=n), jnp.float32) for n in sizes), is_first)


def advanced(cfg: WorldModelConfig, params: WorldModelParams, state: WorldModelState, action: jax.Array) -> LSTMState:
    return memory.step(cfg.memory, params.memory, LSTMState(state.c, state.h), state.z, action, state.is_first)


# What an environment sees


def test_the_specs_are_those_of_the_environments():
    doom, carracing = take_cover_spec(), car_racing_spec()
    assert doom.observation == carracing.observation == Space((64, 64, 3), np.uint8, 0, 256)
    assert doom.action == Space((), np.float32, -1.0, 1.0) and doom.max_steps == 2100
    assert carracing.action == Space((3,), np.float32, (-1, 0, 0), 1.0) and carracing.max_steps == 1000
    assert bind(DODGER).spec == doom and bind(DRIVER).spec == carracing


def test_equal_arguments_make_the_same_agent():
    """So that what was compiled for it is found again."""
    spec = EnvSpec({"picture": Space((64, 64, 3), np.uint8, 0, 256)}, take_cover_spec().action, 9)
    same = spec._replace(observation={"picture": Space((64, 64, 3), "uint8", 0, 256)})
    agent = model.make(DODGER, spec)
    assert isinstance(agent, Agent) and model.make(replace(DODGER), same) is agent
    assert model.make(DODGER, spec._replace(max_steps=10)) is not agent


def test_v_reads_the_one_picture_of_a_mapping(vision_params):
    frame = jnp.asarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)), jnp.uint8)
    spaces = {"health": Space((), np.int32, 0, 101), "picture": Space((64, 64, 3), np.uint8, 0, 256)}
    bound = model.make(DODGER, EnvSpec(spaces, take_cover_spec().action, 9)).model
    params = WorldModelParams(vision_params, {})
    expected = bind(DODGER).encode(params, frame)
    chex.assert_trees_all_equal(bound.encode(params, {"health": jnp.int32(7), "picture": frame}), expected)
    chex.assert_trees_all_equal(
        bound.decode(params, somewhere(DODGER)), {"picture": bind(DODGER).decode(params, somewhere(DODGER))}
    )


def test_m_reads_the_numbers_of_a_tree_of_actions():
    action = {"class": Space((), np.int32, 0, 4), "move": Space((2,), np.float32, -1.0, 1.0)}
    cfg = replace(DRIVER, controller=ControllerConfig())
    bound = model.make(cfg, EnvSpec(take_cover_spec().observation, action, 9)).model
    params, whole = draw_params(DRIVER), bind(DRIVER)
    taken = {"class": jnp.int32(3), "move": jnp.array([0.5, -0.5])}
    one = bound.imagine(params, jax.random.key(0), somewhere(DRIVER), taken, 1.0)
    two = whole.imagine(params, jax.random.key(0), somewhere(DRIVER), jnp.array([3, 0.5, -0.5]), 1.0)
    chex.assert_trees_all_equal(one, two)


@pytest.mark.parametrize(("cfg", "size"), [(DOOM, 1088), (CAR_RACING, 288)])
def test_features_have_the_published_length(cfg, size):
    bound = bind(cfg)
    features = jax.eval_shape(lambda key: bound.features(bound.start(bound.init(key))), jax.random.key(0))
    assert model.feature_size(cfg) == size and features.shape == (size,)


def test_features_are_z_then_c_then_h():
    state = WorldModelState(jnp.arange(4.0), jnp.arange(10.0, 15), jnp.arange(20.0, 25), NO)
    doom = [0, 1, 2, 3, 10, 11, 12, 13, 14, 20, 21, 22, 23, 24]
    np.testing.assert_array_equal(bind(DODGER).features(state), doom)
    np.testing.assert_array_equal(bind(DRIVER).features(state), doom[:4] + doom[9:])


def test_configurations_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="V has 32 latents and M 64; they must be the same"):
        WorldModelConfig(vision=VisionConfig(latent_size=32))
    with pytest.raises(ValueError, match="features must be"):
        replace(DRIVER, features="zz")
    with pytest.raises(ValueError, match="leave step_reward at 0"):
        replace(DODGER, memory=replace(DODGER.memory, predict_reward=True))
    with pytest.raises(
        ValueError, match=r"actions of 1 numbers, those of the environment have 3: set memory\.action_size=3"
    ):
        model.make(DODGER, car_racing_spec())
    picture = take_cover_spec().observation
    for observation in (
        Space((96, 96, 3), np.uint8, 0, 256),
        {"left": picture, "right": picture},
        {"seen": Space((3,))},
    ):
        with pytest.raises(ValueError, match=r"exactly one uint8 picture \[64, 64, 3\], got [02] in"):
            model.make(DODGER, take_cover_spec()._replace(observation=observation))


# The order of events


@both
def test_the_controller_sees_the_frame_and_the_memory_from_before_it(cfg):
    bound, params = bind(cfg), draw_params(cfg)
    zero = jnp.zeros(cfg.memory.hidden_size)
    state, c, h, first = bound.start(params), zero, zero, YES
    for t in range(4):
        posterior, action = normals(cfg, t)
        key = jax.random.key(t)
        state = bound.observe(params, jax.random.clone(key), state, action, posterior, first)
        if t > 0:  # M has consumed frame t-1 and the action after it
            c, h = memory.step(cfg.memory, params.memory, LSTMState(c, h), z, action, jnp.array(t == 1))  # noqa: F821
        z = posterior[0] + jnp.exp(posterior[1] / 2) * jax.random.normal(key, posterior[0].shape)
        expected = jnp.concatenate([z, c, h] if cfg.features == "zch" else [z, h])
        chex.assert_trees_all_close(bound.features(state), expected, atol=1e-6)
        first = NO


@both
def test_memory_does_not_depend_on_the_frame_that_it_predicts(cfg):
    bound, params = bind(cfg), draw_params(cfg)
    posterior, action = normals(cfg, 0)
    other, _ = normals(cfg, 1)
    one, two = (bound.observe(params, jax.random.key(0), somewhere(cfg), action, p, NO) for p in (posterior, other))
    chex.assert_trees_all_equal((one.c, one.h), (two.c, two.h))
    assert (one.z != two.z).all()


@both
@pytest.mark.parametrize("was_first", [YES, NO], ids=["first", "later"])
def test_observing_and_imagining_advance_memory_alike(cfg, was_first):
    bound, params, state = bind(cfg), draw_params(cfg), somewhere(cfg, was_first)
    posterior, action = normals(cfg, 0)
    seen = bound.observe(params, jax.random.key(0), state, action, posterior, NO)
    dreamt = bound.imagine(params, jax.random.key(1), state, action, 1.0)
    chex.assert_trees_all_equal(seen._replace(z=dreamt.z), dreamt)
    chex.assert_trees_all_close(advanced(cfg, params, state, action), LSTMState(dreamt.c, dreamt.h), atol=1e-6)


@both
def test_a_dreamt_latent_is_what_memory_expects_after_the_action(cfg):
    bound, params = bind(cfg), draw_params(cfg)
    _, action = normals(cfg, 0)
    lstm = advanced(cfg, params, somewhere(cfg), action)
    expected = mixture_sample(jax.random.key(0), memory.predict(cfg.memory, params.memory, lstm.h).latent, 1.3)
    dreamt = bound.imagine(params, jax.random.key(0), somewhere(cfg), action, 1.3)
    chex.assert_trees_all_close(dreamt.z, expected, atol=1e-5)


def test_memory_reads_that_the_episode_has_just_begun():
    bound, params = bind(DODGER), draw_params(DODGER)
    after = [
        bound.imagine(params, jax.random.key(0), somewhere(DODGER, flag), jnp.float32(0), 1.0) for flag in (YES, NO)
    ]
    assert (abs(after[0].h - after[1].h) > 1e-4).all() and not after[0].is_first


@both
def test_the_first_frame_of_an_episode_finds_memory_empty(cfg):
    bound, params = bind(cfg), draw_params(cfg)
    posterior, action = normals(cfg, 0)
    state = bound.observe(params, jax.random.key(0), somewhere(cfg), action, posterior, YES)
    assert not state.c.any() and not state.h.any() and state.is_first
    start = bound.start(params)
    assert not any(leaf.any() for leaf in (start.z, start.c, start.h))
    first = bound.observe(params, jax.random.key(0), start, jnp.zeros_like(action), posterior, YES)
    chex.assert_trees_all_equal(first, state)


@both
def test_vmap_equals_a_loop(cfg):
    bound, params = bind(cfg), draw_params(cfg)
    data = [normals(cfg, seed) for seed in range(3)]
    posteriors, actions = jax.tree.map(lambda *leaves: jnp.stack(leaves), *data)
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[somewhere(cfg, flag) for flag in (YES, NO, NO)])
    firsts = jnp.array([False, True, False])
    keys = jax.random.split(jax.random.key(0), 3)
    observed = jax.jit(jax.vmap(partial(bound.observe, params)))(
        jax.random.clone(keys), states, actions, posteriors, firsts
    )
    dreamt = jax.jit(jax.vmap(partial(bound.imagine, params), (0, 0, 0, None)))(
        jax.random.clone(keys), states, actions, 1.2
    )
    judged = jax.vmap(partial(bound.outcome, params))(dreamt)
    for i in range(3):
        at = lambda tree, i=i: jax.tree.map(lambda leaf: leaf[i], tree)  # noqa: E731
        one = bound.observe(params, jax.random.clone(keys)[i], at(states), actions[i], at(posteriors), firsts[i])
        chex.assert_trees_all_close(at(observed), one, atol=1e-5)
        one = bound.imagine(params, jax.random.clone(keys)[i], at(states), actions[i], 1.2)
        chex.assert_trees_all_close(at(dreamt), one, atol=1e-5)
        chex.assert_trees_all_close(at(judged), bound.outcome(params, one), atol=1e-5)


# What is drawn


def test_real_latents_are_drawn_from_the_posterior():
    bound, params = bind(DODGER), draw_params(DODGER)
    (mean, log_variance), action = normals(DODGER, 0)
    observe = jax.vmap(lambda key: bound.observe(params, key, somewhere(DODGER), action, (mean, log_variance), NO).z)
    z = jax.jit(observe)(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(z.mean(0), mean, atol=0.05)
    np.testing.assert_allclose(z.std(0), np.exp(log_variance / 2), rtol=0.03)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.15, 2.0])
def test_temperature_flattens_the_weights_and_widens_the_components(temperature):
    """Weights to the power 1/temperature, deviations times its root; the end of the episode is as likely as before."""
    bound, params = bind(DODGER), jax.tree.map(jnp.zeros_like, draw_params(DODGER))
    weights, means, stds = np.array([0.8, 0.2]), np.array([-50.0, 50.0]), np.array([0.5, 2.0])
    columns = np.concatenate([np.repeat(x, 4) for x in (np.log(weights), means, np.log(stds))] + [[-3.0]])
    params.memory["output"]["bias"] = jnp.asarray(columns, jnp.float32)

    @jax.jit
    def draw(keys, temperature):
        one = lambda key: bound.imagine(params, key, somewhere(DODGER), jnp.float32(0), temperature)  # noqa: E731
        states = jax.vmap(one)(keys)
        return states.z, jax.vmap(partial(bound.outcome, params))(states).continues

    z, continues = map(np.asarray, draw(jax.random.split(jax.random.key(0), 10_000), temperature))
    assert z.shape == (10_000, 4)
    expected = weights ** (1 / temperature) / (weights ** (1 / temperature)).sum()
    for component, chosen in enumerate((z < 0, z > 0)):
        np.testing.assert_allclose(chosen.mean(0), expected[component], atol=0.02)
        drawn = np.where(chosen, z, np.nan)
        np.testing.assert_allclose(np.nanmean(drawn, 0), means[component], atol=0.25)
        np.testing.assert_allclose(np.nanstd(drawn, 0), stds[component] * np.sqrt(temperature), rtol=0.06)
    np.testing.assert_allclose(continues, 1 / (1 + np.exp(-3.0)), rtol=1e-5)
    # Each dimension chooses its component by itself.
    assert abs(np.corrcoef((z > 0).T) - np.eye(4)).max() < 0.05


# How it ends


@pytest.mark.parametrize(("logit", "over"), [(-0.01, False), (0.01, True), (30.0, True)])
def test_a_dream_of_doom_ends_where_the_done_logit_is_positive(logit, over):
    bound, params = bind(DODGER), jax.tree.map(jnp.zeros_like, draw_params(DODGER))
    params.memory["output"]["bias"] = params.memory["output"]["bias"].at[-1].set(logit)
    outcome = bound.outcome(params, somewhere(DODGER))
    assert outcome.reward == 1 and float(outcome.continues) == pytest.approx(1 / (1 + np.exp(logit)), abs=1e-6)
    posterior, _ = normals(DODGER, 0)
    dreamed = dream.environment(bound, params, jax.tree.map(lambda leaf: leaf[None], posterior))
    state, first = dreamed.reset(jax.random.key(0))
    _, step = dreamed.step(jax.random.key(1), state, jnp.float32(0))
    assert not first.is_last and step.is_terminal == step.is_last == over
    assert first.reward == 0 and step.reward == 1  # the last step is paid, too


def test_a_dream_pays_what_m_predicts():
    cfg = replace(DRIVER, memory=replace(DRIVER.memory, predict_reward=True))
    params = jax.tree.map(jnp.zeros_like, draw_params(cfg))
    params.memory["output"]["bias"] = params.memory["output"]["bias"].at[-1].set(-0.1)
    outcome = bind(cfg).outcome(params, somewhere(cfg))
    assert float(outcome.reward) == pytest.approx(-0.1) and outcome.continues == 1


def test_a_dream_pays_the_reward_of_a_step_where_m_predicts_none():
    cfg = replace(DRIVER, step_reward=-0.25)
    assert bind(cfg).outcome(draw_params(cfg), somewhere(cfg)).reward == -0.25


def test_a_dream_of_carracing_pays_nothing_and_has_no_end():
    outcome = bind(DRIVER).outcome(draw_params(DRIVER), somewhere(DRIVER))
    assert outcome.reward == 0 and outcome.continues == 1


# V


def test_encoding_and_decoding_are_vs(vision_params):
    bound, params = bind(DODGER), draw_params(DODGER)._replace(vision=vision_params)
    frame = jnp.asarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)), jnp.uint8)
    expected = vision.encode(DODGER.vision, vision_params, frame)
    chex.assert_trees_all_equal(bound.encode(params, frame), expected)
    state = somewhere(DODGER)
    picture = bound.decode(params, state)
    assert picture.dtype == jnp.uint8 and picture.shape == (64, 64, 3)
    chex.assert_trees_all_equal(picture, vision.decode(DODGER.vision, vision_params, state.z))


def test_parameters_of_v_and_m_are_drawn_apart():
    params = jax.eval_shape(bind(DOOM).init, jax.random.key(0))
    counts = [parameter_count(part) for part in (params.vision, params.memory)]
    assert counts == [4_446_915, 1_678_785]
