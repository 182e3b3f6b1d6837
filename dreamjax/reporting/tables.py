"""Puts what was measured into the README: `python -m dreamjax.reporting.tables`, from the top of a checkout."""

import os
from collections.abc import Iterable
from pathlib import Path

from dreamjax.reporting.results import read_result, shown_duration, shown_measurement, shown_number
from dreamjax.storage.atomic import replacing

TABLES = {  # a file is in the first table that its path matches
    "temperatures": "experiments/results/doom_temperature_sweep/result.json",
    "results": "experiments/results/*/result.json",
    "speed": "benchmarks/results/*.json",
}


def results_table(paths: Iterable[str | os.PathLike[str]]) -> str:
    """The rows of `result.json` files as a Markdown table, followed by how each was made.

    Raises:
        ValueError: a file does not have the form that `write_result` gives it.
    """
    table = ["| Experiment | Result | Measured | n | Published |", "|---|---|---|---|---|"]
    made = []
    for number, path in enumerate(paths, start=1):
        result = read_result(path)
        for row in result["rows"]:
            published = "" if row["published"] is None else shown_number(row["published"])
            cells = [
                f"{result['experiment']} [{number}]",
                row["name"],
                shown_measurement(row),
                str(row["n"]),
                published,
            ]
            table.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        seeds = ", ".join(map(str, result["seeds"]))
        commits = ", ".join(one[:12] + one[40:] for one in result["commit"].split(", "))
        made.append(
            f"{number}. `{result['command']}`: preset {result['preset']}, seeds {seeds}, "
            f"{shown_duration(result['wall_s'])} on {result['machine']}; commit {commits}"
        )
    return "\n".join([*table, "", *made]) + "\n"


def tables(root: Path) -> dict[str, str]:
    """Make every table from the result files of a checkout."""
    made, shown = {}, set[Path]()
    for name, pattern in TABLES.items():
        files = sorted(set(root.glob(pattern)) - shown)
        made[name] = results_table(files)
        shown.update(files)
    return made


def main() -> None:
    """Replace each table between its two marks."""
    readme = Path("README.md")
    text = readme.read_text()
    for name, table in tables(Path()).items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, rest = text.split(begin)
        text = head + begin + table + end + rest.split(end)[1]
    with replacing(readme) as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    main()
