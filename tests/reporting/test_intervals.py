"""Interquartile means and bootstrap intervals, against values worked out by hand and against rliable's definitions."""

import itertools

import numpy as np
import pytest

from dreamjax.reporting.intervals import (
    band,
    band_of_runs,
    bootstrap_interval,
    chart,
    interquartile_mean,
    learning,
    runs_row,
)


@pytest.mark.parametrize(
    ("scores", "middle"),
    [
        ([7.0], 7.0),
        ([1.0, 2.0, 9.0], 4.0),  # a quarter of three is less than one
        ([0.0, 2.0, 4.0, 100.0], 3.0),
        ([5.0, 1.0, 3.0, 2.0, 100.0, 4.0, -50.0, 6.0], 3.5),  # 2, 3, 4, 5
        (list(range(10)), 4.5),  # of ten, two are left out at either end
    ],
)
def test_interquartile_means(scores: list[float], middle: float) -> None:
    assert interquartile_mean(np.array(scores, float)) == pytest.approx(middle)
    assert interquartile_mean(np.array([scores, scores], float)) == pytest.approx([middle, middle])


def test_the_interval_is_that_of_all_draws_there_are() -> None:
    """Three runs can be drawn in 27 ways, whose means have exact quantiles."""
    scores = np.array([0.0, 1.0, 5.0])
    means = [np.mean(drawn) for drawn in itertools.product(scores, repeat=3)]
    found = bootstrap_interval(scores, lambda x: x.mean(-1), level=0.8, draws=200_000)
    # Of 27, the lowest tenth ends within the three at 1/3, the highest begins within the three at 11/3.
    assert found == pytest.approx(np.quantile(means, [0.1, 0.9], method="inverted_cdf"))


def test_runs_of_each_task_are_drawn_by_themselves() -> None:
    """With tasks that differ by a constant, a mean over tasks varies as the mean of independent draws does."""
    rng = np.random.default_rng(0)
    runs = rng.normal(size=(8, 1)).repeat(4, 1) + [0.0, 10.0, 20.0, 30.0]  # the same runs in each of four tasks
    mean = lambda x: x.mean(-1)  # noqa: E731
    one, four = (np.subtract(*bootstrap_interval(some, mean)[::-1]) for some in (runs[:, :1], runs))
    assert four == pytest.approx(one / 2, rel=0.05)  # drawn together, it would be as wide


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    mean = lambda x: x.mean(-1)  # noqa: E731
    covered = 0
    for number in range(200):
        low, high = bootstrap_interval(rng.normal(3.0, 1.0, 30), mean, level=0.9, draws=400, seed=number)
        covered += low <= 3.0 <= high
    assert 0.83 <= covered / 200 <= 0.95  # percentile intervals of 30 are a little narrow


def test_one_run_has_no_interval() -> None:
    with pytest.raises(ValueError, match="two runs or more"):
        bootstrap_interval(np.ones(1), lambda x: x.mean(-1))
    assert "interval" not in runs_row("a", np.ones(1), "return")
    row = runs_row("a", np.array([1.0, 2.0, 3.0, 10.0]), "return", 5)
    assert (row["mean"], row["iqm"], row["n"], row["unit"], row["published"]) == (4, 2.5, 4, "return, over runs", 5)
    assert 1 <= row["interval"][0] < 4 < row["interval"][1] <= 10
    assert runs_row("a", np.array([1.0, 2.0, 3.0, 10.0]), "return", 5) == row  # drawn alike


def test_a_chart_has_a_line_for_each_row(tmp_path) -> None:
    rows = [runs_row("one", np.arange(4.0), "return"), runs_row("two", np.ones(1), "return")]
    chart({"return": rows, "steps": rows[:1]}, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="no rows"):
        chart({"return": []}, tmp_path / "empty.png")


def test_learning_curves_have_the_interval_of_each_point(tmp_path) -> None:
    scores = np.random.default_rng(0).normal(size=(5, 2, 3)) * [0.0, 1.0, 2.0]  # runs, tasks, points
    curve = band(np.array([10, 20, 30]), scores)
    np.testing.assert_allclose(curve.mean, scores.mean((0, 1)))
    assert curve.low[0] == curve.high[0] == 0
    for i in (1, 2):
        expected = bootstrap_interval(scores[..., i], lambda x: x.mean(-1))
        assert (curve.low[i], curve.high[i]) == pytest.approx(expected, abs=0.1)
    alone = band(curve.at, scores[:1])
    np.testing.assert_array_equal(alone.low, alone.high)
    learning({"one": {"plain": curve, "other": alone}}, tmp_path / "learning.png", "score", "plain")
    assert (tmp_path / "learning.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="no curves"):
        learning({}, tmp_path / "none.png", "score", "plain")


def test_a_row_of_several_tasks_counts_every_run() -> None:
    scores = np.arange(10.0).reshape(5, 2)
    row = runs_row("both", scores, "return")
    assert (row["n"], row["mean"], row["iqm"]) == (10, 4.5, 4.5)
    assert row["interval"] == pytest.approx(bootstrap_interval(scores, lambda x: x.mean(-1)))


def test_runs_are_averaged_where_all_have_a_point() -> None:
    steps = np.arange(120)
    runs = [(steps, np.full(120, 1.0)), (steps[steps != 7], np.full(119, 3.0)), (steps[:90], np.arange(90.0))]
    found = band_of_runs(runs)
    assert len(found.at) == 30 and found.at[0] == 1.0 and found.at[-1] == 88.0  # of 90 points, three in a part
    np.testing.assert_allclose(found.mean, (1 + 3 + found.at) / 3)
    assert (found.low <= found.mean).all() and (found.mean <= found.high).all() and found.high[-1] > 2 * found.mean[-1]
    np.testing.assert_array_equal(band_of_runs([(steps[:3], steps[:3])]).mean, [0, 1, 2])  # few are as they are
    apart = band_of_runs([(np.array([10, 30]), np.ones(2)), (np.array([20, 40]), np.array([1.0, 3.0]))])
    np.testing.assert_array_equal(apart.at, [20, 30])  # they share no step
    np.testing.assert_array_equal(apart.mean, [1, 1.5])
    assert not len(band_of_runs([(np.array([1]), np.ones(1)), (np.array([2]), np.ones(1))]).at)
