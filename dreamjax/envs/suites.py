"""Host environments by name, such as "dmc_walker_walk", with the settings that DreamerV3 publishes for each suite.

Imports a suite when an environment of it is made.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import gymnasium

from dreamjax.envs.adaptation import adapted


class Suite(NamedTuple):
    """How a family of tasks is published: steps are actions, whatever each is repeated in the environment."""

    make: Callable[..., gymnasium.Env]  # from the name of a task within the suite, and how to render it
    max_steps: int  # of an episode
    steps: int  # of training, all environments together
    train_ratio: float
    envs: int
    repeat: int = 1  # frames per action


class Task(NamedTuple):
    """A task of a suite."""

    suite: Suite
    make_env: Callable[[], gymnasium.Env]  # as `adapted` makes it


def task(name: str, *, resize: int | None = None, render_mode: str | None = None) -> Task:
    """Find a task by its name, "<suite>_<task>".

    Pictures that the agent sees are resized if asked for; with "rgb_array" the environments `render` as they can.

    Raises: ValueError for an unknown suite.
    """
    suite, _, within = name.partition("_")
    if suite not in SUITES:
        raise ValueError(
            f"unknown suite {suite!r} in task {name!r}; there are {', '.join(SUITES)}. Environments written in JAX, "
            "such as those of gymnax, Craftax and Brax, are learned by experiments/dreamerv3_jax.py"
        )
    make_env = partial(SUITES[suite].make, within, render_mode=render_mode)
    return Task(SUITES[suite], partial(adapted, make_env, resize))


def _control(
    task: str, observation: Literal["vectors", "pixels"], render_mode: str | None, repeat: int = 2
) -> gymnasium.Env:
    from dreamjax.envs.dmc import ControlSuite

    return ControlSuite(task, repeat=repeat, observation=observation, render_mode=render_mode)


def _atari(task: str, **settings: Any) -> gymnasium.Env:
    from dreamjax.envs.atari import Atari

    return Atari(task, **settings)


def _crafter(task: str, render_mode: str | None) -> gymnasium.Env:
    from dreamjax.envs.crafter import Crafter

    if task != "reward":
        raise ValueError(f"the task of Crafter is crafter_reward, got {task!r}")
    return Crafter(render_mode=render_mode)


def _doom(task: str, render_mode: str | None) -> gymnasium.Env:
    from dreamjax.envs.vizdoom import TakeCover

    if task != "takecover":
        raise ValueError(f"the task of Doom is doom_takecover, got {task!r}")
    # The game knows three actions. A normal over its number in [-1, 1] could not prefer left and right to standing.
    actions = gymnasium.spaces.Discrete(3)
    game = TakeCover(render_mode=render_mode)
    return gymnasium.wrappers.TransformAction(game, (-1.0, 0.0, 1.0).__getitem__, actions)


def _procgen(task: str, render_mode: str | None) -> gymnasium.Env:
    from dreamjax.envs.procgen import Procgen

    return Procgen(task, render_mode=render_mode)


def _bsuite(task: str, render_mode: str | None) -> gymnasium.Env:
    from dreamjax.envs.bsuite import Bsuite

    return Bsuite(task)


def _memory_maze(task: str, render_mode: str | None) -> gymnasium.Env:
    from dreamjax.envs.memory_maze import MemoryMaze

    return MemoryMaze(task, render_mode=render_mode)


def _popgym(task: str, render_mode: str | None) -> gymnasium.Env:
    from dreamjax.envs import popgym

    return popgym.make(task)


def _lab(task: str, render_mode: str | None) -> gymnasium.Env:
    from dreamjax.envs.lab import Lab

    return Lab(task, render_mode=render_mode)


def _minecraft(task: str, render_mode: str | None) -> gymnasium.Env:
    from dreamjax.envs.minecraft import Minecraft

    if task != "diamond":
        raise ValueError(f"the task of Minecraft is minecraft_diamond, got {task!r}")
    return Minecraft(render_mode=render_mode)


def _gymnasium(task: str, render_mode: str | None) -> gymnasium.Env:
    env = gymnasium.make(task)
    if render_mode not in env.metadata.get("render_modes", ()):
        return env
    env.close()
    return gymnasium.make(task, render_mode=render_mode)


_ATARI_100K: dict[str, Any] = {"size": 64, "grey": False, "sticky": False, "all_actions": False}

# Both control suites as in the paper: 500k and 1M frames, with the size 12m. "dmc1" is the one from vectors as in the
# configuration of the published code, with the size 1m: an action every frame, and four times the updates a frame.
# Those from Atari to Minecraft as in that configuration, with the size 200m; for Atari 100k the paper writes a train
# ratio of 128. That configuration sets no end for Minecraft and BSuite: the steps of the first are the paper's, those
# of the second 1,000 of its longest episodes, though it counts episodes. Memory Maze and POPGym have the steps of their
# own papers, and else what the configuration has by default. Doom and Gymnasium are not among what was published. A
# task of Gymnasium is its id, with a module before it if need be: "gym_my_package:MyEnv-v0".
SUITES = {
    "dmc": Suite(partial(_control, observation="vectors"), 500, 250_000, 512, 16, 2),
    "dmc1": Suite(partial(_control, observation="vectors", repeat=1), 1000, 1_100_000, 1024, 16),
    "dmcpixels": Suite(partial(_control, observation="pixels"), 500, 500_000, 512, 16, 2),
    "atari": Suite(_atari, 27_000, 51_000_000, 32, 16, 4),
    "atari100k": Suite(partial(_atari, **_ATARI_100K), 27_000, 110_000, 256, 1, 4),
    "crafter": Suite(_crafter, 10_000, 1_100_000, 512, 1),
    "procgen": Suite(_procgen, 6000, 110_000_000, 64, 16),
    "bsuite": Suite(_bsuite, 1001, 1_000_000, 1024, 1),
    "dmlab": Suite(_lab, 9000, 26_000_000, 32, 16, 4),
    "minecraft": Suite(_minecraft, 36_000, 100_000_000, 32, 16),
    "memmaze": Suite(_memory_maze, 4000, 100_000_000, 32, 16),
    "popgym": Suite(_popgym, 1024, 15_000_000, 32, 16),
    "doom": Suite(_doom, 2100, 1_000_000, 32, 8),
    "gym": Suite(_gymnasium, 1000, 100_000, 512, 4),
}
