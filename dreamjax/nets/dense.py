"""Dense layers of DreamerV3: linear and block-diagonal maps, root-mean-square norm, and MLPs made of them.

Every layer takes any leading axes and computes in the dtype of its input; parameters are float32.
Source: Hafner et al. 2023, and its published code (kernels truncated normal by fan-in, norms in float32).
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamjax.types import Array


def fan_in(scale: float = 1.0) -> jax.nn.initializers.Initializer:
    """Initialise kernels with a normal cut at two standard deviations, of variance scale^2 / fan-in; zeros at scale 0.

    The fan-in is the product of all axes but the last, for block-diagonal kernels as well, whose blocks therefore start
    smaller than with the fan-in of a block.
    """
    return nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal") if scale else nn.initializers.zeros


def rms_norm(scale: Array, x: Array) -> Array:
    """Divide by the root mean square of the last axis and scale every feature, in float32. Shapes: [F], [..., F]."""
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + 1e-4)
    # In this order XLA makes one program of it on GPUs, also within loops.
    return (wide * inverse * jnp.broadcast_to(scale, wide.shape)).astype(x.dtype)


def silu_norm(scale: Array, x: Array) -> Array:
    """SiLU of `rms_norm`, as after every hidden layer. Shapes: [F], [..., F]."""
    return nn.silu(rms_norm(scale, x))


class NormGradient(NamedTuple):
    """Gradients of `silu_norm`, for loops that backpropagate by hand, from what they need of x, in float32."""

    normal: Array  # [..., F], x over its root mean square
    inverse: Array  # [..., 1], one over that
    slope: Array  # [..., F], derivative of SiLU

    @classmethod
    def of(cls, scale: Array, x: Array) -> "NormGradient":
        x = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-4)
        x *= inverse
        scaled = x * jnp.broadcast_to(scale, x.shape)
        gate = jax.nn.sigmoid(scaled)
        return cls(x, inverse, gate * (1.0 + scaled * (1.0 - gate)))

    def before_silu(self, dy: Array) -> Array:
        """Gradient of the input of SiLU, in the dtype in which it is kept."""
        return (dy.astype(jnp.float32) * self.slope).astype(dy.dtype)

    def input(self, scale: Array, dy: Array) -> Array:
        """Gradient of x, given that of the input of SiLU."""
        wide = dy.astype(jnp.float32) * jnp.broadcast_to(scale, dy.shape)
        mean = (wide * self.normal).mean(-1, keepdims=True)
        return (self.inverse * (wide - self.normal * mean)).astype(dy.dtype)

    def scale(self, dy: Array) -> Array:
        """Gradient of the scale, given that of the input of SiLU. Shapes: [T, B, F] -> [F]."""
        return (self.normal * dy.astype(jnp.float32)).sum((0, 1))


class Linear(nn.Module):
    """Affine map to an output of any shape. Shapes: [..., I] -> [..., *shape]. Parameters: kernel [I, O], bias [O]."""

    shape: tuple[int, ...]
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        outputs = math.prod(self.shape)
        kernel = self.param("kernel", fan_in(self.scale), (x.shape[-1], outputs))
        bias = self.param("bias", nn.initializers.zeros, (outputs,))
        y = x @ kernel.astype(x.dtype)
        return (y + jnp.broadcast_to(bias.astype(x.dtype), y.shape)).reshape(*x.shape[:-1], *self.shape)


class BlockLinear(nn.Module):
    """Block-diagonal affine map: each of g blocks of outputs depends on its own block of inputs.

    Shapes: [..., g, I] -> [..., g, O/g]. Parameters: kernel [g, I, O/g], bias [O].
    """

    features: int  # O
    blocks: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", fan_in(), (self.blocks, x.shape[-1], self.features // self.blocks))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = block_product(x, kernel.astype(x.dtype))
        return y + jnp.broadcast_to(bias.astype(x.dtype).reshape(self.blocks, -1), y.shape)


def block_product(x: Array, kernel: Array) -> Array:
    """Multiply each block of features by its own matrix. Shapes: x [..., g, I], kernel [g, I, O] -> [..., g, O].

    Written as a batched product with the blocks in front; otherwise XLA transposes more on CPUs.
    """
    g, inputs, outputs = kernel.shape
    blocks_first = jnp.moveaxis(x, -2, 0).reshape(g, -1, inputs)
    y = jnp.einsum("gni,gio->gno", blocks_first, kernel)
    return jnp.moveaxis(y.reshape(g, *x.shape[:-2], outputs), 0, -2)


class RMSNorm(nn.Module):
    """`rms_norm` as a layer. Parameters: scale [F]."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return rms_norm(self.param("scale", nn.initializers.ones, (x.shape[-1],)), x)


class MLP(nn.Module):
    """Hidden layers: linear0, norm0, SiLU, linear1, norm1, SiLU, ... Shapes: [..., I] -> [..., units]."""

    layers: int
    units: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.layers):
            x = nn.silu(RMSNorm(name=f"norm{i}")(Linear((self.units,), name=f"linear{i}")(x)))
        return x
