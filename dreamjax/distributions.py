"""Probability distributions as plain functions of their parameters, in float32."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.types import Array, Key


def gaussian_sample(key: Key, mean: Array, log_variance: Array) -> Array:
    """Sample a diagonal Gaussian, differentiably. Shapes: [..., Z], [..., Z] -> [..., Z]."""
    return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)


def gaussian_kl(mean: Array, log_variance: Array) -> Array:
    """KL divergence from the standard normal, in nats, summed over the last axis. Shapes: [..., Z] -> [...]."""
    return -0.5 * (1.0 + log_variance - mean**2 - jnp.exp(log_variance)).sum(-1)


class MixtureDensity(NamedTuple):
    """A mixture of K Gaussians for each of Z independent dimensions.

    Source: Bishop 1994; Ha & Schmidhuber 2018, appendix A.2 (the published code gives every dimension its own mixture).
    """

    logits: Array  # [..., K, Z] unnormalised log weights
    means: Array  # [..., K, Z]
    log_stds: Array  # [..., K, Z]


def mixture_log_prob(mixture: MixtureDensity, x: Array) -> Array:
    """Log density in nats of each dimension. Shapes: mixture [..., K, Z], x [..., Z] -> [..., Z]."""
    log_weights = jax.nn.log_softmax(mixture.logits, -2)
    standard = (x[..., None, :] - mixture.means) * jnp.exp(-mixture.log_stds)
    log_normal = -0.5 * standard**2 - mixture.log_stds - 0.5 * jnp.log(2 * jnp.pi)
    return jax.nn.logsumexp(log_weights + log_normal, -2)


def mixture_sample(key: Key, mixture: MixtureDensity, temperature: Array | float = 1.0) -> Array:
    """Sample one value per dimension.

    The temperature divides the log weights and multiplies the variances: above 1, samples vary more. The component is
    chosen by inverting the cumulative weights, which takes one uniform number per dimension instead of K.

    Shapes: mixture [..., K, Z] -> [..., Z].
    Source: Ha & Schmidhuber 2018, appendix A.2 and A.4; sigma is multiplied by sqrt(temperature), as in SketchRNN.
    """
    shape = mixture.means.shape[:-2] + mixture.means.shape[-1:]
    scaled = mixture.logits / temperature
    weights = jnp.exp(scaled - scaled.max(-2, keepdims=True))
    open_interval = jnp.nextafter(-1.0, 0.0)  # -1 itself would give infinite noise
    uniform = jax.random.uniform(key, (2, *shape), minval=open_interval)  # in (-1, 1)
    threshold = 0.5 * (1.0 + uniform[0]) * weights.sum(-2)
    cumulative = weights[..., 0, :]
    mean, log_std = mixture.means[..., 0, :], mixture.log_stds[..., 0, :]
    for k in range(1, weights.shape[-2]):
        beyond = threshold >= cumulative
        mean = jnp.where(beyond, mixture.means[..., k, :], mean)
        log_std = jnp.where(beyond, mixture.log_stds[..., k, :], log_std)
        cumulative += weights[..., k, :]
    noise = jnp.sqrt(2.0) * jax.lax.erf_inv(uniform[1])
    return mean + jnp.exp(log_std) * jnp.sqrt(temperature) * noise


def symlog(x: Array) -> Array:
    """Compress large values symmetrically: sign(x) ln(1 + |x|). Source: Hafner et al. 2023, equation 10."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Array) -> Array:
    """Invert `symlog`."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


@cache
def symexp_bins(count: int) -> np.ndarray:
    """Values of a two-hot distribution in symlog from -20 to 20, exactly antisymmetric.

    An odd count is evenly spaced, as published; an even one has zero twice.
    A NumPy constant, so that no program computes it. Shapes: -> [count] float32.
    Source: Hafner et al. 2023, "symexp twohot", and its published code.
    """
    half = -np.expm1(np.linspace(20.0, 0.0, (count + 1) // 2)).astype(np.float32)
    return np.concatenate([half, -half[: count // 2][::-1]])


def twohot_mean(logits: Array, bins: np.ndarray) -> Array:
    """Expected value. Shapes: logits [..., N], bins [N] -> [...].

    Bins of opposite sign are added first: they are huge, and a uniform distribution must give exactly 0.
    """
    probs = jax.nn.softmax(logits.astype(jnp.float32))
    weighted = probs * jnp.broadcast_to(bins, probs.shape)
    count = bins.shape[0]
    below, above = weighted[..., : count // 2], weighted[..., (count + 1) // 2 :]
    middle = weighted[..., count // 2] if count % 2 else 0.0
    return middle + (below[..., ::-1] + above).sum(-1)


def twohot_loss(logits: Array, target: Array, bins: np.ndarray) -> Array:
    """Cross entropy in nats with the two bins around the target, weighted by their distance from it.

    Beyond the outermost bins all weight is on the outermost one; where the target is not finite, nor is the loss.

    Shapes: logits [..., N], target [...] -> [...].
    """
    count = bins.shape[0]
    target = jnp.asarray(target, jnp.float32)
    values = jnp.asarray(bins)
    beyond = (jnp.broadcast_to(values, logits.shape) <= target[..., None]).sum(-1)
    below, above = jnp.clip(beyond - 1, 0, count - 1), jnp.clip(beyond, 0, count - 1)
    # No comparison is true of NaN, which would be below all bins; and no reward is meant to be infinite.
    outside = (below == above) & jnp.isfinite(target)
    to_below = jnp.where(outside, 1.0, jnp.abs(values[below] - target))
    to_above = jnp.where(outside, 1.0, jnp.abs(values[above] - target))
    share = (to_above / (to_below + to_above))[..., None]
    wanted = jax.nn.one_hot(below, count) * share + jax.nn.one_hot(above, count) * (1.0 - share)
    # Cross entropy, without a log probability for every bin.
    logits = logits.astype(jnp.float32)
    logits -= jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    return jnp.log(jnp.exp(logits).sum(-1)) - (wanted * logits).sum(-1)


def unimix(logits: Array, share: float) -> Array:
    """Log probabilities of a categorical distribution mixed with a `share` of the uniform one, in float32.

    Shapes: logits [..., K] -> [..., K].
    Source: Hafner et al. 2023, "1% unimix".
    """
    logits = logits.astype(jnp.float32)
    return jnp.log(unimix_probs(logits, share)) if share else jax.nn.log_softmax(logits)


def unimix_probs(logits: Array, share: float) -> Array:
    """Probabilities mixed with a `share` of uniform ones, in float32. Shapes: logits [..., K] -> [..., K]."""
    return (1.0 - share) * jax.nn.softmax(logits.astype(jnp.float32)) + share / logits.shape[-1]


def onehot_sample(uniform: Array, probs: Array) -> Array:
    """Sample a one-hot vector with a straight-through gradient, that of the probabilities.

    Shapes: uniform [...], random numbers in [0, 1); probs [..., K] -> [..., K] float32.
    """
    fixed = jax.lax.stop_gradient(probs)
    return jax.nn.one_hot(categorical_sample(uniform, fixed), probs.shape[-1]) + (probs - fixed)


def categorical_sample(uniform: Array, probs: Array) -> Array:
    """Sample a class by inverting the cumulative distribution, from one random number instead of one per class.

    Shapes: uniform [...], random numbers in [0, 1); probs [..., K] -> [...] int32.
    """
    count = probs.shape[-1]
    # A product with a triangle of ones is faster than a cumulative sum, on every platform.
    triangle = jnp.triu(jnp.ones((count, count), probs.dtype))[:, : count - 1]
    cumulative = jnp.matmul(probs, triangle, precision=jax.lax.Precision.HIGHEST)
    return (jnp.broadcast_to(uniform[..., None], cumulative.shape) >= cumulative).sum(-1, dtype=jnp.int32)


def categorical_entropy(log_probs: Array) -> Array:
    """Entropy in nats. Shapes: [..., K] -> [...]."""
    return -(jnp.exp(log_probs) * log_probs).sum(-1)


def categorical_kl(log_p: Array, log_q: Array) -> Array:
    """KL divergence of p from q in nats. Shapes: log probabilities [..., K] -> [...]."""
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def normal_log_prob(mean: Array, std: Array, x: Array) -> Array:
    """Log density in nats. Shapes: [...] -> [...]."""
    return -0.5 * ((x - mean) / std) ** 2 - jnp.log(std) - 0.5 * jnp.log(2 * jnp.pi)


def normal_entropy(std: Array) -> Array:
    """Entropy in nats. Shapes: [...] -> [...]."""
    return 0.5 * jnp.log(2 * jnp.pi * std**2) + 0.5
