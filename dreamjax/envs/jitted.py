"""Environments written in JAX by name, such as "catch" or "gymnax_CartPole-v1"; those of the host are in `suites`."""

from collections.abc import Callable
from functools import partial

from dreamjax.envs import brax, craftax, gymnax, probes
from dreamjax.envs.offers import offers
from dreamjax.envs.swingup import swingup
from dreamjax.types import Environment

OWN: dict[str, Callable[[], Environment]] = {
    "counter": probes.counter,
    "remember": probes.remember,
    "catch": probes.catch,
    "dodge": partial(probes.dodge, observation="pixels"),
    "dodge_state": partial(probes.dodge, observation="state"),
    "offers": offers,
    "swingup": swingup,
    "swingup_state": partial(swingup, observation="state"),
    "swingup_both": partial(swingup, observation="both"),
}
SUITES: dict[str, Callable[[str], Environment]] = {"gymnax": gymnax.make, "craftax": craftax.make, "brax": brax.make}


def is_named(name: str) -> bool:
    """Whether `make` may know an environment by this name."""
    return name in OWN or name.partition("_")[0] in SUITES


def make(name: str) -> Environment:
    """Make an environment of this library, or what a suite knows by the name behind its own.

    Raises: ValueError for an unknown name, ModuleNotFoundError without the extra of the suite.
    """
    if not is_named(name):
        raise ValueError(f"unknown task {name!r}; there are {', '.join(OWN)}, and those of {', '.join(SUITES)}")
    if name in OWN:
        return OWN[name]()
    suite, _, within = name.partition("_")
    return SUITES[suite](within)
