"""A long short-term memory over one step or a whole sequence."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamjax.types import Array


class LSTMState(NamedTuple):
    """What an LSTM carries."""

    c: Array  # [..., H] cell
    h: Array  # [..., H] output


def glorot(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Glorot-uniform for any rank; a vector counts as its own fan in and fan out (TensorFlow's convention)."""
    fan_in, fan_out = (shape[0], shape[0]) if len(shape) == 1 else shape
    limit = (6 / (fan_in + fan_out)) ** 0.5
    return jax.random.uniform(key, shape, dtype, -limit, limit)


class LSTM(nn.Module):
    """LSTM with one kernel for inputs and output; 1 is added to the forget gate when it runs.

    Parameters: kernel [I+H, 4H], rows of the inputs first; bias [4H]. Columns: input gate, candidate, forget gate,
    output gate. The bias is drawn at random like the kernel.
    Source: Ha & Schmidhuber 2018, published code (TensorFlow's layer-norm LSTM cell with the norm switched off).
    """

    size: int
    inputs: int

    def setup(self) -> None:
        """Make the parameters."""
        self.kernel = self.param("kernel", glorot, (self.inputs + self.size, 4 * self.size))
        self.bias = self.param("bias", glorot, (4 * self.size,))

    def __call__(self, state: LSTMState, x: Array) -> LSTMState:
        """Take one step. Shapes: state [..., H], x [..., I] -> [..., H]."""
        gates = jnp.concatenate([x, state.h], -1) @ self.kernel
        c, h, _ = _cell(gates + jnp.broadcast_to(self.bias, gates.shape), state.c)
        return LSTMState(c, h)

    def sequence(self, state: LSTMState, xs: Array, resets: Array) -> tuple[LSTMState, Array]:
        """Take T steps; where `resets` is set the state is zero before the step.

        Shapes: state [B, H], xs [T, B, I], resets [T, B] bool -> (state [B, H], outputs h [T, B, H]).
        """
        keep = 1.0 - resets.astype(xs.dtype)[..., None]
        return _sequence(self.kernel, self.bias, state, xs, keep)


def _cell(gates: Array, c: Array) -> tuple[Array, Array, tuple[Array, Array, Array, Array]]:
    i, j, f, o = jnp.split(gates, 4, -1)
    i, j, f, o = jax.nn.sigmoid(i), jnp.tanh(j), jax.nn.sigmoid(f + 1.0), jax.nn.sigmoid(o)
    c = c * f + i * j
    return c, jnp.tanh(c) * o, (i, j, f, o)


@jax.custom_vjp
def _sequence(kernel: Array, bias: Array, state: LSTMState, xs: Array, keep: Array) -> tuple[LSTMState, Array]:
    return _sequence_fwd(kernel, bias, state, xs, keep)[0]


def _sequence_fwd(kernel: Array, bias: Array, state: LSTMState, xs: Array, keep: Array):  # type: ignore[no-untyped-def]
    recurrent = kernel[xs.shape[-1] :]
    projected = xs @ kernel[: xs.shape[-1]]  # one product for all steps
    projected += jnp.broadcast_to(bias, projected.shape)

    def step(state: LSTMState, data: tuple[Array, Array]):  # type: ignore[no-untyped-def]
        x, keep = data
        before = LSTMState(state.c * keep, state.h * keep)
        c, h, gates = _cell(x + before.h @ recurrent, before.c)
        return LSTMState(c, h), (h, c, before, gates)

    state, (hs, cs, before, gates) = jax.lax.scan(step, state, (projected, keep))
    return (state, hs), (kernel, xs, keep, cs, before, gates)


def _sequence_bwd(saved, cotangents):  # type: ignore[no-untyped-def]
    """Backpropagate through time, leaving the kernel's gradient to one product over all steps at the end.

    What automatic differentiation would do instead, adding a [I+H, 4H] product to an accumulator in every step,
    costs more than all other work together when the batch is small.
    """
    kernel, xs, keep, cs, before, gates = saved
    dstate, dhs = cotangents
    recurrent = kernel[xs.shape[-1] :]

    def step(carry: LSTMState, data):  # type: ignore[no-untyped-def]
        dh, keep, c, c_before, (i, j, f, o) = data
        dh = dh + carry.h
        tanh_c = jnp.tanh(c)
        dc = carry.c + dh * o * (1 - tanh_c**2)
        dgates = jnp.concatenate(
            [dc * j * i * (1 - i), dc * i * (1 - j**2), dc * c_before * f * (1 - f), dh * tanh_c * o * (1 - o)], -1
        )
        return LSTMState(dc * f * keep, (dgates @ recurrent.T) * keep), dgates

    dstate, dgates = jax.lax.scan(step, dstate, (dhs, keep, cs, before.c, gates), reverse=True)
    flat = dgates.reshape(-1, dgates.shape[-1])
    inputs = jnp.concatenate([xs, before.h], -1).reshape(flat.shape[0], -1)
    dxs = dgates @ kernel[: xs.shape[-1]].T
    return inputs.T @ flat, flat.sum(0), dstate, dxs, jnp.zeros_like(keep)


_sequence.defvjp(_sequence_fwd, _sequence_bwd)
