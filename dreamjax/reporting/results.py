"""Results of experiments and benchmarks in one schema, `result.json`, and how their numbers are formatted."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreamjax.storage.atomic import jsonable, read_json, write_json
from dreamjax.storage.provenance import commit, machine

_RESULT_FIELDS = {
    "experiment": str,
    "preset": str,
    "command": str,
    "commit": str,
    "machine": str,
    "seeds": list,
    "wall_s": float,
    "rows": list,
}
_ROW_FIELDS = ("name", "mean", "std", "n", "unit", "published")
# That a row may have as well: the 95 % interval of its mean; of several runs, the interquartile mean and its interval.
_MORE_FIELDS = ("interval", "iqm", "iqm_interval")


def result_row(name: str, values: np.ndarray, unit: str, published: float | str | None = None) -> dict[str, Any]:
    """Make a row of a result: mean and population standard deviation of values [n], of episodes or repeats."""
    mean, std = float(np.mean(values)), float(np.std(values))
    return {"name": name, "mean": mean, "std": std, "n": len(values), "unit": unit, "published": published}


def write_result(
    path: str | os.PathLike[str],
    experiment: str,
    preset: str,
    command: str,
    seeds: Sequence[int],
    wall_s: float,
    rows: Iterable[dict[str, Any]],
    *,
    origin: tuple[str, str] | None = None,
) -> None:
    """Write a `result.json`: what was measured, and all that is needed to measure it again.

    A row is `{"name", "mean", "std", "n", "unit", "published"}`: mean and standard deviation over `n` episodes or
    repeats, and what the paper reports, as a number or as text like "906 ± 21", or None if it reports nothing. It may
    have an `"interval"`, [low, high], of its mean; one of several runs has what `intervals.runs_row` adds.
    `origin` holds the commits (joined by ", ") and the machine of the measurement, as `RunFolder.origin` does; by
    default the present ones are filled in.

    Raises:
        ValueError: a field is missing, unknown, of another type, or a number is not finite.
    """
    made_by, made_on = origin or (commit(), machine())
    result = jsonable(
        {
            "experiment": experiment,
            "preset": preset,
            "command": command,
            "commit": made_by,
            "machine": made_on,
            "seeds": list(seeds),
            "wall_s": float(wall_s),
            "rows": list(rows),
        }
    )
    _check_result(result, os.fspath(path))
    write_json(Path(path), result)


def published_at(score: str | None, settings: Mapping[str, tuple[Any, Any]]) -> str | None:
    """Return a published score, followed by those of its settings that differ from the row's.

    `settings` maps a text such as "at temperature {}" to the row's value and the published one.
    """
    differing = [text.format(published) for text, (own, published) in settings.items() if own != published]
    return score and " ".join([score, ", ".join(differing)]).strip()


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `write_result` wrote. Raises FileNotFoundError, or ValueError if it has another form."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no {os.fspath(path)}: finish the run that writes it, or name another folder")
    result = read_json(Path(path))
    _check_result(result, os.fspath(path))
    return result


def _check_result(result: Any, where: str) -> None:
    def require(holds: bool, problem: str) -> None:
        if not holds:
            raise ValueError(f"{where} is no valid result: {problem}")

    def is_number(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

    require(isinstance(result, dict) and result.keys() == _RESULT_FIELDS.keys(), f"needs {list(_RESULT_FIELDS)}")
    for name, kind in _RESULT_FIELDS.items():
        require(isinstance(result[name], kind), f"{name} must be {kind.__name__}, got {result[name]!r}")
    require(is_number(result["wall_s"]) and result["wall_s"] >= 0, f"wall_s is {result['wall_s']}")
    is_seeded = bool(result["seeds"]) and all(type(seed) is int for seed in result["seeds"])
    require(is_seeded, f"seeds must be some integers, got {result['seeds']}")
    require(bool(result["rows"]), "it has no rows")
    for row in result["rows"]:
        fields = set(row) if isinstance(row, dict) else set()
        require(fields - set(_MORE_FIELDS) == set(_ROW_FIELDS), f"a row needs {list(_ROW_FIELDS)}, got {row}")
        for name in ("interval", "iqm_interval"):
            pair = row.get(name, [0, 0])
            holds = isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair)) and pair[0] <= pair[1]
            require(holds, f"{name} must be two finite numbers, the lower one first, in {row}")
        require(is_number(row.get("iqm", 0)), f"iqm must be a finite number in {row}")
        require(isinstance(row["name"], str) and isinstance(row["unit"], str), f"name and unit must be text in {row}")
        require(is_number(row["mean"]), f"mean must be a finite number in {row}")
        require(is_number(row["std"]) and row["std"] >= 0, f"std must be a finite number, not negative, in {row}")
        require(type(row["n"]) is int and row["n"] >= 1, f"n must be a positive integer in {row}")
        is_published = row["published"] is None or isinstance(row["published"], str) or is_number(row["published"])
        require(is_published, f"published must be a number, text or None in {row}")


def show_rows(rows: Iterable[dict[str, Any]], counted: str = "episodes") -> None:
    """Print the rows of a result; `counted` is what their `n` counts, unless their unit says that it is runs."""
    for row in rows:
        more, count = shown_intervals(row), "runs" if row["unit"].endswith("over runs") else counted
        print(f"{row['name']:>22}: {shown_measurement(row)}, {row['n']} {count}{f' ({more})' if more else ''}")


def shown_number(value: float | str) -> str:
    """Format a number with four significant digits, and all digits before the point; text stays as it is."""
    return value if isinstance(value, str) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value + 0.0:.4g}"


def shown_measurement(row: dict[str, Any]) -> str:
    """Format mean ± standard deviation of a result row, or its mean and interval if it has one and is of one run.

    The larger of mean and deviation has four digits, the larger end of an interval three, but at most six decimals.
    """
    interval = None if "iqm" in row else row.get("interval")
    largest = max(map(abs, interval)) if interval else max(abs(row["mean"]), row["std"])
    decimals = max(0, 3 - bool(interval) - math.floor(math.log10(largest))) if largest else 0
    shown = lambda value: f"{round(value, decimals) + 0.0:,.{decimals}f}"  # noqa: E731, never -0
    decimals = min(decimals, 6) if interval else decimals
    spread = f"[{shown(interval[0])}, {shown(interval[1])}]" if interval else f"± {shown(row['std'])}"
    return f"{shown(row['mean'])} {spread} {row['unit']}".rstrip()


def shown_intervals(row: dict[str, Any]) -> str:
    """Format what a row of several runs has beside their mean, if anything: "95% 1.2 to 3.4; IQM 2.1, 95% 1 to 3.6"."""
    if "iqm" not in row:
        return ""
    mean, middle = (" to ".join(map(shown_number, row[name])) for name in ("interval", "iqm_interval"))
    return f"95% {mean}; IQM {shown_number(row['iqm'])}, 95% {middle}"


def shown_duration(seconds: float) -> str:
    """Format seconds in the unit that reads best."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.1f} min" if minutes >= 1 else f"{seconds:.1f} s"
