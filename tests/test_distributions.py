"""Densities against float64 formulas, samples against the moments that they should have."""

import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from dreamjax import distributions
from dreamjax.distributions import MixtureDensity, gaussian_kl, gaussian_sample, mixture_log_prob, mixture_sample
from dreamjax.types import Array

# Three components for each of two dimensions, far enough apart that a sample tells its component.
WIDE = MixtureDensity(
    logits=jnp.array([[0.5, -1.0], [1.5, 0.0], [-0.5, 1.0]]),
    means=jnp.array([[-50.0, 0.0], [0.0, 60.0], [40.0, -60.0]]),
    log_stds=jnp.array([[0.0, -1.0], [-0.5, 0.5], [0.5, 1.0]]),
)
DRAWS = 20_000
LOG_PROB = jax.jit(mixture_log_prob)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(0))
    return weights / weights.sum(0)


def density(mixture: MixtureDensity, x: np.ndarray) -> np.ndarray:
    """In float64: mixture [K, Z], x [..., Z] -> [..., Z]."""
    logits, means, log_stds = (np.asarray(leaf, np.float64) for leaf in mixture)
    parts = [
        weight * np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
        for weight, mean, std in zip(softmax(logits), means, np.exp(log_stds), strict=True)
    ]
    return np.sum(parts, 0)


def draw(mixture: MixtureDensity, temperature: float) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), DRAWS)
    return np.asarray(jax.jit(jax.vmap(mixture_sample, (0, None, None)))(keys, mixture, temperature))


numbers = st.floats(-3, 3, width=32)
columns = st.lists(st.tuples(numbers, numbers, numbers.map(lambda x: x / 2)), min_size=4, max_size=4)


@given(columns, st.lists(numbers, min_size=2, max_size=2))
def test_log_prob_equals_the_density(columns: list[tuple[float, float, float]], x: list[float]) -> None:
    """Two components for each of two dimensions."""
    mixture = MixtureDensity(*jnp.array(columns, jnp.float32).T.reshape(3, 2, 2))
    got = LOG_PROB(mixture, jnp.array(x, jnp.float32))
    np.testing.assert_allclose(got, np.log(density(mixture, np.array(x))), rtol=1e-4, atol=1e-4)


def test_log_prob_is_finite_far_from_every_component() -> None:
    x = jnp.array([1e4, -1e4])
    got, gradient = LOG_PROB(WIDE, x), jax.grad(lambda x: mixture_log_prob(WIDE, x).sum())(x)
    means, log_stds = (np.asarray(leaf, np.float64) for leaf in WIDE[1:])
    log_weights = np.log(softmax(np.asarray(WIDE.logits, np.float64)))
    terms = log_weights - 0.5 * ((np.asarray(x) - means) / np.exp(log_stds)) ** 2 - log_stds
    np.testing.assert_allclose(got, terms.max(0) - 0.5 * math.log(2 * math.pi), rtol=1e-5)
    assert np.isfinite(gradient).all() and gradient[0] < 0 < gradient[1]


def test_the_density_integrates_to_one() -> None:
    grid = jnp.linspace(-100.0, 100.0, 40_001)
    log_prob = jax.vmap(LOG_PROB, (None, 0))(WIDE, jnp.stack([grid, grid], -1))
    mass = jnp.exp(log_prob).sum(0) * (200 / 40_000)
    np.testing.assert_allclose(mass, 1.0, atol=1e-4)


def test_leading_axes_of_the_mixture_are_examples() -> None:
    logits, means, log_stds = jax.random.normal(jax.random.key(0), (3, 5, 6, 4, 2))
    x = jax.random.normal(jax.random.key(1), (5, 6, 2))
    got = mixture_log_prob(MixtureDensity(logits, means, log_stds), x)
    assert got.shape == (5, 6, 2)
    alone = MixtureDensity(logits[3, 2], means[3, 2], log_stds[3, 2])
    np.testing.assert_allclose(got[3, 2], mixture_log_prob(alone, x[3, 2]), rtol=1e-6)
    samples = mixture_sample(jax.random.key(2), MixtureDensity(logits, means, log_stds))
    assert samples.shape == (5, 6, 2) and len(np.unique(samples)) == samples.size, "every draw has its own noise"


