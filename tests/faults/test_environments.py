"""Environments as people have them: what they return is what they declared, or is refused once, by name.

Everything happens twice, in this process and in a worker, and has to be said in the same words.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from dreamjax.acting import random_play
from dreamjax.acting.collection import CollectConfig, collect
from dreamjax.acting.evaluation import evaluate
from dreamjax.acting.playing import Request, play
from dreamjax.acting.pool import Pool
from dreamjax.acting.vector import VectorEnvironment
from dreamjax.envs.host import InvalidStep
from tests.acting.environments import Ragged, Returning, Scripted

SPACE = spaces.Dict(
    image=spaces.Box(0, 255, (64, 64, 3), np.uint8),
    lidar=spaces.Box(-1.0, 1.0, (3,)),
    place=spaces.Tuple([spaces.Discrete(5, start=2), spaces.Box(-np.inf, 5.0, (2,), np.float64)]),
)
NORMAL: dict[str, Any] = {
    "image": np.full((64, 64, 3), 7, np.uint8),
    "lidar": np.float32([0.5, -0.5, 1.0]),
    "place": (6, np.array([-1e30, 5.0])),
}


def seen(**changes: Any) -> dict[str, Any]:
    """What is observed, with changes; None takes a key away."""
    return {name: value for name, value in (NORMAL | changes).items() if value is not None}


def lidar(*values: float) -> Any:
    return (seen(lidar=np.array(values, np.float32)), 0.0, False, False, {})


IMAGE, LIDAR = "observation 'image' was declared as Box(0, 255, (64, 64, 3), uint8)", "observation 'lidar'"
KEYS = "the observation was declared with keys ['image', 'lidar', 'place']"
ROW = "Box(-1.0, 1.0, (3,), float32)"
# What a step returns, and what has to be said of it.
FAULTS: list[tuple[Any, str]] = [
    ((seen(image=np.full((64, 64, 3), 0.7)), 0.0, False, False, {}), f"{IMAGE}, got dtype float64"),
    ((seen(image=np.zeros((3, 64, 64), np.uint8)), 0.0, False, False, {}), f"{IMAGE}, got shape (3, 64, 64)"),
    ((seen(image=np.zeros((64, 64), np.uint8)), 0.0, False, False, {}), f"{IMAGE}, got shape (64, 64)"),
    (lidar(0, np.nan, 0), f"{LIDAR} is nan at [1], and must be finite in 32 bits ({ROW})"),
    (lidar(0, 0, np.inf), f"{LIDAR} is inf at [2], and must be finite in 32 bits ({ROW})"),
    (lidar(-np.inf, 0, 0), f"{LIDAR} is -inf at [0], and must be finite in 32 bits ({ROW})"),
    (lidar(0, -1.5, 0), f"{LIDAR} lies outside {ROW}: it is -1.5 at [1]. Declare its true bounds, or clip it"),
    (lidar(0, 0, 0, 0), f"{LIDAR} was declared as {ROW}, got shape (4,)"),
    (
        (seen(lidar=None), 0.0, False, False, {}),
        "declared with keys ['image', 'lidar', 'place'], got ['image', 'place']",
    ),
    ((seen(sonar=1.0), 0.0, False, False, {}), "got ['image', 'lidar', 'place', 'sonar']"),
    (
        (np.zeros(3), 0.0, False, False, {}),
        "the observation was declared with keys ['image', 'lidar', 'place'], got nd",
    ),
    ((seen(place=(6,)), 0.0, False, False, {}), "observation 'place' was declared as a tuple of 2, got 1 of them"),
    ((seen(place=(1, np.zeros(2))), 0.0, False, False, {}), "'place/0' lies outside Discrete(5, start=2): it is 1"),
    (
        (seen(place=(6, np.array([0, -1e39]))), 0.0, False, False, {}),
        "'place/1' is -inf at [1], and must be finite",
    ),
    ((seen(), np.nan, False, False, {}), "a reward must be one finite number of 32 bits, got nan"),
    ((seen(), 1e39, False, False, {}), "a reward must be one finite number of 32 bits, got 1e+39"),
    ((seen(), np.zeros(2), False, False, {}), "a reward must be one finite number of 32 bits, got array([0., 0.])"),
    ((seen(), None, False, False, {}), "a reward must be one finite number of 32 bits, got None"),
    ((seen(), "1", False, False, {}), "a reward must be one finite number of 32 bits, got '1'"),
    ((seen(), 0.0, None, False, {}), "terminated must be one boolean, got None"),
    ((seen(), 0.0, False, 0.5, {}), "truncated must be one boolean, got 0.5"),
    ((seen(), 0.0, False, {}), "step returned 4 results. step must return (observation, reward, terminated, truncated"),
    (seen(), "step returned one dict. step must return (observation, reward, terminated, truncated, info)"),
]


class Troubled(gymnasium.Env):
    """Returns what its action chooses."""

    observation_space = SPACE
    action_space = spaces.Discrete(len(FAULTS) + 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        return seen(), {}

    def step(self, action: np.int64) -> Any:
        return FAULTS[action][0] if action < len(FAULTS) else (seen(), 1.0, False, False, {})


@pytest.fixture(scope="module")
def troubled() -> Iterator[tuple[VectorEnvironment, ...]]:
    """Two environments, in this process and in a worker."""
    made = tuple(VectorEnvironment(Troubled, 2, 100, workers, timeout=60) for workers in (0, 1))
    yield made
    for vector in made:
        vector.close()


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=lambda number: FAULTS[number][1][-40:])
def test_a_fault_is_refused_at_its_step_in_the_same_words(troubled: tuple[VectorEnvironment, ...], number: int) -> None:
    said = []
    for vector in troubled:
        vector.reset((0,))
        step = vector.step(np.full(2, len(FAULTS)))
        for stored, value in zip(jax.tree.leaves(step.observation), jax.tree.leaves(NORMAL), strict=True):
            np.testing.assert_array_equal(stored, np.stack([value, value]).astype(stored.dtype))
        with pytest.raises(InvalidStep) as refused:
            vector.step(np.array([len(FAULTS), number]))
        said.append(str(refused.value))
        assert vector.failures == vector.restarts == 0
    assert said[0] == said[1]
    assert "Troubled" in said[0] and FAULTS[number][1] in said[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_ends_a_play_and_a_collection_at_once(tmp_path: Path, workers: int) -> None:
    with Pool(partial(Returning, {"0": np.array([0.0, np.inf])}), 2, workers) as pool:
        agent = random_play.random_agent(pool.spec(6))
        message = "Returning.*: observation 'inner/0' is inf at"
        with pytest.raises(InvalidStep, match=message):
            list(play(pool, agent, random_play.PARAMS, jax.random.key(0), [Request(5), Request(6)]))
        with pytest.raises(InvalidStep, match=message):
            collect(CollectConfig(2), tmp_path, pool, agent, random_play.PARAMS)
    assert not list(tmp_path.glob("*episode_*"))


# Old environments


class OldStep(Scripted):
    """The interface of Gym: four results."""

    def step(self, action: np.int64) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


class OldReset(Scripted):
    """The interface of Gym: no info, and two numbers, which look like two results."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=seed)[0]


