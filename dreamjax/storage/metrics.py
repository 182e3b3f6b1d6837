"""Numbers over time: a JSON line per step, which survives a kill, and the same for TensorBoard and trackers."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from dreamjax._extras import without
from dreamjax.storage.atomic import replacing
from dreamjax.storage.trackers import COLUMNS, Trackers


class MetricsLog:
    """Appends to `metrics.jsonl` in a run folder, and to `tensorboard/<stage>/` if tensorboardX is installed.

    The trackers that `trackers.track` has named for the folder get the same numbers.

    `seconds` in the file is the time that logs of this folder were open, so that it continues when a run resumes.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._path = Path(folder) / "metrics.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._latest: dict[str, int] = {}
        self._before = _drop_torn_line(self._path)
        self._started = time.monotonic()
        self._lines = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        self._tensorboard = _summary_writer()
        self._writers: dict[str, Any] = {}  # of each stage
        self._superseded: dict[str, int] = {}  # first step of a stage that TensorBoard is to forget
        self._trackers = Trackers(folder)

    def rewind(self, stage: str, step: int) -> None:
        """Forget what was written of a stage after `step`, from where a resumed run does it again."""
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = ((line, json.loads(line)) for line in lines)
        kept = [line for line, row in rows if row["stage"] != stage or row["step"] <= step]
        if len(kept) == len(lines):
            return
        self._lines.close()
        with replacing(self._path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")
        self._lines = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        self._superseded[stage] = step + 1

    def write(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Append numbers or arrays of one element, by name. Steps of a stage may not decrease while the log is open.

        Raises:
            ValueError: a value is not a scalar, a name is taken, or `step` is before that of the last call.
            FloatingPointError: values are not finite. The message names them; all others have been written.
        """
        if step < self._latest.get(stage, step):
            raise ValueError(f"step {step} of stage {stage!r} comes after step {self._latest[stage]}")
        values = {name: _scalar(name, value) for name, value in metrics.items()}
        self._latest[stage] = step
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        seconds = round(self._before + time.monotonic() - self._started, 3)
        self._lines.write(json.dumps({"stage": stage, "step": step, "seconds": seconds} | finite) + "\n")
        self._lines.flush()
        for name, value in finite.items():
            if self._tensorboard is not None:
                self._writer(stage).add_scalar(f"{stage}/{name}", value, step)
        self._trackers.write(stage, step, finite)
        if len(finite) < len(values):
            broken = ", ".join(f"{name} = {value}" for name, value in values.items() if name not in finite)
            raise FloatingPointError(f"at step {step} of stage {stage!r}: {broken}")

    def close(self) -> None:
        self._lines.close()
        for writer in self._writers.values():
            writer.close()
        self._trackers.close()

    def _writer(self, stage: str) -> Any:
        """Return what writes a stage for TensorBoard, which forgets what is superseded in a whole folder only."""
        if stage not in self._writers and self._tensorboard is not None:
            folder = os.fspath(self._path.parent / "tensorboard" / stage)
            # Its files are named by the second, and one of the same name would be overwritten.
            about: Any = {"purge_step": self._superseded.get(stage), "filename_suffix": f".{time.time_ns()}"}
            self._writers[stage] = self._tensorboard(folder, flush_secs=10, **about)
        return self._writers[stage]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: str | os.PathLike[str]) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Read a `metrics.jsonl`: stage -> name -> (steps int64 [T], values float64 [T]), steps ascending.

    Where the steps of a stage decrease, a run was resumed: earlier values of later steps are dropped, and of two values
    for one step the last counts. An incomplete last line, left by a kill, is ignored.

    Raises:
        ValueError: another line is not what `MetricsLog` writes; the message has its number.
    """
    series: dict[str, dict[str, dict[int, float]]] = {}
    latest: dict[str, int] = {}
    lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(
        lines[:-1], start=1
    ):  # after the last newline there is nothing, or an incomplete line
        try:
            row = json.loads(line)
            stage, step, _ = (row.pop(name) for name in COLUMNS)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number} is not a row of metrics: {line[:80]!r}. Delete that line."
            ) from error
        names = series.setdefault(stage, {})
        if step < latest.get(stage, step):
            for values in names.values():
                for superseded in [old for old in values if old > step]:
                    del values[superseded]
        latest[stage] = step
        for name, value in row.items():
            names.setdefault(name, {})[step] = value
    return {
        stage: {name: _arrays(values) for name, values in names.items() if values} for stage, names in series.items()
    }


def read_episodes(run: str | os.PathLike[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read the metrics of the training episodes of a run, of all its processes.

    They are name -> (steps int64 [T], values float64 [T]), steps ascending; none of them if no episode has ended.

    Raises: as `read_metrics` does.
    """
    series: dict[str, dict[int, float]] = {}
    for path in [*sorted(Path(run).glob("processes/*/metrics.jsonl")), Path(run) / "metrics.jsonl"]:
        for name, (steps, values) in read_metrics(path).get("episode", {}).items():
            series.setdefault(name, {}).update(zip(steps.tolist(), values.tolist(), strict=True))
    return {name: _arrays(values) for name, values in series.items()}


@cache
def _summary_writer() -> Any:
    """Return the class that writes for TensorBoard; None, and say so once, where it is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError:
        what = without("experiments", "TensorBoard", "tensorboardX")
        print(f"metrics.jsonl has all numbers; {what}", file=sys.stderr)
        return None
    return SummaryWriter


def _arrays(values: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    steps = sorted(values)
    return np.array(steps, np.int64), np.array([values[step] for step in steps], np.float64)


def _scalar(name: str, value: Any) -> float:
    if name in COLUMNS:
        raise ValueError(f"a metric may not be named {name!r}: every row has {', '.join(COLUMNS)}")
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biufV":  # V: bfloat16
        raise ValueError(f"metric {name!r} must be one number, got {array.dtype} of shape {array.shape}: take its mean")
    return float(array.reshape(()))


def _drop_torn_line(path: Path) -> float:
    """Remove an incomplete last line, which a kill left behind. Returns the seconds of the last complete one."""
    if not path.exists():
        return 0.0
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    os.truncate(path, end)
    lines = data[:end].splitlines()
    return float(json.loads(lines[-1])["seconds"]) if lines else 0.0
