"""Spaces as JSON, so that what is stored says what it was made for."""

from typing import Any

import numpy as np

from dreamjax.types import EnvSpec, PyTree, Space


def spec_to_json(spec: EnvSpec) -> dict[str, Any]:
    """Describe a spec in what JSON can hold. Raises ValueError for trees of other than mappings, tuples and `Space`."""
    return {
        "observation": _write(spec.observation),
        "action": _write(spec.action),
        "max_steps": spec.max_steps,
    }


def spec_from_json(written: dict[str, Any]) -> EnvSpec:
    """Read what `spec_to_json` wrote. Raises ValueError for anything else."""
    try:
        return EnvSpec(_read(written["observation"]), _read(written["action"]), int(written["max_steps"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a description of spaces: {written!r}") from error


def space_to_json(space: Space) -> dict[str, Any]:
    """Describe one space; a bound that is infinite becomes null."""
    low, high = _finite(space.low), _finite(space.high)
    return {"shape": list(space.shape), "dtype": space.dtype.name, "low": low, "high": high}


def space_from_json(written: dict[str, Any]) -> Space:
    """Read what `space_to_json` wrote."""
    low, high = _bound(written["low"], -np.inf), _bound(written["high"], np.inf)
    return Space(tuple(written["shape"]), np.dtype(written["dtype"]), low, high)


def _write(tree: PyTree) -> dict[str, Any]:
    if isinstance(tree, Space):
        return space_to_json(tree)
    if isinstance(tree, dict):
        return {"mapping": {name: _write(part) for name, part in tree.items()}}
    if type(tree) is tuple:
        return {"tuple": [_write(part) for part in tree]}
    raise ValueError(f"a spec that is stored is made of dicts, tuples and Space, got {type(tree).__name__}")


def _read(written: dict[str, Any]) -> PyTree:
    if "mapping" in written:
        return {name: _read(part) for name, part in written["mapping"].items()}
    if "tuple" in written:
        return tuple(_read(part) for part in written["tuple"])
    return space_from_json(written)


def _finite(bound: Any) -> Any:
    if isinstance(bound, tuple):
        return [_finite(part) for part in bound]
    return bound if np.isfinite(bound) else None


def _bound(written: Any, infinite: float) -> Any:
    if isinstance(written, list):
        return [_bound(part, infinite) for part in written]
    return infinite if written is None else written
