"""Trackers that the metrics of a run go to as well, each of which sees one run however often it was resumed.

What a run folder says stays: `trackers.json` names its trackers, and how they know the run.
"""

import importlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dreamjax._extras import extra
from dreamjax.storage.atomic import read_json, write_json

Name = Literal["wandb", "trackio"]
PROJECT = "dreamjax"  # where nobody has named one, by WANDB_PROJECT or TRACKIO_PROJECT
COLUMNS = ("stage", "step", "seconds")  # of every row of the metrics, beside its numbers

_FILE = "trackers.json"


class _Tracker(NamedTuple):
    """What has opened a run of a tracker."""

    log: Callable[[str, int, Mapping[str, float]], None]  # stage, step, values
    close: Callable[[], None]


def track(folder: str | os.PathLike[str], names: Iterable[Name]) -> None:
    """Let the metrics of a run folder go to these trackers, from the next time that its log is opened, and no others.

    Raises: ValueError for an unknown name, ModuleNotFoundError for one whose extra is not installed.
    """
    known, path = _read(folder), Path(folder) / _FILE
    chosen = list(dict.fromkeys(names))
    if unknown := [name for name in chosen if name not in _OPEN]:
        raise ValueError(f"there is no tracker {', '.join(unknown)}: use {', '.join(_OPEN)}")
    for name in chosen:
        with extra(name, "this tracker"):
            importlib.import_module(name)
    made = {name: known.get(name, {"id": uuid.uuid4().hex[:8], "begun": False}) for name in chosen}
    if made != known:
        write_json(path, made)


class Trackers:
    """The trackers of a run folder, if it has any.

    One that the run has just been given gets all that the metrics hold so far. After a resume they are told nothing a
    second time: steps that are done again, because they came after the checkpoint, are not sent again.

    Raises: ModuleNotFoundError if the extra of a tracker is not installed; what a tracker raises that cannot begin.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        known = _read(folder)
        self._sent: dict[str, int] = {}  # of each stage the last step
        self._all = {name: _OPEN[name](Path(folder), about["id"]) for name, about in known.items()}
        if not known:
            return
        path = Path(folder) / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for row in rows:
            values = {name: value for name, value in row.items() if name not in COLUMNS}
            for name, about in known.items():
                if not about["begun"]:
                    self._all[name].log(row["stage"], row["step"], values)
            self._sent[row["stage"]] = max(row["step"], self._sent.get(row["stage"], row["step"]))
        write_json(Path(folder) / _FILE, {name: about | {"begun": True} for name, about in known.items()})

    def write(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Send finite numbers, unless the step was sent before this was opened."""
        if step > self._sent.get(stage, step - 1):
            for one in self._all.values():
                one.log(stage, step, values)

    def close(self) -> None:
        """Wait until everything is sent, or kept to be sent."""
        for one in self._all.values():
            one.close()


def _read(folder: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    path = Path(folder) / _FILE
    return read_json(path) if path.exists() else {}


def _about(folder: Path) -> tuple[str, Any]:
    """Name a run after its folder and the one around it; return its configuration too."""
    config = folder / "config.json"
    whole = folder.resolve()
    if whole.parent.name == "processes":  # one of several that train together
        whole = whole.parents[1] / f"{whole.parents[1].name}-{whole.name}"
    return f"{whole.parent.name}-{whole.name}", read_json(config) if config.exists() else {}


def _wandb(folder: Path, identity: str) -> _Tracker:
    """Weights & Biases; with WANDB_MODE=offline nothing is sent until `wandb sync`."""
    with extra("wandb", "this tracker"):
        import wandb
    name, config = _about(folder)
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    run = wandb.init(project=project, id=identity, name=name, config=config, dir=folder, resume="allow")
    stages: set[str] = set()

    def log(stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in stages:  # whose steps are its own
            stages.add(stage)
            run.define_metric(f"{stage}/step", hidden=True)
            run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        run.log({f"{stage}/{name}": value for name, value in values.items()} | {f"{stage}/step": step})

    return _Tracker(log, run.finish)


def _trackio(folder: Path, identity: str) -> _Tracker:
    """trackio, which keeps everything on this machine unless TRACKIO_SPACE_ID names a Space."""
    with extra("trackio", "this tracker"):
        import trackio
    name, config = _about(folder)
    project, space = os.environ.get("TRACKIO_PROJECT", PROJECT), os.environ.get("TRACKIO_SPACE_ID")
    run = trackio.init(project, name=f"{name}-{identity}", config=config, resume="allow", space_id=space, embed=False)

    def log(stage: str, step: int, values: Mapping[str, float]) -> None:
        run.log({f"{stage}/{name}": value for name, value in values.items()}, step=step)

    return _Tracker(log, run.finish)


_OPEN: dict[str, Callable[[Path, str], _Tracker]] = {"wandb": _wandb, "trackio": _trackio}
