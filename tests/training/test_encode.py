"""Encoding a store file by file gives what encoding its frames directly gives, however often it is interrupted."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.replay.latents import Latents
from dreamjax.storage import episodes
from dreamjax.storage.episodes import Episode, EpisodeError, Store
from dreamjax.storage.folder import RunFolder
from dreamjax.training.encode import encode as encode_by, in_batches, read_latents
from dreamjax.types import Array

EPISODES = 53  # 50 of them in the first file, 3 in the second


@dataclass(frozen=True)
class Config:
    seed: int = 0


@jax.jit
def posterior(frames: Array) -> tuple[Array, Array]:
    """Mean and log variance [256, 2] of frames of which every one differs."""
    assert frames.shape == (256, 64, 64, 3) and frames.dtype == jnp.uint8
    x = frames.astype(jnp.float32) / 255
    return jnp.stack([x[:, 0, 0, 0], x[:, 5, 7, 1]], -1), -x[:, 60, 61:63, 2]


class Counted:
    """The posterior, which notes how often it was called, and dies when told to."""

    def __init__(self, lives: int = 1000) -> None:
        self.calls, self.lives = 0, lives

    def __call__(self, frames: Array) -> tuple[Array, Array]:
        self.calls += 1
        if self.calls > self.lives:
            raise KeyboardInterrupt
        return posterior(frames)


encode = partial(encode_by, of="V")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Episodes of 3 to 9 frames, more than 256 in the first file."""
    folder, rng = tmp_path_factory.mktemp("episodes"), np.random.default_rng(0)
    for index in range(EPISODES):
        length = int(rng.integers(3, 10))
        frames = rng.integers(0, 256, (length, 64, 64, 3), np.uint8)
        action, reward = rng.uniform(-1, 1, length).astype(np.float16), rng.normal(size=length).astype(np.float32)
        action[-1] = reward[0] = 0
        episodes.write(folder, index, Episode(frames, action, reward, index % 2 == 0, index))
    store = episodes.open_store(folder)
    assert sum(store.lengths[:50]) > 256
    return store


@pytest.fixture(scope="module")
def direct(store: Store) -> Latents:
    """All frames in numpy, as far as the posterior is more than picking pixels."""
    read = [episodes.read(path) for path in store.paths]
    x = np.concatenate([episode.observation for episode in read]).astype(np.float32) / np.float32(255)
    return Latents(
        np.stack([x[:, 0, 0, 0], x[:, 5, 7, 1]], -1).astype(np.float16),
        (-x[:, 60, 61:63, 2]).astype(np.float16),
        np.concatenate([episode.action for episode in read]),
        np.concatenate([episode.reward for episode in read]),
        np.concatenate([[False] * (len(episode.action) - 1) + [episode.terminated] for episode in read]),
        np.array(store.lengths),
    )


def run_folder(path: Path) -> RunFolder:
    return RunFolder(path, Config())


def assert_same(got: Latents, expected: Latents) -> None:
    """Up to one unit of the last place of float16, where a compiled division rounds in another way than numpy's."""
    assert got.mean.dtype == got.log_variance.dtype == got.action.dtype == np.float16
    np.testing.assert_allclose(got.mean, expected.mean, rtol=1e-3)
    np.testing.assert_allclose(got.log_variance, expected.log_variance, rtol=1e-3)
    np.testing.assert_array_equal(got.action, expected.action)
    np.testing.assert_array_equal(got.reward, expected.reward)
    np.testing.assert_array_equal(got.is_terminal, expected.is_terminal)
    np.testing.assert_array_equal(got.length, expected.length)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "latents").iterdir()}


def test_every_frame_is_encoded_in_its_place(store: Store, direct: Latents, tmp_path: Path) -> None:
    got = encode(run_folder(tmp_path), store, posterior)
    assert_same(got, direct)
    assert sorted(files(tmp_path)) == ["000000.npz", "000050.npz"]
    assert run_folder(tmp_path).stage_record("encode")["seconds"] > 0


