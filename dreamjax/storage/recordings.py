"""Recorded experience, from which an agent can learn without the environment: steps, actions and their spaces.

The folder of a DreamerV3 run is a recording. `write_recording` makes one from anything else.
"""

import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dreamjax.dreamerv3.experience import Experience, Latent, recorded
from dreamjax.envs.host import Leaf, checked, leaf_of
from dreamjax.replay.sequences import Address, ReplayConfig, SequenceReplay
from dreamjax.storage.atomic import write_json
from dreamjax.storage.replays import ReplayError, ReplayFolder, read_share, saved_parts
from dreamjax.storage.specs import spec_from_json, spec_to_json
from dreamjax.types import Action, EnvSpec, Space, Step

LATENT = [f".latent.{field}" for field in Latent._fields]  # as a replay names these arrays


def write_spec(folder: str | os.PathLike[str], spec: EnvSpec) -> None:
    """Write what an environment emits and takes into `folder/spec.json`: see `spec_to_json`."""
    write_json(Path(folder) / "spec.json", spec_to_json(spec))


def read_spec(folder: str | os.PathLike[str]) -> EnvSpec:
    """Read what `write_spec` wrote. Raises ReplayError where there is none, or it cannot be read."""
    path = Path(folder) / "spec.json"
    try:
        return spec_from_json(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise ReplayError(f"{folder} holds no recording, as it has no spec.json: name a recording") from error
    except (OSError, ValueError) as error:
        raise ReplayError(
            f"{path} is damaged or was written by an older version of dreamjax, record again: {error}"
        ) from error


def write_recording(
    folder: str | os.PathLike[str], spec: EnvSpec, environments: int, steps: Iterable[tuple[Step, Action]]
) -> None:
    """Write the experience of E environments, so that agents can learn from it.

    `steps` yields each step and the action taken after it, as numpy arrays [E, ...] in the pytrees of `spec`. The last
    step of an episode is followed by the first of the next, and the action between them is ignored. A single long
    stream of episodes, E = 1, is as good as many.

    Raises: ValueError if the folder holds something already, if a step is not what the spec says, as of an environment
        (see `envs.host.checked`), or its flags not what `types.Step` says, an action is not finite or, if it is
        discrete, out of bounds, or if there is no step. Continuous actions may exceed their bounds, as those of an
        agent that its environment clips.
    """
    if Path(folder).exists() and any(Path(folder).iterdir()):
        raise ValueError(f"{folder} is not empty: name a new folder for the recording")
    door = [_leaf(path, space, environments) for path, space in jax.tree_util.tree_leaves_with_path(spec.observation)]
    chosen = jax.tree_util.tree_leaves_with_path(spec.action)
    recording = SequenceReplay(ReplayConfig(2**62, 1, online=False), recorded(spec), environments)
    is_over = np.ones(environments, bool)
    for step, action in steps:
        recording.add(Experience(step, action, None))
        for leaf, part in zip(door, jax.tree.leaves(step.observation), strict=True):
            checked(leaf, part)
        with np.errstate(over="ignore"):  # what becomes infinite is refused
            reward = np.asarray(step.reward).astype(np.float32)
        if not np.isfinite(reward).all():
            raise ValueError(f"rewards must be finite, got {step.reward} in step {recording.written - 1}")
        is_over = _check_flags(step, is_over, f"step {recording.written - 1}")
        for (path, space), part in zip(chosen, jax.tree.leaves(action), strict=True):
            _check_actions(jax.tree_util.keystr(path), space, np.asarray(part)[~np.asarray(step.is_last)])
    if not recording.written:
        raise ValueError("a recording of no steps teaches nothing")
    ReplayFolder(Path(folder) / "replay").save(recording, 0)
    write_spec(folder, spec)


def _check_flags(step: Step, is_over: np.ndarray, which: str) -> np.ndarray:
    """Refuse steps [E] that do not make episodes, given which of those before them were the last; return that of these.

    An episode may be left without a last step, as one that was abandoned.
    """
    is_first, is_last = np.asarray(step.is_first), np.asarray(step.is_last)
    for what, fits in {
        "be marked is_first where an episode begins: at the beginning, and after is_last": is_first | ~is_over,
        "have a reward of 0 where it is_first, as no action led to it": (np.asarray(step.reward) == 0) | ~is_first,
        "be marked is_last where it is_terminal": is_last | ~np.asarray(step.is_terminal),
    }.items():
        if not fits.all():
            raise ValueError(f"{which} of environment {np.argmin(fits)} must {what}")
    return is_last


def _check_actions(name: str, space: Space, taken: np.ndarray) -> None:
    """Refuse actions [K, ...] that an agent cannot have taken."""
    if space.is_discrete:
        what, fits = f"in [{space.low}, {space.high})", (taken >= space.low_array) & (taken < space.high_array)
    else:
        with np.errstate(over="ignore"):  # what becomes infinite is refused
            what, fits = "finite", np.isfinite(taken.astype(space.dtype))
    if not fits.all():
        raise ValueError(f"actions{name} must be {what}, got {taken}")


def _leaf(path: Any, space: Space, environments: int) -> Leaf:
    """Describe what E environments emit of a space."""
    name, last = jax.tree_util.keystr(path, simple=True, separator="/"), space.high_array - space.is_discrete
    return leaf_of(name, space, (environments, *space.shape), space.dtype, space.low_array, last)


def open_recording(folder: str | os.PathLike[str]) -> SequenceReplay:
    """Read a recording; of a run in several processes what all of them have recorded.

    Raises: ReplayError where there is none or it is damaged.
    """
    spec, saved = read_spec(folder), ReplayFolder(Path(folder) / "replay")
    if not saved.steps():
        raise ReplayError(f"{folder} holds no recording: it has no replay")
    newest, parts = _newest_parts(Path(folder), saved.steps())
    shape = saved.shape(newest)
    kinds = {name: jax.ShapeDtypeStruct(tuple(size), dtype) for name, (size, dtype) in shape["steps"].items()}
    example = recorded(spec)
    if set(LATENT) <= kinds.keys():
        example = example._replace(latent=Latent._make(kinds[name] for name in LATENT))
    cfg = ReplayConfig(shape["capacity"] * len(parts), 1, online=False, block=shape["block"])
    recording = SequenceReplay(cfg, example, shape["streams"] * len(parts))
    if recording.layout["steps"] != shape["steps"]:
        raise ReplayError(f"{folder}/spec.json is not that of the replay beside it: bring the former one back")
    if len(parts) == 1:
        saved.read(recording, newest)  # block by block
    else:
        read_share(parts, recording, newest, 0)
    return recording


def _newest_parts(run: Path, steps: list[int]) -> tuple[int, list[ReplayFolder]]:
    """Find the newest step that all processes of a run have saved: the first may be ahead, if they were killed."""
    for step in reversed(steps[1:]):
        with suppress(ReplayError):
            return step, saved_parts(run, step)
    return steps[0], saved_parts(run, steps[0])


def fill(
    replay: SequenceReplay,
    recording: SequenceReplay,
    seen: Callable[[Step], None] = lambda step: None,
    streams: range | None = None,
) -> None:
    """Add the newest steps of a recording to a replay with the same number of streams, as many as it can hold.

    `seen` is called with each of them. Latent states are another agent's and are not copied: they start at zero, and
    are refreshed when they are drawn. With `streams` only these of the recording are read, as many as the replay has.

    Raises: ValueError if the recording is of other spaces or streams.
    """
    kinds = dict(zip(replay.names, replay.kinds, strict=True))
    latent = Latent._make(
        np.zeros((replay.streams, *shape), dtype) for shape, dtype in (kinds[name] for name in LATENT)
    )
    chosen = np.array(streams or range(recording.streams))
    first = recording.written - replay.cfg.capacity // replay.streams
    for time in range(max(recording.oldest, first), recording.written):
        step = recording.read(Address(chosen, np.full_like(chosen, time)), 1)
        now = jax.tree.map(lambda x: x[:, 0], step)._replace(latent=latent)
        replay.add(now)
        seen(now.step)
