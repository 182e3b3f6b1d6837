"""Where the environments of a pool are stepped: in this process, or in workers, which are watched and replaced."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from mmap import mmap
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import gymnasium

from dreamjax.acting.worker import Environments, Order, Reply, memory_layout, views
from dreamjax.envs.host import InvalidStep

_START_TIMEOUT_S = 300.0  # for a worker to import what it needs and to make its first environment


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


class Process:
    """A worker process and the memory that its observations arrive in."""

    def __init__(self, make_env: Callable[[], gymnasium.Env], groups: int, size: int, timeout: float) -> None:
        self._start, self._groups, self._size = cloudpickle.dumps((make_env, groups, size)), groups, size
        self._timeout = timeout
        self._memory = os.memfd_create("dreamjax") if hasattr(os, "memfd_create") else _unlinked_file()
        self.waiting: deque[int] = deque()  # groups that have orders, in the order in which they are obeyed
        self._launch()

    def begin(self) -> None:
        """Wait for the first environment; lay out the memory. Raises what `make_env` does, RuntimeError if it dies."""
        if not self.connection.poll(_START_TIMEOUT_S):
            raise RuntimeError(f"a worker did not make an environment within {_START_TIMEOUT_S:.0f} s")
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

    @property
    def deadline(self) -> float:
        """When it counts as hung, on the monotonic clock."""
        return self._since + self._patience

    def send(self, group: int, orders: Sequence[Order]) -> None:
        if not self.waiting:
            self._since = time.monotonic()
        self.waiting.append(group)
        self._tell((group, orders))

    def receive(self) -> tuple[int, Reply] | None:
        """Read what the worker says: the reply of a group, or, from a replacement, that it is ready.

        Raises: WorkerLost if it has died, or is a replacement that cannot make an environment; InvalidStep from an
            environment.
        """
        try:
            told = self.connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerLost(f"a worker died ({self._status()}), and was replaced") from error
        self._since = time.monotonic()
        was_ready, self._is_ready = self._is_ready, True
        if was_ready:
            self.waiting.popleft()
        if isinstance(told, InvalidStep):
            raise told
        if isinstance(told, Exception):
            raise WorkerLost(f"a worker could not make an environment ({told!r}), and was replaced") from told
        return told if was_ready else None

    def check(self) -> None:
        """Raise WorkerLost if the worker has not answered in time."""
        if time.monotonic() >= self.deadline:
            raise WorkerLost(f"a worker did not answer within {self._patience:g} s, and was replaced")

    def replace(self) -> list[int]:
        """Kill the process and start another, which has the same memory; return the groups whose orders are lost."""
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
        """Wait for its end until the deadline; then kill it."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:  # it hangs
            self._process.kill()
            self._process.wait()
        os.close(self._lifeline)
        os.close(self._memory)

    @property
    def _patience(self) -> float:
        """Seconds that the next answer may take."""
        return self._timeout if self._is_ready else max(self._timeout, _START_TIMEOUT_S)

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
