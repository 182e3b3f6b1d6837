"""Swing a pole up and hold it there, from pictures: the task of the iterative procedure of Ha & Schmidhuber 2018.

The article shows videos of a cart on a rail with a pole, but neither code nor numbers. The constants here are those of
a cart-pole swing-up that its first author published elsewhere; that it is the one of the videos is an inference.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.types import Array, Environment, EnvSpec, Key, PyTree, Space, Step

GRAVITY = 9.82
CART_MASS = 0.5
POLE_MASS = 0.5
POLE_LENGTH = 0.6
FRICTION = 0.1  # force per speed of the cart
FORCE = 10.0  # of the action 1
TIME_STEP = 0.05
TRACK = 2.4  # how far the cart may go from the middle
START_DEVIATION = 0.2  # standard deviation of each part of the first state, around the pole hanging down

FRAME = 64  # height and width of a frame, pixels
VIEW_WIDTH, VIEW_HEIGHT = 5.0, 1.8  # of what a frame shows, in units of length: squeezed, as the paper's frames are
CELLS = (8, 8, 16, 16)  # of position, velocity, angle and spin, in which `visited` counts
HELD_STEPS, HELD_REWARD = 50, 0.95  # at the end of an episode, and at least: within 26 degrees of upright
# Grey levels. Not on white or black: V's first updates drive its output to the background's level, and a sigmoid that
# has arrived at 1 or 0 no longer learns where the pole is.
BACKGROUND, RAIL, CART, POLE = 60.0, 90.0, 170.0, 255.0


class SwingUpState(NamedTuple):
    """Where cart and pole are. The pole's tip is at (position - length sin(angle), length cos(angle))."""

    position: Array  # [] float32, of the cart
    velocity: Array  # [] float32
    angle: Array  # [] float32, radians; 0 is upright, pi hangs down
    spin: Array  # [] float32, radians per unit of time
    time: Array  # [] int32, steps since reset


def swingup(
    max_steps: int = 200, observation: Literal["pixels", "state", "both"] = "pixels", upright: bool = False
) -> Environment:
    """Push a cart so that its hanging pole swings up and stays there: reward (cos(angle) + 1) / 2 in [0, 1] per step.

    The action is [] float32 in [-1, 1], the force on the cart in units of `FORCE`. Each step changes the velocities by
    the equations of motion, then the positions by the new velocities: the other way round, a pole that nobody pushes
    would gain so much energy that it swings up by itself. Leaving the track is a terminal end. "pixels" are
    [64, 64, 3] uint8 frames, as `draw_swingup` makes them; they show no velocity. "state" is [5] float32: position,
    velocity, cos and sin of the angle, spin. "both" is {"image": pixels, "state": state}. With `upright` episodes
    begin around the pole standing, instead of around the pole hanging.

    A controller that knows the state and both masses gets about 140 of 200, a random one 8.

    Raises: ValueError for max_steps < 1 or an unknown kind of observation.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    kinds: dict[str, tuple[Callable[[SwingUpState], PyTree], PyTree]] = {
        "pixels": (draw_swingup, Space((FRAME, FRAME, 3), np.uint8, 0, 256)),
        "state": (_observe, Space((5,))),
    }
    both = {"image": kinds["pixels"], "state": kinds["state"]}
    kinds["both"] = (
        lambda s: {name: f(s) for name, (f, _) in both.items()},
        {name: x for name, (_, x) in both.items()},
    )
    if observation not in kinds:
        raise ValueError(f"observation must be one of {', '.join(kinds)}, got {observation!r}")
    observe, space = kinds[observation]

    def arrive(state: SwingUpState) -> tuple[SwingUpState, Step]:
        is_first = state.time == 0
        is_terminal = (jnp.abs(state.position) > TRACK) & ~is_first
        return state, Step(
            observation=observe(state),
            reward=jnp.where(is_first, 0.0, (jnp.cos(state.angle) + 1) / 2),
            is_first=is_first,
            is_last=is_terminal | (state.time >= max_steps),
            is_terminal=is_terminal,
        )

    def reset(key: Key) -> tuple[SwingUpState, Step]:
        position, velocity, angle, spin = START_DEVIATION * jax.random.normal(key, (4,))
        return arrive(SwingUpState(position, velocity, angle + jnp.pi * (not upright), spin, jnp.int32(0)))

    def step(key: Key, state: SwingUpState, action: Array) -> tuple[SwingUpState, Step]:
        del key
        cart, pole = accelerations(state, FORCE * jnp.clip(action, -1.0, 1.0))
        velocity, spin = state.velocity + TIME_STEP * cart, state.spin + TIME_STEP * pole
        position, angle = state.position + TIME_STEP * velocity, state.angle + TIME_STEP * spin
        return arrive(SwingUpState(position, velocity, angle, spin, state.time + 1))

    return Environment(reset, step, EnvSpec(space, Space((), np.float32, -1.0, 1.0), max_steps))


def accelerations(state: SwingUpState, force: Array) -> tuple[Array, Array]:
    """Of the cart, and of the pole's angle, under a force on the cart. Shapes: [] -> ([], [])."""
    sin, cos = jnp.sin(state.angle), jnp.cos(state.angle)
    mass, moment = CART_MASS + POLE_MASS, POLE_MASS * POLE_LENGTH
    push = force - FRICTION * state.velocity
    whirl = moment * state.spin**2 * sin
    below = 4 * mass - 3 * POLE_MASS * cos**2
    cart = (-2 * whirl + 3 * POLE_MASS * GRAVITY * sin * cos + 4 * push) / below
    pole = (-3 * whirl * cos + 6 * mass * GRAVITY * sin + 6 * push * cos) / (POLE_LENGTH * below)
    return cart, pole


