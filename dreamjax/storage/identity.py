"""What a stored number depends on, so that it is never taken for a number of something else.

A description in words names functions, classes and arguments; a fingerprint is the digest of descriptions. Neither
depends on the process or on where objects lie in memory. What cannot be described is refused rather than guessed.
"""

import dataclasses
import enum
import functools
import hashlib
import os
import sys
from collections.abc import Mapping, Set
from importlib import metadata
from pathlib import Path
from types import BuiltinFunctionType, CodeType, EllipsisType, FunctionType, MethodType, ModuleType
from typing import Any

import gymnasium
import jax
import numpy as np

from dreamjax.storage.atomic import read_json, write_json

_LIBRARY = Path(__file__).parents[1]
_PACKAGES = ("jax", "flax", "numpy", "gymnasium", "vizdoom", "dm-control", "mujoco", "ale-py", "crafter", "envpool")
_IN_PYTHON = 1 << 9  # flag of a class that Python code defines, whose objects hold nothing but their attributes
_INPUTS = "inputs.json"  # in a run folder: what a run began with besides its configuration


def fingerprint(*values: Any, code: bool = True) -> str:
    """Return a digest of values and, unless `code` is false, of the code that they come from.

    That is this library's, with the versions of what it computes and plays with, and what `describe` says of values.

    Raises: as `describe` does.
    """
    library = [_library(), *(f"{name} {_release(name)}" for name in _PACKAGES)] if code else []
    return _digest("\n".join([*library, *(describe(value, code) for value in values)]).encode())


def describe(value: Any, code: bool = True) -> str:
    """Describe plain values, arrays, functions, classes, partials, and containers and plain objects of them.

    A function is its name, what it closes over, its defaults, its constants and the globals that it reads. With `code`
    also its bytecode and where it comes from: the version of an installed package, or the contents of another file.
    An object of a class that is not written in Python is its bytes, if it pickles as such: a model of MuJoCo does.

    Raises: ValueError for any other object, whose next process could not tell that it is the same.
    """
    return _Describer(code).describe(value)


def pin(folder: str | os.PathLike[str], name: str, of: str) -> None:
    """Write down what a run begins with besides its configuration: an environment by name, an agent by its fingerprint.

    Raises: ValueError if the folder was begun with another one.
    """
    known = pinned(folder)
    if known.setdefault(name, of) != of:
        raise ValueError(
            f"{folder} was begun with another {name}, {known[name]}, not {of}: use another folder, or bring the former "
            "one back"
        )
    write_json(Path(folder) / _INPUTS, known)


