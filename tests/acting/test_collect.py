import itertools
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from dreamjax.acting.collect import (
    collect,
    every_tic_random_actions,
    held_random_actions,
    record,
    wandering_random_actions,
)

from dreamjax.envs.vizdoom import GameCrashed, TakeCover
from dreamjax.storage import episodes

# On the highest skill most episodes last 50 to 130 tics, so that many are too short and some are cut.
MAKE_ENV = partial(TakeCover, skill=5, max_steps=110)
SETTINGS = {"seed": 4, "min_length": 60, "max_steps": 110}


class FailsToStart(gymnasium.Env):
    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        raise GameCrashed("no luck")


class Exits(gymnasium.Env):
    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        os._exit(3)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "index.json"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of 8 episodes that one process made in one go."""
    folder = tmp_path_factory.mktemp("reference")
    collect(folder, MAKE_ENV, 8, **SETTINGS)
    return folder


def naive_held_actions(rng: np.random.Generator, length: int) -> list[float]:
    actions: list[float] = []
    repeat = rng.integers(1, 11)
    for frame in itertools.count():
        if frame == length:
            return actions
        redraw = frame % repeat == 0
        actions.append(rng.uniform(-1, 1) if redraw else actions[-1])
        repeat = rng.integers(1, 11) if redraw else repeat
    raise AssertionError


def test_held_actions_follow_the_published_rule() -> None:
    actions = held_random_actions(np.random.default_rng(1), 2000)
    expected = naive_held_actions(np.random.default_rng(1), 2000)
    assert actions.dtype == np.float32
    np.testing.assert_array_equal(actions, np.asarray(expected, np.float32))
    changes = 1 + np.flatnonzero(np.diff(actions))
    assert np.abs(actions).max() <= 1
    assert np.diff(changes).min() >= 1 and np.diff(changes).max() <= 10
    for side in (actions < -1 / 3, np.abs(actions) <= 1 / 3, actions > 1 / 3):
        assert 0.25 < side.mean() < 0.42


def test_every_tic_actions_are_independent() -> None:
    actions = every_tic_random_actions(np.random.default_rng(1), 5000)
    assert actions.dtype == np.float32 and actions.shape == (5000,)
    assert np.abs(actions).max() <= 1 and abs(actions.mean()) < 0.03
    assert abs(np.corrcoef(actions[1:], actions[:-1])[0, 1]) < 0.05


def test_every_step_has_what_arrived_and_the_action_after_it() -> None:
    env = MAKE_ENV()
    actions = held_random_actions(np.random.default_rng(0), 200)
    episode = record(env, actions, seed=9)
    frame, _ = env.reset(seed=9)
    reward, over, steps = 0.0, False, len(episode.observation) - 1
    for t in range(steps + 1):
        np.testing.assert_array_equal(episode.observation[t], frame)
        assert episode.reward[t] == reward and over == (t == steps)
        if not over:
            frame, reward, terminated, truncated, _ = env.step(episode.action[t])
            over = terminated or truncated
    env.close()
    assert episode.terminated == terminated and episode.seed == 9
    assert episode.action.dtype == np.float16
    np.testing.assert_array_equal(episode.action, [*actions.astype(np.float16)[:steps], 0])


def test_recording_stops_when_the_actions_run_out() -> None:
    env = MAKE_ENV()
    episode = record(env, np.zeros(5, np.float32), seed=0)
    env.close()
    assert len(episode.observation) == 6 and not episode.terminated
    np.testing.assert_array_equal(episode.reward, [0, 1, 1, 1, 1, 1])


def test_kept_episodes_are_the_first_that_last_long_enough(reference: Path) -> None:
    store = episodes.open_store(reference)
    noted = json.loads((reference / "collect.json").read_text())
    numbers = [int(path.stem[-6:]) for path in store.paths]
    assert len(store) == 8 and min(store.lengths) > 60
    assert noted["short"] and sorted(numbers + noted["short"]) == list(range(numbers[-1] + 1))
    env = MAKE_ENV()
    for number in (numbers[0], numbers[-1], noted["short"][0]):
        rng = np.random.default_rng([4, number])
        actions = held_random_actions(rng, 110)
        episode = record(env, actions, int(rng.integers(2**31)))
        assert (len(episode.action) > 60) == (number in numbers)
        if number in numbers:
            stored = episodes.read(episodes.episode_path(reference, number))
            for a, b in zip(stored, episode, strict=True):
                np.testing.assert_array_equal(a, b)
    env.close()
    ends = {episodes.read(path).terminated: length for path, length in zip(store.paths, store.lengths, strict=True)}
    assert ends.get(False, 111) == 111  # what was cut was cut at the limit


def test_the_number_of_workers_changes_nothing(reference: Path, tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    store = collect(tmp_path, MAKE_ENV, 8, workers=3, progress=lambda *now: progress.append(now), **SETTINGS)
    assert store.lengths == episodes.open_store(reference).lengths
    ours, theirs = contents(tmp_path), contents(reference)
    noted = [set(json.loads(files.pop("collect.json"))["short"]) for files in (ours, theirs)]
    assert ours == theirs and noted[0] >= noted[1]
    assert progress[-1][0] == 8 and [made for _, made in progress] == list(range(1, len(progress) + 1))


def test_a_collection_grows_and_finished_episodes_stay(reference: Path, tmp_path: Path) -> None:
    collect(tmp_path, MAKE_ENV, 3, **SETTINGS)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("episode_*")}
    collect(tmp_path, MAKE_ENV, 8, **SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert contents(tmp_path) == contents(reference)

    missing = sorted(tmp_path.glob("episode_*"))[2]
    missing.unlink()
    attempts: list[int] = []
    collect(tmp_path, MAKE_ENV, 8, progress=lambda kept, made: attempts.append(made), **SETTINGS)
    assert attempts == [1] and contents(tmp_path) == contents(reference)

    plays_nothing = partial(pytest.fail, "a finished collection plays nothing")
    whole = collect(tmp_path, plays_nothing, 8, **SETTINGS)
    assert collect(tmp_path, plays_nothing, 3, **SETTINGS) == whole.head(3)
    assert contents(tmp_path) == contents(reference)


def alive(group: int) -> list[Path]:
    """The processes of a process group that are still running."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = stat.read_text().rsplit(")")[-1].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(process_group) == group and state != "Z":
            found.append(stat)
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_collection_resumes_to_the_same_files(reference: Path, tmp_path: Path, how: signal.Signals) -> None:
    code = (
        "import time\nfrom functools import partial\nfrom dreamjax.envs.vizdoom import TakeCover\n"
        "from dreamjax.acting.collect import collect\n"
        f"collect({str(tmp_path)!r}, partial(TakeCover, skill=5, max_steps=110), 8, workers=2, **{SETTINGS!r},\n"
        # Waits at the third episode for the signal, which would otherwise race with the other five.
        "        progress=lambda kept, made: (print(kept, flush=True), time.sleep(600 * (kept >= 3))))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    while process.stdout.readline() != "3\n":
        assert process.poll() is None
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal sends it, to all processes
    else:
        process.kill()
    assert process.wait() != 0
    process.stdout.close()
    while alive(process.pid):  # workers and games end without being told
        time.sleep(0.05)
    assert len(list(tmp_path.glob("episode_*"))) < 8
    (tmp_path / ".episode_000099.1.npz").write_bytes(b"unfinished")
    collect(tmp_path, MAKE_ENV, 8, **SETTINGS)
    ours, theirs = contents(tmp_path), contents(reference)
    noted = [set(json.loads(files.pop("collect.json"))["short"]) for files in (ours, theirs)]
    assert ours == theirs and noted[0] >= noted[1]


def test_other_settings_are_refused(reference: Path) -> None:
    for change in ({"seed": 5}, {"min_length": 61}, {"max_steps": 111}, {"policy": every_tic_random_actions}):
        with pytest.raises(ValueError, match="another folder"):
            collect(reference, MAKE_ENV, 8, **(SETTINGS | change))


def test_episodes_of_an_older_version_are_refused_before_anything_is_played(tmp_path: Path) -> None:
    frames, zeros = np.zeros((70, 64, 64, 3), np.uint8), np.zeros(70, np.float16)
    old = {"observation": frames, "action": zeros, "reward": zeros.astype(np.float32), "terminated": True, "seed": 1}
    np.savez(episodes.episode_path(tmp_path, 0), **old)
    plays_nothing = partial(pytest.fail, "nothing may be played")
    with pytest.raises(episodes.EpisodeError, match="older version of dreamjax"):
        collect(tmp_path, plays_nothing, 2, **SETTINGS)


@pytest.mark.parametrize("bad", [{"episodes": 0}, {"workers": 0}, {"min_length": 111}, {"min_length": 0}])
def test_bad_arguments_are_refused(tmp_path: Path, bad: dict) -> None:
    with pytest.raises(ValueError, match="need"):
        collect(tmp_path, MAKE_ENV, **({"episodes": 1} | SETTINGS | bad))


def test_a_game_that_keeps_crashing_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="crashed 3 times in attempt 0 with seed 4"):
        collect(tmp_path, FailsToStart, 1, **SETTINGS)


