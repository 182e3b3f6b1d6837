"""The folder of one run: its configuration, its resumable stages, and whatever they write."""

import dataclasses
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from filelock import FileLock, Timeout

from dreamjax.storage.atomic import jsonable, read_json, write_json
from dreamjax.storage.configs import read_config
from dreamjax.storage.provenance import commit, machine


class ConfigMismatch(ValueError):
    """The run folder belongs to another configuration."""


class FolderInUse(RuntimeError):
    """Another process is writing to the run folder."""


def folder_of(run: Path, process: int) -> Path:
    """Return the folder that a process writes to, of those that train together: the first that of the run itself."""
    return run / "processes" / str(process) if process else run


class Change(NamedTuple):
    """What follows when a run goes on with another value of a field."""

    reopens: tuple[str, ...] = ()  # stages that were done, and go on
    before: tuple[str, ...] = ()  # stages that made use of what came of the old value: once begun, it stays


class Stage:
    """The clock of a stage in progress."""

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
        """Record the time spent so far. Call it after saving a checkpoint, so that lost work is not counted."""
        self._write(done=False)

    def end(self) -> None:
        """Record the time spent, and that the stage is done."""
        self._write(done=True)

    def _write(self, done: bool) -> None:
        record = self._folder.stage_record(self._name) | {"done": done, "seconds": round(self.seconds, 3)} | self._made
        self._folder.write_json(f"stages/{self._name}.json", record)


