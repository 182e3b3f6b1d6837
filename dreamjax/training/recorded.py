"""Episodes of an environment written in JAX: many played at once, kept in a file, and encoded for M to learn from."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from dreamjax import rollout
from dreamjax.replay import latents
from dreamjax.replay.latents import Latents, Recorded
from dreamjax.rollout import Transition
from dreamjax.storage.atomic import read_npz, replacing
from dreamjax.training.encode import in_batches
from dreamjax.types import Agent, AgentParams, Environment, Key, PyTree


def act(environment: Environment, agent: Agent, params: AgentParams, key: Key, episodes: int, steps: int) -> Transition:
    """Act in some environments at once, for `steps` steps of each. Shapes: -> [episodes, steps, ...]."""
    policy = rollout.step_policy(agent, params.model)
    one = lambda key: rollout.unroll(environment, policy, params.policy, key, steps)[1]  # noqa: E731
    return jax.vmap(one)(jax.random.split(key, episodes))


def write(path: str | os.PathLike[str], acted: Transition) -> None:
    """Write what `act` returned, whose observation is a mapping of names to arrays, all or nothing."""
    arrays = latents.end_to_end(*jax.device_get(acted))._asdict()
    with replacing(path) as temporary:
        np.savez(temporary, allow_pickle=False, **arrays.pop("observation"), **arrays)


def read(path: str | os.PathLike[str]) -> Recorded:
    """Read what `write` wrote. Raises ValueError for a file that is damaged, or that an older dreamjax wrote."""
    arrays = read_npz(path)
    if "is_terminal" not in arrays:
        raise ValueError(
            f"{path} was recorded by an older version of dreamjax, which paid rewards one step earlier: begin a new "
            "folder"
        )
    rest = {name: arrays.pop(name) for name in Recorded._fields[1:]}
    return Recorded(arrays, **rest)


def once(path: str | os.PathLike[str], make: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array in a `.npz` file, which is made and written first if it is not there."""
    if not Path(path).exists():
        with replacing(path) as temporary:
            np.savez(temporary, allow_pickle=False, made=make())
    return read_npz(path)["made"]


def observed(recorded: Sequence[Recorded], name: str) -> np.ndarray:
    """Return the observations `name` of all episodes, end to end. Shapes: -> [N, ...]."""
    return np.concatenate([part.observation[name] for part in recorded])


def batches(frames: np.ndarray, seed: int, size: int, step: int) -> Iterator[np.ndarray]:
    """Draw frames, with replacement, for update `step` and those after it. Shapes: frames [N, ...] -> [size, ...]."""
    while True:
        yield frames[np.random.default_rng([seed, step]).integers(len(frames), size=size)]
        step += 1


def encode(
    recorded: Sequence[Recorded], posterior: Callable[[np.ndarray], tuple[PyTree, PyTree]], name: str = "image"
) -> Latents:
    """Encode the observation `name`, which is a picture. `posterior` as in `training.encode.encode`."""
    parts = []
    for part in recorded:
        mean, log_variance = in_batches(posterior, part.observation[name])
        parts.append(Latents(mean, log_variance, part.action.astype(np.float16), *part[2:]))
    return latents.concatenate(parts)
