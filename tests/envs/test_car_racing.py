import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.box2d import car_racing
from gymnasium.utils.env_checker import check_env

from dreamjax.acting.collection import CollectConfig, collect
from dreamjax.acting.pool import Pool
from dreamjax.acting.random_play import PARAMS, random_agent
from dreamjax.envs import pixels
from dreamjax.envs.car_racing import CarRacing
from dreamjax.storage import episodes

STRAIGHT_ON = np.array([0, 1, 0], np.float32)  # off the track and off the field


def winding(seed: int) -> np.ndarray:
    """Actions that turn, brake and slide: [120, 3]."""
    rng = np.random.default_rng(seed)
    return rng.uniform([-1, 0.2, -1], [1, 1, 0.3], (12, 3)).clip([-1, 0, 0], 1).astype(np.float32).repeat(10, 0)


@pytest.mark.parametrize(
    ("seed", "actions"),
    [(0, winding(0)), (1, winding(1)), (2, STRAIGHT_ON[None].repeat(330, 0))],
    ids=["winding", "another track", "off the field"],
)
def test_frames_and_rewards_are_those_of_gymnasium(seed: int, actions: np.ndarray) -> None:
    ours, theirs = CarRacing(full_length=True), CarRacing("gymnasium", full_length=True)
    np.testing.assert_array_equal(ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0])
    colours = set()
    for action in actions:
        (frame, *rest), (expected, *others) = ours.step(action), theirs.step(action)
        np.testing.assert_array_equal(frame, expected)
        assert rest == others
        colours.add(tuple(frame[32, 32]))
    assert len(colours) > 3  # it has moved


def test_the_whole_picture_is_gymnasiums_too() -> None:
    ours, theirs = CarRacing(render_mode="rgb_array"), CarRacing("gymnasium", render_mode="rgb_array")
    for env in (ours, theirs):
        env.reset(seed=3)
        for action in winding(3)[:30]:
            env.step(action)
    assert ours.render().shape == (400, 600, 3)
    np.testing.assert_array_equal(ours.render(), theirs.render())


def test_it_is_gymnasiums_game_above_the_bar() -> None:
    env, game = CarRacing(), car_racing.CarRacing()
    env.reset(seed=5)
    game.reset(seed=int(np.random.Generator(np.random.PCG64(5)).integers(2**31)))
    for action in winding(0):
        frame, reward, *_ = env.step(action)
        picture, expected, *_ = game.step(action)
        np.testing.assert_array_equal(frame, pixels.resize(picture[:84]))
        assert reward == expected


def test_gymnasium_accepts_it() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*symmetric and normalized.*")
        warnings.filterwarnings("ignore", ".*not having a spec.*")
        check_env(CarRacing(max_steps=20, render_mode="rgb_array"))


def test_leaving_the_field_terminates_and_costs_100() -> None:
    env = CarRacing()
    env.reset(seed=2)
    reward, terminated, truncated, info, steps = 0.0, False, False, {}, 0
    while not (terminated or truncated):
        _, reward, terminated, truncated, info = env.step(STRAIGHT_ON)
        steps += 1
    assert terminated and not truncated and steps < 400
    assert reward == -100 and info == {"lap_finished": False}
    with pytest.raises(RuntimeError, match="reset"):
        env.step(STRAIGHT_ON)


@pytest.mark.parametrize("full_length", [False, True])
def test_an_episode_is_cut_after_max_steps(full_length: bool) -> None:
    env = CarRacing(full_length=full_length, max_steps=7)
    env.reset(seed=0)
    flags = [env.step(STRAIGHT_ON)[2:4] for _ in range(7)]
    assert flags == [(False, False)] * 6 + [(False, True)]
    with pytest.raises(RuntimeError, match="reset"):
        env.step(STRAIGHT_ON)


def test_patience_ends_where_no_tile_is_new() -> None:
    env, patient = CarRacing(patience=30, max_steps=400), CarRacing(max_steps=400)
    for one in (env, patient):
        one.reset(seed=2)
    lost = 0
    for _ in range(399):
        frame, reward, *flags, _ = env.step(STRAIGHT_ON)
        expected, same, *_ = patient.step(STRAIGHT_ON)
        np.testing.assert_array_equal(frame, expected)
        assert reward == same
        lost = 0 if reward > 0 else lost + 1
        assert flags == [False, lost == 30]
        if flags[1]:
            break
    assert lost == 30
    with pytest.raises(RuntimeError, match="reset"):
        env.step(STRAIGHT_ON)


def test_full_length_goes_on_beyond_the_field() -> None:
    env = CarRacing(full_length=True, max_steps=400)
    env.reset(seed=2)
    flags = [env.step(STRAIGHT_ON)[2:4] for _ in range(400)]
    assert flags == [(False, False)] * 399 + [(False, True)]


def test_unseeded_resets_follow_from_the_first_seed() -> None:
    env = CarRacing(max_steps=60)
    drives = []
    for seed in (4, None, 4, None):
        env.reset(seed=seed)
        drives.append(np.stack([env.step(action)[0] for action in winding(0)[:60]]))
    np.testing.assert_array_equal(drives[0], drives[2])
    np.testing.assert_array_equal(drives[1], drives[3])
    assert (drives[0] != drives[1]).any()


@pytest.mark.parametrize("action", [0.5, np.zeros(2), np.array([0, np.nan, 0]), np.zeros((1, 3))])
def test_what_is_not_three_numbers_is_refused(action: object) -> None:
    env = CarRacing()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="three numbers"):
        env.step(action)


@pytest.mark.parametrize(
    "bad",
    [
        {"engine": "hand"},
        {"max_steps": 0},
        {"patience": 0},
        {"render_mode": "human"},
        {"full_length": True, "patience": 9},
    ],
)
def test_bad_arguments_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        CarRacing(**bad)


def test_random_driving_is_collected(tmp_path: Path) -> None:
    make: Callable[[], gymnasium.Env] = partial(CarRacing, full_length=True, max_steps=12)
    with Pool(make, 3, 2) as pool:
        agent = random_agent(pool.spec(12), "network")
        store = collect(CollectConfig(3, min_steps=12, name="network"), tmp_path, pool, agent, PARAMS)
    assert len(store) == 3 and store.frames == 39
    assert episodes.read(store.paths[0]).action.shape == (13, 3)
