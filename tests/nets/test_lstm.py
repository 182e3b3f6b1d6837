"""The LSTM equals its published formula, flax's, and, step by step, itself: values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.nets.lstm import LSTM, LSTMState, glorot
from dreamjax.types import Array, Params

T, B, INPUTS, SIZE = 7, 3, 4, 5
MODULE = LSTM(SIZE, INPUTS)


def problem(seed: int = 0) -> tuple[Params, LSTMState, Array, Array]:
    """Parameters, state [B, H], inputs [T, B, I] and resets [T, B], some of them set."""
    key_params, key_c, key_h, key_x, key_reset = jax.random.split(jax.random.key(seed), 5)
    state = LSTMState(jax.random.normal(key_c, (B, SIZE)), jax.random.normal(key_h, (B, SIZE)))
    xs = jax.random.normal(key_x, (T, B, INPUTS))
    params = MODULE.init(key_params, state, xs[0])["params"]
    resets = jax.random.bernoulli(key_reset, 0.3, (T, B)).at[0, 0].set(True).at[0, 1].set(False)
    return params, state, xs, resets


def in_one_go(params: Params, state: LSTMState, xs: Array, resets: Array) -> tuple[LSTMState, Array]:
    return MODULE.apply({"params": params}, state, xs, resets, method="sequence")


def step_by_step(params: Params, state: LSTMState, xs: Array, resets: Array) -> tuple[LSTMState, Array]:
    hs = []
    for x, reset in zip(xs, resets, strict=True):
        state = jax.tree.map(lambda leaf, reset=reset: jnp.where(reset[:, None], 0.0, leaf), state)
        state = MODULE.apply({"params": params}, state, x)
        hs.append(state.h)
    return state, jnp.stack(hs)


def oracle(params: Params, state: LSTMState, xs: Array, resets: Array) -> tuple[np.ndarray, ...]:
    """The published formula in float64: c, h and all outputs."""
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    kernel, bias, c, h, xs = (np.asarray(a, np.float64) for a in (params["kernel"], params["bias"], *state, xs))
    hs = []
    for x, reset in zip(xs, np.asarray(resets), strict=True):
        c, h = c * ~reset[:, None], h * ~reset[:, None]
        gates = x @ kernel[:INPUTS] + h @ kernel[INPUTS:] + bias
        i, j, f, o = (gates[:, n * SIZE : (n + 1) * SIZE] for n in range(4))
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(j)
        h = sigmoid(o) * np.tanh(c)
        hs.append(h)
    return c, h, np.stack(hs)


@pytest.mark.parametrize("run", [in_one_go, step_by_step])
def test_outputs_equal_the_formula(run) -> None:
    arguments = problem()
    (c, h), hs = jax.jit(run)(*arguments)
    for ours, expected in zip((c, h, hs), oracle(*arguments), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(h, hs[-1])


def test_resets_cut_the_past_and_nothing_else() -> None:
    params, state, xs, resets = problem()
    resets = jnp.zeros_like(resets).at[3, 1].set(True)
    _, hs = in_one_go(params, state, xs, resets)
    changed = LSTMState(state.c + 1.0, state.h - 1.0)
    _, other = in_one_go(params, changed, xs.at[:3].add(1.0), resets)
    np.testing.assert_array_equal(hs[3:, 1], other[3:, 1])
    assert (np.abs(np.asarray(hs - other))[3:, [0, 2]].max((0, 2)) > 1e-3).all()


def test_gradients_equal_those_of_the_single_steps() -> None:
    """Of the kernel, the bias, the state and the inputs, for random cotangents of everything that comes out."""
    params, state, xs, resets = problem()
    keys = jax.random.split(jax.random.key(1), 3)
    weights = [jax.random.normal(k, s) for k, s in zip(keys, [(B, SIZE), (B, SIZE), (T, B, SIZE)], strict=True)]

    def gradients(run):
        def scalar(params: Params, state: LSTMState, xs: Array) -> Array:
            (c, h), hs = run(params, state, xs, resets)
            return sum((w * y).sum() for w, y in zip(weights, (c, h, hs), strict=True))

        return jax.jit(jax.grad(scalar, (0, 1, 2)))(params, state, xs)

    ours, expected = gradients(in_one_go), gradients(step_by_step)
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.abs(other).max() > 0.1
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * np.abs(other).max())
    dstate = ours[1]
    assert not dstate.c[0].any() and not dstate.h[0].any(), "a reset at the first step forgets the state"
    assert dstate.c[1].all() and dstate.h[1].all()


def test_equals_flax_with_one_more_bias_on_the_forget_gate() -> None:
    params, state, xs, _ = problem()
    kernels = jnp.split(params["kernel"], 4, -1)
    biases = jnp.split(params["bias"], 4)
    theirs = {}
    for name, kernel, bias in zip("igfo", kernels, biases, strict=True):  # flax calls the candidate g
        theirs["i" + name] = {"kernel": kernel[:INPUTS]}
        theirs["h" + name] = {"kernel": kernel[INPUTS:], "bias": bias + (1.0 if name == "f" else 0.0)}
    ours = MODULE.apply({"params": params}, state, xs[0])
    (c, h), _ = nn.OptimizedLSTMCell(SIZE).apply({"params": theirs}, (state.c, state.h), xs[0])
    np.testing.assert_allclose(ours.c, c, rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.h, h, rtol=0, atol=1e-6)


def test_one_example_is_a_batch_without_its_axis() -> None:
    params, state, xs, _ = problem()
    whole = MODULE.apply({"params": params}, state, xs[0])
    one = MODULE.apply({"params": params}, jax.tree.map(lambda leaf: leaf[1], state), xs[0, 1])
    for mine, other in zip(one, whole, strict=True):
        np.testing.assert_allclose(mine, other[1], rtol=0, atol=1e-6)


def test_parameters_are_drawn_uniformly_within_glorots_limits() -> None:
    module = LSTM(64, 33)
    state = LSTMState(jnp.zeros(64), jnp.zeros(64))
    params = module.init(jax.random.key(0), state, jnp.zeros(33))["params"]
    assert jax.tree.map(jnp.shape, params) == {"kernel": (97, 256), "bias": (256,)}
    for value, limit in ((params["kernel"], (6 / (97 + 256)) ** 0.5), (params["bias"], (6 / 512) ** 0.5)):
        assert 0.98 * limit < np.abs(value).max() <= limit
        assert value.min() < -0.95 * limit and abs(value.mean()) < 0.12 * limit
        np.testing.assert_allclose(value.std(), limit / 3**0.5, rtol=0.08)
    assert np.abs(glorot(jax.random.key(0), (3,))).max() <= 1.0
