"""The returns that actor and critic learn from.

Source: Hafner et al. 2023, equations 7 to 11, and its published code, which takes rewards and flags at t+1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamjax.types import Array


def lambda_returns(
    reward: Array, is_last: Array, is_terminal: Array, bootstrap: Array, discount: Array | float, mix: float
) -> Array:
    """Lambda returns: R_t = r_{t+1} + live_{t+1} [(1 - keep_{t+1}) boot_{t+1} + keep_{t+1} R_{t+1}].

    live = discount (1 - is_terminal) ends the return at a terminal step; keep = mix (1 - is_last), where `mix` is the
    paper's lambda, bootstraps at the last step of an episode. The last return is the bootstrap itself. `is_terminal`
    may be a probability.

    Shapes: all [T, ...], T >= 2 -> [T-1, ...].
    """
    live = (1.0 - is_terminal[1:].astype(jnp.float32)) * discount
    keep = (1.0 - is_last[1:].astype(jnp.float32)) * mix

    # R_t = a_t + b_t R_{t+1}, in as many steps as T has binary digits: few programs to start, and none that waits long.
    a, b = reward[1:] + live * (1.0 - keep) * bootstrap[1:], live * keep
    a = a.at[-1].add(b[-1] * bootstrap[-1])

    def join(later: tuple[Array, Array], earlier: tuple[Array, Array]) -> tuple[Array, Array]:
        return earlier[0] + earlier[1] * later[0], earlier[1] * later[1]

    return jax.lax.associative_scan(join, (a, b), reverse=True)[0]


class ReturnRange(NamedTuple):
    """Running percentiles of the returns."""

    low: Array  # [] float32
    high: Array  # [] float32


def range_init() -> ReturnRange:
    """Start at zero, without bias correction."""
    return ReturnRange(jnp.float32(0), jnp.float32(0))


def range_update(
    state: ReturnRange, returns: Array, rate: float = 0.01, low: float = 5.0, high: float = 95.0
) -> ReturnRange:
    """Move the percentiles towards those of `returns`, of any shape, at a rate."""
    new = jnp.percentile(returns, jnp.array([low, high]))
    return ReturnRange(*(old + rate * (now - old) for old, now in zip(state, new, strict=True)))


def range_scale(state: ReturnRange, limit: float = 1.0) -> Array:
    """Return the scale that divides returns: their range, at least `limit`, so that small ones are not amplified."""
    return jnp.maximum(limit, state.high - state.low)
