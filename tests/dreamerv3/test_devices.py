"""An update whose batch is split over eight devices is the update of one device. In a process of its own."""

import os
import subprocess
import sys

import pytest

EIGHT_DEVICES = """
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dreamjax.dreamerv3 import experience, learner
from dreamjax.dreamerv3.config import debug
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.optim import LaPropConfig
from dreamjax.training.devices import device_mesh
from dreamjax.types import EnvSpec, Space

observation = {"image": Space((48, 48, 3), np.uint8, 0, 256), "vector": Space((5,))}
action = {"steer": Space((2,), np.float32, -1, 1), "press": Space((), np.int32, 0, 4)}
# A gradient next to nothing, divided by its size, has a sign that the order of sums decides; eps is above that.
cfg = replace(debug(), optimizer=LaPropConfig(eps=1e-2), compute_dtype="float32")
dreamer = Dreamer.of(cfg, EnvSpec(observation, action, 1))
rng = np.random.default_rng(0)


def draw(like):
    shape = (8, 9, *like.shape)
    if like.dtype == bool:
        return rng.random(shape) < 0.1
    if np.issubdtype(like.dtype, np.integer):
        return rng.integers(0, 256 if len(like.shape) == 3 else 4, shape).astype(like.dtype)
    return rng.normal(size=shape).astype(like.dtype)


drawn = jax.tree.map(draw, experience.example(dreamer))
mesh = device_mesh("batch")
assert mesh.size == 8
whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("batch"))
begin = partial(learner.init, dreamer)
one, eight = jax.jit(begin)(jax.random.key(0)), jax.jit(begin, out_shardings=whole)(jax.random.key(0))
for _ in range(2):
    one, ours = experience.learn(dreamer, jax.random.key(1), one, drawn)
    eight, theirs = experience.learn(dreamer, jax.random.key(1), eight, jax.device_put(drawn, split))
    assert theirs.latent.deter.sharding.spec == PartitionSpec("batch",)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(eight))
    for x, y in zip(jax.tree.leaves((one, ours)), jax.tree.leaves((eight, theirs)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
assert experience.learn._cache_size() == 2

split = NamedSharding(mesh, PartitionSpec(None, "batch"))
twice = jax.tree.map(lambda x: np.stack([x, x]), drawn)
several = jax.jit(begin, out_shardings=whole)(jax.random.key(0))
for _ in range(2):
    batches = jax.device_put(twice, split)
    several, theirs = experience.learn_several(dreamer, jax.random.key(1), several, batches, np.int32(1))
    assert theirs.latent.deter.sharding.spec == PartitionSpec(None, "batch")
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(several))
for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
assert experience.learn_several._cache_size() == 1
print("ok")
"""


@pytest.mark.long
def test_a_batch_split_over_eight_devices_gives_the_same_numbers():
    child = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.stdout == "ok\n", child.stderr
