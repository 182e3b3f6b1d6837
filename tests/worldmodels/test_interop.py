"""Published weights: every published test vector, and files that come back as they were."""

import json
from dataclasses import replace
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import dream
from dreamjax.distributions import mixture_log_prob
from dreamjax.envs.car_racing import car_racing_spec
from dreamjax.envs.vizdoom import take_cover_spec
from dreamjax.types import AgentParams
from dreamjax.worldmodels import controller, interop, memory, vision
from dreamjax.worldmodels.controller import ControllerConfig
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.model import CAR_RACING, DOOM, WorldModelParams, make
from dreamjax.worldmodels.vision import VisionConfig

DRIVER = (CAR_RACING.controller, 288, car_racing_spec().action)  # as `controller.make` takes it
DODGER = (DOOM.controller, 1088, take_cover_spec().action)
CONTROLLERS = {
    "carracing": (DRIVER, "carracing/log/carracing.cma.16.64.best.json"),
    "doom": (DODGER, "doomrnn/log/doomrnn.cma.16.64.best.json"),
}
SMALL_DOOM = MemoryConfig(latent_size=3, action_size=1, hidden_size=4, mixtures=2)
SMALL_RACING = MemoryConfig(latent_size=3, action_size=2, hidden_size=4, mixtures=2, predict_done=False)


