"""The machine: several devices at once, programs that stay compiled, and memory that a CPU backend keeps asking for."""

import ctypes
import os
import platform
import warnings
import zlib
from pathlib import Path

import jax
import jax.lib
from jax.experimental.compilation_cache import compilation_cache
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
