"""Environments in the manner of Brax, as our `Environment`s: Brax itself, and those that copied its `State`.

Verified against brax 0.14.2.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax._extras import extra
from dreamjax.types import Action, Environment, EnvSpec, Key, Space, State, Step


def make(name: str) -> Environment:
    """Make a registered environment, such as "ant", with its usual limit of 1000 steps.

    Raises: ModuleNotFoundError without the extra, ValueError for a name that is not registered.
    """
    with extra("brax", "Brax"):
        from brax import envs
    try:
        environment = envs.create(name, auto_reset=False)
    except KeyError as error:
        raise ValueError(f"Brax has no environment {name!r}; there are {', '.join(sorted(envs._envs))}") from error
    return from_brax(environment)


def from_brax(environment: Any) -> Environment:
    """Wrap one environment of Brax that counts its steps: `brax.envs.create(name, auto_reset=False)`.

    Its time limit is a truncation, not terminal. Actions lie in [-1, 1] and are cut to that.

    Raises: ValueError if the environment resets itself, is a batch of several, or has no time limit.
    """
    opened = jax.eval_shape(environment.reset, jax.random.key(0))
    if "truncation" not in opened.info:
        raise ValueError("the environment has no time limit: wrap it in brax.envs.training.EpisodeWrapper")
    if "first_obs" in opened.info:
        raise ValueError("the environment resets itself: make it with auto_reset=False")
    if opened.reward.shape:
        raise ValueError(f"need one environment, but this is a batch of {opened.reward.shape}: use jax.vmap instead")
    action = Space((environment.action_size,), np.float32, -1.0, 1.0)
    like = jax.eval_shape(environment.step, opened, jax.ShapeDtypeStruct(action.shape, action.dtype))
    observation = jax.tree.map(lambda x: Space(x.shape, np.float32), like.obs)
    max_steps = -(-environment.episode_length // environment.action_repeat)

    def arrive(state: State, is_first: bool) -> tuple[State, Step]:
        state = jax.tree.map(lambda kind, x: jnp.asarray(x, kind.dtype), like, state)
        is_last = state.done > 0
        return state, Step(
            observation=jax.tree.map(lambda x: x.astype(np.float32), state.obs),
            reward=state.reward.astype(np.float32),
            is_first=jnp.bool_(is_first),
            is_last=is_last,
            is_terminal=is_last & (state.info["truncation"] == 0),
        )

    def reset(key: Key) -> tuple[State, Step]:
        return arrive(environment.reset(key), True)

    def step(key: Key, state: State, action: Action) -> tuple[State, Step]:
        del key
        own = jax.tree.map(lambda x: x, state)  # Brax writes into the dicts of the state that it is given
        return arrive(environment.step(own, jnp.clip(action, -1.0, 1.0)), False)

    return Environment(reset, step, EnvSpec(observation, action, max_steps))
