"""Means over episodes, and between which values chance could have moved them.

Steps and pieces of one episode have much in common, so that only whole episodes are drawn anew: a bootstrap over
episodes. Its intervals are those of 95 %, a little too narrow where there are few episodes: with 10 they hold the true
mean in some 90 % of cases.

Source: Efron 1979, percentiles.
"""

from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
PERCENTILES = 2.5, 97.5


class Estimate(NamedTuple):
    """A mean over episodes, or several."""

    mean: np.ndarray  # [...]
    std: np.ndarray  # [...] of what was averaged
    low: np.ndarray  # [...] end of the interval of the mean
    high: np.ndarray  # [...]
    n: np.ndarray  # [...] episodes that tell something


def estimate(values: np.ndarray) -> Estimate:
    """Average over episodes, of which those count that tell something, where a value is not NaN.

    Where fewer than two do, all but `n` is NaN. Shapes: values [E, ...] -> [...]. Raises: ValueError if E < 2.
    """
    values = np.asarray(values, np.float64)
    weights, known = _draws(len(values)), ~np.isnan(values)
    flat, counted = np.where(known, values, 0).reshape(len(values), -1), known.reshape(len(values), -1)
    n = known.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = (weights @ flat) / (weights @ counted)  # [RESAMPLES, ...], NaN where a draw has none that tells
        mean = np.where(n < 2, np.nan, flat.sum(0).reshape(n.shape) / n)
        std = np.sqrt(np.where(known, (values - mean) ** 2, 0).sum(0) / n)
    drawn[:, n.ravel() < 2] = 0  # a column of NaN would be warned of
    low, high = (np.where(n < 2, np.nan, end.reshape(n.shape)) for end in np.nanpercentile(drawn, PERCENTILES, axis=0))
    return Estimate(mean, std, np.minimum(low, mean), np.maximum(high, mean), n)  # whatever is rounded


def ratio(values: np.ndarray, others: np.ndarray) -> Estimate | None:
    """Divide the mean of values by that of others, where both are known of every episode.

    `std` is that of the draws. None where a draw of others has a mean of 0 or less, beside which nothing is so many
    times as much. Shapes: [E] and [E] -> []. Raises: ValueError if E < 2.
    """
    weights = _draws(len(values))
    below = weights @ np.asarray(others, np.float64)
    if (below <= 0).any():
        return None
    drawn = (weights @ np.asarray(values, np.float64)) / below
    low, high = np.percentile(drawn, PERCENTILES)
    return Estimate(np.mean(values) / np.mean(others), drawn.std(), low, high, np.array(len(values)))


def _draws(episodes: int) -> np.ndarray:
    """How often each episode is drawn, in each of the resamples. Shapes: -> [RESAMPLES, episodes]."""
    if episodes < 2:
        raise ValueError(f"an interval of a mean needs at least two episodes, got {episodes}")
    rng = np.random.default_rng(0)
    return rng.multinomial(episodes, np.full(episodes, 1 / episodes), RESAMPLES).astype(np.float64)
