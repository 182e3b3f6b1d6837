"""Whatever Gymnasium's spaces can say either works, in this process and in workers, or is refused by name at once."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces

import dreamjax
from dreamjax.acting import random_play
from dreamjax.acting.evaluation import evaluate, play_all
from dreamjax.acting.vector import VectorEnvironment
from dreamjax.dreamerv3 import Dreamer, debug
from dreamjax.envs import adapted, spec_from_gymnasium
from dreamjax.envs.host import InvalidStep
from dreamjax.types import Space
from tests.acting.environments import Scripted


class Acts(gymnasium.Env):
    """Keeps the actions it is given, each of which has to lie in its space."""

    observation_space: Any = spaces.Tuple([spaces.Box(-2.0, 2.0, (2,)), spaces.Dict(deep=spaces.Discrete(3, start=1))])

    def __init__(self, action_space: spaces.Space, kept: list[Any]) -> None:
        self.action_space, self._kept = action_space, kept

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        return (np.float32([-2, 2]), {"deep": 3}), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self._kept.append(action)
        return (np.float32([-2, 2]), {"deep": 1}), 1.0, False, False, {}


ONE, UNIT = np.array(1.0, np.float32), Space((2,), np.float32, -1, 1)
TUPLE = (Space((), np.int32, 0, 3), Space((), np.int32, 0, 4))
# A space, what an agent sees of it, an action of the agent for each of two environments, and what they are given.
ACTIONS: dict[str, tuple[spaces.Space, Any, Any, Any]] = {
    "dict": (
        spaces.Dict(move=spaces.Box(np.float32([-2, 0]), np.float32([2, 10])), jump=spaces.Discrete(2)),
        {"jump": Space((), np.int32, 0, 2), "move": UNIT},
        {"jump": np.int32([0, 1]), "move": np.float32([[0.5, 0.5], [-7, 7]])},
        [{"jump": 0, "move": [1.0, 7.5]}, {"jump": 1, "move": [-2, 10]}],
    ),
    "tuple": (
        spaces.Tuple([spaces.Box(-2.0, 2.0, (), np.float64), spaces.Box(-1.0, 1.0, (2,))]),
        (Space((), np.float32, -1, 1), UNIT),
        (np.float32([0.5, -1]), np.float32([[0.5, 0.5], [-7, 7]])),
        [(1.0, [0.5, 0.5]), (-2.0, [-1, 1])],
    ),
    "unequal": (spaces.MultiDiscrete([3, 4]), TUPLE, (np.int32([2, 0]), np.int32([3, 1])), [[2, 3], [0, 1]]),
    "table": (
        spaces.Dict(table=spaces.MultiDiscrete([[2, 3]], start=[[5, -1]])),
        {"table": (Space((), np.int32, 5, 7), Space((), np.int32, -1, 2))},
        {"table": (np.int32([5, 6]), np.int32([-1, 1]))},
        [{"table": [[5, -1]]}, {"table": [[6, 1]]}],
    ),
    "levels": (
        spaces.Box(np.array([0, 1]), np.array([2, 4]), (2,), np.int16),
        (Space((), np.int32, 0, 3), Space((), np.int32, 1, 5)),
        (np.int32([2, 0]), np.int32([4, 1])),
        [[2, 4], [0, 1]],
    ),
    "equal": (
        spaces.MultiDiscrete([3, 3], start=[1, 1]),
        Space((2,), np.int32, 1, 4),
        np.int32([[1, 3], [2, 2]]),
        [[1, 3], [2, 2]],
    ),
    "fixed": (
        spaces.Box(np.float32([3, -1]), np.float32([3, 1])),
        UNIT,
        np.float32([[0.5, 0.5], [-1, -9]]),
        [[3, 0], [3, -1]],
    ),
    "bits": (
        spaces.MultiBinary([2, 2]),
        Space((2, 2), np.int8, 0, 2),
        np.int8([[[0, 1], [1, 1]], [[1, 0], [0, 0]]]),
        [[[0, 1], [1, 1]], [[1, 0], [0, 0]]],
    ),
}
ACTIONS["fixed"][3][0][1] = 0.5


@pytest.mark.parametrize("name", ACTIONS)
def test_an_action_is_what_the_agent_chose_in_the_space_of_the_environment(name: str) -> None:
    space, seen_of_it, chosen, wanted = ACTIONS[name]
    kept: list[Any] = []
    vector = VectorEnvironment(partial(adapted, partial(Acts, space, kept)), 2, 9)
    assert vector.spec.action == seen_of_it
    Dreamer.of(debug(), vector.spec)  # can act in it
    vector.reset((0,))
    vector.step(chosen)
    assert len(kept) == 2 and vector.failures == 0
    for got, one in zip(kept, wanted, strict=True):
        jax.tree.map(np.testing.assert_array_equal, got, jax.tree.map(np.asarray, one, is_leaf=_is_list))
    vector.close()


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def test_workers_give_the_same_actions() -> None:
    """In a tuple, a dict and a split array: the worker's space contains them, or it would raise."""
    names = ("dict", "tuple", "unequal")
    space = spaces.Dict([(name, ACTIONS[name][0]) for name in names])
    vector = VectorEnvironment(partial(adapted, partial(Acts, space, [])), 2, 9, workers=1)
    vector.reset((0,))
    step = vector.step({name: ACTIONS[name][2] for name in names})
    assert vector.failures == 0 and step.reward.tolist() == [1, 1]
    np.testing.assert_array_equal(step.observation[0], np.float32([[-2, 2]] * 2))
    assert step.observation[1]["deep"].tolist() == [1, 1]
    vector.close()


