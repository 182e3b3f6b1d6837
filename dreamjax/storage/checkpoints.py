"""Checkpoints that prove themselves on reading, and compact weight files.

Orbax writes the files, commits a step by renaming its folder and keeps the last few. What it does not do is added here:
it neither notices a flipped bit nor an empty folder with a number for a name, and it skips a step that is not newer
than the latest one without an error. Every leaf therefore carries a CRC-32, which `restore` verifies, going back to an
older step where one is damaged.

Trees are gathered to host memory, so that a checkpoint written on one set of devices is read on any other. One process.
"""

import logging
import os
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from dreamjax.storage.atomic import replacing
from dreamjax.types import PyTree

_NUMBER_KINDS = {"bool": np.bool_, "int": np.integer, "float": jnp.floating}  # by Python name


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or none could be read."""


class _DamageError(Exception):
    """One checkpoint is not what was written."""


class Checkpoints:
    """The last `keep` checkpoints of one training, in a folder of their own.

    A step that cannot be read as it was written is renamed to `damaged-<step>`, never deleted, and the step before it
    is used instead; so `keep` should be at least 2.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.folder = Path(folder).absolute()
        # A save ends before `save` returns: an error belongs to the step that caused it, a kill later costs nothing.
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
        with _quiet_orbax():
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """The steps in the folder, oldest first, whether readable or not."""
        with _quiet_orbax():
            self._manager.reload()
            return sorted(self._manager.all_steps())

    def save(self, step: int, tree: PyTree) -> None:
        """Write `tree` (arrays, typed keys, Python numbers) as `step`; killed halfway, it leaves the older steps valid.

        Raises:
            ValueError: `step` is not newer than the latest one, or a leaf is neither an array nor a number.
            CheckpointError: it could not be written, for one because the disk is full. Older steps stay valid.
        """
        existing = self.steps()
        if existing and step <= existing[-1]:
            raise ValueError(
                f"step {step} is not newer than step {existing[-1]} in {self.folder}. To continue this training call "
                "restore() first and go on from the step it returns; for a new one use another folder."
            )
        leaves = _named_leaves(tree)
        arrays = {name: _to_numpy(name, leaf) for name, leaf in leaves.items()}
        records = {name: _describe(leaf) | {"crc32": _crc32(arrays[name])} for name, leaf in leaves.items()}
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

    def restore(self, like: PyTree) -> tuple[int, PyTree] | None:
        """Read the newest undamaged step into the structure of `like`; None where no step was ever saved.

        `like` holds arrays, `jax.ShapeDtypeStruct`s (see `jax.eval_shape`) or Python numbers, and each leaf comes back
        as the kind of thing it is there: numpy as numpy, a Python number as one, all else as a jax array, sharded as
        the leaf of `like` is where that was put somewhere, and on the default device otherwise.

        Raises:
            ValueError: the checkpoint is sound, and `like` differs from it in structure, shape or type.
            CheckpointError: there are checkpoints, all of them damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                records = self._read_records(step)
                leaves = _named_leaves(like)
                _check_same(records, leaves, f"step {step} in {self.folder}")
                arrays = self._read_arrays(step, records)
            except _DamageError as damage:
                self._set_aside(step, damage)
                continue
            values = [_from_numpy(arrays[name], leaf, records[name]) for name, leaf in leaves.items()]
            return step, jax.tree.unflatten(jax.tree.structure(like), values)
        if not steps:
            return None
        raise CheckpointError(
            f"every checkpoint in {self.folder} is damaged ({steps}); they were renamed to damaged-<step>. "
            "Copy a sound one back, or start this training again, which writes new ones beside them."
        )

    def _read_records(self, step: int) -> dict[str, Any]:
        meta = self._read(step, "meta", ocp.args.JsonRestore())
        try:
            sound = meta["crc32"] == _records_crc32(meta["leaves"])
        except (TypeError, KeyError) as error:
            raise _DamageError(f"its list of leaves cannot be understood ({error!r})") from error
        if not sound:
            raise _DamageError("its list of leaves does not match its checksum")
        return meta["leaves"]

    def _read_arrays(self, step: int, records: dict[str, Any]) -> dict[str, np.ndarray]:
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

    def _set_aside(self, step: int, damage: _DamageError) -> None:
        aside = self.folder / f"damaged-{step}"
        copies = 1
        while aside.exists():
            copies += 1
            aside = self.folder / f"damaged-{step}-{copies}"
        os.rename(self.folder / str(step), aside)
        warnings.warn(
            f"checkpoint {step} in {self.folder} is damaged: {damage}. It was renamed to {aside.name}; "
            "going back to the checkpoint before it.",
            stacklevel=3,
        )

    def _remove_unfinished(self) -> None:
        """Free the space of saves that were cut off; only called by the process that saves, so none is under way."""
        for unfinished in self.folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished)


def save_weights(path: str | os.PathLike[str], tree: PyTree, dtype: Any = None) -> None:
    """Write the arrays of `tree` to one compressed `.npz`, named by their "/"-joined paths, atomically.

    `dtype`, for instance `np.float16`, is what floating-point leaves are stored as; None keeps them. Equal weights
    make equal bytes (a `.npz` carries no date), so the file may live in version control.

    Raises:
        ValueError: `path` does not end in .npz, a leaf has a type that a `.npz` cannot hold (a typed key, bfloat16), or
            a finite value is too large for `dtype`.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"weights are stored as .npz, got {path.name!r}")
    arrays = {}
    for name, leaf in _named_leaves(tree).items():
        array = _to_numpy(name, leaf)
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key) or array.dtype.kind not in "biuf":
            raise ValueError(f"leaf {name!r} is {leaf.dtype}, which a .npz cannot hold: leave it out or cast it")
        if dtype is not None and array.dtype.kind == "f":
            with np.errstate(over="ignore"):  # reported below, with the name of the leaf
                stored = array.astype(dtype)
            if not np.array_equal(np.isfinite(stored), np.isfinite(array)):
                raise ValueError(f"leaf {name!r} has values too large for {np.dtype(dtype)}: store it as float32")
            array = stored
        arrays[name] = array
    with replacing(path) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)


