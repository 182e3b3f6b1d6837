"""A `SequenceReplay` on disk, in blocks, of which only what has changed is written again."""

import json
import math
import os
import resource
import tempfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from dreamjax.replay.sequences import Allocate, ReplayState, SequenceReplay
from dreamjax.storage.atomic import replacing
from dreamjax.storage.folder import folder_of

Kind = tuple[tuple[int, ...], np.dtype]  # shape and dtype of an array


class ReplayError(RuntimeError):
    """A saved replay cannot be read."""


def mapped(folder: str | os.PathLike[str]) -> Allocate:
    """Allocate arrays in files of a folder, for a replay that memory does not hold.

    The system keeps in memory what is used most. The files have no names, so that a killed process leaves nothing; all
    of their space is taken at once. Each stays open, for which this process may have as many open as it can.

    Raises: OSError, when it allocates, if the disk is full, or too many files are open.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        with tempfile.TemporaryFile(dir=folder) as file:
            size = max(1, math.prod(shape) * dtype.itemsize)
            if hasattr(os, "posix_fallocate"):  # a hole that finds no room later would kill the process
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
            return np.memmap(file, dtype, "r+", shape=shape)

    return allocate


class _Blocks(Mapping[int, list[np.ndarray]]):
    """Blocks of a replay in their files, each read when it is asked for."""

    def __init__(self, files: dict[int, list[Path]], kinds: list[Kind]) -> None:
        self._files, self._kinds = files, kinds  # of each leaf

    def __getitem__(self, number: int) -> list[np.ndarray]:
        leaves: dict[int, np.ndarray] = {}
        for path in dict.fromkeys(self._files[number]):
            kinds = {i: kind for i, kind in enumerate(self._kinds) if self._files[number][i] == path}
            leaves |= _read_arrays(path, kinds)
        return [leaves[i] for i in range(len(self._kinds))]

    def __iter__(self) -> Iterator[int]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class _Joined(Mapping[int, list[np.ndarray]]):
    """Blocks of which several replays hold some of the streams each, put together when they are asked for."""

    def __init__(self, parts: list[tuple[Mapping[int, list[np.ndarray]], slice]]) -> None:
        self._parts = parts

    def __getitem__(self, number: int) -> list[np.ndarray]:
        parts = ([leaf[mine] for leaf in blocks[number]] for blocks, mine in self._parts)
        return [np.concatenate(leaves) for leaves in zip(*parts, strict=True)]

    def __iter__(self) -> Iterator[int]:
        return iter(self._parts[0][0])

    def __len__(self) -> int:
        return len(self._parts[0][0])


class ReplayFolder:
    """The last `keep` saved states of one replay, in a folder of their own.

    Every block is a file, which is written again when it changed. Leaves that are named in `apart`, because they change
    in old blocks too, have files of their own, so that all others are written once when their block is full.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2, apart: Collection[str] = ()) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder, self._keep, self._apart = Path(folder), keep, apart
        # Version and file of each leaf of each block, as saved or read last.
        self._files: dict[int, list[tuple[int, str]]] = {}

    def save(self, replay: SequenceReplay, step: int, late: Sequence[np.ndarray] = (), parts: int = 1) -> None:
        """Write what has changed of the blocks, and finally the list of the files that belong to `step`.

        `late` are arrays of whoever owns the replay: what is still to be written into it. Several processes that save
        their `parts` of the streams each have a folder of their own.
        Older steps stay readable if the process is killed at any moment or the disk is full (OSError).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        state, files = replay.state(), dict[int, list[tuple[int, str]]]()
        for number, versions in sorted(replay.versions.items()):
            saved = self._files.get(number, [(0, "")] * len(versions))
            files[number] = list(saved)
            for prefix, is_apart in (("block", False), ("apart", True)):
                changed = {
                    i: state.blocks[number][i]
                    for i, (name, version) in enumerate(zip(replay.names, versions, strict=True))
                    if (name in self._apart) == is_apart and version != saved[i][0]
                }
                if changed:
                    file = self._write(f"{prefix}-{number}-{step}", changed)
                    files[number] = [(v, file) if i in changed else files[number][i] for i, v in enumerate(versions)]
        listed: dict[str, Any] = {
            "parts": parts,
            "shape": replay.layout,
            "written": state.written,
            "online": [list(pair) for pair in state.online],
            "blocks": {str(number): [name for _, name in leaves] for number, leaves in files.items()},
        }
        if state.priorities is not None:
            listed["priorities"] = self._write(f"priorities-{step}", {0: state.priorities})
        if late:
            listed["late"] = self._write(f"late-{step}", dict(enumerate(late)))
            listed["late_kinds"] = [[list(array.shape), array.dtype.name] for array in late]
        with replacing(self._list(step)) as temporary:
            temporary.write_text(json.dumps(listed | {"crc32": _crc32(listed)}))
        self._files = files
        for old in self.steps()[: -self._keep]:
            self._list(old).unlink()
        self._sweep()

    def steps(self) -> list[int]:
        """The steps that were saved, oldest first."""
        numbers = (file.stem.removeprefix("replay-") for file in self.folder.glob("replay-*.json"))
        return sorted(int(number) for number in numbers if number.isdecimal())  # others are somebody's copies

    def shape(self, step: int) -> dict[str, Any]:
        """The layout of the replay that was saved. Raises ReplayError as `restore` does."""
        return _read(self._list(step))["shape"]

    def parts(self, step: int) -> int | None:
        """Number of processes that saved together; None if an older version did not note it. Raises as `shape`."""
        return _read(self._list(step)).get("parts")

    def restore(self, replay: SequenceReplay, step: int) -> list[np.ndarray]:
        """Restore a replay of the same layout to what was saved at `step`, and return `late`; later steps are deleted.

        Raises: ReplayError if a file is missing or damaged, ValueError if the replay has another layout.
        """
        late = self.read(replay, step)
        for later in [other for other in self.steps() if other > step]:
            self._list(later).unlink()
        return late

    def read(self, replay: SequenceReplay, step: int) -> list[np.ndarray]:
        """Do as `restore`, and leave all files as they are."""
        state, late, files = self.peek(replay, step)
        replay.restore(state)
        self._files = {n: list(zip(replay.versions[n], names, strict=True)) for n, names in files.items()}
        return late

    def peek(self, replay: SequenceReplay, step: int) -> tuple[ReplayState, list[np.ndarray], dict[int, list[str]]]:
        """Return what was saved of a replay of the same layout, `late`, and the files of the leaves of each block.

        Blocks are read when they are asked for. Raises: as `restore` does.
        """
        listed = _read(self._list(step))
        if listed["shape"] != replay.layout:
            raise ValueError(f"the replay in {self.folder} holds {listed['shape']}, this one {replay.layout}")
        kinds = [((replay.streams, replay.cfg.block, *shape), dtype) for shape, dtype in replay.kinds]
        files = {
            int(number): [names] * len(kinds) if isinstance(names, str) else names  # one, as older versions listed
            for number, names in listed["blocks"].items()
        }
        blocks = _Blocks({number: [self.folder / name for name in names] for number, names in files.items()}, kinds)
        priorities = None
        if replay.priorities and "priorities" in listed:
            kept = replay.priorities.steps
            priorities = _read_arrays(self.folder / listed["priorities"], {0: (kept.shape, kept.dtype)})[0]
        late: list[np.ndarray] = []
        if "late" in listed:
            late_kinds = [(tuple(shape), np.dtype(dtype)) for shape, dtype in listed["late_kinds"]]
            late = list(_read_arrays(self.folder / listed["late"], dict(enumerate(late_kinds))).values())
        queue = listed["online"] if "online" in listed else listed["fresh"]  # as older versions named it
        online = [(stream, time) for stream, time in queue]
        return ReplayState(listed["written"], online, blocks, priorities), late, files

    def _list(self, step: int) -> Path:
        return self.folder / f"replay-{step}.json"

    def _write(self, stem: str, arrays: Mapping[int, np.ndarray]) -> str:
        """Write arrays to a new file, as a list may name one that is there already; return its name."""
        names = (f"{stem}{suffix}.npz" for suffix in chain([""], (f"-{again}" for again in count(1))))
        name = next(name for name in names if not (self.folder / name).exists())
        with replacing(self.folder / name) as temporary:
            np.savez(temporary, allow_pickle=False, **{f"leaf{i}": _plain(array) for i, array in arrays.items()})
        return name

    def _sweep(self) -> None:
        needed: set[str] = set()
        for step in self.steps():
            listed = _read(self._list(step))
            needed |= {listed.get("priorities", ""), listed.get("late", "")}
            for names in listed["blocks"].values():
                needed |= {names} if isinstance(names, str) else set(names)
        for file in self.folder.glob("*.npz"):
            if file.name not in needed:
                file.unlink()


def saved_parts(run: Path, step: int) -> list[ReplayFolder]:
    """The replays that the processes of a run have saved at a step. Raises ReplayError unless all are there."""
    replays = (ReplayFolder(folder_of(run, process) / "replay") for process in count())
    parts = list(takewhile(lambda replay: step in replay.steps(), replays))
    saved = parts[0].parts(step) or len(parts) if parts else 1
    if len(parts) < saved:
        missing = folder_of(run, len(parts)) / "replay"
        raise ReplayError(f"{missing} holds no replay of update {step}: copy it back, or name a recording")
    return parts[:saved]  # there may be another of that number, from before the run went on in fewer processes


def read_share(parts: Sequence[ReplayFolder], replay: SequenceReplay, step: int, first: int) -> list[list[np.ndarray]]:
    """Restore a replay from those of other processes than now, which held equal shares of all streams, in this order.

    The replay takes the streams from number `first` on. Return `late` of each part.

    Raises: as `ReplayFolder.restore` does, where the parts do not belong together as well.
    """
    late: list[list[np.ndarray]] = []
    states: list[ReplayState] = []
    blocks: list[tuple[Mapping[int, list[np.ndarray]], slice]] = []
    for number, part in enumerate(parts):
        shape = part.shape(step)
        streams, begin = shape["streams"], number * shape["streams"] - first  # as the replay counts
        held = SequenceReplay(replace(replay.cfg, capacity=shape["capacity"]), replay.example, streams)
        state, own, _ = part.peek(held, step)
        late.append(own)
        mine = slice(max(-begin, 0), max(replay.streams - begin, 0))
        blocks.append((state.blocks, mine))
        online = [(begin + stream, time) for stream, time in state.online if 0 <= begin + stream < replay.streams]
        priorities = None if state.priorities is None else state.priorities[mine]
        states.append(state._replace(online=online, priorities=priorities))
    written = states[0].written
    if any(state.written != written for state in states):
        raise ReplayError(f"the replays of step {step} hold {[state.written for state in states]} steps of a stream")
    online = sorted((pair for state in states for pair in state.online), key=lambda pair: pair[::-1])
    kept = [state.priorities for state in states if state.priorities is not None]
    replay.restore(ReplayState(written, online, _Joined(blocks), np.concatenate(kept) if kept else None))
    return late


def _crc32(listed: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(listed, sort_keys=True).encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        listed = json.loads(path.read_text())
        sound = listed.pop("crc32") == _crc32(listed)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ReplayError(f"{path} cannot be read: {error}") from error
    if not sound:
        raise ReplayError(f"{path} does not match its checksum")
    return listed


def _plain(array: np.ndarray) -> np.ndarray:
    """View bfloat16, which NumPy cannot store, as its bits."""
    return array.view(np.uint16) if array.dtype.kind == "V" else array


def _read_arrays(path: Path, kinds: Mapping[int, Kind]) -> dict[int, np.ndarray]:
    """Read some of the arrays in a file, by their numbers."""
    try:
        with np.load(path, allow_pickle=False) as archive:  # zip verifies a CRC-32 of every array
            arrays = {i: archive[f"leaf{i}"].view(dtype) for i, (_, dtype) in kinds.items()}
    except Exception as error:  # a damaged archive fails in a dozen ways, which differ between versions of Python
        raise ReplayError(f"{path} cannot be read: {error}") from error
    if {i: (array.shape, array.dtype) for i, array in arrays.items()} != kinds:
        raise ReplayError(f"{path} does not hold the arrays that its list names")
    return arrays