class NoSeed(Scripted):
    """The interface of Gym: seeds had a method of their own."""

    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


WRAPPED: list[Callable[[gymnasium.Env], gymnasium.Env]] = [
    lambda env: env,
    lambda env: TimeLimit(OrderEnforcing(env), 5),
    lambda env: TimeLimit(OrderEnforcing(PassiveEnvChecker(env)), 5),  # as `gymnasium.make` does
]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("wrap", WRAPPED, ids=["bare", "limited", "made"])
@pytest.mark.parametrize("old", [OldStep, OldReset, NoSeed])
def test_an_old_environment_is_named_once(old: type[Scripted], wrap: Callable[[gymnasium.Env], gymnasium.Env]) -> None:
    made = []

    def make_env() -> gymnasium.Env:
        made.append(old())
        return wrap(made[-1])

    vector = VectorEnvironment(make_env, 1, 10)
    with pytest.raises(InvalidStep) as refused:
        vector.reset((0,))
        vector.step(np.zeros(1, np.int32))
    message = str(refused.value)
    assert old.__name__ in message and "as Gymnasium's do" in message and "GymV21CompatibilityV0" in message
    assert len(made) == 1 and vector.failures == 0
    vector.close()


def test_an_old_environment_is_named_once_by_a_worker() -> None:
    with Pool(lambda: TimeLimit(OldStep(), 5), 1, 1) as pool:
        agent = random_play.random_agent(pool.spec(6))
        with pytest.raises(InvalidStep, match=r"OldStep.*not enough values to unpack.*as Gymnasium's do"):
            list(play(pool, agent, random_play.PARAMS, jax.random.key(0), [Request(5)]))
        assert pool.restarts == 0


