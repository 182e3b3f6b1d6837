"""Recorded episodes on disk, one file each, and their frames as a stream of batches. Imports no JAX.

A file is an uncompressed numpy archive, whose entries carry checksums. Time is that of `dreamjax.types`: T actions lead
through T + 1 steps, `reward[t]` is received on arriving at `observation[t]`, and `action[t]` is chosen after it.
"""

import errno
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreamjax.storage.atomic import replacing

VERSION = 2  # of the files; 1 paid rewards for actions and left out the last frame
FRAME_SHAPE = (64, 64, 3)


class EpisodeError(ValueError):
    """An episode that cannot be used: its file is damaged, or its arrays are not what they should be."""


class Episode(NamedTuple):
    """One recorded episode: T actions and the T + 1 steps they lead through."""

    observation: np.ndarray  # [T+1, 64, 64, 3] uint8
    action: np.ndarray  # [T+1, *action shape] float16, chosen after the step; zeros after the last one
    reward: np.ndarray  # [T+1] float32, received on arriving at the step; 0 at the first one
    terminated: bool  # the last step is terminal; otherwise the episode was cut, by a time limit for example
    seed: int  # of the environment; with it and the actions the episode can be made again


def episode_path(folder: str | os.PathLike, index: int) -> Path:
    """Return where episode number `index` lies in `folder`."""
    return Path(folder) / f"episode_{index:06d}.npz"


def write(folder: str | os.PathLike, index: int, episode: Episode) -> Path:
    """Write one episode, all of it or nothing. Raises EpisodeError for wrong arrays, OSError on a full disk."""
    path = episode_path(folder, index)
    problem = _problem(episode)
    if problem:
        raise EpisodeError(f"episode {index} was not written: {problem}")
    try:
        with replacing(path) as temporary:
            np.savez(temporary, allow_pickle=False, version=VERSION, **episode._asdict())
    except OSError as error:
        if error.errno == errno.ENOSPC:
            reason = "the disk is full; free some space and start again, what is finished is kept"
            raise OSError(errno.ENOSPC, reason, str(path)) from error
        raise
    return path


def read(path: str | os.PathLike) -> Episode:
    """Read one episode and verify its checksums.

    Raises: EpisodeError if the file is damaged, not an episode, or of another version.
    """
    with _opened(path) as archive:
        arrays = {name: archive[name] for name in Episode._fields}
        terminated, seed = bool(arrays.pop("terminated")), int(arrays.pop("seed"))
        episode = Episode(**arrays, terminated=terminated, seed=seed)
    problem = _problem(episode)
    if problem:
        raise _unusable(path, problem)
    return episode


def checksums(path: str | os.PathLike) -> list[int]:
    """Return the checksums that an episode's file has of its arrays. Raises: as `read` does."""
    with _opened(path) as archive:
        return [entry.CRC for entry in archive.zip.infolist()]


@dataclass(frozen=True)
class Store:
    """The episodes of one folder, in the order of their numbers."""

    paths: tuple[Path, ...]
    lengths: tuple[int, ...]  # frames of each, T + 1 for T actions

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def frames(self) -> int:
        """Number of frames in all episodes together."""
        return sum(self.lengths)

    def head(self, episodes: int) -> "Store":
        """The first `episodes` of them."""
        if not 0 < episodes <= len(self):
            raise ValueError(f"the store holds {len(self)} episodes, so head() takes 1..{len(self)}, got {episodes}")
        return Store(self.paths[:episodes], self.lengths[:episodes])


def open_store(folder: str | os.PathLike) -> Store:
    """List the episodes of a folder. Only headers are read, and `index.json` remembers those of unchanged files.

    Raises: FileNotFoundError if there are none, EpisodeError if one is damaged or of another version.
    """
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
        with replacing(index_path) as temporary:
            temporary.write_text(json.dumps({"version": VERSION, "episodes": index}))
    return Store(paths, tuple(index[path.name][2] for path in paths))


def steps_per_epoch(store: Store, batch_size: int) -> int:
    """Count the full batches in one pass over the store. Raises ValueError if it does not hold even one."""
    if not 0 < batch_size <= store.frames:
        raise ValueError(f"batch_size must lie in 1..{store.frames}, the frames of the store; got {batch_size}")
    return store.frames // batch_size


