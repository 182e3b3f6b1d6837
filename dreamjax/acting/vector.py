"""Host environments that step together for online training, as the `Step`s of our loops."""

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import numpy as np

from dreamjax.acting import seeds
from dreamjax.acting.pool import Pool, WorkerLost
from dreamjax.acting.worker import Order, Reply
from dreamjax.envs.host import flatten
from dreamjax.types import Action, EnvSpec, PyTree, Step

FAILURES = 3  # in a row, of an environment that never got to the end of an episode in between


class VectorEnvironment:
    """E environments; after the last step of an episode comes the first of the next, whatever the action.

    Where an environment raises, or its worker dies or hangs, its episode ends there, truncated, with the observation
    seen last; another environment goes on in its place, and `failures` counts it. Steps come as numpy arrays [E, ...].

    Raises: as `Pool` does.
    """

    def __init__(
        self,
        make_env: Callable[[], gymnasium.Env],
        envs: int,
        max_steps: int,
        workers: int = 0,
        timeout: float = 120.0,
        first: int = 0,
    ) -> None:
        """Make them in so many workers, or in this process.

        Of environments that are shared by several processes, these are the ones from number `first` on: the number is
        what tells their seeds apart.
        """
        if workers and envs % min(workers, envs):
            raise ValueError(f"{workers} workers cannot share {envs} environments equally: use a divisor")
        self._pool = Pool(make_env, envs, workers, groups=1, timeout=timeout)
        try:
            self.spec: EnvSpec = self._pool.spec(max_steps)
        except ValueError:
            self.close()
            raise
        self.first = first
        self.failures = 0  # environments that were made anew
        self.info: dict[int, dict[str, float]] = {}  # finite numbers of the episodes that ended in the last step
        self._entropy: tuple[int, ...] = ()
        self._recent = np.zeros(envs, int)  # failures in a row
        self._steps, self._over = np.zeros(envs, int), np.ones(envs, bool)
        self._lost = np.ones(envs, bool)  # to be reset with a seed: new, or made anew
        self._reward = np.zeros(envs, np.float32)
        self._ended, self._terminal = np.zeros((2, envs), bool)
        self._seen: PyTree = jax.tree.map(
            lambda space: np.zeros((envs, *space.shape), space.dtype), self.spec.observation
        )

    def __len__(self) -> int:
        return len(self._pool)

    @property
    def name(self) -> str:
        """Return what the environment calls itself: its class and its id, without wrappers."""
        return self._pool.name

    @property
    def restarts(self) -> int:
        """Count the workers that died or hung."""
        return self._pool.restarts

    def reset(self, seed: tuple[int, ...]) -> Step:
        """Open an episode in every environment, with training seeds drawn from `seed`, such as (seed, steps so far)."""
        self._entropy, self._over[:], self._lost[:] = seed, True, True
        return self.step(None)

    def step(self, action: Action) -> Step:
        """Step all environments, but for those whose episode is over: these are reset.

        `info` then holds the finite numbers that came with the last steps of episodes. Shapes: action [E, ...].

        Raises: InvalidStep for observations or rewards other than declared; RuntimeError if an environment keeps
            failing.
        """
        opened = self._over.copy()
        failed = self._exchange(self._orders(action))
        info = self.info
        while (again := failed & opened).any():  # a reset that failed is tried again, until it is given up
            orders: list[Order] = [self._seed(i) if again[i] else None for i in range(len(self))]
            failed = self._exchange(orders) | (failed & ~opened)
        self.info = info
        self._lost = failed
        self._steps = np.where(opened, 0, self._steps + 1)
        self._over = ~opened & (self._ended | failed | (self._steps >= self.spec.max_steps))
        self._recent[self._over & ~failed] = 0
        is_terminal = self._over & self._terminal & ~failed
        arrived: Any = self._reward.copy()
        flags: Any = (opened, self._over.copy(), is_terminal)
        return Step(jax.tree.map(np.copy, self._seen), arrived, *flags)

    def close(self) -> None:
        self._pool.close()

    def _orders(self, action: Action) -> list[Order]:
        leaves = None if action is None else flatten(self._pool.action_space, action, "action")
        return [self._seed(i) if self._over[i] else [leaf[i] for leaf in leaves or ()] for i in range(len(self))]

    def _seed(self, i: int) -> int:
        """Return the seed to reset an environment with; one that goes on draws its next episode by itself (-1)."""
        return seeds.training(*self._entropy, self.first + i, self.failures) if self._lost[i] else -1

    def _exchange(self, orders: list[Order]) -> np.ndarray:
        """Send orders, take in what comes of them, and say which environments failed. Shapes: -> [E] bool."""
        self.info = {}
        failed, size, waiting = np.zeros(len(self), bool), self._pool.size, 0
        for group in range(self._pool.groups):
            part = orders[group * size : (group + 1) * size]
            if any(order is not None for order in part):
                self._pool.send(group, part)
                waiting += 1
        while waiting:
            for answer in self._pool.receive():
                waiting -= 1
                observation = self._pool.observation(answer.group)
                for row in range(size):
                    i = answer.group * size + row
                    if row in answer.reply.errors:
                        self._fail(i, answer.reply.errors[row])
                        failed[i] = True
                    elif orders[i] is not None:
                        self._take(i, row, answer.reply, observation)
        return failed

    def _take(self, i: int, row: int, reply: Reply, observation: PyTree) -> None:
        """Take in what arrived from one environment."""
        if row in reply.info:
            self.info[i] = reply.info[row]
        self._reward[i] = reply.reward[row]
        self._ended[i] = reply.terminated[row] or reply.truncated[row]
        self._terminal[i] = reply.is_terminal[row]
        for kept, new in zip(jax.tree.leaves(self._seen), jax.tree.leaves(observation), strict=True):
            kept[i] = new[row]

    def _fail(self, i: int, error: Exception) -> None:
        """Count a failure; one that keeps happening is the user's to see."""
        self.failures += 1
        self._recent[i] += 1
        self._lost[i] = True
        self._reward[i] = 0.0
        if self._recent[i] >= FAILURES:
            raise RuntimeError(f"environment {i} failed {FAILURES} times in a row, at last with: {error}") from error
        what = str(error) if isinstance(error, WorkerLost) else f"it raised {error!r}"
        warnings.warn(f"environment {i} is made anew: {what}", stacklevel=5)
