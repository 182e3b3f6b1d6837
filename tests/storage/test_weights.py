"""Weight files: compact, equal for equal weights, and never read wrongly."""

import os
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.storage.leaves import CheckpointError
from dreamjax.storage.weights import SUFFIXES, load_weights, save_weights


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


def agent(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {"actor": {"kernel": jnp.asarray(rng.normal(size=(20, 3)), jnp.float32), "bias": jnp.zeros(3)}, "steps": 9}


def test_weights_come_back_as_they_were(tmp_path):
    save_weights(tmp_path / "agent.npz", agent())
    chex.assert_trees_all_equal(load_weights(tmp_path / "agent.npz", agent(1)), agent())
    with np.load(tmp_path / "agent.npz") as archive:
        assert set(archive) == {"actor/kernel", "actor/bias", "steps"}


def test_safetensors_hold_what_a_npz_does(tmp_path):
    tree = {"a": np.float32(0.5), "b": (np.arange(6).reshape(2, 3)[:, ::2], np.zeros((0, 2), bool))}
    for suffix in SUFFIXES:
        save_weights(tmp_path / f"w{suffix}", tree)
        jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path / f"w{suffix}", tree), tree)


def test_half_precision_halves_the_file_and_rounds_the_weights(tmp_path):
    tree = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(100, 60)), jnp.float32)}
    save_weights(tmp_path / "whole.npz", tree)
    save_weights(tmp_path / "half.npz", tree, np.float16)
    assert (tmp_path / "half.npz").stat().st_size < 0.6 * (tmp_path / "whole.npz").stat().st_size
    half = load_weights(tmp_path / "half.npz", jax.eval_shape(lambda: tree))
    assert half["kernel"].dtype == jnp.float32
    np.testing.assert_array_equal(half["kernel"], np.asarray(tree["kernel"]).astype(np.float16).astype(np.float32))


def test_equal_weights_make_equal_files(tmp_path):
    for name in ("a.npz", "b.npz"):
        save_weights(tmp_path / name, agent())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2  # and no temporary file stays


def test_any_flipped_bit_in_a_weight_file_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "agent.npz"
    save_weights(path, {"w": jnp.arange(6.0)})
    data = path.read_bytes()
    noticed = 0
    for bit in range(0, len(data) * 8, 7):
        path.write_bytes(data)
        flip(path, bit)
        try:
            tree = load_weights(path, {"w": jnp.zeros(6)})
        except CheckpointError:
            noticed += 1
        else:
            np.testing.assert_array_equal(tree["w"], np.arange(6.0))
    assert noticed > len(data) / 2


def test_every_truncation_of_a_weight_file_is_noticed(tmp_path):
    path = tmp_path / "agent.npz"
    save_weights(path, agent())
    data = path.read_bytes()
    for length in range(0, len(data), 41):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"agent.npz is damaged"):
            load_weights(path, agent())


def test_weights_of_another_agent_show_the_difference(tmp_path):
    save_weights(tmp_path / "agent.npz", agent())
    like = {"actor": {"kernel": jnp.zeros((20, 4)), "bias": jnp.zeros(3, jnp.int32)}, "critic": jnp.zeros(1)}
    with pytest.raises(ValueError) as error:
        load_weights(tmp_path / "agent.npz", like)
    for line in (
        "actor/kernel: the file has float32[20,3], asked for float32[20,4]",
        "actor/bias: the file has float32[3], asked for int32[3]",
        "critic: asked for, not in the file",
        "steps: in the file, not asked for",
    ):
        assert line in str(error.value)
    with pytest.raises(FileNotFoundError):
        load_weights(tmp_path / "absent.npz", like)


@pytest.mark.parametrize(
    ("name", "tree", "dtype", "problem"),
    [
        ("agent.bin", {"w": jnp.ones(2)}, None, r"\.npz"),
        ("agent.npz", {"w": jax.random.key(0)}, None, "key<fry>"),
        ("agent.npz", {"w": jnp.ones(2, jnp.bfloat16)}, None, "bfloat16"),
        ("agent.npz", {"w": jnp.full(2, 1e6)}, np.float16, "too large for float16"),
    ],
)
def test_weights_that_a_file_cannot_hold_are_refused(tmp_path, name, tree, dtype, problem):
    with pytest.raises(ValueError, match=problem):
        save_weights(tmp_path / name, tree, dtype)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_weights(tmp_path, monkeypatch):
    save_weights(tmp_path / "agent.npz", agent())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(tmp_path / "agent.npz", agent(1))
    chex.assert_trees_all_equal(load_weights(tmp_path / "agent.npz", agent(1)), agent())
    assert [path.name for path in tmp_path.iterdir()] == ["agent.npz"]
