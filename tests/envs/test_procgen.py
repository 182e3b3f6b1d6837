"""Procgen out of the adapter is Procgen: its own levels, rewards and ends."""

from typing import Any

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from PIL import Image

from dreamjax.envs import suites

procgen = pytest.importorskip(
    "dreamjax.envs.procgen", reason="Procgen is an extra of its own: make test-adapters", exc_type=ModuleNotFoundError
)

RIGHT = 7


def play(env: Any, seed: int, steps: int = 40) -> tuple[list[np.ndarray], list[float]]:
    pictures, rewards = [env.reset(seed=seed)[0]], []
    for _ in range(steps):
        picture, reward, *_ = env.step(RIGHT)
        pictures.append(picture)
        rewards.append(reward)
    return pictures, rewards


def until_an_end(env: Any, actions: np.random.Generator) -> tuple[list[np.ndarray], list[tuple[float, bool, bool]]]:
    pictures, told = [], []
    while not told or not told[-1][1]:
        picture, reward, terminated, truncated, _ = env.step(actions.integers(15))
        pictures.append(picture)
        told.append((reward, terminated, truncated))
    return pictures, told


@pytest.mark.parametrize("size", [64, 96])
def test_a_seed_decides_the_levels(size: int) -> None:
    env = procgen.Procgen("coinrun", size)
    first = play(env, seed=3)
    assert first[0][0].shape == (size, size, 3) and first[0][0].dtype == np.uint8
    np.testing.assert_array_equal(first[0], play(env, seed=3)[0])
    np.testing.assert_array_equal(first[0], play(procgen.Procgen("coinrun", size), seed=3)[0])
    assert not np.array_equal(first[0], play(env, seed=4)[0])


def test_the_published_picture_is_the_large_one_resized() -> None:
    env = suites.task("procgen_ninja", render_mode="rgb_array").make_env()
    picture, _ = env.reset(seed=0)
    large = env.render()
    assert large.shape == (512, 512, 3) and large.std() > 5
    np.testing.assert_array_equal(picture, Image.fromarray(large).resize((96, 96), Image.Resampling.BILINEAR))
    small = procgen.Procgen("ninja", 64).reset(seed=0)[0]  # drawn with coarser brushes, of the same level
    blurred = np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BOX), float)
    assert np.corrcoef(blurred.ravel(), small.ravel())[0, 1] > 0.9


def test_episodes_are_the_engines_and_their_last_picture_is_their_own() -> None:
    env = procgen.Procgen("bigfish", 64)
    opened, _ = env.reset(seed=1)
    twin = procgen.Engine(1, "bigfish", rand_seed=int(np.random.default_rng(1).integers(2**31)), num_threads=0)
    np.testing.assert_array_equal(opened, procgen._shown(twin, True))
    actions, again = np.random.default_rng(0), np.random.default_rng(0)
    pictures, told = until_an_end(env, actions)
    for picture, (reward, terminated, truncated) in zip(pictures, told, strict=True):
        assert (reward, terminated) == procgen._act(twin, int(again.integers(15))) and not truncated
        assert np.array_equal(picture, procgen._shown(twin, True)) != terminated
    np.testing.assert_array_equal(pictures[-1], pictures[-2])
    # The engine is in the next level already, and one that nothing was done in is not thrown away.
    np.testing.assert_array_equal(env.reset()[0], procgen._shown(twin, True))
    np.testing.assert_array_equal(env.reset()[0], procgen._shown(twin, True))
    until_an_end(env, actions)
    with pytest.raises(ResetNeeded):
        env.step(RIGHT)
    env.reset()
    env.step(RIGHT)
    begun, _ = env.reset()  # in the middle of a level
    assert not np.array_equal(begun, opened)


def test_every_game_plays_and_bad_use_is_refused() -> None:
    assert len(procgen.GAMES) == 16
    for game in procgen.GAMES:
        assert len({one.tobytes() for one in play(procgen.Procgen(game, 64), seed=0, steps=5)[0]}) > 1
    with pytest.raises(ValueError, match="unknown game 'pong'; there are bigfish"):
        procgen.Procgen("pong")
    with pytest.raises(ValueError, match="size must be at least 1"):
        procgen.Procgen("coinrun", 0)
    with pytest.raises(ResetNeeded):
        procgen.Procgen("coinrun").step(0)
