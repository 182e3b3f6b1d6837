"""The folder of one run, with its configuration and resumable stages, and the result files that outlive it."""

import dataclasses
import json
import math
import os
import platform
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

from dreamjax.run.atomic import replacing
from dreamjax.run.configs import read_config


class ConfigMismatch(ValueError):
    """A run folder was begun with another configuration."""


class Stage:
    """The clock of a stage that is under way."""

    def __init__(self, folder: "RunFolder", name: str) -> None:
        self._folder, self._name = folder, name
        record = folder.stage_record(name)
        self._before, self._made = record["seconds"], {}
        for what, now in (("commits", commit()), ("machines", machine())):
            self._made[what] = list(dict.fromkeys([*record.get(what, []), now]))
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds spent in this stage so far, by this process and those before it."""
        return self._before + time.monotonic() - self._started

    def tick(self) -> None:
        """Note the time spent so far. Call it where a checkpoint is saved: what a kill undoes is then not counted."""
        record = self._folder.stage_record(self._name) | {"seconds": round(self.seconds, 3)} | self._made
        self._folder.write_json(f"stages/{self._name}.json", record)


class RunFolder:
    """Where a run keeps everything, so that the same command started again goes on where it stopped.

    `config.json` says what the run is, `stages/<name>.json` which parts of it are done, how long they took and what
    came out. All files are replaced whole: a kill leaves the old or the new one.

    Raises:
        ConfigMismatch: the folder was begun with another configuration; the message lists the differences.
    """

    def __init__(self, path: str | os.PathLike[str], config: Any) -> None:
        if not dataclasses.is_dataclass(config) or isinstance(config, type):
            raise ValueError(f"config must be an instance of a dataclass, got {config!r}")
        self.path = Path(path)
        self.config: Any = config
        wanted = _jsonable(config)
        if (self.path / "config.json").exists():
            differences = _differences(self.read_json("config.json"), wanted)
            if differences:
                raise ConfigMismatch(
                    f"{self.path} was begun with another configuration:\n  " + "\n  ".join(differences) + "\n"
                    "Use another folder, or the old values to go on with this run, or delete the folder to start again."
                )
        else:
            self.write_json("config.json", wanted)

    @classmethod
    def opened(cls, path: str | os.PathLike[str], kind: type) -> "RunFolder":
        """The folder of a run that was begun before, with its configuration, a dataclass of that kind.

        Raises: FileNotFoundError if it is not one, ValueError if the configuration is another one's.
        """
        folder = cls.__new__(cls)
        folder.path = Path(path)
        folder.config = read_config(kind, folder.read_json("config.json"))
        return folder

    def write_json(self, name: str, value: Any) -> None:
        """Write dataclasses, dicts, sequences, numbers and small arrays to the file `name` of this folder."""
        _write_json(self.path / name, value)

    def read_json(self, name: str) -> Any:
        """What `write_json` wrote. Raises FileNotFoundError, or ValueError where the file is not JSON."""
        return _read_json(self.path / name)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time a stage: `with run.stage("vision") as stage:`, with `stage.tick()` at each checkpoint.

        The seconds add up over resumed runs; a kill loses those since the last tick.
        """
        stage = Stage(self, name)
        try:
            yield stage
        finally:
            stage.tick()

    def finish_stage(self, name: str, summary: dict[str, Any]) -> None:
        """Mark a stage as done, with what came out of it; call it last within or after its `with` block."""
        record = self.stage_record(name) | {"done": True, "summary": summary}
        self.write_json(f"stages/{name}.json", record)

    def stage_done(self, name: str) -> bool:
        return self.stage_record(name)["done"]

    def stage_record(self, name: str) -> dict[str, Any]:
        """`name`, `begun` (Unix time), `done`, `seconds` and `summary` of a stage, as of now if it was not begun.

        Once timed, also the `commits` and `machines` that it was made with.
        """
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(f"a stage is named with letters, digits, - and _, got {name!r}")
        if not (self.path / "stages" / f"{name}.json").exists():
            return {"name": name, "begun": time.time(), "done": False, "seconds": 0.0, "summary": {}}
        return self.read_json(f"stages/{name}.json")

    def stage_records(self) -> list[dict[str, Any]]:
        """The records of the stages begun so far, in the order in which they were begun."""
        records = [_read_json(path) for path in (self.path / "stages").glob("*.json")]
        return sorted(records, key=lambda record: record["begun"])

    @property
    def seconds(self) -> float:
        """Time that all stages took."""
        return sum(record["seconds"] for record in self.stage_records())

    @property
    def origin(self) -> tuple[str, str]:
        """Commits and machines that the stages were made with, in their order; those of now if there are none."""
        records = self.stage_records()
        commits, machines = (
            list(dict.fromkeys(one for record in records for one in record.get(what, [])))
            for what in ("commits", "machines")
        )
        return ", ".join(commits or [commit()]), " and ".join(machines or [machine()])