def test_an_error_of_the_environment_itself_is_no_matter_of_the_interface() -> None:
    class Unlucky(Scripted):
        def step(self, action: np.int64) -> Any:
            raise ValueError("not enough values to unpack, says the simulator")

    vector = VectorEnvironment(lambda: TimeLimit(Unlucky(), 5), 1, 10)
    vector.reset((0,))
    with pytest.warns(UserWarning, match="environment 0 is made anew: it raised ValueError"):
        assert vector.step(np.zeros(1, np.int32)).is_last
    vector.close()


# Rewards


@pytest.mark.parametrize("workers", [0, 1])
def test_a_reward_in_an_array_is_a_reward(workers: int) -> None:
    class Paid(Scripted):
        def step(self, action: np.int64) -> Any:
            observation, *_ = super().step(0)  # type: ignore[arg-type]
            kinds: list[Any] = [1.5, np.float64([1.5]), np.float32([[1.5]]), np.array(1.5, object).item(), [1.5], True]
            return observation, kinds[action], np.array([False]), action == 5, {}

    with Pool(Paid, 1, workers) as pool:
        spec, paid = pool.spec(9), []
        for action in range(6):
            pool.send(0, [action if action == 0 else 7])
            pool.receive()
            pool.send(0, [[np.int32(action)]])
            [answer] = pool.receive()
            assert not answer.reply.errors
            paid.append(float(answer.reply.reward[0]))
        assert paid == [1.5, 1.5, 1.5, 1.5, 1.5, 1.0]
        agent = random_play.random_agent(spec)
        [played] = play(pool, agent, random_play.PARAMS, jax.random.key(0), [Request(3)], record=True)
        assert played.recorded is not None and played.recorded.step.reward.shape == (played.steps + 1,)
        assert set(played.recorded.step.reward[1:].tolist()) <= {1.0, 1.5}


# Environments that never end


class Endless(Ragged):
    """Goes on for ever."""

    def step(self, action: np.ndarray) -> Any:
        self.steps += 1
        return self._picture(), 1.0, False, False, {}


@pytest.mark.parametrize("workers", [0, 1])
def test_an_environment_that_never_ends_is_truncated_everywhere(tmp_path: Path, workers: int) -> None:
    vector = VectorEnvironment(Endless, 2, 4, workers)
    vector.reset((0,))
    steps = [vector.step(np.zeros(2, np.float32)) for _ in range(9)]
    np.testing.assert_array_equal([step.is_last[1] for step in steps], [0, 0, 0, 1, 0, 0, 0, 0, 1])
    assert not any(step.is_terminal.any() for step in steps)
    agent, key = random_play.random_agent(vector.spec), jax.random.key(0)
    vector.close()
    if not workers:
        np.testing.assert_array_equal(evaluate(agent, random_play.PARAMS, Endless, [5, 6], key, workers=0), [4.0, 4.0])
    with Pool(Endless, 2, workers) as pool:
        found = list(play(pool, agent, random_play.PARAMS, key, map(Request, range(3)), record=True))
        store = collect(CollectConfig(2), tmp_path, pool, agent, random_play.PARAMS)
    assert [(one.steps, one.terminated) for one in found] == [(4, False)] * 3 and list(store.lengths) == [5, 5]
