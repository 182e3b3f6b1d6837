"""What Gymnasium's spaces are as arrays, and the door: everything that enters is what its space declares.

The door is the same in this process and in workers, and says the same words. Imports no JAX, for quick workers.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

LARGEST = float(np.finfo(np.float32).max)
_CHANGE = "gymnasium.wrappers.TransformObservation can change it"


class InvalidStep(ValueError):
    """Something is other than its space declares; repeating the episode would not help."""


class Leaf(NamedTuple):
    """One array of an observation or action."""

    name: str  # its path, "" where the space is a single one
    space: Any  # as it was declared
    shape: tuple[int, ...]
    dtype: np.dtype  # of at most 32 bits
    low: Any  # lowest value, a number where all entries share it; of floats finite; None if bytes may be anything
    high: Any


def leaves(space: spaces.Space, name: str = "") -> list[Leaf]:
    """List the arrays of a space. Raises ValueError, naming the part, for what has no form as an array of 32 bits."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        if not len(space.spaces):
            raise ValueError(f"{_named('the part', name)} of the space is empty: {space}; leave it out")
        return [leaf for key, one in _parts(space) for leaf in leaves(one, _joined(name, key))]
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete):
        kind = "" if isinstance(space, spaces.Space) else f" ({type(space).__module__}) is no space of Gymnasium and"
        raise ValueError(
            f"{_named('the space', name)} has no form as an array:{kind} {space}. Make it a Box or a Discrete with "
            "gymnasium.wrappers.TransformObservation or TransformAction"
        )
    if 0 in (space.shape or ()):
        raise ValueError(f"{_named('the space', name)} has no entries: {space}; leave it out")
    low, high = bounds(space)
    whole = space.dtype.kind != "f"
    if whole and not (int(np.min(low)) >= -(2**31) and int(np.max(high)) < 2**31):
        raise ValueError(
            f"{_named('the space', name)} has values that do not fit into 32 bits: {space}. Declare the bounds that it "
            "really has, or make it a Box of floats"
        )
    return [leaf_of(name, space, space.shape or (), dtype_32(space.dtype), low, high)]


def leaf_of(name: str, space: Any, shape: tuple[int, ...], dtype: np.dtype, low: Any, high: Any) -> Leaf:
    """Make a leaf with the lowest and the highest values of its entries; of floats, infinite ones are cut."""
    low, high = (np.asarray(bound) for bound in (low, high))
    if dtype.kind == "f":
        low, high = (np.clip(bound.astype(float), -LARGEST, LARGEST).astype(np.float32) for bound in (low, high))
    low, high = (bound.flat[0].item() if (bound == bound.flat[0]).all() else bound for bound in (low, high))
    if dtype == np.bool_ or (dtype == np.uint8 and np.max(low) == 0 and np.min(high) == 255):
        low = high = None
    return Leaf(name, space, shape, dtype, low, high)


def dtype_32(dtype: Any) -> np.dtype:
    """Return the dtype of at most 32 bits that stands for one of Gymnasium's; bytes and booleans stay as they are."""
    if np.issubdtype(dtype, np.floating):
        return np.dtype(np.float32)
    return np.dtype(dtype if dtype in (np.uint8, np.int8, np.bool_) else np.int32)


def bounds(space: spaces.Space) -> tuple[Any, Any]:
    """Return the lowest and the highest values of a space that is one array."""
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    return 0, 1


