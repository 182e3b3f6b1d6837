"""Environments written in JAX, dreams among them, for the algorithms of stable-baselines3.

Verified against stable-baselines3 2.9.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax._extras import extra
from dreamjax.envs.gymnasium import to_gymnasium
from dreamjax.types import Action, Array, Environment, Key, Space, State, Step

with extra("sb3", "a vector environment for stable-baselines3"):
    from stable_baselines3.common.vec_env import VecEnv


class VectorEnv(VecEnv):
    """Copies of a pure environment, stepped together by `vmap` in one call of a compiled program.

    As stable-baselines3 wants it, a copy whose episode has ended shows the first observation of the next one; the last
    one is in `infos[i]["terminal_observation"]`, and `infos[i]["TimeLimit.truncated"]` tells an end that is not
    terminal. Copy i has the seed i, or s + i after `seed(s)`, from which all its episodes follow. Observations and
    actions are single arrays, in the spaces of `to_gymnasium`.

    Raises: ValueError for num_envs < 1, for an observation or action of several parts, or for classes that do not begin
        at 0.
    """

    def __init__(self, environment: Environment, num_envs: int) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        for kind, space in (("observation", environment.spec.observation), ("action", environment.spec.action)):
            if not isinstance(space, Space):
                raise ValueError(f"stable-baselines3 wants an {kind} that is a single array, got {space}")
        if environment.spec.action.is_discrete and np.any(environment.spec.action.low):
            raise ValueError(f"stable-baselines3 wants actions that begin at 0, got {environment.spec.action}")
        spaces = to_gymnasium(environment)
        self.render_mode = None
        super().__init__(num_envs, spaces.observation_space, spaces.action_space)
        self.seed(0)
        self._dtype = environment.spec.action.dtype
        self._keys: Key | None = None
        self._state: State = None
        self._chosen: Array | None = None

        def reset(key: Key) -> tuple[Key, State, Step]:
            key_next, key_reset = jax.random.split(key)
            return key_next, *environment.reset(key_reset)

        def step(key: Key, state: State, action: Action) -> tuple[Key, State, Array, Step]:
            key_next, key_step, key_reset = jax.random.split(key, 3)
            moved, arrived = environment.step(key_step, state, action)
            opened, first = environment.reset(key_reset)
            choose = lambda new, old: jnp.where(arrived.is_last, new, old)  # noqa: E731
            shown = choose(first.observation, arrived.observation)
            return key_next, jax.tree.map(choose, opened, moved), shown, arrived

        self._reset, self._step = jax.jit(jax.vmap(reset)), jax.jit(jax.vmap(step))

    def reset(self) -> np.ndarray:
        """Begin an episode in every copy. Shapes: -> [num_envs, ...]."""
        if self._keys is None or self._seeds[0] is not None:
            self._keys = jax.vmap(jax.random.key)(jnp.asarray(self._seeds, jnp.uint32))
            self._reset_seeds()
        self._keys, self._state, step = self._reset(self._keys)
        return self._observed(step.observation)

    def step_async(self, actions: np.ndarray) -> None:
        """Note the actions of the next step. Shapes: [num_envs, ...]."""
        self._chosen = jnp.asarray(actions, self._dtype)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Take the step. Shapes: -> observations [num_envs, ...], rewards and ends [num_envs], infos."""
        self._keys, self._state, shown, step = self._step(self._keys, self._state, self._chosen)
        shown, step = jax.device_get((shown, step))
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        for i in np.flatnonzero(step.is_last):
            infos[i] |= {"terminal_observation": self._observed(step.observation[i])}
            infos[i]["TimeLimit.truncated"] = not step.is_terminal[i]
        return self._observed(shown), np.array(step.reward), np.array(step.is_last), infos

    def _observed(self, observation: Array | np.ndarray) -> np.ndarray:
        """Copy what is observed into the dtype that is declared, which a dream's own may not be."""
        return np.array(observation, self.observation_space.dtype)

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute for each copy: that of this object, as they have none of their own."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Raise AttributeError: copies have no attributes of their own."""
        raise AttributeError(f"copies of a pure environment have no attributes, so that {attr_name} cannot be set")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Raise AttributeError: copies have no methods of their own."""
        raise AttributeError(f"copies of a pure environment have no methods, so that {method_name} cannot be called")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Say of each copy that it is not wrapped."""
        return [False] * len(list(self._get_indices(indices)))
