"""The machine: meshes over its devices, and memory. In processes of their own."""

import os
import platform
import subprocess
import sys

import jax
import pytest

from dreamjax.training.devices import device_mesh


def run(code: str, **environment: str) -> str:
    child = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


FOUR_DEVICES = """
import jax
import numpy as np
from jax.sharding import PartitionSpec
from dreamjax.training.devices import (
    device_mesh, fitting_mesh, from_process_local, local_replica, own_part, sharded, split, splitting_mesh
)

mesh = device_mesh("population")
assert mesh.axis_names == ("population",) and mesh.axis_types == (jax.sharding.AxisType.Auto,)
assert mesh.devices.tolist() == jax.devices() and len(jax.devices()) == 4
assert device_mesh("population", 2).devices.tolist() == jax.devices()[:2]
assert splitting_mesh("batch", 8, "batch_size").size == 4
assert [fitting_mesh("batch", size, "vision.batch").size for size in (8, 6, 7)] == [4, 3, 1]
like = {"long": (6, 512, 256), "odd": (5, 99991), "small": (8,)}
like = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in like.items()}
specs = {name: place.spec for name, place in sharded(mesh, like).items()}
assert specs == {"long": PartitionSpec(None, "population"), "odd": PartitionSpec(), "small": PartitionSpec()}
rows = np.arange(24.0, dtype=np.float32).reshape(3, 8)
spread = from_process_local(rows, split(mesh, 1))
assert spread.addressable_data(1).shape == (3, 2) and local_replica(spread).shape == (3, 2)
np.testing.assert_array_equal(own_part(spread), rows)
try:
    splitting_mesh("batch", 6, "batch_size")
except ValueError as error:
    assert "batch_size = 6 cannot be shared equally by the 4 devices" in str(error), error
else:
    raise AssertionError("6 sequences are no use to 4 devices")
print("ok")
"""


def test_a_mesh_takes_all_devices_or_the_first():
    assert run(FOUR_DEVICES, XLA_FLAGS="--xla_force_host_platform_device_count=4") == "ok\n"


@pytest.mark.parametrize("count", [0, 1000])
def test_devices_that_are_not_there_are_an_error(count):
    with pytest.raises(ValueError, match=f"asked for {count} devices, and jax sees {len(jax.devices())}"):
        device_mesh("population", count)


FAULTS = """
import ctypes, resource
from dreamjax.training.devices import keep_freed_memory

library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
if {keep}:
    keep_freed_memory()

def faults_of_a_second_allocation():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        piece = library.malloc(64 << 20)
        ctypes.memset(piece, 1, 64 << 20)
        library.free(piece)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults_of_a_second_allocation())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has this setting")
def test_freed_memory_is_used_again():
    # glibc may have learned by itself to keep pieces of up to 32 MiB, but not of 64.
    assert int(run(FAULTS.format(keep=False))) > 20
    assert int(run(FAULTS.format(keep=True))) < 5
