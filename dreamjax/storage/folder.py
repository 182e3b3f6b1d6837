"""The folder of one run, with its configuration and resumable stages, and the result files that outlive it."""

import dataclasses
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreamjax.storage.atomic import jsonable, read_json, write_json
from dreamjax.storage.configs import read_config
from dreamjax.storage.provenance import commit, machine


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
        wanted = jsonable(config)
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
        write_json(self.path / name, value)

    def read_json(self, name: str) -> Any:
        """What `write_json` wrote. Raises FileNotFoundError, or ValueError where the file is not JSON."""
        return read_json(self.path / name)

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
        records = [read_json(path) for path in (self.path / "stages").glob("*.json")]
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


def _differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = list(new) + [name for name in old if name not in new]
        nested = (_differences(old.get(name, _ABSENT), new.get(name, _ABSENT), f"{prefix}.{name}") for name in names)
        return [line for lines in nested for line in lines]
    # As text, because a NaN is not equal to itself.
    shown_old, shown_new = ("absent" if value is _ABSENT else json.dumps(value) for value in (old, new))
    return [f"{prefix[1:]}: the folder has {shown_old}, this run {shown_new}"] if shown_old != shown_new else []


_ABSENT = object()