def test_what_is_done_is_not_done_again(store: Store, direct: Latents, tmp_path: Path) -> None:
    dies, whole, again, second = Counted(lives=2), Counted(), Counted(), Counted()
    with pytest.raises(KeyboardInterrupt):
        encode(run_folder(tmp_path), store, dies)
    assert list(files(tmp_path)) == ["000000.npz"]
    assert_same(encode(run_folder(tmp_path), store, whole), direct)
    before = files(tmp_path)
    assert_same(encode(run_folder(tmp_path), store, again), direct)
    (tmp_path / "latents" / "000000.npz").unlink()
    assert_same(encode(run_folder(tmp_path), store, second), direct)
    assert (whole.calls, again.calls, second.calls) == (1, 0, 2)
    assert files(tmp_path).keys() == before.keys()


def test_a_damaged_episode_is_named_and_what_came_before_it_is_kept(
    store: Store, direct: Latents, tmp_path: Path
) -> None:
    path = store.paths[51]
    sound = path.read_bytes()
    damaged = bytearray(sound)
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(EpisodeError, match=path.name):
        encode(run_folder(tmp_path), store, posterior)
    assert list(files(tmp_path)) == ["000000.npz"]
    path.write_bytes(sound)
    rest = Counted()
    assert_same(encode(run_folder(tmp_path), store, rest), direct)
    assert rest.calls == 1


@pytest.mark.parametrize("change", [lambda store: store.head(52), lambda store: Store(store.paths[::-1], ())])
def test_latents_of_other_episodes_are_made_again(
    change: Callable[[Store], Store], store: Store, direct: Latents, tmp_path: Path
) -> None:
    """A store that grew, or one in another order: what is in the files does not belong to it."""
    encode(run_folder(tmp_path), change(store), posterior)
    assert_same(encode(run_folder(tmp_path), store, posterior), direct)


def test_latents_of_another_encoder_are_made_again(store: Store, direct: Latents, tmp_path: Path) -> None:
    encode_by(run_folder(tmp_path), store, lambda frames: posterior(frames)[::-1], "another V")
    assert_same(encode(run_folder(tmp_path), store, posterior), direct)
    again = Counted()
    encode(run_folder(tmp_path), store, again)
    assert again.calls == 0


def test_latents_of_an_older_version_are_refused(store: Store, tmp_path: Path) -> None:
    """They held `done` and a reward for each action."""
    encode(run_folder(tmp_path), store, posterior)
    path = tmp_path / "latents" / "000000.npz"
    with np.load(path) as arrays:
        old = {"done" if name == "is_terminal" else name: array for name, array in arrays.items()}
    np.savez(path, **old)
    with pytest.raises(ValueError, match=r"000000\.npz .*older version.*delete it"):
        read_latents(path)


def test_damaged_latents_are_named(store: Store, tmp_path: Path) -> None:
    """Whether the archive cannot be opened or one of its arrays is not what was written."""
    encode(run_folder(tmp_path), store, posterior)
    path = tmp_path / "latents" / "000000.npz"
    sound = path.read_bytes()
    for damaged in (sound[:-100], sound[:200] + bytes([sound[200] ^ 1]) + sound[201:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"000000\.npz is damaged .*delete it"):
            encode(run_folder(tmp_path), store, posterior)


def test_a_kill_after_the_last_file_leaves_a_stage_that_the_next_call_ends(store: Store, tmp_path: Path) -> None:
    encode(run_folder(tmp_path), store, posterior)
    run = run_folder(tmp_path)
    run.write_json("stages/encode.json", run.stage_record("encode") | {"done": False})
    none = Counted(lives=0)
    encode(run, store, none)
    assert run.stage_done("encode") and none.calls == 0


@pytest.mark.parametrize("count", [1, 256, 600])
def test_only_the_last_batch_is_padded_and_no_other_frames_are_copied(count: int) -> None:
    frames, copied = np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), np.uint8), []

    def noted(batch: np.ndarray) -> tuple[Array, Array]:
        copied.append(not np.shares_memory(batch, frames))
        return posterior(batch)

    mean, log_variance = in_batches(noted, frames)
    assert mean.shape == log_variance.shape == (count, 2)
    assert copied == [False] * (count // 256) + [True] * (count % 256 > 0)
    padded = np.concatenate([frames, np.zeros((-count % 256, 64, 64, 3), np.uint8)])
    np.testing.assert_array_equal(mean[-1], np.float16(posterior(padded[-256:])[0])[255 - -count % 256])
