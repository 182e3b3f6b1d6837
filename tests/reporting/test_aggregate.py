"""Several runs become one result and one plot, which the tables show."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamjax.reporting import curves
from dreamjax.reporting.aggregate import (
    Run,
    aggregate_repeats,
    aggregate_runs,
    aggregate_tasks,
    episode_returns,
    read_run,
)
from dreamjax.reporting.intervals import band, runs_row
from dreamjax.reporting.results import read_result, result_row, write_result
from dreamjax.reporting.tables import section
from dreamjax.storage.atomic import write_json
from dreamjax.storage.metrics import MetricsLog


def run(
    folder: Path, task: str, seed: int, score: float, size: str = "1m", commit: str = "a" * 40, **settings: Any
) -> Run:
    """A run that has written its configuration and its result."""
    rows = [result_row(task, np.full(5, score), "return"), result_row(f"{task}, evaluated", np.ones(3), "return")]
    path = folder / f"{task}-{size}-{seed}"
    command = f"train --task {task} --seed {seed}"
    write_result(path / "result.json", "dreamerv3", size, command, [seed], 60.0, rows, origin=(commit, "a machine"))
    write_json(path / "config.json", {"task": task, "size": size, "seed": seed} | settings)
    return read_run(path, task, (np.arange(1, 40) * 100, np.linspace(0, score, 39)))


def names(into: Path) -> dict[str, float]:
    return {row["name"]: row["mean"] for row in read_result(into / "result.json")["rows"]}


def test_runs_are_merged_with_those_that_are_there(tmp_path: Path) -> None:
    into = tmp_path / "results" / "dreamerv3"
    rows = aggregate_runs(into, "dreamerv3", [run(tmp_path, "walk", 0, 10.0)])
    assert names(into) == {"walk": 10.0, "walk, evaluated": 1.0}
    assert rows == read_result(into / "result.json")["rows"]
    aggregate_runs(into, "dreamerv3", [run(tmp_path, "walk", 1, 20.0, commit="b" * 40), run(tmp_path, "swim", 0, 5.0)])
    assert names(into) == {
        "swim": 5.0,
        "swim, evaluated": 1.0,
        "walk, seed 0": 10.0,
        "walk, seed 0, evaluated": 1.0,
        "walk, seed 1": 20.0,
        "walk, seed 1, evaluated": 1.0,
        "walk, mean of 2 seeds": 15.0,
        "walk, mean of 2 seeds, evaluated": 1.0,
    }
    mean = read_result(into / "result.json")["rows"][-2]
    assert (mean["std"], mean["n"], mean["unit"]) == (5.0, 2, "return, over runs")
    aggregate_runs(into, "dreamerv3", [run(tmp_path, "swim", 0, 7.0, size="12m")])
    assert (names(into)["swim, 1m"], names(into)["swim, 12m"]) == (5.0, 7.0)
    result = read_result(into / "result.json")
    assert result["seeds"] == [0, 1] and result["wall_s"] == 4 * 60
    assert result["command"].split("; ") == [
        f"train --task {x}" for x in ("swim --seed 0", "walk --seed 0", "walk --seed 1")
    ]
    assert result["preset"] == "12m, 1m" and result["machine"] == "a machine"
    assert result["commit"] == f"{'a' * 40}, {'b' * 40}"
    lines = [json.loads(line) for line in (into / "curves.jsonl").read_text().splitlines()]
    assert [one["settings"]["seed"] for one in lines if one["task"] == "walk"] == [0, 1]
    assert lines[2]["frames"][-1] == 3900 and lines[2]["returns"][-1] == 10.0
    assert (into / "curves.png").stat().st_size > 5000


def test_runs_are_told_apart_by_every_difference_and_labelled_by_it(tmp_path: Path) -> None:
    def add(seed: int, score: float, rate: float, steps: int | None = None) -> None:
        optimizer = {"agent": {"optimizer": {"learning_rate": rate}, "compute_dtype": "float32"}}
        one = run(tmp_path, "walk", seed, score, steps=steps, **optimizer)
        aggregate_runs(tmp_path / "all", "dreamerv3", [one])

    for seed in (1, 0):
        add(seed, 2.0 + seed, 4e-5)
        add(seed, 6.0 + seed, 1e-3)
    evaluated = (
        "walk, learning_rate 0.001, seed 1, evaluated",
        "walk, learning_rate 4e-05, mean of 2 seeds, evaluated",
    )
    found = names(tmp_path / "all")
    assert {name: mean for name, mean in found.items() if not name.endswith("evaluated")} == {
        "walk, learning_rate 0.001, seed 0": 6.0,
        "walk, learning_rate 0.001, seed 1": 7.0,
        "walk, learning_rate 4e-05, seed 0": 2.0,
        "walk, learning_rate 4e-05, seed 1": 3.0,
        "walk, learning_rate 0.001, mean of 2 seeds": 6.5,
        "walk, learning_rate 4e-05, mean of 2 seeds": 2.5,
    }
    assert all(name in found for name in evaluated)
    add(0, 9.0, 1e-3, steps=7)
    shown = "walk, steps {}, learning_rate 0.001, seed 0"
    assert [names(tmp_path / "all")[shown.format(steps)] for steps in ("7", "default")] == [9.0, 6.0]
    before = (tmp_path / "all" / "curves.jsonl").read_text()
    add(0, 9.0, 1e-3, steps=7)  # once more
    assert (tmp_path / "all" / "curves.jsonl").read_text() == before
    with pytest.raises(ValueError, match=r"same configuration, but other numbers: train --task walk .* another seed"):
        add(0, 9.1, 1e-3, steps=7)
    assert (tmp_path / "all" / "curves.jsonl").read_text() == before


def test_a_run_that_went_on_replaces_its_beginning(tmp_path: Path) -> None:
    whole = run(tmp_path, "walk", 0, 2.0)
    aggregate_runs(tmp_path, "dreamerv3", [whole._replace(frames=whole.frames[:9], returns=whole.returns[:9]), whole])
    assert [len(json.loads(line)["frames"]) for line in (tmp_path / "curves.jsonl").read_text().splitlines()] == [39]


def test_the_committed_runs_can_still_be_read(tmp_path: Path) -> None:
    """They were aggregated by an older version, which noted no configuration."""
    committed = Path(__file__).parents[2] / "experiments" / "results" / "dreamerv3"
    for name in ("curves.jsonl", "published.json"):
        shutil.copy(committed / name, tmp_path)
    rows = aggregate_runs(tmp_path, "dreamerv3", [])
    assert {row["name"]: row for row in rows} == {
        row["name"]: row for row in read_result(committed / "result.json")["rows"]
    }
    again = (tmp_path / "curves.jsonl").read_text()
    assert aggregate_runs(tmp_path, "dreamerv3", []) == rows and (tmp_path / "curves.jsonl").read_text() == again
    with pytest.raises(
        ValueError, match=r"older version has aggregated one of two runs of dmc_walker_walk: delete its"
    ):
        aggregate_runs(tmp_path, "dreamerv3", [run(tmp_path, "dmc_walker_walk", 0, 5.0)])


def test_what_is_published_is_named_with_its_frames(tmp_path: Path) -> None:
    tmp_path.joinpath("published.json").write_text(
        '{"walk": [[2000, 50], [4000, 925.5], [490000, 960]], "fly": [[1, 2]]}'
    )
    rows = aggregate_runs(tmp_path, "dreamerv3", [run(tmp_path, "walk", 0, 10.0), run(tmp_path, "swim", 0, 5.0)])
    assert [row["published"] for row in rows] == [None, None, "925.5 at 4,000 frames", "925.5 at 4,000 frames"]


def test_an_aggregated_result_has_a_section(tmp_path: Path) -> None:
    aggregate_runs(
        tmp_path, "dreamerv3", [run(tmp_path, "walk", s, 10.0 * s, commit=c * 40) for s, c in ((0, "a"), (1, "b"))]
    )
    text = section(tmp_path / "result.json")
    assert "| walk, seed 1 | 10.00 ± 0.00 return | 5 |" in text
    assert "Preset 1m; seeds 0, 1; 2.0 min on a machine; commit aaaaaaaaaaaa, bbbbbbbbbbbb." in text
    assert "train --task walk --seed 0\ntrain --task walk --seed 1\n" in text


def test_what_is_not_there_cannot_be_aggregated(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no runs"):
        aggregate_runs(tmp_path, "dreamerv3", [])
    with pytest.raises(FileNotFoundError, match=r"result\.json"):
        run(tmp_path, "walk", 0, 1.0)
        (tmp_path / "walk-1m-0" / "result.json").unlink()
        read_run(tmp_path / "walk-1m-0", "walk", (np.arange(3), np.arange(3.0)))


def repeat(folder: Path, name: str, seed: int, score: float, steps: tuple[int, ...] = (1, 2), noise: float = 0) -> Path:
    """The folder of a run that has written its metrics and its result."""
    rows = [result_row(name, np.full(5, score), "return", 9), result_row(f"{name}, held", np.full(5, score / 10), "x")]
    with MetricsLog(folder) as log:
        for step in steps:
            log.write("iteration", step, {"real": score * step, "visited": 0.5})
    write_result(folder / "result.json", "swing", "cpu", f"swing {seed}", [seed], 60.0, rows, origin=("a" * 40, "it"))
    write_json(folder / "config.json", {"iterate": name == "turns", "noise": noise, "seed": seed})
    return folder


def test_runs_of_several_seeds_become_one_row(tmp_path: Path) -> None:
    into = tmp_path / "into"
    turns = [repeat(tmp_path / f"turns-{seed}", "turns", seed, 10.0 + seed) for seed in (0, 2)]
    aggregate_repeats(into, "swing", "iteration", turns)
    once = repeat(tmp_path / "once", "once", 0, 3.0)
    rows = aggregate_repeats(into, "swing", "iteration", [once, turns[1]])
    assert rows == read_result(into / "result.json")["rows"]
    shown = [(row["name"], row["mean"], row["std"], row["n"], row["unit"], row["published"]) for row in rows]
    assert shown == [
        ("once", 3.0, 0.0, 5, "return", 9),  # it is one run, so that its row is over its episodes
        ("once, held", pytest.approx(0.3), 0.0, 5, "x", None),
        ("turns", 11.0, 1.0, 2, "return, over runs", 9),
        ("turns, held", pytest.approx(1.1), pytest.approx(0.1), 2, "x, over runs", None),
    ]
    result = read_result(into / "result.json")
    assert result["seeds"] == [0, 2] and result["wall_s"] == 180
    assert result["command"] == "swing 0; swing 2"
    assert (into / "repeats.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="no runs"):
        aggregate_repeats(tmp_path / "empty", "swing", "iteration", [])
    written = (into / "repeats.jsonl").read_text()
    with pytest.raises(ValueError, match="'once' differ"):
        aggregate_repeats(into, "swing", "iteration", [repeat(tmp_path / "short", "once", 3, 9.0, steps=(1,))])
    with pytest.raises(ValueError, match="same configuration, but other numbers: swing 2 with seed 2"):
        aggregate_repeats(into, "swing", "iteration", [repeat(tmp_path / "again", "turns", 2, 14.0)])
    assert (into / "repeats.jsonl").read_text() == written
    noisy = [repeat(tmp_path / f"noisy-{seed}", "turns", seed, 4.0, noise=0.5) for seed in (0, 2)]
    aggregate_repeats(into, "swing", "iteration", noisy)
    assert names(into) == {
        **{"once": 3.0, "once, held": pytest.approx(0.3)},
        **{"turns, noise 0": 11.0, "turns, noise 0, held": pytest.approx(1.1)},
        **{"turns, noise 0.5": 4.0, "turns, noise 0.5, held": pytest.approx(0.4)},
    }


def test_only_runs_of_several_seeds_have_a_deviation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(curves, "series_with_bars", lambda panels, *_: drawn.append(panels))
    runs = [repeat(tmp_path / f"turns-{seed}", "turns", seed, 10.0 + seed) for seed in (0, 2)]
    aggregate_repeats(tmp_path / "into", "swing", "iteration", [*runs, repeat(tmp_path / "once", "once", 0, 3.0)])
    stds = {name: std for name, (_, _, std) in drawn[0]["real"].items()}
    np.testing.assert_array_equal(stds["turns"], [1.0, 2.0])
    np.testing.assert_array_equal(stds["once"], [np.nan, np.nan])


def test_returns_are_placed_at_the_frames_of_the_environment(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        for step in (3, 8):
            log.write("episode", step, {"return": step / 2, "length": 4})
    frames, returns = episode_returns(tmp_path, repeat=4)
    assert (frames.tolist(), returns.tolist()) == ([12, 32], [1.5, 4.0])
    with MetricsLog(tmp_path / "processes" / "1") as log:  # which trained with the first
        log.write("episode", 5, {"return": 9, "length": 4})
    assert [part.tolist() for part in episode_returns(tmp_path)] == [[3, 5, 8], [1.5, 9.0, 4.0]]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "metrics.jsonl").touch()
    assert [len(part) for part in episode_returns(tmp_path / "none")] == [0, 0]


def test_runs_of_a_task_each_are_put_together(tmp_path: Path) -> None:
    bands = {"mean": band(np.arange(3.0), np.arange(6.0).reshape(2, 1, 3))}
    runs = []
    for task, scores in {"near": [1.0, 2.0], "far": [30.0]}.items():
        rows = [result_row(f"{task}, seed {seed}", np.array([score]), "return") for seed, score in enumerate(scores)]
        rows += [runs_row(f"{task}, mean", np.array(scores), "return")] * (len(scores) > 1)
        write_result(tmp_path / task / "result.json", "test", "cpu", f"--task {task}", [0], 2.0, rows)
        runs.append((task, tmp_path / task / "result.json", bands if task == "near" else {}))
    told = aggregate_tasks(tmp_path, "test", runs)
    assert [(row["name"], row["mean"]) for row in told] == [("near, mean", 1.5), ("far, seed 0", 30.0)]
    result = read_result(tmp_path / "result.json")
    assert result["rows"] == told and result["wall_s"] == 4 and result["command"] == "--task near; --task far"
    assert (tmp_path / "learning.png").exists()
    with pytest.raises(ValueError, match="there are several of near"):
        aggregate_tasks(tmp_path, "test", [runs[0], runs[0]])
    with pytest.raises(FileNotFoundError):
        aggregate_tasks(tmp_path, "test", [("none", tmp_path / "none" / "result.json", {})])
