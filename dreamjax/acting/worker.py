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
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamjax.envs.host import (
    InvalidStep,
    Leaf,
    checked,
    flag,
    flatten,
    leaves,
    numbers,
    scalar_reward,
    to_action,
    unflatten,
)

Order = int | list[np.ndarray] | None  # reset with a seed (negative: without one), step with these leaves, or nothing


_INTERFACE = (
    "step must return (observation, reward, terminated, truncated, info), and reset(seed=...) (observation, info), as "
    "Gymnasium's do; an environment of the old Gym needs a wrapper, such as shimmy's GymV21CompatibilityV0"
)


class Reply(NamedTuple):
    """What came of the orders to K environments; the entries of those without orders mean nothing."""

    reward: np.ndarray  # [K] float32
    terminated: np.ndarray  # [K] bool
    truncated: np.ndarray  # [K] bool
    info: dict[int, dict[str, float]]  # finite numbers of the last info of episodes that ended, by environment
    errors: dict[int, Exception]  # of environments that raised; they are made anew at their next reset

    @property
    def is_terminal(self) -> np.ndarray:
        """Where the future return is 0: not at a time limit, for which some environments set both flags. [K] bool."""
        return self.terminated & ~self.truncated


class Environments:
    """G groups of K environments, stepped one after the other, whose observations go to arrays [K, ...] of a group."""

    def __init__(self, make_env: Callable[[], gymnasium.Env], groups: int, size: int) -> None:
        self._make = make_env
        self._envs: list[list[gymnasium.Env | None]] = [[None] * size for _ in range(groups)]
        self._envs[0][0] = first = make_env()
        self.observation_space, self.action_space = first.observation_space, first.action_space
        self.name = str(first.unwrapped)  # its class and its id
        self._observed, self._taken = leaves(self.observation_space), leaves(self.action_space)

    def obey(self, group: int, orders: Sequence[Order], observation: Sequence[np.ndarray]) -> Reply:
        """Carry out an order in each environment of a group.

        Raises: InvalidStep, naming the environment, for what was not declared or is not Gymnasium's interface.
        """
        size = len(orders)
        reply = Reply(np.zeros(size, np.float32), np.zeros(size, bool), np.zeros(size, bool), {}, {})
        for i, order in enumerate(orders):
            if order is None:
                continue
            try:
                self._obey(group, i, order, observation, reply)
            except InvalidStep as error:
                raise InvalidStep(f"{self._envs[group][i]}: {error}") from error
            except Exception as error:  # whatever an environment raises; the episode is lost, the others go on
                if _is_of_the_caller(error):
                    raise InvalidStep(f"{self._envs[group][i]}: {error!r}. {_INTERFACE}") from error
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
            if not isinstance(arrived, tuple) or len(arrived) != 2 or not isinstance(arrived[1], Mapping):
                raise InvalidStep(f"reset returned {_returned(arrived)}. {_INTERFACE}")
            value = arrived[0]
        else:
            if env is None or order is None:
                raise RuntimeError("an environment was stepped before it was reset")
            result = env.step(unflatten(self.action_space, map(to_action, self._taken, order)))
            if not isinstance(result, tuple) or len(result) != 5:
                raise InvalidStep(f"step returned {_returned(result)}. {_INTERFACE}")
            value, reward, terminated, truncated, info = result
            reply.reward[i] = scalar_reward(reward)
            reply.terminated[i], reply.truncated[i] = flag(terminated, "terminated"), flag(truncated, "truncated")
            if reply.terminated[i] or reply.truncated[i]:
                reply.info[i] = dict(numbers(info))
        for leaf, out, part in zip(self._observed, observation, flatten(self.observation_space, value), strict=True):
            out[i] = checked(leaf, part)

    def _discard(self, group: int, i: int) -> None:
        env, self._envs[group][i] = self._envs[group][i], None
        if env is not None:
            with contextlib.suppress(Exception):  # what is broken may not even close
                env.close()


class Served:
    """The environments of a worker, for who calls it from elsewhere: what `main` does, as methods."""

    def __init__(self, start: bytes) -> None:
        self.about: Any
        try:
            make_env, groups, size = pickle.loads(start)
            self._environments = Environments(make_env, groups, size)
            layout, length = memory_layout(self._environments.observation_space, groups, size)
            self._arrays = views(bytearray(length), layout, size)
            made = self._environments
            self.about = made.observation_space, made.action_space, made.name
        except Exception as error:  # it is told to who asks for the spaces
            self.about = _portable(error)

    def describe(self) -> tuple[spaces.Space, spaces.Space, str] | Exception:
        """Return the spaces and the name of the environments, or why there are none."""
        return self.about

    def obey(self, group: int, orders: Sequence[Order]) -> tuple[int, Reply, list[np.ndarray]] | InvalidStep:
        """Carry out the orders to a group: its number, its reply, and its observations [K, ...]."""
        try:
            return group, self._environments.obey(group, orders, self._arrays[group]), self._arrays[group]
        except InvalidStep as error:
            return error

    def close(self) -> None:
        self._environments.close()


def _returned(result: Any) -> str:
    return f"{len(result)} results" if isinstance(result, tuple) else f"one {type(result).__name__}"


def _is_of_the_caller(error: Exception) -> bool:
    """Whether an error was raised by who called an environment, such as a wrapper that cannot unpack what it got."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    callers = (__name__, "gymnasium.core", "gymnasium.wrappers", "gymnasium.utils.passive_env_checker")
    return isinstance(error, TypeError | ValueError | AssertionError) and where.startswith(callers)


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


def _portable(error: Exception) -> Exception:
    """Return an exception that can be sent to another process, with its traceback as a note."""
    text = "".join(traceback.format_exception(error)).rstrip()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # pickling runs code of the exception's class, which may do anything
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"Where it was raised:\n{text}")
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
    # So are those of schedulers, which often go to all processes of a job. A handler, unlike SIG_IGN, is not inherited
    # by a game.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda number, frame: None)
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    for descriptor in (connection_fd, memory_fd, lifeline):
        os.set_inheritable(descriptor, False)  # a game in a process of its own would keep them open
    _end_with(lifeline)
    with contextlib.suppress(EOFError, ConnectionError), Connection(connection_fd) as connection:
        start = connection.recv_bytes()
        try:
            make_env, groups, size = pickle.loads(start)
            environments = Environments(make_env, groups, size)
            layout, length = memory_layout(environments.observation_space, groups, size)
        except Exception as error:
            connection.send(_portable(error))
            return
        connection.send((environments.observation_space, environments.action_space, environments.name))
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
