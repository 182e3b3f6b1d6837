"""The Control Suite through Gymnasium's own checker, and against the suite itself."""

import numpy as np
import pytest
from dm_control import suite
from gymnasium.utils.env_checker import check_env

from dreamjax.envs.dmc import ControlSuite
from dreamjax.envs.lanes import make_lanes


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


def test_in_lanes():
    lanes = make_lanes(lambda: ControlSuite("ball_in_cup_catch"), 2, 500)
    step = lanes.reset(seed=0)
    assert {name: x.shape for name, x in step.observation.items()} == {"position": (2, 4), "velocity": (2, 4)}
    assert not np.array_equal(step.observation["position"][0], step.observation["position"][1])
    lanes.close()


@pytest.mark.parametrize(("arguments", "message"), [(("walk",), "unknown task"), (("walker_walk", 0), "repeat >= 1")])
def test_bad_settings_are_refused(arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        ControlSuite(*arguments)
