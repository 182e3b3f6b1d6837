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
    """Say for every action of recorded episodes how little M expected what it led to.

    It depends on the M that is asked: one that has not learned from the newest episodes yet finds them the newest.
    What follows the last frame of an episode is not recorded, so that its action gets 0. `batch` episodes at a time.

    Shapes: -> float32 [N], nats per latent.
    """
    first = np.cumsum(data.length) - data.length
    time = np.arange(data.length.max())[:, None]
    found = np.zeros(len(data.mean), np.float32)
    for number, begin in enumerate(range(0, len(first), batch)):
        rows = np.arange(begin, begin + batch).clip(max=len(first) - 1)  # every batch is full, so that one program does
        index = first[rows] + time.clip(max=data.length[rows] - 1)
        recorded: tuple[Any, ...] = tuple(array[index] for array in data[:-1])
        flags: tuple[Any, ...] = (np.broadcast_to(time == 0, index.shape), np.array(True))
        of_next = np.asarray(_surprise(cfg, params, jax.random.fold_in(key, number), Chunk(*recorded, *flags)))
        follows = time[1:] < data.length[rows]
        found[index[:-1][follows]] = of_next[follows]
    return found
