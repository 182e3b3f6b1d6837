"""Checkpoints: what is saved comes back exactly, or the checkpoint before it does, and never something else."""

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dreamjax.storage.checkpoints import CheckpointError, Checkpoints
from dreamjax.training.devices import device_mesh


class Nested(NamedTuple):
    params: dict
    optimiser: optax.OptState
    key: jax.Array
    keys: jax.Array
    half: jax.Array
    empty: jax.Array
    nothing: None
    host: np.ndarray
    count: int
    rate: float
    done: bool


def nested(seed: int = 0) -> Nested:
    key_kernel, key_other = jax.random.split(jax.random.key(seed))
    params = {"layer": {"kernel": jax.random.normal(key_kernel, (3, 4)), "bias": jnp.arange(4.0)}}
    return Nested(
        params=params,
        optimiser=optax.adam(1e-3).init(params),
        key=key_other,
        keys=jax.random.split(jax.random.key(seed + 1, impl="rbg"), 3),
        half=jnp.ones(3, jnp.bfloat16) * 1.5,
        empty=jnp.zeros((0, 2)),
        nothing=None,
        host=np.arange(3, dtype=np.int64) + 2**40,
        count=7 + seed,
        rate=0.1,
        done=True,
    )


def bare(tree):
    """Typed keys as their data, so that trees can be compared as arrays."""
    is_key = lambda leaf: hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)


def assert_same(left, right):
    chex.assert_trees_all_equal_structs(left, right)
    chex.assert_trees_all_equal(bare(left), bare(right), strict=True)


def weights(step: int, size: int = 2000) -> dict:
    """Random, so that compression cannot shrink them and every byte of the file carries some of them."""
    return {"w": np.random.default_rng(step).normal(size=size).astype(np.float32), "step": step}


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


@pytest.fixture
def two_steps(tmp_path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, weights(1))
    checkpoints.save(2, weights(2))
    return checkpoints


def assert_falls_back(checkpoints: Checkpoints, problem: str) -> None:
    """Who reads leaves all as it is; who trains sets the damaged step aside."""
    steps = checkpoints.steps()
    for set_aside, after, done in [(False, steps, "left as it is"), (True, steps[:-1], "renamed to damaged-2")]:
        with pytest.warns(UserWarning, match=problem) as warned:
            step, tree = Checkpoints(checkpoints.folder).restore(weights(0), set_aside)
        assert step == 1 and str(checkpoints.folder) in str(warned[0].message) and done in str(warned[0].message)
        assert_same(tree, weights(1))
        assert checkpoints.steps() == after


def test_every_kind_of_leaf_comes_back_exactly(tmp_path):
    Checkpoints(tmp_path).save(5, nested())
    step, tree = Checkpoints(tmp_path).restore(nested(seed=1))
    assert step == 5
    assert_same(tree, nested())
    assert type(tree.count) is int and type(tree.rate) is float and type(tree.done) is bool
    assert type(tree.host) is np.ndarray and isinstance(tree.params["layer"]["bias"], jax.Array)
    assert jax.random.key_impl(tree.keys) == "rbg"
    chex.assert_trees_all_equal(jax.random.normal(tree.key, (4,)), jax.random.normal(nested().key, (4,)))


def test_arrays_of_truth_values_are_not_taken_for_one(tmp_path):
    tree = {"flags": jnp.array([[True, False], [False, True]]), "flag": jnp.array(True)}
    Checkpoints(tmp_path).save(1, tree)
    _, again = Checkpoints(tmp_path).restore(jax.eval_shape(lambda: tree))
    chex.assert_trees_all_equal(again, tree, strict=True)


def test_restores_into_shapes_without_arrays(tmp_path):
    state = nested()._replace(host=np.arange(3, dtype=np.int32))
    Checkpoints(tmp_path).save(1, state)
    _, tree = Checkpoints(tmp_path).restore(jax.eval_shape(lambda: state))
    chex.assert_trees_all_equal(bare(tree), jax.tree.map(jnp.asarray, bare(state)), strict=True)


def test_a_counter_may_be_a_number_on_one_side_and_an_array_on_the_other(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"step": jnp.asarray(3)})
    assert checkpoints.restore({"step": 0}) == (1, {"step": 3})
    checkpoints.save(2, {"step": 4})
    _, tree = checkpoints.restore({"step": jnp.asarray(0)})
    assert isinstance(tree["step"], jax.Array) and tree["step"] == 4
    with pytest.raises(ValueError, match=r"step: the file has int\[\], asked for float"):
        checkpoints.restore({"step": 0.0})
    with pytest.raises(ValueError, match=r"asked for key<fry>\[\]"):
        checkpoints.restore({"step": jax.random.key(0)})


