"""Both layers equal those of lax and flax, in values and gradients, for every shape that V has and for odd ones."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dreamjax.nets.conv import Conv, ConvTranspose, conv, conv_transpose
from dreamjax.types import Array


class Layer(NamedTuple):
    """What one layer is applied to. All of V's layers have stride 2."""

    batch: int
    size: tuple[int, int]
    channels: int
    features: int
    kernel: int
    stride: int = 2


ENCODER = [Layer(2, (64, 64), 3, 32, 4), Layer(1, (31, 31), 32, 64, 4), Layer(3, (14, 14), 64, 128, 4)]
ENCODER += [Layer(2, (6, 6), 128, 256, 4)]
DECODER = [Layer(3, (1, 1), 1024, 128, 5), Layer(2, (5, 5), 128, 64, 5), Layer(1, (13, 13), 64, 32, 6)]
DECODER += [Layer(2, (30, 30), 32, 3, 6)]
ODD = [
    Layer(2, (9, 12), 3, 4, 3),  # the kernel is no multiple of the stride; rows and columns that nothing reads
    Layer(1, (11, 8), 2, 3, 5, 3),
    Layer(2, (7, 10), 5, 3, 4, 3),  # too many channels for phases
    Layer(1, (6, 9), 3, 2, 3, 1),
    Layer(2, (9, 7), 2, 3, 1, 2),  # a kernel smaller than the stride
    Layer(1, (5, 5), 2, 3, 5, 2),  # one output
    Layer(3, (4, 9), 1, 2, 2, 3),
]


def assert_close(ours: Array, theirs: Array) -> None:
    """Equal to 1e-5 of the largest entry; leaves are compared one by one."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert mine.shape == other.shape
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * np.abs(other).max())


def normals(seed: int, *shapes: tuple[int, ...]) -> list[Array]:
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def value_and_gradients(function: Callable[..., Array]) -> Callable[..., tuple[Array, tuple]]:
    """The output, and the gradients of all arguments for a random cotangent."""

    @jax.jit
    def both(*arguments: Array) -> tuple[Array, tuple]:
        y, pull = jax.vjp(function, *arguments)
        [cotangent] = normals(9, y.shape)
        return y, pull(cotangent)

    return both


def compare_layers(ours: nn.Module, theirs: nn.Module, layer: Layer) -> None:
    """The parameters of one are those of the other."""
    [x] = normals(0, (layer.batch, *layer.size, layer.channels))
    params = ours.init(jax.random.key(1), x)
    params["params"]["bias"] = jnp.linspace(-1.0, 1.0, layer.features)
    got, expected = (value_and_gradients(module.apply)(params, x) for module in (ours, theirs))
    assert_close(got, expected)


@pytest.mark.parametrize("layer", ENCODER + ODD)
def test_conv_equals_flax(layer: Layer) -> None:
    kernel, stride = (layer.kernel,) * 2, (layer.stride,) * 2
    theirs = nn.Conv(layer.features, kernel, stride, padding="VALID")
    compare_layers(Conv(layer.features, layer.kernel, layer.stride), theirs, layer)


@pytest.mark.parametrize("layer", DECODER + ODD)
def test_conv_transpose_equals_flax(layer: Layer) -> None:
    kernel, stride = (layer.kernel,) * 2, (layer.stride,) * 2
    theirs = nn.ConvTranspose(layer.features, kernel, stride, padding="VALID", transpose_kernel=True)
    compare_layers(ConvTranspose(layer.features, layer.kernel, layer.stride), theirs, layer)


def native(x: Array, kernel: Array, stride: int) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), "VALID", dimension_numbers=layout)


def native_transpose(y: Array, kernel: Array, stride: int) -> Array:
    return lax.conv_transpose(y, kernel, (stride, stride), "VALID", transpose_kernel=True)


MAPS = {"conv": (conv, native), "transpose": (conv_transpose, native_transpose)}


SIZES = [(5, 4), (7, 8), (20, 21)]  # CPUs run another form for each


def operands(name: str, size: tuple[int, int], seed: int = 0) -> tuple[Array, Array]:
    """An input [2, *size, 3] and a kernel of 3 x 3, for a stride of 2."""
    x, kernel = normals(seed, (2, *size, 3), (3, 3, 3, 4) if name == "conv" else (3, 3, 4, 3))
    return x, kernel


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MAPS)
def test_gradients_of_gradients_equal_lax(name: str, size: tuple[int, int]) -> None:
    def penalty(function: Callable[..., Array], x: Array, kernel: Array) -> Array:
        """The squared norm of a gradient, which a gradient penalty would be made of."""
        loss = lambda x, kernel: (function(x, kernel, 2) ** 3).sum()  # noqa: E731
        return sum((g**2).sum() for g in jax.grad(loss, (0, 1))(x, kernel))

    x, kernel = operands(name, size)
    ours, theirs = (jax.jit(jax.grad(partial(penalty, function), (0, 1)))(x, kernel) for function in MAPS[name])
    assert_close(ours, theirs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MAPS)
def test_vmap_over_inputs_and_kernels_equals_a_loop(name: str, size: tuple[int, int]) -> None:
    function = value_and_gradients(lambda x, kernel: MAPS[name][0](x, kernel, 2))
    examples = [operands(name, size, seed) for seed in range(3)]
    together = jax.vmap(function)(*(jnp.stack(arrays) for arrays in zip(*examples, strict=True)))
    alone = [function(*example) for example in examples]
    assert_close(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone))


@pytest.mark.parametrize("module", [Conv(4, 4, 2), ConvTranspose(4, 5, 2)])
def test_leading_axes_are_a_batch(module: nn.Module) -> None:
    [x] = normals(0, (2, 3, 6, 7, 3))
    params = module.init(jax.random.key(1), x)
    whole, flat = module.apply(params, x), module.apply(params, x.reshape(6, 6, 7, 3))
    np.testing.assert_array_equal(whole, flat.reshape(2, 3, *flat.shape[1:]))
    np.testing.assert_allclose(module.apply(params, x[0, 0]), whole[0, 0], atol=1e-5)


def test_layers_compute_in_the_type_of_their_input() -> None:
    for module in (Conv(4, 4, 2), ConvTranspose(4, 5, 2)):
        params = module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
        assert module.apply(params, jnp.zeros((1, 8, 8, 3), jnp.bfloat16)).dtype == jnp.bfloat16
