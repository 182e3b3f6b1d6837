"""The chart of how far dreams can be trusted: what they promise, and their errors by horizon, with intervals."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dreamjax.reporting.figures import BLUE, CYCLE, GREY, ORANGE, grid, save, tidy
from dreamjax.trust.measurement import BEST, GAME, RETURN, Measured, temperature
from dreamjax.trust.open_loop import FILTERING, LAST, OTHER
from dreamjax.trust.promise import Learned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What stands beside dreams is grey or black, and told apart by its dashes.
_BESIDE = {LAST: ("black", "--"), OTHER: (GREY, "-."), FILTERING: (GREY, ":")}
_AXES = {"reward": "absolute error", "goes on": "share of cases in which they disagree"}
_TITLES = {"goes on": "whether the episode goes on"}


def draw(measured: Sequence[Measured], path: str | os.PathLike[str], learned: Learned | None = None) -> None:
    """Draw a panel of returns by temperature, perhaps one along training, and one of each error by horizon.

    What no dream gets wrong, such as a reward that is always the same, has no panel. Intervals are shaded, or bars.
    """
    quantities = list(dict.fromkeys(one.quantity for one in measured if one.ahead))
    wrong = {one.quantity for one in measured if one.by.startswith("dream@") and one.high > 0}
    quantities = [name for name in quantities if name in wrong]
    drawn, all_axes = grid(1 + (learned is not None) + len(quantities))
    width, height = drawn.get_size_inches()
    drawn.set_size_inches(width, 1.12 * height)  # room for the legend
    _returns(all_axes[0], measured)
    if learned is not None:
        _along_training(all_axes[1], measured, learned)
    panels = all_axes[-len(quantities) :] if quantities else []
    for axes, quantity in zip(panels, quantities, strict=True):
        _errors(axes, quantity, [one for one in measured if one.quantity == quantity and one.ahead])
    if panels:
        handles, labels = panels[0].get_legend_handles_labels()
        columns = len(labels) if len(labels) <= 7 else 5
        drawn.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)
    save(drawn, path)


def _returns(axes: "Axes", measured: Sequence[Measured]) -> None:
    of_return = {one.by: one for one in measured if one.quantity == RETURN}
    dreams = [one for by, one in of_return.items() if by not in (GAME, BEST)]
    at = np.arange(len(dreams))
    for place, colour, one in zip(at, CYCLE, dreams, strict=False):
        bars = np.abs([[one.low - one.mean], [one.high - one.mean]])
        axes.errorbar([place], [one.mean], bars, fmt="o", color=colour, ms=6, capsize=4, lw=1.6)
    _game(axes, of_return[GAME])
    best = of_return[BEST]
    axes.axhline(best.mean, color=GREY, linewidth=1.2, linestyle=":", label=f"best of {best.n} real episodes")
    axes.set_title("return that dreams promise", fontsize=10, loc="left")
    tidy(axes)
    axes.set_xlim(-0.6, len(dreams) - 0.4)
    axes.set_xticks(at, [f"{temperature(one.by):g}" for one in dreams])
    axes.set_xlabel("temperature of the dream", fontsize=9)
    _legend(axes)


def _game(axes: "Axes", game: Measured) -> None:
    axes.axhspan(game.low, game.high, color="black", alpha=0.12, linewidth=0)
    axes.axhline(game.mean, color="black", linewidth=1.4, label="what the game pays")


def _along_training(axes: "Axes", measured: Sequence[Measured], learned: Learned) -> None:
    axes.plot(*learned.dreamed, color=BLUE, linewidth=1.4, label="the population, in its dreams")
    if learned.paid is not None:
        axes.plot(*learned.paid, "s-", color=ORANGE, ms=4, linewidth=1.4, label="its mean, in the game")
    else:
        _game(axes, next(one for one in measured if (one.quantity, one.by) == (RETURN, GAME)))
    axes.set_title("return while it was trained", fontsize=10, loc="left")
    tidy(axes)
    axes.set_xlabel("generation", fontsize=9)
    _legend(axes)


def _errors(axes: "Axes", quantity: str, errors: Sequence[Measured]) -> None:
    labels = list(dict.fromkeys(one.by for one in errors))
    dreams = [label for label in labels if label not in _BESIDE]
    styles = {label: (colour, "-") for label, colour in zip(dreams, CYCLE * 3, strict=False)} | _BESIDE
    for label in labels:
        colour, dashes = styles[label]
        of_label = [one for one in errors if one.by == label]
        ahead, mean, low, high = np.array([(one.ahead, one.mean, one.low, one.high) for one in of_label]).T
        shown = f"dream, temperature {temperature(label):g}" if label in dreams else label
        marker = "o" if label in dreams else None
        axes.plot(ahead, mean, dashes, color=colour, linewidth=1.6, marker=marker, ms=3, label=shown)
        axes.fill_between(ahead, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.set_title(_TITLES.get(quantity, quantity), fontsize=10, loc="left")
    axes.set_ylabel(_AXES.get(quantity, "error (1: another episode)"), fontsize=8)
    tidy(axes)
    axes.set_xscale("log")
    ticks = sorted({one.ahead for one in errors})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("steps after the last that was seen", fontsize=9)


def _legend(axes: "Axes") -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(min(0, low), high + 0.35 * (high - min(0, low)))  # room for the legend
    axes.legend(frameon=False, fontsize=8, loc="upper left")
