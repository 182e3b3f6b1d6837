"""Environments by what a command line calls them: a name of `jitted` or `suites`, or "package.module:factory"."""

from collections.abc import Callable
from importlib import import_module

import gymnasium

from dreamjax.envs import jitted, suites
from dreamjax.types import Environment

WORLD_MODELS = ("take_cover", "car_racing")  # as Ha & Schmidhuber 2018 have them; those of `suites` are DreamerV3's


def find(name: str) -> Environment | Callable[[], gymnasium.Env]:
    """Find an environment by its name: a pure one, or what makes one for the host.

    Names are "take_cover" and "car_racing" of *World Models*, those of `jitted`, such as "catch", those of `suites`,
    such as "dmc_walker_walk", and what makes an environment of Gymnasium, or a pure one, without arguments, such as
    "dreamjax.envs.vizdoom:TakeCover".

    Raises: ValueError for a name that is none of these, and for what makes something else; ImportError as modules do,
        where an extra is missing.
    """
    if name == "take_cover":
        from dreamjax.envs.vizdoom import TakeCover

        return TakeCover
    if name == "car_racing":
        from dreamjax.envs.car_racing import CarRacing

        return CarRacing
    if jitted.is_named(name):
        return jitted.make(name)
    if name.partition("_")[0] in suites.SUITES:  # "gym_my_package:MyEnv-v0" has a colon as well
        return suites.task(name).make_env
    if ":" in name:
        return _imported(name)
    known = [*WORLD_MODELS, *jitted.OWN, *(f"{suite}_..." for suite in (*jitted.SUITES, *suites.SUITES))]
    raise ValueError(f"unknown environment {name!r}; there are {', '.join(known)}, or name package.module:factory")


def _imported(name: str) -> Environment | Callable[[], gymnasium.Env]:
    module, _, factory = name.partition(":")
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
