"""Memory Maze out of the adapter is Memory Maze. Each maze takes seconds to build and to draw."""

import os
import subprocess
import sys
from ctypes.util import find_library

import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from dreamjax.envs import suites

memory_maze = pytest.importorskip(
    "dreamjax.envs.memory_maze",
    reason="Memory Maze is an extra of its own: make test-adapters",
    exc_type=ModuleNotFoundError,
)

FORWARD, RIGHT = 1, 3
can_draw = pytest.mark.skipif(
    not (find_library("EGL") or find_library("OSMesa") or {"DISPLAY", "MUJOCO_GL"} & os.environ.keys()),
    reason="MuJoCo finds no OpenGL",
)


@can_draw
def test_an_episode_is_that_of_the_game_and_follows_from_its_seed() -> None:
    env = suites.task("memmaze_9x9", render_mode="rgb_array").make_env()
    first, _ = env.reset(seed=5)
    assert (env.observation_space.shape, env.action_space.n) == ((64, 64, 3), 6)
    game = memory_maze.tasks.memory_maze_9x9(seed=int(np.random.default_rng(5).integers(2**31)), image_only_obs=True)
    np.testing.assert_array_equal(first, game.reset().observation)
    for action in (FORWARD, FORWARD, RIGHT, FORWARD):
        arrived = game.step(action)
        picture, reward, terminated, truncated, _ = env.step(action)
        np.testing.assert_array_equal(picture, arrived.observation)
        assert (reward, terminated, truncated) == (arrived.reward, False, False)
        np.testing.assert_array_equal(env.render(), picture)
    following, _ = env.reset()
    assert not np.array_equal(first, following)
    np.testing.assert_array_equal(following, game.reset().observation)
    env.close()


@can_draw
def test_the_clock_truncates(monkeypatch: pytest.MonkeyPatch) -> None:
    make = memory_maze.tasks._memory_maze
    monkeypatch.setattr(
        memory_maze.tasks, "_memory_maze", lambda size, targets, seconds, **k: make(size, targets, 0.5, **k)
    )
    env = memory_maze.MemoryMaze("9x9")
    env.reset(seed=0)
    assert [env.step(0)[2:4] for _ in range(2)] == [(False, False), (False, True)]  # 4 steps a second
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.close()


def test_where_nothing_can_be_drawn_it_is_said_before_anything_is_made() -> None:
    code = "from dreamjax.envs import suites; suites.task('memmaze_9x9').make_env()"
    settings = os.environ | {"MUJOCO_GL": "disabled"}
    ended = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "CannotDraw: MuJoCo cannot draw with MUJOCO_GL=disabled" in ended.stderr


def test_bad_use_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown maze '10x10'; there are 9x9"):
        memory_maze.MemoryMaze("10x10")
    with pytest.raises(ResetNeeded):
        memory_maze.MemoryMaze("9x9").step(0)
