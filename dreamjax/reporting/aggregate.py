"""Aggregate the runs of an experiment: one result, one plot of all learning curves, and the numbers behind it.

Runs are told apart by every difference of their configurations, and labelled by it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamjax.reporting import curves
from dreamjax.reporting.intervals import Band, learning, runs_row
from dreamjax.reporting.labels import Settings, labels, read_settings, seed_groups, unique, without_seed
from dreamjax.reporting.results import read_result, shown_number, write_result
from dreamjax.storage.atomic import replacing
from dreamjax.storage.metrics import read_episodes, read_metrics


class Run(NamedTuple):
    """The learning curve of a run, and the result that it wrote."""

    task: str
    settings: Settings  # of older files only size, seed and variant
    frames: list[int]  # before the end of each episode, in order
    returns: list[float]
    result: dict[str, Any]  # its rows are named after the task


def read_run(folder: Path, task: str, episodes: tuple[np.ndarray, np.ndarray]) -> Run:
    """Read a run from its folder; `episodes` are frames and returns.

    Raises: FileNotFoundError if it has no result yet.
    """
    frames, returns = episodes
    rounded = [float(f"{value:.5g}") for value in returns]
    return Run(task, read_settings(folder), frames.tolist(), rounded, read_result(folder / "result.json"))


def episode_returns(folder: Path, repeat: int = 1) -> curves.Series:
    """Frames before the end of each training episode of a run, and its return; `repeat` is the frames of an action."""
    steps, returns = read_episodes(folder).get("return", ([], []))
    return np.asarray(steps) * repeat, np.asarray(returns)


def aggregate_runs(into: Path, experiment: str, runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Write `curves.jsonl`, and from it `result.json` and `curves.png`, to a folder; return the rows of the result.

    Runs already in `curves.jsonl` are kept, and one that was aggregated before is replaced. Runs that differ in their
    seed alone have rows of their own, and rows of their means. If there is a `published.json`,
    task -> [[frames, score], ...], rows hold the score published nearest to the end of their run.

    Raises: ValueError if there are no runs at all, or two of the same configuration have other episodes.
    """
    path = into / "curves.jsonl"
    all_runs = _distinct([*map(_run, _lines(path)), *runs], path)
    all_runs.sort(key=lambda run: (run.task, without_seed(run.settings), run.settings["seed"]))
    published = published_scores(into)
    panels: dict[str, dict[str, curves.Series]] = {}
    rows = []
    for task in unique(run.task for run in all_runs):
        alike = [run for run in all_runs if run.task == task]
        called = labels([run.settings for run in alike])
        if len(set(called)) < len(called):  # of two of them, too little is known
            raise ValueError(f"an older version has aggregated one of two runs of {task}: delete its line in {path}")
        panels[task] = {
            label or "plain" * (len(alike) > 1): (np.array(run.frames), np.array(run.returns))
            for label, run in zip(called, alike, strict=True)
        }
        ends = [_nearest(published[task], run.frames[-1]) if task in published else None for run in alike]
        for label, run, score in zip(called, alike, ends, strict=True):
            rows += [one | {"name": _named(task, label, one), "published": score} for one in run.result["rows"]]
        for label, some in seed_groups([run.settings for run in alike]):
            suffix = ", ".join(filter(None, [label, f"mean of {len(some)} seeds"]))
            means = mean_rows([alike[number].result for number in some], ends[some[0]])
            rows += [one | {"name": _named(task, suffix, one)} for one in means if len(some) > 1]
    _write_lines(path, all_runs)
    write_merged(into, experiment, [run.result for run in all_runs], rows)
    curves.return_curves(panels, into / "curves.png", published)
    return rows


class Repeat(NamedTuple):
    """One of several runs of an experiment that differ in seed, and perhaps in settings."""

    result: dict[str, Any]  # its first row is named after the settings
    series: dict[str, tuple[list[float], list[float]]]  # steps and values of each metric of one stage
    settings: Settings