def test_keeps_the_last_few_and_returns_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in range(6):
        checkpoints.save(step, weights(step))
    assert checkpoints.steps() == [3, 4, 5]
    step, tree = checkpoints.restore(weights(0))
    assert step == 5
    assert_same(tree, weights(5))


def test_nothing_saved_is_none_and_not_an_error(tmp_path):
    assert Checkpoints(tmp_path / "new").restore(weights(0)) is None


@pytest.mark.parametrize("step", [1, 2])
def test_a_step_that_is_not_newer_is_refused(two_steps, step):
    with pytest.raises(ValueError, match=f"step {step} is not newer than step 2"):
        two_steps.save(step, weights(step))


def test_a_different_tree_is_an_error_that_shows_the_difference(two_steps):
    like = {"w": np.zeros((2, 3), np.float32), "other": 0}
    with pytest.raises(ValueError) as error:
        two_steps.restore(like)
    assert "w: the file has float32[2000], asked for float32[2,3]" in str(error.value)
    assert "other: asked for, not in the file" in str(error.value)
    assert "step: in the file, not asked for" in str(error.value)
    assert two_steps.steps() == [1, 2]  # a wrong question is no damage


@pytest.mark.parametrize(
    ("tree", "problem"),
    [({"name": "a string"}, "only arrays"), ({}, "no leaves"), ({"a": {"b": 1}, "a/b": 2}, "same")],
)
def test_what_cannot_be_saved_is_refused(tmp_path, tree, problem):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match=problem):
        checkpoints.save(1, tree)
    assert checkpoints.steps() == []


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="keep"):
        Checkpoints(tmp_path, keep=0)


@pytest.mark.parametrize("position", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_one_flipped_bit_in_the_data_is_noticed(two_steps, position):
    data = largest_file(two_steps.folder / "2")
    assert data.stat().st_size > 6000  # nearly all of it is the array: 8000 bytes of noise
    flip(data, int(position * data.stat().st_size * 8) + 3)
    assert_falls_back(two_steps, "checkpoint 2 .*is damaged")


def test_a_flipped_bit_in_any_file_never_changes_what_is_read(tmp_path):
    saved = Checkpoints(tmp_path / "saved")
    saved.save(1, weights(1, size=4))
    saved.save(2, weights(2, size=4))
    files = [path.relative_to(saved.folder) for path in sorted((saved.folder / "2").rglob("*")) if path.is_file()]
    rng = np.random.default_rng(0)
    used = []
    for number, file in enumerate(files):  # of one checkpoint: how many files Orbax writes is not always the same
        folder = tmp_path / str(number)
        shutil.copytree(saved.folder, folder)
        flip(folder / file, int(rng.integers((folder / file).stat().st_size * 8)))
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            step, tree = Checkpoints(folder).restore(weights(0, size=4))
        assert_same(tree, weights(step, size=4))
        assert step == (1 if warned else 2)
        used.append(step)
    assert set(used) == {1, 2}  # some files carry the data, others nothing that is read


def test_a_truncated_file_is_noticed(two_steps):
    data = largest_file(two_steps.folder / "2")
    os.truncate(data, data.stat().st_size // 2)
    assert_falls_back(two_steps, "is damaged")


def test_a_missing_file_is_noticed(two_steps):
    largest_file(two_steps.folder / "2").unlink()
    assert_falls_back(two_steps, "is damaged")


def test_a_checkpoint_of_another_program_is_noticed(two_steps):
    (two_steps.folder / "2" / "meta" / "metadata").write_text('{"leaves": 3}')
    assert_falls_back(two_steps, "list of leaves")


def test_training_goes_on_after_falling_back(two_steps):
    folder = two_steps.folder
    (folder / "99").mkdir()
    with pytest.warns(UserWarning, match="checkpoint 99"):
        assert two_steps.restore(weights(0), set_aside=True)[0] == 2
    two_steps.save(3, weights(3))
    (folder / "99").mkdir()
    with pytest.warns(UserWarning, match="damaged-99-2"):
        assert two_steps.restore(weights(0), set_aside=True)[0] == 3
    assert {"damaged-99", "damaged-99-2", "2", "3"} <= {path.name for path in folder.iterdir()}


def test_nothing_readable_says_what_to_do(two_steps):
    for step in (1, 2):
        largest_file(two_steps.folder / str(step)).unlink()
    for set_aside in (False, True):
        with (
            pytest.warns(UserWarning),
            pytest.raises(CheckpointError, match=r"every checkpoint .* start this training again"),
        ):
            two_steps.restore(weights(0), set_aside)
    two_steps.save(1, weights(1))
    assert_same(two_steps.restore(weights(0))[1], weights(1))


SAVE_FOR_EVER = """
import sys
import numpy as np
from dreamjax.storage.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
found = checkpoints.restore({"w": np.zeros(4_000_000, np.float32), "step": 0}, set_aside=True)
for step in range(1 + (found[0] if found else 0), 10_000):
    w = np.random.default_rng(step).normal(size=4_000_000).astype(np.float32)
    checkpoints.save(step, {"w": w, "step": step})
    print(step, flush=True)
"""


def test_killed_while_saving_leaves_the_step_before(tmp_path):
    """Two trainings in a row are killed with a half-written step on the disk; each goes on from a whole one."""
    for _ in range(2):
        child = subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, tmp_path], stdout=subprocess.PIPE, text=True)
        try:
            reached = int(child.stdout.readline())
            deadline = time.monotonic() + 120
            while not any(path.is_file() for path in tmp_path.glob("*.orbax-checkpoint-tmp/**/d/*")):
                assert child.poll() is None and time.monotonic() < deadline
                time.sleep(0.001)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait(60)
            reached = max([reached, *map(int, child.stdout.read().split())])
            child.stdout.close()
        step, tree = Checkpoints(tmp_path).restore({"w": np.zeros(4_000_000, np.float32), "step": 0})
        assert step in (reached, reached + 1)  # the kill may come between the commit and the announcement
        assert_same(tree, weights(step, size=4_000_000))