FINITE = spaces.Box(-1.0, 1.0, (2,))
REFUSED: list[tuple[spaces.Space, spaces.Space, str]] = [
    (spaces.Dict(a=FINITE, words=spaces.Text(5)), FINITE, "'words' has no form as an array: Text"),
    (spaces.Tuple([FINITE, spaces.Sequence(FINITE)]), FINITE, "'1' has no form as an array: Sequence"),
    (spaces.Graph(FINITE, None), FINITE, "the space has no form as an array: Graph"),
    (FINITE, spaces.Dict(a=spaces.Dict(b=spaces.OneOf([FINITE, FINITE]))), "'a/b' has no form as an array: OneOf"),
    (spaces.Dict(count=spaces.Box(0, 2**40, (), np.int64)), FINITE, "'count' has values that do not fit into 32 bits"),
    (spaces.Dict(a=spaces.Box(0, 2**32 - 1, (), np.uint32)), FINITE, "'a' has values that do not fit into 32 bits"),
    (spaces.Dict(none=spaces.Box(-1, 1, (0,))), FINITE, "'none' has no entries"),
    (spaces.Dict(a=FINITE, none=spaces.Dict()), FINITE, "'none' of the space is empty"),
    (spaces.Dict(same=spaces.Box(2, 2, (3,))), FINITE, "'same' can take one value only"),
    (FINITE, spaces.Dict(a=spaces.Box(-np.inf, np.inf, (2,))), "'a' has no bounds: Box(-inf, inf, (2,), float32)"),
    (FINITE, spaces.Box(0.0, np.inf, (2,)), "the action has no bounds: Box(0.0, inf, (2,), float32)"),
]


class Spaced(Scripted):
    """Has any spaces; it is refused before it is reset."""

    def __init__(self, observation: spaces.Space, action: spaces.Space) -> None:
        self.observation_space, self.action_space = observation, action  # type: ignore[assignment]


