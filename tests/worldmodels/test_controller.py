"""C: sizes, squashing and what zero parameters do. The published test vectors are in test_interop."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import evolution, rollout
from dreamjax.envs.probes import remember
from dreamjax.evolution import EvolutionConfig
from dreamjax.types import RecurrentPolicy
from dreamjax.worldmodels import controller
from dreamjax.worldmodels.controller import ControllerConfig
from dreamjax.worldmodels.model import CAR_RACING, DOOM, feature_size
from dreamjax.worldmodels.vision import parameter_count

DODGER = ControllerConfig("doom", 6)
DRIVER = ControllerConfig("carracing", 6)
KEY = jax.random.key(0)


def features(seed: int = 0, count: int = 6) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (count,))


@pytest.mark.parametrize(("world", "game", "count"), [(CAR_RACING, "carracing", 867), (DOOM, "doom", 1088)])
def test_parameter_count_is_the_published_one(world, game, count):
    assert parameter_count(controller.make(ControllerConfig(game, feature_size(world))).init(KEY)) == count
    assert ControllerConfig() == ControllerConfig("doom", feature_size(DOOM))


def test_zero_parameters_stand_still_in_doom_and_give_half_gas_in_carracing():
    for cfg, expected in ((DODGER, 0.0), (DRIVER, [0.0, 0.5, 0.0])):
        policy = controller.make(cfg)
        np.testing.assert_array_equal(policy.act(policy.init(KEY), KEY, features()), np.float32(expected))


def test_doom_action_is_the_squashed_inner_product():
    w, x = np.asarray(features(1)), np.asarray(features())
    action = controller.make(DODGER).act({"kernel": jnp.asarray(w)}, KEY, jnp.asarray(x))
    assert action.shape == () and float(action) == pytest.approx(np.tanh(np.float64(w) @ np.float64(x)), abs=1e-6)


def test_carracing_actions_are_squashed_each_in_its_own_way():
    rng = np.random.default_rng(0)
    act = controller.make(DRIVER).act
    for sign in (-1, 1):
        w, b, x = rng.normal(size=(6, 3)), np.array([0.3, -0.2, sign * 4.0]), np.asarray(features())
        steer, gas, brake = np.tanh(x @ w + b)
        got = act({"bias": jnp.float32(b), "kernel": jnp.float32(w)}, KEY, jnp.asarray(x))
        np.testing.assert_allclose(got, [steer, (gas + 1) / 2, max(brake, 0)], atol=1e-6)


@pytest.mark.parametrize(("direction", "expected"), [(1.0, [1, 1, 1]), (-1.0, [-1, 0, 0])])
def test_actions_stay_in_their_ranges(direction, expected):
    params = {"bias": jnp.full(3, direction * 100), "kernel": jnp.zeros((6, 3))}
    np.testing.assert_array_equal(controller.make(DRIVER).act(params, KEY, features()), expected)
    params = {"kernel": jnp.full(6, direction * 100)}
    assert controller.make(DODGER).act(params, KEY, jnp.ones(6)) == direction


@pytest.mark.parametrize("cfg", [DODGER, DRIVER], ids=["doom", "carracing"])
def test_a_population_acts_at_once(cfg):
    policy = controller.make(cfg)
    leaves, tree = jax.tree.flatten(policy.init(KEY))
    population = jax.tree.unflatten(tree, [jax.random.normal(jax.random.key(7), (4, *x.shape)) for x in leaves])
    keys, seen = jax.random.split(jax.random.key(1), 4), jnp.stack([features(i) for i in range(4)])
    together = jax.vmap(policy.act)(population, keys, seen)
    for i in range(4):
        alone = policy.act(jax.tree.map(lambda leaf, i=i: leaf[i], population), KEY, seen[i])
        np.testing.assert_allclose(together[i], alone, atol=1e-6)


def test_an_unknown_game_is_refused():
    with pytest.raises(ValueError, match="game must be 'doom' or 'carracing', got 'pong'"):
        ControllerConfig("pong")
    with pytest.raises(ValueError, match="features >= 1 and hidden >= 0"):
        ControllerConfig(hidden=-1)


@pytest.mark.parametrize(("hidden", "count"), [(0, 99), (40, 1443)])
def test_on_z_alone_with_and_without_hidden_units(hidden, count):
    world = replace(CAR_RACING, sees="z")
    policy = controller.make(ControllerConfig("carracing", feature_size(world), hidden))
    assert parameter_count(policy.init(KEY)) == count
    np.testing.assert_array_equal(policy.act(policy.init(KEY), KEY, features(0, 32)), np.float32([0, 0.5, 0]))


@pytest.mark.parametrize("game", ["doom", "carracing"])
def test_hidden_units_stand_for_the_features(game):
    small, large = (controller.make(ControllerConfig(game, *sizes)) for sizes in ((4,), (6, 4)))
    v, a = jax.random.normal(jax.random.key(5), (6, 4)), jnp.arange(4.0)
    outer = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(1.0, 1 + leaf.size)).reshape(leaf.shape), small.init(KEY))
    expected = small.act(outer, KEY, jnp.tanh(features() @ v + a))
    got = large.act(outer | {"hidden": {"kernel": v, "bias": a}}, KEY, features())
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("game", ["doom", "carracing"])
def test_recurrent_units_read_the_features_and_themselves(game):
    outer, policy = (
        controller.make(cfg) for cfg in (ControllerConfig(game, 4), ControllerConfig(game, 6, 4, recurrent=True))
    )
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
    """Evolve C where two cues, shown at first only, are named by the sign of the action; say how often it is right."""
    game, whole = remember(cues=2, delay=2), rollout.recurrent(controller.make(cfg))

    def act(params, key, memory, features):
        memory, action = whole.act(params, key, memory, features)
        return memory, (action > 0).astype(jnp.int32)

    agent = rollout.reactive(RecurrentPolicy(whole.init, whole.start, act))
    play = jax.jit(lambda population, keys: rollout.population_returns(game, agent, population, keys).total)
    settings = EvolutionConfig(population_size=32, sigma=1.0)
    state = evolution.init(settings, whole.init(KEY))
    for generation in range(20):
        key_ask, key_play = jax.random.split(jax.random.fold_in(jax.random.key(1), generation))
        state, population = evolution.ask(settings, key_ask, state)
        fitness = play(population, jax.random.split(key_play, 16)).mean(1)
        state, _ = evolution.tell(settings, state, population, fitness)
    alone = jax.tree.map(lambda leaf: leaf[None], evolution.mean(settings, state))
    return float(play(alone, jax.random.split(jax.random.key(2), 256)).mean())


def test_recurrent_units_are_evolved_to_remember_where_others_are_right_by_chance():
    assert cues_named(ControllerConfig(features=3, hidden=4, recurrent=True)) == 1.0
    assert 0.4 < cues_named(ControllerConfig(features=3, hidden=4)) < 0.6
