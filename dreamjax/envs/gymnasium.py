"""Gymnasium on both sides: our pure environments for other people's agents, their environments for our loops.

`to_gymnasium` and `to_gymnasium_vector` wrap an `Environment` (a game written in JAX, a dream) so that any agent that
knows Gymnasium can train in it. `spec_from_gymnasium` describes their environments, which `acting` steps. Verified
against gymnasium 1.4, https://gymnasium.farama.org/api/env/.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded

from dreamjax.envs.host import Leaf, bounds, leaves, unflatten
from dreamjax.types import Action, Array, Environment, EnvSpec, Key, PyTree, Space, State, Step

SEED_LIMIT = 2**32  # a typed key keeps 32 bits of its seed, so a larger one would repeat a smaller one's episodes
RENDER_FPS = 30  # Gymnasium wants a number; a pure environment has no clock

Render = Callable[[State], Array]  # state -> [height, width, 3] uint8


def to_gymnasium(environment: Environment, render: Render | None = None) -> gymnasium.Env:
    """Wrap a pure environment as a `gymnasium.Env`, with `reset` and `step` compiled once each.

    `reset(seed=s)` starts a stream of episodes from `jax.random.key(s)`; later resets without a seed continue that
    stream, so the whole stream repeats from its seed. `terminated` is `is_terminal`, `truncated` is an end that is not
    terminal. Discrete scalars become `Discrete`, discrete arrays `MultiDiscrete` (`Box` if uint8), floats `Box` (of
    float32 where they are bfloat16), dicts `Dict` and tuples `Tuple`. With `render` (pure, state -> [height, width, 3]
    uint8) the render mode is "rgb_array".

    Raises: ValueError or TypeError for a spec that Gymnasium cannot express. The environment raises `ResetNeeded` when
    stepped before a reset or after an end, `InvalidAction` for an action outside its space, ValueError for a bad seed.
    """
    return _Single(environment, render)


def to_gymnasium_vector(
    environment: Environment, num_envs: int, render: Render | None = None
) -> gymnasium.vector.VectorEnv:
    """Wrap `num_envs` copies of a pure environment, stepped together by `vmap`, as a `gymnasium.vector.VectorEnv`.

    A copy whose episode has ended ignores its next action and opens a new episode instead, with reward 0 (auto-reset
    mode NEXT_STEP). `reset(seed=s)` gives copy i the seed s + i, and a sequence gives each its own; copy i then emits
    exactly what `to_gymnasium` emits from that seed. Observations are batched, [num_envs, ...]. Errors as in
    `to_gymnasium`.
    """
    return _Vector(environment, num_envs, render)


def spec_from_gymnasium(env: gymnasium.Env, max_steps: int) -> EnvSpec:
    """Describe a Gymnasium environment as an `EnvSpec`: `spec_from_spaces` of its two spaces."""
    return spec_from_spaces(env.observation_space, env.action_space, max_steps)


def spec_from_spaces(observation: spaces.Space, action: spaces.Space, max_steps: int) -> EnvSpec:
    """Describe Gymnasium's spaces as an `EnvSpec`; 64-bit values are described as 32-bit ones.

    Actions keep the bounds of each entry; those of an observation are the widest of all its entries.

    Raises: ValueError for max_steps < 1; ValueError, naming the part, for what has no form as an array of 32 bits.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    parts = unflatten(observation, (_from_leaf(leaf, widest=True) for leaf in leaves(observation)))
    return EnvSpec(parts, unflatten(action, map(_from_leaf, leaves(action))), max_steps)


def is_adapted(spec: EnvSpec) -> bool:
    """Whether every action is such as `envs.adapted` makes it: floats in [-1, 1], integers with the same bounds.

    An agent with such a spec acts in adapted environments, any other one in environments as they are.
    """

    def fits(space: Space) -> bool:
        uneven = isinstance(space.low, tuple) or isinstance(space.high, tuple)  # `adapted` makes a tuple of its entries
        return not uneven if space.is_discrete else (space.low, space.high) == (-1, 1)

    return all(map(fits, jax.tree.leaves(spec.action)))


