"""Workers on the machines of a Ray cluster: the pool is the same, its environments are stepped elsewhere.

    with dreamjax.acting.cluster.on_ray("auto"):
        returns = dreamjax.evaluate(agent, params, make_env, seeds, key, workers=64)

Every worker is an actor with a CPU of its own, spread over the nodes, that holds the environments of its groups. Orders
and observations are sent, about 12 KB a step for pictures of 64 x 64, instead of shared. An actor that dies, with its
node or alone, is replaced where there is a free CPU, and its episodes become what they become in any pool. dreamjax,
and whatever the environments need, has to be installed on every node. Ray starts, finds and watches the machines: see
`ray start --help`, or a cluster launcher.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from typing import Any, Self

import gymnasium
import numpy as np

from dreamjax._extras import extra
from dreamjax.acting.process import START_TIMEOUT_S, Process, Worker, WorkerLost
from dreamjax.acting.worker import Order, Reply, Served, memory_layout, views

_CONNECT_TIMEOUT_S = 10.0

_CPUS: ContextVar[float | None] = ContextVar("cpus", default=None)  # of each worker there; None for processes here


def connect(address: str, cpus: float = 1.0) -> None:
    """Let the workers of all pools that this thread makes from now on run on a Ray cluster.

    A process belongs to one cluster: where Ray is initialized already, `address` is not looked at.

    Args:
      address: of the cluster, as `ray.init` takes it: "auto" for the one that this machine belongs to, or "local" for
        one of this machine alone, which is started.
      cpus: of each worker; less than one lets several share a core.

    Raises: ModuleNotFoundError without the extra `ray`; ValueError if `cpus` is not positive; ConnectionError if there
        is no such cluster.
    """
    if cpus <= 0:
        raise ValueError(f"cpus must be positive, got {cpus}")
    ray = _ray()
    if not ray.is_initialized():
        heard = signal.getsignal(signal.SIGTERM)
        try:
            if ":" in address:  # Ray itself waits for minutes, and then ends the process
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
            # Modules beside a script are found as they are in processes of this machine.
            found = os.pathsep.join(path or os.getcwd() for path in sys.path)
            ray.init(address, runtime_env={"env_vars": {"PYTHONPATH": found}})
        except (OSError, ValueError) as error:  # a ConnectionError is an OSError
            raise ConnectionError(
                f"no Ray cluster at {address}: {_line(error)}. `ray start --head` starts one; on other machines, `ray "
                "start --address=HOST:PORT` joins it"
            ) from error
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, heard)  # Ray leaves at once, and a training would not be saved
    _CPUS.set(cpus)


@contextmanager
def on_ray(address: str, cpus: float = 1.0) -> Iterator[None]:
    """Do as `connect` does, for the pools that are made inside."""
    before = _CPUS.get()
    connect(address, cpus)
    try:
        yield
    finally:
        _CPUS.set(before)


def worker(make_env: Callable[[], gymnasium.Env], groups: int, size: int, timeout: float) -> Worker:
    """Start a worker where workers are to run."""
    kind: Any = Process if (cpus := _CPUS.get()) is None else partial(Actor, cpus)
    return kind(make_env, groups, size, timeout=timeout)


class Actor(Worker):
    """A worker that is an actor of Ray."""

    def __init__(
        self, cpus: float, make_env: Callable[[], gymnasium.Env], groups: int, size: int, timeout: float
    ) -> None:
        super().__init__(make_env, groups, size, timeout)
        self._cpus = cpus
        self._launch()

    @classmethod
    def ready(cls, workers: Sequence[Self], seconds: float) -> list[Self]:
        ray = _ray()
        first = {worker._calls[0]: worker for worker in workers}
        if not ray.wait(list(first), timeout=seconds)[0]:
            return []
        return [first[call] for call in ray.wait(list(first), num_returns=len(first), timeout=0)[0]]

    def begin(self) -> None:
        ray = _ray()
        try:
            told = ray.get(self._calls.popleft(), timeout=START_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:
            free = ray.available_resources().get("CPU", 0)
            raise RuntimeError(
                f"a worker did not make an environment within {START_TIMEOUT_S:.0f} s; it needs {self._cpus:g} CPU, "
                f"and the cluster has {free:g} free: ask for fewer workers, or give them less"
            ) from None
        except ray.exceptions.RayActorError as error:
            raise RuntimeError(f"a worker died ({_line(error)}) while it made its first environment") from error
        if isinstance(told, Exception):
            raise told
        self.about = told
        layout, length = memory_layout(self.about[0], self._groups, self._size)
        self.arrays = views(bytearray(length), layout, self._size)
        self._is_ready = True

    def receive(self) -> tuple[int, Reply] | None:
        ray = _ray()
        try:
            told = ray.get(self._calls.popleft())
        except ray.exceptions.RayTaskError:
            raise  # a fault of ours
        except ray.exceptions.RayError as error:  # it died, or the node that held the answer
            raise WorkerLost(f"a worker died ({_line(error)}), and was replaced") from error
        answer = self._heard(told)
        if answer is None:
            return None
        group, reply, observation = answer
        for array, arrived in zip(self.arrays[group], observation, strict=True):
            np.copyto(array, arrived)
        return group, reply

    def replace(self) -> list[int]:
        lost = list(self.waiting)
        self.waiting.clear()
        self._kill()
        self._launch()
        return lost

    def end(self) -> None:
        self._calls.append(self._actor.close.remote())

    def join(self, deadline: float) -> None:
        ray = _ray()
        ray.wait([self._calls[-1]], timeout=max(0.0, deadline - time.monotonic()))
        self._kill()

    def _order(self, group: int, orders: Sequence[Order]) -> None:
        self._calls.append(self._actor.obey.remote(group, orders))

    def _launch(self) -> None:
        ray = _ray()
        kind: Any = ray.remote(Served)
        self._actor = kind.options(num_cpus=self._cpus, scheduling_strategy="SPREAD").remote(self._start)
        self._calls: deque[Any] = deque([self._actor.describe.remote()])  # in the order in which they are answered
        self._is_ready = False
        self._since = time.monotonic()

    def _kill(self) -> None:
        ray = _ray()
        with suppress(ray.exceptions.RayError):  # it may have died with its node
            ray.kill(self._actor)


def _ray() -> Any:
    with extra("ray", "workers on a cluster"):
        import ray
    return ray


def _line(error: Exception) -> str:
    """Return the first line of an error of Ray, whose texts are long."""
    return str(error).strip().partition("\n")[0].rstrip(".")
