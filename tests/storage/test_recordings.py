"""A recording is read back as it was made, by agents of any size."""

import json
from pathlib import Path

import numpy as np
import pytest

from dreamjax.dreamerv3 import experience
from dreamjax.dreamerv3.config import debug
from dreamjax.dreamerv3.experience import Experience, recorded
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.replay.sequences import Address, ReplayConfig, SequenceReplay
from dreamjax.storage.folder import folder_of
from dreamjax.storage.recordings import fill, open_recording, read_spec, write_recording, write_spec
from dreamjax.storage.replays import ReplayError, ReplayFolder, saved_parts
from dreamjax.types import EnvSpec, Space, Step

SPEC = EnvSpec({"x": Space((2,), np.float32)}, Space((), np.int32, 0, 3), 9)


def steps(count: int, environments: int = 2):
    no = np.zeros(environments, bool)
    for time in range(count):
        x = np.full((environments, 2), time, np.float32)
        yield Step({"x": x}, x[:, 0], no | (time == 0), no, no), np.full(environments, time % 3, np.int32)


def replay(streams: int = 2, capacity: int = 1000) -> SequenceReplay:
    dreamer = Dreamer.of(debug(), SPEC)
    return SequenceReplay(ReplayConfig(capacity, 4), experience.example(dreamer), streams)


def test_a_spec_comes_back(tmp_path: Path) -> None:
    write_spec(tmp_path, SPEC)
    assert read_spec(tmp_path) == SPEC


def test_specs_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("{}")
    with pytest.raises(ReplayError, match="not a description"):
        read_spec(tmp_path)
    space = {"shape": [2], "dtype": "float32", "low": None, "high": None}
    older = {"observation": {"observation": space}, "action": {"action": space}, "max_steps": 3}
    (tmp_path / "spec.json").write_text(json.dumps(older))
    with pytest.raises(ReplayError, match=r"older version of dreamjax, record again"):
        read_spec(tmp_path)
    with pytest.raises(ValueError, match="dicts, tuples and Space"):
        write_spec(tmp_path, SPEC._replace(action=[SPEC.action]))


def test_a_nested_observation_is_recorded_as_it_is(tmp_path: Path) -> None:
    spec = EnvSpec({"a": (Space((2,)), Space(()))}, {"b": {"c": Space((), np.int32, 0, 3)}}, 9)
    no = np.zeros(1, bool)
    step = Step({"a": (np.ones((1, 2), np.float32), np.full(1, 7, np.float32))}, np.zeros(1, np.float32), ~no, no, no)
    write_recording(tmp_path, spec, 1, [(step, {"b": {"c": np.array([2], np.int32)}})])
    read = open_recording(tmp_path).read(Address(np.array([0]), np.array([0])), 1)
    assert read.step.observation["a"][1].tolist() == [[7]]
    assert read.action["b"]["c"].tolist() == [[2]]


def test_what_was_recorded_fills_a_replay(tmp_path: Path):
    write_recording(tmp_path, SPEC, 2, steps(2500))
    filled = replay()
    fill(filled, open_recording(tmp_path))
    assert (filled.written, filled.steps) == (500, 1000)
    read = filled.read(Address(np.array([1]), np.array([499])), 1)
    assert read.step.observation["x"].tolist() == [[[2499, 2499]]]
    assert read.action.tolist() == [[2499 % 3]]
    assert not read.latent.deter.any()


