"""One pool of host environments for everything that acts: in worker processes that share memory, or in this process.

Workers only step environments. Those of a worker are divided into groups, so that the device acts for one group while
the worker steps another. A worker that dies or does not answer in time is replaced; what becomes of the episodes it
was at is decided by who asked for them: `acting.play` begins them again, `acting.vector` closes them as truncated.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from mmap import mmap
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, NamedTuple, Self

import cloudpickle
import gymnasium
import numpy as np

from dreamjax.acting.worker import Environments, Order, Reply, memory_layout, views
from dreamjax.envs.gymnasium import spec_from_spaces
from dreamjax.envs.host import InvalidStep, unflatten
from dreamjax.types import EnvSpec, PyTree

_START_TIMEOUT_S = 300.0  # for a worker to import what it needs and to make its first environment


class WorkerLost(RuntimeError):
    """A worker process died or did not answer in time. Another one has taken its place."""


class Answer(NamedTuple):
    """What came of the orders to one group."""

    group: int
    reply: Reply


class Pool:
    """Host environments of one kind; a context manager that ends their processes.

    Args:
      make_env: makes an environment; anything that cloudpickle can send, so lambdas and functions of a script will do.
      envs: how many environments; rounded up to fill all groups equally.
      workers: processes; 0 steps in this process. As many as there are cores, where environments are slow.
      groups: of each worker. With 2 the device acts for one while the worker steps the other; 1 steps all together.
      timeout: seconds after which a worker that has not answered counts as hung, and is killed and replaced.

    Raises: ValueError for a count that is not positive, or spaces that have no array form; RuntimeError or whatever
        `make_env` raises if no environment can be made.
    """

    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env],
        envs: int = 1,
        workers: int = 0,
        *,
        groups: int = 2,
        timeout: float = 120.0,
    ) -> None:
        if envs < 1 or workers < 0 or groups < 1 or timeout <= 0:
            raise ValueError(f"need envs >= 1, workers >= 0, groups >= 1 and timeout > 0, got {envs, workers, groups}")
        self.restarts = 0  # workers that died or hung, and were replaced
        workers = min(workers, envs)
        groups = min(groups, -(-envs // max(workers, 1))) if workers else 1
        self.size = -(-envs // (max(workers, 1) * groups))  # environments of a group
        kinds: Any = partial(_Process, timeout=timeout) if workers else _Here
        self._workers: list[_Process | _Here] = []
        try:
            for _ in range(max(workers, 1)):
                self._workers.append(kinds(make_env, groups, self.size))
            for worker in self._workers:
                worker.begin()
        except BaseException:
            self.close()
            raise
        self.groups = len(self._workers) * groups
        self._groups_each = groups
        self.observation_space: gymnasium.Space = self._workers[0].spaces[0]
        self.action_space: gymnasium.Space = self._workers[0].spaces[1]

    def __len__(self) -> int:
        """Count the environments."""
        return self.groups * self.size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def spec(self, max_steps: int) -> EnvSpec:
        """Describe what the environments emit and take, as `spec_from_spaces` does."""
        return spec_from_spaces(self.observation_space, self.action_space, max_steps)

    def observation(self, group: int) -> PyTree:
        """Return the newest observations of a group, arrays [K, ...]; they change when the group is stepped again."""
        worker, number = divmod(group, self._groups_each)
        return unflatten(self.observation_space, iter(self._workers[worker].arrays[number]))

    def send(self, group: int, orders: Sequence[Order]) -> None:
        """Order each environment of a group to reset, to step, or nothing; the answer comes from `receive`.

        A group takes its next orders after it has answered, or was lost with its worker.
        """
        worker, number = divmod(group, self._groups_each)
        self._workers[worker].send(number, orders)

    def receive(self) -> list[Answer]:
        """Wait until some groups have answered, and return their answers.

        The groups of a worker that died or hung come with a `WorkerLost` for every environment. The worker is replaced;
        all environments of these groups have to be reset.

        Raises: InvalidStep if an environment returns what its spaces do not declare.
        """
        asked = {number: worker for number, worker in enumerate(self._workers) if worker.waiting}
        if not asked:
            raise RuntimeError("no group has orders: send some first")
        answers: list[Answer] = []
        while not answers:
            processes = {number: worker for number, worker in asked.items() if isinstance(worker, _Process)}
            if not processes:
                return [Answer(number, worker.obey()) for number, worker in asked.items() if isinstance(worker, _Here)]
            remaining = min(worker.deadline for worker in processes.values()) - time.monotonic()
            ready = wait([worker.connection for worker in processes.values()], max(0.0, remaining))
            for number, worker in processes.items():
                answers += self._of(number, worker, worker.connection in ready)
        return answers

    def close(self) -> None:
        """End all environments and processes."""
        for worker in self._workers:
            worker.end()
        for worker in self._workers:
            worker.join()
        self._workers = []

    def _of(self, number: int, worker: "_Process", is_ready: bool) -> list[Answer]:
        first = number * self._groups_each
        try:
            if is_ready:
                return [Answer(first + group, reply) for group, reply in worker.receive()]
            if time.monotonic() < worker.deadline:
                return []
            lost = WorkerLost(f"a worker did not answer within {worker.patience:.0f} s, and was replaced")
        except (EOFError, ConnectionError) as error:
            lost = WorkerLost(f"a worker died ({worker.status()}), and was replaced")
            lost.__cause__ = error
        groups = list(worker.waiting)
        worker.replace()
        self.restarts += 1
        no = np.zeros(self.size, bool)
        reply = Reply(np.zeros(self.size, np.float32), no, no, {}, dict.fromkeys(range(self.size), lost))
        return [Answer(first + group, reply) for group in groups]


class _Here:
    """Environments in this process."""

    def __init__(self, make_env: Callable[[], gymnasium.Env], groups: int, size: int) -> None:
        self._environments = Environments(make_env, groups, size)
        self.spaces = self._environments.observation_space, self._environments.action_space
        layout, length = memory_layout(self.spaces[0], groups, size)
        self.arrays = views(bytearray(length), layout, size)
        self.waiting: deque[int] = deque()
        self._orders: Sequence[Order] = ()

    def begin(self) -> None:
        """There is nothing to wait for."""

    def send(self, group: int, orders: Sequence[Order]) -> None:
        self.waiting.append(group)
        self._orders = orders

    def obey(self) -> Reply:
        group = self.waiting.popleft()
        return self._environments.obey(group, self._orders, self.arrays[group])

    def end(self) -> None:
        self._environments.close()

    def join(self) -> None:
        """There is nothing to wait for."""


class _Process:
    """A worker process and the memory that its observations arrive in."""

    def __init__(self, make_env: Callable[[], gymnasium.Env], groups: int, size: int, timeout: float) -> None:
        self._start = cloudpickle.dumps((make_env, groups, size)), groups, size
        self._timeout = timeout
        self._memory = os.memfd_create("dreamjax") if hasattr(os, "memfd_create") else _unlinked_file()
        self.waiting: deque[int] = deque()  # groups that have orders, in the order in which they are obeyed
        self._launch()

    def begin(self) -> None:
        """Wait for the first environment; lay out the memory."""
        if not self.connection.poll(_START_TIMEOUT_S):
            raise RuntimeError(f"a worker did not make an environment within {_START_TIMEOUT_S:.0f} s")
        try:
            told = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(f"a worker died ({self.status()}) while it made its first environment") from error
        if isinstance(told, Exception):
            raise told
        self.spaces = told
        _, groups, size = self._start
        layout, length = memory_layout(self.spaces[0], groups, size)
        os.ftruncate(self._memory, length)
        self.arrays = views(mmap(self._memory, length), layout, size)
        self._is_ready = True
        self.connection.send(None)

    @property
    def patience(self) -> float:
        """Seconds that the next answer may take."""
        return self._timeout if self._is_ready else max(self._timeout, _START_TIMEOUT_S)

    @property
    def deadline(self) -> float:
        return self._since + self.patience

    def send(self, group: int, orders: Sequence[Order]) -> None:
        if not self.waiting:
            self._since = time.monotonic()
        self.waiting.append(group)
        try:
            self.connection.send((group, orders))
        except (BrokenPipeError, ConnectionResetError):
            return  # it died, which is found out where its answer is read

    def receive(self) -> list[tuple[int, Reply]]:
        told = self.connection.recv()
        self._since = time.monotonic()
        if isinstance(told, InvalidStep):
            raise told
        if not self._is_ready:  # of a replacement
            if isinstance(told, Exception):
                raise told
            self._is_ready = True
            return []
        self.waiting.remove(told[0])
        return [told]

    def status(self) -> str:
        """Say how the process ended."""
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}; its own message, if any, is above"

    def replace(self) -> None:
        """Kill the process and start another, which has the same memory."""
        self._process.kill()
        self._process.wait()
        self.connection.close()
        os.close(self._lifeline)
        self.waiting.clear()
        self._launch()
        self.connection.send(None)

    def end(self) -> None:
        self.connection.close()  # which ends it after what it is at

    def join(self) -> None:
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:  # it hangs
            self._process.kill()
            self._process.wait()
        os.close(self._lifeline)
        os.close(self._memory)

    def _launch(self) -> None:
        import socket

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
        message, *_ = self._start
        self.connection.send_bytes(message)


def _unlinked_file() -> int:

    file = tempfile.TemporaryFile()  # noqa: SIM115 - its descriptor outlives it
    return os.dup(file.fileno())