def load_weights(path: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Read a file of `save_weights` into the structure, shapes and types of `like` (arrays or `ShapeDtypeStruct`s).

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged (every entry carries a CRC-32).
        ValueError: the names or shapes differ from those of `like`, or one side is floating-point and the other not.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            broken = archive.zip.testzip()
            if broken is not None:
                raise zipfile.BadZipFile(f"entry {broken!r} does not match its checksum")
            arrays = dict(archive)
    except FileNotFoundError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. Fetch it or write it again.") from error
    leaves = _named_leaves(like)
    differences = _different_names(arrays, leaves)
    for name in arrays.keys() & leaves.keys():
        wanted = _describe(leaves[name])
        found = {"dtype": arrays[name].dtype.name, "shape": list(arrays[name].shape)}
        if found["shape"] != wanted["shape"] or _kind(found["dtype"]) != _kind(wanted["dtype"]):
            differences.append(f"{name}: the file has {_brief(found)}, asked for {_brief(wanted)}")
    _raise_differences(differences, os.fspath(path))
    values = [_from_numpy(arrays[name].astype(_describe(leaf)["dtype"]), leaf, {}) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), values)


def _named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by their path, in the order of `jax.tree.leaves`; a tree that is one leaf is named "value"."""
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/") or "value": leaf for path, leaf in pairs}
    if len(named) < len(pairs):
        raise ValueError('two leaves of the tree have the same "/"-joined path: rename one of them')
    if not named:
        raise ValueError("the tree has no leaves")
    return named


def _describe(leaf: Any) -> dict[str, Any]:
    if type(leaf).__name__ in _NUMBER_KINDS:
        return {"dtype": type(leaf).__name__, "shape": []}
    if not hasattr(leaf, "dtype"):
        raise ValueError(f"a leaf is a {type(leaf).__name__}: only arrays and Python numbers can be stored")
    record = {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) and isinstance(leaf, jax.Array):
        record["key_impl"] = str(jax.random.key_impl(leaf))
    return record


def _to_numpy(name: str, leaf: Any) -> np.ndarray:
    is_key = jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    if array.dtype.kind in "OUSMm":
        raise ValueError(f"leaf {name!r} is a {type(leaf).__name__}: only arrays and Python numbers can be stored")
    return array


def _from_numpy(array: np.ndarray, leaf: Any, record: dict[str, Any]) -> Any:
    """`array` as the kind of thing that `leaf` is."""
    if type(leaf).__name__ in _NUMBER_KINDS:
        return type(leaf)(array.item())
    if isinstance(leaf, np.generic):
        return array[()]
    if isinstance(leaf, np.ndarray):
        return array
    if "key_impl" in record:
        value = jax.random.wrap_key_data(jnp.asarray(array), impl=record["key_impl"])
    elif record.get("dtype") in _NUMBER_KINDS and not array.shape:
        value = jnp.asarray(np.asarray(array.item(), leaf.dtype))  # numpy refuses a number that does not fit
    else:
        value = jnp.asarray(array)
    sharding = getattr(leaf, "sharding", None)
    placed = sharding is not None and getattr(leaf, "committed", True)
    # What differs in its sharding alone, were it over one device, is compiled for once more.
    return jax.device_put(value, sharding) if placed else value


def _crc32(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _records_crc32(records: dict[str, Any]) -> int:
    lines = [f"{name} {sorted(record.items())}" for name, record in sorted(records.items())]
    return zlib.crc32("\n".join(lines).encode())


def _check_same(records: dict[str, Any], leaves: dict[str, Any], where: str) -> None:
    differences = _different_names(records, leaves)
    for name in records.keys() & leaves.keys():
        saved, wanted = records[name], _describe(leaves[name])
        if not _agree(saved, wanted) and not _agree(wanted, saved):
            differences.append(f"{name}: the file has {_brief(saved)}, asked for {_brief(wanted)}")
    _raise_differences(differences, where)


def _agree(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether two descriptions name the same thing; a Python number is the same as any scalar array of its kind."""
    is_number_like = left["dtype"] in _NUMBER_KINDS and _kind(right["dtype"]) == left["dtype"]
    return left["shape"] == right["shape"] and (left["dtype"] == right["dtype"] or is_number_like)


def _kind(dtype: str) -> str:
    if dtype.startswith("key<"):
        return "key"
    return next((kind for kind, parent in _NUMBER_KINDS.items() if jnp.issubdtype(dtype, parent)), dtype)


def _different_names(saved: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    only_saved = [f"{name}: in the file, not asked for" for name in saved.keys() - wanted.keys()]
    return only_saved + [f"{name}: asked for, not in the file" for name in wanted.keys() - saved.keys()]


def _raise_differences(differences: list[str], where: str) -> None:
    if differences:
        shown = "\n  ".join(sorted(differences)[:20]) + ("\n  ..." if len(differences) > 20 else "")
        raise ValueError(f"{where} does not fit; was it written with another configuration?\n  {shown}")


def _brief(record: dict[str, Any]) -> str:
    return f"{record['dtype']}[{','.join(map(str, record['shape']))}]"


@contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Orbax logs a page to stderr for what is raised or handled here anyway."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
