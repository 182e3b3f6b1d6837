"""Act with an exported agent. This file needs only JAX, and flatbuffers, with which JAX reads programs."""

from pathlib import Path
from typing import Any

import jax
import numpy as np


class Exported:
    """An agent in a folder: `state, action = agent.act(key, state, observation, is_first)` for a batch of any size.

    Observations and actions are dictionaries of arrays [batch, ...]; `agent.observation` has the shapes and dtypes of
    observations. Where `is_first` [batch] is true, as at the first call, an episode begins and the state is forgotten.
    """

    def __init__(self, folder: str | Path = Path(__file__).parent) -> None:
        program = jax.export.deserialize(bytearray((Path(folder) / "act.bin").read_bytes()))
        (_, _, self._state, self.observation, _), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
        with np.load(Path(folder) / "weights.npz") as arrays:
            self._weights = jax.device_put([arrays[f"{i}"] for i in range(len(arrays.files))])
        self._call = jax.jit(program.call)

    def start(self, batch: int) -> list[np.ndarray]:
        """Return a state to begin with, where `is_first` has to be true."""
        return [np.zeros((batch, *like.shape[1:]), like.dtype) for like in self._state]

    def act(self, key: jax.Array, state: list[Any], observation: dict[str, Any], is_first: Any) -> tuple[list, dict]:
        """Act on the steps that arrived; `key` is of `jax.random.key` and used once.

        Raises: ValueError for numbers that the dtype of an observation cannot hold, such as 0.5 in a picture of bytes.
        """
        seen = {name: _cast(name, observation[name], like.dtype) for name, like in self.observation.items()}
        return self._call(self._weights, jax.random.key_data(key), state, seen, np.asarray(is_first, bool))


def _cast(name: str, value: Any, dtype: np.dtype) -> np.ndarray:
    given = np.asarray(value)
    with np.errstate(invalid="ignore"):
        cast = given.astype(dtype) if given.dtype.kind in "biuf" else given
    is_whole = np.issubdtype(dtype, np.integer)
    if given.dtype.kind not in "biuf" or (is_whole and not np.array_equal(cast, given)):
        raise ValueError(f"{name} must be numbers that {dtype} holds, got {given.dtype} {list(given.shape)}")
    return cast
