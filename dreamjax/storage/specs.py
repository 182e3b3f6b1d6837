"""What an environment emits and takes, as JSON that keeps the structure of the pytrees."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamjax.types import EnvSpec, PyTree, Space


def describe_spec(spec: EnvSpec) -> dict[str, Any]:
    """Describe a spec in what JSON can hold.

    A space is {"shape", "dtype", "low", "high"}, where an infinite bound is None; a mapping of spaces is
    {"mapping": {name: ...}}, a tuple {"tuple": [...]}, and both may be nested.

    Raises: ValueError for a pytree of anything else.
    """
    return {
        "observation": _describe(spec.observation),
        "action": _describe(spec.action),
        "max_steps": spec.max_steps,
    }


def parse_spec(described: Mapping[str, Any]) -> EnvSpec:
    """Undo `describe_spec`. Raises ValueError if something is missing or wrong."""
    try:
        return EnvSpec(_parse(described["observation"]), _parse(described["action"]), int(described["max_steps"]))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"this does not describe a spec: {error!r}") from error


def _describe(spaces: PyTree) -> dict[str, Any]:
    match spaces:
        case Space():
            low, high = (_finite(np.asarray(bound, float).tolist()) for bound in (spaces.low, spaces.high))
            return {"shape": list(spaces.shape), "dtype": np.dtype(spaces.dtype).name, "low": low, "high": high}
        case Mapping():
            return {"mapping": {name: _describe(part) for name, part in spaces.items()}}
        case tuple():
            return {"tuple": [_describe(part) for part in spaces]}
    raise ValueError(f"only spaces, mappings and tuples of them can be written down, got {spaces!r}")


def _parse(described: Mapping[str, Any]) -> PyTree:
    if "mapping" in described:
        return {name: _parse(part) for name, part in described["mapping"].items()}
    if "tuple" in described:
        return tuple(_parse(part) for part in described["tuple"])
    low, high = (_bounded(described[name], bound) for name, bound in (("low", -np.inf), ("high", np.inf)))
    return Space(tuple(described["shape"]), np.dtype(described["dtype"]).type, low, high)


def _finite(bound: Any) -> Any:
    if isinstance(bound, list):
        return [_finite(part) for part in bound]
    return bound if np.isfinite(bound) else None


def _bounded(bound: Any, infinite: float) -> Any:
    if isinstance(bound, list):
        return [_bounded(part, infinite) for part in bound]
    return infinite if bound is None else bound