DISK_FULL = """
import resource, sys
import numpy as np
from dreamjax.storage.checkpoints import CheckpointError, Checkpoints
checkpoints = Checkpoints(sys.argv[1])
small, large = np.ones(10, np.float32), np.random.default_rng(0).normal(size=1_000_000)
checkpoints.save(1, {"w": small})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    checkpoints.save(2, {"w": large})
except CheckpointError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(checkpoints.restore({"w": small})[0], [path.name for path in checkpoints.folder.iterdir()])
checkpoints.save(2, {"w": small})
print(checkpoints.restore({"w": small})[0])
"""


def test_a_full_disk_is_an_error_and_spoils_nothing(tmp_path):
    child = subprocess.run([sys.executable, "-c", DISK_FULL, tmp_path], capture_output=True, text=True, check=True)
    message, *rest = child.stdout.splitlines()
    assert message.startswith(f"could not save step 2 (8 MiB) in {tmp_path}") and "File too large" in message
    assert rest == ["The checkpoints already there ([1]) are untouched: make room and start again.", "1 ['1']", "2"]
    assert child.stderr == ""


def test_sharded_arrays_come_back_sharded(tmp_path):
    code = f"""
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.training.devices import device_mesh
sharding = NamedSharding(device_mesh("population"), PartitionSpec("population"))
tree = jax.device_put({{"x": np.arange(8.0, dtype=np.float32), "k": jax.random.split(jax.random.key(0), 4)}}, sharding)
Checkpoints({str(tmp_path)!r}).save(1, tree)
like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)
_, back = Checkpoints({str(tmp_path)!r}).restore(like)
assert back["x"].sharding == sharding and back["k"].sharding.device_set == sharding.device_set
np.testing.assert_array_equal(back["x"], tree["x"])
np.testing.assert_array_equal(jax.random.key_data(back["k"]), jax.random.key_data(tree["k"]))
"""
    environment = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    _, tree = Checkpoints(tmp_path).restore({"x": jnp.zeros(8), "k": jax.random.split(jax.random.key(1), 4)})
    np.testing.assert_array_equal(tree["x"], np.arange(8.0))  # written on four devices, read on one


def test_what_is_restored_is_not_compiled_for_again(tmp_path):
    @jax.jit
    def double(tree):
        return jax.tree.map(lambda x: 2 * x, tree)

    replicated = NamedSharding(device_mesh("batch", 1), PartitionSpec())
    for name, tree in {"new": jnp.ones(3), "placed": jax.device_put(jnp.ones(3), replicated)}.items():
        Checkpoints(tmp_path / name).save(1, tree)
        double(tree)
        compiled = double._cache_size()
        double(Checkpoints(tmp_path / name).restore(tree)[1])
        assert double._cache_size() == compiled, name
