"""Craftax, an open world to survive in, as an `Environment`.

Source: Matthews et al. 2024, https://arxiv.org/abs/2402.16801. Verified against craftax 1.6.1.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from dreamjax._extras import extra
from dreamjax.envs.gymnax import assemble
from dreamjax.types import Action, Array, Environment, Key, PyTree, Space, State

NAMES = tuple(f"{game}-{shown}-v1" for game in ("Craftax", "Craftax-Classic") for shown in ("Symbolic", "Pixels"))
EVEN = 16  # pixels; the sides of pictures are filled up to a multiple, for encoders that halve them four times


def make(name: str) -> Environment:
    """Make "Craftax-Symbolic-v1", "Craftax-Pixels-v1" or one of "Craftax-Classic-Symbolic-v1" and "...-Pixels-v1".

    The first one with pixels takes half a minute, and writes its textures into the folder of the package.

    Raises: ModuleNotFoundError without the extra, ValueError for a name that Craftax does not know.
    """
    with extra("craftax", "Craftax"):
        from craftax.craftax_env import make_craftax_env_from_name
    if name not in NAMES:
        raise ValueError(f"Craftax has no environment {name!r}; there are {', '.join(NAMES)}")
    return from_craftax(make_craftax_env_from_name(name, auto_reset=False))


def from_craftax(environment: Any, params: Any = None) -> Environment:
    """Wrap an environment of Craftax, with the parameters `params` or its own; make it with `auto_reset=False`.

    Its time limit is a truncation, and terminal only if the player dies at the same step. Pictures become uint8, with
    black at the right and the lower edge that fills them up to multiples of 16: [63, 63, 3] becomes [64, 64, 3].

    Raises: ValueError as `from_gymnax`.
    """
    params = environment.default_params if params is None else params
    endless = params.replace(max_timesteps=np.iinfo(np.int32).max)
    space = environment.observation_space(params)
    is_picture = len(space.shape) == 3
    if is_picture:
        height, width, channels = space.shape
        space = Space((height + -height % EVEN, width + -width % EVEN, channels), np.uint8, 0, 256)

    def show(observation: Array) -> PyTree:
        return paint(observation) if is_picture else observation

    def reset(key: Key) -> tuple[PyTree, State]:
        observation, state = environment.reset_env(key, params)
        return show(observation), state

    def step(key: Key, state: State, action: Action) -> tuple[PyTree, State, Array, Array, Array]:
        observation, state, reward, is_over, _ = environment.step_env(key, state, action, params)
        terminated = environment.is_terminal(state, endless)
        return show(observation), state, reward, terminated, is_over & ~terminated

    return assemble(reset, step, space, environment.action_space(params), int(params.max_timesteps))


def paint(picture: Array) -> Array:
    """Bytes of a picture in [0, 1], filled up with black: [H, W, C] float32 -> [H', W', C] uint8."""
    height, width, _ = picture.shape
    return jnp.pad(jnp.round(255 * picture).astype(np.uint8), ((0, -height % EVEN), (0, -width % EVEN), (0, 0)))
