"""Strided and transposed convolutions whose gradients are fast on every platform.

Both layers are built from three linear maps of a convolution with kernel w and stride s: `_forward` x -> y,
`_transpose` y -> x and `_kernel_gradient` (x, y) -> w. The gradients of each map are the other two, so that fast
lowerings of these three maps make both layers fast, forwards and backwards.

GPUs and TPUs run the native convolution. On CPUs XLA loops naively over strided outputs and dilated inputs, up to
fifteen times slower than the arithmetic requires. There the stride is moved into the channels ("phases", space to
depth), which leaves an ordinary convolution with m x m taps, m = ceil(k / s), and each map is written in the form that
is fastest for its shape. The choice is made when the program is lowered for a platform, and only changes the order of
float32 additions.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from dreamjax.types import Array

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_SMALL = 64  # positions of an output up to which a picture counts as small


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: Array, kernel: Array, stride: int) -> Array:
    """Convolve without padding.

    Shapes: x [N, H, W, C], kernel [k, k, C, O] -> [N, (H-k)//s+1, (W-k)//s+1, O].
    """
    return _forward(x, kernel, stride)


def _conv_fwd(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _forward(x, kernel, stride), (x, kernel)


def _conv_bwd(stride: int, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    return _transpose(dy, kernel, stride, (x.shape[1], x.shape[2])), _kernel_gradient(x, dy, kernel.shape[0], stride)


conv.defvjp(_conv_fwd, _conv_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv_transpose(y: Array, kernel: Array, stride: int) -> Array:
    """Apply the transpose of `conv`, as TensorFlow's `conv2d_transpose` with VALID padding does.

    Shapes: y [N, h, w, I], kernel [k, k, O, I] -> [N, s(h-1)+max(k,s), s(w-1)+max(k,s), O].
    """
    return _transpose(y, kernel, stride, _transposed_size(y, kernel, stride))


def _conv_transpose_fwd(y: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return conv_transpose(y, kernel, stride), (y, kernel)


def _conv_transpose_bwd(stride: int, saved: tuple[Array, Array], dx: Array) -> tuple[Array, Array]:
    y, kernel = saved
    return _forward(dx, kernel, stride), _kernel_gradient(dx, y, kernel.shape[0], stride)


conv_transpose.defvjp(_conv_transpose_fwd, _conv_transpose_bwd)


def _transposed_size(y: Array, kernel: Array, stride: int) -> tuple[int, int]:
    k = max(kernel.shape[0], stride)
    return stride * (y.shape[1] - 1) + k, stride * (y.shape[2] - 1) + k


# The three maps. x [N, H, W, C], y [N, h, w, O], kernel [k, k, C, O].


def _forward(x: Array, kernel: Array, stride: int) -> Array:
    return lax.platform_dependent(
        x, kernel, cpu=partial(_forward_cpu, stride=stride), default=partial(_forward_native, stride=stride)
    )


def _transpose(y: Array, kernel: Array, stride: int, size: tuple[int, int]) -> Array:
    return lax.platform_dependent(
        y,
        kernel,
        cpu=partial(_transpose_cpu, stride=stride, size=size),
        default=partial(_transpose_native, stride=stride, size=size),
    )


def _kernel_gradient(x: Array, y: Array, k: int, stride: int) -> Array:
    return lax.platform_dependent(
        x,
        y,
        cpu=partial(_kernel_gradient_cpu, k=k, stride=stride),
        default=partial(_kernel_gradient_native, k=k, stride=stride),
    )


def _forward_native(x: Array, kernel: Array, stride: int) -> Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), "VALID", dimension_numbers=_LAYOUT)


def _transpose_native(y: Array, kernel: Array, stride: int, size: tuple[int, int]) -> Array:
    x = jax.ShapeDtypeStruct((y.shape[0], *size, kernel.shape[2]), y.dtype)
    return jax.linear_transpose(lambda x: _forward_native(x, kernel, stride), x)(y)[0]


def _kernel_gradient_native(x: Array, y: Array, k: int, stride: int) -> Array:
    kernel = jax.ShapeDtypeStruct((k, k, x.shape[-1], y.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: _forward_native(x, kernel, stride), kernel)(y)[0]


def _forward_cpu(x: Array, kernel: Array, stride: int) -> Array:
    k, _, channels, outputs = kernel.shape
    h, w = ((size - k) // stride + 1 for size in x.shape[1:3])
    if h * w <= 4:  # one product of all patches
        corners = [(stride * i, stride * j) for i in range(h) for j in range(w)]
        patches = jnp.stack([x[:, i : i + k, j : j + k].reshape(x.shape[0], -1) for i, j in corners], 1)
        return (patches @ kernel.reshape(-1, outputs)).reshape(x.shape[0], h, w, outputs)
    if h * w <= _SMALL and channels * stride * stride > 16:  # with enough channels the strided convolution is fast
        padding = ((0, 1), (0, 1))  # without it YNNPACK is up to twice as slow for some sizes
        y = lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT)
    else:
        taps = _phase_kernel(kernel, stride)
        # An output wider than its input is what YNNPACK does not take, and Eigen, which gets it, is twice as fast.
        padding = ((0, 0), (0, taps.shape[0]))
        phases = _space_to_phases(x, k, stride)
        y = lax.conv_general_dilated(phases, taps, (1, 1), padding, dimension_numbers=_LAYOUT)
    return y[:, :h, :w]


def _transpose_cpu(y: Array, kernel: Array, stride: int, size: tuple[int, int]) -> Array:
    n, h, w, outputs = y.shape
    taps = _phase_kernel(kernel, stride)  # [m, m, s*s*C, O]
    m = taps.shape[0]
    if h * w == 1:
        phases = (y.reshape(n, outputs) @ taps.reshape(-1, outputs).T).reshape(n, m, m, -1)
    elif h * w <= 32:
        # Few positions: one product per tap, added where it lands.
        rows = y.reshape(-1, outputs)
        phases = jnp.zeros((), y.dtype)
        for i in range(m):
            for j in range(m):
                part = (rows @ taps[i, j].T).reshape(n, h, w, -1)
                phases += jnp.pad(part, ((0, 0), (i, m - 1 - i), (j, m - 1 - j), (0, 0)))
    else:
        flipped = taps[::-1, ::-1].transpose(0, 1, 3, 2)
        phases = lax.conv_general_dilated(y, flipped, (1, 1), [(m - 1, m - 1)] * 2, dimension_numbers=_LAYOUT)
    return _phases_to_space(phases, stride, size)


def _kernel_gradient_cpu(x: Array, y: Array, k: int, stride: int) -> Array:
    n, h, w, outputs = y.shape
    m = -(-k // stride)
    phases = _space_to_phases(x, k, stride)
    if h * w > _SMALL:
        taps = _kernel_gradient_by_rows(phases, y, m)
    else:
        if h * w == 1:
            patches = [phases.reshape(n, -1)]
        else:
            patches = [phases[:, i : i + h, j : j + w].reshape(n * h * w, -1) for i in range(m) for j in range(m)]
        if patches[0].shape[-1] <= 16:  # too thin for a product of its own
            patches = [jnp.concatenate(patches, -1)]
        rows = y.reshape(-1, outputs)
        taps = jnp.concatenate([patch.T @ rows for patch in patches])
    taps = taps.reshape(m, m, stride, stride, x.shape[-1], outputs).transpose(0, 2, 1, 3, 4, 5)
    return taps.reshape(m * stride, m * stride, x.shape[-1], outputs)[:k, :k]


def _kernel_gradient_by_rows(phases: Array, y: Array, m: int) -> Array:
    """Add up, over the rows of y, convolutions along the row in which the batch plays the channels.

    Nothing is copied once for every tap. Shapes: phases [N, h+m-1, w+m-1, F], y [N, h, w, O] -> [m, m, F, O].
    """
    n, h, _, outputs = y.shape
    _, _, columns, features = phases.shape
    rows = phases.transpose(1, 3, 2, 0)  # [h+m-1, F, w+m-1, N]

    def add(total: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
        i, y = row
        near = lax.dynamic_slice_in_dim(rows, i, m).reshape(m * features, columns, n)
        part = lax.conv_general_dilated(near, y, (1,), "VALID", dimension_numbers=("NHC", "HIO", "NHC"))
        return total + part, None

    zeros = jnp.zeros((m * features, m, outputs), y.dtype)
    total, _ = lax.scan(add, zeros, (jnp.arange(h), y.transpose(1, 2, 0, 3)))
    return total.reshape(m, features, m, outputs).transpose(0, 2, 1, 3)


def _phase_kernel(kernel: Array, stride: int) -> Array:
    """Move the stride into the channels: [k, k, C, O] -> [m, m, s*s*C, O], with zeros where m*s exceeds k."""
    k, _, channels, outputs = kernel.shape
    m = -(-k // stride)
    kernel = jnp.pad(kernel, ((0, m * stride - k), (0, m * stride - k), (0, 0), (0, 0)))
    kernel = kernel.reshape(m, stride, m, stride, channels, outputs).transpose(0, 2, 1, 3, 4, 5)
    return kernel.reshape(m, m, stride * stride * channels, outputs)


def _space_to_phases(x: Array, k: int, stride: int) -> Array:
    """Move the stride into the channels: [N, H, W, C] -> [N, h+m-1, w+m-1, s*s*C], cropped or padded to fit."""
    m = -(-k // stride)
    rows, columns = ((size - k) // stride + m for size in x.shape[1:3])
    x = _fit(x, (rows * stride, columns * stride))
    x = x.reshape(x.shape[0], rows, stride, columns, stride, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(x.shape[0], rows, columns, -1)


def _phases_to_space(phases: Array, stride: int, size: tuple[int, int]) -> Array:
    """Invert `_space_to_phases`: [N, r, c, s*s*C] -> [N, *size, C]."""
    n, rows, columns, _ = phases.shape
    x = phases.reshape(n, rows, columns, stride, stride, -1).transpose(0, 1, 3, 2, 4, 5)
    return _fit(x.reshape(n, rows * stride, columns * stride, -1), size)


def _fit(x: Array, size: tuple[int, int]) -> Array:
    x = x[:, : size[0], : size[1]]
    return jnp.pad(x, ((0, 0), (0, size[0] - x.shape[1]), (0, size[1] - x.shape[2]), (0, 0)))


class Conv(nn.Module):
    """Strided convolution without padding, with bias.

    Shapes: [..., H, W, C] -> [..., h, w, features]. Parameters: kernel [k, k, C, features], bias [features].
    """

    features: int
    kernel_size: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = conv(x.reshape(-1, *x.shape[-3:]), kernel.astype(x.dtype), self.stride)
        y += jnp.broadcast_to(bias.astype(x.dtype), y.shape)
        return y.reshape(*x.shape[:-3], *y.shape[1:])


class ConvTranspose(nn.Module):
    """Strided transposed convolution without padding, with bias.

    Shapes: [..., h, w, C] -> [..., H, W, features]. Parameters: kernel [k, k, features, C], bias [features].
    """

    features: int
    kernel_size: int
    stride: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.kernel_size, self.kernel_size, self.features, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = conv_transpose(x.reshape(-1, *x.shape[-3:]), kernel.astype(x.dtype), self.stride)
        y += jnp.broadcast_to(bias.astype(x.dtype), y.shape)
        return y.reshape(*x.shape[:-3], *y.shape[1:])
