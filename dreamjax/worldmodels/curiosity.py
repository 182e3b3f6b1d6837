"""Curiosity: what M did not expect is a reward, so that the agent goes to see what M does not know.

Source: Ha & Schmidhuber 2018, section 5, with the sign of M's loss turned; the idea is that of Schmidhuber 1991.
"""

from typing import Any

import jax
import numpy as np

from dreamjax.replay.latents import Chunk, Latents
from dreamjax.types import Key, Params
from dreamjax.worldmodels import memory
from dreamjax.worldmodels.memory import MemoryConfig

_surprise = jax.jit(memory.surprise, static_argnums=0)


def intrinsic_reward(cfg: MemoryConfig, params: Params, key: Key, data: Latents, batch: int = 64) -> np.ndarray:
    """Return for every step of recorded episodes how little M expected to arrive there.

    It depends on the M that is asked: one that has not learned from the newest episodes yet is most surprised by them.
    Nothing leads to the first step of an episode, which gets 0. M reads `batch` episodes at a time.

    Shapes: -> float32 [N], nats per latent.
    """
    first = np.cumsum(data.length) - data.length
    time = np.arange(data.length.max())[:, None]
    found = np.zeros(len(data.mean), np.float32)
    if len(time) < 2:
        return found  # no step leads to another
    for number, begin in enumerate(range(0, len(first), batch)):
        rows = np.arange(begin, begin + batch).clip(max=len(first) - 1)  # every batch is full, so that one program does
        index = first[rows] + time.clip(max=data.length[rows] - 1)
        recorded: tuple[Any, ...] = tuple(array[index] for array in data[:-1])
        is_first, is_last = np.broadcast_to(time == 0, index.shape), time == data.length[rows] - 1
        flags: tuple[Any, ...] = (is_first, is_last, np.array(True))
        surprise = np.asarray(_surprise(cfg, params, jax.random.fold_in(key, number), Chunk(*recorded, *flags)))
        arrives = time[1:] < data.length[rows]
        found[index[1:][arrives]] = surprise[arrives]
    return found
