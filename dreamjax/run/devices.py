"""Several devices at once, and compiled programs kept between runs."""

import os
from pathlib import Path

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dreamjax.types import PyTree


def population_mesh(n_devices: int | None = None) -> Mesh:
    """A mesh of one axis, "population", over the first `n_devices` devices; None takes them all.

    The axis is of type Auto: what is jitted over it is written as if for one device, and the compiler splits it.

    Raises:
        ValueError: there are not that many devices.
    """
    devices = jax.devices()
    count = len(devices) if n_devices is None else n_devices
    if not 1 <= count <= len(devices):
        raise ValueError(f"asked for {count} devices, and jax sees {len(devices)} ({devices[0].platform})")
    return jax.make_mesh((count,), ("population",), axis_types=(AxisType.Auto,), devices=devices[:count])


def shard_leading(tree: PyTree, mesh: Mesh) -> PyTree:
    """Spread the leading axis [N, ...] of every leaf over the mesh of `population_mesh`.

    Raises:
        ValueError: the number of devices does not divide N, or a leaf has no leading axis.
    """
    axis, count = mesh.axis_names[0], mesh.devices.size
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path) or "the array"
        if leaf.ndim == 0:
            raise ValueError(f"{name} is a scalar: only arrays with a leading axis can be spread over {count} devices")
        if leaf.shape[0] % count:
            raise ValueError(
                f"{name} has a leading axis of {leaf.shape[0]}, which {count} devices do not divide: "
                f"use a multiple of {count}, or population_mesh with fewer devices"
            )
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(axis)))


def enable_compilation_cache(folder: str | os.PathLike[str]) -> None:
    """Keep what jax compiles (and took longer than a second) in `folder`, for later processes on the same machine.

    Call it before anything is compiled: jax looks for the folder once.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", os.fspath(Path(folder).absolute()))
