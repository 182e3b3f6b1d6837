"""Atari games, as environments of Gymnasium, with the preprocessing of DreamerV3.

Verified against ale-py 0.12, which brings the games with it. The published runs used ALE 0.9.
"""

from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from dreamjax._extras import extra
from dreamjax.envs import pixels

with extra("suites", "Atari"):
    import ale_py
    from ale_py import roms

REPEAT = 4  # frames of the emulator for each action
STICKY = 0.25  # probability with which a frame repeats the action before, where actions are sticky
NOOPS = 30  # frames, at most, that pass before the agent sees an episode
LIMIT = 108_000  # frames of an episode: half an hour of play
_ROMS = {"james_bond": "jamesbond"}  # where the published name of a task is not that of the game
# The last one makes the sum 1 in floats, as in the published code; with 0.114 some greys are one darker.
_GREY = np.array([0.299, 0.587, 1 - (0.299 + 0.587)])


class Atari(gymnasium.Env[np.ndarray, np.integer]):
    """One game, such as "pong": uint8 [size, size, 1] in grey or [size, size, 3] in colour, and unclipped scores.

    An action is repeated for four frames of the emulator and its reward is their sum. The picture is the maximum of
    the last two frames, resized by Pillow's `BILINEAR`, then turned to grey. The repetition stops where the game ends;
    a frame that was not drawn then stays what it was. An episode opens with 0 to 30 frames without action, and goes on
    through lost lives. It ends with the game or after 108,000 frames, not counting the opening; both are terminations,
    because the published code makes no difference between them.

    The defaults are the settings for 200M frames (Machado et al. 2018, but in 96x96). Those of Atari 100k: size 64,
    `grey=False, sticky=False, all_actions=False`. Source: the environment of the published code, Hafner et al. 2023.

    Args:
      game: its name in ALE.
      size: height and width of the picture.
      grey: one channel instead of three.
      sticky: each frame repeats the action of the frame before with a probability of 0.25.
      all_actions: the 18 of the joystick instead of those that mean something in this game.
      render_mode: "rgb_array" makes `render` return the whole picture of the emulator, or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60 // REPEAT}  # noqa: RUF012, the base class declares it so

    def __init__(
        self,
        game: str,
        size: int = 96,
        grey: bool = True,
        sticky: bool = True,
        all_actions: bool = True,
        render_mode: str | None = None,
    ) -> None:
        name = _ROMS.get(game, game)
        if name not in roms.get_all_rom_ids():
            raise ValueError(f"unknown game {game!r}; there are {', '.join(sorted(roms.get_all_rom_ids()))}")
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.render_mode = pixels.checked_render_mode(render_mode)
        self._rom, self._size, self._grey = str(roms.get_rom_path(name)), size, grey
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # before it is made, which prints
        self._game = ale_py.ALEInterface()
        self._game.setFloat("repeat_action_probability", STICKY if sticky else 0.0)
        self._load()
        self._actions = self._game.getLegalActionSet() if all_actions else self._game.getMinimalActionSet()
        self._screens = np.zeros((2, *self._game.getScreenDims(), 3), np.uint8)  # the older one first
        self._frames = 0
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 1 if grey else 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(self._actions))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._load()
        self._game.reset_game()
        for _ in range(self.np_random.integers(NOOPS + 1)):
            self._game.act(ale_py.Action.NOOP)
            if self._game.game_over():
                self._game.reset_game()
        self._frames = 0
        self._screens[:] = self._game.getScreenRGB()
        return self._observe(), {}

    def step(self, action: np.integer) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = 0.0
        for frame in range(REPEAT):
            reward += self._game.act(self._actions[action])
            self._frames += 1
            if frame >= REPEAT - 2:
                self._screens = np.stack([self._screens[1], self._game.getScreenRGB()])
            terminated = self._game.game_over() or self._frames >= LIMIT
            if terminated:
                break
        return self._observe(), reward, terminated, False, {}

    def get_action_meanings(self) -> list[str]:
        """What each action is, such as "UPFIRE", under the name that Gymnasium's Atari has for it."""
        return [action.name for action in self._actions]

    def render(self) -> np.ndarray | None:
        """The whole picture of the emulator, uint8 [height, 160, 3]; most games are 210 high."""
        return None if self.render_mode is None else self._game.getScreenRGB()

    def _load(self) -> None:
        """Start the emulator; it reads its seed only here."""
        self._game.setInt("random_seed", int(self.np_random.integers(2**31)))
        self._game.loadROM(self._rom)

    def _observe(self) -> np.ndarray:
        whole = Image.fromarray(self._screens.max(axis=0))
        image = np.array(whole.resize((self._size, self._size), Image.Resampling.BILINEAR))
        return (image * _GREY).sum(-1, keepdims=True).astype(np.uint8) if self._grey else image
