"""Environments of gymnax, and of those that share its interface, as our `Environment`s.

Verified against gymnax 1.0.1.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax._extras import extra
from dreamjax.envs.host import dtype_32
from dreamjax.types import Action, Array, Environment, EnvSpec, Key, PyTree, Space, State, Step

Reset = Callable[[Key], tuple[PyTree, State]]  # key -> observation, state
Advance = Callable[[Key, State, Action], tuple[PyTree, State, Array, Array, Array]]
# key, state, action -> observation, state, reward, terminated, truncated


def make(name: str) -> Environment:
    """Make a registered environment, such as "CartPole-v1".

    Raises: ModuleNotFoundError without the extra, ValueError for a name that is not registered, OSError where its data
        cannot be downloaded.
    """
    with extra("gymnax", "gymnax"):
        import gymnax
    if name not in gymnax.registered_envs:
        raise ValueError(f"gymnax has no environment {name!r}; there are {', '.join(gymnax.registered_envs)}")
    try:
        return from_gymnax(*gymnax.make(name))
    except OSError as error:
        raise OSError(
            f"{name} could not be made: {error}. gymnax downloads its pictures; without a network, choose another"
        ) from error


def from_gymnax(environment: Any, params: Any = None) -> Environment:
    """Wrap an environment of gymnax, with the parameters `params` or its own; its automatic resets are not used.

    Its time limit is a truncation: last, and terminal only if the game ends at the same step. Continuous actions are
    taken in [-1, 1], cut to that, and rescaled to the bounds of the environment. Observations come in the declared
    dtype: integers in the widest of the declared bounds, floats without bounds, as some leave those they declare.

    Raises: ValueError for a kind of space that has no array form, for actions in an unbounded or integer box, and for
    an environment whose observations have not the declared shapes.
    """
    params = environment.default_params if params is None else params

    def step(key: Key, state: State, action: Action) -> tuple[PyTree, State, Array, Array, Array]:
        observation, state, reward, terminated, _ = environment.step_env(key, state, action, params)
        return observation, state, reward, terminated, environment.is_truncated(state, params)

    reset = partial(environment.reset_env, params=params)
    declared = environment.observation_space(params), environment.action_space(params)
    return assemble(reset, step, *declared, int(params.max_steps_in_episode))


def assemble(reset: Reset, step: Advance, observation_space: Any, action_space: Any, max_steps: int) -> Environment:
    """Make an `Environment` of functions and spaces in the manner of gymnax. Raises as `from_gymnax`."""
    given = _tree(action_space)
    spec = EnvSpec(jax.tree.map(_observed, _tree(observation_space)), jax.tree.map(_taken, given), max_steps)
    zeros = jax.tree.map(lambda space: jnp.zeros(space.shape, space.dtype), spec.action)
    key = jax.random.key(0)
    seen, opened = jax.eval_shape(reset, key)
    _, like, *_ = jax.eval_shape(step, key, opened, zeros)
    if (declared := _shapes(spec.observation)) != _shapes(seen):
        raise ValueError(f"the environment declares observations of shape {declared}, but makes {_shapes(seen)}")

    def arrive(observation: PyTree, state: State, reward: Any, *flags: Any) -> tuple[State, Step]:
        # One dtype for each leaf, whether it comes from a reset or a step, so that both fit in one `cond`.
        observation = jax.tree.map(lambda space, x: jnp.asarray(x, space.dtype), spec.observation, observation)
        state = jax.tree.map(lambda kind, x: jnp.asarray(x, kind.dtype), like, state)
        return state, Step(observation, jnp.asarray(reward, np.float32), *(jnp.asarray(x, np.bool_) for x in flags))

    def begin(key: Key) -> tuple[State, Step]:
        return arrive(*reset(key), 0, True, False, False)

    def advance(key: Key, state: State, action: Action) -> tuple[State, Step]:
        observation, state, reward, terminated, truncated = step(key, state, jax.tree.map(_rescale, given, action))
        return arrive(observation, state, reward, False, terminated | truncated, terminated)

    return Environment(begin, advance, spec)


def _tree(space: Any) -> PyTree:
    """Dicts and tuples of the spaces that have no parts."""
    parts = getattr(space, "spaces", None)
    if isinstance(parts, Mapping):
        return {name: _tree(part) for name, part in parts.items()}
    return tuple(map(_tree, parts)) if isinstance(parts, Sequence) else space


def _observed(space: Any) -> Space:
    if hasattr(space, "n"):
        return Space((), np.int32, 0, int(space.n))
    if not hasattr(space, "low"):
        raise ValueError(f"no array form for the space {space}; give the environment one of boxes and classes")
    dtype = np.dtype(space.dtype)
    if dtype.kind == "f":
        return Space(tuple(space.shape), dtype_32(dtype))
    low, high = int(np.min(space.low)), int(np.max(space.high)) + 1
    return Space(tuple(space.shape), dtype_32(dtype), low, high)


def _taken(space: Any) -> Space:
    if hasattr(space, "n"):
        return _observed(space)
    if np.dtype(space.dtype).kind != "f" or not np.isfinite([np.min(space.low), np.max(space.high)]).all():
        raise ValueError(f"actions must be classes, or floats with finite bounds, got {space}; wrap the environment")
    return Space(tuple(space.shape), np.float32, -1.0, 1.0)


def _rescale(space: Any, action: Array) -> Array:
    if hasattr(space, "n"):
        return action
    share = (jnp.clip(action, -1.0, 1.0) + 1.0) / 2.0
    low, high = (jnp.broadcast_to(jnp.asarray(bound, np.float32), space.shape) for bound in (space.low, space.high))
    return low + share * (high - low)


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)
