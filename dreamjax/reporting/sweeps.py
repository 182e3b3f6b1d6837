"""The runs of a sweep put together: one result, one table, one plot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamjax.reporting import intervals
from dreamjax.reporting.aggregate import mean_rows, write_merged
from dreamjax.reporting.labels import Settings, read_settings, seed_groups, unique
from dreamjax.reporting.results import read_result, shown_intervals, shown_measurement
from dreamjax.storage.atomic import read_json


def aggregate(folder: Path) -> str:
    """Put together the finished runs in a folder, and write `result.json` and `sweep.png` into it; return a table.

    Runs that differ in their seed alone are averaged, with bootstrap intervals and interquartile means. The unit is the
    run, whose own score is a mean over episodes. A run counts once, whatever folders it was repeated in; runs of one
    configuration whose results differ, as by an option that is no part of it, are told apart by their folders. Below
    the table stand the runs that are not finished, or have no result, as without episodes to be scored in.

    Raises: FileNotFoundError if no run is finished and has a result.
    """
    runs = sorted(path.parent for path in folder.glob("*/config.json"))
    found = [run for run in runs if _is_finished(run)]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no run that is finished and has a result, and {len(runs)} that have begun"
        )
    kept, again = _distinct(found)
    results, settings = zip(*kept, strict=True)
    rows: list[dict[str, Any]] = []
    panels: dict[str, list[dict[str, Any]]] = {}
    for label, some in seed_groups(settings):
        for row in mean_rows([results[number] for number in some]):
            panels.setdefault(f"{row['name']}: {row['unit']}", []).append(row | {"name": label or "all"})
            rows.append(row | {"name": ", ".join(filter(None, [row["name"], label]))})
    rows.sort(key=lambda row: row["name"])
    experiments = unique(result["experiment"] for result in results)
    write_merged(folder, ", ".join(experiments), results, rows)
    intervals.chart(panels, folder / "sweep.png")
    left = [f"not finished, or without a result: {run}" for run in runs if run not in found]
    return "\n".join([*_table(rows), "", *again, *left, f"Look at {folder / 'sweep.png'}"])


def _is_finished(run: Path) -> bool:
    stages = [read_json(path) for path in (run / "stages").glob("[!.]*.json")]
    return (run / "result.json").exists() and all(stage["done"] for stage in stages)


def _distinct(runs: Sequence[Path]) -> tuple[list[tuple[dict[str, Any], Settings]], list[str]]:
    """Read the result and settings of each run once; return a line for each that is the same as another one.

    Runs of one configuration but other results get their folder as a setting.
    """
    kept: list[tuple[Path, dict[str, Any], Settings]] = []
    again = []
    for run in runs:
        result, settings = read_result(run / "result.json"), read_settings(run)
        same = [one for one, known, other in kept if other == settings and known["rows"] == result["rows"]]
        if same:
            again.append(f"the same run as {same[0]}, and counted once: {run}")
        else:
            kept.append((run, result, settings))
    every = [settings for _, _, settings in kept]
    named = [{"run": run.name} if every.count(settings) > 1 else {} for run, _, settings in kept]
    return [(result, settings | name) for (_, result, settings), name in zip(kept, named, strict=True)], again


def _table(rows: list[dict[str, Any]]) -> list[str]:
    cells = [(row["name"], shown_measurement(row), shown_intervals(row), str(row["n"])) for row in rows]
    lines = [("Result", "Mean ± std", "Intervals", "Runs"), *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return [f"| {' | '.join(line)} |" for line in [padded[0], ["-" * width for width in widths], *padded[1:]]]
