"""What Gymnasium's spaces are as arrays, and checks of what environments return. Imports no JAX, for quick workers."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction


class InvalidStep(ValueError):
    """An environment returned something other than what its spaces declare; repeating the episode would not help."""


class Leaf(NamedTuple):
    """One array of an observation or action."""

    name: str  # its path, "" where the space is a single one
    space: spaces.Space
    shape: tuple[int, ...]
    dtype: Any  # in 32 bits


def leaves(space: spaces.Space, name: str = "") -> list[Leaf]:
    """List the arrays of a space. Raises ValueError for a kind of space that has no array form."""
    if isinstance(space, spaces.Dict):
        return [leaf for key, one in space.spaces.items() for leaf in leaves(one, f"{name}/{key}".lstrip("/"))]
    if isinstance(space, spaces.Tuple):
        return [leaf for i, one in enumerate(space.spaces) for leaf in leaves(one, f"{name}/{i}".lstrip("/"))]
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete):
        raise ValueError(f"{name or 'the space'} has no array form: {space}; convert it with a gymnasium wrapper")
    return [Leaf(name, space, space.shape or (), dtype_32(space.dtype))]


def dtype_32(dtype: Any) -> Any:
    """Return the dtype of at most 32 bits that stands for one of Gymnasium's; bytes and booleans stay as they are."""
    if np.issubdtype(dtype, np.floating):
        return np.dtype(np.float32)
    return np.dtype(dtype if dtype in (np.uint8, np.int8, np.bool_) else np.int32)


def unflatten(space: spaces.Space, arrays: Iterator[Any]) -> Any:
    """Give the arrays of `leaves`, in their order, the structure of a space: dicts and tuples."""
    if isinstance(space, spaces.Dict):
        return {key: unflatten(one, arrays) for key, one in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(unflatten(one, arrays) for one in space.spaces)
    return next(arrays)


def flatten(space: spaces.Space, value: Any, name: str = "") -> list[Any]:
    """Return the parts of a value in the order of `leaves`. Raises InvalidStep, naming the part, if one is missing."""
    if isinstance(space, spaces.Dict):
        if not hasattr(value, "keys") or set(value.keys()) != set(space.spaces):
            found = sorted(value.keys()) if hasattr(value, "keys") else type(value).__name__
            raise InvalidStep(f"{name or 'the observation'} was declared with keys {sorted(space.spaces)}, got {found}")
        return [x for key, one in space.spaces.items() for x in flatten(one, value[key], f"{name}/{key}".lstrip("/"))]
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            raise InvalidStep(f"{name or 'the observation'} was declared as {len(space.spaces)} parts, got {value!r}")
        parts = enumerate(zip(space.spaces, value, strict=True))
        return [x for i, (one, part) in parts for x in flatten(one, part, f"{name}/{i}".lstrip("/"))]
    return [value]


def checked(leaf: Leaf, value: Any) -> np.ndarray:
    """Return one part of an observation as its space declares it. Raises InvalidStep, naming it, if it is not that.

    Floats may lie outside their bounds, and be -inf, which marks what is missing; NaN and +inf are refused.
    """
    what = f"observation {leaf.name!r}" if leaf.name else "the observation"
    array = np.asarray(value)
    if array.shape != leaf.shape:
        raise InvalidStep(f"{what} was declared as {leaf.space}, got shape {array.shape}")
    if array.dtype.kind not in "biuf" or dtype_32(array.dtype) != leaf.dtype:
        raise InvalidStep(f"{what} was declared as {leaf.space}, got dtype {array.dtype}")
    if array.dtype.kind == "f":
        if not (array < np.inf).all():  # which NaN is not either
            raise InvalidStep(f"{what} has values that are NaN or infinite: {array}")
    elif not isinstance(leaf.space, spaces.Box) or array.dtype != leaf.space.dtype or leaf.dtype != np.uint8:
        low, high = bounds(leaf.space)
        if (array < low).any() or (array > high).any():
            raise InvalidStep(f"{what} lies outside {leaf.space}: {array}")
    return array


def bounds(space: spaces.Space) -> tuple[Any, Any]:
    """Return the lowest and the highest values of a discrete space."""
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    return 0, 1


def scalar_reward(reward: Any) -> float:
    """Return a reward as a number. Raises InvalidStep if it is not one finite number."""
    value = np.asarray(reward, np.float64)
    if value.size != 1 or not np.isfinite(value).all():
        raise InvalidStep(f"a reward must be one finite number, got {reward!r}")
    return float(value.reshape(()))


def numbers(info: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Find the finite numbers of an info, named "outer/inner" where they are nested."""
    for name, value in info.items() if isinstance(info, dict) else ():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, bool | int | float | np.generic | np.ndarray):
            array = np.asarray(value)
            if array.ndim == 0 and array.dtype.kind in "biuf" and np.isfinite(array):
                yield f"{prefix}{name}", float(array)


def to_action(space: spaces.Space, arrays: Iterator[np.ndarray]) -> Any:
    """Give leaves the structure and types that an environment declares; continuous ones are clipped to their bounds."""
    if isinstance(space, spaces.Dict):
        return {key: to_action(one, arrays) for key, one in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(to_action(one, arrays) for one in space.spaces)
    array = next(arrays)
    if isinstance(space, spaces.Discrete):
        return np.int64(array)
    if isinstance(space, spaces.Box) and space.dtype.kind == "f":
        array = np.clip(array, space.low, space.high)
    return array.astype(space.dtype)


def rescaled(make_env: Callable[[], gymnasium.Env]) -> gymnasium.Env:
    """Make an environment whose continuous actions, where they have bounds, lie in [-1, 1]."""
    env = make_env()
    space = env.action_space
    if isinstance(space, spaces.Box) and space.dtype.kind == "f" and space.is_bounded():
        return RescaleAction(env, np.float32(-1), np.float32(1))
    return env
