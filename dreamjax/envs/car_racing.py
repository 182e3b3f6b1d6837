"""CarRacing as *World Models* sees it, on Gymnasium's own game. Imports no JAX, for quick worker processes.

Drawing takes nearly all of the time of Gymnasium's CarRacing-v3. Here the physics, the track and the rules are its own,
and so is the code that draws a polygon; what is saved is drawing what nobody sees. The frames are the same, byte for
byte (verified against gymnasium 1.2 to 1.4).
"""

import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import gymnasium
import numpy as np

from dreamjax._extras import extra
from dreamjax.envs import pixels

with extra("suites", "CarRacing"):
    import Box2D as Box2D  # Gymnasium says of both that its own extra is missing
    import pygame
    from gymnasium.envs.box2d import car_racing as game

if TYPE_CHECKING:
    from dreamjax.types import EnvSpec

MAX_STEPS = 1000  # 20 seconds of 50 frames
ROWS = 84  # of 96; below them is the bar with the speed, which would tell a model what it is to remember
_SEEDS = 2**31
_LOW, _HIGH = np.array([-1, 0, 0], np.float32), np.ones(3, np.float32)  # steering, gas, brake
_MARGIN = 2.0  # pixels of the window that an anti-aliased edge may reach beyond its corners


Engine = Literal["dreamjax", "gymnasium", "envpool"]


def car_racing_spec(max_steps: int = MAX_STEPS) -> "EnvSpec":
    """What `CarRacing` emits and takes, in the terms of `dreamjax.types`."""
    from dreamjax.types import EnvSpec, Space  # here, because it imports JAX and worker processes need none

    frame = Space((pixels.SIZE, pixels.SIZE, 3), np.uint8, 0, 256)
    return EnvSpec(frame, Space((3,), np.float32, _LOW, _HIGH), max_steps)


class CarRacing(gymnasium.Env[np.ndarray, np.ndarray]):
    """Drive along a track, seen from above: CarRacing of Ha & Schmidhuber (2018), with the rules of CarRacing-v3.

    Observation: uint8 [64, 64, 3], the 84 rows above the bar of Gymnasium's 96x96 picture, resized. Action: float32
    [3], steering in [-1, 1] (left to right), gas and brake in [0, 1]. The reward is -0.1 per step and 1000 / N for
    each of the N tiles of the track when the car first comes upon it. `terminated` means that a lap was finished
    (`info["lap_finished"]`), or that the car left the field, which costs 100; `truncated`, that `max_steps` were
    driven, or that `patience` was at its end.

    Args:
      engine: "dreamjax", which is Gymnasium's game drawn by us, or "gymnasium", the original; the frames are the same,
        the former takes less than half as long. Or "envpool", a copy of the game in C++: several times faster still,
        with edges that are not smooth and other tracks, so that scores are to be measured elsewhere.
      full_length: never terminate, so that every episode has `max_steps` steps, as the paper's recorded ones do.
      max_steps: after which an episode is truncated.
      patience: truncate an episode also after so many steps without a new tile; None waits to the end. It saves time
        where candidates that got lost are only to be told from others.
      render_mode: "rgb_array" makes `render` return a picture of 400 x 600, or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": game.FPS}  # noqa: RUF012, the base class declares it so

    def __init__(
        self,
        engine: Engine = "dreamjax",
        full_length: bool = False,
        max_steps: int = MAX_STEPS,
        patience: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        games: dict[str, Callable[[str | None], Any]] = {
            "dreamjax": _Game,
            "gymnasium": game.CarRacing,
            "envpool": _PooledGame,
        }
        if engine not in games:
            raise ValueError(f"engine must be one of {', '.join(games)}, got {engine!r}")
        if engine == "envpool" and (full_length or render_mode or max_steps > MAX_STEPS):
            raise ValueError(
                f"the engine envpool ends when it ends, after {MAX_STEPS} steps, and has no picture to render"
            )
        if full_length and patience:
            raise ValueError("with full_length episodes have max_steps steps; patience would end them before")
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}")
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be at least 1 or None, got {patience}")
        self.observation_space = gymnasium.spaces.Box(0, 255, (pixels.SIZE, pixels.SIZE, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(_LOW, _HIGH)
        self.render_mode = pixels.checked_render_mode(render_mode)
        self.full_length = full_length
        self.max_steps = max_steps
        self.patience = patience or max_steps
        self._game = games[engine](render_mode)
        self._left = 0  # steps of the episode
        self._lost = 0  # steps since the last new tile

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Starts an episode on a new track. Equal seeds and actions give equal frames."""
        super().reset(seed=seed)
        self._left, self._lost = self.max_steps, 0
        frame, info = self._game.reset(seed=int(self.np_random.integers(_SEEDS)))
        return pixels.clean(frame, ROWS), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Drives for 1/50 s. Raises ValueError for what is not three numbers, RuntimeError after the end."""
        if not self._left:
            raise RuntimeError("the episode has ended or none has begun; call reset() before step()")
        a = np.asarray(action, np.float64)
        if a.shape != (3,) or np.isnan(a).any():
            raise ValueError(f"CarRacing takes three numbers (steering, gas, brake), got {action!r}")
        frame, reward, terminated, _, info = self._game.step(np.clip(a, _LOW, _HIGH))
        terminated = terminated and not self.full_length
        self._lost = 0 if reward > 0 else self._lost + 1
        self._left = 0 if terminated or self._lost == self.patience else self._left - 1
        truncated = not (terminated or self._left)
        return pixels.clean(frame, ROWS), float(reward), terminated, truncated, info

    def render(self) -> np.ndarray | None:
        """Gymnasium's picture for people, uint8 [400, 600, 3], with its bar."""
        return None if self.render_mode is None else self._game.render()

    def close(self) -> None:
        """Ends the game."""
        self._game.close()