@cache
def load(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def driver_memory(world_models_data):
    return load(world_models_data / "carracing/rnn/rnn.json")


def integers(rng: np.random.Generator, *shape: int) -> list:
    return rng.integers(-20_000, 20_000, shape).tolist()


def vision_arrays(z: int) -> list:
    """22 arrays of zeros with the published shapes, which are written out here once more."""
    kernels = [(4, 4, 3, 32), (4, 4, 32, 64), (4, 4, 64, 128), (4, 4, 128, 256), (1024, z), (1024, z), (z, 1024)]
    kernels += [(5, 5, 128, 1024), (5, 5, 64, 128), (6, 6, 32, 64), (6, 6, 3, 32)]
    biases = [32, 64, 128, 256, z, z, 1024, 128, 64, 32, 3]
    return [np.zeros(shape, int) for pair in zip(kernels, biases, strict=True) for shape in pair]


# M


def test_published_memory_computes_what_was_published(driver_memory):
    cfg = CAR_RACING.memory
    params = interop.memory_from_published(cfg, driver_memory)
    z, action, no = jnp.sin(jnp.arange(32.0)), jnp.array([0.1, 0.5, 0.0]), jnp.array(False)
    first = memory.step(cfg, params, memory.start(cfg), z, action, no)
    chex.assert_trees_all_close(first.c[:4], jnp.array([0.0278487, -0.1750152, 0.0055066, -0.1436010]), atol=1e-5)
    chex.assert_trees_all_close(first.h[:4], jnp.array([0.0184156, -0.1021721, 0.0024562, -0.0863108]), atol=1e-5)
    assert float(first.h.sum()) == pytest.approx(1.5469124, abs=1e-5)
    assert float(jnp.linalg.norm(first.h)) == pytest.approx(1.0571674, abs=1e-5)

    latent = memory.predict(cfg, params, first.h).latent
    log_weights = jax.nn.log_softmax(latent.logits, 0)
    expected = (
        [-1.582954, -1.583039, -1.580342, -1.678288, -1.626154],
        [0.0382610, 0.0100258, -0.0846701, 0.0024886, 0.0697019],
        [-0.0677216, -0.0315832, -0.0188625, -0.0258901, -0.0352474],
    )
    for got, wanted in zip((log_weights, latent.means, latent.log_stds), expected, strict=True):
        chex.assert_trees_all_close(got[:, 0], jnp.array(wanted), atol=1e-5)
    assert float(-mixture_log_prob(latent, jnp.zeros(32)).mean()) == pytest.approx(0.8786706, abs=1e-5)

    second = memory.step(cfg, params, first, z, action, no)
    chex.assert_trees_all_close(second.h[:4], jnp.array([0.0388900, -0.1363549, -0.0031301, -0.1801315]), atol=1e-5)
    chex.assert_trees_all_close(second.c[:4], jnp.array([0.0542592, -0.2311668, -0.0082081, -0.2873538]), atol=1e-5)
    last = jax.nn.log_softmax(memory.predict(cfg, params, second.h).latent.logits, 0)[:, 31]
    expected = jnp.array([-1.525403, -1.556248, -1.638492, -1.698365, -1.638432])
    chex.assert_trees_all_close(last, expected, atol=1e-5)


def test_published_memory_comes_back_as_it_was(driver_memory):
    cfg = CAR_RACING.memory
    params = interop.memory_from_published(cfg, driver_memory)
    expected = jax.eval_shape(lambda key: memory.init(cfg, key), jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(params, expected)
    assert interop.memory_to_published(cfg, params) == driver_memory


def test_published_memory_dreams(driver_memory, world_models_data):
    """M, C and the start, all published, drive together; the latents stay where V would have put them."""
    agent = make(CAR_RACING, car_racing_spec())
    starts = interop.starts_from_published(load(world_models_data / "carracing/initial_z/initial_z.json"))
    theta, _ = load(world_models_data / CONTROLLERS["carracing"][1])
    driver = interop.controller_from_published(*DRIVER, theta)
    # The published V is not at hand; a dream does not ask for it.
    params = WorldModelParams({}, interop.memory_from_published(CAR_RACING.memory, driver_memory))

    @jax.jit
    def drive(params, driver, key):
        key_reset, key_imagine = jax.random.split(key)
        state, _ = dream.environment(agent.model, params, starts).reset(key_reset)
        return dream.imagine(agent, AgentParams(params, driver), key_imagine, state.latent, 200)

    trajectory = drive(params, driver, jax.random.key(0))
    z = np.asarray(trajectory.states.z)
    assert z.shape == (201, 32) and 0.7 < z.std() < 1.5 and abs(z.mean()) < 0.3
    steer, gas, brake = np.asarray(trajectory.actions).T
    assert gas.mean() > 0.1 and gas.mean() > brake.mean() and abs(steer).mean() < 0.99


@pytest.mark.parametrize("cfg", [SMALL_DOOM, SMALL_RACING], ids=["doom", "carracing"])
def test_columns_of_the_output_layer_are_those_of_the_game(cfg):
    rng = np.random.default_rng(0)
    k, z, h, done = cfg.mixtures, cfg.latent_size, cfg.hidden_size, int(cfg.predict_done)
    lstm = [integers(rng, cfg.input_size + h, 4 * h), integers(rng, 4 * h)]
    output = [integers(rng, h, 3 * k * z + done), integers(rng, 3 * k * z + done)]
    arrays = lstm + output if cfg.predict_done else output + lstm
    params = interop.memory_from_published(cfg, arrays)
    x = rng.normal(size=h)
    y = x @ (np.array(output[0]) / 1e4) + np.array(output[1]) / 1e4  # in the order of the file
    got = memory.predict(cfg, params, jnp.asarray(x, jnp.float32))
    for d in range(z):
        for i, part in enumerate(got.latent):
            begin = done + 3 * k * d + i * k
            np.testing.assert_allclose(part[:, d], y[begin : begin + k], atol=1e-5)
    assert float(got.done) == pytest.approx(y[0], abs=1e-5) if cfg.predict_done else got.done == -jnp.inf
    np.testing.assert_array_equal(params["lstm"]["kernel"], np.float32(np.array(lstm[0]) / 1e4))
    assert interop.memory_to_published(cfg, params) == arrays


@pytest.mark.parametrize("cfg", [DOOM.memory, CAR_RACING.memory], ids=["doom", "carracing"])
def test_drawn_memory_survives_a_file(cfg):
    params = memory.init(cfg, jax.random.key(0))
    back = interop.memory_from_published(cfg, interop.memory_to_published(cfg, params))
    chex.assert_trees_all_close(back, params, atol=0.5001 / interop.SCALE, rtol=0)


def test_wrong_memory_files_say_what_they_are(driver_memory):
    with pytest.raises(ValueError, match=r"array 0 of M \(lstm kernel\).*\[578, 2048\], got \[256, 480\]; .*M for Car"):
        interop.memory_from_published(DOOM.memory, driver_memory)
    with pytest.raises(ValueError, match=r"M has 4 arrays, got 22; these are the shapes of V for Doom"):
        interop.memory_from_published(CAR_RACING.memory, vision_arrays(64))
    swapped = [driver_memory[i] for i in (2, 3, 0, 1)]
    with pytest.raises(ValueError, match=r"array 0 of M \(output kernel\) .*\[256, 480\], got \[291, 1024\]$"):
        interop.memory_from_published(CAR_RACING.memory, swapped)
    with pytest.raises(ValueError, match="array 1 of M's file should hold integers"):
        interop.memory_from_published(CAR_RACING.memory, [driver_memory[0], [0.5], *driver_memory[2:]])
    with pytest.raises(ValueError, match="array 3 of M's file should be evenly nested"):
        interop.memory_from_published(CAR_RACING.memory, [*driver_memory[:3], [[1, 2], [3]]])


def test_parameters_of_another_size_are_not_written():
    params = memory.init(SMALL_DOOM, jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"array 2 of M \(output kernel\) should have the shape \[4, 28\], got \[4, 19\]"
    ):
        interop.memory_to_published(replace(SMALL_DOOM, mixtures=3), params)
    with pytest.raises(ValueError, match=r"the parameters of V are enc_conv1, .*, got lstm, output"):
        interop.vision_to_published(DOOM.vision, params)
    for wrong in (jnp.nan, 1e20):
        with pytest.raises(ValueError, match="the parameters of M must be finite, and no larger than 214,748"):
            interop.memory_to_published(SMALL_DOOM, jax.tree.map(lambda x, wrong=wrong: x.at[-1].set(wrong), params))


# V


@pytest.mark.parametrize("z", [32, 64])
def test_vision_survives_a_file(z):
    cfg = VisionConfig(latent_size=z)
    params = vision.init(cfg, jax.random.key(0))
    arrays = interop.vision_to_published(cfg, params)
    assert [np.shape(array) for array in arrays] == [array.shape for array in vision_arrays(z)]
    assert type(arrays[0][0][0][0][0]) is int
    back = interop.vision_from_published(cfg, arrays)
    chex.assert_trees_all_equal_shapes_and_dtypes(back, params)
    chex.assert_trees_all_close(back, params, atol=0.5001 / interop.SCALE, rtol=0)
    assert interop.vision_to_published(cfg, back) == arrays


def test_vision_arrays_go_where_they_belong():
    arrays = [array + i for i, array in enumerate(vision_arrays(32))]
    params = interop.vision_from_published(CAR_RACING.vision, arrays)
    names = ["enc_conv1", "enc_conv2", "enc_conv3", "enc_conv4", "enc_fc_mu", "enc_fc_log_var", "dec_fc"]
    names += [f"dec_deconv{i}" for i in (1, 2, 3, 4)]
    for i, (name, part) in enumerate((name, part) for name in names for part in ("kernel", "bias")):
        np.testing.assert_array_equal(params[name][part], np.float32(i / 1e4))


def test_wrong_vision_files_say_what_they_are(driver_memory):
    with pytest.raises(
        ValueError, match=r"array 8 of V \(enc_fc_mu kernel\).*\[1024, 64\], got \[1024, 32\]; .*CarRac"
    ):
        interop.vision_from_published(DOOM.vision, vision_arrays(32))
    with pytest.raises(ValueError, match=r"V has 22 arrays, got 4; these are the shapes of M for CarRacing"):
        interop.vision_from_published(CAR_RACING.vision, driver_memory)
    with pytest.raises(ValueError, match=r"V has 22 arrays, got 21$"):
        interop.vision_from_published(CAR_RACING.vision, vision_arrays(32)[:-1])


# C


@pytest.mark.parametrize("game", CONTROLLERS)
def test_published_controller_comes_back_as_it_was(game, world_models_data):
    cfg, path = CONTROLLERS[game]
    theta, _ = load(world_models_data / path)
    params = interop.controller_from_published(*cfg, theta)
    expected = jax.eval_shape(controller.make(*cfg).init, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(params, expected)
    assert interop.controller_to_published(*cfg, params) == theta


def test_published_driver_acts_as_published(world_models_data):
    theta, score = load(world_models_data / CONTROLLERS["carracing"][1])
    assert score == 900.460571875 and sum(theta) == pytest.approx(27.3998)
    assert np.linalg.norm(theta) == pytest.approx(18.756538)
    params = interop.controller_from_published(*DRIVER, theta)
    chex.assert_trees_all_close(params["bias"], jnp.array([0.4248, 0.1779, -2.3252]), atol=1e-6)
    features = jnp.concatenate([jnp.sin(jnp.arange(32.0)), jnp.zeros(256)])
    action = controller.make(*DRIVER).act(params, jax.random.key(0), features)
    chex.assert_trees_all_close(action, jnp.array([-0.990587, 0.464168, 0.0]), atol=1e-5)


def test_published_dodger_acts_as_published(world_models_data):
    theta, score = load(world_models_data / CONTROLLERS["doom"][1])
    assert score == 958.505859375 and sum(theta) == pytest.approx(-0.9931)
    assert np.linalg.norm(theta) == pytest.approx(24.977518)
    params = interop.controller_from_published(*DODGER, theta)
    act = controller.make(*DODGER).act
    z, memory_size = 0.1 * jnp.sin(jnp.arange(64.0)), jnp.arange(512.0)
    features = jnp.concatenate([z, 0.1 * jnp.cos(memory_size), 0.05 * jnp.sin(2 * memory_size)])
    assert float(jnp.dot(params["kernel"], features)) == pytest.approx(-2.0756473, abs=1e-5)
    assert float(act(params, jax.random.key(0), features)) == pytest.approx(-0.9690000, abs=1e-5)
    features = jnp.concatenate([z, jnp.zeros(1024)])
    assert float(jnp.dot(params["kernel"], features)) == pytest.approx(-0.1990510, abs=1e-5)
    assert float(act(params, jax.random.key(0), features)) == pytest.approx(-0.1964631, abs=1e-5)


def test_wrong_controllers_say_what_they_are():
    with pytest.raises(ValueError, match=r"shape \[1088\], got \[867\]; this is the shape of C for CarRacing"):
        interop.controller_from_published(*DODGER, [0.0] * 867)
    with pytest.raises(ValueError, match=r"shape \[867\], got \[1088\]; this is the shape of C for Doom"):
        interop.controller_from_published(*DRIVER, [0.0] * 1088)
    with pytest.raises(ValueError, match=r"got \[99\]$"):
        interop.controller_from_published(*DRIVER, [0.0] * 99)
    for wrong in (None, float("nan"), 1e300):
        with pytest.raises(ValueError, match="C's vector must be finite numbers"):
            interop.controller_from_published(*DRIVER, [wrong] * 867)
    with pytest.raises(ValueError, match=r"C's vector should be evenly nested"):  # the whole file
        interop.controller_from_published(*DRIVER, [[0.0] * 867, 900.46])
    with pytest.raises(ValueError, match=r"has the parameters \{'bias': .*, got \{'kernel': \(1088,\)\}"):
        interop.controller_to_published(*DRIVER, {"kernel": jnp.zeros(1088)})


# Where dreams begin


def test_published_starts(world_models_data):
    mean, log_variance = interop.starts_from_published(load(world_models_data / "doomrnn/tf_models/initial_z.json"))
    assert mean.shape == log_variance.shape == (1000, 64) and mean.dtype == log_variance.dtype == jnp.float32
    ranges = [float(x) for array in (mean, log_variance) for x in (array.min(), array.max())]
    assert ranges == pytest.approx([-3.14, 3.47, -8.31, 0.21], abs=5e-3)
    one = interop.starts_from_published(load(world_models_data / "carracing/initial_z/initial_z.json"))
    assert [array.shape for array in one] == [(1, 32), (1, 32)]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([[[1, 2]]], r"\[2, S, Z\], got \[1, 1, 2\]"),
        ([[1, 2], [3, 4]], r"\[2, S, Z\], got \[2, 2\]"),
        ([[[1, 2]], [[3]]], "evenly nested"),
        ([[[0.1]], [[0.2]]], "should hold integers"),
    ],
)
def test_wrong_starts_are_refused(arrays, message):
    with pytest.raises(ValueError, match=message):
        interop.starts_from_published(arrays)


def test_heads_that_no_published_m_has_are_refused() -> None:
    with pytest.raises(ValueError, match="no published M predicts rewards or actions"):
        interop.memory_from_published(replace(SMALL_RACING, predict_reward=True), [])
    with pytest.raises(ValueError, match="no published C has hidden units"):
        interop.controller_from_published(ControllerConfig(hidden=40), *DODGER[1:], [])