def pinned(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Read what `pin` wrote down; nothing if it never did."""
    path = Path(folder) / _INPUTS
    return read_json(path) if path.exists() else {}


class _Describer:
    def __init__(self, code: bool) -> None:
        self._code = code
        self._within: list[int] = []  # functions and objects that are being described, which may refer to themselves

    def describe(self, value: Any) -> str:
        match value:
            case None | EllipsisType() | bool() | int() | float() | complex() | str() | bytes() | enum.Enum():
                return repr(value)
            case gymnasium.Space() | jax.tree_util.PyTreeDef() | jax.ShapeDtypeStruct():
                return repr(value)
            case os.PathLike():
                return repr(os.fspath(value))
            case np.dtype():
                return value.str
            case type():
                return self._named(value)
            case jax.sharding.Mesh():  # what is computed does not depend on how many devices share it
                return f"Mesh{value.axis_names}"
            case np.ndarray() if value.dtype.hasobject:
                return f"object{list(value.shape)} {self.describe(value.ravel().tolist())}"
            case np.ndarray() | np.generic() | jax.Array():
                return _array(value)
            case Mapping():
                items = (f"{self.describe(name)}: {self.describe(item)}" for name, item in value.items())
                return "{" + ", ".join(sorted(items)) + "}"
            case Set():
                return "{" + ", ".join(sorted(map(self.describe, value))) + "}"
            case tuple() | list() | slice() | range():
                parts = (value.start, value.stop, value.step) if isinstance(value, slice | range) else value
                return f"{type(value).__name__}({', '.join(map(self.describe, parts))})"
            case functools.partial():
                named = (f"{name}={self.describe(item)}" for name, item in sorted(value.keywords.items()))
                return f"{self.describe(value.func)}({', '.join([*map(self.describe, value.args), *named])})"
            case ModuleType():
                return value.__name__ + self._origin(value.__name__)
            case BuiltinFunctionType():
                owner = value.__self__
                return value.__name__ if owner is None else f"{self.describe(owner)}.{value.__name__}"
            case MethodType():
                return f"{self.describe(value.__self__)}.{value.__func__.__name__}"
            case FunctionType():
                return self._function(value)
        if hasattr(value, "__wrapped__"):  # jitted, cached
            return self.describe(value.__wrapped__)
        if isinstance(value, np.ufunc):
            return value.__name__
        if dataclasses.is_dataclass(value):
            return self._object(value, {one.name: getattr(value, one.name) for one in dataclasses.fields(value)})
        if all(kind.__flags__ & _IN_PYTHON for kind in type(value).__mro__[:-1]) and hasattr(value, "__dict__"):
            return self._object(value, vars(value))
        if isinstance(state := _state(value), bytes):
            return f"{self._named(type(value))}({_digest(state)})"
        raise ValueError(
            f"{value!r} cannot be told from another {type(value).__name__} in the next process: use functions, classes "
            "and functools.partial of plain values"
        )

    def _object(self, value: Any, fields: dict[str, Any]) -> str:
        if id(value) in self._within:
            return type(value).__qualname__
        self._within.append(id(value))
        described = [f"{name}={self.describe(field)}" for name, field in fields.items()]
        self._within.pop()
        return f"{self._named(type(value))}({', '.join(described)})"

    def _named(self, thing: Any) -> str:
        return f"{thing.__module__}.{thing.__qualname__}{self._origin(thing.__module__)}"

    def _function(self, function: FunctionType) -> str:
        if id(function) in self._within:
            return function.__qualname__
        self._within.append(id(function))
        parts = [cell.cell_contents for cell in function.__closure__ or ()]
        parts += [*(function.__defaults__ or ()), *sorted((function.__kwdefaults__ or {}).items())]
        described = [self.describe(part) for part in parts]
        if _is_own(function.__module__):
            described += [self._bytes(function.__code__), *self._globals(function)]
        self._within.pop()
        return f"{self._named(function)}({', '.join(described)})"

    def _bytes(self, code: CodeType) -> str:
        constants = (self._bytes(one) if isinstance(one, CodeType) else self.describe(one) for one in code.co_consts)
        return f"[{_digest(code.co_code) if self._code else ''}; {', '.join(code.co_names)}; {', '.join(constants)}]"

    def _globals(self, function: FunctionType) -> list[str]:
        """Describe what a function reads from its module, as far as that can be described."""
        names = sorted(_names(function.__code__) & function.__globals__.keys())
        described = []
        for name in names:
            try:
                described.append(f"{name}: {self.describe(function.__globals__[name])}")
            except ValueError:  # such as a lock; a global object is part of the file that makes it
                described.append(f"{name}: {type(function.__globals__[name]).__name__}")
        return described

    def _origin(self, module: str) -> str:
        """Version or contents of what a module belongs to; nothing for this library, whose code is one digest."""
        return f"@{_version(module)}" if self._code and not _is_library(module) else ""


def _names(code: CodeType) -> set[str]:
    """Names that a function and those within it read."""
    inner = (_names(one) for one in code.co_consts if isinstance(one, CodeType))
    return set(code.co_names).union(*inner)


def _state(value: Any) -> Any:
    """Return what an object is pickled as, besides its class; None if it cannot be."""
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:  # other people's classes refuse in many ways; who asks then says which object it was
        return None
    return reduced[2] if isinstance(reduced, tuple) and len(reduced) > 2 else None


def _array(value: Any) -> str:
    if isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        return f"key {_array(jax.random.key_data(value))}"
    whole = np.asarray(value)
    return f"{whole.dtype}{list(whole.shape)} {_digest(np.ascontiguousarray(whole).tobytes())}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _file(module: str) -> Path | None:
    name = getattr(sys.modules.get(module), "__file__", None)
    return Path(name) if name else None


def _is_library(module: str) -> bool:
    return module.partition(".")[0] == __name__.partition(".")[0]


def _is_own(module: str) -> bool:
    """Whether a module is neither this library nor an installed one, so that its functions are told by their code."""
    file = _file(module)
    return not _is_library(module) and not (file and "site-packages" in file.parts)


def _version(module: str) -> str:
    """Return the version of an installed package, and of anything else what its file holds."""
    file = _file(module)
    if file is None or not file.is_file():  # built in, or typed
        return ""
    if "site-packages" not in file.parts:
        return _digest(file.read_bytes())
    top = module.partition(".")[0]  # it may be installed by another name than it is imported by
    return _release(top) or str(getattr(sys.modules.get(top), "__version__", ""))


def _release(package: str) -> str:
    """Version of a package; nothing if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


@functools.cache
def _library() -> str:
    """Digest of this library's code."""
    return _digest(b"".join(path.read_bytes() for path in sorted(_LIBRARY.rglob("*.py"))))
