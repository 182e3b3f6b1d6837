"""Environments by name are those that were published."""

import numpy as np
import pytest
import vizdoom

from dreamjax.envs import suites


@pytest.mark.parametrize(
    ("task", "image", "actions"),
    [
        ("atari_pong", (96, 96, 1), 18),
        ("atari100k_pong", (64, 64, 3), 6),
        ("crafter_reward", (64, 64, 3), 17),
        ("doom_takecover", (64, 64, 3), 3),
    ],
)
def test_the_published_environments_are_made(task: str, image: tuple[int, ...], actions: int) -> None:
    env = suites.task(task).make_env()
    assert (env.observation_space.shape, env.action_space.n) == (image, actions)
    env.close()


@pytest.mark.parametrize(
    ("task", "height", "width"),
    [
        ("atari_pong", 210, 160),
        ("crafter_reward", 288, 288),
        ("doom_takecover", 120, 160),
        ("gym_CartPole-v1", 400, 600),
    ],
)
def test_every_suite_renders(task: str, height: int, width: int) -> None:
    with suites.task(task, render_mode="rgb_array").make_env() as env:
        env.reset(seed=0)
        shown = env.render()
    assert (shown.shape, shown.dtype) == ((height, width, 3), np.uint8)
    assert shown.std() > 5


def test_the_agent_steps_sideways_in_doom() -> None:
    env = suites.task("doom_takecover").make_env()
    env.reset(seed=0)
    sideways = []
    for action in np.arange(3).repeat(10):
        env.step(action)
        sideways.append(env.unwrapped._game.get_game_variable(vizdoom.GameVariable.POSITION_Y))
    left, stood, right = np.diff(sideways[9::10], prepend=sideways[0])
    env.close()
    assert left * right < 0
    assert abs(stood) < abs(left)


def test_the_published_code_acts_every_frame_and_the_paper_every_other() -> None:
    ends = {}
    for suite in ("dmc", "dmc1"):
        found = suites.task(f"{suite}_cartpole_balance")
        with found.make_env() as env:
            env.reset(seed=0)
            ends[suite] = sum(1 for _ in iter(lambda: env.step(env.action_space.sample())[3], True)) + 1
        assert ends[suite] == found.suite.max_steps == 1000 // found.suite.repeat
    assert ends == {"dmc": 500, "dmc1": 1000}


def test_an_unknown_task_names_what_there_is() -> None:
    with pytest.raises(ValueError, match="there are dmc"):
        suites.task("chess")
