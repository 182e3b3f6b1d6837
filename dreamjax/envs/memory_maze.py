"""Memory Maze (Pasukonis et al. 2022), as an environment of Gymnasium: find balls again, by colour, in a maze.

Verified against memory-maze 1.0.3 with dm_control 1.0.50. Pictures need OpenGL, as in `dreamjax.envs.dmc`.
"""

import sys
from typing import Any

import gymnasium
import numpy as np

from dreamjax._extras import extra
from dreamjax.envs import dmc, pixels

_NOTE = "; it needs Python 3.12 or older, because its labmaze has no release for 3.13" * (sys.version_info >= (3, 13))

with extra("memory-maze", "Memory Maze", _NOTE), dmc.without_opengl():
    from memory_maze import tasks

SIZES = ("9x9", "11x11", "13x13", "15x15")
ACTIONS = ("noop", "forward", "left", "right", "forward_left", "forward_right")
RATE = 4  # actions a second


class MemoryMaze(gymnasium.Env[np.ndarray, np.integer]):
    """A maze of a size such as "9x9": uint8 [64, 64, 3], whose border has the colour of the ball to find, 6 actions.

    The reward is 1 for each ball that is touched while the border has its colour. Every episode is another maze, of
    1000 steps at "9x9", 2000, 3000 and 4000 at "15x15", and is truncated then. A reset with a seed builds the game
    anew, which takes seconds; one without draws the next maze.

    Source: Pasukonis et al. 2022, https://arxiv.org/abs/2210.13383.
    Raises: ValueError for another size, `dmc.CannotDraw` where MuJoCo cannot draw.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": RATE}  # noqa: RUF012, the base class declares it so

    def __init__(self, size: str = "9x9", render_mode: str | None = None) -> None:
        if size not in SIZES:
            raise ValueError(f"unknown maze {size!r}; there are {', '.join(SIZES)}")
        self.render_mode = pixels.checked_render_mode(render_mode)
        dmc.check_drawing(pixels.SIZE)  # before anybody waits for it
        self._make = getattr(tasks, f"memory_maze_{size}")
        self._game: Any = None
        self._running = False
        self._picture: np.ndarray | None = None
        self.observation_space = gymnasium.spaces.Box(0, 255, (pixels.SIZE, pixels.SIZE, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._game is None:
            self.close()
            maze = int(self.np_random.integers(2**31))
            self._game = self._make(seed=maze, image_only_obs=True, camera_resolution=pixels.SIZE)
        self._running, self._picture = True, self._game.reset().observation
        return self._picture, {}

    def step(self, action: np.integer) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self._running:  # the game would open the next maze
            raise gymnasium.error.ResetNeeded("step needs an episode that is running: call reset first")
        arrived = self._game.step(int(action))
        self._running, self._picture = not arrived.last(), arrived.observation
        terminated = arrived.last() and arrived.discount == 0
        return arrived.observation, float(arrived.reward), terminated, arrived.last() and not terminated, {}

    def get_action_meanings(self) -> list[str]:
        """What each action is, such as "forward"."""
        return list(ACTIONS)

    def render(self) -> np.ndarray | None:
        """What the agent sees, uint8 [64, 64, 3]."""
        return None if self.render_mode is None else self._picture

    def close(self) -> None:
        if self._game is not None:
            self._game.close()
            self._game, self._running = None, False
