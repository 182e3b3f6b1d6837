"""Encoded episodes in memory, as parallel streams of latents to train a memory on.

Latents are small (float16: 256 bytes a frame at 64 latents), so the frames themselves are not needed once V is done.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from dreamjax.types import Array, PyTree, Step


class Recorded(NamedTuple):
    """Episodes end to end, as the environment showed them: N steps of E episodes, T + 1 steps for T actions."""

    observation: PyTree  # [N, ...] x_t
    action: np.ndarray  # [N, ...] chosen after x_t; zero after the last step of an episode
    reward: np.ndarray  # [N] received on arriving at x_t; 0 at the first step of an episode
    is_terminal: np.ndarray  # [N] bool, x_t ended the episode, and not by a time limit
    length: np.ndarray  # [E] int64, steps of each episode


class Latents(NamedTuple):
    """Episodes end to end, encoded: N steps of E episodes, T + 1 steps for T actions."""

    mean: np.ndarray  # [N, Z] float16, of V's posterior of x_t
    log_variance: np.ndarray  # [N, Z] float16
    action: np.ndarray  # [N, ...] float16, chosen after x_t; zero after the last step of an episode
    reward: np.ndarray  # [N] float32, received on arriving at x_t; 0 at the first step of an episode
    is_terminal: np.ndarray  # [N] bool, x_t ended the episode, and not by a time limit
    length: np.ndarray  # [E] int64, steps of each episode

    def first_frames(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the posteriors of the first frames of `count` episodes, where dreams begin: two of [count, Z].

        Where there are fewer, it begins again with the first: what dreams stays of one shape, and compiled once.
        """
        first = np.resize(np.cumsum(self.length) - self.length, count)
        return self.mean[first].astype(np.float32), self.log_variance[first].astype(np.float32)


class Chunk(NamedTuple):
    """T + 1 consecutive encoded steps of B streams: all but the last are inputs, all but the first are targets.

    A stream runs through one episode after the other. Time and flags are those of `dreamjax.types`.
    """

    mean: Array  # [T+1, B, Z]
    log_variance: Array  # [T+1, B, Z]
    action: Array  # [T+1, B, ...], chosen after the step
    reward: Array  # [T+1, B], received on arriving at the step
    is_terminal: Array  # [T+1, B] bool, the step ended the episode, and not by a time limit
    is_first: Array  # [T+1, B] bool, the step opens an episode
    is_last: Array  # [T+1, B] bool, the step closes an episode: no action follows it
    reset: Array  # [] bool, new streams begin here: the recurrent state so far belongs to others


def end_to_end(step: Step, action: np.ndarray) -> Recorded:
    """Put what L parallel environments went through in T steps (`rollout.unroll`) end to end.

    Every environment begins and ends its part of the result with an episode of its own, even where the recording began
    or stopped in the middle of one: its first reward and its last action are zero like those of whole episodes.

    Shapes: [L, T, ...] -> [N, ...] with N = L T.
    """
    flat = lambda array: np.asarray(array).reshape(-1, *np.shape(array)[2:])  # noqa: E731
    is_first = np.asarray(step.is_first).copy()
    is_first[:, 0] = True
    first = np.flatnonzero(is_first)
    action, reward = flat(action).copy(), flat(step.reward).copy()
    reward[first] = 0
    action[first - 1] = 0  # of the episode before; -1 is the last step of all
    return Recorded(
        jax.tree.map(flat, step.observation),
        action,
        reward,
        flat(step.is_terminal),
        np.diff(np.append(first, is_first.size)),
    )


def concatenate(parts: list[Latents]) -> Latents:
    """Put the episodes of several parts end to end."""
    return Latents(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def chunks(latents: Latents, seed: int, streams: int, length: int, start_step: int = 0) -> Iterator[Chunk]:
    """Cut all episodes into chunks of `length` inputs, endlessly.

    Every epoch puts the episodes end to end in an order drawn from (seed, epoch), folds the result into B parallel
    streams and yields them chunk by chunk; what does not fill a chunk is dropped. Consecutive chunks share one step,
    which is the last target of the first and the first input of the second, so that no transition is lost (the
    published code loses one per chunk). With `start_step` the stream continues exactly as it would have after that many
    chunks.

    Shapes: as in `Chunk`, [length + 1, streams, ...]. Raises: ValueError if there are too few steps for one chunk.
    Source: Ha & Schmidhuber 2018, published code of the Doom experiment.
    """
    per_epoch = chunks_per_epoch(latents, streams, length)
    epoch, skip = divmod(start_step, per_epoch)
    starts = np.cumsum(latents.length) - latents.length
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(latents.length))
        steps = np.concatenate([np.arange(starts[e], starts[e] + latents.length[e]) for e in order])
        is_first = np.zeros(len(steps), bool)
        is_first[np.cumsum(latents.length[order]) - latents.length[order]] = True
        is_last = np.roll(is_first, -1)
        width = len(steps) // streams
        for i in range(skip, per_epoch):
            index = np.arange(i * length, (i + 1) * length + 1)[:, None] + width * np.arange(streams)
            chosen = steps[index]
            recorded: tuple[Any, ...] = tuple(array[chosen] for array in latents[:-1])
            flags: tuple[Any, ...] = (is_first[index], is_last[index], np.array(i == 0))
            yield Chunk(*recorded, *flags)
        epoch, skip = epoch + 1, 0


def chunks_per_epoch(latents: Latents, streams: int, length: int) -> int:
    """Count the chunks in one pass over the episodes. Raises ValueError if there is not even one.

    Also if `latents` are not of as many steps as their lengths sum up to.
    """
    if min(streams, length) < 1:
        raise ValueError(f"need streams and length of 1 or more, got {streams} and {length}")
    if {len(array) for array in latents[:-1]} != {int(np.sum(latents.length))}:
        sizes = {name: len(array) for name, array in latents._asdict().items() if name != "length"}
        raise ValueError(f"the lengths of the episodes sum up to {np.sum(latents.length)} steps, but there are {sizes}")
    count = (len(latents.mean) // streams - 1) // length
    if count < 1:
        raise ValueError(
            f"{len(latents.mean)} steps do not fill {streams} streams of {length} + 1; use fewer or shorter streams"
        )
    return count
