import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import vizdoom
from gymnasium.utils.env_checker import check_env

from dreamjax.envs import pixels
from dreamjax.envs.vizdoom import GameCrashed, TakeCover, take_cover_spec
from tests.acting.environments import wait_until_gone

LIMIT = 60  # seconds that anything here may take


@pytest.fixture
def env() -> Iterator[TakeCover]:
    env = TakeCover()
    yield env
    env.close()


def play(env: TakeCover, seed: int | None, actions: np.ndarray) -> tuple[np.ndarray, bool, bool]:
    observation, _ = env.reset(seed=seed)
    observations = [observation]
    terminated = truncated = False
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        assert reward == 1.0 and info["skill"] == env.skill
        observations.append(observation)
        if terminated or truncated:
            break
    return np.stack(observations), terminated, truncated


def engines(pid: int) -> list[int]:
    """The game processes of process `pid`."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread or the child has ended meanwhile
            pids = [int(child) for child in (thread / "children").read_text().split()]
            found += [child for child in pids if Path(f"/proc/{child}/comm").read_text().strip() == "vizdoom"]
    return found


ACTIONS = np.random.default_rng(0).uniform(-1, 1, 2200).astype(np.float32).repeat(5)[:2200]


def test_gymnasium_accepts_it() -> None:
    env = TakeCover(max_steps=50, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The environment .* is different from the unwrapped version")
        warnings.filterwarnings("ignore", ".*not having a spec.*")
        check_env(env)
    env.reset(seed=0)
    assert env.render().shape == (120, 160, 3)
    env.close()


def test_spec_agrees_with_the_spaces(env: TakeCover) -> None:
    spec = take_cover_spec()
    assert spec.observation.shape == env.observation_space.shape and spec.observation.dtype == np.uint8
    assert spec.action.shape == env.action_space.shape and spec.action.dtype == np.float32
    assert (spec.action.low, spec.action.high) == (env.action_space.low, env.action_space.high)
    assert spec.max_steps == env.max_steps == 2100


def test_equal_seeds_and_actions_give_equal_frames(env: TakeCover) -> None:
    first = play(env, 3, ACTIONS)
    other = play(env, 4, ACTIONS)
    again = play(env, 3, ACTIONS)
    fresh_env = TakeCover()
    fresh = play(fresh_env, 3, ACTIONS)
    fresh_env.close()
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[0], fresh[0])
    assert first[0].shape != other[0].shape or (first[0] != other[0]).any()


def test_unseeded_resets_follow_from_the_first_seed(env: TakeCover) -> None:
    runs = []
    for _ in range(2):
        play(env, 5, ACTIONS[:60])
        runs.append(play(env, None, ACTIONS[:60])[0])
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != play(env, None, ACTIONS[:60])[0]).any()


def test_death_terminates_and_shows_no_empty_frame(env: TakeCover) -> None:
    frames, terminated, truncated = play(env, 0, ACTIONS)
    assert terminated and not truncated
    assert 50 < len(frames) < 2000
    assert frames[-1].any()
    np.testing.assert_array_equal(frames[-1], frames[-2])
    with pytest.raises(RuntimeError, match="reset"):
        env.step(0.0)


@pytest.mark.parametrize("max_steps", [1, 20])
def test_the_time_limit_truncates_after_exactly_max_steps(max_steps: int) -> None:
    env = TakeCover(max_steps=max_steps)
    frames, terminated, truncated = play(env, 0, ACTIONS)
    env.close()
    assert truncated and not terminated
    assert len(frames) == max_steps + 1


def test_a_whole_episode_lasts_2100_steps() -> None:
    env = TakeCover(skill=1)
    env.reset(seed=0)
    env._game.send_game_command("god")  # nobody dies, so the clock alone decides
    for step in range(1, 2101):
        _, _, terminated, truncated, _ = env.step(ACTIONS[step])
        assert not terminated
        assert truncated == (step == 2100)
    env.close()


def test_thresholds_are_strict_and_sides_are_right(env: TakeCover) -> None:
    env.reset(seed=0)

    def moved(play_tic: Callable[[], object]) -> float:
        env._game.new_episode()
        start = env._game.get_game_variable(vizdoom.GameVariable.POSITION_Y)
        for _ in range(10):
            play_tic()
        return env._game.get_game_variable(vizdoom.GameVariable.POSITION_Y) - start

    assert env._game.get_available_buttons() == [vizdoom.Button.MOVE_LEFT, vizdoom.Button.MOVE_RIGHT]
    left = moved(lambda: env._game.make_action([True, False]))
    right = moved(lambda: env._game.make_action([False, True]))
    assert left * right < 0
    inside = np.nextafter(np.float32(1 / 3), np.float32(0))
    for action, expected in [(-1, left), (-0.334, left), (-inside, 0), (0, 0), (inside, 0), (0.334, right), (1, right)]:
        assert moved(partial(env.step, action)) == expected


@pytest.mark.parametrize("action", [0.9, np.float32(0.9), np.array([0.9]), np.array(0.9, np.float32)])
def test_one_number_in_any_shape_is_an_action(env: TakeCover, action: object) -> None:
    frames, _, _ = play(env, 1, np.full(10, 0.9, np.float32))
    env.reset(seed=1)
    for frame in frames[1:]:
        np.testing.assert_array_equal(env.step(action)[0], frame)


@pytest.mark.parametrize("action", [np.nan, np.zeros(2), np.zeros(0)])
def test_what_is_not_one_number_is_refused(env: TakeCover, action: object) -> None:
    env.reset(seed=0)
    with pytest.raises(ValueError, match="one number"):
        env.step(action)


@pytest.mark.parametrize("bad", [{"pipeline": "raw"}, {"skill": 6}, {"max_steps": 0}, {"render_mode": "human"}])
def test_bad_arguments_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        TakeCover(**bad)


@pytest.mark.parametrize(("pipeline", "shape"), [("clean", (100, 160)), ("published", (400, 640))])
def test_pipelines_see_the_same_world(env: TakeCover, pipeline: str, shape: tuple[int, int]) -> None:
    other = TakeCover(pipeline, render_mode="rgb_array")
    seen, _ = other.reset(seed=7)
    expected = (pixels.clean if pipeline == "clean" else pixels.published)(other.render(), shape[0])
    np.testing.assert_array_equal(seen, expected)
    cleaned = pixels.clean(other.render(), shape[0]).astype(float)  # the larger picture shows the same view
    reference, _ = env.reset(seed=7)
    assert np.abs(cleaned - reference).mean() < 6
    other.close()


def test_the_game_is_not_started_before_it_is_needed() -> None:
    env = TakeCover()
    assert not engines(os.getpid())
    env.reset(seed=0)
    assert len(engines(os.getpid())) == 1
    env.close()
    assert not engines(os.getpid())


def test_a_killed_game_is_reported_and_replaced(env: TakeCover) -> None:
    expected = play(env, 3, ACTIONS)[0]
    env.reset(seed=3)
    [engine] = engines(os.getpid())
    os.kill(engine, signal.SIGKILL)
    with pytest.raises(GameCrashed, match="reset"):
        for action in ACTIONS:
            env.step(action)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(0.0)
    np.testing.assert_array_equal(play(env, 3, ACTIONS)[0], expected)

    [engine] = engines(os.getpid())
    os.kill(engine, signal.SIGKILL)
    wait_until_gone([engine])
    np.testing.assert_array_equal(play(env, 3, ACTIONS)[0], expected)  # between two episodes nobody needs to know


def in_new_process(code: str, folder: Path) -> subprocess.Popen:
    (folder / "cwd").mkdir()
    (folder / "tmp").mkdir()
    paths = os.pathsep.join([os.getcwd(), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder / "cwd",
        env=os.environ | {"TMPDIR": str(folder / "tmp"), "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


USE = "from dreamjax.envs.vizdoom import TakeCover; env = TakeCover(); env.reset(seed=0); env.step(0.0); "


@pytest.mark.parametrize("end", ["env.close()", "del env", ""])
def test_nothing_is_left_behind(tmp_path: Path, end: str) -> None:
    process = in_new_process(USE + end, tmp_path)
    output, errors = process.communicate(timeout=LIMIT)
    assert (process.returncode, output, errors) == (0, "", "")
    assert not list((tmp_path / "cwd").iterdir())
    assert not list((tmp_path / "tmp").iterdir())


def test_a_killed_owner_leaves_no_game_behind(tmp_path: Path) -> None:
    process = in_new_process(USE + "import signal; print('ready', flush=True); signal.pause()", tmp_path)
    assert process.stdout.readline() == "ready\n"
    [engine] = engines(process.pid)
    process.kill()
    process.communicate(timeout=LIMIT)
    assert process.returncode == -signal.SIGKILL  # it was still there to be killed
    wait_until_gone([engine])
    deadline = time.monotonic() + LIMIT
    while list((tmp_path / "tmp").iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not list((tmp_path / "cwd").iterdir())


def test_importing_it_does_not_import_jax() -> None:
    modules = "dreamjax.envs.vizdoom, dreamjax.storage.episodes, dreamjax.acting.worker"
    code = f"import sys, {modules}; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
