"""Convolutions that keep the size of a picture, followed by pooling or after upsampling: the codec of DreamerV3.

A convolution of an upsampled picture reads every pixel four times. Each of the four phases of its output is a smaller
convolution of the picture itself, whose taps are sums of taps: 9 products instead of 25, on every platform and in both
directions.

CPUs have two more forms. Before pooling, the four phases of the output become channels of one convolution of the
picture's own phases ("space to depth"), because XLA is slow with few channels; and kernel gradients are matrix
products, because XLA's own are several times slower. The choice is made when the program is lowered for a platform,
and only changes the order of float32 additions.

Source: Hafner et al. 2023, published code.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dreamjax.nets.dense import fan_in
from dreamjax.types import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_PATCHES = 2**20  # floats of patches at a time, which fit into a cache
_ROUNDING = 1e-6  # relative to the largest channel: phases add the same numbers in another order


@jax.custom_vjp
def conv(x: Array, kernel: Array) -> Array:
    """Convolve with the zero padding that keeps the size.

    Shapes: x [N, H, W, C], kernel [k, k, C, O] with odd k -> [N, H, W, O].
    """
    return lax.platform_dependent(x, kernel, cpu=_conv_cpu, default=_conv)


def _conv(x: Array, kernel: Array) -> Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_LAYOUT)


def _conv_cpu(x: Array, kernel: Array) -> Array:
    pad = len(kernel) // 2
    # An output larger than its input is what YNNPACK does not take, and Eigen, which gets it, is up to twice as fast.
    padding = ((pad, pad + 1), (pad, pad))
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_LAYOUT)[:, : x.shape[1]]


def _conv_fwd(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return conv(x, kernel), (x, kernel)


def _conv_bwd(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    dx = conv(dy, jnp.swapaxes(kernel[::-1, ::-1], 2, 3))
    gradient = partial(_kernel_gradient_cpu, size=len(kernel)), partial(_kernel_gradient, size=len(kernel))
    return dx, lax.platform_dependent(x, dy, cpu=gradient[0], default=gradient[1])


conv.defvjp(_conv_fwd, _conv_bwd)


def _kernel_gradient(x: Array, dy: Array, size: int) -> Array:
    kernel = jax.ShapeDtypeStruct((size, size, x.shape[-1], dy.shape[-1]), x.dtype)
    native = partial(lax.conv_general_dilated, x, window_strides=(1, 1), padding="SAME", dimension_numbers=_LAYOUT)
    return jax.linear_transpose(native, kernel)(dy)[0]


def _kernel_gradient_cpu(x: Array, dy: Array, size: int) -> Array:
    n, h, w, c = x.shape
    pad, features = size // 2, size * size * c
    most = max(1, _PATCHES // (h * w * features))
    chunk = max(i for i in range(1, n + 1) if n % i == 0 and i <= most)
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def add(total: Array, pictures: tuple[Array, Array]) -> tuple[Array, None]:
        x, dy = pictures
        taps = [x[:, i : i + h, j : j + w] for i in range(size) for j in range(size)]
        patches = jnp.concatenate(taps, -1).reshape(-1, features)
        return total + patches.T @ dy.reshape(-1, dy.shape[-1]), None

    chunks = jax.tree.map(lambda a: a.reshape(n // chunk, chunk, *a.shape[1:]), (padded, dy))
    total, _ = lax.scan(add, jnp.zeros((features, dy.shape[-1]), x.dtype), chunks)
    return total.reshape(size, size, c, dy.shape[-1])


def conv_pool(x: Array, kernel: Array) -> Array:
    """Apply `conv`, then take the maximum of each 2 x 2 window; ties share the gradient.

    Shapes: x [N, H, W, C], kernel [k, k, C, O] -> [N, H/2, W/2, O].
    """
    return lax.platform_dependent(x, kernel, cpu=_conv_pool_cpu, default=_conv_pool)


def _conv_pool(x: Array, kernel: Array) -> Array:
    y = conv(x, kernel)
    n, h, w, c = y.shape
    return y.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


def _conv_pool_cpu(x: Array, kernel: Array) -> Array:
    size, c, o = kernel.shape[1:]
    n, h, w, _ = x.shape
    blocks = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // 2, w // 2, 4 * c)
    # Phase (a, b) of the output reads the picture from pixel (a - k//2, b - k//2) of the block on.
    reach = -(-(size // 2) // 2)
    wide = 2 * (2 * reach + 1)
    begin = 2 * reach - size // 2
    placed = [
        jnp.pad(kernel, ((begin + a, wide - size - begin - a), (begin + b, wide - size - begin - b), (0, 0), (0, 0)))
        for a in range(2)
        for b in range(2)
    ]
    taps = wide // 2
    phases = jnp.stack(placed, -2).reshape(taps, 2, taps, 2, c, 4, o).transpose(0, 2, 1, 3, 4, 5, 6)
    y = conv(blocks, phases.reshape(taps, taps, 4 * c, 4 * o))
    return _largest(y.reshape(n, h // 2, w // 2, 4, o))


@jax.custom_vjp
def _largest(y: Array) -> Array:
    """Take the maximum of four phases. Shapes: [..., 4, O] -> [..., O]."""
    return y.max(-2)


def _largest_fwd(y: Array) -> tuple[Array, tuple[Array, Array]]:
    largest = y.max(-2)
    return largest, (y, largest)


def _largest_bwd(saved: tuple[Array, Array], dy: Array) -> tuple[Array]:
    y, largest = saved
    # Values equal up to rounding are ties: flat parts of a picture must not depend on the order of additions.
    near = largest - _ROUNDING * jnp.abs(largest).max(-1, keepdims=True)
    ties = (y >= near[..., None, :]).astype(dy.dtype)
    return (ties * (dy / ties.sum(-2))[..., None, :],)


_largest.defvjp(_largest_fwd, _largest_bwd)


def upsample_conv(x: Array, kernel: Array) -> Array:
    """Apply `conv` to a picture upsampled by two, nearest neighbour.

    Shapes: x [N, H, W, C], kernel [k, k, C, O] -> [N, 2H, 2W, O].
    """
    n, h, w, _ = x.shape
    c, o = kernel.shape[2:]
    kernel = jnp.einsum("aiu,bjv,uvco->ijcabo", *2 * (_doubling(len(kernel)),), kernel).astype(x.dtype)
    taps = kernel.shape[0]
    y = conv(x, kernel.reshape(taps, taps, c, 4 * o)).reshape(n, h, w, 2, 2, o)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, o)


def _doubling(size: int) -> np.ndarray:
    """Say which taps of a kernel over upsampled pixels fall on which pixel. Shapes: -> [2 phases, pixels, k]."""
    reach = -(-(size // 2) // 2)
    sums = np.zeros((2, 2 * reach + 1, size), np.float32)
    for phase in range(2):
        for tap in range(size):
            sums[phase, (phase + tap - size // 2) // 2 + reach, tap] = 1
    return sums


class HalvingConv(nn.Module):
    """`conv_pool` with a bias. Parameters: kernel [k, k, C, features], bias [features]."""

    features: int
    size: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _with_parameters(self, conv_pool, x)


class DoublingConv(nn.Module):
    """`upsample_conv` with a bias. Parameters: kernel [k, k, C, features], bias [features]."""

    features: int
    size: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return _with_parameters(self, upsample_conv, x)


def _with_parameters(module: HalvingConv | DoublingConv, apply: Callable[[Array, Array], Array], x: Array) -> Array:
    kernel = module.param("kernel", fan_in(), (module.size, module.size, x.shape[-1], module.features))
    bias = module.param("bias", nn.initializers.zeros, (module.features,))
    y = apply(x, kernel.astype(x.dtype))
    return y + jnp.broadcast_to(bias.astype(x.dtype), y.shape)
