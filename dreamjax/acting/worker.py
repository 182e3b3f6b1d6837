"""What steps host environments: in a worker process of its own, or in this one. Imports no JAX, to start quickly.

`main` is what a worker process of `acting.pool` runs. It ends when its orders end, and is killed by
the system when the process that started it is gone, even in the middle of a step that never returns.
"""

import contextlib
import fcntl
import math
import mmap
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

Order = int | list[np.ndarray] | None  # reset with a seed (negative: without one), step with these leaves, or nothing


class InvalidStep(ValueError):
    """An environment returned something other than what its spaces declare; repeating the episode would not help."""


class Leaf(NamedTuple):
    """One array of an observation or action."""

    name: str  # its path, "" where the space is a single one
    space: spaces.Space
    shape: tuple[int, ...]
    dtype: Any  # in 32 bits


class Reply(NamedTuple):
    """What came of the orders to K environments; of those that were not asked, nothing is meant."""

    reward: np.ndarray  # [K] float32
    terminated: np.ndarray  # [K] bool
    truncated: np.ndarray  # [K] bool
    info: dict[int, dict[str, float]]  # finite numbers of the last info of episodes that ended, by environment
    errors: dict[int, Exception]  # of environments that raised; they are made anew at their next reset


def leaves(space: spaces.Space, name: str = "") -> list[Leaf]:
    """List the arrays of a space. Raises ValueError for a kind of space that has no array form."""
    if isinstance(space, spaces.Dict):
        return [leaf for key, one in space.spaces.items() for leaf in leaves(one, f"{name}/{key}".lstrip("/"))]
    if isinstance(space, spaces.Tuple):
        return [leaf for i, one in enumerate(space.spaces) for leaf in leaves(one, f"{name}/{i}".lstrip("/"))]
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete):
        raise ValueError(f"{name or 'the space'} has no array form: {space}; convert it with a gymnasium wrapper")
    return [Leaf(name, space, space.shape or (), dtype_32(space.dtype))]


def dtype_32(dtype: Any) -> Any:
    """Return the dtype of at most 32 bits that stands for one of Gymnasium's; bytes and booleans stay as they are."""
    if np.issubdtype(dtype, np.floating):
        return np.dtype(np.float32)
    return np.dtype(dtype if dtype in (np.uint8, np.int8, np.bool_) else np.int32)


