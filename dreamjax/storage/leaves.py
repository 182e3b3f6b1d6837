"""A tree as named arrays, with the type and shape of each: what checkpoints and weight files have in common."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from dreamjax.types import PyTree

Record = dict[str, Any]  # "dtype" and "shape" of a leaf; of a typed key also its "key_impl"

_NUMBER_KINDS = {"bool": np.bool_, "int": np.integer, "float": jnp.floating}  # by Python name


class CheckpointError(RuntimeError):
    """A file could not be written, or none could be read."""


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Return the leaves by path, in the order of `jax.tree.leaves`; a tree that is a single leaf is named "value".

    Raises: ValueError if there are no leaves, or two with the same path.
    """
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="/") or "value": leaf for path, leaf in pairs}
    if len(named) < len(pairs):
        raise ValueError('two leaves of the tree have the same "/"-joined path: rename one of them')
    if not named:
        raise ValueError("the tree has no leaves")
    return named


def describe(leaf: Any) -> Record:
    """Record the type and shape of a leaf. Raises ValueError if it is neither an array nor a Python number."""
    if type(leaf).__name__ in _NUMBER_KINDS:
        return {"dtype": type(leaf).__name__, "shape": []}
    if not hasattr(leaf, "dtype"):
        raise ValueError(f"a leaf is a {type(leaf).__name__}: only arrays and Python numbers can be stored")
    record = {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) and isinstance(leaf, jax.Array):
        record["key_impl"] = str(jax.random.key_impl(leaf))
    return record


def is_spread(leaf: Any) -> bool:
    """Whether each of several processes has a part of a leaf only."""
    return isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)


def to_numpy(name: str, leaf: Any) -> np.ndarray:
    """Copy a leaf to host memory, a typed key as its data. Raises ValueError if it is not numeric.

    What is spread over several processes is gathered by all of them together.
    """
    if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if is_spread(leaf):
        leaf = process_allgather(leaf, tiled=True)
    array = np.asarray(leaf)
    if array.dtype.kind in "OUSMm":
        raise ValueError(f"leaf {name!r} is a {type(leaf).__name__}: only arrays and Python numbers can be stored")
    return array


def from_numpy(array: np.ndarray, leaf: Any, record: Record) -> Any:
    """Convert a stored array, described by `record`, to the type of `leaf`, sharded as it is if that is committed."""
    if type(leaf).__name__ in _NUMBER_KINDS:
        return type(leaf)(array.item())
    if isinstance(leaf, np.generic):
        return array[()]
    if isinstance(leaf, np.ndarray):
        return array
    sharding = getattr(leaf, "sharding", None)
    if sharding is not None and not sharding.is_fully_addressable:  # other processes have the rest of it
        part = jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
        return jax.random.wrap_key_data(part, impl=record["key_impl"]) if "key_impl" in record else part
    committed = sharding is not None and getattr(leaf, "committed", True)
    if "key_impl" in record:
        value = jax.random.wrap_key_data(jnp.asarray(array), impl=record["key_impl"])
    elif record.get("dtype") in _NUMBER_KINDS and not array.shape:
        value = jnp.asarray(np.asarray(array.item(), leaf.dtype))  # numpy refuses a number that does not fit
    else:
        value = array if committed else jnp.asarray(array)  # what several devices hold may be too large for the first
    # A different sharding, even over a single device, would cost another compilation.
    return jax.device_put(value, sharding) if committed else value


def check_same(
    found: dict[str, Record], leaves: dict[str, Any], where: str, agree: Callable[[Record, Record], bool]
) -> None:
    """Raise a ValueError that lists every difference between what was found `where` and the leaves asked for."""
    wanted = {name: describe(leaf) for name, leaf in leaves.items()}
    differences = [f"{name}: in the file, not asked for" for name in found.keys() - wanted.keys()]
    differences += [f"{name}: asked for, not in the file" for name in wanted.keys() - found.keys()]
    differences += [
        f"{name}: the file has {shown_record(found[name])}, asked for {shown_record(wanted[name])}"
        for name in found.keys() & wanted.keys()
        if not agree(found[name], wanted[name])
    ]
    if differences:
        shown = "\n  ".join(sorted(differences)[:20]) + ("\n  ..." if len(differences) > 20 else "")
        raise ValueError(f"{where} does not fit; was it written with another configuration?\n  {shown}")


def same_type(left: Record, right: Record) -> bool:
    """Whether shapes and types are equal; a Python number equals any scalar array of its kind."""

    def is_number_like(number: Record, array: Record) -> bool:
        return number["dtype"] in _NUMBER_KINDS and _kind(array["dtype"]) == number["dtype"]

    same = left["dtype"] == right["dtype"] or is_number_like(left, right) or is_number_like(right, left)
    return left["shape"] == right["shape"] and same


def same_kind(left: Record, right: Record) -> bool:
    """Whether shapes are equal and both are floating-point, integers or booleans, of any width."""
    return left["shape"] == right["shape"] and _kind(left["dtype"]) == _kind(right["dtype"])


def _kind(dtype: str) -> str:
    if dtype.startswith("key<"):
        return "key"
    return next((kind for kind, parent in _NUMBER_KINDS.items() if jnp.issubdtype(dtype, parent)), dtype)


def shown_record(record: Record) -> str:
    """Write a type and a shape as "float32[3,4]"."""
    return f"{record['dtype']}[{','.join(map(str, record['shape']))}]"
