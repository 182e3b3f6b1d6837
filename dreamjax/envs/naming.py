"""Environments by what a command line calls them: a name of `jitted` or `suites`, or "package.module:factory"."""

from collections.abc import Callable
from functools import partial
from importlib import import_module

import gymnasium
import jax
import numpy as np

from dreamjax.checks import same_spaces
from dreamjax.envs import jitted, suites
from dreamjax.envs.adaptation import SMALLEST, adapted
from dreamjax.envs.gymnasium import is_adapted, spec_from_gymnasium
from dreamjax.types import Environment, EnvSpec, Space

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


def find_for(spec: EnvSpec, name: str) -> Environment | Callable[[], gymnasium.Env]:
    """Find an environment by its name, as `find` does, for an agent whose world model is of `spec`.

    What has other actions, or pictures of another size, is adapted as for training: see `envs.adapted`.

    Raises: as `find`; ValueError if it has other spaces than the agent was made for.
    """
    made = find(name)
    hint = f". Is {name!r} the environment that it was trained in?"
    if isinstance(made, Environment):
        same_spaces(spec, made.spec, hint)
        return made
    make_env = _fitting(made, spec)
    with make_env() as env:
        same_spaces(spec, spec_from_gymnasium(env, spec.max_steps), hint)
    return make_env


def _fitting(make_env: Callable[[], gymnasium.Env], spec: EnvSpec) -> Callable[[], gymnasium.Env]:
    """Adapt an environment as it was for training, to pictures of the size that the agent has seen.

    What is returned is made of functions that need no JAX, for quick workers.
    """
    if not is_adapted(spec):
        return make_env
    with adapted(make_env) as env:
        found = spec_from_gymnasium(env, spec.max_steps).observation
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(spec.observation), strict=False)
    sizes = {b.shape[:2] for a, b in pairs if _may_be_picture(a) and _may_be_picture(b) and a.shape != b.shape}
    return partial(adapted, make_env, sizes.pop()) if len(sizes) == 1 else partial(adapted, make_env)


def _may_be_picture(space: Space) -> bool:
    return space.dtype == np.uint8 and len(space.shape) in (2, 3) and min(space.shape[:2]) >= SMALLEST


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
