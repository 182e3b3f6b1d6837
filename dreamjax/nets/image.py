"""Convolutions that keep the size of a picture, with halving and doubling beside them: the codec of DreamerV3.

Source: Hafner et al. 2023, published code.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from dreamjax.nets.dense import fan_in
from dreamjax.types import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def max_pool(x: Array) -> Array:
    """Largest of each 2 x 2 window; ties share the gradient. Shapes: [N, H, W, C] -> [N, H/2, W/2, C]."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


class Conv(nn.Module):
    """Convolution with as much zero padding as keeps the size, and bias.

    Shapes: [N, H, W, C] -> [N, H, W, features]. Parameters: kernel [k, k, C, features], bias [features].
    """

    features: int
    size: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", fan_in(), (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = lax.conv_general_dilated(x, kernel.astype(x.dtype), (1, 1), "SAME", dimension_numbers=_LAYOUT)
        return y + jnp.broadcast_to(bias.astype(x.dtype), y.shape)


class UpsampleConv(nn.Module):
    """`Conv` of a picture whose pixels were doubled both ways. Shapes: [N, H, W, C] -> [N, 2H, 2W, features]."""

    features: int
    size: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", fan_in(), (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.repeat(2, 1).repeat(2, 2)
        y = lax.conv_general_dilated(x, kernel.astype(x.dtype), (1, 1), "SAME", dimension_numbers=_LAYOUT)
        return y + jnp.broadcast_to(bias.astype(x.dtype), y.shape)