class RunFolder:
    """Everything that a run writes, so that the same command, started again, resumes where it stopped.

    `config.json` holds the configuration, `stages/<name>.json` whether a stage is done, how long it took and what came
    out. Files are replaced atomically: after a kill there is the old one or the new one.

    Most of a configuration defines the run. Fields named in `may_change` (such as "steps" or "online.steps") do not:
    where they differ from what the folder has, the run goes on with the new values, `changes.json` lists the old, and
    a `result.json`, which is of these, becomes `result-1.json`, and so on.

    As long as this object lives, no other process can open the folder to write to it; `opened` reads one at any time.

    Raises:
        ConfigMismatch: the folder belongs to another configuration; the message lists the differences.
        FolderInUse: another process is writing to the folder; the message says which.
        NotADirectoryError: it is a file.
    """

    stages_begun: ClassVar[int] = 0  # by this process, in all folders

    def __init__(
        self, path: str | os.PathLike[str], config: Any, may_change: Mapping[str, Change] | None = None
    ) -> None:
        if not dataclasses.is_dataclass(config) or isinstance(config, type):
            raise ValueError(f"config must be an instance of a dataclass, got {config!r}")
        self.path = Path(path)
        self.config: Any = config
        self.profile: tuple[int, int] | None = None  # first and last update that `training.trace` profiles
        self._lock = _locked(self.path)
        wanted = jsonable(config)
        if (self.path / "config.json").exists():
            before = _as_now(type(config), self.read_json("config.json"))
            self._change(_differences(before, wanted), may_change or {})
        self.write_json("config.json", wanted)

    def _change(self, differences: dict[str, str], may_change: Mapping[str, Change]) -> None:
        """Refuse differences that define the run; note the others, and let stages go on that were done."""
        defining = [text for name, text in differences.items() if name not in may_change]
        changes = {name: may_change[name] for name in differences if name in may_change}
        begun = {record["name"] for record in self.stage_records()}
        for name, change in changes.items():
            if used := [stage for stage in change.before if stage in begun]:
                defining.append(f"{differences[name]}, and {', '.join(used)} made use of it already")
        if defining:
            raise ConfigMismatch(
                f"{self.path} was begun with another configuration:\n  " + "\n  ".join(defining) + "\n"
                "Use another folder, or the old values to go on with this run, or delete the folder to start again."
                + (f"\nWhat may change: {', '.join(may_change)}." if may_change else "")
            )
        for stage in begun & {stage for change in changes.values() for stage in change.reopens}:
            self.write_json(f"stages/{stage}.json", self.stage_record(stage) | {"done": False})
        if differences:
            if (result := self.path / "result.json").exists():  # of the run as it was
                os.replace(result, self.path / f"result-{len(list(self.path.glob('result-*.json'))) + 1}.json")
            before = self.read_json("changes.json") if (self.path / "changes.json").exists() else []
            self.write_json("changes.json", [*before, {"time": time.time(), "changed": list(differences.values())}])

    @classmethod
    def opened(cls, path: str | os.PathLike[str], kind: type) -> "RunFolder":
        """Open the folder of an existing run, whose configuration is a dataclass of that kind.

        Raises: FileNotFoundError if it is not a run folder, ValueError if the configuration does not fit `kind`.
        """
        folder = cls.__new__(cls)
        folder.path, folder.profile = Path(path), None
        if not (folder.path / "config.json").exists():
            raise FileNotFoundError(f"{folder.path} is not the folder of a run, as it has no config.json: name one")
        folder.config = read_config(kind, folder.read_json("config.json"))
        return folder

    def write_json(self, name: str, value: Any) -> None:
        """Write dataclasses, dicts, sequences, numbers and small arrays to the file `name` of this folder."""
        write_json(self.path / name, value)

    def read_json(self, name: str) -> Any:
        """Read what `write_json` wrote. Raises FileNotFoundError, or ValueError if the file is not JSON."""
        return read_json(self.path / name)

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Time a stage: `with run.stage("vision") as stage:`, with `stage.tick()` at each checkpoint.

        A stage is done when its block ends without an error. Seconds add up over resumed runs; a kill loses those since
        the last tick.
        """
        RunFolder.stages_begun += 1
        stage = Stage(self, name)
        stage.tick()
        try:
            yield stage
        except BaseException:
            stage.tick()
            raise
        stage.end()

    def finish_stage(self, name: str, summary: dict[str, Any] | None = None) -> None:
        """Mark a stage as done, with what came out of it; call it last within its `with` block, if it has one."""
        record = self.stage_record(name) | {"done": True} | ({} if summary is None else {"summary": summary})
        self.write_json(f"stages/{name}.json", record)

    def stage_done(self, name: str) -> bool:
        """Whether the `with` block of a stage has ended without an error, or `finish_stage` was called."""
        return self.stage_record(name)["done"]

    def stage_record(self, name: str) -> dict[str, Any]:
        """Return `name`, `begun` (Unix time), `done`, `seconds` and `summary` of a stage, begun now if it never was.

        Once timed, there are also the `commits` and `machines` that ran it.
        """
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(f"a stage is named with letters, digits, - and _, got {name!r}")
        if not (self.path / "stages" / f"{name}.json").exists():
            return {"name": name, "begun": time.time(), "done": False, "seconds": 0.0, "summary": {}}
        return self.read_json(f"stages/{name}.json")

    def stage_records(self) -> list[dict[str, Any]]:
        """Return the records of all stages begun so far, in the order of their beginning."""
        # A kill may leave a hidden file that was about to replace another one.
        records = [read_json(path) for path in (self.path / "stages").glob("[!.]*.json")]
        return sorted(records, key=lambda record: record["begun"])

    @property
    def seconds(self) -> float:
        """Time that all stages took together."""
        return sum(record["seconds"] for record in self.stage_records())

    @property
    def origin(self) -> tuple[str, str]:
        """Commits and machines that ran the stages, in order; the present ones if there are no stages."""
        records = self.stage_records()
        commits, machines = (
            list(dict.fromkeys(one for record in records for one in record.get(what, [])))
            for what in ("commits", "machines")
        )
        return ", ".join(commits or [commit()]), " and ".join(machines or [machine()])


def _locked(folder: Path) -> FileLock:
    """Lock a folder against other processes, for as long as somebody holds what is returned.

    The lock is the system's, and gone with the process. Within a process, all that open the folder share it.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name a folder for the run")
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.resolve() / ".lock", thread_local=False, is_singleton=True)
    holder = folder / ".writer.json"
    try:
        lock.acquire(blocking=False)
    except Timeout:
        try:
            who = "process {process} on {host}".format(**read_json(holder))
        except (FileNotFoundError, KeyError):  # it has the lock, but has not yet written who it is
            who = "another process"
        raise FolderInUse(
            f"{folder} is being written by {who}: wait for its end, stop it, or use another folder"
        ) from None
    write_json(holder, {"process": os.getpid(), "host": socket.gethostname()})
    return lock


def _as_now(kind: type, written: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of fields that were not there when a configuration was written."""
    try:
        return jsonable(read_config(kind, written))
    except (TypeError, ValueError):  # one of another kind, whose differences are listed as they are
        return written


def _differences(old: Any, new: Any, name: str = "") -> dict[str, str]:
    """Say by the name of each field how it differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, str] = {}
        for part in [*new, *(part for part in old if part not in new)]:
            found |= _differences(old.get(part, _ABSENT), new.get(part, _ABSENT), f"{name}.{part}".lstrip("."))
        return found
    # As text, because a NaN is not equal to itself.
    shown_old, shown_new = ("absent" if value is _ABSENT else json.dumps(value) for value in (old, new))
    return {name: f"{name}: the folder has {shown_old}, this run {shown_new}"} if shown_old != shown_new else {}


_ABSENT = object()