@pytest.mark.parametrize("temperature", [1.0, 0.3, 1.15, 3.0])
def test_samples_have_the_frequencies_means_and_deviations_of_the_components(temperature: float) -> None:
    """Weights to the power 1/temperature, normalised; deviations times the root of the temperature."""
    samples = draw(WIDE, temperature)
    assert samples.shape == (DRAWS, 2)
    means, stds = np.asarray(WIDE.means), np.exp(WIDE.log_stds) * math.sqrt(temperature)
    weights = softmax(np.log(softmax(np.asarray(WIDE.logits, np.float64))) / temperature)
    nearest = np.abs(samples[:, None] - means).argmin(1)  # [DRAWS, 2]
    for z in range(2):
        for k in range(3):
            own = samples[nearest[:, z] == k, z]
            frequency = len(own) / DRAWS
            error = 4 * math.sqrt(weights[k, z] * (1 - weights[k, z]) / DRAWS)
            assert abs(frequency - weights[k, z]) < error, (z, k)
            if len(own) > 100:
                assert abs(own.mean() - means[k, z]) < 4 * stds[k, z] / math.sqrt(len(own)), (z, k)
                np.testing.assert_allclose(own.std(), stds[k, z], rtol=4 / math.sqrt(2 * len(own)))


def test_noise_is_normal_and_independent_of_component_and_dimension() -> None:
    mixture = WIDE._replace(logits=jnp.zeros((3, 2)))
    samples = draw(mixture, 1.0)
    nearest = np.abs(samples[:, None] - np.asarray(mixture.means)).argmin(1)
    pick = lambda leaf: np.take_along_axis(np.asarray(leaf), nearest, 0)  # noqa: E731
    noise = (samples - pick(mixture.means)) / np.exp(pick(mixture.log_stds))
    quantiles = [-2.326348, -1.281552, -0.674490, 0.0, 0.674490, 1.281552, 2.326348]
    below = (noise[:, :, None] < np.array(quantiles)).mean(0)
    np.testing.assert_allclose(below, np.tile([0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99], (2, 1)), atol=0.015)
    columns = [noise[:, 0], noise[:, 1], nearest[:, 0], nearest[:, 1], noise[:, 0] ** 2, noise[:, 1] ** 2]
    correlation = np.corrcoef(columns) - np.eye(6)
    assert np.abs(correlation).max() < 0.03


def test_mean_and_variance_of_overlapping_components() -> None:
    mixture = MixtureDensity(*(leaf[:, :1] for leaf in (WIDE.logits, WIDE.means / 50, WIDE.log_stds)))
    samples = draw(mixture, 1.0)[:, 0]
    weights = softmax(np.asarray(mixture.logits, np.float64))
    mean = (weights * mixture.means).sum()
    variance = (weights * (np.exp(2 * mixture.log_stds) + mixture.means**2)).sum() - mean**2
    assert abs(samples.mean() - mean) < 4 * math.sqrt(variance / DRAWS)
    np.testing.assert_allclose(samples.var(), variance, rtol=0.05)


def test_one_component_needs_no_choice() -> None:
    mixture = MixtureDensity(jnp.array([[7.0]]), jnp.array([[2.0]]), jnp.array([[-1.0]]))
    samples = draw(mixture, 1.0)
    assert abs(samples.mean() - 2.0) < 4 * math.exp(-1) / math.sqrt(DRAWS)
    np.testing.assert_allclose(samples.std(), math.exp(-1), rtol=0.03)


