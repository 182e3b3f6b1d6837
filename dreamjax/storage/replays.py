"""A `SequenceReplay` on disk: written a block at a time, and again only what has changed."""

import json
import os
import zipfile
import zlib
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from dreamjax.replay.sequences import SequenceReplay
from dreamjax.storage.atomic import replacing


class ReplayError(RuntimeError):
    """What was saved cannot be read."""


class ReplayFolder:
    """The last `keep` saved states of one replay, in a folder of their own."""

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder, self._keep = Path(folder), keep
        self._files: dict[int, str] = {}  # of the blocks that are as they were when saved or read

    def save(self, replay: SequenceReplay, step: int) -> None:
        """Write the blocks that have changed, and last of all the list of the files that belong to `step`.

        Killed at any moment, or unable to write (OSError), it leaves the older steps readable.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in sorted(replay.changed | (replay.blocks.keys() - self._files.keys())):
            self._files[number] = f"block-{number}-{step}.npz"
            _write_arrays(self.folder / self._files[number], replay.blocks[number])
        self._files = {number: self._files[number] for number in sorted(replay.blocks)}
        state: dict[str, Any] = {
            "shape": _shape(replay),
            "written": replay.written,
            "fresh": [list(pair) for pair in replay.fresh],
            "blocks": {str(number): name for number, name in self._files.items()},
        }
        if replay.priorities:
            state["priorities"] = f"priorities-{step}.npz"
            _write_arrays(self.folder / state["priorities"], [replay.priorities.steps])
        with replacing(self._list(step)) as temporary:
            temporary.write_text(json.dumps(state | {"crc32": _crc32(state)}))
        replay.changed.clear()
        for old in self.steps()[: -self._keep]:
            self._list(old).unlink()
        self._sweep()

    def steps(self) -> list[int]:
        """The steps that were saved, oldest first."""
        return sorted(int(file.stem.removeprefix("replay-")) for file in self.folder.glob("replay-*.json"))

    def shape(self, step: int) -> dict[str, Any]:
        """Streams, block, capacity and the kinds of arrays of what was saved. Raises ReplayError as `restore` does."""
        return _read(self._list(step))["shape"]

    def restore(self, replay: SequenceReplay, step: int) -> None:
        """Make `replay` what was saved at `step`, from a replay of the same steps and streams; later ones are dropped.

        Raises: ReplayError if something of it is missing or damaged, ValueError if it is of another replay.
        """
        state = _read(self._list(step))
        if state["shape"] != _shape(replay):
            raise ValueError(f"the replay in {self.folder} holds {state['shape']}, this one {_shape(replay)}")
        kinds = [((replay.streams, replay.cfg.block, *shape), dtype) for shape, dtype in replay.kinds]
        files = {int(number): name for number, name in state["blocks"].items()}
        blocks = {number: _read_arrays(self.folder / name, kinds) for number, name in files.items()}
        if replay.priorities:
            if "priorities" not in state:
                raise ValueError(f"the replay in {self.folder} has no priorities: set ReplayConfig.prioritized to 0")
            kept = replay.priorities.steps
            kept = _read_arrays(self.folder / state["priorities"], [(kept.shape, kept.dtype)])[0]
            replay.priorities.restore(kept, state["written"])
        replay.written, replay.blocks, self._files = state["written"], blocks, files
        replay.fresh = deque((stream, time) for stream, time in state["fresh"])
        replay.changed.clear()
        for later in [other for other in self.steps() if other > step]:
            self._list(later).unlink()

    def _list(self, step: int) -> Path:
        return self.folder / f"replay-{step}.json"

    def _sweep(self) -> None:
        needed: set[str] = set()
        for step in self.steps():
            state = _read(self._list(step))
            needed |= {*state["blocks"].values(), state.get("priorities", "")}
        for file in self.folder.glob("*.npz"):
            if file.name not in needed:
                file.unlink()


def _shape(replay: SequenceReplay) -> dict[str, Any]:
    steps = {name: [list(shape), dtype.name] for name, (shape, dtype) in zip(replay.names, replay.kinds, strict=True)}
    return {"streams": replay.streams, "block": replay.cfg.block, "capacity": replay.cfg.capacity, "steps": steps}


def _crc32(state: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(state, sort_keys=True).encode())


def _read(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text())
        sound = state.pop("crc32") == _crc32(state)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ReplayError(f"{path} cannot be read: {error}") from error
    if not sound:
        raise ReplayError(f"{path} does not match its checksum")
    return state


def _write_arrays(path: Path, arrays: list[np.ndarray]) -> None:
    with replacing(path) as temporary:
        np.savez(temporary, allow_pickle=False, **{f"leaf{i}": _plain(array) for i, array in enumerate(arrays)})


def _plain(array: np.ndarray) -> np.ndarray:
    """What numpy can store of an array: bfloat16 as its bits."""
    return array.view(np.uint16) if array.dtype.kind == "V" else array


def _read_arrays(path: Path, kinds: list[tuple[tuple[int, ...], np.dtype]]) -> list[np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:  # zip checks a CRC-32 of every array that is read
            arrays = [archive[f"leaf{i}"].view(dtype) for i, (_, dtype) in enumerate(kinds)]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ReplayError(f"{path} cannot be read: {error}") from error
    if [(array.shape, array.dtype) for array in arrays] != kinds:
        raise ReplayError(f"{path} holds other arrays than its list says")
    return arrays
