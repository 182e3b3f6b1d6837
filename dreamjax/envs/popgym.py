"""POPGym (Morad et al. 2023): small tasks that only a memory solves, as environments of Gymnasium.

Verified against popgym 1.0.7, which speaks that interface.
"""

from importlib.util import find_spec

import gymnasium

from dreamjax._extras import extra

with extra("suites", "POPGym"):
    from popgym import envs

TASKS: dict[str, type[gymnasium.Env]] = {made.__name__: made for made in envs.ALL}


def make(task: str) -> gymnasium.Env:
    """Make a task by the name of its class, such as "RepeatPreviousEasy".

    Source: Morad et al. 2023, https://arxiv.org/abs/2303.01859; agents are compared there by the mean return of the
    last episodes in 15 million steps. Those of mazes need the package mazelib as well.

    Raises: ValueError for an unknown task.
    """
    if task not in TASKS:
        mazes = ". Those of mazes, Labyrinth..., need the package mazelib as well" * (find_spec("mazelib") is None)
        raise ValueError(f"unknown task {task!r}; there are {', '.join(sorted(TASKS))}{mazes}")
    return TASKS[task]()
