"""What people hand to the pure functions: pictures without channels, missing values, environments of their own."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.dreamerv3 import codec, heads, model, rssm
from dreamjax.dreamerv3.config import debug
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.types import EnvSpec, Space

CFG = replace(debug(), compute_dtype="float32")
ACTION = Space((), np.int32, 0, 2)
QUICK = {"xla_backend_optimization_level": 0}  # compiled in half the time, and run once

# Grey pictures without a channel axis, and other arrays of bytes

GREY = EnvSpec({"grey": Space((48, 64), np.uint8, 0, 256), "rgb": Space((48, 64, 3), np.uint8, 0, 256)}, ACTION, 9)


def parameters(observation: Any) -> Any:
    dreamer = Dreamer.of(CFG, EnvSpec(observation, ACTION, 9))
    return jax.eval_shape(partial(model.init, dreamer), jax.random.key(0))


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_a_grey_picture_without_channels_is_the_picture_of_one_channel() -> None:
    flat, deep = (parameters(Space((64, 64, *channel), np.uint8, 0, 256)) for channel in ((), (1,)))
    assert jax.tree.map(lambda leaf: leaf.shape, flat) == jax.tree.map(lambda leaf: leaf.shape, deep)


def test_a_grey_picture_is_encoded_decoded_and_compared_in_its_own_shape() -> None:
    dreamer = Dreamer.of(CFG, GREY)
    noise = jax.random.bits(jax.random.key(1), (2, 48, 64, 4), np.uint8)
    seen = {"grey": noise[..., 0], "rgb": noise[..., 1:]}

    def run(key: jax.Array, seen: Any) -> Any:
        params = model.init(dreamer, key).model
        tokens = [heads.apply(dreamer.encoder, params.enc, x) for x in (seen, seen | {"grey": seen["grey"] // 2})]
        states = rssm.start(CFG.rssm, (2,), "float32")
        painted = heads.apply(dreamer.decoder, params.dec, *states)
        losses = codec.reconstruction_losses(CFG.codec, dreamer.observation, painted, seen)
        return tokens, painted.images, losses, model.agent(dreamer).model.decode(params, states)

    tokens, painted, losses, decoded = jax.jit(run, compiler_options=QUICK)(jax.random.key(0), seen)
    assert (tokens[0] != tokens[1]).any(-1).all(), "the grey picture is not read"
    for name, picture in painted.items():
        error = (np.asarray(picture) - np.asarray(seen[name], np.float32) / 255) ** 2
        np.testing.assert_allclose(losses[name], error.reshape(2, -1).sum(1), rtol=1e-5)
    described = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert described(decoded) == described(seen)


@pytest.mark.parametrize(
    ("space", "features"),
    [
        (Space((128,), np.uint8, 0, 256), 128 * 256),  # the memory of an Atari
        (Space((7, 7, 3), np.uint8, 0, 256), 7 * 7 * 3 * 256),  # MiniGrid
        (Space((21, 79), np.uint8, 0, 128), 21 * 79 * 128),  # the characters of NetHack
        (Space((64, 64), np.uint8, 0, 4), 64 * 64 * 4),  # a map of four kinds of ground
    ],
)
def test_other_bytes_are_levels(space: Space, features: int) -> None:
    assert not codec.is_image(space)
    assert codec.flat_size(space) == features
    assert parameters(space).model.enc["mlp0"]["kernel"].shape[0] == features


@pytest.mark.parametrize(
    ("space", "wrong"),
    [
        (Space((84, 84), np.uint8, 0, 256), r"sides of 'observation' must be multiples of 16 from 48 to 256.* resize"),
        (Space((3, 64, 64), np.uint8, 0, 256), r"3,145,728 one-hot features.* \[H, W, C\]"),
        (Space((40, 40), np.uint8, 0, 256), r"409,600 one-hot features, 256 classes for each of 1,600 entries"),
        (Space((21, 79), np.int32, 0, 5976), r"9,914,184 one-hot features.* declare it as floats"),
        (Space((27,), np.int32, -(2**31), 2**31 - 1), "declare it as floats"),
    ],
)
def test_absurd_numbers_of_classes_are_refused(space: Space, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        parameters(space)
    if len(space.shape) == 1:
        with pytest.raises(ValueError, match=r"discrete action 'action' .* declare it as floats"):
            Dreamer.of(CFG, EnvSpec(Space((2,)), space, 9))


# Missing values

SENSORS = EnvSpec({"body": Space((3,)), "key": Space((2,), np.int32, 0, 4), "depth": Space(())}, ACTION, 9)
WHOLE = {"body": jnp.array([[1.0, -2.0, 3.0]] * 2), "key": jnp.array([[1, 3]] * 2), "depth": jnp.array([0.5, 0.5])}
MISSING = {  # in the first of two
    "body": WHOLE["body"].at[0, 1].set(-jnp.inf),
    "key": WHOLE["key"].at[0, 1].set(-1),
    "depth": WHOLE["depth"].at[0].set(-jnp.inf),
}


@pytest.mark.parametrize("name", SENSORS.observation)
def test_what_is_missing_is_read_as_zeros_and_is_no_target(name: str) -> None:
    space, seen = SENSORS.observation[name], MISSING[name]
    features = codec.flatten(space, seen, True)
    np.testing.assert_array_equal(features[0], 0)
    np.testing.assert_array_equal(features[1], codec.flatten(space, WHOLE[name], True)[1])

    def loss(predicted: jax.Array, seen: jax.Array) -> jax.Array:
        kind = "logits" if space.is_discrete else "vectors"
        reconstruction = codec.Reconstruction({}, {}, {})._replace(**{kind: {name: predicted}})
        return codec.reconstruction_losses(CFG.codec, ((name, space),), reconstruction, {name: seen})[name]

    predicted = jnp.ones((2, *space.shape, *(4,) * space.is_discrete)).at[..., :1].set(0.25)
    got, gradient = loss(predicted, seen), jax.grad(lambda x: loss(x, seen).sum())(predicted)
    assert float(got[0]) == 0 and float(got[1]) == float(loss(predicted, WHOLE[name])[1]) > 0
    np.testing.assert_array_equal(gradient[0], 0)
    assert np.isfinite(gradient).all() and np.asarray(gradient[1] != 0).any()


def test_the_gradients_of_encoder_and_decoder_are_finite_with_missing_values() -> None:
    dreamer = Dreamer.of(CFG, SENSORS)

    def loss(params: Any) -> jax.Array:
        tokens = heads.apply(dreamer.encoder, params.enc, MISSING)
        deter, stoch = rssm.start(CFG.rssm, (2,), "float32")
        painted = heads.apply(dreamer.decoder, params.dec, deter + tokens[:, : CFG.rssm.deter], stoch)
        losses = codec.reconstruction_losses(CFG.codec, dreamer.observation, painted, MISSING)
        return sum(x.sum() for x in losses.values())

    both = jax.jit(lambda key: jax.value_and_grad(loss)(model.init(dreamer, key).model), compiler_options=QUICK)
    total, gradient = both(jax.random.key(0))
    assert np.isfinite(total) and total > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    assert all(np.asarray(leaf != 0).any() for leaf in jax.tree.leaves(gradient.enc))
