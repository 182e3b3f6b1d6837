"""The runs of a sweep become one table, one result and one plot."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamjax.reporting.results import read_result, result_row, write_result
from dreamjax.reporting.sweeps import aggregate
from dreamjax.reporting.tables import section
from dreamjax.storage.atomic import write_json


def run(folder: Path, score: float | None, **settings: Any) -> None:
    write_json(folder / "config.json", settings)
    if score is not None:
        rows = [result_row("walk", np.full(5, score), "return"), result_row("walk, held", np.full(2, 0.5), "share")]
        origin = ("a" * 40, "a machine")
        write_result(folder / "result.json", "walking", "cpu", "walk", [settings["seed"]], 60.0, rows, origin=origin)


def test_seeds_are_averaged_and_settings_told_apart(tmp_path: Path) -> None:
    for seed, score in enumerate([1.0, 2.0, 3.0, 10.0]):
        run(tmp_path / f"slow-{seed}", score, seed=seed, optimizer={"learning_rate": 1e-4})
        run(tmp_path / f"fast-{seed}", 2 * score, seed=seed, optimizer={"learning_rate": 1e-3})
    run(tmp_path / "fast-9", None, seed=9, optimizer={"learning_rate": 1e-3})
    told = aggregate(tmp_path).splitlines()
    rows = {row["name"]: row for row in read_result(tmp_path / "result.json")["rows"]}
    names = ["walk, held, learning_rate 0.0001", "walk, held, learning_rate 0.001"]
    assert list(rows) == [*names, "walk, learning_rate 0.0001", "walk, learning_rate 0.001"]
    slow = rows["walk, learning_rate 0.0001"]
    assert (slow["mean"], slow["iqm"], slow["n"], slow["unit"]) == (4.0, 2.5, 4, "return, over runs")
    assert slow["interval"][0] < 4.0 < slow["interval"][1] and slow["iqm_interval"][0] >= 1.0
    assert [line for line in told if "learning_rate 0.001 " in line and "8.000 ± " in line and "IQM 5" in line]
    assert f"not finished, or without a result: {tmp_path / 'fast-9'}" in told
    assert (tmp_path / "sweep.png").stat().st_size > 5000
    result = read_result(tmp_path / "result.json")
    assert result["seeds"] == [0, 1, 2, 3] and result["wall_s"] == 8 * 60
    (tmp_path / "result.json").rename(tmp_path / "all.json")
    assert "IQM 2.5" in section(tmp_path / "all.json")


def test_a_sweep_without_a_finished_run_is_named(tmp_path: Path) -> None:
    run(tmp_path / "one", None, seed=0)
    run(tmp_path / "two", 1.0, seed=1)
    write_json(tmp_path / "two" / "stages" / "train.json", {"done": False})  # its result is of an earlier time
    with pytest.raises(FileNotFoundError, match="no run that is finished and has a result, and 2 that have begun"):
        aggregate(tmp_path)


def test_a_run_counts_once_and_what_is_no_setting_tells_runs_apart(tmp_path: Path) -> None:
    for name, score, seed in (("a", 1.0, 0), ("b", 2.0, 1), ("b again", 2.0, 1)):
        run(tmp_path / name, score, seed=seed)
    told = aggregate(tmp_path)
    rows = {row["name"]: row for row in read_result(tmp_path / "result.json")["rows"]}
    assert (rows["walk"]["n"], rows["walk"]["mean"]) == (2, 1.5)
    assert f"the same run as {tmp_path / 'b'}, and counted once: {tmp_path / 'b again'}" in told
    run(tmp_path / "b again", 5.0, seed=1)
    aggregate(tmp_path)
    rows = {row["name"]: row for row in read_result(tmp_path / "result.json")["rows"]}
    assert {name: row["mean"] for name, row in rows.items() if "held" not in name} == {
        "walk": 1.0,
        "walk, run b": 2.0,
        "walk, run b again": 5.0,
    }