@pytest.mark.parametrize(("observation", "action", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_a_space_cannot_be_is_refused_before_training(
    observation: spaces.Space, action: spaces.Space, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        VectorEnvironment(partial(adapted, partial(Spaced, observation, action)), 1, 9)
    assert not isinstance(refused.value, InvalidStep)


def test_a_worker_refuses_spaces_in_the_same_words() -> None:
    for observation, action, message in (REFUSED[0], REFUSED[-2]):
        with pytest.raises(ValueError, match=re.escape(message)):
            VectorEnvironment(partial(adapted, partial(Spaced, observation, action)), 1, 9, workers=1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"jump": np.int32([0, 2]), "move": np.zeros((2, 2))}, r"action 'jump' was declared as Discrete\(2\), got 2"),
        (
            {"jump": np.int32([0, 0]), "move": np.full((2, 2), np.nan)},
            r"'move' was declared as .*got \[nan nan\]",
        ),
        ({"jump": np.int32([0, 0]), "move": np.zeros((2, 3))}, r"action 'move' was declared as .*of shape \(3,\)"),
        ({"jump": np.float32([0, 1]), "move": np.zeros((2, 2))}, r"action 'jump' was declared as .*got float32"),
        ({"jump": np.int32([0, 0])}, r"the action was declared with keys \['move', 'jump'\], got \['jump'\]"),
    ],
)
def test_an_action_that_is_none_is_refused(bad: Any, message: str) -> None:
    vector = VectorEnvironment(partial(Acts, ACTIONS["dict"][0], []), 2, 9)
    vector.reset((0,))
    with pytest.raises(InvalidStep, match=message):
        vector.step(bad)
    vector.close()


# Pictures of other sizes


class Camera(gymnasium.Env):
    """Shows pictures of several kinds; never ends; is paid for moving, in [-2, 2]."""

    def __init__(self, wrong: Any = None, **sizes: tuple[int, ...]) -> None:
        self._wrong, self._sizes = wrong, sizes
        self.observation_space = spaces.Dict(
            {name: spaces.Box(0, 255, size, np.uint8) for name, size in sizes.items()}
            | {"grid": spaces.Box(0, 255, (7, 3), np.uint8), "speed": spaces.Box(-1.0, 1.0, (2,))}
        )
        self.action_space = spaces.Box(-2.0, 2.0, ())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> Any:
        return self._observe() | (self._wrong or {}), float(action), False, False, {}

    def _observe(self) -> Any:
        """Light in the left half of each picture, another in each channel."""
        pictures = {}
        for name, (height, width, *channels) in self._sizes.items():
            light = np.where(np.arange(width) < width // 2, 200, 40).astype(np.uint8)
            picture = (
                np.tile(light, (height, 1)) if not channels else light[:, None] + np.arange(*channels, dtype=np.uint8)
            )
            pictures[name] = np.broadcast_to(picture, (height, width, *channels))
        return pictures | {"grid": np.full((7, 3), 9, np.uint8), "speed": np.zeros(2, np.float32)}


def test_pictures_are_resized_by_averaging_and_nothing_else_is() -> None:
    sizes = {"atari": (210, 160, 3), "grey": (84, 84), "stack": (84, 84, 4), "small": (32, 32, 1)}
    env = adapted(lambda: Camera(**sizes), resize=64)
    observed, _ = env.reset(seed=0)
    assert env.observation_space.contains(observed)
    shapes = {name: observed[name].shape for name in sizes}
    assert shapes == {"atari": (64, 64, 3), "grey": (64, 64), "stack": (64, 64, 4), "small": (64, 64, 1)}
    for name in sizes:
        picture = observed[name].reshape(64, 64, -1).astype(int)
        for channel in range(picture.shape[-1]):
            assert (picture[:, :31, channel] == 200 + channel).all() and (
                picture[:, 33:, channel] == 40 + channel
            ).all()
    assert observed["grid"].shape == (7, 3) and observed["speed"].shape == (2,)
    assert adapted(lambda: Camera(a=(60, 90, 3)), resize=(48, 96)).observation_space["a"].shape == (48, 96, 3)
    same = Camera(a=(64, 64, 3))
    assert adapted(lambda: same, resize=64).observation_space is same.observation_space


def test_what_cannot_be_resized_is_refused() -> None:
    with pytest.raises(ValueError, match="no picture to resize"):
        adapted(Camera, resize=64)
    with pytest.raises(ValueError, match=r"more channels than rows or columns, Box\(0, 255, \(3, 84, 84\), uint8\)"):
        adapted(lambda: Camera(a=(3, 84, 84)), resize=64)
    with pytest.raises(ValueError, match="resize must be a side"):
        adapted(lambda: Camera(a=(84, 84)), resize=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"a": np.zeros((96, 96, 3), np.uint8)}, r"observation 'a' was declared as .*got shape \(96, 96, 3\)"),
        ({"a": np.zeros((84, 84, 3))}, "observation 'a' was declared as .*got dtype float64"),
        ({"b": 0}, "the observation was declared with keys"),
        ({"speed": np.float32([np.nan, 0])}, r"observation 'speed' is nan at \[0\]"),
    ],
)
def test_a_wrong_picture_is_not_resized_into_a_right_one(wrong: Any, message: str) -> None:
    vector = VectorEnvironment(partial(adapted, partial(Camera, wrong, a=(84, 84, 3)), 64), 1, 9)
    vector.reset((0,))
    with pytest.raises(InvalidStep, match=f"Camera.*: {message}"):
        vector.step(np.zeros(1, np.float32))
    vector.close()


