"""Probability distributions as plain functions of their parameters, in float32."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamjax.types import Array, Key


def gaussian_sample(key: Key, mean: Array, log_variance: Array) -> Array:
    """Draw from a diagonal Gaussian, differentiably. Shapes: [..., Z], [..., Z] -> [..., Z]."""
    return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, mean.shape)


def gaussian_kl(mean: Array, log_variance: Array) -> Array:
    """KL divergence to the standard normal, in nats, summed over the last axis. Shapes: [..., Z] -> [...]."""
    return -0.5 * (1.0 + log_variance - mean**2 - jnp.exp(log_variance)).sum(-1)


class MixtureDensity(NamedTuple):
    """A mixture of K Gaussians for each of Z dimensions, which are independent of each other.

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
    """Draw one value per dimension.

    The temperature divides the log weights and multiplies the variances, so that above 1 the draw is less certain.
    The component comes from inverting the cumulative weights: one uniform number per dimension, not K; it and the
    noise come from one call to the generator.

    Shapes: mixture [..., K, Z] -> [..., Z].
    Source: Ha & Schmidhuber 2018, appendix A.2 and A.4; sigma is multiplied by sqrt(temperature), as in SketchRNN.
    """
    shape = mixture.means.shape[:-2] + mixture.means.shape[-1:]
    scaled = mixture.logits / temperature
    weights = jnp.exp(scaled - scaled.max(-2, keepdims=True))
    open_interval = jnp.nextafter(-1.0, 0.0)  # -1 itself would be an infinite noise
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
