"""A recording is read back as it was made, by agents of any size."""

from pathlib import Path

import numpy as np
import pytest

from dreamjax.dreamerv3 import experience
from dreamjax.dreamerv3.config import debug
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.replay.sequences import Address, ReplayConfig, SequenceReplay
from dreamjax.storage.recordings import fill, open_recording, read_spec, write_recording, write_spec
from dreamjax.storage.replays import ReplayError
from dreamjax.types import EnvSpec, Space, Step

SPEC = EnvSpec({"x": Space((2,), np.float32)}, Space((), np.int32, 0, 3), 9)


def steps(count: int, environments: int = 2):
    no = np.zeros(environments, bool)
    for time in range(count):
        x = np.full((environments, 2), time, np.float32)
        yield Step({"x": x}, x[:, 0], no, no, no), np.full(environments, time % 3, np.int32)


def replay(streams: int = 2, capacity: int = 1000) -> SequenceReplay:
    dreamer = Dreamer.of(debug(), SPEC.observation, SPEC.action)
    return SequenceReplay(ReplayConfig(capacity, 4), experience.example(dreamer), streams)


def test_spaces_come_back(tmp_path: Path):
    spec = EnvSpec({"image": Space((8, 8, 3), np.uint8, 0, 256), "x": Space((2,))}, Space((3,), np.float32, -1, 1), 7)
    write_spec(tmp_path, spec)
    assert read_spec(tmp_path) == spec._replace(action={"action": spec.action})
    (tmp_path / "spec.json").write_text("{}")
    with pytest.raises(ReplayError, match="observation"):
        read_spec(tmp_path)


def test_what_was_recorded_fills_a_replay(tmp_path: Path):
    write_recording(tmp_path, SPEC, 2, steps(2500))
    filled = replay()
    fill(filled, open_recording(tmp_path))
    assert (filled.written, filled.steps) == (500, 1000)
    read = filled.read(Address(np.array([1]), np.array([499])), 1)
    assert read.step.observation["x"].tolist() == [[[2499, 2499]]]
    assert read.action["action"].tolist() == [[2499 % 3]]
    assert not read.latent.deter.any()


def test_bad_recordings_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no steps"):
        write_recording(tmp_path, SPEC, 2, [])
    with pytest.raises(ValueError, match="must be float32 of shape"):
        write_recording(tmp_path, SPEC, 3, steps(2))
    with pytest.raises(ReplayError, match="name a recording"):
        open_recording(tmp_path)
    write_recording(tmp_path, SPEC, 1, steps(9, 1))
    with pytest.raises(ValueError, match="must be float32 of shape"):
        fill(replay(), open_recording(tmp_path))
    (tmp_path / "replay" / "replay-0.json").unlink()
    with pytest.raises(ReplayError, match="no replay"):
        open_recording(tmp_path)
