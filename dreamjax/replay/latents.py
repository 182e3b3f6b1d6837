"""Encoded episodes in memory, as parallel streams of latents to train a memory on.

Latents are small (float16: 256 bytes a frame at 64 latents), so the frames themselves are not needed once V is done.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from dreamjax.types import Array, PyTree, Step


class Recorded(NamedTuple):
    """Episodes end to end, as they were seen: N steps of E episodes. What is seen after the last action is left out."""

    observation: PyTree  # [N, ...]
    action: np.ndarray  # [N, ...] taken after it
    reward: np.ndarray  # [N] for the action
    done: np.ndarray  # [N] bool, the action ended the episode, and not by a time limit
    length: np.ndarray  # [E] int64, steps of each episode


class Latents(NamedTuple):
    """Episodes end to end: N frames of E episodes."""

    mean: np.ndarray  # [N, Z] float16, of V's posterior
    log_variance: np.ndarray  # [N, Z] float16
    action: np.ndarray  # [N, ...] float16, taken after the frame
    reward: np.ndarray  # [N] float32, for the action
    done: np.ndarray  # [N] bool, the action ended the episode, and not by a time limit
    length: np.ndarray  # [E] int64, frames of each episode

    def first_frames(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Posterior of the first frame of the first `count` episodes, where dreams begin: two of [count, Z]."""
        first = (np.cumsum(self.length) - self.length)[:count]
        return self.mean[first].astype(np.float32), self.log_variance[first].astype(np.float32)


class Chunk(NamedTuple):
    """T + 1 encoded frames of B streams in time order: each but the last is an input, each but the first a target."""

    mean: Array  # [T+1, B, Z]
    log_variance: Array  # [T+1, B, Z]
    action: Array  # [T+1, B, ...], taken after the frame
    reward: Array  # [T+1, B], for the action
    done: Array  # [T+1, B] bool, the action ended the episode for good
    is_first: Array  # [T+1, B] bool, the frame opens an episode
    fresh: Array  # [] bool, the streams begin here: what was remembered does not belong to them


def end_to_end(step: Step, action: np.ndarray) -> Recorded:
    """Put what L lanes went through in T steps (`rollout.unroll`) end to end.

    What a lane was in the middle of at its beginning or end counts as an episode of its own. The reward of the very
    last action is not known, which leaves that step out.

    Shapes: [L, T, ...] -> [N, ...].
    """
    kept = ~np.asarray(step.is_last)[:, :-1]
    opens = np.asarray(step.is_first)[:, :-1].copy()
    opens[:, 0] = True
    first = np.flatnonzero(opens[kept])
    now = lambda array: np.asarray(array)[:, :-1][kept]  # noqa: E731
    following = lambda array: np.asarray(array)[:, 1:][kept]  # noqa: E731
    return Recorded(
        jax.tree.map(now, step.observation),
        now(action),
        following(step.reward),
        following(step.is_terminal),
        np.diff(np.append(first, kept.sum())),
    )


def concatenate(parts: list[Latents]) -> Latents:
    """Put the episodes of several parts end to end."""
    return Latents(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def chunks(latents: Latents, seed: int, streams: int, length: int, start_step: int = 0) -> Iterator[Chunk]:
    """Cut all episodes into chunks of `length` inputs, without end.

    Every epoch puts the episodes end to end in an order drawn from (seed, epoch), folds the result into B parallel
    streams and yields them chunk by chunk; what does not fill a chunk is dropped. Consecutive chunks overlap by the one
    frame that is a target in the first and an input in the second, so no transition is lost (the published code loses
    one per chunk). With `start_step` the stream goes on exactly as it would have after that many chunks.

    Raises: ValueError if there are too few frames for one chunk.
    Source: Ha & Schmidhuber 2018, published code of the Doom experiment.
    """
    per_epoch = chunks_per_epoch(latents, streams, length)
    epoch, skip = divmod(start_step, per_epoch)
    starts = np.cumsum(latents.length) - latents.length
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(latents.length))
        frames = np.concatenate([np.arange(starts[e], starts[e] + latents.length[e]) for e in order])
        is_first = np.zeros(len(frames), bool)
        is_first[np.cumsum(latents.length[order]) - latents.length[order]] = True
        width = len(frames) // streams
        for i in range(skip, per_epoch):
            index = np.arange(i * length, (i + 1) * length + 1)[:, None] + width * np.arange(streams)
            chosen = frames[index]
            recorded: tuple[Any, ...] = tuple(array[chosen] for array in latents[:-1])
            flags: tuple[Any, ...] = (is_first[index], np.array(i == 0))
            yield Chunk(*recorded, *flags)
        epoch, skip = epoch + 1, 0


def chunks_per_epoch(latents: Latents, streams: int, length: int) -> int:
    """Chunks in one pass over the episodes. Raises ValueError if there is not even one."""
    count = (len(latents.mean) // streams - 1) // length
    if count < 1:
        raise ValueError(
            f"{len(latents.mean)} frames do not fill {streams} streams of {length} + 1; use fewer or shorter streams"
        )
    return count
