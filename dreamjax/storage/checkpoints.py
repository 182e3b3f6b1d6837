"""Checkpoints that are verified when they are read.

Orbax writes the files, commits a step by renaming its folder and keeps the last few. Three things are added here,
because it notices neither a flipped bit nor an empty folder named like a step, and silently skips a step that is not
newer than the latest one: every leaf carries a CRC-32, `restore` verifies it and falls back to an older step if one is
damaged, and saving out of order is an error. Who only reads changes nothing in the folder, which may be that of a
training under way.

Trees are copied to host memory, so that a checkpoint written on one set of devices can be read on any other. Where
several processes train together, all of them save, each has a part of what is spread over them, and the first one
writes; each of them reads for itself, so that there may then be fewer or more of them.
"""

import logging
import os
import shutil
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dreamjax.storage.leaves import (
    CheckpointError,
    Record,
    check_same,
    describe,
    from_numpy,
    is_spread,
    named_leaves,
    same_type,
    to_numpy,
)
from dreamjax.types import PyTree


class _DamageError(Exception):
    """A checkpoint is not what was written."""


class Checkpoints:
    """The last `keep` checkpoints of one training, in a folder of their own.

    A damaged step is never deleted, and the step before it is used instead, so `keep` should be at least 2.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = Path(folder).absolute()
        # Synchronous, so that an error belongs to the step that caused it and a later kill costs nothing.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, create=False, multiprocessing_options=_alone()
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        with _quiet_orbax():
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """The steps in the folder, oldest first, whether readable or not."""
        with _quiet_orbax():
            self._manager.reload()
            return sorted(self._manager.all_steps())

    def save(self, step: int, tree: PyTree) -> None:
        """Write `tree` (arrays, typed keys, Python numbers) as `step`. If killed halfway, older steps stay valid.

        Processes that train together call it together.

        Raises:
            ValueError: `step` is not newer than the latest one, or a leaf is neither an array nor a number.
            CheckpointError: it could not be written, for instance because the disk is full. Older steps stay valid.
        """
        leaves = named_leaves(tree)
        writes = jax.process_index() == 0
        if not writes:
            for name, leaf in leaves.items():
                if is_spread(leaf):
                    to_numpy(name, leaf)  # gathered with the others, and dropped before the next
            return
        arrays = {name: to_numpy(name, leaf) for name, leaf in leaves.items()}
        existing = self.steps()
        if existing and step <= existing[-1]:
            raise ValueError(
                f"step {step} is not newer than step {existing[-1]} in {self.folder}. To continue this training call "
                "restore(like, set_aside=True) first and go on from the step it returns; for a new one use another "
                "folder."
            )
        records = {name: describe(leaf) | {"crc32": _crc32(arrays[name])} for name, leaf in leaves.items()}
        meta = {"leaves": records, "crc32": _records_crc32(records)}
        stored = {name: array for name, array in arrays.items() if array.size}  # orbax refuses arrays without elements
        items = {"meta": ocp.args.JsonSave(meta)} | ({"state": ocp.args.StandardSave(stored)} if stored else {})
        self._remove_unfinished()
        try:
            with _quiet_orbax():
                saved = self._manager.save(step, args=ocp.args.Composite(**items))
        except Exception as error:
            self._remove_unfinished()
            free = shutil.disk_usage(self.folder).free / 2**20
            size = sum(array.nbytes for array in arrays.values()) / 2**20
            raise CheckpointError(
                f"could not save step {step} ({size:.0f} MiB) in {self.folder}, "
                f"where {free:.0f} MiB are free: {error}\n"
                f"The checkpoints already there ({existing or 'none'}) are untouched: make room and start again."
            ) from error
        if not saved:
            raise CheckpointError(f"orbax declined to save step {step} in {self.folder}")

    def restore(self, like: PyTree, set_aside: bool = False) -> tuple[int, PyTree] | None:
        """Read the newest undamaged step into the structure of `like`; None if no step was ever saved.

        With `set_aside` damaged steps that are newer are renamed to `damaged-<step>`, so that training can go on and
        save from there: only who trains may do so. To all others an error of reading may be theirs alone.

        `like` holds arrays, `jax.ShapeDtypeStruct`s (see `jax.eval_shape`) or Python numbers, and every leaf comes back
        as the same type: NumPy arrays, Python numbers, and otherwise JAX arrays, sharded as the leaf of `like` if that
        was committed to devices, else on the default device.

        Raises:
            ValueError: the checkpoint is intact, but `like` differs from it in structure, shape or type.
            CheckpointError: there are checkpoints, but all of them are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                records = self._read_records(step)
                leaves = named_leaves(like)
                check_same(records, leaves, f"step {step} in {self.folder}", same_type)
                arrays = self._read_arrays(step, records)
            except _DamageError as damage:
                self._pass_over(step, damage, set_aside)
                continue
            values = [from_numpy(arrays[name], leaf, records[name]) for name, leaf in leaves.items()]
            return step, jax.tree.unflatten(jax.tree.structure(like), values)
        if not steps:
            return None
        renamed = "; they were renamed to damaged-<step>" if set_aside else ""
        raise CheckpointError(
            f"every checkpoint in {self.folder} is damaged ({steps}){renamed}. "
            "Copy a sound one back, or start this training again, which writes new ones beside them."
        )

    def _read_records(self, step: int) -> dict[str, Record]:
        meta = self._read(step, "meta", ocp.args.JsonRestore())
        try:
            sound = meta["crc32"] == _records_crc32(meta["leaves"])
        except (TypeError, KeyError) as error:
            raise _DamageError(f"its list of leaves cannot be understood ({error!r})") from error
        if not sound:
            raise _DamageError("its list of leaves does not match its checksum")
        return meta["leaves"]

    def _read_arrays(self, step: int, records: dict[str, Record]) -> dict[str, np.ndarray]:
        arrays = {
            name: np.zeros(record["shape"], "uint32" if "key_impl" in record else record["dtype"])
            for name, record in records.items()
            if 0 in record["shape"]
        }
        if len(arrays) < len(records):
            arrays |= self._read(step, "state", ocp.args.StandardRestore())
        for name, record in records.items():
            if name not in arrays:
                raise _DamageError(f"leaf {name!r} is missing")
            if _crc32(arrays[name]) != record["crc32"]:
                raise _DamageError(f"leaf {name!r} does not match its checksum")
        return arrays

    def _read(self, step: int, item: str, args: Any) -> Any:
        try:
            with _quiet_orbax():
                return self._manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
        except MemoryError:
            raise
        except Exception as error:  # orbax and tensorstore raise bare exceptions of many types for a damaged file
            raise _DamageError(f"orbax cannot read its {item} ({repr(error)[:200]})") from error

    def _pass_over(self, step: int, damage: _DamageError, set_aside: bool) -> None:
        if jax.process_index():  # the first process sees the same damage
            return
        done = "It was left as it is"
        if set_aside:
            aside = self.folder / f"damaged-{step}"
            copies = 1
            while aside.exists():
                copies += 1
                aside = self.folder / f"damaged-{step}-{copies}"
            os.rename(self.folder / str(step), aside)
            done = f"It was renamed to {aside.name}"
        warnings.warn(
            f"checkpoint {step} in {self.folder} is damaged: {damage}. {done}; going back to the checkpoint before it.",
            stacklevel=3,
        )

    def _remove_unfinished(self) -> None:
        """Delete saves that were interrupted. Only the process that saves calls this, so none is in progress."""
        for unfinished in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished)


def newest(folder: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Read the newest undamaged checkpoint in a folder; `like` itself, which is arrays, if there never was one.

    Raises: as `Checkpoints.restore` does.
    """
    found = Checkpoints(folder).restore(like) if Path(folder).exists() else None
    return like if found is None else found[1]


def _alone() -> Any:
    """Options for orbax not to wait for other processes: each reads for itself, and one alone writes."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    this = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})


def _crc32(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _records_crc32(records: dict[str, Record]) -> int:
    lines = [f"{name} {sorted(record.items())}" for name, record in sorted(records.items())]
    return zlib.crc32("\n".join(lines).encode())


@contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Silence orbax, which logs a page to stderr about errors that are raised or handled here anyway."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