_BAR = game.WINDOW_H * (game.STATE_H - ROWS) // game.STATE_H  # its height; y points up until the picture is flipped
_ABOVE_BAR = (0, _BAR, game.WINDOW_W, game.WINDOW_H - _BAR)

# What all games of a thread draw on, one after the other: one canvas stays in the processor's cache, 32 do not.
_shared = threading.local()


class _Polygons(NamedTuple):
    """All that is drawn of a track, in the order in which it is drawn: P quadrilaterals."""

    x: np.ndarray  # [4, P] float64, in the game's units of length
    y: np.ndarray
    colours: list[Any]  # P of three numbers; a tile's array changes when the car comes upon it


class _Game(game.CarRacing):
    """Gymnasium's game, whose observation is the [84, 96, 3] above the bar, and which draws only what is in view."""

    car: Any
    surf: Any

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self._polygons: _Polygons | None = None  # of the track before
        return super().reset(seed=seed, options=options)

    def _render(self, mode: str) -> Any:
        if mode != "state_pixels":
            return super()._render(mode)
        if not hasattr(_shared, "canvas"):
            _shared.canvas = pygame.Surface((game.WINDOW_W, game.WINDOW_H))
        self.surf = _shared.canvas
        angle = -self.car.hull.angle
        # The view grows from the whole track to the car's surroundings during the first second.
        zoom = 0.1 * game.SCALE * max(1 - self.t, 0) + game.ZOOM * game.SCALE * min(self.t, 1)
        x, y = self.car.hull.position
        scroll = pygame.math.Vector2((-x * zoom, -y * zoom)).rotate_rad(angle)
        translation = (game.WINDOW_W / 2 + scroll[0], game.WINDOW_H / 4 + scroll[1])
        self._render_road(zoom, translation, angle)
        self.car.draw(self.surf, zoom, translation, angle, False)
        upright = pygame.transform.flip(self.surf.subsurface(_ABOVE_BAR), False, True)
        return self._create_image_array(upright, (game.STATE_W, ROWS))

    def _render_road(self, zoom: float, translation: tuple[float, float], angle: float) -> None:
        if self._polygons is None:
            self._polygons = _stack(self.road_poly, self.grass_color)
        right, up = zoom * np.cos(angle), zoom * np.sin(angle)  # how far a unit of length along x goes in the window
        if self._is_all_grass(right, up, translation):
            self.surf.fill(self.bg_color)
        else:
            field = [(1, 1), (1, -1), (-1, -1), (-1, 1)]
            corners = [(x * game.PLAYFIELD, y * game.PLAYFIELD) for x, y in field]
            self.surf.fill(0)
            self._draw_colored_polygon(self.surf, corners, self.bg_color, zoom, translation, angle, clip=False)
        x = right * self._polygons.x - up * self._polygons.y + translation[0]
        y = up * self._polygons.x + right * self._polygons.y + translation[1]
        beside = (x.max(0) < -_MARGIN) | (x.min(0) > game.WINDOW_W + _MARGIN)
        beside |= (y.max(0) < _BAR - _MARGIN) | (y.min(0) > game.WINDOW_H + _MARGIN)
        for i in np.flatnonzero(~beside):
            # Gymnasium's own arithmetic once more, so that no corner is rounded to another pixel than there.
            corners = list(zip(self._polygons.x[:, i].tolist(), self._polygons.y[:, i].tolist(), strict=True))
            colour = [int(c) for c in self._polygons.colours[i]]
            self._draw_colored_polygon(self.surf, corners, colour, zoom, translation, angle)

    def _is_all_grass(self, right: float, up: float, translation: tuple[float, float]) -> bool:
        """Whether the whole window lies on the field."""
        x = np.array([0, game.WINDOW_W, game.WINDOW_W, 0]) - translation[0]
        y = np.array([0, 0, game.WINDOW_H, game.WINDOW_H]) - translation[1]
        to_field = 1 / (right**2 + up**2)
        there = np.abs(to_field * np.array([right * x + up * y, right * y - up * x]))
        return bool(there.max() < game.PLAYFIELD - 1)


class _PooledGame:
    """EnvPool's game. Its seed belongs to its making, so that every episode has one of its own."""

    def __init__(self, render_mode: str | None) -> None:
        del render_mode
        with extra("envpool", "the engine envpool"):
            import envpool
        self._make = partial(envpool.make_gymnasium, "CarRacing-v3", num_envs=1, num_threads=1)

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict]:
        with warnings.catch_warnings():  # of Gymnasium, about the precision of the bounds
            warnings.simplefilter("ignore")
            self._one = self._make(seed=seed)
        frames, _ = self._one.reset()
        return frames[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        frames, rewards, terminated, _, _ = self._one.step(action[None].astype(np.float32))
        return frames[0], rewards[0], bool(terminated[0]), False, {}

    def close(self) -> None:
        pass


def _stack(road: list[tuple[list[tuple[float, float]], Any]], grass_colour: np.ndarray) -> _Polygons:
    """The patches of grass, then the road and its kerbs."""
    at = np.array([(x, y) for x in range(-20, 20, 2) for y in range(-20, 20, 2)])
    patch = np.array([(1, 0), (0, 0), (0, 1), (1, 1)])
    grass = game.GRASS_DIM * at[:, None] + game.GRASS_DIM * patch  # not of the sum, which is rounded otherwise
    corners = np.concatenate([grass, np.array([tile for tile, _ in road]).reshape(-1, 4, 2)])
    x, y = np.ascontiguousarray(corners.transpose(2, 1, 0))
    return _Polygons(x, y, [grass_colour] * len(grass) + [colour for _, colour in road])
