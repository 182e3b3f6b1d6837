"""Environments written in JAX by name, such as "catch" or "gymnax_CartPole-v1"."""

from collections.abc import Callable
from functools import partial

from dreamjax.envs import brax, craftax, gymnax, probes
from dreamjax.envs.swingup import swingup
from dreamjax.types import Environment

TASKS: dict[str, Callable[[], Environment]] = {
    "counter": probes.counter,
    "remember": probes.remember,
    "catch": probes.catch,
    "dodge": partial(probes.dodge, observation="pixels"),
    "dodge_state": partial(probes.dodge, observation="state"),
    "swingup": swingup,
    "swingup_state": partial(swingup, observation="state"),
}
SUITES: dict[str, Callable[[str], Environment]] = {"gymnax": gymnax.make, "craftax": craftax.make, "brax": brax.make}


def make(task: str) -> Environment:
    """Make the environment of a task: one of `TASKS`, or what a suite knows by the name behind its own.

    Raises: ValueError for an unknown name, ModuleNotFoundError if the extra of its suite is not installed.
    """
    suite, _, name = task.partition("_")
    if task in TASKS:
        return TASKS[task]()
    if suite in SUITES:
        return SUITES[suite](name)
    raise ValueError(f"unknown task {task!r}; there are {', '.join(TASKS)}, and those of {', '.join(SUITES)}")
