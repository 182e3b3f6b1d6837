"""Devices: a population spread over several of them gives what one gives. In processes of their own, with four."""

import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import pytest

from dreamjax.run.devices import population_mesh, shard_leading


def run(code: str, **environment: str) -> str:
    child = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


FOUR_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from dreamjax.run.devices import population_mesh, shard_leading

mesh = population_mesh()
assert mesh.axis_names == ("population",) and mesh.axis_types == (jax.sharding.AxisType.Auto,)
assert mesh.devices.tolist() == jax.devices() and len(jax.devices()) == 4

tree = {"w": jnp.arange(24.0).reshape(8, 3), "key": jax.random.split(jax.random.key(0), 8)}
spread = shard_leading(tree, mesh)
assert {shard.data.shape for shard in spread["w"].addressable_shards} == {(2, 3)}
assert len(spread["key"].sharding.device_set) == 4

fitness = jax.jit(jax.vmap(lambda member: member["w"].sum() + jax.random.normal(member["key"])))
np.testing.assert_array_equal(fitness(spread), fitness(tree))
assert len(fitness(spread).sharding.device_set) == 4

two = population_mesh(2)
assert two.devices.tolist() == jax.devices()[:2]
assert {shard.data.shape for shard in shard_leading(tree, two)["w"].addressable_shards} == {(4, 3)}

for bad, words in [(jnp.ones((6, 2)), "leading axis of 6, which 4 devices do not divide"), (jnp.ones(()), "scalar")]:
    try:
        shard_leading({"a": {"b": bad}}, mesh)
    except ValueError as error:
        assert words in str(error) and "'a'" in str(error), error
    else:
        raise AssertionError(words)
print("ok")
"""


def test_a_population_over_four_devices_is_that_over_one():
    assert run(FOUR_DEVICES, XLA_FLAGS="--xla_force_host_platform_device_count=4") == "ok\n"


def test_one_device_is_a_mesh_too():
    tree = {"w": jnp.arange(6.0).reshape(3, 2)}
    chex.assert_trees_all_equal(shard_leading(tree, population_mesh(1)), tree)


@pytest.mark.parametrize("count", [0, 1000])
def test_devices_that_are_not_there_are_an_error(count):
    with pytest.raises(ValueError, match=f"asked for {count} devices, and jax sees {len(jax.devices())}"):
        population_mesh(count)


COMPILE = """
import jax, jax.numpy as jnp
from dreamjax.run.devices import enable_compilation_cache
enable_compilation_cache({folder!r})
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
assert jax.jit(lambda x: jnp.sin(x) @ x)(jnp.eye(3)).shape == (3, 3)
print(sum(name == "/jax/compilation_cache/cache_hits" for name in hits))
"""


def test_a_later_process_finds_what_was_compiled(tmp_path):
    folder = tmp_path / "cache"
    always = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    code = COMPILE.format(folder=str(folder))
    assert run(code, **always) == "0\n"
    assert any(folder.iterdir())
    assert int(run(code, **always)) > 0
