"""DoomTakeCover as a Gymnasium environment, on ViZDoom's own interface. Imports no JAX, for quick worker processes."""

import math
import os
import shlex
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import vizdoom

from dreamjax.envs import pixels

if TYPE_CHECKING:
    from dreamjax.types import EnvSpec

MAX_STEPS = 2100  # 60 seconds of 35 tics
_START_TIC = 14  # the monsters stand ready; the paper's copy of the scenario began here
_SEEDS = 2**31  # engine seeds lie in [0, 2**31)
_THRESHOLD = 1.0 / 3.0

# engine resolution, rows above the status bar, and what makes a [64, 64, 3] of them
_PIPELINES = {
    "clean": (vizdoom.ScreenResolution.RES_160X120, 100, pixels.clean),
    "published": (vizdoom.ScreenResolution.RES_640X480, 400, pixels.published),
}
_ENGINE_ERRORS = (
    vizdoom.ViZDoomUnexpectedExitException,
    vizdoom.ViZDoomErrorException,
    vizdoom.ViZDoomIsNotRunningException,
    vizdoom.MessageQueueException,
    vizdoom.SharedMemoryException,
)


class GameCrashed(RuntimeError):
    """The game process died. The environment starts a new one on the next `reset`, which may repeat the same seed."""


def take_cover_spec(max_steps: int = MAX_STEPS) -> "EnvSpec":
    """What `TakeCover` emits and takes, in the terms of `dreamjax.types`."""
    from dreamjax.types import EnvSpec, Space  # here, because it imports JAX and worker processes need none

    return EnvSpec(Space((pixels.SIZE, pixels.SIZE, 3), np.uint8, 0, 256), Space((), np.float32, -1.0, 1.0), max_steps)


