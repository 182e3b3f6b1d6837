"""How sure a score over few runs is: interquartile means, and intervals by the bootstrap.

Source: Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice".
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dreamjax._extras import extra
from dreamjax.reporting.results import result_row
from dreamjax.storage.atomic import replacing

LEVEL = 0.95  # of the intervals in results

Statistic = Callable[[np.ndarray], np.ndarray]  # of the last axis


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Return the mean of the middle half of the scores: a quarter is left out at either end. Shapes: [..., n] -> [...].

    As published, what a quarter of n leaves over at either end is rounded down: of three scores, none is left out.
    """
    cut = scores.shape[-1] // 4
    return np.sort(scores, axis=-1)[..., cut : scores.shape[-1] - cut].mean(-1)


def bootstrap_interval(
    scores: np.ndarray, statistic: Statistic, level: float = LEVEL, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile interval of a statistic of all scores: of R runs [R], or of R runs of T tasks each [R, T].

    Runs are drawn anew, with replacement, and those of each task by themselves, as published.

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
    """Make the row of a result from the score of each of R runs, with intervals if there are several. Shapes: [R]."""
    row = result_row(name, scores, f"{unit}, over runs", published)
    if len(scores) < 2:
        return row
    mean: Statistic = lambda values: values.mean(-1)  # noqa: E731
    return row | {
        "interval": list(bootstrap_interval(scores, mean)),
        "iqm": float(interquartile_mean(scores)),
        "iqm_interval": list(bootstrap_interval(scores, interquartile_mean)),
    }


def chart(panels: Mapping[str, Sequence[dict[str, Any]]], path: str | os.PathLike[str]) -> None:
    """Draw a panel for each quantity: a line for each row, with the mean, its interval, and the interquartile mean.

    Where a row has no interval there is its mean alone. Raises: ValueError if there is nothing to draw.
    """
    if not any(panels.values()):
        raise ValueError("there are no rows to draw")
    with extra("experiments", "a plot"):
        from matplotlib.figure import Figure
    most = max(map(len, panels.values()))
    figure = Figure(figsize=(4.6 * len(panels) + 1.5, 1.3 + 0.4 * most), layout="constrained")
    for axes, (title, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        at = np.arange(len(rows))[::-1]
        means = np.array([row["mean"] for row in rows])
        ends = np.array([row.get("interval", (row["mean"], row["mean"])) for row in rows])
        axes.hlines(at, *ends.T, color="#0072B2", linewidth=5, alpha=0.35, label=f"{LEVEL:.0%} interval of the mean")
        axes.plot(means, at, "o", color="#0072B2", markersize=5, label="mean over runs")
        middle = [row.get("iqm", np.nan) for row in rows]
        if np.isfinite(middle).any():
            axes.plot(middle, at, "|", color="#D55E00", markersize=13, markeredgewidth=2, label="interquartile mean")
        axes.set_yticks(at, [row["name"] for row in rows])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_title(title, fontsize=10, loc="left")
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.tick_params(labelsize=8)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)
