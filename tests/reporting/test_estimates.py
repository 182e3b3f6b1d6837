"""Intervals hold what they promise, count episodes, and leave out what tells nothing."""

import numpy as np
import pytest

from dreamjax.reporting.intervals import estimate, ratio

RNG = np.random.default_rng(3)


def test_an_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    for draw, lowest in ((RNG.normal, 0.91), (RNG.exponential, 0.87)):
        found = estimate(draw(size=(30, 1000)))
        true = 0.0 if draw == RNG.normal else 1.0
        share = ((found.low <= true) & (true <= found.high)).mean()
        assert lowest < share < 0.97


def test_an_interval_is_as_wide_as_theory_has_it() -> None:
    values = RNG.normal(5, 2, size=400)
    found = estimate(values)
    assert found.mean == pytest.approx(values.mean()) and found.std == pytest.approx(values.std())
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert (found.low + found.high) / 2 == pytest.approx(found.mean, abs=0.05) and found.n == 400


def test_episodes_that_tell_nothing_do_not_count() -> None:
    values = RNG.normal(size=(6, 4))
    values[:, 1], values[1:, 2], values[3:, 3] = np.nan, np.nan, np.nan
    found = estimate(values)
    assert found.n.tolist() == [6, 0, 1, 3]
    np.testing.assert_allclose(found.mean, [values[:, 0].mean(), np.nan, np.nan, values[:3, 3].mean()])
    assert np.isnan([found.low[1:3], found.high[1:3], found.std[1:3]]).all()
    few = values[:3, 3]
    assert few.min() <= found.low[3] < found.mean[3] < found.high[3] <= few.max()


def test_equal_values_have_no_interval_and_one_episode_is_refused() -> None:
    found = estimate(np.full((5, 2), 3.0))
    assert found.low.tolist() == found.high.tolist() == [3, 3] and found.std.tolist() == [0, 0]
    with pytest.raises(ValueError, match="at least two episodes, got 1"):
        estimate(np.ones(1))


def test_a_ratio_is_that_of_pairs() -> None:
    others = RNG.uniform(1, 9, size=50)
    twice = ratio(2 * others, others)
    assert twice is not None  # what varies in common does not make it uncertain
    assert (twice.mean, twice.low, twice.high) == pytest.approx((2, 2, 2))
    free = ratio(RNG.permutation(2 * others), others)
    assert free is not None and free.low < 2 < free.high and free.high - free.low > 0.3
    assert ratio(others, others - others.mean()) is None
