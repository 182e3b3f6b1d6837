"""Environments of Gymnasium that step together, as the `Step`s of our loops."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import RescaleAction

from dreamjax.envs.gymnasium import numpy_dtype, spec_from_spaces
from dreamjax.types import Action, EnvSpec, PyTree, Space, Step

CRASHES = 3  # in a row, of an environment that never got to the end of an episode in between


class Lanes:
    """A Gymnasium vector environment with autoreset mode NEXT_STEP: a lane that is over ignores its next action.

    Steps come as numpy arrays [E, ...], checked against the spec. Continuous actions are cut to their bounds.
    """

    def __init__(self, environments: VectorEnv, max_steps: int) -> None:
        """Take over `environments`; `max_steps` is the step limit of an episode.

        Raises: ValueError for another autoreset mode, or spaces that `spec_from_spaces` refuses.
        """
        mode = environments.metadata.get("autoreset_mode")
        if mode not in (AutoresetMode.NEXT_STEP, AutoresetMode.NEXT_STEP.value):
            raise ValueError(f"need a vector environment with autoreset mode NEXT_STEP, got {mode}")
        self.environments = environments
        spaces = environments.single_observation_space, environments.single_action_space
        self.spec: EnvSpec = spec_from_spaces(*spaces, max_steps)
        self.crashes = 0  # environments that were made anew, see `Restarting`
        self.facts: dict[int, dict[str, float]] = {}  # by lane, see `step`
        self._over = np.zeros(len(self), bool)

    def __len__(self) -> int:
        return self.environments.num_envs

    def reset(self, seed: int | None = None) -> Step:
        """Open an episode in every lane; lane i gets the seed `seed + i`."""
        observation, _ = self.environments.reset(seed=seed)
        self.facts = {}
        no = np.zeros(len(self), bool)
        return self._arrive(observation, np.zeros(len(self), np.float32), ~no, no, no)

    def step(self, action: Action) -> Step:
        """Step all lanes; of those whose episode ends, `facts` then holds the finite numbers of their last `info`.

        Shapes: action [E, ...]. Raises: ValueError for NaN, or for what the spec does not allow.
        """
        opened = self._over
        observation, reward, terminated, truncated, info = self.environments.step(
            jax.tree.map(within, self.spec.action, action)
        )
        self.crashes += int(np.sum(info.get("crashed", 0)))
        over = terminated | truncated
        self.facts = {int(lane): dict(_numbers(info, int(lane))) for lane in np.flatnonzero(over)}
        # Some environments set both at a time limit, where a value may be bootstrapped.
        return self._arrive(observation, reward, opened, over, terminated & ~truncated)

    def close(self) -> None:
        self.environments.close()

    def _arrive(self, observation: PyTree, reward: np.ndarray, *flags: np.ndarray) -> Step:
        self._over = flags[1]
        reward = np.asarray(reward, np.float32)
        if not np.isfinite(reward).all():
            raise ValueError(f"the environments gave rewards that are not finite: {reward}")
        observation = jax.tree.map(self._checked, self.spec.observation, observation)
        return Step(observation, reward, *flags)  # type: ignore[arg-type]

    def _checked(self, space: Space, value: Any) -> np.ndarray:
        value = np.asarray(value)
        if value.shape != (len(self), *space.shape):
            raise ValueError(f"an observation of shape {value.shape} came where {len(self)} of {space} were declared")
        value = np.array(value, dtype=numpy_dtype(value.dtype))
        if value.dtype != space.dtype:
            raise ValueError(f"an observation of {value.dtype} came where {space} was declared")
        outside = ((value < space.low) | (value >= space.high)) if space.is_discrete else np.isnan(value)
        if outside.any():
            raise ValueError(f"an observation is NaN, or outside the bounds of {space}: {value}")
        return value


def within(space: Space, action: Any) -> np.ndarray:
    """Cut a continuous action to the bounds of its space."""
    action = np.asarray(action)
    return action if space.is_discrete else np.clip(action, space.low_array, space.high_array)


def _numbers(info: dict[str, Any], lane: int) -> Iterator[tuple[str, float]]:
    """The finite numbers of one lane, named "outer/inner" where they are nested; `_name` masks the lanes of `name`."""
    for name, values in info.items():
        if name.startswith("_") or (f"_{name}" in info and not info[f"_{name}"][lane]):
            continue
        if isinstance(values, dict):
            yield from ((f"{name}/{inner}", number) for inner, number in _numbers(values, lane))
            continue
        column = np.asarray(values)
        if column.ndim == 1 and column.dtype.kind in "biuf" and np.isfinite(column[lane]):
            yield name, float(column[lane])


class Restarting(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Make an environment anew where it throws, end its episode (truncated) and say so in `info["crashed"]`.

    The new one's seed is drawn by a generator that the last given seed started, so runs repeat and lanes differ.
    """

    def __init__(self, make: Callable[[], gymnasium.Env]) -> None:
        super().__init__(make())
        self._make = make
        self._seeds = np.random.default_rng()  # of environments that are made anew
        self._broken = False
        self._crashes = 0  # since an episode last came to its end
        self._seen: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        fresh = seed
        if seed is not None:
            self._seeds = np.random.default_rng(seed)
        while True:
            try:
                if self._broken:
                    with suppress(Exception):  # what is broken may not even close
                        self.env.close()
                    self.env = self._make()
                    self._broken = False
                    if seed is None:
                        fresh = int(self._seeds.integers(2**31))
                self._seen, info = self.env.reset(seed=fresh, options=options)
                return self._seen, info
            except Exception as error:
                self._crashed(error)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        try:
            self._seen, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:
            self._crashed(error)
            return self._seen, 0.0, False, True, {"crashed": 1}
        if terminated or truncated:
            self._crashes = 0
        return self._seen, reward, terminated, truncated, info

    def _crashed(self, error: Exception) -> None:
        """Count a crash; one that keeps happening is the user's to see."""
        self._crashes += 1
        self._broken = True
        if self._crashes >= CRASHES:
            raise error
        warnings.warn(f"an environment is made anew, because it threw {error!r}", stacklevel=3)


def make_lanes(make: Callable[[], gymnasium.Env], count: int, max_steps: int, processes: bool = False) -> Lanes:
    """Make lanes of `count` environments, here or each in a process of its own.

    Continuous actions are rescaled to [-1, 1]; an environment that throws is made anew.
    """

    def one() -> gymnasium.Env:
        environment = Restarting(make)
        return rescaled(environment)

    made = [one] * count
    if processes:
        # Not by forking, which copies the locks of threads that JAX has started, and so waits for ever.
        return Lanes(AsyncVectorEnv(made, context="spawn", autoreset_mode=AutoresetMode.NEXT_STEP), max_steps)
    return Lanes(SyncVectorEnv(made, autoreset_mode=AutoresetMode.NEXT_STEP), max_steps)


def rescaled(environment: gymnasium.Env) -> gymnasium.Env:
    """Rescale a continuous action with finite bounds to [-1, 1], one bound for all of its entries."""
    space = environment.action_space
    if isinstance(space, gymnasium.spaces.Box) and space.dtype.kind == "f" and space.is_bounded():
        return RescaleAction(environment, np.float32(-1), np.float32(1))
    return environment
