"""Recorded episodes on disk, one file each, and their frames as a stream of batches. Imports no JAX.

A file is an uncompressed numpy archive, whose entries carry checksums. `observation[t]` is the frame before
`action[t]`; what the environment shows after the last action is not stored.
"""

import errno
import json
import os
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

FRAME_SHAPE = (64, 64, 3)


class EpisodeError(ValueError):
    """An episode that cannot be used: its file is damaged, or its arrays are not what they should be."""


class Episode(NamedTuple):
    """One recorded episode of T steps."""

    observation: np.ndarray  # [T, 64, 64, 3] uint8
    action: np.ndarray  # [T, *action shape] float16
    reward: np.ndarray  # [T] float32, for the action
    terminated: bool  # the last action ended the episode for good, not by a time limit
    seed: int  # that reproduces the episode


def episode_path(folder: str | os.PathLike, index: int) -> Path:
    """Where the episode with number `index` lies in `folder`."""
    return Path(folder) / f"episode_{index:06d}.npz"


def write(folder: str | os.PathLike, index: int, episode: Episode) -> Path:
    """Writes one episode, all of it or nothing. Raises EpisodeError for wrong arrays, OSError on a full disk."""
    path = episode_path(folder, index)
    problem = _problem(episode)
    if problem:
        raise EpisodeError(f"episode {index} was not written: {problem}")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(unfinished, "wb") as file:
            np.savez(file, **episode._asdict())
        os.replace(unfinished, path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            reason = "the disk is full; free some space and start again, what is finished is kept"
            raise OSError(errno.ENOSPC, reason, str(path)) from error
        raise
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def read(path: str | os.PathLike) -> Episode:
    """Reads one episode and verifies its checksums. Raises EpisodeError if the file is damaged or not an episode."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in Episode._fields}
            terminated, seed = bool(arrays.pop("terminated")), int(arrays.pop("seed"))
            episode = Episode(**arrays, terminated=terminated, seed=seed)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a damaged archive fails in a dozen ways, none of which says which file or what to do
        raise _unusable(path, f"{type(error).__name__}: {error}") from error
    problem = _problem(episode)
    if problem:
        raise _unusable(path, problem)
    return episode


@dataclass(frozen=True)
class Store:
    """The episodes of one folder, in the order of their numbers."""

    paths: tuple[Path, ...]
    lengths: tuple[int, ...]  # steps of each

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def frames(self) -> int:
        """Number of frames of all episodes together."""
        return sum(self.lengths)

    def head(self, episodes: int) -> "Store":
        """The first `episodes` of them."""
        if not 0 < episodes <= len(self):
            raise ValueError(f"the store holds {len(self)} episodes, so head() takes 1..{len(self)}, got {episodes}")
        return Store(self.paths[:episodes], self.lengths[:episodes])


def open_store(folder: str | os.PathLike) -> Store:
    """Lists the episodes of a folder. Only headers are read, and `index.json` remembers those of unchanged files."""
    folder = Path(folder)
    paths = tuple(sorted(folder.glob("episode_*.npz")))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no episodes (episode_*.npz); collect some first")
    index_path = folder / "index.json"
    known = _load_index(index_path)
    index = {}
    for path in paths:
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        entry = known.get(path.name)
        index[path.name] = entry if entry and entry[:2] == stamp else [*stamp, _read_length(path)]
    if index != known and os.access(folder, os.W_OK):  # the index only saves time: read-only data do without
        unfinished = index_path.with_name(f".{index_path.name}.{os.getpid()}.tmp")
        unfinished.write_text(json.dumps(index))
        os.replace(unfinished, index_path)
    return Store(paths, tuple(index[path.name][2] for path in paths))


def steps_per_epoch(store: Store, batch_size: int) -> int:
    """Number of full batches in one pass over the store. Raises ValueError if it does not hold even one."""
    if not 0 < batch_size <= store.frames:
        raise ValueError(f"batch_size must lie in 1..{store.frames}, the frames of the store; got {batch_size}")
    return store.frames // batch_size


def frame_batches(
    store: Store, seed: int, batch_size: int, start_step: int = 0, pool_episodes: int = 64
) -> Iterator[np.ndarray]:
    """Shuffled frames without end, as uint8 [batch_size, 64, 64, 3].

    Every epoch takes the episodes in an order drawn from (seed, epoch), loads `pool_episodes` of them at a time and
    shuffles their frames; what does not fill a batch moves on to the next pool, and the last partial batch of an
    epoch is dropped. At most two pools are in memory: the one in use and the next, read by a background thread.

    With `start_step` the stream goes on exactly as it would have after that many batches, and reads only what it
    needs for that.
    """
    if start_step < 0 or pool_episodes < 1:
        raise ValueError(f"need start_step >= 0 and pool_episodes >= 1, got {start_step} and {pool_episodes}")
    epoch, skip = divmod(start_step, steps_per_epoch(store, batch_size))
    return _stream(store, _pools(store, seed, batch_size, pool_episodes, epoch, skip))


class _Pool(NamedTuple):
    """What one pool will hold. Frames are numbered through the store: episode 0 first, then episode 1, ..."""

    carried: np.ndarray  # [C] int64, frames left over from the pool before
    episodes: np.ndarray  # [P] int64, to be loaded; their frames follow the carried ones
    batches: np.ndarray  # [n, batch_size] int64, positions in carried + loaded
    left: np.ndarray  # [L] int64, positions of what the next pool is given


def _pools(store: Store, seed: int, batch_size: int, pool_episodes: int, epoch: int, skip: int) -> Iterator[_Pool]:
    """The plan of all pools from the one that holds batch `skip` of `epoch` on; needs no frame, so it costs little."""
    lengths = np.asarray(store.lengths)
    starts = np.cumsum(lengths) - lengths
    while True:
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(store))
        carried = np.zeros(0, np.int64)
        for first in range(0, len(store), pool_episodes):
            episodes = order[first : first + pool_episodes]
            frames = np.concatenate([carried, *(np.arange(starts[e], starts[e] + lengths[e]) for e in episodes)])
            shuffled = rng.permutation(len(frames))
            full = len(frames) - len(frames) % batch_size
            batches, left = shuffled[:full].reshape(-1, batch_size), shuffled[full:]
            if skip == 0 or skip < len(batches):
                yield _Pool(carried, episodes, batches[skip:], left)
            skip = max(skip - len(batches), 0)
            carried = frames[left]
        epoch += 1
        skip = 0


def _stream(store: Store, pools: Iterator[_Pool]) -> Iterator[np.ndarray]:
    with ThreadPoolExecutor(1) as reader:
        pool = next(pools)
        loading = reader.submit(_load, store, pool)
        carried = _gather(store, pool.carried)
        while True:
            frames = loading.result()
            frames[: len(carried)] = carried
            following = next(pools)
            loading = reader.submit(_load, store, following)
            for batch in pool.batches:
                yield frames[batch]
            carried = frames[pool.left] if len(following.carried) else carried[:0]  # a new epoch is given none
            pool = following


def _load(store: Store, pool: _Pool) -> np.ndarray:
    """The frames of a pool, uint8 [C + sum of lengths, 64, 64, 3]; the first C are left for what is carried."""
    end = len(pool.carried)
    frames = np.empty((end + sum(store.lengths[e] for e in pool.episodes), *FRAME_SHAPE), np.uint8)
    for e in pool.episodes:
        frames[end : end + store.lengths[e]] = _observation(store, e)
        end += store.lengths[e]
    return frames


def _gather(store: Store, numbers: np.ndarray) -> np.ndarray:
    """The frames with these numbers, uint8 [len(numbers), 64, 64, 3], one episode at a time."""
    ends = np.cumsum(store.lengths)
    episode = np.searchsorted(ends, numbers, side="right")
    frames = np.empty((len(numbers), *FRAME_SHAPE), np.uint8)
    for e in np.unique(episode):
        here = episode == e
        frames[here] = _observation(store, e)[numbers[here] - (ends[e] - store.lengths[e])]
    return frames


def _observation(store: Store, e: int) -> np.ndarray:
    observation = read(store.paths[e]).observation
    if len(observation) != store.lengths[e]:
        problem = f"it has {len(observation)} steps and had {store.lengths[e]} when the store was opened"
        raise _unusable(store.paths[e], problem)
    return observation


def _problem(episode: Episode) -> str | None:
    """What is wrong with the arrays of an episode, or None."""
    observation, action, reward = episode.observation, episode.action, episode.reward
    if observation.dtype != np.uint8 or observation.shape[1:] != FRAME_SHAPE or len(observation) == 0:
        return f"observation must be uint8 [T, 64, 64, 3] with T > 0, got {observation.dtype} {list(observation.shape)}"
    if action.dtype != np.float16 or action.shape[:1] != observation.shape[:1]:
        return f"action must be float16 [{len(observation)}, ...], got {action.dtype} {list(action.shape)}"
    if reward.dtype != np.float32 or reward.shape != observation.shape[:1]:
        return f"reward must be float32 [{len(observation)}], got {reward.dtype} {list(reward.shape)}"
    if not np.isfinite(reward).all():
        return "reward must be finite"
    return None


def _unusable(path: str | os.PathLike, problem: str) -> EpisodeError:
    return EpisodeError(f"{path} cannot be used: {problem}. Delete it and collect again, which fills the gap")


def _load_index(path: Path) -> dict[str, list[int]]:
    """What `open_store` remembered: name -> [size, time of change, steps]. A damaged index is as good as none."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _read_length(path: Path) -> int:
    """Number of steps, from the header of the observations alone."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("observation.npy") as file:
            np.lib.format.read_magic(file)
            shape, _, _ = np.lib.format.read_array_header_1_0(file)
            return int(shape[0])
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # see `read`
        raise _unusable(path, f"{type(error).__name__}: {error}") from error