def frame_batches(
    store: Store, seed: int, batch_size: int, start_step: int = 0, pool_episodes: int = 64
) -> Iterator[np.ndarray]:
    """Stream shuffled frames without end, uint8 [batch_size, 64, 64, 3].

    Every epoch takes the episodes in an order drawn from (seed, epoch), loads `pool_episodes` of them at a time and
    shuffles their frames; what does not fill a batch moves on to the next pool, and the last partial batch of an
    epoch is dropped. At most two pools are in memory: the one in use and the next, read by a background thread.

    With `start_step` the stream continues exactly as it would have after that many batches, and reads no more than
    that needs.

    Raises: EpisodeError where an episode cannot be read, ValueError for arguments out of range.
    """
    if start_step < 0 or pool_episodes < 1:
        raise ValueError(f"need start_step >= 0 and pool_episodes >= 1, got {start_step} and {pool_episodes}")
    epoch, skip = divmod(start_step, steps_per_epoch(store, batch_size))
    return _stream(store, _pools(store, seed, batch_size, pool_episodes, epoch, skip))


class _Pool(NamedTuple):
    """Plan of one pool. Frames are numbered through the store: episode 0 first, then episode 1, ..."""

    carried: np.ndarray  # [C] int64, frames left over from the pool before
    episodes: np.ndarray  # [P] int64, to be loaded; their frames follow the carried ones
    batches: np.ndarray  # [n, batch_size] int64, positions in carried + loaded
    left: np.ndarray  # [L] int64, positions of what the next pool is given


def _pools(store: Store, seed: int, batch_size: int, pool_episodes: int, epoch: int, skip: int) -> Iterator[_Pool]:
    """Plan all pools, beginning with the one that holds batch `skip` of `epoch`; reads no frames."""
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
        carried = _read_frames(store, pool.carried)
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
    """Read the frames of a pool, uint8 [C + sum of lengths, 64, 64, 3]; the first C are left for what is carried."""
    end = len(pool.carried)
    frames = np.empty((end + sum(store.lengths[e] for e in pool.episodes), *FRAME_SHAPE), np.uint8)
    for e in pool.episodes:
        frames[end : end + store.lengths[e]] = _observation(store, e)
        end += store.lengths[e]
    return frames


def _read_frames(store: Store, numbers: np.ndarray) -> np.ndarray:
    """Read the frames with these numbers, uint8 [len(numbers), 64, 64, 3], one episode at a time."""
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
        problem = f"it has {len(observation)} frames and had {store.lengths[e]} when the store was opened"
        raise _unusable(store.paths[e], problem)
    return observation


def _problem(episode: Episode) -> str | None:
    """Say what is wrong with the arrays of an episode, or return None."""
    observation, action, reward = episode.observation, episode.action, episode.reward
    found = lambda array: f"got {array.dtype} {list(array.shape)}"  # noqa: E731
    if observation.dtype != np.uint8 or observation.shape[1:] != FRAME_SHAPE or len(observation) < 2:
        return f"observation must be uint8 [T+1, 64, 64, 3] with T > 0, {found(observation)}"
    if action.dtype != np.float16 or action.shape[:1] != observation.shape[:1]:
        return f"action must be float16 [{len(observation)}, ...], {found(action)}"
    if reward.dtype != np.float32 or reward.shape != observation.shape[:1]:
        return f"reward must be float32 [{len(observation)}], {found(reward)}"
    if not np.isfinite(reward).all():
        return "reward must be finite"
    if reward[0] != 0:
        return f"reward[0] must be 0, since no action led to the first step, got {reward[0]}"
    if action[-1].any():
        return f"action[-1] must be 0, since no action follows the last step, got {action[-1]}"
    return None


def _unusable(path: str | os.PathLike, problem: str) -> EpisodeError:
    return EpisodeError(f"{path} cannot be used: {problem}. Delete it and collect again, which fills the gap")


@contextmanager
def _opened(path: str | os.PathLike) -> Iterator[Any]:
    """Open the archive of an episode of the current version; what goes wrong in it is raised as EpisodeError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            version = int(archive["version"]) if "version" in archive.files else 1
            if version != VERSION:
                age = "an older" if version < VERSION else "a newer"
                raise _unusable(path, f"it was recorded by {age} version of dreamjax (format {version}, not {VERSION})")
            yield archive
    except (FileNotFoundError, PermissionError, EpisodeError):
        raise
    except Exception as error:  # a damaged archive fails in a dozen ways, none of which says which file or what to do
        raise _unusable(path, f"{type(error).__name__}: {error}") from error


def _load_index(path: Path) -> dict[str, list[int]]:
    """Return what `open_store` noted: name -> [size, time of change, frames]. A damaged index is as good as none."""
    try:
        index = json.loads(path.read_text())
        return index["episodes"] if index.get("version") == VERSION else {}
    except (FileNotFoundError, ValueError, AttributeError, KeyError):
        return {}


def _read_length(path: Path) -> int:
    """Read the number of frames from the header of the observations alone."""
    with _opened(path) as archive, archive.zip.open("observation.npy") as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
        return int(shape[0])
