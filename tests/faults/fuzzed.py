"""An environment of any spaces, that remembers everything and may misbehave once. Imports no JAX, for quick workers."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces


class Fault(NamedTuple):
    """What goes wrong, when, and with which part of an observation."""

    how: str
    at: int  # step of the episode, from 1 on
    part: int  # in the order of `parts`


def parts(space: spaces.Space, name: str = "") -> Iterator[tuple[str, spaces.Space]]:
    """List the parts of a space that are no dict or tuple, with their paths."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, one in named:
            yield from parts(one, f"{name}/{key}".lstrip("/"))
    else:
        yield name, space


class Fuzzed(gymnasium.Env):
    """Emits samples of its space, pays at random, and ends after `length` steps; `log` has what went in and out."""

    def __init__(
        self, observation: spaces.Space, action: spaces.Space, length: int, fault: Fault | None = None
    ) -> None:
        self.observation_space, self.action_space, self._length, self._fault = observation, action, length, fault
        self.log: list[tuple[Any, ...]] = []  # action, observation, reward of each step

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.time = 0
        self.log.append((None, self.observation_space.sample(), 0.0))
        return self.log[-1][1], {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.time += 1
        observation, reward = self.observation_space.sample(), float(self.np_random.normal())
        self.log.append((action, observation, reward))
        over = self.time == self._length
        result = (observation, reward, over, False, {})
        if self._fault is None or self._fault.at != self.time:
            return result
        if self._fault.how == "raise":
            self._fault = None
            raise LookupError("the simulator is gone")
        if self._fault.how == "four":
            return result[:2] + result[3:]
        if self._fault.how == "reward":
            return (observation, np.nan, over, False, {})
        name, space = list(parts(self.observation_space))[self._fault.part]
        return (_changed(observation, name.split("/") if name else [], space, self._fault.how), *result[1:])


def _changed(value: Any, path: list[str], space: spaces.Space, how: str) -> Any:
    """Replace the part at a path, or leave it out."""
    if not path:
        return _spoilt(value, space, how)
    key: Any = path[0] if isinstance(value, dict) else int(path[0])
    copy = dict(value) if isinstance(value, dict) else list(value)
    if how == "lost" and len(path) == 1:
        del copy[key]
    else:
        copy[key] = _changed(copy[key], path[1:], space, how)
    return copy if isinstance(value, dict) else tuple(copy)


def _spoilt(value: Any, space: spaces.Space, how: str) -> Any:
    array = np.array(value)
    is_float = array.dtype.kind == "f"
    if how in ("nan", "inf", "-inf"):
        array = array.astype(np.float64)
        array.flat[-1] = float(how)
    elif how == "outside":
        if is_float:
            assert isinstance(space, spaces.Box)
            array = array.astype(np.float64)
            array.flat[0] = 2.0 * abs(float(space.high.flat[0])) + 1.0  # infinity, where there is no bound
        else:
            array = array.astype(np.int64)
            array.flat[0] = {spaces.Discrete: 10**6, spaces.MultiBinary: 2}.get(type(space), 10**6)
    elif how == "dtype":
        array = np.zeros(array.shape, np.int64 if is_float else np.float32)
    elif how == "shape":
        array = array[None]
    else:
        assert how == "lost"
        return None
    return array
