"""Plots of a run."""

import itertools
import os
from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np

from dreamjax.reporting.figures import BLUE, CYCLE, GREY, ORANGE, figure, grid, label_lowest, save, tidy

Series = tuple[np.ndarray, np.ndarray]  # steps [T], values [T]

_SMOOTH_FROM = 60  # points; fewer are drawn as they are


def against_sum(stage: Mapping[str, Series], summed: str, names: Sequence[str]) -> tuple[np.ndarray, ...]:
    """Return metrics of a stage against the running sum of another, such as frames, at the steps that have them all.

    `stage` is one of those that `read_metrics` returns, `summed` a metric that was written at every step.
    Shapes: -> the sum up to each step [N], then each of the `names` [N].
    """
    steps, used = stage[summed]
    common = reduce(np.intersect1d, [stage[name][0] for name in names])
    total = np.cumsum(used)[np.searchsorted(steps, common)]
    return total, *(stage[name][1][np.isin(stage[name][0], common)] for name in names)


def learning_curves(metrics: Mapping[str, Mapping[str, Series]], path: str | os.PathLike[str]) -> None:
    """Plot one panel per metric of each stage, as `read_metrics` returns them, with a running mean if points are many.

    Raises:
        ValueError: there is nothing to draw.
    """
    panels = [(f"{stage} · {name}", *series) for stage, names in metrics.items() for name, series in names.items()]
    panels = [panel for panel in panels if len(panel[1])]
    if not panels:
        raise ValueError("there are no metrics to draw")
    drawn, all_axes = grid(len(panels))
    for axes, (title, steps, values) in zip(all_axes, panels, strict=True):
        is_long = len(steps) >= _SMOOTH_FROM
        marker = "o" if len(steps) <= 20 else None
        axes.plot(steps, values, color=BLUE, linewidth=1, alpha=0.3 if is_long else 1, marker=marker, markersize=3)
        if is_long:
            axes.plot(steps, _running_mean(values, len(values) // 20), color=BLUE, linewidth=1.6)
        axes.set_title(title, fontsize=10, loc="left")
        tidy(axes)
        axes.locator_params("x", integer=True)
    label_lowest(all_axes, "step")
    save(drawn, path)


def return_curves(
    tasks: Mapping[str, Mapping[str, Series]],
    path: str | os.PathLike[str],
    published: Mapping[str, Series] | None = None,
) -> None:
    """Plot one panel per task: the return of every episode against the frames before it, and their means.

    `tasks` holds the runs of each task by label, `published` the known scores by task, as curves or single points. A
    panel is as wide as its longest run; if no published point falls into it, the first is drawn as a horizontal line.
    Means are taken over up to 30 equal parts of a run, as in the published plots of Hafner et al. 2023.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not any(len(frames) for runs in tasks.values() for frames, _ in runs.values()):
        raise ValueError("there are no episodes to draw")
    drawn, all_axes = grid(len(tasks))
    for axes, (task, runs) in zip(all_axes, tasks.items(), strict=True):
        for colour, (label, (frames, returns)) in zip(itertools.cycle(CYCLE), runs.items(), strict=False):
            axes.plot(frames, returns, ".", color=colour, markersize=2.5, alpha=0.35)
            axes.plot(*_piecewise_mean(frames, returns), "o-", color=colour, linewidth=1.6, markersize=3, label=label)
        end = max(frames[-1] for frames, _ in runs.values() if len(frames))
        axes.set_xlim(0, 1.02 * end)
        if published and task in published:
            frames, scores = published[task]
            reached = frames <= 1.02 * end
            if reached.any():
                axes.plot(
                    frames[reached],
                    scores[reached],
                    "--o",
                    color=GREY,
                    linewidth=1.2,
                    markersize=2.5,
                    label="published",
                )
            else:
                axes.axhline(scores[0], linestyle="--", color=GREY, linewidth=1.2, label=f"published, at {frames[0]:,}")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8, loc="best")
        axes.set_title(task, fontsize=10, loc="left")
        tidy(axes)
    label_lowest(all_axes, "frames")
    save(drawn, path)


def fitness_curve(stage: Mapping[str, Series], path: str | os.PathLike[str], label: str = "return") -> None:
    """Plot a stage of evolution: mean and range of the population's fitness over generations.

    `stage` is one of those that `read_metrics` returns. Where it has `evaluation_mean` and `evaluation_std`, those of
    the mean policy in episodes of its own, they are drawn as points with error bars.
    """
    generations, mean = stage["fitness_mean"]
    low, high = stage["fitness_min"][1], stage["fitness_max"][1]
    drawn = figure(7, 4)
    axes = drawn.subplots()
    axes.fill_between(generations, low, high, color=BLUE, alpha=0.18, linewidth=0, label="population, worst to best")
    axes.plot(generations, mean, color=BLUE, linewidth=1.6, label="population mean")
    if "evaluation_mean" in stage:
        (at, means), (_, stds) = stage["evaluation_mean"], stage["evaluation_std"]
        axes.errorbar(at, means, stds, fmt="o", color=ORANGE, ms=4, capsize=3, lw=1.2, label="evaluation, mean ± std")
    axes.set_xlabel("generation")
    axes.set_ylabel(label)
    axes.legend(frameon=False, fontsize=9, loc="best")
    tidy(axes)
    axes.locator_params("x", integer=True)
    save(drawn, path)


def series_with_bars(
    panels: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]],
    label: str,
    path: str | os.PathLike[str],
) -> None:
    """Plot one panel per quantity: (at [N], means [N], standard deviations [N]) by name, with error bars.

    Each name has one colour in all panels, and one legend below them says which.
    """
    drawn, all_axes = grid(len(panels))
    names = dict.fromkeys(name for kinds in panels.values() for name in kinds)
    colours = dict(zip(names, itertools.cycle(CYCLE)))
    for axes, (title, kinds) in zip(all_axes, panels.items(), strict=True):
        for i, (name, (at, means, stds)) in enumerate(kinds.items()):
            beside = at + 0.01 * (i - (len(kinds) - 1) / 2) * np.ptp(at)  # so that bars do not hide one another
            axes.errorbar(
                beside, means, stds, fmt="o-", color=colours[name], ms=4, capsize=3, lw=1.4, elinewidth=1, label=name
            )
        if all(np.issubdtype(at.dtype, np.integer) for at, _, _ in kinds.values()):
            axes.locator_params("x", integer=True)
        axes.set_title(title, fontsize=10, loc="left")
        tidy(axes)
    label_lowest(all_axes, label)
    shown = {name: line for axes in all_axes for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    drawn.legend(shown.values(), shown, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    save(drawn, path)


def cross_table(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    labels: tuple[str, str],
    path: str | os.PathLike[str],
) -> None:
    """Draw a table of numbers [R, C], shaded by size; `labels` name the vertical and the horizontal axis.

    Raises:
        ValueError: the number of names differs from that of rows or columns.
    """
    if values.shape != (len(rows), len(columns)):
        raise ValueError(f"a table of {values.shape} needs as many names, got {len(rows)} and {len(columns)}")
    drawn = figure(1.1 + 0.8 * len(columns), 0.9 + 0.5 * len(rows))
    axes = drawn.subplots()
    axes.imshow(values, cmap="Blues", aspect="auto", vmin=0)
    for (i, j), value in np.ndenumerate(values):
        colour = "white" if value > 0.6 * values.max() else "black"
        axes.text(j, i, f"{value:,.0f}", ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylabel(labels[0])
    axes.set_xlabel(labels[1])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=9)
    save(drawn, path)


def reconstruction_sheet(originals: np.ndarray, reconstructions: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Draw frames [N, H, W, 3] (uint8, or floats in 0..1) in pairs of rows, each original above its reconstruction.

    Raises:
        ValueError: the shapes differ or are not those of frames.
    """
    if originals.shape != reconstructions.shape or originals.ndim != 4 or not len(originals):
        raise ValueError(
            f"needs two equal stacks of frames [N, H, W, 3], got {originals.shape} and {reconstructions.shape}"
        )
    columns = min(8, len(originals))
    bands = -(-len(originals) // columns)
    drawn = figure(1.25 * columns + 0.4, 2.65 * bands)
    drawn.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
    grid = drawn.subplots(2 * bands, columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    for index, (original, reconstruction) in enumerate(zip(originals, reconstructions, strict=True)):
        band, column = divmod(index, columns)
        for offset, (frame, name) in enumerate([(original, "original"), (reconstruction, "decoded")]):
            axes = grid[2 * band + offset, column]
            axes.imshow(frame if frame.dtype == np.uint8 else np.clip(frame, 0, 1), interpolation="nearest")
            if column == 0:
                axes.set_ylabel(name, fontsize=8, color=GREY)
    save(drawn, path)


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Return the centred mean, over fewer points at the ends."""
    kernel = np.ones(2 * max(1, width // 2) + 1)
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def _piecewise_mean(at: np.ndarray, values: np.ndarray, pieces: int = 30) -> Series:
    """Return the mean position and the mean value of the points in each of some equal parts of [0, end]."""
    piece = np.minimum(at * pieces // max(1, at.max(initial=0)), pieces - 1)
    found = np.unique(piece)
    return np.array([at[piece == i].mean() for i in found]), np.array([values[piece == i].mean() for i in found])
