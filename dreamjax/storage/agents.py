"""A trained agent in one small file: the world model, the controller, and what its dreams begin with."""

import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.storage.leaves import CheckpointError
from dreamjax.storage.weights import load_weights, save_weights
from dreamjax.types import AnyPolicy, LatentModel, Params, PyTree


class StoredAgent(NamedTuple):
    """What plays, and what it dreams with."""

    model: Params  # of the `LatentModel`
    controller: Params  # of the `Policy`
    starts: PyTree  # [S, ...] embeddings of real first frames


def save_agent(path: str | os.PathLike[str], agent: StoredAgent) -> None:
    """Write an agent in float16, half the size. Raises ValueError if a weight is too large for that."""
    save_weights(path, agent, np.float16)


def load_agent(path: str | os.PathLike[str], model: LatentModel, policy: AnyPolicy) -> StoredAgent:
    """Read an agent as float32.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged.
        ValueError: it was made for another model or policy; the message lists the differences.
    """
    key = jax.random.key(0)
    like = StoredAgent(jax.eval_shape(model.init, key), jax.eval_shape(policy.init, key), ())
    observation = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), model.spec.observation)
    embedding = jax.eval_shape(model.encode, like.model, observation)
    count = _count_starts(Path(path))
    starts = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), jnp.float32), embedding)
    return load_weights(path, like._replace(starts=starts))


def _count_starts(path: Path) -> int:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = [name for name in arrays.files if name.startswith("starts")]
            return len(arrays[names[0]])
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged archive fails in a dozen ways
        raise CheckpointError(
            f"{path} is damaged or holds no agent ({error}); copy it again or train a new one"
        ) from error