def test_what_several_processes_have_recorded_is_read_together(tmp_path: Path) -> None:
    def record(process: int, update: int, count: int, parts: int) -> None:
        held = SequenceReplay(ReplayConfig(1000, 1, online=False), recorded(SPEC), 2)
        for step, action in steps(count):
            held.add(Experience(step._replace(reward=step.reward + 100 * process), action, None))
        ReplayFolder(folder_of(tmp_path, process) / "replay").save(held, update, parts=parts)

    write_spec(tmp_path, SPEC)
    for process in range(3):
        record(process, 0, 5, 3)
    together = open_recording(tmp_path)
    assert together.streams == 6 and together.written == 5
    rewards = together.read(Address(np.arange(6), np.full(6, 3)), 1).step.reward
    assert rewards[:, 0].tolist() == [3, 3, 103, 103, 203, 203]
    record(0, 7, 9, 3)  # and killed, before the others had saved
    assert (open_recording(tmp_path).streams, open_recording(tmp_path).written) == (6, 5)
    record(0, 8, 11, 2)
    record(1, 8, 11, 2)  # two went on; what the third has saved is from before
    record(2, 8, 5, 3)
    assert (open_recording(tmp_path).streams, open_recording(tmp_path).written) == (4, 11)
    (folder_of(tmp_path, 1) / "replay" / "replay-8.json").unlink()
    with pytest.raises(ReplayError, match=r"processes/1/replay holds no replay of update 8: copy it back"):
        saved_parts(tmp_path, 8)


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


@pytest.mark.parametrize("what", [np.nan, np.inf, -np.inf, 1.5])
def test_what_no_environment_may_emit_is_not_recorded(tmp_path: Path, what: float) -> None:
    spec = SPEC._replace(observation={"x": Space((2,), np.float32, -1, 1)})
    step, action = next(steps(1))
    step.observation["x"][1, 0] = what
    with pytest.raises(ValueError, match=rf"observation 'x' .*{what}.* at \[1, 0\]|'x' is {what} at \[1, 0\]"):
        write_recording(tmp_path, spec, 2, [(step, action)])
    if not np.isfinite(what):
        with pytest.raises(ValueError, match="rewards must be finite"):
            rewarded = step._replace(observation=next(steps(1))[0].observation, reward=np.float32([0, what]))
            write_recording(tmp_path, SPEC, 2, [*steps(1), (rewarded._replace(is_first=np.zeros(2, bool)), action)])
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("what", [77, 3, -5, 2**32, np.nan, np.inf, 1e300])
def test_actions_that_cannot_be_taken_are_not_recorded(tmp_path: Path, what: float) -> None:
    is_discrete = isinstance(what, int)
    space = SPEC.action if is_discrete else Space((), np.float32, -1, 1)
    spec, (step, _) = SPEC._replace(action={"a": space}), next(steps(1))
    action = {"a": np.array([0, what], np.int64 if is_discrete else np.float64)}
    with pytest.raises(
        ValueError, match=r"actions\['a'\] must be " + (r"in \[0, 3\), got" if is_discrete else "finite")
    ):
        write_recording(tmp_path, spec, 2, [(step, action)])
    assert not list(tmp_path.iterdir())
    over = step._replace(is_last=np.array([False, True]))  # the action after it is ignored
    if is_discrete:
        write_recording(tmp_path, spec, 2, [(over, action)])


BROKEN = {
    "step 0 of environment 0 must be marked is_first": [{"is_first": [False, True]}],
    "step 1 of environment 1 must be marked is_first": [{"is_last": [False, True]}, {}],
    "step 0 of environment 1 must have a reward of 0": [{"reward": [0, 3]}],
    "step 1 of environment 0 must be marked is_last": [{}, {"is_terminal": [True, False]}],
}


@pytest.mark.parametrize("message", BROKEN)
def test_flags_that_make_no_episodes_are_not_recorded(tmp_path: Path, message: str) -> None:
    told = [{name: np.array(value, np.float32 if name == "reward" else bool) for name, value in one.items()}
            for one in BROKEN[message]]  # fmt: skip
    recorded = [(step._replace(**one), action) for (step, action), one in zip(steps(2), told, strict=False)]
    with pytest.raises(ValueError, match=message):
        write_recording(tmp_path, SPEC, 2, recorded)
    assert not list(tmp_path.iterdir())


def test_continuous_actions_may_exceed_their_bounds(tmp_path: Path) -> None:
    spec = SPEC._replace(action=Space((), np.float32, -1, 1))
    write_recording(tmp_path, spec, 2, [(next(steps(1))[0], np.array([-3, 3], np.float32))])
