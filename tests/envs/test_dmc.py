"""The Control Suite through Gymnasium's own checker, and against the suite itself."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dm_control import suite
from gymnasium.utils.env_checker import check_env

from dreamjax.acting.vector import VectorEnvironment
from dreamjax.envs.dmc import ControlSuite


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", ["walker_walk", "ball_in_cup_catch", "cartpole_swingup"])
def test_gymnasium_accepts_it(task: str):
    check_env(ControlSuite(task), skip_render_check=True)


def test_an_episode_is_that_of_the_suite():
    game = suite.load("walker", "walk", task_kwargs={"random": 3})
    ours = ControlSuite("walker_walk", repeat=2)
    observation, _ = ours.reset(seed=3)
    wanted = game.reset()
    rng = np.random.default_rng(0)
    steps = 0
    while not wanted.last():
        np.testing.assert_allclose(observation["velocity"], wanted.observation["velocity"], rtol=1e-6)
        assert observation["height"].shape == ()
        action = rng.uniform(-1, 1, 6)
        total = 0.0
        for _ in range(2):
            wanted = game.step(action)
            total += wanted.reward
        observation, reward, terminated, truncated, _ = ours.step(action)
        assert reward == pytest.approx(total)
        steps += 1
    assert (steps, terminated, truncated) == (500, False, True)


def test_in_a_vector_environment():
    vector = VectorEnvironment(lambda: ControlSuite("ball_in_cup_catch"), 2, 500)
    step = vector.reset((0,))
    assert {name: x.shape for name, x in step.observation.items()} == {"position": (2, 4), "velocity": (2, 4)}
    assert not np.array_equal(step.observation["position"][0], step.observation["position"][1])
    vector.close()


@pytest.mark.parametrize(("arguments", "message"), [(("walk",), "unknown task"), (("walker_walk", 0), "repeat >= 1")])
def test_bad_settings_are_refused(arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        ControlSuite(*arguments)


def python(program: str, opengl: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a program in a process of its own, because OpenGL is chosen when MuJoCo is imported."""
    environment = os.environ | {"MUJOCO_GL": opengl}
    return subprocess.run([sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True)


DRAW = "from dm_control import suite; suite.load('cartpole', 'swingup').physics.render(8, 8)"
PLAY = """
import sys, numpy as np
from dreamjax.envs.dmc import ControlSuite

env = ControlSuite("quadruped_walk", observation="pixels", size=32)
steps = [[env.reset(seed=seed)] + [env.step(np.ones(12)) for _ in range(5)] for seed in (0, 0, 1)]
np.save(sys.argv[1], [[step[0]["image"] for step in episode] for episode in steps])
"""


def test_pixels(tmp_path: Path):
    tried = python(DRAW, "egl")
    if tried.returncode:
        pytest.skip(f"EGL cannot draw on this machine: {tried.stderr.strip().splitlines()[-1]}")
    played = python(PLAY, "egl", str(tmp_path / "images.npy"))
    assert played.returncode == 0, played.stderr
    images = np.load(tmp_path / "images.npy")
    assert (images.shape, images.dtype) == ((3, 6, 32, 32, 3), np.uint8)
    first, again, other = images
    np.testing.assert_array_equal(first, again)
    red, _, blue = np.moveaxis(first[0].astype(int), -1, 0)
    assert 10 < (red > blue + 50).sum() < 300  # the orange animal
    assert (blue > red + 20).sum() > 300  # on blue ground
    assert (first[0] != first[-1]).any()
    assert (first[0] != other[0]).any()


def test_pixels_that_cannot_be_drawn_say_what_to_set():
    program = "from dreamjax.envs.dmc import ControlSuite; ControlSuite('walker_walk', observation='pixels')"
    assert "RuntimeError: MuJoCo cannot draw: set MUJOCO_GL=egl" in python(program, "disabled").stderr
