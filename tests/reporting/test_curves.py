"""Plots: the data is in the picture, whatever its length, and nothing to draw is an error."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dreamjax.reporting.curves import (
    against_sum,
    cross_table,
    fitness_curve,
    learning_curves,
    reconstruction_sheet,
    return_curves,
    series_with_bars,
)


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that were saved, to look into."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw))[1])
    return figures


def series(length: int) -> tuple[np.ndarray, np.ndarray]:
    steps = np.arange(length) * 10
    return steps, 1 / (1.0 + steps)


def test_learning_curves_have_a_panel_per_metric(tmp_path, drawn):
    metrics = {"vision": {"loss": series(5), "kl": series(300)}, "memory": {"loss": series(1), "gone": series(0)}}
    learning_curves(metrics, tmp_path / "curves.png")
    panels = [axes for axes in drawn[0].axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == ["vision · loss", "vision · kl", "memory · loss"]
    np.testing.assert_array_equal(panels[0].lines[0].get_ydata(), series(5)[1])
    assert len(panels[0].lines) == 1 and len(panels[1].lines) == 2  # the long one has its running mean
    np.testing.assert_array_equal(panels[1].lines[0].get_ydata(), series(300)[1])
    assert Image.open(tmp_path / "curves.png").size[0] > 1000


def test_the_running_mean_of_a_line_is_the_line(tmp_path, drawn):
    steps = np.arange(100)
    learning_curves({"vision": {"loss": (steps, np.full(100, 3.0))}}, tmp_path / "curves.png")
    np.testing.assert_allclose(drawn[0].axes[0].lines[1].get_ydata(), 3.0)


def test_no_metrics_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="no metrics"):
        learning_curves({"vision": {"loss": series(0)}}, tmp_path / "curves.png")
    assert list(tmp_path.iterdir()) == []


def test_return_curves_show_episodes_and_the_means_of_their_pieces(tmp_path, drawn):
    frames = np.array([10, 10, 20, 300, 300, 300])
    returns = np.array([1.0, 3.0, 8.0, 1.0, 2.0, 6.0])
    return_curves({"walk": {"seed 0": (frames, returns), "seed 1": (frames, returns + 1)}}, tmp_path / "a.png")
    (axes,) = drawn[0].axes
    episodes, means, *_ = axes.lines
    np.testing.assert_array_equal(episodes.get_xydata(), np.array([frames, returns]).T)
    np.testing.assert_allclose(means.get_xydata(), [[10, 2], [20, 8], [300, 3]])  # pieces of 10 frames
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["seed 0", "seed 1"]
    assert (tmp_path / "a.png").exists()


def test_return_curves_show_what_is_published_as_far_as_a_run_went(tmp_path, drawn):
    run = {"": (np.array([50, 100]), np.array([1.0, 2.0]))}
    published = {"a": (np.array([50, 100, 900]), np.array([3.0, 4.0, 5.0])), "b": (np.array([900]), np.array([7.0]))}
    return_curves({"a": run, "b": run, "c": run}, tmp_path / "a.png", published)
    a, b, c = drawn[0].axes
    np.testing.assert_array_equal(a.lines[-1].get_xydata(), [[50, 3], [100, 4]])
    np.testing.assert_array_equal(b.lines[-1].get_ydata(), [7, 7])
    assert b.get_legend().get_texts()[0].get_text() == "published, at 900"
    assert len(c.lines) == 2 and c.get_legend() is None
    with pytest.raises(ValueError, match="no episodes"):
        return_curves({"a": {"": (np.zeros(0), np.zeros(0))}}, tmp_path / "b.png")


def test_a_fitness_curve_shows_range_mean_and_evaluations(tmp_path, drawn):
    generations = np.arange(30)
    mean = generations * 2.0
    stage = {f"fitness_{name}": (generations, mean + by) for name, by in (("mean", 0), ("min", -1), ("max", 4))}
    at, evaluations = np.array([0, 10, 20]), np.array([1.0, 2.0, 3.0])
    evaluated = stage | {"evaluation_mean": (at, evaluations), "evaluation_std": (at, evaluations / 10)}
    fitness_curve(evaluated, tmp_path / "a.png", "tics")
    (axes,) = drawn[0].axes
    assert axes.get_ylabel() == "tics" and axes.get_xlabel() == "generation"
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), mean)
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), np.array([at, evaluations]).T)
    band = axes.collections[0].get_datalim(axes.transData)
    assert (band.y0, band.y1) == (-1.0, 62.0)
    fitness_curve(stage, tmp_path / "b.png")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png"}


@pytest.mark.parametrize("count", [1, 3, 11])
def test_a_reconstruction_sheet_pairs_each_original_with_what_came_of_it(tmp_path, drawn, count):
    originals = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    reconstructions = originals / 255 * 1.01  # floats that leave 0..1 a little
    reconstruction_sheet(
        originals[:, :, :, :], (reconstructions * 255).clip(0, 255).astype(np.uint8), tmp_path / "a.png"
    )
    images = [axes.images[0].get_array() for axes in drawn[0].axes if axes.images]
    assert len(images) == 2 * count
    shown = [images[index] for index in range(min(count, 8))]
    np.testing.assert_array_equal(np.stack(shown), originals[:8])
    reconstruction_sheet(reconstructions, reconstructions, tmp_path / "b.png")
    assert Image.open(tmp_path / "b.png").size[1] > 100


def test_a_reconstruction_sheet_needs_equal_stacks(tmp_path):
    with pytest.raises(ValueError, match="two equal stacks"):
        reconstruction_sheet(np.zeros((2, 8, 8, 3)), np.zeros((3, 8, 8, 3)), tmp_path / "a.png")


def test_series_with_bars_show_means_and_deviations_of_each_kind(tmp_path, drawn):
    at, means, stds = np.array([0.1, 0.5, 1.3]), np.array([3.0, 2.0, 1.0]), np.array([0.5, 0.25, 0.1])
    kinds = {"one": (at, means, stds), "two": (at, 2 * means, stds)}
    series_with_bars({"real": {"two": kinds["two"]}, "dream": kinds}, "temperature", tmp_path / "a.png")
    real, dreamed = drawn[0].axes
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["two", "one"]
    for container, factor in zip(dreamed.containers, (1, 2), strict=True):
        line, _, (bars,) = container.lines
        np.testing.assert_array_equal(line.get_ydata(), factor * means)
        np.testing.assert_allclose(line.get_xdata(), at, atol=0.01)
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_allclose(ends, np.stack([factor * means - stds, factor * means + stds], 1))
    alone = real.containers[0].lines[0]
    np.testing.assert_array_equal(alone.get_xdata(), at)
    assert alone.get_color() == dreamed.containers[1].lines[0].get_color() != dreamed.containers[0].lines[0].get_color()


@pytest.mark.parametrize("last", [2, 3, 20])
def test_series_over_whole_steps_have_whole_ticks_and_what_has_no_deviation_no_bars(tmp_path, drawn, last):
    at = np.arange(1, last + 1)
    series_with_bars({"return": {"lone": (at, at * 3.0, np.full(last, np.nan))}}, "iteration", tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert all(tick == round(tick) for tick in axes.get_xticks())
    line, _, (bars,) = axes.containers[0].lines
    np.testing.assert_array_equal(line.get_ydata(), at * 3.0)
    assert not any(len(segment) for segment in bars.get_segments())


def test_a_cross_table_shows_every_number_in_its_place(tmp_path, drawn):
    values = np.array([[1.0, 2000.0, 3.0], [4.0, 5.0, 6.0]])
    cross_table(values, ["a", "b"], ["x", "y", "real"], ("evolved at", "survives at"), tmp_path / "a.png")
    (axes,) = drawn[0].axes
    shown = {(*text.get_position(), text.get_text()) for text in axes.texts}
    assert {(1, 0, "2,000"), (2, 0, "3"), (0, 1, "4")} <= shown and len(shown) == 6
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("evolved at", "survives at")
    with pytest.raises(ValueError, match="as many names"):
        cross_table(values, ["a"], ["x", "y", "real"], ("", ""), tmp_path / "b.png")


def test_metrics_against_a_running_sum_are_those_of_the_steps_that_have_all():
    stage = {
        "frames": (np.array([1, 2, 4, 5, 6]), np.array([10, 5, 7, 1, 1])),
        "score": (np.array([2, 5, 6]), np.array([1.5, 2.5, 9])),
        "spread": (np.array([2, 5]), np.array([3, 4])),
    }
    total, score, spread = against_sum(stage, "frames", ("score", "spread"))
    assert (total.tolist(), score.tolist(), spread.tolist()) == ([15, 23], [1.5, 2.5], [3, 4])