def test_a_component_without_weight_is_never_drawn() -> None:
    logits = jnp.array([[-jnp.inf, 0.0], [0.0, -jnp.inf], [-jnp.inf, 0.0]])
    nearest = np.abs(draw(WIDE._replace(logits=logits), 1.0)[:, None] - np.asarray(WIDE.means)).argmin(1)
    assert set(nearest[:, 0]) == {1} and set(nearest[:, 1]) == {0, 2}


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5))
def test_kl_equals_its_closed_form_and_is_never_negative(pairs: list[tuple[float, float]]) -> None:
    mean, log_variance = np.array(pairs, np.float32).T
    expected = sum(
        0.5 * (math.exp(v) + m * m - 1 - v) for m, v in zip(mean.tolist(), log_variance.tolist(), strict=True)
    )
    got = float(gaussian_kl(jnp.array(mean), jnp.array(log_variance)))
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-5) and got >= -1e-6
    assert gaussian_kl(jnp.zeros(3), jnp.zeros(3)) == 0


def gaussian_log_density(x: Array, mean: Array, log_variance: Array) -> Array:
    return (-0.5 * (x - mean) ** 2 * jnp.exp(-log_variance) - 0.5 * log_variance - 0.5 * jnp.log(2 * jnp.pi)).sum(-1)


def test_kl_is_the_expected_log_ratio() -> None:
    mean, log_variance = jnp.array([0.7, -1.2]), jnp.array([-1.5, 0.8])
    spread = lambda leaf: jnp.broadcast_to(leaf, (DRAWS, 2))  # noqa: E731
    x = gaussian_sample(jax.random.key(0), spread(mean), spread(log_variance))
    zero = jnp.zeros((DRAWS, 2))
    ratio = gaussian_log_density(x, spread(mean), spread(log_variance)) - gaussian_log_density(x, zero, zero)
    assert abs(ratio.mean() - gaussian_kl(mean, log_variance)) < 4 * ratio.std() / math.sqrt(DRAWS)
    assert gaussian_kl(spread(mean), spread(log_variance)).shape == (DRAWS,)


def test_gaussian_samples_have_its_moments_and_carry_gradients() -> None:
    mean, log_variance = jnp.full(DRAWS, 3.0), jnp.full(DRAWS, -2.0)
    samples = gaussian_sample(jax.random.key(0), mean, log_variance)
    assert abs(samples.mean() - 3.0) < 4 * math.exp(-1) / math.sqrt(DRAWS)
    np.testing.assert_allclose(samples.std(), math.exp(-1), rtol=0.03)
    total = lambda mean, log_variance: gaussian_sample(jax.random.key(0), mean, log_variance).sum()  # noqa: E731
    by_mean, by_log_variance = jax.grad(total, (0, 1))(mean, log_variance)
    np.testing.assert_allclose(by_mean, 1.0)
    np.testing.assert_allclose(by_log_variance, 0.5 * (samples - 3.0), atol=1e-6)


def test_a_class_is_drawn_as_often_as_its_probability_says():
    probs = jnp.array([[0.1, 0.0, 0.6, 0.3], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.0, 1.0]])
    uniform = (jnp.arange(1000.0) + 0.5)[:, None] / 1000
    drawn = distributions.categorical_sample(
        jnp.broadcast_to(uniform, (1000, 3)), jnp.broadcast_to(probs, (1000, 3, 4))
    )
    counts = np.stack([np.bincount(np.asarray(drawn)[:, i], minlength=4) for i in range(3)])
    np.testing.assert_allclose(counts / 1000, probs, atol=0.002)


def test_a_drawn_vector_is_one_hot_and_has_the_gradient_of_its_probabilities():
    logits = jax.random.normal(jax.random.key(0), (50, 6))
    uniform = jax.random.uniform(jax.random.key(1), (50,))
    weight = jax.random.normal(jax.random.key(2), (50, 6))
    drawn = distributions.onehot_sample(uniform, jax.nn.softmax(logits))
    np.testing.assert_array_equal(np.sort(drawn, -1), np.eye(6)[[5] * 50])
    found = jax.grad(lambda x: (weight * distributions.onehot_sample(uniform, jax.nn.softmax(x))).sum())(logits)
    wanted = jax.grad(lambda x: (weight * jax.nn.softmax(x)).sum())(logits)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
