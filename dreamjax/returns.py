"""Returns that an actor and a critic learn from.

Source: Hafner et al. 2023, equations 7 to 11, and its published code, which takes rewards and flags at t+1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamjax.types import Array


def lambda_returns(
    reward: Array, is_last: Array, is_terminal: Array, bootstrap: Array, discount: Array | float, mix: float
) -> Array:
    """Mix of all n-step returns: R_t = r_{t+1} + live_{t+1} [(1 - keep_{t+1}) boot_{t+1} + keep_{t+1} R_{t+1}].

    live = discount (1 - is_terminal) stops the return where the episode ends, keep = mix (1 - is_last) stops the mixing
    where the next step belongs to another episode. The last return is the bootstrap itself. `is_terminal` may be a
    probability.

    Shapes: all [T, ...], T >= 2 -> [T-1, ...].
    """
    live = (1.0 - is_terminal[1:].astype(jnp.float32)) * discount
    keep = (1.0 - is_last[1:].astype(jnp.float32)) * mix

    def step(following: Array, data: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        reward, live, keep, bootstrap = data
        now = reward + live * ((1.0 - keep) * bootstrap + keep * following)
        return now, now

    _, returns = jax.lax.scan(step, bootstrap[-1], (reward[1:], live, keep, bootstrap[1:]), reverse=True)
    return returns


class ReturnRange(NamedTuple):
    """Running percentiles of the returns."""

    low: Array  # [] float32
    high: Array  # [] float32


def range_init() -> ReturnRange:
    """Begin at zero, which is not corrected for: the first returns count little."""
    return ReturnRange(jnp.float32(0), jnp.float32(0))


def range_update(
    state: ReturnRange, returns: Array, rate: float = 0.01, low: float = 5.0, high: float = 95.0
) -> ReturnRange:
    """Move towards the percentiles of these returns, of any shape."""
    new = jnp.percentile(returns, jnp.array([low, high]))
    return ReturnRange(*(old + rate * (now - old) for old, now in zip(state, new, strict=True)))


def range_scale(state: ReturnRange, limit: float = 1.0) -> Array:
    """What returns are divided by: their range, but never less than `limit`, so that small ones are not blown up."""
    return jnp.maximum(limit, state.high - state.low)
