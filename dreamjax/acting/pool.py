"""One pool of host environments for everything that acts: in worker processes, on a cluster, or in this process.

Workers only step environments. Those of a worker are divided into groups, so that the device acts for one group while
the worker steps another. A worker that dies or does not answer in time is replaced; the caller decides what becomes of
the episodes under way: `acting.playing` begins them again, `acting.vector` closes them as truncated.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import gymnasium
import numpy as np

from dreamjax.acting import cluster
from dreamjax.acting.process import Here, Worker, WorkerLost
from dreamjax.acting.worker import Order, Reply
from dreamjax.envs.gymnasium import spec_from_spaces
from dreamjax.envs.host import InvalidStep, unflatten
from dreamjax.types import EnvSpec, PyTree

BATCH = 8  # environments for which the device acts at once; batches of other sizes round otherwise
_END_TIMEOUT_S = 10.0  # for all workers to finish what they are at when the pool is closed


class Answer(NamedTuple):
    """What came of the orders to one group."""

    group: int
    reply: Reply


class Pool:
    """Host environments of one kind; a context manager that ends their processes.

    Args:
      make_env: makes an environment; anything that cloudpickle can send, so lambdas and functions of a script will do.
      envs: how many environments; rounded up to fill all groups equally.
      workers: processes, or actors of a Ray cluster (`acting.cluster`); 0 steps in this process. As many as there are
        cores, where environments are slow.
      groups: of each worker. With 2 the device acts for one while the worker steps the other; 1 steps all together. If
        not given, 2 where each has a whole batch for the device.
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
        groups: int | None = None,
        timeout: float = 120.0,
    ) -> None:
        workers = min(workers, envs)
        groups = (2 if envs >= 2 * BATCH * workers else 1) if groups is None else groups
        for name, value, least in (("envs", envs, 1), ("workers", workers, 0), ("groups", groups, 1)):
            if value < least:
                raise ValueError(f"need {name} >= {least}, got {value}")
        if timeout <= 0:
            raise ValueError(f"need a timeout > 0, got {timeout}")
        self.make_env = make_env
        self.restarts = 0  # workers that died or hung, and were replaced
        self.use = 0  # how often `begin` took the pool over
        self._groups_each = min(groups, -(-envs // workers)) if workers else 1
        self.size = -(-envs // (max(workers, 1) * self._groups_each))  # environments of a group
        kinds: Any = partial(cluster.worker, timeout=timeout) if workers else Here
        self._workers: list[Worker | Here] = []
        try:
            for _ in range(max(workers, 1)):
                self._workers.append(kinds(make_env, self._groups_each, self.size))
            for worker in self._workers:
                worker.begin()
        except BaseException:
            self.close()
            raise
        self.groups = len(self._workers) * self._groups_each
        self.observation_space: gymnasium.Space
        self.action_space: gymnasium.Space
        self.name: str  # of the environment: its class and its id
        self.observation_space, self.action_space, self.name = self._workers[0].about

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

    def begin(self) -> int:
        """Take the pool over: wait for what it was still asked to do, forget it, and return the number of this use."""
        self.use += 1
        while any(worker.waiting for worker in self._workers):
            with suppress(InvalidStep):
                self.receive()
        return self.use

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
        asked = [(number, worker) for number, worker in enumerate(self._workers) if worker.waiting]
        if not asked:
            raise RuntimeError("no group has orders: send some first")
        answers: list[Answer] = []
        while not answers:
            watched = [worker for _, worker in asked if isinstance(worker, Worker)]
            remaining = min((worker.deadline for worker in watched), default=0.0) - time.monotonic()
            ready = type(watched[0]).ready(watched, max(0.0, remaining)) if watched else ()  # all are of one kind
            for number, worker in asked:
                if isinstance(worker, Here):
                    answers.append(Answer(*worker.receive()))
                else:
                    answers += self._of(number, worker, worker in ready)
        return answers

    def close(self) -> None:
        """End all environments and processes."""
        for worker in self._workers:
            worker.end()
        deadline = time.monotonic() + _END_TIMEOUT_S
        for worker in self._workers:
            worker.join(deadline)
        self._workers = []

    def _of(self, number: int, worker: Worker, is_ready: bool) -> list[Answer]:
        first = number * self._groups_each
        try:
            if not is_ready:
                worker.check()
                return []
            told = worker.receive()
            return [Answer(first + told[0], told[1])] if told else []
        except WorkerLost as error:
            lost = error
        groups = worker.replace()
        self.restarts += 1
        no = np.zeros(self.size, bool)
        reply = Reply(np.zeros(self.size, np.float32), no, no, {}, dict.fromkeys(range(self.size), lost))
        return [Answer(first + group, reply) for group in groups]