class TakeCover(gymnasium.Env):
    """Stay alive under fire by stepping sideways: DoomTakeCover of Ha & Schmidhuber (2018).

    Observation: uint8 [64, 64, 3], without the status bar. Action: a float in [-1, 1]; below -1/3 steps left, above
    1/3 steps right, anything else stands still. One step is one tic of 1/35 s and is worth a reward of 1, so the
    return is the survival time. `terminated` means death, `truncated` that `max_steps` were survived; never both.
    The engine shows nothing once an episode has ended, so the last step returns the frame before it again.

    The game runs in a child process that the first `reset` starts and `close` ends; all it writes goes to a temporary
    folder. Scores are comparable only at equal `skill`: 4, the scenario's own, meets the published baselines, and 5
    is far harder. `info` holds `skill` and `health`.

    Args:
      pipeline: "clean" (160x120, crop, resize) or "published" (640x480 and the exact pipeline of the released code).
      skill: Doom's difficulty, 1 to 5.
      max_steps: tics after which an episode is truncated.
      render_mode: "rgb_array" makes `render` return the engine's whole picture, or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 35}  # noqa: RUF012, the base class declares it so

    def __init__(
        self, pipeline: str = "clean", skill: int = 4, max_steps: int = MAX_STEPS, render_mode: str | None = None
    ) -> None:
        if pipeline not in _PIPELINES:
            raise ValueError(f"pipeline must be one of {sorted(_PIPELINES)}, got {pipeline!r}")
        if not 1 <= skill <= 5:
            raise ValueError(f"skill must lie in 1..5, got {skill}")
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}")
        self.observation_space = gymnasium.spaces.Box(0, 255, (pixels.SIZE, pixels.SIZE, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (), np.float32)
        self.render_mode = pixels.checked_render_mode(render_mode)
        self.skill = skill
        self.max_steps = max_steps
        self._resolution, self._rows, self._pipeline = _PIPELINES[pipeline]
        self._game: vizdoom.DoomGame | None = None
        self._screen: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Starts an episode. Equal seeds and actions give equal frames; without a seed, one is drawn."""
        super().reset(seed=seed)
        engine_seed = int(self.np_random.integers(_SEEDS))
        try:
            return self._new_episode(engine_seed)
        except _ENGINE_ERRORS:  # the process died between two episodes: nothing is lost
            self.close()
        try:
            return self._new_episode(engine_seed)
        except _ENGINE_ERRORS as error:
            self.close()
            raise GameCrashed(f"ViZDoom cannot start an episode: {error}") from error

    def step(self, action: np.ndarray | float) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Plays one tic. Raises GameCrashed if the game process dies in it, ValueError for what is not a number."""
        game = self._game
        if game is None or game.is_episode_finished():
            raise RuntimeError("the episode has ended or none has begun; call reset() before step()")
        a = np.asarray(action, np.float32)
        if a.size != 1 or math.isnan(a.item()):
            raise ValueError(f"TakeCover takes one number in [-1, 1], got {action!r}")
        try:
            game.make_action([a.item() < -_THRESHOLD, a.item() > _THRESHOLD])
            terminated = game.is_player_dead()
            truncated = game.is_episode_finished() and not terminated
            observation, info = self._observe(game)
        except _ENGINE_ERRORS as error:
            self.close()
            raise GameCrashed("the game process died in the middle of an episode; reset() and repeat it") from error
        return observation, 1.0, terminated, truncated, info

    def render(self) -> np.ndarray | None:
        """The engine's picture with its status bar, uint8 [120, 160, 3] or [480, 640, 3]."""
        return None if self.render_mode is None or self._screen is None else self._screen.copy()

    def close(self) -> None:
        """Ends the game process and removes its folder. The next `reset` would start another."""
        if self._game is not None:
            self._end_game()
            self._game = None

    def _new_episode(self, engine_seed: int) -> tuple[np.ndarray, dict]:
        game = self._game or self._start()
        game.set_seed(engine_seed)
        game.new_episode()
        return self._observe(game)

    def _observe(self, game: vizdoom.DoomGame) -> tuple[np.ndarray, dict]:
        state = game.get_state()
        if state is not None:  # None once the episode has ended
            self._screen = state.screen_buffer
            self._observation = self._pipeline(self._screen, self._rows)
        health = game.get_game_variable(vizdoom.GameVariable.HEALTH)
        return self._observation.copy(), {"skill": self.skill, "health": health}

    def _start(self) -> vizdoom.DoomGame:
        folder = Path(tempfile.mkdtemp(prefix="dreamjax-vizdoom-"))
        script, pipe = _launcher(folder)
        self._game = game = vizdoom.DoomGame()
        self._end_game = weakref.finalize(self, _end, game, folder, pipe)  # also when nobody calls close()
        game.load_config(os.path.join(vizdoom.scenarios_path, "take_cover.cfg"))
        game.set_doom_config_path(str(folder / "vizdoom.ini"))
        game.set_vizdoom_path(str(script))
        game.set_doom_skill(self.skill)
        game.set_episode_start_time(_START_TIC)
        game.set_episode_timeout(self.max_steps)  # counted from the start tic, so every one of them can be played
        game.set_screen_resolution(self._resolution)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_window_visible(False)
        game.set_render_hud(True)  # drawn and then cropped away: without it the engine shows another field of view
        game.set_render_weapon(False)
        game.set_render_crosshair(False)
        game.set_render_decals(False)
        game.set_render_particles(False)
        game.init()
        return game


# The shell reads from a pipe that the Python process holds open. A line in it says that all is well; its end without a
# line says that the Python process was killed, and nobody but the shell is left to clean up.
_LAUNCHER = """#!/bin/sh
cd {folder} || exit 1
exec 3< owner
(read -r _ <&3 || {{ kill -9 $$; rm -rf {folder}; }}) < /dev/null > /dev/null 2>&1 &
exec {engine} "$@" 3<&-
"""


def _launcher(folder: Path) -> tuple[Path, int]:
    """Writes a script that runs ViZDoom's engine inside `folder`; also the descriptor of the pipe that it watches.

    The engine makes a folder in its working directory and has no option to put it elsewhere; changing the directory
    of this whole process, even for a moment, could mislead its other threads.
    """
    engine = Path(vizdoom.__file__).parent / "vizdoom"
    script = folder / "engine.sh"
    script.write_text(_LAUNCHER.format(folder=shlex.quote(str(folder)), engine=shlex.quote(str(engine))))
    script.chmod(0o700)
    if not os.access(script, os.X_OK):  # ViZDoom would not raise but crash this process
        raise PermissionError(f"{folder} does not allow programs to run; set TMPDIR to a folder that does")
    os.mkfifo(folder / "owner")
    return script, os.open(folder / "owner", os.O_RDWR)  # to open it for writing alone would wait for the reader


def _end(game: vizdoom.DoomGame, folder: Path, pipe: int) -> None:
    game.close()
    os.write(pipe, b"\n")
    os.close(pipe)
    shutil.rmtree(folder)
