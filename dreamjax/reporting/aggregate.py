"""Aggregate the runs of an experiment: one result, one plot of all learning curves, and the numbers behind it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamjax.reporting import curves
from dreamjax.reporting.results import read_result, result_row, shown_number, write_result
from dreamjax.storage.atomic import replacing
from dreamjax.storage.metrics import read_metrics

_RESULTS = Path("experiments/results")


class Run(NamedTuple):
    """The learning curve of a run, and the result that it wrote."""

    task: str
    size: str
    seed: int
    frames: list[int]  # before the end of each episode, in order
    returns: list[float]
    result: dict[str, Any]  # its rows are named after the task
    variant: str = ""  # how it differs from the runs with default settings, if it does


def read_run(
    folder: Path, task: str, size: str, seed: int, episodes: tuple[np.ndarray, np.ndarray], variant: str = ""
) -> Run:
    """Read a run from its folder; `episodes` are frames and returns.

    Raises: FileNotFoundError if it has no result yet.
    """
    frames, returns = episodes
    rounded = [float(f"{value:.5g}") for value in returns]
    return Run(task, size, seed, frames.tolist(), rounded, read_result(folder / "result.json"), variant)


def episode_returns(folder: Path, repeat: int = 1) -> curves.Series:
    """Frames before the end of each training episode of a run, and its return; `repeat` is the frames of an action."""
    steps, returns = read_metrics(folder / "metrics.jsonl").get("episode", {}).get("return", ([], []))
    return np.asarray(steps) * repeat, np.asarray(returns)


def aggregate_runs(into: Path | None, experiment: str, runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Write `curves.jsonl`, and from it `result.json` and `curves.png`; return the rows of the result.

    Runs already in `curves.jsonl` are kept, unless one of `runs` has the same task, size, variant and seed. If there is
    a `published.json`, task -> [[frames, score], ...], rows hold the score published nearest to the end of their run.

    The files go to the folder `into`, or to the committed results of the experiment.

    Raises: ValueError if there are no runs at all.
    """
    into = into or _RESULTS / experiment
    known = {(run.task, run.size, run.variant, run.seed): run for run in [*_read(into / "curves.jsonl"), *runs]}
    all_runs = [known[identity] for identity in sorted(known)]
    if not all_runs:
        raise ValueError("there are no runs to aggregate")
    with replacing(into / "curves.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(run._asdict()) + "\n" for run in all_runs))
    published = _published(into / "published.json")
    tasks: dict[str, dict[str, curves.Series]] = {}
    rows = []
    for run in all_runs:
        label = _label(run, all_runs)
        shown = label or "plain" * any(other.variant for other in all_runs if other.task == run.task)
        tasks.setdefault(run.task, {})[shown] = np.array(run.frames), np.array(run.returns)
        known_score = _nearest(published[run.task], run.frames[-1]) if run.task in published else None
        for row in run.result["rows"]:
            name = ", ".join(filter(None, [run.task, label])) + row["name"].removeprefix(run.task)
            rows.append(row | {"name": name, "published": known_score})
    _write(into, experiment, [run.result for run in all_runs], rows)
    curves.return_curves(tasks, into / "curves.png", published)
    return rows


class Repeat(NamedTuple):
    """One of several runs of an experiment that differ in seed, and perhaps in settings."""

    result: dict[str, Any]  # its first row is named after the settings
    series: dict[str, tuple[list[float], list[float]]]  # steps and values of each metric of one stage


def aggregate_repeats(into: Path | None, experiment: str, stage: str, folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Write `repeats.jsonl`, and from it `result.json` and `repeats.png`; return the rows of the result.

    A row holds mean and standard deviation, over runs with the same settings, of the means in their rows of that name.
    The plot shows mean and standard deviation of the metrics of one stage. Runs already in `repeats.jsonl` are kept,
    unless one of the folders has the same settings and seeds. The files go to the folder `into`, or to the committed
    results of the experiment.

    Raises: ValueError if there are no runs, or runs of one name differ in preset, rows or steps; FileNotFoundError if
        one has no result yet.
    """
    into = into or _RESULTS / experiment
    path = into / "repeats.jsonl"
    found = [Repeat(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    for folder in folders:
        series = {
            name: (steps.tolist(), [float(f"{value:.5g}") for value in values])
            for name, (steps, values) in read_metrics(folder / "metrics.jsonl")[stage].items()
        }
        found.append(Repeat(read_result(folder / "result.json"), series))
    known = {(one.result["rows"][0]["name"], tuple(one.result["seeds"])): one for one in found}
    repeats = [known[identity] for identity in sorted(known)]
    if not repeats:
        raise ValueError("there are no runs to aggregate")
    rows, panels = [], dict[str, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]()
    for name in _unique(one.result["rows"][0]["name"] for one in repeats):
        alike = [one for one in repeats if one.result["rows"][0]["name"] == name]
        if len({_kind(one) for one in alike}) > 1:
            raise ValueError(f"runs of {name!r} differ in their preset, rows or steps: {[_kind(one) for one in alike]}")
        for number, row in enumerate(alike[0].result["rows"]):
            means = np.array([one.result["rows"][number]["mean"] for one in alike])
            rows.append(result_row(row["name"], means, f"{row['unit']}, over runs", row["published"]))
        for metric, (steps, _) in alike[0].series.items():
            values = [one.series[metric][1] for one in alike]
            panels.setdefault(metric, {})[name] = np.array(steps), np.mean(values, 0), np.std(values, 0)
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(one._asdict()) + "\n" for one in repeats))
    _write(into, experiment, [one.result for one in repeats], rows)
    curves.series_with_bars(panels, stage, into / "repeats.png")
    return rows


def _kind(one: Repeat) -> tuple[str, ...]:
    """Return what runs must have in common to be averaged."""
    steps = (f"{name}: {len(at)} to {at[-1]}" for name, (at, _) in sorted(one.series.items()))
    return one.result["preset"], *(row["name"] for row in one.result["rows"]), *steps


def _write(into: Path, experiment: str, results: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Write the one result of several."""
    write_result(
        into / "result.json",
        experiment,
        ", ".join(_unique(result["preset"] for result in results)),
        "; ".join(_unique(result["command"] for result in results)),
        sorted({seed for result in results for seed in result["seeds"]}),
        sum(result["wall_s"] for result in results),
        rows,
        origin=(
            ", ".join(_unique(commit for result in results for commit in result["commit"].split(", "))),
            " and ".join(_unique(result["machine"] for result in results)),
        ),
    )


def _read(path: Path) -> list[Run]:
    return [Run(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def _published(path: Path) -> Mapping[str, curves.Series]:
    if not path.exists():
        return {}
    written = json.loads(path.read_text())
    return {task: (np.array(curve)[:, 0].astype(int), np.array(curve)[:, 1]) for task, curve in written.items()}


def _nearest(curve: curves.Series, end: int) -> str:
    frames, scores = curve
    i = np.abs(frames - end).argmin()
    return f"{shown_number(scores[i])} at {frames[i]:,} frames"


def _label(run: Run, runs: list[Run]) -> str:
    """Return what distinguishes a run from others of its task."""
    others = [other for other in runs if other.task == run.task]
    parts = [run.size] if len({other.size for other in others}) > 1 else []
    parts += [run.variant] if run.variant else []
    parts += [f"seed {run.seed}"] if len({other.seed for other in others}) > 1 else []
    return ", ".join(parts)


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
