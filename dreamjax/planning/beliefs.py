"""What a planner believes of the best plan: a distribution over sequences of actions, each entry independent.

Continuous actions are normal, clipped to their bounds, discrete ones categorical. Both are drawn from normal noise,
which may be coloured, so that actions last.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.types import Array, Space


class Belief(NamedTuple):
    """From which distribution one part of the action is drawn at every step, each entry for itself."""

    mean: Array  # [H, *shape]; probabilities [H, *shape, K] if discrete
    std: Array  # [H, *shape]; unused if discrete


@cache
def coloured_by(exponent: float, length: int) -> np.ndarray:
    """Matrix that turns white noise into noise of unit variance whose spectrum is f^-exponent. Shapes: -> [H, H]."""
    scale = np.maximum(np.fft.rfftfreq(length), 1 / length) ** (-exponent / 2)
    matrix = np.fft.irfft(np.fft.rfft(np.eye(length), axis=0) * scale[:, None], length, axis=0)
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)


def _bounds(horizon: int, space: Space) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of actions; of discrete ones, the first class and how many there are. Shapes: -> [H, *shape]."""
    low, high = (np.broadcast_to(bound, (horizon, *space.shape)) for bound in (space.low_array, space.high_array))
    return (low.astype(np.int32), (high - low).astype(np.int32)) if space.is_discrete else (low, high)


def _even(horizon: int, space: Space) -> np.ndarray:  # probability of each class, [H, *shape, K]
    counts = _bounds(horizon, space)[1][..., None]
    return (np.arange(counts.max()) < counts).astype(np.float32) / counts.astype(np.float32)


def unknown(horizon: int, spread: float, space: Space) -> Belief:
    """All actions alike: the middle of their range, give or take `spread` of it; classes are equally probable."""
    low, high = _bounds(horizon, space)
    mean = _even(horizon, space) if space.is_discrete else (low + high) / 2
    return Belief(jnp.asarray(mean, jnp.float32), jnp.asarray(spread * (high - low), jnp.float32))


def likeliest(space: Space, belief: Belief) -> Array:
    """Choose what is most probable, or the mean. Shapes: -> [H, *shape]."""
    low, high = _bounds(len(belief.mean), space)
    found = belief.mean.argmax(-1) + low if space.is_discrete else jnp.clip(belief.mean, low, high)
    return found.astype(space.dtype)


def within(space: Space, actions: Array) -> Array:
    """Clip continuous actions to their bounds; all get the dtype of the space. Shapes: [..., *shape] -> the same."""
    if not space.is_discrete:
        low, high = (jnp.broadcast_to(bound, actions.shape) for bound in (space.low_array, space.high_array))
        actions = jnp.clip(actions, low, high)
    return actions.astype(space.dtype)


def draw(space: Space, belief: Belief, noise: Array) -> Array:
    """Turn noise of the standard normal distribution into actions. Shapes: noise [H, *shape] -> the same."""
    if space.is_discrete:
        return _choose(space, belief.mean, noise)
    return within(space, belief.mean + belief.std * noise)


def draw_evenly(space: Space, noise: Array) -> Array:
    """Turn such noise into actions that are all equally probable. Shapes: noise [H, *shape] -> the same."""
    low, high = _bounds(len(noise), space)
    if space.is_discrete:
        return _choose(space, jnp.asarray(_even(len(noise), space)), noise)
    return within(space, low + jax.scipy.stats.norm.cdf(noise) * (high - low))


def _choose(space: Space, probs: Array, noise: Array) -> Array:
    low, count = _bounds(len(noise), space)
    cumulative = jnp.cumsum(probs, -1)
    uniform = jnp.broadcast_to(jax.scipy.stats.norm.cdf(noise)[..., None], cumulative.shape)
    return (jnp.minimum((uniform >= cumulative).sum(-1), count - 1) + low).astype(space.dtype)


def refit(space: Space, old: Belief, elites: Array, weights: Array, momentum: float, least: float) -> Belief:
    """Fit the belief to the elites: their mean and standard deviation, or how often they choose each class.

    A share `momentum` of the old belief stays. The deviation is not smaller than a share `least` of the range of the
    action; such a share of the probability of classes is spread evenly.

    Shapes: elites [E, H, *shape], weights [E], which sum to 1.
    """
    low, high = _bounds(elites.shape[1], space)
    total = lambda x: jnp.tensordot(weights, x, 1)  # noqa: E731
    blend = lambda x, new: momentum * x + (1 - momentum) * new  # noqa: E731
    if space.is_discrete:
        even = jnp.asarray(_even(len(low), space))
        chosen = jax.nn.one_hot(elites - jnp.broadcast_to(low, elites.shape), even.shape[-1])
        return Belief((1 - least) * blend(old.mean, total(chosen)) + least * even, old.std)
    elites = elites.astype(jnp.float32)
    mean = total(elites)
    std = blend(old.std, jnp.sqrt(total((elites - jnp.broadcast_to(mean, elites.shape)) ** 2)))
    return Belief(blend(old.mean, mean), jnp.maximum(std, least * (high - low)))


def follow(space: Space, old: Belief, new: Belief) -> Belief:
    """Shift the belief by one step.

    The last step, and all deviations, are those of `new`; the probabilities of classes are averaged with its own.
    """
    mean = jnp.concatenate([old.mean[1:], new.mean[-1:]])
    return Belief((mean + new.mean) / 2 if space.is_discrete else mean, new.std)
