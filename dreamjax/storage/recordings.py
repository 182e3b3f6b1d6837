"""Recorded experience, from which an agent can learn where its environment is not: steps, actions and their spaces.

The folder of a DreamerV3 run is a recording. `write_recording` makes one of what anything else has collected.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from dreamjax.dreamerv3.experience import Experience, Latent, recorded
from dreamjax.dreamerv3.model import by_name
from dreamjax.replay.sequences import Address, ReplayConfig, SequenceReplay
from dreamjax.storage.atomic import replacing
from dreamjax.storage.replays import ReplayError, ReplayFolder
from dreamjax.storage.specs import space_from_json, space_to_json
from dreamjax.types import Action, EnvSpec, Step

LATENT = [f".latent.{field}" for field in Latent._fields]  # as a replay names these arrays


def write_spec(folder: str | os.PathLike[str], spec: EnvSpec) -> None:
    """Note in `folder/spec.json` what an environment emits and takes. Spaces are alone, or in a mapping by name."""
    described = {
        kind: {name: space_to_json(space) for name, space in getattr(_named(spec), kind).items()}
        for kind in ("observation", "action")
    }
    with replacing(Path(folder) / "spec.json") as temporary:
        temporary.write_text(json.dumps(described | {"max_steps": spec.max_steps}, indent=2))


def read_spec(folder: str | os.PathLike[str]) -> EnvSpec:
    """Read what `write_spec` wrote; spaces are by name. Raises ReplayError where there is none or it is damaged."""
    path = Path(folder) / "spec.json"
    try:
        found = json.loads(path.read_text())
        observation, action = (
            {name: space_from_json(space) for name, space in found[kind].items()} for kind in ("observation", "action")
        )
        return EnvSpec(observation, action, found["max_steps"])
    except FileNotFoundError as error:
        raise ReplayError(f"{folder} holds no recording, as it has no spec.json: name a recording") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ReplayError(f"{path} does not say what the environment emits and takes: {error!r}") from error


def write_recording(
    folder: str | os.PathLike[str], spec: EnvSpec, environments: int, steps: Iterable[tuple[Step, Action]]
) -> None:
    """Write what E environments have done, so that agents can learn from it.

    `steps` yields what arrives at each time and the action taken after it, as numpy arrays [E, ...]; observations and
    actions as `spec` has them. An episode's last step is followed by the first of the next, and the action between
    them is ignored. A single long stream of episodes, E = 1, is as good as many.

    Raises: ValueError if a step is not what the spec says, or if there is none.
    """
    recording = SequenceReplay(ReplayConfig(2**62, 1, online=False), _example(spec), environments)
    for step, action in steps:
        step = step._replace(observation=by_name(step.observation, "observation"))
        recording.add(Experience(step, by_name(action, "action"), None))
    if not recording.written:
        raise ValueError("a recording of no steps teaches nothing")
    ReplayFolder(Path(folder) / "replay").save(recording, 0)
    write_spec(folder, spec)


def open_recording(folder: str | os.PathLike[str]) -> SequenceReplay:
    """Read a recording. Raises ReplayError where there is none or it is damaged."""
    spec, saved = read_spec(folder), ReplayFolder(Path(folder) / "replay")
    if not saved.steps():
        raise ReplayError(f"{folder} holds no recording: it has no replay")
    newest = saved.steps()[-1]
    shape = saved.shape(newest)
    kinds = {name: jax.ShapeDtypeStruct(tuple(size), dtype) for name, (size, dtype) in shape["steps"].items()}
    example = _example(spec)
    if set(LATENT) <= kinds.keys():
        example = example._replace(latent=Latent._make(kinds[name] for name in LATENT))
    recording = SequenceReplay(
        ReplayConfig(shape["capacity"], 1, online=False, block=shape["block"]), example, shape["streams"]
    )
    saved.restore(recording, newest)
    return recording


def fill(replay: SequenceReplay, recording: SequenceReplay) -> None:
    """Add the newest steps of a recording to a replay of as many streams, as many as it can hold.

    Latent states are not taken over: they are another agent's. They start at zero, and are refreshed as they are used.

    Raises: ValueError if the recording is of other spaces or streams.
    """
    kinds = dict(zip(replay.names, replay.kinds, strict=True))
    latent = Latent._make(
        np.zeros((replay.streams, *shape), dtype) for shape, dtype in (kinds[name] for name in LATENT)
    )
    streams = np.arange(recording.streams)
    first = recording.written - replay.cfg.capacity // replay.streams
    for time in range(max(recording.oldest, first), recording.written):
        step = recording.read(Address(streams, np.full_like(streams, time)), 1)
        replay.add(jax.tree.map(lambda x: x[:, 0], step)._replace(latent=latent))


def _example(spec: EnvSpec) -> Experience:
    named = _named(spec)
    return recorded(named.observation.items(), named.action.items())


def _named(spec: EnvSpec) -> EnvSpec:
    observation, action = by_name(spec.observation, "observation"), by_name(spec.action, "action")
    return EnvSpec(dict(observation), dict(action), spec.max_steps)
