"""Weight files: the arrays of a tree, in a compressed `.npz`, or in a `.safetensors` that other libraries read too."""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dreamjax._extras import extra
from dreamjax.storage.atomic import read_npz, replacing
from dreamjax.storage.leaves import (
    CheckpointError,
    check_same,
    describe,
    from_numpy,
    named_leaves,
    same_kind,
    to_numpy,
)
from dreamjax.types import PyTree

SUFFIXES = ".npz", ".safetensors"


def save_weights(path: str | os.PathLike[str], tree: PyTree, dtype: Any = None) -> None:
    """Write the arrays of `tree` to one file, named by their "/"-joined paths, atomically.

    `dtype`, for instance `np.float16`, is what floating-point leaves are stored as; None keeps their types. Equal
    weights give equal bytes (neither format carries a date), so the file may live in version control.

    Raises:
        ValueError: `path` ends in neither .npz nor .safetensors, a leaf has a type that is not stored (a typed key,
            bfloat16), or a finite value is too large for `dtype`.
        ModuleNotFoundError: a .safetensors without the extra "export".
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"weights are stored as {' or '.join(SUFFIXES)}, got {path.name!r}")
    arrays = {}
    for name, leaf in named_leaves(tree).items():
        array = to_numpy(name, leaf)
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key) or array.dtype.kind not in "biuf":
            raise ValueError(f"leaf {name!r} is {leaf.dtype}, which a weight file cannot hold: leave it out or cast it")
        if dtype is not None and array.dtype.kind == "f":
            with np.errstate(over="ignore"):  # reported below, with the name of the leaf
                stored = array.astype(dtype)
            if not np.array_equal(np.isfinite(stored), np.isfinite(array)):
                raise ValueError(f"leaf {name!r} has values too large for {np.dtype(dtype)}: store it as float32")
            array = stored
        arrays[name] = array
    with replacing(path) as temporary:
        if path.suffix == ".npz":
            np.savez_compressed(temporary, allow_pickle=False, **arrays)
        else:
            with extra("export", "a .safetensors file"):
                from safetensors.numpy import save_file
            save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, temporary)


def load_weights(path: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Read a file of `save_weights` into the structure, shapes and types of `like` (arrays or `ShapeDtypeStruct`s).

    Raises:
        FileNotFoundError, PermissionError: there is no such file, or it may not be read.
        CheckpointError: the file is damaged; every entry of a .npz carries a CRC-32, a .safetensors has none.
        ValueError: the names or shapes differ from those of `like`, or one side is floating-point and the other not.
    """
    return fit_arrays(read_arrays(path), like, os.fspath(path))


def fit_arrays(arrays: dict[str, np.ndarray], like: PyTree, where: str) -> PyTree:
    """Put named arrays into the structure, shapes and types of `like`; `where` they are from is named in errors.

    Raises: ValueError as `load_weights` does.
    """
    leaves = named_leaves(like)
    found = {name: {"dtype": array.dtype.name, "shape": list(array.shape)} for name, array in arrays.items()}
    check_same(found, leaves, where, same_kind)
    values = [from_numpy(arrays[name].astype(describe(leaf)["dtype"]), leaf, {}) for name, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), values)


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read all that is in a file of `save_weights`, by name. Raises: as `load_weights` does of the file itself."""
    if Path(path).suffix == ".safetensors":
        with extra("export", "a .safetensors file"):
            from safetensors import SafetensorError
            from safetensors.numpy import load_file
        try:
            return load_file(path)
        except FileNotFoundError:
            raise
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointError(f"{path} is damaged ({error}): restore it from a copy, or delete it") from error
    try:
        return read_npz(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
