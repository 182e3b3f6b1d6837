"""The Behaviour Suite (Osband et al. 2020): 23 experiments in 468 settings, as environments of Gymnasium.

Verified against bsuite 0.3.6.
"""

from typing import Any

import gymnasium
import numpy as np

from dreamjax._extras import extra

with extra("bsuite", "the Behaviour Suite"):
    import bsuite
    from bsuite import sweep

SETTINGS: tuple[str, ...] = tuple(sweep.SWEEP)  # "bandit/0" to "umbrella_length/22"


class Bsuite(gymnasium.Env[np.ndarray, np.integer]):
    """One setting of an experiment, such as "catch/0": a small array of floats, a few actions.

    Every end is a termination, as the suite says. A seed draws the luck of the episodes from there on, and leaves alone
    what the setting fixes, such as which arm of a bandit is best. The suite scores an agent by what happened in its
    first `episodes`; at the end of each, `info["bsuite"]` has the sums that it keeps since the environment was made,
    such as "total_regret", and "episode", the number of the episode.

    The settings of mnist download their pictures when the first is made.

    Source: Osband et al. 2020, https://arxiv.org/abs/1908.03568.
    Raises: ValueError for an unknown setting; OSError if pictures cannot be downloaded.
    """

    metadata = {"render_modes": []}  # noqa: RUF012, the base class declares it so

    def __init__(self, setting: str) -> None:
        if setting not in SETTINGS:
            names = sorted({f"{known.partition('/')[0]}/0" for known in SETTINGS})
            raise ValueError(f"unknown setting {setting!r}; there are {', '.join(names)} and so on, 468 in all")
        try:
            self._game = bsuite.load(setting.partition("/")[0], sweep.SETTINGS[setting])
        except (OSError, EOFError) as error:
            if not setting.startswith("mnist"):
                raise
            raise OSError(
                f"{setting} could not be made: {error}. The settings of mnist need pictures that bsuite downloads to "
                "the folder mnist in the one for temporary files; where there is no network, copy the four files of "
                "MNIST (train-images-idx3-ubyte.gz ...) there, or choose another experiment"
            ) from error
        self.episodes = int(sweep.EPISODES[setting])
        self._begun, self._running = 0, False
        shape, actions = self._game.observation_spec().shape, self._game.action_spec().num_values
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.action_space = gymnasium.spaces.Discrete(actions)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or not self._begun:
            for part in _parts(self._game):
                part._rng = np.random.RandomState(self.np_random.integers(2**31))
        self._begun, self._running = self._begun + 1, True
        return _array(self._game.reset()), {}

    def step(self, action: np.integer) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self._running:  # the suite would open the next episode
            raise gymnasium.error.ResetNeeded("step needs an episode that is running: call reset first")
        arrived = self._game.step(int(action))
        terminated = arrived.last() and arrived.discount == 0
        self._running = not arrived.last()
        last = {"bsuite": {"episode": self._begun, **self._game.bsuite_info()}} if arrived.last() else {}
        return _array(arrived), float(arrived.reward), terminated, arrived.last() and not terminated, last


def _parts(game: Any) -> list[Any]:
    """List an environment and what it wraps, which draw from generators of their own."""
    parts = [game]
    while "_env" in vars(parts[-1]):
        parts.append(parts[-1]._env)
    return parts


def _array(arrived: Any) -> np.ndarray:
    return np.asarray(arrived.observation, np.float32)
