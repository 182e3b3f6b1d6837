"""How sure a mean is: intervals by the bootstrap, over runs or over episodes, and interquartile means of runs.

Source: Efron 1979, percentiles; for runs Agarwal et al. 2021, "Deep reinforcement learning at the edge of the
statistical precipice".
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dreamjax.reporting import figures
from dreamjax.reporting.results import result_row

LEVEL = 0.95  # of the intervals in results
_PERCENTILES = 50 * (1 - LEVEL), 50 * (1 + LEVEL)
_RESAMPLES = 2000  # of episodes
_PARTS = 30  # of a learning curve, as in the published plots of Hafner et al. 2023

Statistic = Callable[[np.ndarray], np.ndarray]  # of the last axis


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Return the mean of the middle half of the scores: a quarter is left out at either end. Shapes: [..., n] -> [...].

    As published, n / 4 is rounded down: of three scores, none is left out.
    """
    cut = scores.shape[-1] // 4
    return np.sort(scores, axis=-1)[..., cut : scores.shape[-1] - cut].mean(-1)


def bootstrap_interval(
    scores: np.ndarray, statistic: Statistic, level: float = LEVEL, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile interval of a statistic of all scores: of R runs [R], or of R runs of T tasks each [R, T].

    Runs are resampled with replacement, separately for each task, as published.

    Raises: ValueError if there are fewer than two runs, of which nothing can be said.
    """
    if scores.ndim not in (1, 2) or len(scores) < 2:
        raise ValueError(f"an interval needs two runs or more, as [runs] or [runs, tasks], got {scores.shape}")
    runs = scores.reshape(len(scores), -1)
    drawn = np.random.default_rng(seed).integers(len(runs), size=(draws, *runs.shape))
    values = statistic(np.take_along_axis(runs[None], drawn, 1).reshape(draws, -1))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def runs_row(name: str, scores: np.ndarray, unit: str, published: float | str | None = None) -> dict[str, Any]:
    """Make the row of a result from the score of each of R runs, with intervals if there are several.

    Of R runs of each of T tasks, scores have to be comparable; `n` is then R T. Shapes: [R] or [R, T].
    """
    row = result_row(name, scores.ravel(), f"{unit}, over runs", published)
    if len(scores) < 2:
        return row
    mean: Statistic = lambda values: values.mean(-1)  # noqa: E731
    return row | {
        "interval": list(bootstrap_interval(scores, mean)),
        "iqm": float(interquartile_mean(scores.ravel())),
        "iqm_interval": list(bootstrap_interval(scores, interquartile_mean)),
    }


class Band(NamedTuple):
    """A learning curve over runs of several tasks."""

    at: np.ndarray  # [N] environment steps
    mean: np.ndarray  # [N] over all runs of all tasks
    low: np.ndarray  # [N] end of the interval of the mean
    high: np.ndarray  # [N]


def band(at: np.ndarray, scores: np.ndarray) -> Band:
    """Average learning curves of comparable scores, with the interval of the mean at each point.

    Runs are resampled separately for each task, as in `bootstrap_interval`; of a single run there is no interval.

    Shapes: at [N], scores [R, T, N] of R runs of T tasks -> [N].
    """
    mean: Statistic = lambda values: values.mean(-1)  # noqa: E731
    points = np.moveaxis(scores, -1, 0)
    means = points.reshape(len(at), -1).mean(1)
    if len(scores) < 2:
        return Band(at, means, means, means)
    low, high = np.transpose([bootstrap_interval(one, mean, draws=_RESAMPLES) for one in points])
    return Band(at, means, low, high)


def band_of_runs(runs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Band:
    """Average learning curves of R runs of one task, in up to 30 equal parts of where they overlap.

    Between its points a curve is a line. Shapes: steps [T] and values [T] of each -> [N], 0 if they do not overlap.
    """
    first, last = max(steps[0] for steps, _ in runs), min(steps[-1] for steps, _ in runs)
    at = np.unique(np.concatenate([steps for steps, _ in runs]))
    at = at[(first <= at) & (at <= last)].astype(float)
    if not len(at):
        return Band(at, at, at, at)
    values = np.stack([np.interp(at, steps, values) for steps, values in runs])
    parts = np.array_split(np.arange(len(at)), min(_PARTS, len(at)))
    means = np.stack([values[:, part].mean(1) for part in parts], -1)
    return band(np.array([at[part].mean() for part in parts]), means[:, None])


class Estimate(NamedTuple):
    """A mean over episodes, or several."""

    mean: np.ndarray  # [...]
    std: np.ndarray  # [...] of what was averaged
    low: np.ndarray  # [...] end of the interval of the mean
    high: np.ndarray  # [...]
    n: np.ndarray  # [...] episodes that tell something


def estimate(values: np.ndarray) -> Estimate:
    """Average over the episodes whose value is not NaN.

    Steps and pieces of one episode have much in common, so that only whole episodes are resampled. The intervals are a
    little too narrow where there are few: with 10 they hold the true mean in some 90 % of cases.

    With fewer than two values, all but `n` is NaN. Shapes: values [E, ...] -> [...]. Raises: ValueError if E < 2.
    """
    values = np.asarray(values, np.float64)
    weights, known = _draws(len(values)), ~np.isnan(values)
    flat, counted = np.where(known, values, 0).reshape(len(values), -1), known.reshape(len(values), -1)
    n = known.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = (weights @ flat) / (weights @ counted)  # [_RESAMPLES, ...], NaN where a draw has none that tells
        mean = np.where(n < 2, np.nan, flat.sum(0).reshape(n.shape) / n)
        std = np.sqrt(np.where(known, (values - mean) ** 2, 0).sum(0) / n)
    drawn[:, n.ravel() < 2] = 0  # a column of NaN would be warned of
    low, high = (np.where(n < 2, np.nan, end.reshape(n.shape)) for end in np.nanpercentile(drawn, _PERCENTILES, axis=0))
    return Estimate(mean, std, np.minimum(low, mean), np.maximum(high, mean), n)  # whatever is rounded


def ratio(values: np.ndarray, others: np.ndarray) -> Estimate | None:
    """Divide the mean of values by that of others, where both are known of every episode.

    `std` is that of the draws. None where a draw of others has a mean of 0 or less, by which a ratio means nothing.
    Shapes: [E] and [E] -> []. Raises: ValueError if E < 2.
    """
    weights = _draws(len(values))
    below = weights @ np.asarray(others, np.float64)
    if (below <= 0).any():
        return None
    drawn = (weights @ np.asarray(values, np.float64)) / below
    low, high = np.percentile(drawn, _PERCENTILES)
    return Estimate(np.mean(values) / np.mean(others), drawn.std(), low, high, np.array(len(values)))


def _draws(episodes: int) -> np.ndarray:
    """How often each episode is drawn, in each of the resamples. Shapes: -> [_RESAMPLES, episodes]."""
    if episodes < 2:
        raise ValueError(f"an interval of a mean needs at least two episodes, got {episodes}")
    rng = np.random.default_rng(0)
    return rng.multinomial(episodes, np.full(episodes, 1 / episodes), _RESAMPLES).astype(np.float64)


def chart(panels: Mapping[str, Sequence[dict[str, Any]]], path: str | os.PathLike[str]) -> None:
    """Draw a panel for each quantity: a line for each row, with the mean, its interval, and the interquartile mean.

    Where a row has no interval there is its mean alone. Raises: ValueError if there is nothing to draw.
    """
    if not any(panels.values()):
        raise ValueError("there are no rows to draw")
    figure = figures.figure(4.6 * len(panels) + 1.5, 1.3 + 0.4 * max(map(len, panels.values())))
    # What is alike in all panels is shown on one scale, or a small difference in one looks like a large one in another.
    alike = lambda read: len({read(rows) for rows in panels.values()}) == 1  # noqa: E731
    one_unit, same_names = alike(lambda rows: frozenset(row.get("unit") for row in rows)), alike(_names)
    subplots = figure.subplots(1, len(panels), squeeze=False, sharex=one_unit, sharey=same_names)[0]
    for axes, (title, rows) in zip(subplots, panels.items(), strict=True):
        at = np.arange(len(rows))[::-1]
        means = np.array([row["mean"] for row in rows])
        ends = np.array([row.get("interval", (row["mean"], row["mean"])) for row in rows])
        axes.hlines(at, *ends.T, color=figures.BLUE, linewidth=5, alpha=0.35, label=f"{LEVEL:.0%} interval of the mean")
        axes.plot(means, at, "o", color=figures.BLUE, markersize=5, label="mean over runs")
        middle = [row.get("iqm", np.nan) for row in rows]
        if np.isfinite(middle).any():
            axes.plot(
                middle, at, "|", color=figures.ORANGE, markersize=13, markeredgewidth=2, label="interquartile mean"
            )
        axes.set_yticks(at, _names(rows))
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_title(title, fontsize=10, loc="left")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.tick_params(labelsize=8)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figures.save(figure, path)


def _names(rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(row["name"] for row in rows)


def learning(
    panels: Mapping[str, Mapping[str, Band]],
    path: str | os.PathLike[str],
    score: str,
    plain: str,
    *,
    one_scale: bool = True,
) -> None:
    """Draw panels side by side, several named a, b, c: the mean of each label against environment steps, with interval.

    `score` says what the vertical axis shows, on `one_scale` for all; the label `plain` is drawn in black, above the
    others. Raises: ValueError if there is nothing to draw.
    """
    if not any(panels.values()):
        raise ValueError("there are no curves to draw")
    figure = figures.figure(4.2 * len(panels), 4.6)
    for letter, axes, (title, bands) in zip(
        "abcdefgh", figure.subplots(1, len(panels), sharey=one_scale, squeeze=False)[0], panels.items(), strict=False
    ):
        colours = iter(figures.CYCLE * len(bands))
        for label, one in sorted(bands.items(), key=lambda pair: pair[0] == plain):  # a stable sort: the plain one last
            colour = "black" if label == plain else next(colours)
            axes.fill_between(one.at, one.low, one.high, color=colour, alpha=0.12, linewidth=0)
            axes.plot(one.at, one.mean, color=colour, linewidth=2 if label == plain else 1.5, label=label)
        axes.set_title(f"{letter}  {title}" if len(panels) > 1 else title, fontsize=10, loc="left")
        axes.set_xlabel("environment steps", fontsize=9)
        figures.tidy(axes)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=8)
    figure.axes[0].set_ylabel(score, fontsize=9)
    figures.save(figure, path)
