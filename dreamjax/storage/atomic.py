"""Atomic writing: a file is either the old one or the new one, never half of one."""

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and move it onto `path` when the block ends without an error.

    The temporary name keeps the suffix, because writers of images and videos choose the format by it. If the block
    raises, the old file stays as it was and the temporary one is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write dataclasses, dicts, sequences, numbers and small arrays as JSON."""
    text = json.dumps(jsonable(value), indent=2) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text)


def read_json(path: Path) -> Any:
    """Read JSON. Raises FileNotFoundError, or ValueError, which names the file, if it is not JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): restore it from a copy, or delete it") from error


def read_npz(path: str | os.PathLike[str], *names: str) -> dict[str, np.ndarray]:
    """Read the arrays of an archive, or those of `names` that it has; zip verifies a CRC-32 of each.

    Raises: ValueError, which names the file, if it is damaged; FileNotFoundError and PermissionError.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names or arrays.files if name in arrays.files}
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:  # a damaged archive fails in a dozen ways, which differ between versions of Python
        raise ValueError(f"{path} is damaged ({error}): restore it from a copy, or delete it") from error


def jsonable(value: Any) -> Any:
    """Convert `value` to what JSON can hold. Raises ValueError if that is impossible."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "tolist") and not isinstance(value, type):  # arrays and scalars of numpy and jax
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, type | np.dtype):  # float, jnp.bfloat16, np.dtype("float32")
        return value.name if isinstance(value, np.dtype) else value.__name__
    raise ValueError(f"{value!r} cannot be written as JSON")
