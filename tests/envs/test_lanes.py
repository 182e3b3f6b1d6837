"""Host environments as steps: flags, automatic resets, bounds, and environments that misbehave."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from dreamjax.envs import probes
from dreamjax.envs.gymnasium import to_gymnasium, to_gymnasium_vector
from dreamjax.envs.lanes import Lanes, make_lanes
from dreamjax.types import Space


class Script(gymnasium.Env[np.ndarray, np.ndarray]):
    """Counts its steps; what else it does is written on its action: 1 throws, 2 rewards NaN, 3 observes NaN, 4 ends."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.observation_space = gymnasium.spaces.Box(-1, 100, (2,), np.float64)
        self.action_space = gymnasium.spaces.Box(-5, 15, (1,), np.float32)
        self.taken: list[float] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.seed = seed
        self.time = 0
        return np.zeros(2), {}

    def step(self, action: np.ndarray):
        self.time += 1
        self.taken.append(float(action[0]))
        what = round(float(action[0]))
        if what == 1:
            raise RuntimeError("the simulator is gone")
        reward = np.nan if what == 2 else self.time
        observation = np.full(2, np.nan if what == 3 else self.time)
        over = what == 4 or self.time >= 6
        info = {"time": self.time, "by": {"half": self.time / 2}, "name": "script", "unknown": np.nan} if over else {}
        return observation, reward, what == 4, self.time >= 6, info


def raw(value: float) -> np.ndarray:
    """The action of ours that reaches `Script` as `value`: its bounds are -5 and 15."""
    return np.full((1, 1), (value - 5) / 10, np.float32)


@pytest.fixture
def lanes():
    made = make_lanes(Script, 1, 6)
    made.reset(seed=0)
    yield made
    made.close()


def test_spec_is_in_32_bits_and_actions_are_rescaled(lanes: Lanes):
    assert lanes.spec.observation == Space((2,), np.float32, -1, 100)
    assert lanes.spec.action == Space((1,), np.float32, -1, 1)
    lanes.step(np.full((1, 1), 7.0, np.float32))
    assert lanes.environments.envs[0].unwrapped.taken == [15.0]


def test_a_lane_opens_the_next_episode_by_itself(lanes: Lanes):
    flags = []
    for _ in range(8):
        step = lanes.step(raw(0))
        flags.append((step.is_first[0], step.is_last[0], step.is_terminal[0], step.reward[0]))
    assert flags[4:] == [(0, 0, 0, 5), (0, 1, 0, 6), (1, 0, 0, 0), (0, 0, 0, 1)]
    step = lanes.step(raw(4))
    assert step.is_last[0]
    assert step.is_terminal[0]


def test_an_environment_that_throws_is_made_anew(lanes: Lanes):
    before = Script.made
    lanes.step(raw(0))
    with pytest.warns(UserWarning, match="the simulator is gone"):
        step = lanes.step(raw(1))
    assert (step.is_last[0], step.is_terminal[0], step.reward[0]) == (True, False, 0)
    np.testing.assert_array_equal(step.observation, [[1, 1]])
    assert lanes.facts == {0: {"crashed": 1.0}}
    step = lanes.step(raw(0))
    assert step.is_first[0]
    assert (Script.made, lanes.crashes) == (before + 1, 1)
    assert lanes.step(raw(0)).reward[0] == 1


@pytest.mark.filterwarnings("ignore:an environment is made anew")
def test_a_new_environment_has_a_seed_of_its_own_that_is_the_same_in_every_run():
    def seeds(first: int) -> list[int]:
        lanes = make_lanes(Script, 2, 6)
        lanes.reset(seed=first)
        seen = []
        for _ in range(2):
            for action in (raw(0), raw(1), raw(0)):
                lanes.step(np.repeat(action, 2, axis=0))
            seen += [one.unwrapped.seed for one in lanes.environments.envs]
        lanes.close()
        return seen

    assert seeds(3) == seeds(3)
    assert len({3, 4, *seeds(3)}) == 6
    assert not set(seeds(3)) & set(seeds(5))


def test_the_numbers_of_the_last_info_are_facts_of_the_episode():
    lanes = make_lanes(Script, 2, 6)
    lanes.reset(seed=0)
    for _ in range(2):
        lanes.step(np.concatenate([raw(0), raw(0)]))
        assert lanes.facts == {}
    lanes.step(np.concatenate([raw(0), raw(4)]))
    assert lanes.facts == {1: {"time": 3.0, "by/half": 1.5}}
    lanes.step(np.concatenate([raw(0), raw(0)]))
    assert lanes.facts == {}
    lanes.close()


@pytest.mark.filterwarnings("ignore:an environment is made anew")
def test_one_that_always_throws_is_the_users_to_see(lanes: Lanes):
    with pytest.raises(RuntimeError, match="the simulator is gone"):
        for _ in range(10):
            lanes.step(raw(1))


@pytest.mark.parametrize(("what", "message"), [(2, "rewards that are not finite"), (3, "is NaN")])
def test_nan_is_refused(lanes: Lanes, what: int, message: str):
    with pytest.raises(ValueError, match=message):
        lanes.step(raw(what))


def test_every_lane_has_its_own_seed_and_processes_give_the_same():
    make = lambda: to_gymnasium(probes.dodge(observation="state", max_steps=20))  # noqa: E731
    action = np.float32([[-0.9], [0.1], [0.9]])[:, 0]
    seen = []
    for processes in (False, True):
        lanes = make_lanes(make, 3, 20, processes)
        steps = [lanes.reset(seed=3)] + [lanes.step(action) for _ in range(25)]
        lanes.close()
        seen.append(np.stack([step.observation for step in steps]))
    np.testing.assert_array_equal(*seen)
    assert not np.array_equal(seen[0][0, 0], seen[0][0, 1])


def test_a_vector_of_another_mode_is_refused():
    with pytest.raises(ValueError, match="NEXT_STEP"):
        Lanes(SyncVectorEnv([Script], autoreset_mode=AutoresetMode.SAME_STEP), 6)


def test_a_pure_environment_plays_as_its_own_vector():
    lanes = Lanes(to_gymnasium_vector(probes.counter(), 2), 20)
    step = lanes.reset(seed=0)
    assert step.is_first.all()
    totals = np.zeros(2)
    for _ in range(4):
        step = lanes.step(np.ones(2, np.int32))
        totals += step.reward
    assert step.is_terminal.all()
    np.testing.assert_array_equal(totals, 1)


def test_discrete_observations_outside_their_space_are_refused():
    class Low(gymnasium.Env[int, int]):
        observation_space = gymnasium.spaces.Discrete(3)
        action_space = gymnasium.spaces.Discrete(4)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
            return 0, {}

        def step(self, action: int):
            return int(action), 0.0, False, False, {}

    lanes = make_lanes(Low, 1, 5)
    lanes.reset(seed=0)
    assert lanes.step(np.array([2])).observation.tolist() == [2]
    with pytest.raises(ValueError, match="outside the bounds"):
        lanes.step(np.array([3]))
