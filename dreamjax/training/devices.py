"""The machine: one mesh of all devices, programs that stay compiled, and memory that a CPU backend keeps asking for.

A mesh has one axis, over the devices of all processes. What is split over it are the sequences of a batch and the
individuals of a population; everything else is the same on every device, but for what `sharded` splits to save memory.
"""

import ctypes
import os
import platform
import warnings
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.lib
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from dreamjax.types import PyTree

SHARDED = 2**16  # numbers of the smallest array that `sharded` splits: smaller ones cost more to gather than they save


def device_mesh(axis: str, n_devices: int | None = None) -> Mesh:
    """A mesh of one axis of this name over the first `n_devices` devices; None takes them all.

    The axis is of type Auto: what is jitted over it is written as if for one device, and the compiler splits it.

    Raises:
        ValueError: there are not that many devices.
    """
    devices = jax.devices()
    count = len(devices) if n_devices is None else n_devices
    if not 1 <= count <= len(devices):
        raise ValueError(f"asked for {count} devices, and jax sees {len(devices)} ({devices[0].platform})")
    return jax.make_mesh((count,), (axis,), axis_types=(AxisType.Auto,), devices=devices[:count])


def splitting_mesh(axis: str, size: int, what: str) -> Mesh:
    """A mesh over all devices, which share `size` things equally; `what` names the setting that says how many.

    Raises: ValueError if they cannot. One device could do all the work, but nobody would know why the others are idle.
    """
    if size % jax.device_count():
        raise ValueError(
            f"{what} = {size} cannot be shared equally by the {jax.device_count()} devices that jax sees: use a "
            f"multiple of {jax.device_count()}, or let it see fewer (CUDA_VISIBLE_DEVICES=0 for one GPU)"
        )
    return device_mesh(axis)


def fitting_mesh(axis: str, size: int, what: str) -> Mesh:
    """A mesh over the most devices that can share `size` things equally: 100 frames are learned from on 5 of 8 devices.

    For what is a small part of a run. Several processes use all devices or none. Raises: as `splitting_mesh` does.
    """
    if jax.process_count() > 1:
        return splitting_mesh(axis, size, what)
    return device_mesh(axis, max(n for n in range(1, jax.device_count() + 1) if size % n == 0))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that gives every device all of an array."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding that gives every device an equal part of an axis, in the order of the mesh."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, *mesh.axis_names))


def sharded(mesh: Mesh, tree: PyTree, smallest: int = SHARDED) -> PyTree:
    """The shardings of a tree, such as parameters, that give every device an equal part of every large array.

    Each array of `smallest` numbers or more is split along the longest of its axes that the devices divide. The
    compiler gathers what it needs, when it does; this is known as fully sharded data parallelism.
    """

    def place(leaf: Any) -> NamedSharding:
        fitting = [i for i, size in enumerate(leaf.shape) if size % mesh.size == 0]
        if leaf.size < smallest or not fitting:
            return replicated(mesh)
        return split(mesh, max(fitting, key=lambda i: leaf.shape[i]))

    return jax.tree.map(place, tree)


def from_process_local(parts: PyTree, sharding: Sharding) -> PyTree:
    """Make global arrays of what each process has: its own rows where they are split, else the whole, equal in all.

    Shapes: an axis of n in each of P processes, over whose devices it is split, becomes one of P n.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(parts, sharding)
    return jax.tree.map(partial(jax.make_array_from_process_local_data, sharding), parts)


def own_part(tree: PyTree) -> PyTree:
    """Wait for arrays, and return as NumPy arrays what this process has of them: `from_process_local` undone."""

    def part(array: jax.Array) -> np.ndarray:
        if array.is_fully_addressable or array.is_fully_replicated:
            return np.asarray(array)
        shards = array.addressable_shards
        axis = next(i for i, size in enumerate(shards[0].data.shape) if size < array.shape[i])
        rows = {shard.index[axis].start: shard.data for shard in shards}
        return np.concatenate([np.asarray(rows[begin]) for begin in sorted(rows)], axis)

    return jax.tree.map(part, tree)


def shard(tree: PyTree, places: PyTree) -> PyTree:
    """Place arrays that every process has whole, and equal: each copies the parts of its own devices.

    `places` are shardings, one for each array or for all those of a part of the tree.
    """

    def put(place: Sharding, leaf: Any) -> jax.Array:
        if place.is_fully_addressable:
            return jax.device_put(leaf, place)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, place, lambda index: whole[index])

    return jax.tree.map(lambda place, part: jax.tree.map(partial(put, place), part), places, tree)


def gathered(mesh: Mesh, tree: PyTree) -> PyTree:
    """Wait for arrays that are spread over a mesh, and return them whole, bound to none of its devices.

    Programs for one device, for this mesh and for others take them. Processes call it together. On one device nothing
    is copied.
    """
    if mesh.size == 1:
        return tree
    everywhere = jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(jnp.asarray, jax.device_get(everywhere))


def local_replica(tree: PyTree) -> PyTree:
    """Return what is the same on every device as arrays on the first one of this process; nothing is copied."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees, for what it allocates next. Call it before the work begins.

    jax's CPU backend allocates the temporaries of a program at every call. glibc returns pieces that large to the
    kernel at once, which has to map and clear every page of them again: seen to take nearly a fifth of the CPU time of
    V's training.
    With other C libraries, which have no such setting, nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # parameters of mallopt(3)
    # Never give back; all from the heap; and from the one heap, as those of threads may not grow that far.
    for parameter, value in ((trim_threshold, -1), (mmap_max, 0), (arena_max, 1)):
        if not library.mallopt(parameter, value):
            raise OSError(f"mallopt({parameter}, {value}) was refused")


def keep_compiled_programs() -> None:
    """Let JAX keep what it compiles, for the next process that needs it, unless it has been told where to, or not to.

    That is `jax_compilation_cache_dir`, in the user's cache folder; the programs used last stay, of 4 GiB in all. There
    is a folder for each version of jaxlib and kind of processor: what is compiled for another one may crash, and home
    folders are shared. The environment variable `JAX_ENABLE_COMPILATION_CACHE=false` switches it off.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    kind = zlib.crc32(f"{jax.lib.__version__} {platform.machine()} {_processor()}".encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dreamjax" / "jax" / f"{kind:08x}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        warnings.warn(f"compiled programs are not kept for the next time: {error}", stacklevel=2)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", 4 << 30)
    # Not the tiny ones: each that is added has the folder read.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    compilation_cache.reset_cache()  # if something was compiled before, it has decided that there is no cache


def _processor() -> str:
    """What the processor can do, as far as the system says."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
