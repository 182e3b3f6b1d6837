"""C: sizes, squashing and what zero parameters do. The published test vectors are in test_interop."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import evolution, rollout
from dreamjax.envs.car_racing import car_racing_spec
from dreamjax.envs.probes import remember
from dreamjax.envs.vizdoom import take_cover_spec
from dreamjax.evolution import EvolutionConfig
from dreamjax.optim import parameter_count
from dreamjax.types import Space
from dreamjax.worldmodels import controller
from dreamjax.worldmodels.controller import ControllerConfig
from dreamjax.worldmodels.model import CAR_RACING, DOOM, feature_size

SIDE, DRIVE = take_cover_spec().action, car_racing_spec().action
DODGER, DRIVER = (DOOM.controller, SIDE), (CAR_RACING.controller, DRIVE)
KEY = jax.random.key(0)


def features(seed: int = 0, count: int = 6) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (count,))


def make(kind, count=6, **changes):
    cfg, action = kind
    return controller.make(replace(cfg, **changes), count, action)


each = pytest.mark.parametrize("kind", [DODGER, DRIVER], ids=["doom", "carracing"])


@pytest.mark.parametrize(("world", "kind", "count"), [(CAR_RACING, DRIVER, 867), (DOOM, DODGER, 1088)])
def test_parameter_count_is_the_published_one(world, kind, count):
    assert parameter_count(make(kind, feature_size(world)).init(KEY)) == count


def test_zero_parameters_stand_still_in_doom_and_give_half_gas_in_carracing():
    for kind, expected in ((DODGER, 0.0), (DRIVER, [0.0, 0.5, 0.0])):
        policy = make(kind)
        np.testing.assert_array_equal(policy.act(policy.init(KEY), KEY, features()), np.float32(expected))


def test_doom_action_is_the_squashed_inner_product():
    w, x = np.asarray(features(1)), np.asarray(features())
    action = make(DODGER).act({"kernel": jnp.asarray(w)}, KEY, jnp.asarray(x))
    assert action.shape == () and float(action) == pytest.approx(np.tanh(np.float64(w) @ np.float64(x)), abs=1e-6)


def test_carracing_actions_are_squashed_each_in_its_own_way():
    rng = np.random.default_rng(0)
    act = make(DRIVER).act
    for sign in (-1, 1):
        w, b, x = rng.normal(size=(6, 3)), np.array([0.3, -0.2, sign * 4.0]), np.asarray(features())
        steer, gas, brake = np.tanh(x @ w + b)
        got = act({"bias": jnp.float32(b), "kernel": jnp.float32(w)}, KEY, jnp.asarray(x))
        np.testing.assert_allclose(got, [steer, (gas + 1) / 2, max(brake, 0)], atol=1e-6)


@pytest.mark.parametrize(("direction", "expected"), [(1.0, [1, 1, 1]), (-1.0, [-1, 0, 0])])
def test_actions_stay_in_their_ranges(direction, expected):
    params = {"bias": jnp.full(3, direction * 100), "kernel": jnp.zeros((6, 3))}
    np.testing.assert_array_equal(make(DRIVER).act(params, KEY, features()), expected)
    params = {"kernel": jnp.full(6, direction * 100)}
    assert make(DODGER).act(params, KEY, jnp.ones(6)) == direction


def test_a_continuous_action_fills_the_bounds_of_any_space():
    space = Space((2, 2), np.float32, [[-2, 0], [1, -3]], [[2, 10], [5, -1]])
    policy = controller.make(ControllerConfig(), 6, space)
    assert jax.tree.map(jnp.shape, policy.init(KEY)) == {"bias": (4,), "kernel": (6, 4)}
    kernel = jnp.zeros((6, 4))
    for logit, expected in ((0, [[0, 5], [3, -2]]), (100, space.high_array), (-100, space.low_array)):
        action = policy.act({"bias": jnp.full(4, logit), "kernel": kernel}, KEY, features())
        np.testing.assert_allclose(action, expected, atol=1e-6)


def test_what_has_no_bounds_is_linear():
    space = Space((4,), np.float32, (-np.inf, -2, -np.inf, -4), (np.inf, np.inf, 3, 4))
    policy = controller.make(ControllerConfig(), 6, space)
    for bias, expected in ((5.0, [5, 5, 3, 4]), (-50.0, [-50, -2, -50, -4])):
        params = {"bias": jnp.full(4, bias), "kernel": jnp.zeros((6, 4))}
        np.testing.assert_allclose(policy.act(params, KEY, features()), expected, rtol=1e-3)
        slope = jax.grad(lambda x, params=params: policy.act(params | {"bias": x}, KEY, features())[0])(params["bias"])
        np.testing.assert_array_equal(slope, [1, 0, 0, 0])


def test_a_lone_number_can_have_a_bias():
    policy = controller.make(ControllerConfig(), 6, Space((), np.float32, 0.0, 4.0))
    assert jax.tree.map(jnp.shape, policy.init(KEY)) == {"bias": (), "kernel": (6,)}
    params = {"bias": jnp.float32(np.arctanh(0.5)), "kernel": jnp.zeros(6)}
    np.testing.assert_allclose(policy.act(params, KEY, features()), 3.0, rtol=1e-6)


def test_a_discrete_action_is_the_class_with_the_largest_logit():
    policy = controller.make(ControllerConfig(), 2, Space((), np.int32, 3, 6))
    params = {"bias": jnp.array([0.0, 0.5, 0.0]), "kernel": jnp.array([[1.0, 0, 0], [0, 0, 1]])}
    for x, expected in (([1, 0], 3), ([0, 0], 4), ([0, 1], 5)):
        action = policy.act(params, KEY, jnp.float32(x))
        assert action == expected and action.dtype == jnp.int32 and action.shape == ()
    assert policy.act(policy.init(KEY), KEY, jnp.ones(2)) == 3


def test_several_classes_need_not_be_equally_many():
    policy = controller.make(ControllerConfig(bias=False), 1, Space((2,), np.int32, 0, (2, 4)))
    kernel = jnp.arange(8.0)[None]  # the last class always wins, where it exists
    np.testing.assert_array_equal(policy.act({"kernel": kernel}, KEY, jnp.ones(1)), [1, 3])


@pytest.mark.parametrize("hidden", [0, 4])
def test_a_tree_of_spaces_has_a_head_for_each(hidden):
    action = {"kernel": SIDE, "hidden": (DRIVE, Space((), np.int32, 0, 3))}  # names that the parameters use, too
    policy = controller.make(ControllerConfig(hidden=hidden), 6, action)
    params = policy.init(KEY)
    acted = policy.act(params, KEY, features())
    assert jax.tree.map(lambda leaf: leaf.shape, acted) == {"kernel": (), "hidden": ((3,), ())}
    params["heads"]["hidden"][1]["bias"] = jnp.array([0.0, 1.0, 0.0])
    assert policy.act(params, KEY, features())["hidden"][1] == 1


@each
def test_a_population_acts_at_once(kind):
    policy = make(kind)
    leaves, tree = jax.tree.flatten(policy.init(KEY))
    population = jax.tree.unflatten(tree, [jax.random.normal(jax.random.key(7), (4, *x.shape)) for x in leaves])
    keys, seen = jax.random.split(jax.random.key(1), 4), jnp.stack([features(i) for i in range(4)])
    together = jax.vmap(policy.act)(population, keys, seen)
    for i in range(4):
        alone = policy.act(jax.tree.map(lambda leaf, i=i: leaf[i], population), KEY, seen[i])
        np.testing.assert_allclose(together[i], alone, atol=1e-6)


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match="hidden >= 0"):
        ControllerConfig(hidden=-1)
    with pytest.raises(ValueError, match="indices of a flat action"):
        ControllerConfig(clipped=(-1,))
    with pytest.raises(ValueError, match="features >= 1"):
        controller.make(ControllerConfig(), 0, SIDE)
    with pytest.raises(ValueError, match=r"finite bounds for the action \['fly'\], got Space"):
        controller.make(ControllerConfig(), 6, {"fly": Space((2,), np.int32)})
    for entry, space in ((3, DRIVE), (1, Space((3,), np.float32, -1, (1, np.inf, 1)))):
        with pytest.raises(ValueError, match=rf"clipped=\({entry},\) names an entry that the action does not have or"):
            controller.make(ControllerConfig(clipped=(entry,)), 6, space)


@pytest.mark.parametrize(("hidden", "count"), [(0, 99), (40, 1443)])
def test_on_z_alone_with_and_without_hidden_units(hidden, count):
    policy = make(DRIVER, feature_size(replace(CAR_RACING, features="z")), hidden=hidden)
    assert parameter_count(policy.init(KEY)) == count
    np.testing.assert_array_equal(policy.act(policy.init(KEY), KEY, features(0, 32)), np.float32([0, 0.5, 0]))


@each
def test_hidden_units_stand_for_the_features(kind):
    small, large = make(kind, 4), make(kind, 6, hidden=4)
    v, a = jax.random.normal(jax.random.key(5), (6, 4)), jnp.arange(4.0)
    outer = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(1.0, 1 + leaf.size)).reshape(leaf.shape), small.init(KEY))
    expected = small.act(outer, KEY, jnp.tanh(features() @ v + a))
    got = large.act(outer | {"hidden": {"kernel": v, "bias": a}}, KEY, features())
    np.testing.assert_allclose(got, expected, atol=1e-6)


@each
def test_recurrent_units_read_the_features_and_themselves(kind):
    outer, policy = make(kind, 4), make(kind, 6, hidden=4, recurrent=True)
    v, a = 0.3 * jax.random.normal(jax.random.key(5), (10, 4)), jnp.arange(4.0) / 4
    weights = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(1.0, 1 + leaf.size)).reshape(leaf.shape), outer.init(KEY))
    params = weights | {"hidden": {"kernel": v, "bias": a}}
    assert jax.tree.map(jnp.shape, policy.init(KEY)) == jax.tree.map(jnp.shape, params)
    memory, units = policy.start(params), np.zeros(4)
    for t in range(3):
        units = np.tanh(np.asarray(features(t)) @ v[:6] + units @ v[6:] + a)
        memory, action = policy.act(params, KEY, memory, features(t))
        np.testing.assert_allclose(memory, units, atol=1e-6)
        np.testing.assert_allclose(action, outer.act(weights, KEY, jnp.float32(units)), atol=1e-6)


def test_recurrent_units_must_be_there():
    with pytest.raises(ValueError, match="set hidden to how many"):
        ControllerConfig(recurrent=True)


def cues_named(cfg):
    """Evolve C where two cues, shown at first only, are named by the action; say how often it is right."""
    environment = remember(cues=2, delay=2)
    policy = controller.make(cfg, 3, environment.spec.action)
    agent = rollout.reactive(policy)
    play = jax.jit(lambda population, keys: rollout.population_returns(environment, agent, population, keys).total)
    settings = EvolutionConfig(population_size=32, sigma=1.0)
    state = evolution.init(settings, policy.init(KEY))
    for generation in range(20):
        key_ask, key_play = jax.random.split(jax.random.fold_in(jax.random.key(1), generation))
        state, population = evolution.ask(settings, key_ask, state)
        fitness = play(population, jax.random.split(key_play, 16)).mean(1)
        state, _ = evolution.tell(settings, state, population, fitness)
    alone = jax.tree.map(lambda leaf: leaf[None], state.mean)
    return float(play(alone, jax.random.split(jax.random.key(2), 256)).mean())


def test_recurrent_units_are_evolved_to_remember_where_others_are_right_by_chance():
    assert cues_named(ControllerConfig(hidden=4, recurrent=True)) == 1.0
    assert 0.4 < cues_named(ControllerConfig(hidden=4)) < 0.6
