"""The machine: several devices at once, and memory that a CPU backend gives back and asks for again."""

import ctypes
import platform

import jax
from jax.sharding import AxisType, Mesh


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