def test_training_adapts_its_environments(tmp_path: Path) -> None:
    """What is refused shows what arrives: actions in [-1, 1], and pictures of the size that was asked for."""
    with pytest.raises(ValueError, match=r"sides of 'a' must be multiples of 16.*\(72, 72, 3\)"):
        dreamjax.train(partial(Camera, a=(84, 84, 3)), tmp_path, 4, debug(), resize=72)
    with pytest.raises(ValueError, match="no picture to resize"):
        dreamjax.train(Camera, tmp_path, 4, debug(), resize=64)
    with pytest.raises(ValueError, match="'move' has no bounds"):
        unbounded = spaces.Dict(move=spaces.Box(-np.inf, np.inf, (2,)))
        dreamjax.train(partial(Spaced, FINITE, unbounded), tmp_path, 4, debug())


def test_whoever_plays_an_agent_plays_in_the_spaces_that_it_was_made_for() -> None:
    make_env, key = partial(Camera, a=(60, 52)), jax.random.key(0)
    agent = random_play.random_agent(spec_from_gymnasium(adapted(make_env, 48), 3))
    assert agent.model.spec.observation["a"].shape == (48, 48) and agent.model.spec.action.high == 1
    make_same = partial(adapted, make_env, 48)
    for make in (make_same, partial(Camera, a=(48, 48))):
        [played] = play_all(agent, random_play.PARAMS, make, [3], key, workers=0, record=True)
        assert played.steps == 3 and played.recorded is not None
        step, action = played.recorded
        np.testing.assert_allclose(step.reward[1:], 2 * action[:-1], rtol=1e-6)  # also where nobody adapted it
    with pytest.raises(ValueError, match=r"observation 'a' is .*60, 52.*adapted, make_env, resize"):
        list(play_all(agent, random_play.PARAMS, make_env, [3], key, workers=0))
    raw = random_play.random_agent(spec_from_gymnasium(make_env(), 3))
    [played] = play_all(raw, random_play.PARAMS, make_env, [3], key, workers=0, record=True)
    assert played.recorded is not None and np.abs(played.recorded.action).max() > 1
    np.testing.assert_allclose(played.recorded.step.reward[1:], played.recorded.action[:-1], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(ACTIONS.keys() - {"fixed"}))  # which only `adapted` makes free
def test_an_agent_of_the_spaces_as_they_are_is_evaluated_in_them(name: str) -> None:
    kept: list[Any] = []
    make_env = partial(Acts, ACTIONS[name][0], kept)
    agent = random_play.random_agent(spec_from_gymnasium(make_env(), 3))
    assert evaluate(agent, random_play.PARAMS, make_env, [3], jax.random.key(0), workers=0).tolist() == [3]
    assert len(kept) == 3