def unflatten(space: spaces.Space, arrays: Iterator[Any]) -> Any:
    """Give the arrays of `leaves`, in their order, the structure of a space: dicts and tuples."""
    if isinstance(space, spaces.Dict):
        return {key: unflatten(one, arrays) for key, one in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(unflatten(one, arrays) for one in space.spaces)
    return next(arrays)


def flatten(space: spaces.Space, value: Any, name: str = "") -> list[Any]:
    """Return the parts of a value in the order of `leaves`. Raises InvalidStep, naming the part, if one is missing."""
    if isinstance(space, spaces.Dict):
        if not hasattr(value, "keys") or set(value.keys()) != set(space.spaces):
            found = sorted(value.keys()) if hasattr(value, "keys") else type(value).__name__
            raise InvalidStep(f"{name or 'the observation'} was declared with keys {sorted(space.spaces)}, got {found}")
        return [x for key, one in space.spaces.items() for x in flatten(one, value[key], f"{name}/{key}".lstrip("/"))]
    if isinstance(space, spaces.Tuple):
        if not isinstance(value, tuple | list) or len(value) != len(space.spaces):
            raise InvalidStep(f"{name or 'the observation'} was declared as {len(space.spaces)} parts, got {value!r}")
        parts = enumerate(zip(space.spaces, value, strict=True))
        return [x for i, (one, part) in parts for x in flatten(one, part, f"{name}/{i}".lstrip("/"))]
    return [value]


def checked(leaf: Leaf, value: Any) -> np.ndarray:
    """Return one part of an observation as its space declares it. Raises InvalidStep, naming it, if it is not that.

    Floats may lie outside their bounds, and be -inf, which marks what is missing; NaN and +inf are refused.
    """
    what = f"observation {leaf.name!r}" if leaf.name else "the observation"
    array = np.asarray(value)
    if array.shape != leaf.shape:
        raise InvalidStep(f"{what} was declared as {leaf.space}, got shape {array.shape}")
    if array.dtype.kind not in "biuf" or dtype_32(array.dtype) != leaf.dtype:
        raise InvalidStep(f"{what} was declared as {leaf.space}, got dtype {array.dtype}")
    if array.dtype.kind == "f":
        if not (array < np.inf).all():  # which NaN is not either
            raise InvalidStep(f"{what} has values that are NaN or infinite: {array}")
    elif not isinstance(leaf.space, spaces.Box) or array.dtype != leaf.space.dtype or leaf.dtype != np.uint8:
        low, high = bounds(leaf.space)
        if (array < low).any() or (array > high).any():
            raise InvalidStep(f"{what} lies outside {leaf.space}: {array}")
    return array


def bounds(space: spaces.Space) -> tuple[Any, Any]:
    """Return the lowest and the highest values of a discrete space."""
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    return 0, 1


class Environments:
    """G groups of K environments, stepped one after the other, whose observations go to arrays [K, ...] of a group."""

    def __init__(self, make_env: Callable[[], gymnasium.Env], groups: int, size: int) -> None:
        self._make = make_env
        self._envs: list[list[gymnasium.Env | None]] = [[None] * size for _ in range(groups)]
        self._envs[0][0] = first = make_env()
        self.observation_space, self.action_space = first.observation_space, first.action_space
        self._leaves = leaves(self.observation_space)

    def obey(self, group: int, orders: Sequence[Order], observation: Sequence[np.ndarray]) -> Reply:
        """Carry out an order in each environment of a group. Raises InvalidStep for what was not declared."""
        size = len(orders)
        reply = Reply(np.zeros(size, np.float32), np.zeros(size, bool), np.zeros(size, bool), {}, {})
        for i, order in enumerate(orders):
            if order is None:
                continue
            try:
                self._obey(group, i, order, observation, reply)
            except InvalidStep:
                raise
            except Exception as error:  # whatever an environment raises; the episode is lost, the others go on
                reply.errors[i] = _portable(error)
                self._discard(group, i)
        return reply

    def close(self) -> None:
        for group in range(len(self._envs)):
            for i in range(len(self._envs[group])):
                self._discard(group, i)

    def _obey(self, group: int, i: int, order: Order, observation: Sequence[np.ndarray], reply: Reply) -> None:
        env = self._envs[group][i]
        if isinstance(order, int):
            if env is None:
                env = self._envs[group][i] = self._make()
            arrived = env.reset(seed=order if order >= 0 else None)
            if not isinstance(arrived, tuple) or len(arrived) != 2:
                raise InvalidStep(f"reset of {env} must return (observation, info), as Gymnasium's does")
            value = arrived[0]
        else:
            if env is None or order is None:
                raise RuntimeError("an environment was stepped before it was reset")
            result = env.step(_to_action(self.action_space, iter(order)))
            if not isinstance(result, tuple) or len(result) != 5:
                count = len(result) if isinstance(result, tuple) else type(result).__name__
                raise InvalidStep(
                    f"step of {env} must return (observation, reward, terminated, truncated, info), as Gymnasium's "
                    f"does; got {count}. Wrap an environment of the old Gym interface first"
                )
            value, reward, terminated, truncated, info = result
            reply.reward[i], reply.terminated[i], reply.truncated[i] = _reward(reward), terminated, truncated
            if terminated or truncated:
                reply.info[i] = dict(_numbers(info))
        for leaf, out, part in zip(self._leaves, observation, flatten(self.observation_space, value), strict=True):
            out[i] = checked(leaf, part)

    def _discard(self, group: int, i: int) -> None:
        env, self._envs[group][i] = self._envs[group][i], None
        if env is not None:
            with contextlib.suppress(Exception):  # what is broken may not even close
                env.close()


def memory_layout(space: spaces.Space, groups: int, size: int) -> tuple[list[list[tuple[int, Leaf]]], int]:
    """Place the observations of all groups in one block of memory: offset of each leaf, and bytes in all."""
    offset, layout = 0, []
    for _ in range(groups):
        placed = []
        for leaf in leaves(space):
            placed.append((offset, leaf))
            offset += -(-size * math.prod(leaf.shape) * leaf.dtype.itemsize // 64) * 64  # each begins a cache line
        layout.append(placed)
    return layout, max(offset, 1)


def views(memory: Any, layout: Sequence[Sequence[tuple[int, Leaf]]], size: int) -> list[list[np.ndarray]]:
    """Return the arrays [K, ...] of every group over a block of memory."""
    return [
        [
            np.frombuffer(memory, leaf.dtype, size * math.prod(leaf.shape), offset).reshape(size, *leaf.shape)
            for offset, leaf in placed
        ]
        for placed in layout
    ]


def _reward(reward: Any) -> float:
    value = np.asarray(reward, np.float64)
    if value.size != 1 or not np.isfinite(value).all():
        raise InvalidStep(f"a reward must be one finite number, got {reward!r}")
    return float(value.reshape(()))


def _numbers(info: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Find the finite numbers of an info, named "outer/inner" where they are nested."""
    for name, value in info.items() if isinstance(info, dict) else ():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, bool | int | float | np.generic | np.ndarray):
            array = np.asarray(value)
            if array.ndim == 0 and array.dtype.kind in "biuf" and np.isfinite(array):
                yield f"{prefix}{name}", float(array)


def _to_action(space: spaces.Space, arrays: Iterator[np.ndarray]) -> Any:
    """Give leaves the types that an environment declares; continuous ones are clipped to their bounds."""
    if isinstance(space, spaces.Dict):
        return {key: _to_action(one, arrays) for key, one in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_to_action(one, arrays) for one in space.spaces)
    array = next(arrays)
    if isinstance(space, spaces.Discrete):
        return np.int64(array)
    if isinstance(space, spaces.Box) and space.dtype.kind == "f":
        array = np.clip(array, space.low, space.high)
    return array.astype(space.dtype)


def _portable(error: Exception) -> Exception:
    """Return an exception that can be sent, with its traceback as a note."""
    text = "".join(traceback.format_exception(error)).rstrip()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # pickling runs code of the exception's class, which may do anything
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In the worker:\n{text}")
    return error


def _end_with(lifeline: int) -> None:
    """Let the system kill this process when the other end of a pipe is closed, whatever it is at then."""
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        if os.read(lifeline, 1) == b"":  # it was closed before anybody listened
            os._exit(1)


def main(connection_fd: int, memory_fd: int, lifeline: int) -> None:
    """Make environments, then obey orders until they end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt from the keyboard means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    for descriptor in (connection_fd, memory_fd, lifeline):
        os.set_inheritable(descriptor, False)  # a game in a process of its own would keep them open
    _end_with(lifeline)
    with contextlib.suppress(EOFError, ConnectionError), Connection(connection_fd) as connection:
        make_env, groups, size = pickle.loads(connection.recv_bytes())
        try:
            environments = Environments(make_env, groups, size)
            layout, length = memory_layout(environments.observation_space, groups, size)
        except Exception as error:
            connection.send(_portable(error))
            return
        connection.send((environments.observation_space, environments.action_space))
        connection.recv()  # the memory has its size now
        try:
            arrays = views(mmap.mmap(memory_fd, length), layout, size)
            while True:
                group, orders = connection.recv()
                try:
                    answer: Any = (group, environments.obey(group, orders, arrays[group]))
                except InvalidStep as error:
                    answer = error
                connection.send(answer)
        finally:
            environments.close()
