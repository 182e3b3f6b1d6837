"""Take it or leave it: rewards and observations from 1 to 10,000, and a best return that is known.

This is the problem of optimal stopping, on which to see what becomes of a learner whose rewards differ by magnitudes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.types import Array, Environment, EnvSpec, Key, Space, Step

LEVELS, MAX_STEPS = 5, 8


class OffersState(NamedTuple):
    """What `offers` carries."""

    level: Array  # [] int32, the offer is 10 ** level
    is_taken: Array  # [] bool
    time: Array  # [] int32, steps since reset, which are offers refused


def offers(levels: int = LEVELS, max_steps: int = MAX_STEPS) -> Environment:
    """Be made up to `max_steps` offers, one after the other, and take one: reward 10 ** level, and a terminal end.

    Levels are drawn uniformly from `levels`, anew for every offer. Action 1 takes the offer that is seen, 0 waits for
    the next; who refuses the last one ends with nothing. The observation is [2] float32: the offer, 0 when all is over,
    and how many are still to come, this one included.

    `known_returns` says what the best policy and random play get.

    Raises: ValueError for levels < 2 or more than 7, or max_steps < 1.
    """
    if not 2 <= levels <= 7 or max_steps < 1:
        raise ValueError(f"offers needs 2 to 7 levels and max_steps >= 1, got levels={levels}, max_steps={max_steps}")

    def arrive(state: OffersState, reward: Array) -> tuple[OffersState, Step]:
        left = max_steps - state.time
        is_over = state.is_taken | (left == 0)
        offer = jnp.where(is_over, 0.0, _worth(state.level))
        observation = jnp.stack([offer, left.astype(jnp.float32)])
        return state, Step(observation, reward, is_first=state.time == 0, is_last=is_over, is_terminal=is_over)

    def reset(key: Key) -> tuple[OffersState, Step]:
        level = jax.random.randint(key, (), 0, levels)
        return arrive(OffersState(level, jnp.bool_(False), jnp.int32(0)), jnp.float32(0))

    def step(key: Key, state: OffersState, action: Array) -> tuple[OffersState, Step]:
        takes = action == 1
        following = OffersState(jax.random.randint(key, (), 0, levels), takes, state.time + 1)
        return arrive(following, jnp.where(takes, _worth(state.level), 0.0))

    largest = (float(10 ** (levels - 1)), float(max_steps))
    return Environment(
        reset, step, EnvSpec(Space((2,), np.float32, 0.0, largest), Space((), np.int32, 0, 2), max_steps)
    )


def known_returns(levels: int = LEVELS, max_steps: int = MAX_STEPS) -> tuple[float, float]:
    """Return what random play and the best policy of `offers` get on average.

    With k offers to come, random play gets R_k = (mean offer + R_{k-1}) / 2, and the best policy, which takes what is
    worth more than going on, V_k = mean of max(offer, V_{k-1}); nothing is left without offers.
    """
    worth = 10.0 ** np.arange(levels)
    random = best = 0.0
    for _ in range(max_steps):
        random, best = (worth.mean() + random) / 2, np.maximum(worth, best).mean()
    return float(random), float(best)


def _worth(level: Array) -> Array:
    return jnp.float32(10) ** level
