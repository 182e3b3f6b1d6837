"""Episodes of an environment written in JAX come back from their file as they were, and are encoded whole."""

from pathlib import Path

import jax
import numpy as np
import pytest

from dreamjax import rollout
from dreamjax.envs.swingup import swingup
from dreamjax.replay import latents
from dreamjax.training import recorded
from dreamjax.types import AgentParams

ENVIRONMENT = swingup(observation="both", max_steps=3)


def test_what_was_acted_is_read_as_episodes_and_encoded(tmp_path: Path) -> None:
    random = rollout.random_agent(ENVIRONMENT.spec)
    with jax.debug_key_reuse(False):  # a mapped `cond` runs both branches, each with its own key
        acted = recorded.act(ENVIRONMENT, random, AgentParams((), ()), jax.random.key(0), episodes=2, steps=4)
    recorded.write(tmp_path / "some.npz", acted)
    seen = recorded.read(tmp_path / "some.npz")
    jax.tree.map(np.testing.assert_array_equal, seen, latents.end_to_end(*jax.device_get(acted)))
    assert seen.length.tolist() == [4, 4] and seen.action[[3, 7]].tolist() == [0, 0]
    states = recorded.observed([seen, seen], "state")
    np.testing.assert_array_equal(states, np.concatenate([seen.observation["state"]] * 2))

    def posterior(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = frames.reshape(len(frames), -1)[:, :2].astype(np.float32)
        return mean, -mean

    data = recorded.encode([seen, seen], posterior)
    assert data.length.tolist() == [4] * 4
    np.testing.assert_array_equal(data.mean, seen.observation["image"].reshape(8, -1)[[*range(8)] * 2, :2])
    np.testing.assert_array_equal(data.reward, np.tile(seen.reward, 2))
    with np.load(tmp_path / "some.npz") as arrays:
        older = {name: arrays[name] for name in arrays.files if name != "is_terminal"}
    np.savez(tmp_path / "older.npz", **older)
    with pytest.raises(ValueError, match=r"older\.npz was recorded by an older version of dreamjax.*begin a new"):
        recorded.read(tmp_path / "older.npz")
    cut_off(tmp_path / "some.npz")
    with pytest.raises(ValueError, match=r"some\.npz is damaged .*restore it from a copy, or delete it"):
        recorded.read(tmp_path / "some.npz")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_batches_continue_where_they_stopped() -> None:
    frames = np.arange(50)
    whole = recorded.batches(frames, 1, 4, 0)
    first = [next(whole) for _ in range(5)]
    later = recorded.batches(frames, 1, 4, 3)
    np.testing.assert_array_equal(first[3:], [next(later) for _ in range(2)])
    assert len({tuple(batch) for batch in first}) == 5


def test_an_array_is_made_once(tmp_path: Path) -> None:
    for made in (1.0, 2.0):
        assert recorded.once(tmp_path / "new" / "x.npz", lambda made=made: np.full(3, made)).tolist() == [1, 1, 1]
    cut_off(tmp_path / "new" / "x.npz")
    with pytest.raises(ValueError, match=r"x\.npz is damaged .*delete it"):
        recorded.once(tmp_path / "new" / "x.npz", lambda: np.zeros(3))