def unflatten(space: spaces.Space, arrays: Iterator[Any]) -> Any:
    """Give the arrays of `leaves`, in their order, the structure of a space: dicts and tuples."""
    if isinstance(space, spaces.Dict):
        return {key: unflatten(one, arrays) for key, one in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(unflatten(one, arrays) for one in space.spaces)
    return next(arrays)


def flatten(space: spaces.Space, value: Any, kind: str = "observation", name: str = "") -> list[Any]:
    """Return the parts of a value in the order of `leaves`. Raises InvalidStep, naming the part, if one is missing."""
    if isinstance(space, spaces.Dict):
        found = list(value.keys()) if hasattr(value, "keys") else type(value).__name__
        if not isinstance(found, list) or set(found) != set(space.spaces):
            raise InvalidStep(f"{_named(kind, name)} was declared with keys {list(space.spaces)}, got {found}")
        return [x for key, one in _parts(space) for x in flatten(one, value[key], kind, _joined(name, key))]
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            got = f"{len(value)} of them" if isinstance(value, tuple | list) else type(value).__name__
            raise InvalidStep(f"{_named(kind, name)} was declared as a tuple of {len(space.spaces)}, got {got}")
        return [x for i, one in _parts(space) for x in flatten(one, value[i], kind, _joined(name, i))]
    return [value]


def checked(leaf: Leaf, value: Any) -> np.ndarray:
    """Return one part of an observation in 32 bits, if it is as declared; raise InvalidStep, naming it, if it is not.

    Floats are finite, in 32 bits too, and everything lies within its bounds, which are compared in 32 bits. Floats of
    any size will do for floats and, but for a Box, integers of any size for integers.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidStep(f"{_named('observation', leaf.name)} is no array: {error}") from error
    if array.shape != leaf.shape:
        raise InvalidStep(f"{_declared(leaf)}, got shape {array.shape}; {_CHANGE}")
    if array.dtype != leaf.dtype and not _stands_for(array.dtype, leaf):
        raise InvalidStep(
            f"{_declared(leaf)}, got dtype {array.dtype}; gymnasium.wrappers.DtypeObservation can change it"
        )
    if leaf.dtype.kind == "f" and array.dtype != np.float32:
        with np.errstate(over="ignore"):  # what becomes infinite is refused
            array = array.astype(np.float32)
    if not _within(leaf, array):
        raise InvalidStep(_outside(leaf, array))
    return array


def to_action(leaf: Leaf, array: Any) -> Any:
    """Give one part of an action the type that its space declares; floats are clipped to their bounds.

    Raises: InvalidStep, naming it, for one of another shape or kind, a discrete one out of bounds, or NaN.
    """
    array = np.asarray(array)
    if array.shape != leaf.shape or (array.dtype.kind == "f") != (leaf.dtype.kind == "f"):
        raise InvalidStep(f"{_declared(leaf, 'action')}, got {array.dtype} of shape {array.shape} from the agent")
    if leaf.dtype.kind == "f":
        is_valid = np.isfinite(array).all()
        array = array.clip(leaf.space.low, leaf.space.high)
    else:
        is_valid = _within(leaf, array)
    if not is_valid:
        raise InvalidStep(f"{_declared(leaf, 'action')}, got {array} from the agent")
    return np.int64(array) if isinstance(leaf.space, spaces.Discrete) else np.asarray(array, leaf.space.dtype)


def scalar_reward(reward: Any) -> float:
    """Return a reward as a number; one in an array will do. Raises InvalidStep if it is not one finite number."""
    array = _array(reward)
    if array.size != 1 or array.dtype.kind not in "biuf" or not -LARGEST <= array.item() <= LARGEST:
        raise InvalidStep(f"a reward must be one finite number of 32 bits, got {reward!r}")
    return float(array.item())


def flag(value: Any, name: str) -> bool:
    """Return whether an episode is terminated or truncated. Raises InvalidStep if that is not one boolean."""
    array = _array(value)
    if array.size != 1 or array.dtype.kind not in "biu":
        raise InvalidStep(f"{name} must be one boolean, got {value!r}")
    return bool(array.item())


def numbers(info: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Find the finite numbers of an info, named "outer/inner" where they are nested."""
    for name, value in info.items() if isinstance(info, dict) else ():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}/")
        elif isinstance(value, bool | int | float | np.generic | np.ndarray):
            array = np.asarray(value)
            if array.ndim == 0 and array.dtype.kind in "biuf" and np.isfinite(array):
                yield f"{prefix}{name}", float(array)


def _array(value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:  # ragged
        return np.asarray(None)


def _parts(space: spaces.Dict | spaces.Tuple) -> Sequence[tuple[Any, spaces.Space]]:
    return list(space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces))


def _joined(name: str, key: Any) -> str:
    return f"{name}/{key}" if name else str(key)


def _named(kind: str, name: str) -> str:
    return f"{kind} {name!r}" if name else f"the {kind.removeprefix('the ')}"


def _declared(leaf: Leaf, kind: str = "observation") -> str:
    return f"{_named(kind, leaf.name)} was declared as {leaf.space}"


def _stands_for(dtype: np.dtype, leaf: Leaf) -> bool:
    """Whether values of a dtype may arrive where a leaf was declared."""
    if dtype.kind not in "biuf":
        return False
    if isinstance(leaf.space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return dtype.kind != "f"
    return dtype_32(dtype) == leaf.dtype


def _within(leaf: Leaf, array: np.ndarray) -> bool:
    """Whether all values lie within the bounds of a leaf, which NaN does not."""
    if leaf.low is None:
        return True
    if not leaf.shape:
        return leaf.low <= array.item() <= leaf.high
    if isinstance(leaf.low, np.ndarray) or isinstance(leaf.high, np.ndarray):
        return bool(((array >= leaf.low) & (array <= leaf.high)).all())
    return bool(leaf.low <= array.min() and array.max() <= leaf.high)


def _outside(leaf: Leaf, array: np.ndarray) -> str:
    """Say which value of an observation is not finite, or lies outside its bounds."""
    bad = ~((array >= leaf.low) & (array <= leaf.high))
    place = tuple(map(int, np.argwhere(bad)[0]))
    value, at = array[place], f" at {list(place)}" if place else ""
    what = _named("observation", leaf.name)
    if leaf.dtype.kind == "f" and not math.isfinite(value):
        return (
            f"{what} is {value}{at}, and must be finite in 32 bits ({leaf.space}); find out why, or replace it with "
            "gymnasium.wrappers.TransformObservation"
        )
    return (
        f"{what} lies outside {leaf.space}: it is {value}{at}. Declare its true bounds, or clip it, with "
        "gymnasium.wrappers.TransformObservation"
    )