def machine() -> str:
    """What computes here: processor, cores, memory, the devices of jax, and the versions that matter for numbers."""
    try:
        processor = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        name = processor.group(1) if processor else platform.machine()
    except FileNotFoundError:  # not a Linux
        name = platform.processor() or platform.machine()
    devices = Counter(device.device_kind for device in jax.devices())
    shown = " + ".join(f"{count} x {kind}" for kind, count in devices.items())
    versions = f"Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}"
    return f"{name}, {os.cpu_count()} cores; jax on {shown}; {versions}"


def commit(source: Path = Path(__file__)) -> str:
    """The git commit of the checkout that holds `source`, with "-dirty" where a .py file differs from it.

    "unknown" where that file is not tracked by git, as in an installed package.
    """

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", source.parent, *arguments], capture_output=True, text=True)

    try:
        if git("ls-files", "--error-unmatch", source.name).returncode:
            return "unknown"
    except FileNotFoundError:  # no git here
        return "unknown"
    head = git("rev-parse", "--verify", "HEAD")
    if head.returncode:
        return "unknown"
    is_dirty = git("diff", "--quiet", "HEAD", "--", ":/*.py").returncode != 0
    return head.stdout.strip() + ("-dirty" if is_dirty else "")


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


def result_row(name: str, values: np.ndarray, unit: str, published: float | str | None = None) -> dict[str, Any]:
    """One row of a result: mean and population standard deviation of values [n], of episodes or repeats."""
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

    A row is `{"name", "mean", "std", "n", "unit", "published"}`: mean and standard deviation over `n` fresh episodes
    or repeats, and what the paper reports, as a number or as text like "906 ± 21", or None where it reports nothing.
    `origin` are commits (with ", " between them) and machine of the measurement, as `RunFolder.origin` has them;
    otherwise those of now are filled in.

    Raises:
        ValueError: a field is missing, unknown, of another type, or a number is not finite.
    """
    made_by, made_on = origin or (commit(), machine())
    result = _jsonable(
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
    _write_json(Path(path), result)


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_result` wrote. Raises FileNotFoundError, or ValueError where it has another form."""
    result = _read_json(Path(path))
    _check_result(result, os.fspath(path))
    return result


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
        require(isinstance(row, dict) and set(row) == set(_ROW_FIELDS), f"a row needs {list(_ROW_FIELDS)}, got {row}")
        require(isinstance(row["name"], str) and isinstance(row["unit"], str), f"name and unit must be text in {row}")
        require(is_number(row["mean"]), f"mean must be a finite number in {row}")
        require(is_number(row["std"]) and row["std"] >= 0, f"std must be a finite number, not negative, in {row}")
        require(type(row["n"]) is int and row["n"] >= 1, f"n must be a positive integer in {row}")
        is_published = row["published"] is None or isinstance(row["published"], str) or is_number(row["published"])
        require(is_published, f"published must be a number, text or None in {row}")


def shown_number(value: float | str) -> str:
    """Four significant digits, and every digit of what is before the point."""
    return value if isinstance(value, str) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def shown_measurement(row: dict[str, Any]) -> str:
    """Mean ± standard deviation of a result row, both with as many decimals as the larger needs for four digits."""
    largest = max(abs(row["mean"]), row["std"])
    decimals = max(0, 3 - math.floor(math.log10(largest))) if largest else 0
    return f"{row['mean']:,.{decimals}f} ± {row['std']:,.{decimals}f} {row['unit']}".rstrip()


def shown_duration(seconds: float) -> str:
    """Seconds in the unit that makes the number easy to read."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 1 else f"{minutes:.1f} min" if minutes >= 1 else f"{seconds:.1f} s"


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(_jsonable(value), indent=2) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): restore it from a copy, or delete it") from error


def _jsonable(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "tolist") and not isinstance(value, type):  # arrays and scalars of numpy and jax
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, type | np.dtype):  # float, jnp.bfloat16, np.dtype("float32")
        return value.name if isinstance(value, np.dtype) else value.__name__
    raise ValueError(f"{value!r} cannot be written as JSON")


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = list(new) + [name for name in old if name not in new]
        nested = (_differences(old.get(name, _ABSENT), new.get(name, _ABSENT), f"{prefix}.{name}") for name in names)
        return [line for lines in nested for line in lines]
    # As text, because a NaN is not equal to itself.
    shown_old, shown_new = ("absent" if value is _ABSENT else json.dumps(value) for value in (old, new))
    return [f"{prefix[1:]}: the folder has {shown_old}, this run {shown_new}"] if shown_old != shown_new else []


_ABSENT = object()