class _Single(gymnasium.Env[Any, Any]):
    def __init__(self, environment: Environment, render: Render | None) -> None:
        self.metadata = {"render_modes": [] if render is None else ["rgb_array"], "render_fps": RENDER_FPS}
        self.render_mode = None if render is None else "rgb_array"
        self.observation_space = _to_space(environment.spec.observation)
        self.action_space = _to_space(environment.spec.action)
        self._action = environment.spec.action
        self._render = jax.jit(render) if render is not None else None
        self._key: Key | None = None
        self._state: State = None
        self._running = False

        def reset(key: Key) -> tuple[Key, State, Step]:
            key_next, key_reset, _ = jax.random.split(key, 3)
            return key_next, *environment.reset(key_reset)

        def step(key: Key, state: State, action: Action) -> tuple[Key, State, Step]:
            key_next, _, key_step = jax.random.split(key, 3)
            return key_next, *environment.step(key_step, state, action)

        self._reset, self._step = jax.jit(reset), jax.jit(step)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        _refuse_options(options)
        super().reset(seed=seed)
        if seed is not None:
            self._key = jax.random.key(_checked_seed(seed))
        elif self._key is None:
            self._key = jax.random.key(int(self.np_random.integers(SEED_LIMIT)))
        self._key, self._state, step = self._reset(self._key)
        self._running = True
        return _to_observation(self.observation_space, jax.device_get(step.observation)), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self._running:
            raise ResetNeeded("step needs an episode that is running: call reset first, and again after every end")
        action = _to_action(self._action, action, batch=())
        self._key, self._state, step = self._step(self._key, self._state, action)
        step = jax.device_get(step)
        terminated, is_last = bool(step.is_terminal), bool(step.is_last)
        self._running = not is_last
        observation = _to_observation(self.observation_space, step.observation)
        return observation, float(step.reward), terminated, is_last and not terminated, {}

    def render(self) -> Any:
        if self._render is None:
            return None
        if self._key is None:
            raise ResetNeeded("render needs a state: call reset first")
        return np.array(self._render(self._state))


class _Vector(gymnasium.vector.VectorEnv[Any, Any, np.ndarray]):
    def __init__(self, environment: Environment, num_envs: int, render: Render | None) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.metadata = {
            "autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP,
            "render_modes": [] if render is None else ["rgb_array"],
            "render_fps": RENDER_FPS,
        }
        self.render_mode = None if render is None else "rgb_array"
        self.num_envs = num_envs
        self.single_observation_space = _to_space(environment.spec.observation)
        self.single_action_space = _to_space(environment.spec.action)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        self._action = environment.spec.action
        self._render = jax.jit(jax.vmap(render)) if render is not None else None
        self._keys: Key | None = None
        self._state: State = None
        self._over: Any = None

        def reset(key: Key) -> tuple[Key, State, Step]:
            key_next, key_reset, _ = jax.random.split(key, 3)
            return key_next, *environment.reset(key_reset)

        def step_or_reset(key: Key, state: State, over: Array, action: Action) -> tuple[Key, State, Step]:
            key_next, key_reset, key_step = jax.random.split(key, 3)
            opened, moved = environment.reset(key_reset), environment.step(key_step, state, action)
            return key_next, *jax.tree.map(lambda new, old: jnp.where(over, new, old), opened, moved)

        self._reset, self._step = jax.jit(jax.vmap(reset)), jax.jit(jax.vmap(step_or_reset))

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        _refuse_options(options)
        seeds: Sequence[int] | None = None if isinstance(seed, int) else seed
        if isinstance(seed, int):
            super().reset(seed=seed)
            seeds = range(seed, seed + self.num_envs)
        elif seed is None and self._keys is None:
            seeds = self.np_random.integers(SEED_LIMIT, size=self.num_envs).tolist()
        if seeds is not None:
            if len(seeds) != self.num_envs:
                raise ValueError(
                    f"got {len(seeds)} seeds for {self.num_envs} environments: give one each, or an integer"
                )
            self._keys = jax.vmap(jax.random.key)(jnp.asarray([_checked_seed(one) for one in seeds], jnp.uint32))
        self._keys, self._state, step = self._reset(self._keys)
        self._over = step.is_last
        return _to_observation(self.observation_space, jax.device_get(step.observation)), {}

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self._keys is None:
            raise ResetNeeded("step needs running episodes: call reset first")
        actions = _to_action(self._action, actions, batch=(self.num_envs,))
        self._keys, self._state, step = self._step(self._keys, self._state, self._over, actions)
        self._over = step.is_last
        step = jax.device_get(step)
        observation = _to_observation(self.observation_space, step.observation)
        terminated = np.array(step.is_terminal)
        return observation, np.array(step.reward), terminated, np.array(step.is_last) & ~terminated, {}

    def render(self) -> tuple[np.ndarray, ...] | None:
        if self._render is None:
            return None
        if self._keys is None:
            raise ResetNeeded("render needs a state: call reset first")
        return tuple(np.array(self._render(self._state)))


