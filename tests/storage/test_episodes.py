import errno
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from dreamjax.storage import episodes
from dreamjax.storage.episodes import Episode, EpisodeError, Store

LENGTHS = (3, 17, 2, 8, 12, 5, 9)
BATCH = 6


def numbered_episode(number: int, length: int) -> Episode:
    """Frame t of episode e says so in its first two pixels."""
    rng = np.random.default_rng(number)
    observation = rng.integers(0, 256, (length, 64, 64, 3), dtype=np.uint8)
    observation[:, 0, 0, 0] = number
    observation[:, 0, 1, 0] = np.arange(length)
    action, reward = rng.uniform(-1, 1, length).astype(np.float16), rng.normal(size=length).astype(np.float32)
    action[-1] = reward[0] = 0
    return Episode(observation, action, reward, number % 2 == 0, 1000 + number)


@st.composite
def drawn_episodes(draw: st.DrawFn) -> Episode:
    """Anything that may be recorded."""
    steps, size = draw(st.integers(2, 5)), draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    action = draw(hnp.arrays(np.float16, (steps, *size), elements=st.floats(-2, 2, width=16)))
    reward = draw(hnp.arrays(np.float32, steps, elements=st.floats(-1e6, 1e6, width=32)))
    action[-1] = reward[0] = 0
    pixels = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 256, (steps, 64, 64, 3), dtype=np.uint8)
    return Episode(pixels, action, reward, draw(st.booleans()), draw(st.integers(0, 2**63 - 1)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    for number, length in enumerate(LENGTHS):
        episodes.write(tmp_path, number, numbered_episode(number, length))
    return episodes.open_store(tmp_path)


def names(batch: np.ndarray) -> list[tuple[int, int]]:
    return [(int(frame[0, 0, 0]), int(frame[0, 1, 0])) for frame in batch]


def assert_equal(left: Episode, right: Episode) -> None:
    for a, b in zip(left, right, strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    episode = numbered_episode(5, 11)
    path = episodes.write(tmp_path, 123, episode)
    assert path == tmp_path / "episode_000123.npz"
    assert_equal(episodes.read(path), episode)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@given(drawn_episodes(), st.integers(0, 10**6))
def test_any_episode_survives_the_disk(tmp_path_factory: pytest.TempPathFactory, episode: Episode, number: int) -> None:
    folder = tmp_path_factory.mktemp("episode")
    path = episodes.write(folder, number, episode)
    assert_equal(episodes.read(path), episode)
    assert episodes.open_store(folder) == Store((path,), (len(episode.observation),))


def test_equal_episodes_make_equal_files(tmp_path: Path) -> None:
    first, second = (episodes.write(tmp_path, i, numbered_episode(5, 3)) for i in range(2))
    assert first.read_bytes() == second.read_bytes()


BAD = {
    "float frames": {"observation": np.zeros((4, 64, 64, 3), np.float32)},
    "wide frames": {"observation": np.zeros((4, 64, 65, 3), np.uint8)},
    "no action": {
        "observation": np.zeros((1, 64, 64, 3), np.uint8),
        "action": np.zeros(1, np.float16),
        "reward": np.zeros(1, np.float32),
    },
    "float32 actions": {"action": np.zeros(4, np.float32)},
    "too few actions": {"action": np.zeros(3, np.float16)},
    "too few rewards": {"reward": np.zeros(3, np.float32)},
    "a reward that is none": {"reward": np.float32([0, 1, np.nan, 1])},
    "a reward for nothing": {"reward": np.ones(4, np.float32)},
    "an action after the end": {"action": np.ones(4, np.float16)},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_wrong_arrays_are_neither_written_nor_read(tmp_path: Path, bad: dict) -> None:
    episode = numbered_episode(0, 4)._replace(**bad)
    with pytest.raises(EpisodeError, match=r"must be (uint8|float16|float32|finite|0)"):
        episodes.write(tmp_path, 0, episode)
    assert not list(tmp_path.iterdir())
    path = tmp_path / "episode_000000.npz"
    np.savez(path, version=episodes.VERSION, **episode._asdict())
    with pytest.raises(EpisodeError, match=r"episode_000000\.npz.*must be .*Delete it"):
        episodes.read(path)


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    path = tmp_path / "episode_000000.npz"
    np.savez(path, version=episodes.VERSION, observation=np.zeros((4, 64, 64, 3), np.uint8))
    with pytest.raises(EpisodeError, match="action"):
        episodes.read(path)


@pytest.mark.parametrize(("version", "age"), [(None, "an older"), (1, "an older"), (3, "a newer")])
def test_an_episode_of_another_version_is_refused(tmp_path: Path, version: int | None, age: str) -> None:
    """None stands for the first format, which had no version: rewards for actions, and no last frame."""
    path = episodes.write(tmp_path, 0, numbered_episode(0, 4))
    episodes.write(tmp_path, 1, numbered_episode(1, 4))
    episodes.open_store(tmp_path)
    arrays = {name: array[:-1] if np.ndim(array) else array for name, array in numbered_episode(0, 5)._asdict().items()}
    np.savez(path, **arrays | ({} if version is None else {"version": version}))
    message = rf"episode_000000\.npz .*{age} version of dreamjax .*Delete it and collect again"
    with pytest.raises(EpisodeError, match=message):
        episodes.read(path)
    with pytest.raises(EpisodeError, match=message):
        episodes.open_store(tmp_path)


def test_the_index_of_an_older_version_hides_no_old_episode(tmp_path: Path) -> None:
    path = tmp_path / "episode_000000.npz"
    np.savez(path, **numbered_episode(0, 4)._asdict())
    stat = path.stat()
    (tmp_path / "index.json").write_text(json.dumps({path.name: [stat.st_size, stat.st_mtime_ns, 4]}))
    with pytest.raises(EpisodeError, match="older version"):
        episodes.open_store(tmp_path)


def test_a_missing_file_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        episodes.read(tmp_path / "episode_000000.npz")


def test_a_flipped_bit_is_found_or_harmless(tmp_path: Path) -> None:
    episode = numbered_episode(3, 2)
    path = episodes.write(tmp_path, 0, episode)
    intact = path.read_bytes()
    data = intact.find(episode.observation.tobytes())
    rng = np.random.default_rng(0)
    inside = set(range(data, data + episode.observation.nbytes))
    headers = [i for i in range(len(intact)) if i not in inside][::3]  # of the archive and of its arrays
    pixels = [int(i) for i in rng.choice(sorted(inside), 100, replace=False)]
    refused = set()
    for position in headers + pixels:
        damaged = bytearray(intact)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = episodes.read(path)
        except EpisodeError as error:
            assert str(path) in str(error) and "Delete it" in str(error)
            refused.add(position)
        else:
            assert_equal(found, episode)
    assert refused >= set(pixels)
    assert len(refused) > len(pixels) + len(headers) // 3


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99, 0.9999])
def test_a_truncated_file_is_refused(tmp_path: Path, part: float) -> None:
    path = episodes.write(tmp_path, 0, numbered_episode(3, 5))
    intact = path.read_bytes()
    path.write_bytes(intact[: int(part * len(intact))])
    with pytest.raises(EpisodeError, match=r"episode_000000\.npz"):
        episodes.read(path)
    with pytest.raises(EpisodeError, match=r"episode_000000\.npz"):
        episodes.open_store(tmp_path)


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fills_up(file: object, **arrays: Any) -> None:
        with open("/dev/full", "wb") as full:  # the device that never has room
            full.write(arrays["observation"].tobytes())

    episodes.write(tmp_path, 0, numbered_episode(0, 3))
    monkeypatch.setattr(np, "savez", fills_up)
    with pytest.raises(OSError, match="disk is full") as caught:
        episodes.write(tmp_path, 1, numbered_episode(1, 3))
    assert caught.value.errno == errno.ENOSPC and "episode_000001" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["episode_000000.npz"]


def test_a_store_knows_its_episodes(store: Store) -> None:
    assert store.lengths == LENGTHS and len(store) == len(LENGTHS) and store.frames == sum(LENGTHS)
    assert [path.name for path in store.paths] == [f"episode_{i:06d}.npz" for i in range(len(LENGTHS))]
    head = store.head(2)
    assert (head.paths, head.lengths) == (store.paths[:2], LENGTHS[:2])
    for episodes_asked in (0, len(LENGTHS) + 1):
        with pytest.raises(ValueError, match="holds 7"):
            store.head(episodes_asked)


def test_an_empty_folder_is_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="collect"):
        episodes.open_store(tmp_path)


def test_the_index_follows_the_files(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store.paths[0].parent
    headers_read = []
    read_length = episodes._read_length
    monkeypatch.setattr(episodes, "_read_length", lambda path: headers_read.append(path.name) or read_length(path))
    assert episodes.open_store(folder) == store and not headers_read
    episodes.write(folder, 1, numbered_episode(1, 4))
    store.paths[4].unlink()
    assert episodes.open_store(folder).lengths == (3, 4, 2, 8, 5, 9)
    assert headers_read == ["episode_000001.npz"]
    for damage in ("", "{", "[1, 2", "[]", "{}"):
        (folder / "index.json").write_text(damage)
        assert episodes.open_store(folder).lengths == (3, 4, 2, 8, 5, 9)
    assert len(json.loads((folder / "index.json").read_text())["episodes"]) == 6


@pytest.mark.parametrize("pool", [1, 2, 3, 100])
def test_an_epoch_shows_every_frame_once(store: Store, pool: int) -> None:
    per_epoch = episodes.steps_per_epoch(store, BATCH)
    assert per_epoch == sum(LENGTHS) // BATCH
    batches = list(islice(episodes.frame_batches(store, 7, BATCH, pool_episodes=pool), 3 * per_epoch))
    assert all(batch.shape == (BATCH, 64, 64, 3) and batch.dtype == np.uint8 for batch in batches)
    every = {(e, t) for e, length in enumerate(LENGTHS) for t in range(length)}
    epochs = []
    for epoch in range(3):
        seen = [name for batch in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for name in names(batch)]
        assert len(seen) == len(set(seen)) == per_epoch * BATCH
        assert set(seen) <= every
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_batch_size_that_divides_the_frames_leaves_none_out(store: Store) -> None:
    frames = [names(batch)[0] for batch in islice(episodes.frame_batches(store, 0, 1, pool_episodes=2), store.frames)]
    assert sorted(frames) == [(e, t) for e, length in enumerate(LENGTHS) for t in range(length)]


def test_frames_arrive_whole(store: Store) -> None:
    originals = [numbered_episode(e, length).observation for e, length in enumerate(LENGTHS)]
    for batch in islice(episodes.frame_batches(store, 1, BATCH, pool_episodes=2), 20):
        for frame, (e, t) in zip(batch, names(batch), strict=True):
            np.testing.assert_array_equal(frame, originals[e][t])


@pytest.mark.parametrize("pool", [1, 3])
@pytest.mark.parametrize("start", range(0, 21))
def test_a_resumed_stream_is_the_same_stream(store: Store, pool: int, start: int) -> None:
    whole = islice(episodes.frame_batches(store, 3, BATCH, pool_episodes=pool), start, start + 12)
    resumed = islice(episodes.frame_batches(store, 3, BATCH, start, pool), 12)
    for expected, batch in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(batch, expected)


def test_streams_differ_by_seed_and_repeat(store: Store) -> None:
    first, again, other = (next(episodes.frame_batches(store, seed, BATCH)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert names(first) != names(other)


def test_skipped_pools_are_not_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    read = episodes.read
    monkeypatch.setattr(episodes, "read", lambda path: opened.append(path) or read(path))
    stream = episodes.frame_batches(store, 0, 1, start_step=store.frames - 1, pool_episodes=1)
    next(stream)
    stream.close()
    assert len(opened) == 2  # the last pool of this epoch, and the first of the next one, ahead of time


def test_a_damaged_episode_stops_the_stream_with_its_name(store: Store) -> None:
    store.paths[2].write_bytes(store.paths[2].read_bytes()[:-500])
    with pytest.raises(EpisodeError, match=r"episode_000002\.npz"):
        list(islice(episodes.frame_batches(store, 0, BATCH, pool_episodes=2), 20))


def test_an_episode_that_changed_its_length_is_refused(store: Store) -> None:
    episodes.write(store.paths[0].parent, 1, numbered_episode(1, 4))
    with pytest.raises(EpisodeError, match=r"episode_000001\.npz .*4 frames .*17"):
        list(islice(episodes.frame_batches(store, 0, BATCH), 20))


@pytest.mark.parametrize("bad", [{"batch_size": 0}, {"batch_size": 57}, {"start_step": -1}, {"pool_episodes": 0}])
def test_bad_arguments_are_refused_at_once(store: Store, bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        episodes.frame_batches(store, 0, **{"batch_size": BATCH} | bad)


def test_reading_needs_no_permission_to_write(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = store.paths[0].parent
    (folder / "index.json").unlink()
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    assert episodes.open_store(folder) == store
    assert not (folder / "index.json").exists()


def test_importing_it_does_not_start_jax() -> None:
    code = "import sys, dreamjax.storage.episodes; assert 'jax' not in sys.modules and 'flax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
