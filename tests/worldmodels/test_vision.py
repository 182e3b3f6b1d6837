"""V against a second implementation in float64, written from the table of layers."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.optim import parameter_count
from dreamjax.worldmodels import vision
from dreamjax.worldmodels.vision import VisionConfig

CFG = VisionConfig(latent_size=8)
BATCH = 3


@pytest.fixture(scope="module")
def drawn():
    return jax.jit(vision.init, static_argnums=0)(CFG, jax.random.key(0))


@pytest.fixture(scope="module")
def params(drawn):
    # Biases are drawn as zeros, which would hide whether they are used.
    leaves, tree = jax.tree.flatten(drawn)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    leaves = [
        leaf if leaf.ndim > 1 else 0.02 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)
    ]
    params = jax.tree.unflatten(tree, leaves)
    # Posteriors far enough from the prior, and from each other, for the clamp to tell the frames apart.
    for name in ("enc_fc_mu", "enc_fc_log_var"):
        params[name]["kernel"] *= 20.0
    params["dec_deconv4"]["kernel"] *= 50.0  # pictures with some contrast
    return params


@pytest.fixture(scope="module")
def frames():
    noise = np.random.default_rng(0).integers(0, 256, (BATCH, 64, 64, 3))
    return jnp.asarray(noise * np.array([0.2, 0.6, 1.0])[:, None, None, None], jnp.uint8)


def noise(key, shape):
    """What `vision.loss` adds to the means."""
    return np.float64(jax.random.normal(jax.random.clone(key), shape))


def oracle_encode(params, frames):
    x = np.float64(frames) / 255
    for i in range(1, 5):
        kernel, bias = (np.float64(params[f"enc_conv{i}"][part]) for part in ("kernel", "bias"))
        size = (x.shape[1] - 4) // 2 + 1
        taps = ((a, b) for a in range(4) for b in range(4))
        x = sum(x[:, a : a + 2 * size : 2, b : b + 2 * size : 2][:, :size, :size] @ kernel[a, b] for a, b in taps)
        x = np.maximum(x + bias, 0)
    x = x.reshape(len(x), -1)
    return tuple(oracle_dense(params[name], x) for name in ("enc_fc_mu", "enc_fc_log_var"))


def oracle_dense(layer, x):
    return x @ np.float64(layer["kernel"]) + np.float64(layer["bias"])


def oracle_decode(params, z):
    x = oracle_dense(params["dec_fc"], z)[:, None, None, :]
    for i in range(1, 5):
        kernel, bias = (np.float64(params[f"dec_deconv{i}"][part]) for part in ("kernel", "bias"))
        k, size = len(kernel), x.shape[1]
        y = np.zeros((len(x), 2 * size + k - 2, 2 * size + k - 2, kernel.shape[2]))
        for a in range(k):
            for b in range(k):
                y[:, a : a + 2 * size - 1 : 2, b : b + 2 * size - 1 : 2] += x @ kernel[a, b].T
        x = y + bias
        x = np.maximum(x, 0) if i < 4 else 1 / (1 + np.exp(-x))
    return x


def oracle_parts(params, frames, key):
    """Squared error and KL divergence of every frame."""
    mean, log_variance = oracle_encode(params, frames)
    z = mean + np.exp(log_variance / 2) * noise(key, mean.shape)
    error = ((np.float64(frames) / 255 - oracle_decode(params, z)) ** 2).sum((1, 2, 3))
    variance = np.exp(log_variance)
    return error, (0.5 * (variance + mean**2 - 1) - 0.5 * np.log(variance)).sum(1)


def between(kl):
    """Free nats per latent that put the clamp between the frames of the smallest and the largest KL."""
    low, *_, high = sorted(kl)
    assert high > 1.2 * low
    return float((low + high) / 2) / CFG.latent_size


# Shapes


@pytest.mark.parametrize(("z", "count"), [(32, 4_348_547), (64, 4_446_915)], ids=["carracing", "doom"])
def test_parameter_count_is_the_published_one(z, count):
    params = jax.eval_shape(lambda key: vision.init(VisionConfig(latent_size=z), key), jax.random.key(0))
    assert parameter_count(params) == count
    assert VisionConfig().latent_size == 64


def test_layers_have_the_published_shapes():
    params = jax.eval_shape(lambda key: vision.init(VisionConfig(), key), jax.random.key(0))
    encoder = {f"enc_conv{i}": (4, 4, *io) for i, io in enumerate([(3, 32), (32, 64), (64, 128), (128, 256)], 1)}
    dense = {"enc_fc_mu": (1024, 64), "enc_fc_log_var": (1024, 64), "dec_fc": (64, 1024)}
    deconv = [(5, 5, 128, 1024), (5, 5, 64, 128), (6, 6, 32, 64), (6, 6, 3, 32)]
    decoder = {f"dec_deconv{i}": shape for i, shape in enumerate(deconv, 1)}
    assert {name: layer["kernel"].shape for name, layer in params.items()} == encoder | dense | decoder
    outputs = {name: shape[2 if name in decoder else -1] for name, shape in (encoder | dense | decoder).items()}
    assert {name: layer["bias"].shape for name, layer in params.items()} == {n: (o,) for n, o in outputs.items()}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_parameters_are_drawn_glorot_uniform_with_zero_biases(drawn):
    for name, layer in drawn.items():
        *window, a, b = layer["kernel"].shape
        limit = np.sqrt(6 / (np.prod(window) * (a + b)))
        assert abs(layer["kernel"]).max() <= limit
        assert float(layer["kernel"].std()) == pytest.approx(limit / np.sqrt(3), rel=0.06), name
        assert not layer["bias"].any()


@pytest.mark.parametrize("leading", [(), (1,), (3, 1)])
def test_any_leading_axes(params, frames, leading):
    count = int(np.prod(leading))
    shaped = frames[:count].reshape(*leading, 64, 64, 3)
    flat = vision.encode(CFG, params, frames[:count])
    for got, wanted in zip(vision.encode(CFG, params, shaped), flat, strict=True):
        chex.assert_trees_all_close(got, wanted.reshape(*leading, CFG.latent_size), rtol=1e-4, atol=1e-5)
    picture = vision.decode(CFG, params, flat[0].reshape(*leading, CFG.latent_size))
    chex.assert_shape(picture, (*leading, 64, 64, 3))
    assert picture.dtype == jnp.uint8


def test_wrong_frames_are_refused(params):
    with pytest.raises(ValueError, match=r"uint8 frames .* got float32 \[64, 64, 3\]; .* leave the division"):
        vision.encode(CFG, params, jnp.zeros((64, 64, 3)))
    with pytest.raises(ValueError, match=r"got uint8 \[2, 96, 96, 3\]; crop and resize"):
        vision.encode(CFG, params, jnp.zeros((2, 96, 96, 3), jnp.uint8))
    with pytest.raises(ValueError, match=r"got uint8 \[64, 64\]"):
        vision.loss(CFG, params, jax.random.key(0), jnp.zeros((64, 64), jnp.uint8))


@pytest.mark.parametrize("wrong", [{"latent_size": 0}, {"free_nats": -0.1}])
def test_wrong_configurations_are_refused(wrong):
    with pytest.raises(ValueError, match="latent_size must be positive and free_nats not negative"):
        VisionConfig(**wrong)


# Values


def test_encoder_and_decoder_match_the_oracle(params, frames):
    for got, wanted in zip(vision.encode(CFG, params, frames), oracle_encode(params, frames), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    z = np.random.default_rng(1).normal(size=(BATCH, CFG.latent_size))
    exact = 255 * oracle_decode(params, z)
    picture = np.asarray(vision.decode(CFG, params, jnp.asarray(z, jnp.float32)))
    assert abs(picture - exact).max() < 0.51 and picture.std() > 20


def test_loss_matches_the_oracle_on_both_sides_of_the_clamp(params, frames):
    key = jax.random.key(5)
    error, kl = oracle_parts(params, frames, key)
    for free_nats in (0.0, between(kl), 1.1 * kl.max() / CFG.latent_size):
        clamped = np.maximum(kl, free_nats * CFG.latent_size)
        total, metrics = vision.loss(replace(CFG, free_nats=free_nats), params, jax.random.clone(key), frames)
        expected = {"loss": (error + clamped).mean(), "reconstruction": error.mean(), "kl": kl.mean()}
        assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected, rel=1e-4)
        assert float(total) == float(metrics["loss"])


def test_the_clamp_stops_the_gradient_of_the_kl_frame_by_frame(params, frames):
    key = jax.random.key(5)
    _, kl = oracle_parts(params, frames, key)
    posterior = ("enc_fc_mu", "enc_fc_log_var")

    def kl_gradient(free_nats):
        """What the KL adds to the gradient of the squared error, with respect to the biases of the posterior."""

        def total_and_reconstruction(biases, params, key):
            changed = {name: params[name] | {"bias": biases[name]} for name in posterior}
            loss, metrics = vision.loss(replace(CFG, free_nats=free_nats), params | changed, key, frames)
            return jnp.stack([loss, metrics["reconstruction"]])

        biases = {name: params[name]["bias"] for name in posterior}
        jacobian = jax.jit(jax.jacrev(total_and_reconstruction))(biases, params, jax.random.clone(key))
        return [np.asarray(jacobian[name][0] - jacobian[name][1]) for name in posterior]

    assert not any(gradient.any() for gradient in kl_gradient(1.01 * kl.max() / CFG.latent_size))
    above = kl > between(kl) * CFG.latent_size
    assert 0 < above.sum() < BATCH
    mean, log_variance = oracle_encode(params, frames)
    for got, of_each_frame in zip(kl_gradient(between(kl)), (mean, (np.exp(log_variance) - 1) / 2), strict=True):
        expected = (above[:, None] * of_each_frame).sum(0) / BATCH
        assert abs(expected).max() > 0.05
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


def test_jit_changes_nothing_and_the_key_decides_the_draw(params, frames):
    loss = jax.jit(vision.loss, static_argnums=0)
    key = jax.random.key(7)
    expected = vision.loss(CFG, params, jax.random.clone(key), frames)
    chex.assert_trees_all_close(loss(CFG, params, key, frames), expected, rtol=1e-5)
    assert abs(loss(CFG, params, jax.random.key(8), frames)[0] - expected[0]) > 1e-3
