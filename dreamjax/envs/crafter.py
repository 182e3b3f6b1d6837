"""Crafter (Hafner 2022), as an environment of Gymnasium.

Verified against crafter 1.8.3, which speaks the interface of the old Gym.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from dreamjax._extras import extra
from dreamjax.envs import pixels

with extra("suites", "Crafter"):
    import crafter

LENGTH = 10_000  # steps of an episode
RENDERED = 288  # height and width of what `render` shows: 32 for each of the 9 x 9 fields
ACHIEVEMENTS: tuple[str, ...] = tuple(crafter.constants.achievements)


class Crafter(gymnasium.Env[np.ndarray, np.integer]):
    """Survive, gather and craft: uint8 [size, size, 3] of what is near and of the inventory, and 17 actions.

    The reward is 1 for every achievement when it is first unlocked in an episode, and 0.1 for every point of health
    gained or lost. Death terminates an episode; its length truncates it. At the end of an episode
    `info["achievements"]` says by name how often each of the 22 was reached, which `score` reads. With
    `render_mode="rgb_array"`, `render` returns a larger picture, 288 x 288.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012, the base class declares it so

    def __init__(self, size: int = 64, length: int = LENGTH, render_mode: str | None = None) -> None:
        if size < 9 or length < 1:
            raise ValueError(f"need size >= 9 (the view has 9 x 9 fields) and length >= 1, got {size}, {length}")
        self.render_mode = pixels.checked_render_mode(render_mode)
        self._size, self._length = size, length
        self._game: _Ordered | None = None
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(crafter.constants.actions))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._game is None:
            world = int(self.np_random.integers(2**31))
            self._game = _Ordered(size=(self._size, self._size), length=self._length, seed=world)
        return self._game.reset(), {}

    def step(self, action: np.integer) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self._game is None:
            raise gymnasium.error.ResetNeeded("step needs an episode that is running: call reset first")
        observation, reward, done, info = self._game.step(int(action))
        terminated = info["discount"] == 0
        last = {"achievements": info["achievements"]} if done else {}
        return observation, float(reward), terminated, done and not terminated, last

    def get_action_meanings(self) -> list[str]:
        """What each action is, such as "move_left"."""
        return list(crafter.constants.actions)

    def render(self) -> np.ndarray | None:
        """A picture for people, uint8 [288, 288, 3], or None; drawing it changes nothing in the game."""
        if self._game is None or self.render_mode is None:
            return None
        return self._game.drawn(RENDERED)


class _Ordered(crafter.Env):
    """Plays equal episodes from equal seeds in every process.

    Crafter keeps the creatures of an area in a set, whose order depends on where they lie in memory, and draws by
    number which of them vanishes.
    """

    def _balance_chunk(self, chunk: tuple[int, ...], objs: Collection[Any]) -> None:
        super()._balance_chunk(chunk, sorted(objs, key=lambda creature: tuple(creature.pos)))

    def drawn(self, size: int) -> np.ndarray:
        """Draw the game once more. At night the picture is noisy, from the numbers that the creatures move by."""
        state = self._world.random.get_state()
        picture = self.render((size, size))
        self._world.random.set_state(state)
        return picture


def score(episodes: Sequence[Mapping[str, float]]) -> float:
    """The Crafter score in percent: the geometric mean of the achievements' success rates, each moved by 1 %.

    exp(mean_i ln(1 + s_i)) - 1, where s_i is the percentage of episodes that reached achievement i at least once
    (Hafner 2022, equation 1). `episodes` are the `info["achievements"]` of their last steps.

    Raises: ValueError without episodes, KeyError where one lacks an achievement.
    """
    if not episodes:
        raise ValueError("the score needs at least one episode")
    rates = [100 * np.mean([episode[name] > 0 for episode in episodes]) for name in ACHIEVEMENTS]
    return float(np.expm1(np.mean(np.log1p(rates))))
