"""Several runs become one result and one plot, which the tables show."""

import json
from pathlib import Path

import numpy as np
import pytest

from dreamjax.reporting.aggregate import Run, aggregate_repeats, aggregate_runs, episode_returns, read_run
from dreamjax.reporting.results import read_result, result_row, write_result
from dreamjax.reporting.tables import section
from dreamjax.storage.metrics import MetricsLog


def run(
    folder: Path, task: str, seed: int, score: float, size: str = "1m", commit: str = "a" * 40, variant: str = ""
) -> Run:
    """A run that has written its result."""
    rows = [result_row(task, np.full(5, score), "return"), result_row(f"{task}, evaluated", np.ones(3), "return")]
    path = folder / f"{task}-{size}-{seed}"
    command = f"train --task {task} --seed {seed}"
    write_result(path / "result.json", "dreamerv3", size, command, [seed], 60.0, rows, origin=(commit, "a machine"))
    return read_run(path, task, size, seed, (np.arange(1, 40) * 100, np.linspace(0, score, 39)), variant)


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
    }
    aggregate_runs(into, "dreamerv3", [run(tmp_path, "swim", 0, 6.0)])  # in place of the other one
    assert names(into)["swim"] == 6.0
    aggregate_runs(into, "dreamerv3", [run(tmp_path, "swim", 0, 7.0, size="12m")])
    assert (names(into)["swim, 1m"], names(into)["swim, 12m"]) == (6.0, 7.0)
    result = read_result(into / "result.json")
    assert result["seeds"] == [0, 1] and result["wall_s"] == 4 * 60
    assert result["command"].split("; ") == [
        f"train --task {x}" for x in ("swim --seed 0", "walk --seed 0", "walk --seed 1")
    ]
    assert result["preset"] == "12m, 1m" and result["machine"] == "a machine"
    assert result["commit"] == f"{'a' * 40}, {'b' * 40}"
    lines = [json.loads(line) for line in (into / "curves.jsonl").read_text().splitlines()]
    assert [(one["task"], one["size"], one["seed"]) for one in lines][2:] == [("walk", "1m", 0), ("walk", "1m", 1)]
    assert lines[2]["frames"][-1] == 3900 and lines[2]["returns"][-1] == 10.0
    assert (into / "curves.png").stat().st_size > 5000


def test_a_variant_stands_beside_the_plain_settings(tmp_path: Path) -> None:
    for variant, score in [("lr 1.6e-4", 1.0), ("", 2.0), ("lr 1.6e-4", 3.0)]:
        aggregate_runs(tmp_path, "dreamerv3", [run(tmp_path, "walk", 0, score, variant=variant)])
    assert names(tmp_path) == {
        "walk": 2.0,
        "walk, evaluated": 1.0,
        "walk, lr 1.6e-4": 3.0,
        "walk, lr 1.6e-4, evaluated": 1.0,
    }


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
        read_run(tmp_path, "walk", "1m", 0, (np.arange(3), np.arange(3.0)))


def repeat(folder: Path, name: str, seed: int, score: float, steps: tuple[int, ...] = (1, 2)) -> Path:
    """The folder of a run that has written its metrics and its result."""
    rows = [result_row(name, np.full(5, score), "return", 9), result_row(f"{name}, held", np.full(5, score / 10), "x")]
    with MetricsLog(folder) as log:
        for step in steps:
            log.write("iteration", step, {"real": score * step, "visited": 0.5})
    write_result(folder / "result.json", "swing", "cpu", f"swing {seed}", [seed], 60.0, rows, origin=("a" * 40, "it"))
    return folder


def test_runs_of_several_seeds_become_one_row(tmp_path: Path) -> None:
    into = tmp_path / "into"
    turns = [repeat(tmp_path / f"turns-{seed}", "turns", seed, 10.0 + seed) for seed in (0, 2)]
    aggregate_repeats(into, "swing", "iteration", turns)
    once = repeat(tmp_path / "once", "once", 0, 3.0)
    rows = aggregate_repeats(into, "swing", "iteration", [once, repeat(tmp_path / "again", "turns", 2, 14.0)])
    assert rows == read_result(into / "result.json")["rows"]
    shown = [(row["name"], row["mean"], row["std"], row["n"], row["unit"], row["published"]) for row in rows]
    assert shown == [
        ("once", 3.0, 0.0, 1, "return, over runs", 9),
        ("once, held", pytest.approx(0.3), 0.0, 1, "x, over runs", None),
        ("turns", 12.0, 2.0, 2, "return, over runs", 9),
        ("turns, held", pytest.approx(1.2), pytest.approx(0.2), 2, "x, over runs", None),
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
    assert (into / "repeats.jsonl").read_text() == written


def test_returns_are_placed_at_the_frames_of_the_environment(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        for step in (3, 8):
            log.write("episode", step, {"return": step / 2, "length": 4})
    frames, returns = episode_returns(tmp_path, repeat=4)
    assert (frames.tolist(), returns.tolist()) == ([12, 32], [1.5, 4.0])
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "metrics.jsonl").touch()
    assert [len(part) for part in episode_returns(tmp_path / "none")] == [0, 0]


def test_runs_become_the_committed_result_of_their_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    aggregate_runs(None, "dreamerv3", [run(tmp_path, "walk", 0, 10.0)])
    aggregate_repeats(None, "swing", "iteration", [repeat(tmp_path / "once", "once", 0, 3.0)])
    assert names(Path("experiments/results/dreamerv3"))["walk"] == 10.0
    assert names(Path("experiments/results/swing"))["once"] == 3.0