def test_a_worker_that_dies_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="worker process died in attempt 0"):
        collect(tmp_path, Exits, 1, **SETTINGS)


class CrashesOnce(TakeCover):
    """The real game, whose process is killed in the middle of the first episode."""

    steps = 0

    def step(self, action: np.ndarray) -> tuple:
        self.steps += 1
        if self.steps == 20:
            self._game.send_game_command("quit")
        return super().step(action)


def test_a_crashed_attempt_is_repeated(reference: Path, tmp_path: Path) -> None:
    make_env = partial(CrashesOnce, skill=5, max_steps=110)
    with pytest.raises(GameCrashed):
        record(make_env(), np.zeros(50, np.float32), seed=0)
    collect(tmp_path, make_env, 1, **SETTINGS)
    [path] = tmp_path.glob("episode_*")
    assert path.read_bytes() == (reference / path.name).read_bytes()


def test_wandering_holds_longer_in_half_of_the_episodes() -> None:
    def longest_run(actions: np.ndarray) -> int:
        changes = np.flatnonzero(np.diff(actions)) + 1
        return int(np.diff([0, *changes, len(actions)]).max())

    runs = [longest_run(wandering_random_actions(np.random.default_rng(seed), 2000)) for seed in range(200)]
    published = longest_run(held_random_actions(np.random.default_rng(0), 2000))
    long = sum(run > 2 * published for run in runs)
    assert published <= 2 * 10
    assert 70 < long < 130