def _observe(state: SwingUpState) -> Array:
    return jnp.stack([state.position, state.velocity, jnp.cos(state.angle), jnp.sin(state.angle), state.spin])


def draw_swingup(state: SwingUpState) -> Array:
    """Draw cart, rail and pole: -> [64, 64, 3] uint8, grey. Edges are smooth, so that a small move changes a frame."""
    middles = (jnp.arange(FRAME) + 0.5) / FRAME - 0.5
    x, y = VIEW_WIDTH * middles[None, :], -VIEW_HEIGHT * middles[:, None]  # of each pixel, in units of length, y up
    pixel = (VIEW_WIDTH + VIEW_HEIGHT) / 2 / FRAME  # a width between that and the height of one

    def shade(frame: Array, distance: Array, level: float) -> Array:  # `distance` from the shape, negative inside
        cover = jnp.clip(0.5 - distance / pixel, 0.0, 1.0)
        return frame + cover * (level - frame)

    def box(middle: Array | float, width: float, height: float) -> Array:
        return jnp.maximum(jnp.abs(x - middle) - width / 2, jnp.abs(y) - height / 2)

    tip_x, tip_y = -POLE_LENGTH * jnp.sin(state.angle), POLE_LENGTH * jnp.cos(state.angle)
    along = jnp.clip(((x - state.position) * tip_x + y * tip_y) / POLE_LENGTH**2, 0.0, 1.0)
    from_pole = jnp.hypot(x - state.position - along * tip_x, y - along * tip_y)
    frame = shade(jnp.full((FRAME, FRAME), BACKGROUND), box(0.0, 2 * TRACK, 0.05), RAIL)
    frame = shade(frame, box(state.position, 0.5, 0.25), CART)
    frame = shade(frame, from_pole - 0.1, POLE)
    return jnp.broadcast_to(jnp.round(frame).astype(jnp.uint8)[:, :, None], (FRAME, FRAME, 3))


def visited(states: np.ndarray) -> float:
    """Return the share of the cells of the state space that were visited; many of them cannot be reached.

    Shapes: states [N, 5], as "state" observes them.
    """
    position, velocity, cos, sin, spin = states.T
    parts = zip((position, velocity, np.arctan2(sin, cos), spin), (TRACK, 6.0, np.pi, 15.0), CELLS, strict=True)
    index = [np.clip((x / limit + 1) / 2 * n, 0, n - 1).astype(int) for x, limit, n in parts]
    return float(len(np.unique(np.ravel_multi_index(index, CELLS))) / np.prod(CELLS))


def is_upright(states: Array) -> Array:
    """Whether the pole is within 26 degrees of upright. Shapes: [..., 5], as "state" observes them -> [...] bool."""
    return states[..., 2] > 2 * HELD_REWARD - 1


def score(step: Step) -> tuple[np.ndarray, np.ndarray]:
    """Score the first episode of each row: its return, and whether the pole stood throughout the last `HELD_STEPS`.

    Shapes: step [E, T, ...], of which T - 1 are the step limit -> [E] float32, [E] bool.
    """
    reward, is_last = np.asarray(step.reward), np.asarray(step.is_last)
    is_over = np.cumsum(is_last, 1) - is_last > 0  # what comes after the first episode
    held = (reward[:, -HELD_STEPS:] > HELD_REWARD).all(1) & ~is_over.any(1)
    return (reward * ~is_over).sum(1), held
