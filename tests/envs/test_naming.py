"""Environments are found by what a command line calls them."""

from functools import partial

import gymnasium
import numpy as np
import pytest

from dreamjax.envs import naming
from dreamjax.envs.adaptation import adapted
from dreamjax.envs.gymnasium import spec_from_gymnasium
from dreamjax.envs.vizdoom import TakeCover
from dreamjax.types import Environment, Space


def test_a_task_a_class_and_what_makes_a_pure_environment_are_found() -> None:
    make = naming.find("gym_CartPole-v1")
    assert isinstance(make, partial)
    with make() as env:
        assert isinstance(env, gymnasium.Env)
    assert naming.find("dreamjax.envs.vizdoom:TakeCover") is TakeCover
    catch = naming.find("dreamjax.envs.probes:catch")
    assert isinstance(catch, Environment) and catch.spec.max_steps == 3
    assert naming.find("take_cover") is TakeCover
    assert naming.find("catch").spec == catch.spec


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("chess", "unknown environment 'chess'"),
        ("dreamjax.envs.probes:checkers", "dreamjax.envs.probes has no 'checkers'"),
        ("dreamjax.envs.probes:FRAME", "not a function or class"),
    ],
)
def test_what_is_no_environment_is_refused(name: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        naming.find(name)


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ImportError, match="no_such_module"):
        naming.find("no_such_module:make")


class Sights(gymnasium.Env):
    """Two pictures of different sizes, and a force in other bounds than an actor chooses in."""

    def __init__(self) -> None:
        picture = {name: gymnasium.spaces.Box(0, 255, (side, 96, 3), np.uint8) for name, side in (("a", 64), ("b", 80))}
        self.observation_space = gymnasium.spaces.Dict(picture)
        self.action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)


def squares() -> gymnasium.Env:
    return adapted(Sights, 64)


@pytest.mark.parametrize("resize", [None, 48, (32, 64)])
def test_an_environment_is_found_as_its_agent_was_trained_in_it(resize: int | tuple[int, int] | None) -> None:
    with adapted(Sights, resize) as env:
        spec = spec_from_gymnasium(env, 10)
    make = naming.find_for(spec, "tests.envs.test_naming:Sights")
    assert not isinstance(make, Environment)
    with make() as env:
        assert spec_from_gymnasium(env, 10) == spec


class Uneven(gymnasium.Env):
    """Choices of different numbers, which `adapted` takes apart."""

    observation_space = gymnasium.spaces.Discrete(2)
    action_space = gymnasium.spaces.MultiDiscrete([3, 4])


@pytest.mark.parametrize("made", [Sights, Uneven])
def test_an_agent_of_its_own_actions_gets_the_environment_as_it_is(made: type[gymnasium.Env]) -> None:
    with made() as env:
        spec = spec_from_gymnasium(env, 10)
    assert naming.find_for(spec, f"{__name__}:{made.__name__}") is made


class Memory(gymnasium.Env):
    """Bytes that are no picture, and a class."""

    def __init__(self, levels: int = 9) -> None:
        byte = gymnasium.spaces.Box(0, 255, (128,), np.uint8)
        self.observation_space = gymnasium.spaces.Dict({"level": gymnasium.spaces.Discrete(levels), "memory": byte})
        self.action_space = gymnasium.spaces.Discrete(2)


def test_numbers_that_mean_something_else_are_another_environment() -> None:
    name = f"{__name__}:Memory"
    with Memory() as env, Memory(4) as fewer:
        spec, other = spec_from_gymnasium(env, 10), spec_from_gymnasium(fewer, 10)
    make = naming.find_for(spec, name)
    assert not isinstance(make, Environment)
    with pytest.raises(ValueError, match=r"another environment: observation 'level' is .*high=9.*high=4"):
        naming.find_for(other, name)
    longer = spec.observation | {"memory": Space((64, 64), np.uint8, 0, 256)}
    with pytest.raises(ValueError, match=r"another environment: observation 'memory' is"):
        naming.find_for(spec._replace(observation=longer), name)


def test_the_environment_of_another_agent_is_refused() -> None:
    spec = naming.find("catch").spec
    with pytest.raises(ValueError, match=r"observation is \{'a': Space.* for the agent. Is .tests.envs.test_naming:"):
        naming.find_for(spec, "tests.envs.test_naming:Sights")
    with pytest.raises(ValueError, match=r"observation 'c' is missing, and Space.* for the agent"):
        naming.find_for(spec._replace(observation=dict.fromkeys("abc", spec.observation)), f"{__name__}:squares")
    with pytest.raises(ValueError, match=r"action is .*Is 'dodge' the environment that it was trained in"):
        naming.find_for(spec._replace(observation=naming.find("dodge").spec.observation), "dodge")
