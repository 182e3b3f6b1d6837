"""Agents that learn at once over eight devices come to the same numbers however they are split. In its own process."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from dreamjax.training.jitted import _keys

EIGHT_DEVICES = """
import sys
import tempfile
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.dreamerv3 import loop
from dreamjax.dreamerv3.config import CodecConfig, DreamerConfig, HeadsConfig, RSSMConfig
from dreamjax.dreamerv3.loop import LoopConfig
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.dreamerv3.sweep import stacked
from dreamjax.envs import probes
from dreamjax.optim import LaPropConfig
from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.training.loop import _like
from dreamjax.training.jitted import JittedLoop, jitted_loop

game = probes.counter(size=4, max_steps=12)
cfg = DreamerConfig(
    rssm=RSSMConfig(16, 8, 4, 4, 2),
    codec=CodecConfig(2, encoder_layers=1, decoder_layers=1, units=8),
    heads=HeadsConfig(8, 11),
    optimizer=LaPropConfig(1e-3, warmup=1, eps=1e-2),  # eps above gradients whose sign the order of sums decides
    compute_dtype="float32",
)
dreamer = Dreamer.of(cfg, game.spec)
one_loop = LoopConfig(envs=8, batch_size=8, batch_length=4, train_ratio=4, capacity=160)
assert one_loop.rhythm == (1, 1) and jax.device_count() == 8


keys = jax.vmap(jax.random.key)(jnp.arange(8))


def run(several, state, keys):
    # Two iterations from a state that was read from a file.
    state, told = several.place(state), []
    for number in range(2):
        state, progress = several.advance(state, jax.vmap(jax.random.fold_in, (0, None))(keys, 1 + number)[:, None])
        told.append(progress)
    return state, told


def on_one_device():
    # The loop of one agent, whatever devices there are.
    step = lambda state, key: loop.iterate(dreamer, game, one_loop, key, state)
    advance = jax.jit(jax.vmap(lambda state, keys: jax.lax.scan(step, state, keys)), donate_argnums=0)
    return JittedLoop(None, partial(jax.tree.map, jnp.asarray), advance, lambda tree: tree)


each, shared = (jitted_loop(dreamer, game, one_loop, agents) for agents in (8, 1))
begun = each.begin(keys, stacked([cfg] * 8))
assert all(leaf.addressable_data(0).shape[0] == 1 for leaf in jax.tree.leaves(begun))
with tempfile.TemporaryDirectory() as folder:  # what is read goes where it was, not to the first device before
    Checkpoints(folder).save(1, begun)
    _, read = Checkpoints(folder).restore(jax.tree.map(_like, begun))
for x, y in zip(jax.tree.leaves(begun), jax.tree.leaves(read), strict=True):
    assert x.sharding == y.sharding and x.addressable_data(0).shape == y.addressable_data(0).shape
    np.testing.assert_array_equal(x, y)
begun = jax.tree.map(np.asarray, begun)
first, found = jax.tree.map(lambda leaf: leaf[:1], begun), []
like = jax.eval_shape(shared.begin, keys[:1], stacked([cfg]))
assert jax.tree.map(jnp.shape, like) == jax.tree.map(jnp.shape, first)
loops = [(each, begun, keys, 8), (shared, first, keys[:1], 8)]
if "alone" in sys.argv:
    loops.append((on_one_device(), first, keys[:1], 1))
for several, begin, who, devices in loops:
    state, told = run(several, begin, who)
    ring = state.replay.data.latent.deter
    assert ring.addressable_data(0).size == ring.size // devices  # every device has a part of the replay
    params = jax.tree.leaves(several.gather(state.learner.params))
    assert all(leaf.shape[0] == len(who) and len(leaf.devices()) == 1 for leaf in params)
    found.append(jax.tree.map(lambda leaf: np.asarray(leaf)[:1], (state, told)))
for other in found[1:]:
    for x, y in zip(jax.tree.leaves(found[0]), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5)
# Three agents, four environments of each: four of the devices share them.
some = LoopConfig(envs=4, batch_size=8, batch_length=4, train_ratio=8, capacity=160)
shared = jitted_loop(dreamer, game, some, 3)
state, _ = run(shared, shared.begin(keys[:3], stacked([cfg] * 3)), keys[:3])
assert len(state.total.sharding.device_set) == 4 and state.total.shape == (3, 4)
print("ok")
"""


def test_an_agent_begins_trains_and_is_tested_with_keys_that_never_meet() -> None:
    with jax.debug_key_reuse(False):  # they are derived here as those who take them do
        begin, train, test = (key[0] for key in _keys([3]))
        used = [*jax.random.split(begin, 3), *(jax.random.fold_in(train, n) for n in range(4)), test]
        used += [*jax.random.split(test, 4)]
    assert len({tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in used}) == len(used)


@pytest.mark.parametrize(
    "others", [pytest.param([], marks=pytest.mark.long), pytest.param(["alone"], marks=pytest.mark.slow)]
)
def test_an_agent_on_a_device_of_its_own_one_on_all_devices_and_one_alone_are_the_same(others: list[str]):
    child = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES, *others],
        env=os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.stdout == "ok\n", child.stderr
