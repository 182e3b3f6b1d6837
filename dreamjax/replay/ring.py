"""A replay on the device: pure functions over a ring buffer of steps, for loops that are jitted whole.

The steps of E streams (environments that step together) are stored side by side. A sequence is L consecutive steps of
one stream and may cross the end of an episode.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamjax.types import Array, Key, PyTree


class Ring(NamedTuple):
    """The last N steps of every stream."""

    data: PyTree  # [E, N, ...]
    written: Array  # [] int32, steps of each stream so far


class Address(NamedTuple):
    """Where sequences begin. Times count from the first step ever added, so that overwritten steps can be told."""

    stream: Array  # [B] int32
    time: Array  # [B] int32


def init(example: PyTree, streams: int, size: int) -> Ring:
    """Make an empty ring for steps like `example` (arrays or `jax.ShapeDtypeStruct`, one step of one stream)."""
    if streams < 1 or size < 1:
        raise ValueError(f"need streams >= 1 and size >= 1, got {streams} and {size}")
    return Ring(jax.tree.map(lambda x: jnp.zeros((streams, size, *x.shape), x.dtype), example), jnp.int32(0))


def add(ring: Ring, step: PyTree) -> Ring:
    """Append one step of every stream, over the oldest if full. Shapes: step [E, ...].

    Raises: ValueError if the step is not like the example in structure, shapes and kinds of numbers.
    """
    structures: Any = [jax.tree.structure(tree) for tree in (ring.data, step)]
    if structures[0] != structures[1]:
        raise ValueError(f"a step must have the structure {structures[0]}, got {structures[1]}")
    for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(ring.data), jax.tree.leaves(step), strict=True):
        wanted, got = (len(old), *old.shape[2:]), jnp.asarray(new)
        if got.shape != wanted or not jnp.can_cast(got.dtype, old.dtype, "same_kind"):
            name = jax.tree_util.keystr(path)
            raise ValueError(f"a step{name} must be {old.dtype} of shape {wanted}, got {got.dtype} of {got.shape}")
    at = ring.written % _size(ring)
    data = jax.tree.map(lambda old, new: old.at[:, at].set(jnp.asarray(new, old.dtype)), ring.data, step)
    return Ring(data, ring.written + 1)


def starts(ring: Ring, length: int) -> Array:
    """Count the different sequences of this length in each stream, [] int32."""
    return jnp.maximum(0, jnp.minimum(ring.written, _size(ring)) - length + 1)


def sample(ring: Ring, key: Key, batch: int, length: int) -> tuple[PyTree, Address]:
    """Sample sequences uniformly. The ring must hold at least one: see `starts`.

    Shapes: -> steps [B, L, ...], where they begin. Raises: ValueError if it can never hold one.
    """
    if not 1 <= length <= _size(ring):
        raise ValueError(f"a ring of {_size(ring)} steps of each stream holds no sequence of {length}")
    key_stream, key_time = jax.random.split(key)
    streams = jax.tree.leaves(ring.data)[0].shape[0]
    oldest = jnp.maximum(0, ring.written - _size(ring))
    time = oldest + jax.random.randint(key_time, (batch,), 0, starts(ring, length))
    address = Address(jax.random.randint(key_stream, (batch,), 0, streams), time)
    where = _where(ring, address, length)
    return jax.tree.map(lambda x: x[where], ring.data), address


def update(ring: Ring, address: Address, offset: int, values: PyTree) -> Ring:
    """Overwrite some leaves of stored steps, beginning `offset` steps after the addresses.

    Steps that were overwritten in the meantime are skipped. `values` has the structure of the ring's data, with None
    for leaves that stay as they are. Shapes: values [B, T, ...].
    """
    length = jax.tree.leaves(values)[0].shape[1]
    address = address._replace(time=address.time + offset)
    stream, at = _where(ring, address, length)
    gone = address.time[:, None] + jnp.arange(length)[None] < ring.written - _size(ring)
    at = jnp.where(gone, _size(ring), at)  # out of bounds, which `mode="drop"` ignores
    data = jax.tree.map(
        lambda new, old: old if new is None else old.at[stream, at].set(new.astype(old.dtype), mode="drop"),
        values,
        ring.data,
        is_leaf=lambda x: x is None,
    )
    return ring._replace(data=data)


def _where(ring: Ring, address: Address, length: int) -> tuple[Array, Array]:
    return address.stream[:, None], (address.time[:, None] + jnp.arange(length)[None]) % _size(ring)


def _size(ring: Ring) -> int:
    return jax.tree.leaves(ring.data)[0].shape[1]