def _checked_seed(seed: int) -> int:
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"seed must lie in [0, 2**32), got {seed}; a JAX key keeps 32 bits of it")
    return int(seed)


def _refuse_options(options: dict[str, Any] | None) -> None:
    if options:
        raise ValueError(f"a pure environment has no reset options, got {sorted(options)}; set them when it is made")


def _to_space(space: PyTree) -> spaces.Space:
    if isinstance(space, dict):
        return spaces.Dict({name: _to_space(one) for name, one in space.items()})
    if isinstance(space, tuple):
        return spaces.Tuple([_to_space(one) for one in space])
    if not isinstance(space, Space):
        raise TypeError(f"a spec is made of dicts, tuples and Space, got {type(space).__name__}")
    if not space.is_discrete:
        dtype = space.dtype if space.dtype.kind == "f" else np.dtype(np.float32)  # NumPy has no bfloat16
        return spaces.Box(space.low_array.astype(dtype), space.high_array.astype(dtype), space.shape, dtype.type)
    low, high = space.low_array, space.high_array
    if not np.isfinite([low, high]).all():
        raise ValueError(f"a discrete Space needs finite bounds to become a Gymnasium space, got {space}")
    if space.shape == ():
        return spaces.Discrete(int(high - low), start=int(low))
    if space.dtype == np.uint8:
        return spaces.Box(low.astype(np.uint8), (high - 1).astype(np.uint8), space.shape, np.uint8)
    return spaces.MultiDiscrete(high - low, start=low.copy())


def _from_leaf(leaf: Leaf, widest: bool = False) -> Space:
    low, high = (np.asarray(bound) for bound in bounds(leaf.space))
    if leaf.dtype.kind != "f":
        high = high.astype(np.int64) + 1
    if widest:
        low, high = low.min(), high.max()
    if not (low < high).all():
        raise ValueError(
            f"the space {leaf.name!r} can take one value only: {leaf.space}. Declare the bounds that it really has, or "
            "leave it out"
        )
    return Space(leaf.shape, leaf.dtype, low, high)


def _to_observation(space: spaces.Space, observation: PyTree) -> Any:
    """Copy numpy leaves into what a (batched) Gymnasium space contains; the copy is the caller's to change."""
    if isinstance(space, spaces.Dict):
        return {name: _to_observation(one, observation[name]) for name, one in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_to_observation(one, part) for one, part in zip(space.spaces, observation, strict=True))
    if isinstance(space, spaces.Discrete):
        return np.int64(observation)
    return np.array(observation, dtype=space.dtype)


def _to_action(space: PyTree, action: Any, batch: tuple[int, ...]) -> Action:
    """Check an action from outside against a `Space` pytree, and give it that pytree's structure and dtypes."""
    if isinstance(space, dict):
        if not isinstance(action, Mapping) or action.keys() != space.keys():
            raise InvalidAction(f"action must be a dict with the keys {sorted(space)}, got {action!r}")
        return {name: _to_action(space[name], action[name], batch) for name in space}
    if isinstance(space, tuple):
        if not isinstance(action, tuple) or len(action) != len(space):
            raise InvalidAction(f"action must be a tuple of {len(space)}, got {action!r}")
        parts = [_to_action(one, part, batch) for one, part in zip(space, action, strict=True)]
        return type(space)(*parts) if hasattr(space, "_fields") else tuple(parts)
    array = np.asarray(action)
    if array.shape != batch + space.shape:
        raise InvalidAction(f"action must have shape {batch + space.shape}, got {array.shape}")
    if space.is_discrete and array.dtype.kind not in "iub":
        raise InvalidAction(f"action must be integer in [{space.low}, {space.high}), got dtype {array.dtype}")
    cast = array.astype(space.dtype)
    checked = array if space.is_discrete else cast  # integers may wrap when cast; floats may round inside the bounds
    above = checked < space.high_array if space.is_discrete else checked <= space.high_array
    if not np.all((checked >= space.low_array) & above):
        raise InvalidAction(
            f"action {action!r} lies outside [{space.low}, {space.high}{')' if space.is_discrete else ']'}"
        )
    return cast
