"""Environments are found by what a command line calls them."""

from functools import partial

import gymnasium
import pytest

from dreamjax.envs import naming
from dreamjax.envs.vizdoom import TakeCover
from dreamjax.types import Environment


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
