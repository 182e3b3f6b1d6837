"""A long short-term memory, for one step or a whole sequence."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamjax.types import Array


class LSTMState(NamedTuple):
    """The recurrent state of an LSTM."""

    c: Array  # [..., H] cell
    h: Array  # [..., H] output


def glorot(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Glorot-uniform for vectors and matrices; a vector counts as its own fan in and fan out, as in TensorFlow."""
    fan_in, fan_out = (shape[0], shape[0]) if len(shape) == 1 else shape
    limit = (6 / (fan_in + fan_out)) ** 0.5
    return jax.random.uniform(key, shape, dtype, -limit, limit)


class LSTM(nn.Module):
    """LSTM with one kernel for inputs and previous output; 1 is added to the forget gate at run time.

    Parameters: kernel [I+H, 4H], rows of the inputs first; bias [4H]. Columns: input gate, candidate, forget gate,
    output gate. The bias is initialised at random, like the kernel.
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
        c, h, _ = _cell(jnp.split(gates + jnp.broadcast_to(self.bias, gates.shape), 4, -1), state.c)
        return LSTMState(c, h)

    def sequence(self, state: LSTMState, xs: Array, resets: Array) -> tuple[LSTMState, Array]:
        """Take T steps; where `resets` is true the state is zero before the step.

        Shapes: state [B, H], xs [T, B, I], resets [T, B] bool -> (state [B, H], outputs h [T, B, H]).
        """
        keep = 1.0 - resets.astype(xs.dtype)
        return _sequence(self.kernel, self.bias, state, xs, keep)


Gates = tuple[Array, Array, Array, Array]  # input gate, candidate, forget gate, output gate, after their nonlinearities


def _cell(gates: list[Array], c: Array) -> tuple[Array, Array, Gates]:
    i, j, f, o = gates
    i, j, f, o = jax.nn.sigmoid(i), jnp.tanh(j), jax.nn.sigmoid(f + 1.0), jax.nn.sigmoid(o)
    c = c * f + i * j
    return c, jnp.tanh(c) * o, (i, j, f, o)


# Inside a sequence the batch is the last axis, not the first. The kernel, by far the larger factor, is then the left
# one in the products of both directions, which is twice as fast on a CPU for a few dozen streams, because the right
# factor of a product is rearranged at every step.


@jax.custom_vjp
def _sequence(kernel: Array, bias: Array, state: LSTMState, xs: Array, keep: Array) -> tuple[LSTMState, Array]:
    return _sequence_fwd(kernel, bias, state, xs, keep)[0]


def _sequence_fwd(kernel: Array, bias: Array, state: LSTMState, xs: Array, keep: Array):  # type: ignore[no-untyped-def]
    weights, column = kernel.T, bias[:, None]

    def step(state: LSTMState, data: tuple[Array, Array]):  # type: ignore[no-untyped-def]
        x, keep = data
        y = weights @ jnp.concatenate([x.T, state.h * keep])
        c, h, gates = _cell(jnp.split(y + jnp.broadcast_to(column, y.shape), 4), state.c * keep)
        return LSTMState(c, h), (h.T, c, gates)

    last, (hs, cs, gates) = jax.lax.scan(step, LSTMState(state.c.T, state.h.T), (xs, keep[:, None]))
    return (LSTMState(last.c.T, last.h.T), hs), (kernel, state, xs, keep, hs, cs, gates)


def _sequence_bwd(saved, cotangents):  # type: ignore[no-untyped-def]
    """Backpropagate through time, with the gradient of the kernel as one product over all steps at the end.

    Automatic differentiation would add a [I+H, 4H] product to an accumulator at every step, which costs more than
    everything else together if the batch is small.
    """
    kernel, state, xs, keep, hs, cs, gates = saved
    dstate, dhs = cotangents
    input_kernel, recurrent = jnp.split(kernel, [xs.shape[-1]])

    def step(carry: LSTMState, data):  # type: ignore[no-untyped-def]
        dh, keep, c, c_before, (i, j, f, o) = data
        dh = dh.T + carry.h
        tanh_c = jnp.tanh(c)
        dc = carry.c + dh * o * (1 - tanh_c**2)
        dgates = jnp.concatenate(
            [dc * j * i * (1 - i), dc * i * (1 - j**2), dc * c_before * keep * f * (1 - f), dh * tanh_c * o * (1 - o)]
        )
        return LSTMState(dc * f * keep, (recurrent @ dgates) * keep), dgates.T

    cs_before = jnp.concatenate([state.c.T[None], cs[:-1]])
    data = (dhs, keep[:, None], cs, cs_before, gates)
    dstate, dgates = jax.lax.scan(step, LSTMState(dstate.c.T, dstate.h.T), data, reverse=True)
    inputs = jnp.concatenate([xs, jnp.concatenate([state.h[None], hs[:-1]]) * keep[..., None]], -1)
    flat = dgates.reshape(-1, dgates.shape[-1])
    dkernel = inputs.reshape(len(flat), -1).T @ flat
    return dkernel, flat.sum(0), LSTMState(dstate.c.T, dstate.h.T), dgates @ input_kernel.T, jnp.zeros_like(keep)


_sequence.defvjp(_sequence_fwd, _sequence_bwd)
