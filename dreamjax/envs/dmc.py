"""The DeepMind Control Suite, as environments of Gymnasium.

Verified against dm_control 1.0.50 with mujoco 3.17. Pixels and films need OpenGL: from a screen, EGL or OSMesa.
"""

import ctypes.util
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import gymnasium
import numpy as np

from dreamjax._extras import extra
from dreamjax.envs import pixels

LIMIT = 1000  # simulated steps of an episode
CAMERAS = {"quadruped": 2}  # that see more than camera 0
HEIGHT, WIDTH = 240, 320  # of what `render` shows
_GL = "MUJOCO_GL"  # how to draw; MuJoCo and dm_control read it when they are imported


class CannotDraw(RuntimeError):
    """MuJoCo finds no OpenGL."""


def _cannot_draw(why: object) -> CannotDraw:
    tried = f"with {_GL}={os.environ[_GL]}" if _GL in os.environ else f"without {_GL}"
    return CannotDraw(
        f"MuJoCo cannot draw {tried}: {str(why).rstrip('.')}. Before Python starts, set {_GL}=egl (needs a GPU, or "
        f"Mesa's libegl1) or {_GL}=osmesa (needs libosmesa6); vectors of the Control Suite need neither, with "
        f"{_GL}=disabled"
    )


@contextmanager
def without_opengl() -> Iterator[None]:
    """Import what draws with MuJoCo: OpenGL is then opened with the first picture, and not with the package."""
    before = os.environ.pop(_GL, None)
    os.environ[_GL] = "disabled"
    try:
        yield
    finally:
        del os.environ[_GL]
        if before is not None:
            os.environ[_GL] = before


_NOTE = "; then pip install --no-deps dm_control, because its labmaze has no release for Python 3.13"

with extra("suites", "the Control Suite", _NOTE if sys.version_info >= (3, 13) else ""):
    try:
        import mujoco
    except ModuleNotFoundError:
        raise
    except Exception as error:  # without its library, OpenGL fails as ImportError, AttributeError, OSError
        raise (_cannot_draw(error) if _GL in os.environ else error) from None
    # dm_control would open OpenGL here, in every process, and for vectors too. It is opened with the first picture.
    with without_opengl():
        from dm_control import _render as opengl, suite


def _first_renderer(**size: int) -> Any:
    """Open OpenGL: load `opengl` anew, which replaces its `Renderer`, that is this function; make one of that size."""
    if _GL not in os.environ and sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        libraries = {"egl": "EGL", "osmesa": "OSMesa"}
        found = [name for name, library in libraries.items() if ctypes.util.find_library(library)]
        if not found:
            raise _cannot_draw("there is no screen, and neither libEGL nor libOSMesa")
        os.environ[_GL] = found[0]
    try:
        importlib.reload(opengl)
    except Exception as error:
        raise _cannot_draw(error) from None
    return opengl.Renderer(**size)


opengl.Renderer = _first_renderer


def check_drawing(size: int) -> None:
    """Open OpenGL for pictures of so many pixels a side, and close it again. Raises CannotDraw."""
    with _explained():
        opengl.Renderer(max_width=size, max_height=size).free()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except CannotDraw:
        raise
    except (RuntimeError, mujoco.FatalError) as error:  # where drawing is disabled, or the screen is not there
        raise _cannot_draw(error) from None


class ControlSuite(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """One task, such as "walker_walk": vectors by name (scalars without axes), or one picture named "image".

    Each action is repeated; its reward is the sum. No episode of the suite ends but by its time limit, which is a
    truncation, unless the task says that its future return is zero. With `render_mode="rgb_array"`, `render` returns a
    picture of 240 x 320.

    Raises: ValueError for settings that do not exist, CannotDraw for pixels where MuJoCo cannot draw.
    """

    def __init__(
        self,
        task: str,
        repeat: int = 2,
        observation: Literal["vectors", "pixels"] = "vectors",
        size: int = 64,
        render_mode: str | None = None,
    ) -> None:
        known = {f"{domain}_{name}": (domain, name) for domain, name in suite.ALL_TASKS}
        if task not in known:
            raise ValueError(f"unknown task {task!r}; there are {', '.join(sorted(known))}")
        if repeat < 1 or observation not in ("vectors", "pixels"):
            raise ValueError(f'need repeat >= 1 and observation "vectors" or "pixels", got {repeat}, {observation!r}')
        self.render_mode = pixels.checked_render_mode(render_mode)
        self._task, self._repeat, self._size = known[task], repeat, size
        self._pixels = observation == "pixels"
        self._load(None)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / self._game.control_timestep() / repeat)}
        if self._pixels:
            self._draw(size, size)  # before anybody waits for it
        shape = (size, size, 3)
        self.observation_space: Any = gymnasium.spaces.Dict(
            {"image": gymnasium.spaces.Box(0, 255, shape, np.uint8)}
            if self._pixels
            else {
                name: gymnasium.spaces.Box(-np.inf, np.inf, value.shape, np.float32)
                for name, value in _vectors(self._game.observation_spec()).items()
            }
        )
        action = self._game.action_spec()
        low, high = (np.broadcast_to(bound, action.shape) for bound in (action.minimum, action.maximum))
        self.action_space = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._load(seed)
        return self._observe(self._game.reset()), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = 0.0
        for _ in range(self._repeat):
            arrived = self._game.step(action)
            reward += arrived.reward or 0.0
            if arrived.last():
                break
        terminated = arrived.last() and arrived.discount == 0
        return self._observe(arrived), reward, terminated, arrived.last() and not terminated, {}

    def render(self) -> np.ndarray | None:
        """A picture for people, uint8 [240, 320, 3]. Raises CannotDraw without OpenGL."""
        return None if self.render_mode is None else self._draw(HEIGHT, WIDTH)

    def _draw(self, height: int, width: int) -> np.ndarray:
        with _explained():
            return self._game.physics.render(height, width, camera_id=CAMERAS.get(self._task[0], 0))

    def _load(self, seed: int | None) -> None:
        self._game = suite.load(*self._task, task_kwargs={"random": seed})

    def _observe(self, arrived: Any) -> dict[str, np.ndarray]:
        if self._pixels:
            return {"image": self._draw(self._size, self._size)}
        return {name: np.asarray(value, np.float32) for name, value in _vectors(arrived.observation).items()}


def _vectors(observation: Any) -> dict[str, Any]:
    """Give entries names that paths can hold, and leave out those of no size."""
    return {name.replace("/", "_"): value for name, value in observation.items() if np.prod(value.shape)}
