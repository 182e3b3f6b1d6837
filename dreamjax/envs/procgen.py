"""Procgen (Cobbe et al. 2020): 16 games whose levels are drawn, as environments of Gymnasium.

Verified against two packages of one engine: procgen-mirror 0.10.7 with gym3 0.3.3 on Python 3.11, and procgen-gym 0.1.1
on Python 3.13.
"""

import sys
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from dreamjax._extras import extra
from dreamjax.envs import pixels

_NOTE = "; then pip install --no-deps gym3 procgen-mirror, which ask for an older NumPy than they need"

if sys.version_info >= (3, 13):
    with extra("procgen", "Procgen"):
        from procgen_gym import ProcgenVecEnv as Engine
        from procgen_gym.env import ENV_NAMES
else:
    with extra("procgen", "Procgen", _NOTE):
        from procgen import ProcgenGym3Env as Engine
        from procgen.env import ENV_NAMES

GAMES: tuple[str, ...] = tuple(ENV_NAMES)
ACTIONS = 15  # of which several do the same in most games
SMALL = 64  # height and width of the picture that the engine draws for agents; the one for people has 512
_AGAIN = -1  # the action that opens another level


class Procgen(gymnasium.Env[np.ndarray, np.integer]):
    """One game, such as "coinrun": uint8 [size, size, 3], 15 actions, and the rewards of the game.

    Levels are drawn without end from the distribution "hard", which is the package's own; all of them follow from the
    seed of a reset. A picture of size 64 is the one that the engine draws, another its picture of 512 resized by
    Pillow's `BILINEAR`. Every end is a termination, that of the game's clock too. Source: the environment of the
    published code, Hafner et al. 2023. The engine shows the next level in the step that ends one; here that step shows
    the picture before it again.

    Args:
      game: its name.
      size: height and width of the picture.
      render_mode: "rgb_array" makes `render` return the engine's picture of 512, or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012, the base class declares it so

    def __init__(self, game: str, size: int = 96, render_mode: str | None = None) -> None:
        if game not in GAMES:
            raise ValueError(f"unknown game {game!r}; there are {', '.join(GAMES)}")
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.render_mode = pixels.checked_render_mode(render_mode)
        self._game, self._size = game, size
        self._draw = "rgb_array" if size != SMALL or render_mode else None  # for people too, which takes longer
        self._engine: Any = None
        self._is_new = False  # nothing has happened in this level
        self._running = False
        self._picture = np.zeros((size, size, 3), np.uint8)
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(ACTIONS)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._engine is None:
            self.close()
            drawn = int(self.np_random.integers(2**31))
            self._engine = Engine(1, self._game, rand_seed=drawn, num_threads=0, render_mode=self._draw)
        elif not self._is_new:
            _act(self._engine, _AGAIN)
        self._is_new, self._running, self._picture = True, True, self._observe()
        return self._picture, {}

    def step(self, action: np.integer) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self._running:  # the engine is in the next level
            raise gymnasium.error.ResetNeeded("step needs an episode that is running: call reset first")
        reward, self._is_new = _act(self._engine, int(action))
        self._running = not self._is_new
        if not self._is_new:
            self._picture = self._observe()
        return self._picture, reward, self._is_new, False, {}

    def render(self) -> np.ndarray | None:
        """The engine's picture for people, uint8 [512, 512, 3]; at an end, that of the next level."""
        return None if self.render_mode is None or self._engine is None else _shown(self._engine, False)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine, self._running = None, False

    def _observe(self) -> np.ndarray:
        if self._size == SMALL:
            return _shown(self._engine, True)
        whole = Image.fromarray(_shown(self._engine, False))
        return np.array(whole.resize((self._size, self._size), Image.Resampling.BILINEAR))


def _act(engine: Any, action: int) -> tuple[float, bool]:
    """Act for a step: its reward, and whether the engine is in a new level after it."""
    taken = np.array([action], np.int32)
    if hasattr(engine, "act"):  # as gym3 has it
        engine.act(taken)
        reward, _, is_first = engine.observe()
    else:
        _, reward, is_first, _, _ = engine.step(taken)
    return float(reward[0]), bool(is_first[0])


def _shown(engine: Any, for_agents: bool) -> np.ndarray:
    """Copy the picture that the engine draws for agents, [64, 64, 3], or for people, [512, 512, 3]."""
    if hasattr(engine, "act"):
        return np.array(engine.observe()[1]["rgb"][0] if for_agents else engine.get_info()[0]["rgb"])
    small, info = engine.reset()  # which changes nothing
    return np.array((small if for_agents else info["rgb"])[0])
