"""Result files say what was measured and where it came from, or are not written."""

import numpy as np
import pytest

from dreamjax.reporting.results import (
    published_at,
    read_result,
    result_row,
    shown_duration,
    shown_measurement,
    shown_number,
    write_result,
)
from dreamjax.storage.provenance import commit, machine
from tests.scripts import REPO

ROW = {"name": "dream | 1.15", "mean": 1092.34, "std": 556.07, "n": 100, "unit": "tics", "published": "1092 ± 556"}


def test_a_result_is_read_as_it_was_written(tmp_path):
    row = result_row("real", np.array([1.0, 3.0]), "tics", 7)
    assert row == {"name": "real", "mean": 2.0, "std": 1.0, "n": 2, "unit": "tics", "published": 7}
    write_result(tmp_path / "a.json", "doom", "cpu", "python doom.py", [0, 1], 7300, [ROW, row])
    result = read_result(tmp_path / "a.json")
    assert list(result) == ["experiment", "preset", "command", "commit", "machine", "seeds", "wall_s", "rows"]
    assert result["rows"] == [ROW, row] and result["wall_s"] == 7300.0
    assert result["machine"] == machine() and result["commit"] == commit()
    write_result(tmp_path / "b.json", "doom", "cpu", "python doom.py", [0], 1, [ROW], origin=("abc", "elsewhere"))
    result = read_result(tmp_path / "b.json")
    assert (result["commit"], result["machine"]) == ("abc", "elsewhere")


def test_numbers_are_shown_with_four_digits_and_durations_in_a_fitting_unit():
    assert [shown_number(x) for x in (1092.4, 0.05, 3.14159, "906 ± 21")] == ["1,092", "0.05", "3.142", "906 ± 21"]
    assert shown_number(-0.0) == "0"
    assert shown_measurement(result_row("x", np.array([-0.0]), "return")) == "0 ± 0 return"
    assert shown_measurement(result_row("x", np.array([-1e-9, 0, 5, -5]), "return")) == "0.000 ± 3.536 return"
    interval = ROW | {"interval": [980.5, 1200.26]}
    assert shown_measurement(interval) == "1,092 [980, 1,200] tics"
    assert (
        shown_measurement(interval | {"mean": 0.0123, "interval": [-0.002, 0.0345]}) == "0.0123 [-0.0020, 0.0345] tics"
    )
    assert (
        shown_measurement(interval | {"mean": 3e-14, "interval": [2e-14, 4e-14]})
        == "0.000000 [0.000000, 0.000000] tics"
    )
    assert [shown_duration(x) for x in (30.04, 90, 7300)] == ["30.0 s", "1.5 min", "2.0 h"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rows": []}, "no rows"),
        ({"rows": [{"name": "x"}]}, "a row needs"),
        ({"rows": [ROW | {"mean": float("nan")}]}, "mean must be a finite"),
        ({"rows": [ROW | {"mean": True}]}, "mean must be a finite"),
        ({"rows": [ROW | {"std": -1.0}]}, "not negative"),
        ({"rows": [ROW | {"n": 0}]}, "n must be a positive"),
        ({"rows": [ROW | {"unit": None}]}, "unit must be text"),
        ({"rows": [ROW | {"published": [906, 21]}]}, "published"),
        ({"rows": [ROW | {"interval": [1, float("inf")]}]}, "interval must be"),
        ({"rows": [ROW | {"interval": [2, 1]}]}, "interval must be"),
        ({"rows": [ROW | {"high": 2}]}, "a row needs"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [0.5]}, "seeds"),
        ({"wall_s": float("inf")}, "wall_s"),
        ({"preset": None}, "preset must be str"),
    ],
)
def test_a_result_that_is_incomplete_is_not_written(tmp_path, changes, problem):
    fields = {
        "experiment": "doom",
        "preset": "cpu",
        "command": "x",
        "seeds": [0],
        "wall_s": 1.0,
        "rows": [ROW],
    } | changes
    with pytest.raises(ValueError, match=problem):
        write_result(tmp_path / "result.json", **fields)
    assert list(tmp_path.iterdir()) == []


def test_a_published_score_says_how_its_settings_differ() -> None:
    settings = {"at temperature {}": (1.5, 1.15), "after {:,} generations": (60, 1800), "not iterated": (True, False)}
    said = "918 ± 546 at temperature 1.15, after 1,800 generations, not iterated"
    assert published_at("918 ± 546", settings) == said
    assert published_at("918 ± 546", {"at temperature {}": (1.15, 1.15)}) == "918 ± 546"
    assert published_at(None, settings) is None


@pytest.mark.parametrize("name", ["car_racing", "doom_iterative", "doom_take_cover", "doom_temperature_sweep"])
def test_committed_scores_of_evolution_name_the_settings_of_published_ones(name: str) -> None:
    rows = read_result(REPO / "experiments" / "results" / name / "result.json")["rows"]
    beside = {
        row["name"]: row["published"] for row in rows if row["published"] and not row["name"].startswith("random")
    }
    assert beside and all("1,800 generations" in text or "not iterated" in text for text in beside.values())
