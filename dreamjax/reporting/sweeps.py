"""The runs of a sweep put together: one result, one table, one plot."""

from pathlib import Path
from typing import Any

from dreamjax.reporting import intervals
from dreamjax.reporting.aggregate import mean_rows, write_merged
from dreamjax.reporting.labels import read_settings, seed_groups, unique
from dreamjax.reporting.results import read_result, shown_intervals, shown_measurement


def aggregate(folder: Path) -> str:
    """Put together the finished runs in a folder, and write `result.json` and `sweep.png` into it; return a table.

    Runs that differ in their seed alone are averaged, with bootstrap intervals and interquartile means. The unit is the
    run, whose own score is a mean over episodes. Below the table stand the runs that are not finished.

    Raises: FileNotFoundError if no run is finished.
    """
    runs = sorted(path.parent for path in folder.glob("*/config.json"))
    done = [run for run in runs if (run / "result.json").exists()]
    if not done:
        raise FileNotFoundError(f"{folder} holds no finished run yet, and {len(runs)} that have begun")
    results, settings = [read_result(run / "result.json") for run in done], [read_settings(run) for run in done]
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
    left = [f"not finished: {run}" for run in runs if run not in done]
    return "\n".join([*_table(rows), "", *left, f"Look at {folder / 'sweep.png'}"])


def _table(rows: list[dict[str, Any]]) -> list[str]:
    cells = [(row["name"], shown_measurement(row), shown_intervals(row), str(row["n"])) for row in rows]
    lines = [("Result", "Mean ± std", "Intervals", "Runs"), *cells]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return [f"| {' | '.join(line)} |" for line in [padded[0], ["-" * width for width in widths], *padded[1:]]]
