"""The Control Suite through Gymnasium's own checker, and against the suite itself."""

import os
import subprocess
import sys
from ctypes.util import find_library
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


PLAY = """
import sys, numpy as np
from dreamjax.envs.dmc import ControlSuite

env = ControlSuite("quadruped_walk", observation=sys.argv[1], size=32, render_mode="rgb_array")
steps = [[env.reset(seed=seed)] + [env.step(np.ones(12)) for _ in range(5)] for seed in (0, 0, 1)]
print("OpenGL" in sys.modules)
np.savez(sys.argv[2], seen=[[step[0].get("image", 0) for step in one] for one in steps], rendered=env.render())
"""
NO_SCREEN = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}


def play(observation: str, path: Path, opengl: str | None) -> subprocess.CompletedProcess:
    """Play in a process of its own, because OpenGL is opened once, and without a screen."""
    environment = {name: value for name, value in NO_SCREEN.items() if name != "MUJOCO_GL"}
    if opengl is not None:
        environment["MUJOCO_GL"] = opengl
    command = [sys.executable, "-c", PLAY, observation, str(path / "pictures.npz")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_pixels_and_films_without_a_screen_or_a_setting(tmp_path: Path):
    if not find_library("EGL") and not find_library("OSMesa"):
        pytest.skip("this machine has neither EGL nor OSMesa")
    played = play("pixels", tmp_path, None)
    assert (played.returncode, played.stdout, played.stderr) == (0, "True\n", "")
    pictures = np.load(tmp_path / "pictures.npz")
    images = pictures["seen"]
    assert (images.shape, images.dtype) == ((3, 6, 32, 32, 3), np.uint8)
    first, again, other = images
    np.testing.assert_array_equal(first, again)
    red, _, blue = np.moveaxis(first[0].astype(int), -1, 0)
    assert 10 < (red > blue + 50).sum() < 300  # the orange animal
    assert (blue > red + 20).sum() > 300  # on blue ground
    assert (first[0] != first[-1]).any()
    assert (first[0] != other[0]).any()
    assert (pictures["rendered"].shape, pictures["rendered"].dtype) == ((240, 320, 3), np.uint8)
    assert pictures["rendered"].std() > 20


# What is not there on any machine: a screen; and where there is no OSMesa, that.
NOT_THERE = ["disabled", "glfw", *(() if find_library("OSMesa") else ["osmesa"])]


@pytest.mark.parametrize("opengl", NOT_THERE)
def test_pixels_that_cannot_be_drawn_say_what_to_set(opengl: str, tmp_path: Path):
    played = play("pixels", tmp_path, opengl)
    assert f"CannotDraw: MuJoCo cannot draw with MUJOCO_GL={opengl}: " in played.stderr.splitlines()[-1]
    assert "set MUJOCO_GL=egl" in played.stderr and "During handling" not in played.stderr
    assert len(played.stderr.splitlines()) < 25


def test_vectors_need_no_opengl_and_print_nothing(tmp_path: Path):
    played = play("vectors", tmp_path, "disabled")
    assert played.stdout == "False\n"  # it has played; what fails is to render
    assert "CannotDraw: MuJoCo cannot draw with MUJOCO_GL=disabled: " in played.stderr.splitlines()[-1]
    plain = "from dreamjax.envs.dmc import ControlSuite; env = ControlSuite('walker_walk'); env.reset(); env.render()"
    done = subprocess.run([sys.executable, "-c", plain], env=NO_SCREEN, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
