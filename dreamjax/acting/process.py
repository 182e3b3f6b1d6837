"""Where the environments of a pool are stepped: in this process, or in workers, which are watched and replaced."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from mmap import mmap
from multiprocessing.connection import Connection, wait
from typing import Any, Self

import cloudpickle
import gymnasium
import numpy as np

from dreamjax.acting.worker import Environments, Order, Reply, memory_layout, views
from dreamjax.envs.host import InvalidStep

START_TIMEOUT_S = 300.0  # for a worker to import what it needs and to make its first environment


def draw_without_screen() -> None:
    """Let pygame draw where there is no screen; else it prints that it finds none."""
    if not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


class WorkerLost(RuntimeError):
    """A worker process died or did not answer in time. Another one has taken its place."""


class Here:
    """Environments in this process."""

    def __init__(self, make_env: Callable[[], gymnasium.Env], groups: int, size: int) -> None:
        self._environments = Environments(make_env, groups, size)
        made = self._environments
        self.about = made.observation_space, made.action_space, made.name
        layout, length = memory_layout(made.observation_space, groups, size)
        self.arrays = views(bytearray(length), layout, size)
        self.waiting: deque[int] = deque()
        self._orders: Sequence[Order] = ()

    def begin(self) -> None:
        """There is nothing to wait for."""

    def send(self, group: int, orders: Sequence[Order]) -> None:
        self.waiting.append(group)
        self._orders = orders

    def receive(self) -> tuple[int, Reply]:
        """Step the environments. Raises InvalidStep for what they did not declare."""
        group = self.waiting.popleft()
        return group, self._environments.obey(group, self._orders, self.arrays[group])

    def end(self) -> None:
        self._environments.close()

    def join(self, deadline: float) -> None:
        """There is nothing to wait for."""


class Worker(ABC):
    """What steps environments somewhere else, and is watched."""

    about: tuple[gymnasium.Space, gymnasium.Space, str]  # the spaces of observations and actions, and the name
    arrays: list[list[np.ndarray]]  # of each group, [K, ...] each, where its observations arrive

    def __init__(self, make_env: Callable[[], gymnasium.Env], groups: int, size: int, timeout: float) -> None:
        self._start, self._groups, self._size = cloudpickle.dumps((make_env, groups, size)), groups, size
        self._timeout = timeout
        self.waiting: deque[int] = deque()  # groups that have orders, in the order in which they are obeyed
        self._is_ready = False
        self._since = time.monotonic()

    @classmethod
    @abstractmethod
    def ready(cls, workers: Sequence[Self], seconds: float) -> list[Self]:
        """Wait until some of these have something to say, at most so long."""

    @abstractmethod
    def begin(self) -> None:
        """Wait for the first environment. Raises what `make_env` does, RuntimeError if the worker dies."""

    @abstractmethod
    def receive(self) -> tuple[int, Reply] | None:
        """Read what the worker says: the reply of a group, or, from a replacement, that it is ready.

        Raises: WorkerLost if it has died, or is a replacement that cannot make an environment; InvalidStep from an
            environment.
        """

    @abstractmethod
    def replace(self) -> list[int]:
        """End the worker and start another; return the groups whose orders are lost."""

    @abstractmethod
    def end(self) -> None:
        """Ask it to end after what it is at."""

    @abstractmethod
    def join(self, deadline: float) -> None:
        """Wait for its end until the deadline; then kill it."""

    @abstractmethod
    def _order(self, group: int, orders: Sequence[Order]) -> None: ...

    @property
    def deadline(self) -> float:
        """When it counts as hung, on the monotonic clock."""
        return self._since + self._patience

    def send(self, group: int, orders: Sequence[Order]) -> None:
        if not self.waiting:
            self._since = time.monotonic()
        self.waiting.append(group)
        self._order(group, orders)

    def check(self) -> None:
        """Raise WorkerLost if the worker has not answered in time."""
        if time.monotonic() >= self.deadline:
            raise WorkerLost(f"a worker did not answer within {self._patience:g} s, and was replaced")

    def _heard(self, told: Any) -> Any:
        """Take note that the worker has said something. Returns and raises as `receive` does."""
        self._since = time.monotonic()
        was_ready, self._is_ready = self._is_ready, True
        if was_ready:
            self.waiting.popleft()
        if isinstance(told, InvalidStep):
            raise told
        if isinstance(told, Exception):
            raise WorkerLost(f"a worker could not make an environment ({told!r}), and was replaced") from told
        return told if was_ready else None

    @property
    def _patience(self) -> float:
        """Seconds that the next answer may take."""
        return self._timeout if self._is_ready else max(self._timeout, START_TIMEOUT_S)


class Process(Worker):
    """A worker process and the memory that its observations arrive in."""

    def __init__(self, make_env: Callable[[], gymnasium.Env], groups: int, size: int, timeout: float) -> None:
        super().__init__(make_env, groups, size, timeout)
        self._memory = os.memfd_create("dreamjax") if hasattr(os, "memfd_create") else _unlinked_file()
        self._launch()

    @classmethod
    def ready(cls, workers: Sequence[Self], seconds: float) -> list[Self]:
        speaking = wait([worker.connection for worker in workers], seconds)
        return [worker for worker in workers if worker.connection in speaking]

    def begin(self) -> None:
        if not self.connection.poll(START_TIMEOUT_S):
            raise RuntimeError(f"a worker did not make an environment within {START_TIMEOUT_S:.0f} s")
        try:
            told = self.connection.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError(f"a worker died ({self._status()}) while it made its first environment") from error
        if isinstance(told, Exception):
            raise told
        self.about = told
        layout, length = memory_layout(self.about[0], self._groups, self._size)
        os.ftruncate(self._memory, length)
        self.arrays = views(mmap(self._memory, length), layout, self._size)
        self._is_ready = True
        self._tell(None)

    def receive(self) -> tuple[int, Reply] | None:
        try:
            told = self.connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerLost(f"a worker died ({self._status()}), and was replaced") from error
        return self._heard(told)

    def replace(self) -> list[int]:
        lost = list(self.waiting)
        self._process.kill()
        self._process.wait()
        self.connection.close()
        os.close(self._lifeline)
        self.waiting.clear()
        self._launch()
        self._tell(None)
        return lost

    def end(self) -> None:
        self.connection.close()  # which ends it after what it is at

    def join(self, deadline: float) -> None:
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:  # it hangs
            self._process.kill()
            self._process.wait()
        os.close(self._lifeline)
        os.close(self._memory)

    def _order(self, group: int, orders: Sequence[Order]) -> None:
        self._tell((group, orders))

    def _status(self) -> str:
        """Say how the process ended."""
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}; its own message, if any, is above"

    def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        heard, self._lifeline = os.pipe()
        descriptors = (theirs.fileno(), self._memory, heard)
        command = [sys.executable, "-c", f"from dreamjax.acting import worker; worker.main{descriptors}"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        self._process = subprocess.Popen(command, pass_fds=descriptors, env=environment, stdin=subprocess.DEVNULL)
        theirs.close()
        os.close(heard)
        self.connection = Connection(ours.detach())
        self._is_ready = False
        self._since = time.monotonic()
        self._tell(self._start)

    def _tell(self, message: Any) -> None:
        try:
            if isinstance(message, bytes):
                self.connection.send_bytes(message)
            else:
                self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            return  # it died, which is found out where its answer is read


def _unlinked_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
