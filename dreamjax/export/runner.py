"""Act with an exported agent. This file needs JAX alone, and flatbuffers, with which JAX reads programs."""

from pathlib import Path
from typing import Any

import jax
import numpy as np


class Exported:
    """An agent in a folder: `state, action = agent.act(key, state, observation, is_first)` for a batch of any size.

    Observations and actions are dictionaries of arrays [batch, ...]; `agent.observation` has their shapes and dtypes.
    Where `is_first` [batch] is true, an episode begins, and what was remembered of another is forgotten.
    """

    def __init__(self, folder: str | Path = ".") -> None:
        program = jax.export.deserialize(bytearray((Path(folder) / "act.bin").read_bytes()))
        (_, _, self._state, self.observation, _), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
        with np.load(Path(folder) / "weights.npz") as arrays:
            self._weights = jax.device_put([arrays[f"{i}"] for i in range(len(arrays.files))])
        self._call = jax.jit(program.call)

    def start(self, batch: int) -> list[np.ndarray]:
        """Return the state before the first step of `batch` episodes."""
        return [np.zeros((batch, *like.shape[1:]), like.dtype) for like in self._state]

    def act(self, key: jax.Array, state: list[Any], observation: dict[str, Any], is_first: Any) -> tuple[list, dict]:
        """Act on the steps that arrived; `key` is of `jax.random.key` and used once."""
        return self._call(self._weights, jax.random.key_data(key), state, observation, np.asarray(is_first))
