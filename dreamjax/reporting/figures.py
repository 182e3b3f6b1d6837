"""What all plots share: drawn without a display, in colours for all kinds of colour vision (Okabe and Ito)."""

import os
from typing import TYPE_CHECKING

from dreamjax._extras import extra
from dreamjax.storage.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
CYCLE = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def figure(width: float, height: float) -> "Figure":
    """Make a figure of this many inches."""
    with extra("experiments", "a plot"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), layout="constrained")


def grid(panels: int) -> "tuple[Figure, list[Axes]]":
    """Make a figure with this number of panels, three in a row."""
    columns = min(3, panels)
    rows = -(-panels // columns)
    drawn = figure(max(4.2 * columns, 6), 2.6 * rows if panels > 1 else 3.6)
    all_axes = drawn.subplots(rows, columns, squeeze=False).ravel()
    for axes in all_axes[panels:]:
        axes.set_visible(False)
    return drawn, list(all_axes[:panels])


def label_lowest(all_axes: "list[Axes]", label: str) -> None:
    """Label the horizontal axis of the lowest panel of each column."""
    for axes in all_axes[-3:]:
        axes.set_xlabel(label, fontsize=9)


def tidy(axes: "Axes") -> None:
    """Leave of a panel's frame what helps to read it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, color=GREY)
    axes.margins(x=0.02)
    axes.ticklabel_format(axis="both", style="sci", scilimits=(-3, 5), useMathText=True)


def save(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure, all or nothing, in the format of the suffix."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130)
