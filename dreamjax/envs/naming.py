"""Environments by what a command line calls them: a task of `suites`, or "package.module:factory"."""

from collections.abc import Callable
from importlib import import_module

import gymnasium

from dreamjax.envs import suites
from dreamjax.types import Environment


def find(name: str) -> Environment | Callable[[], gymnasium.Env]:
    """Find an environment by its name: a pure one, or what makes one for the host.

    "dmc_walker_walk" is a task, as `suites.task` adapts it; "dreamjax.envs.vizdoom:TakeCover" and
    "dreamjax.envs.probes:catch" are what makes an environment of Gymnasium, or a pure one, without arguments.

    Raises: ValueError for a name that is neither, and for what makes something else; ImportError as the module does.
    """
    module, colon, factory = name.partition(":")
    if not colon or module.startswith("gym_"):  # "gym_my_package:MyEnv-v0" is a task as well
        return suites.task(name).make_env
    try:
        make = getattr(import_module(module), factory)
    except AttributeError:
        raise ValueError(f"{module} has no {factory!r}: name what makes the environment, as module:name") from None
    if isinstance(make, type) and issubclass(make, gymnasium.Env):
        return make
    if not callable(make):
        raise ValueError(f"{name} is not a function or class that makes an environment, got {make!r}")
    made = make()
    if isinstance(made, Environment):
        return made
    if not isinstance(made, gymnasium.Env):
        raise ValueError(f"{name} makes neither a pure `Environment` nor one of Gymnasium, got {made!r}")
    made.close()
    return make