def aggregate_repeats(into: Path, experiment: str, stage: str, folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Write `repeats.jsonl`, and from it `result.json` and `repeats.png`, to a folder; return the rows of the result.

    Runs that differ in their seed alone share a row: the mean and standard deviation, over these runs, of the means in
    their own rows; a run that none is like keeps its own. The plot shows mean and standard deviation of the metrics of
    one stage. Runs already in `repeats.jsonl` are kept, and one that was aggregated before is replaced.

    Raises: ValueError if there are no runs, one is of another experiment, two of the same configuration have other
        metrics, or runs that differ in their seed alone have other rows or steps; FileNotFoundError if one has no
        result yet.
    """
    path = into / "repeats.jsonl"
    found = [Repeat(**line) for line in _lines(path)]
    for folder in folders:
        result, metrics = read_result(folder / "result.json"), read_metrics(folder / "metrics.jsonl")
        if stage not in metrics:
            raise ValueError(f"{folder} is not a run of {experiment}: its metrics have no stage {stage!r}")
        series = {
            name: (steps.tolist(), [float(f"{value:.5g}") for value in values])
            for name, (steps, values) in metrics[stage].items()
        }
        found.append(Repeat(result, series, read_settings(folder)))
    repeats = _distinct(found, path)
    repeats.sort(key=lambda one: (_name(one), without_seed(one.settings), one.settings["seed"]))
    rows, panels = [], dict[str, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]()
    for name in unique(map(_name, repeats)):
        of_name = [one for one in repeats if _name(one) == name]
        for label, some in seed_groups([one.settings for one in of_name]):
            alike, called = [of_name[number] for number in some], ", ".join(filter(None, [name, label]))
            if len(set(map(_kind, alike))) > 1:
                raise ValueError(f"runs of {called!r} differ in their rows or steps: {[_kind(one) for one in alike]}")
            results = [one.result for one in alike]
            of_label = mean_rows(results) if len(results) > 1 else results[0]["rows"]
            rows += [one | {"name": _named(name, label, one)} for one in of_label]
            for metric, (steps, _) in alike[0].series.items():
                values = [one.series[metric][1] for one in alike]
                spread = np.std(values, 0) if len(values) > 1 else np.full(len(steps), np.nan)  # no bars
                panels.setdefault(metric, {})[called] = np.array(steps), np.mean(values, 0), spread
    _write_lines(path, repeats)
    write_merged(into, experiment, [one.result for one in repeats], rows)
    curves.series_with_bars(panels, stage, into / "repeats.png")
    return rows


def aggregate_tasks(
    into: Path, experiment: str, runs: Sequence[tuple[str, Path, Mapping[str, Band]]]
) -> list[dict[str, Any]]:
    """Write `result.json` and `learning.png` to a folder, of runs of a task each; return the rows of the result.

    A run is its task, the result that it wrote, and how it learned over its seeds, by settings. Of a run of several
    seeds the rows over these are kept. Every run that has learned has a panel, with a scale of its own.

    Raises: ValueError if there are two runs of a task; FileNotFoundError if one has no result yet.
    """
    tasks = [task for task, _, _ in runs]
    if twice := {task for task in tasks if tasks.count(task) > 1}:
        raise ValueError(f"one run of each task can be put together, but there are several of {', '.join(twice)}")
    results, rows = [read_result(path) for _, path, _ in runs], list[dict[str, Any]]()
    for result in results:
        rows += [row for row in result["rows"] if "interval" in row] or result["rows"]
    write_merged(into, experiment, results, rows)
    if panels := {task: bands for task, _, bands in runs if bands}:
        learning(panels, into / "learning.png", "return", "mean", one_scale=False)
    return rows


def _name(one: Repeat) -> str:
    return one.result["rows"][0]["name"]


def _kind(one: Repeat) -> tuple[str, ...]:
    """Return what runs must have in common to be averaged."""
    steps = (f"{name}: {len(at)} to {at[-1]}" for name, (at, _) in sorted(one.series.items()))
    return *(row["name"] for row in one.result["rows"]), *steps


def _distinct(runs: Sequence[Any], path: Path) -> list[Any]:
    """Keep the last of the aggregations of each run. Raises ValueError for two runs of the same configuration."""
    known: dict[str, Any] = {}
    for run in runs:
        identity = json.dumps([run.settings, run.task if isinstance(run, Run) else _name(run)], sort_keys=True)
        if identity in known and not _goes_on(known[identity], run):
            raise ValueError(
                f"two runs have the same configuration, but other numbers: {run.result['command']} with seed "
                f"{run.settings['seed']}. Leave one out, or give it another seed; one may be a line of {path}"
            )
        known[identity] = run
    if not known:
        raise ValueError("there are no runs to aggregate")
    return list(known.values())


def _goes_on(old: Any, new: Any) -> bool:
    """Whether two aggregations are of one run, the newer one perhaps at a later time."""
    if isinstance(old, Run):
        end = len(old.frames)
        return old.frames == new.frames[:end] and old.returns == new.returns[:end]
    return json.dumps(old.series) == json.dumps(new.series)  # one may have been read


def mean_rows(results: Sequence[dict[str, Any]], published: str | None = None) -> list[dict[str, Any]]:
    """Average over runs the rows that all of them have, with intervals if there are several runs."""
    by_name = [{row["name"]: row for row in result["rows"]} for result in results]
    common = [row for name, row in by_name[0].items() if all(name in rows for rows in by_name)]
    return [
        runs_row(
            row["name"],
            np.array([rows[row["name"]]["mean"] for rows in by_name]),
            row["unit"],
            published or row["published"],
        )
        for row in common
    ]


def _named(first: str, label: str, row: dict[str, Any]) -> str:
    """Insert the label of a run into the name of a row, behind the task or name of the run that it begins with."""
    return ", ".join(filter(None, [first, label])) + row["name"].removeprefix(first)


def write_merged(into: Path, experiment: str, results: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Write the one result of several. Raises: as `write_result` does."""
    write_result(
        into / "result.json",
        experiment,
        ", ".join(unique(result["preset"] for result in results)),
        "; ".join(unique(result["command"] for result in results)),
        sorted({seed for result in results for seed in result["seeds"]}),
        sum(result["wall_s"] for result in results),
        rows,
        origin=(
            ", ".join(unique(commit for result in results for commit in result["commit"].split(", "))),
            " and ".join(unique(result["machine"] for result in results)),
        ),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _write_lines(path: Path, runs: Iterable[Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(run._asdict()) + "\n" for run in runs))


def _run(line: dict[str, Any]) -> Run:
    """Read a run; one that an older version wrote has only its size, its seed, and perhaps a variant."""
    if "settings" not in line:
        line = line | {"settings": {"size": line["size"], "seed": line["seed"], "variant": line.get("variant", "")}}
    return Run(**{name: line[name] for name in Run._fields})


def published_scores(folder: Path) -> Mapping[str, curves.Series]:
    """Read `published.json` in a folder of results: frames [N] and scores [N], by task; nothing if it is not there."""
    path = folder / "published.json"
    if not path.exists():
        return {}
    written = json.loads(path.read_text())
    return {task: (np.array(curve)[:, 0].astype(int), np.array(curve)[:, 1]) for task, curve in written.items()}


def _nearest(curve: curves.Series, end: int) -> str:
    frames, scores = curve
    i = np.abs(frames - end).argmin()
    return f"{shown_number(scores[i])} at {frames[i]:,} frames"
