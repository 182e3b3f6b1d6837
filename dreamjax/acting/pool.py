"""A population of policies in host environments: games in worker processes, one model that sees for all of them.

Workers only step games. The frames of all that are ready are encoded and remembered in batches on the device, while the
workers step others, so that neither waits long for the other.
"""

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, NamedTuple, Self

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import rollout
from dreamjax.acting.play import Played
from dreamjax.acting.worker import Order, serve
from dreamjax.envs.lanes import within
from dreamjax.rollout import Returns
from dreamjax.storage.episodes import Episode
from dreamjax.types import Action, AnyPolicy, Array, Key, LatentModel, Params, Space, State, Step

FRESH = 2**30  # seeds from here on are those of no generation

_CRASHES = 3  # of one worker, without an episode that it brought to its end in between
_BANKS = 2  # per worker; it steps the games of one while the device acts for the other


class Job(NamedTuple):
    """An episode to play."""

    candidate: int  # which row of the population plays it
    seed: int  # of the game


class Ended(NamedTuple):
    """An episode that was played."""

    job: int  # its index
    played: Played
    episode: Episode | None  # what was seen and done, if it was to be recorded


class GamePool:
    """Worker processes with games of one kind; a context manager that ends them.

    Args:
      make_env: importable by new processes, a function of a module or a partial of one.
      frame: what the games show, one array.
      workers: processes; as many as there are cores, where games are slow.
      lanes: games that a worker steps before it hands their frames over. It has twice as many.
    """

    def __init__(self, make_env: Callable[[], gymnasium.Env], frame: Space, workers: int = 2, lanes: int = 16) -> None:
        if workers < 1 or lanes < 1:
            raise ValueError(f"need workers >= 1 and lanes >= 1, got {workers} and {lanes}")
        self.restarts = 0
        self._is_playing = False
        # Without threads and devices of this process, which a fork would copy.
        self._context = multiprocessing.get_context("forkserver")
        self._make_env, self._frame, self._lanes, self._count = make_env, frame, lanes, workers
        self._workers = [self._start() for _ in range(workers)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def play(
        self,
        model: LatentModel,
        policy: AnyPolicy,
        params: tuple[Params, Params],
        key: Key,
        jobs: Sequence[Job],
        record: bool = False,
    ) -> Iterator[Ended]:
        """Play one episode per job; yield each that ends.

        `params` are those of the model and of the policies, stacked [N, ...]. An episode depends on them, its job and
        `key`, not on what is played beside it, as far as the device rounds alike in batches of different sizes, which
        CPUs do. A worker that dies is replaced, and its episodes begin again. Continuous actions are cut to the bounds
        of the model's spec; to record, they are also rounded to float16 before they are played.

        Raises: RuntimeError if a worker dies three times without having ended an episode, or if another `play` of this
            pool is under way.
        """
        if self._is_playing:
            raise RuntimeError("this pool is playing; take all episodes of one play, or close it, before the next")
        self._is_playing = True
        self._workers = self._workers or [self._start() for _ in range(self._count)]
        act = partial(_act, model, policy, *params, key)
        nothing = jax.tree.map(
            lambda leaf: jnp.repeat(leaf[None], self._lanes, 0),
            rollout.agent(model, params[0], policy).start(jax.tree.map(lambda leaf: leaf[0], params[1])),
        )
        waiting = iter(range(len(jobs)))
        clean = False
        try:
            for worker in self._workers:
                worker.crashes, worker.banks = 0, []
            for number in range(_BANKS):  # all workers have something to do before any has more
                for worker in self._workers:
                    bank = _Bank(jobs, nothing, record, worker.frames[number], model.spec.action)
                    worker.banks.append(bank)
                    worker.send(number, [bank.open(lane, next(waiting, None)) for lane in range(self._lanes)])
            while any(bank.busy for worker in self._workers for bank in worker.banks):
                ready = wait([worker.connection for worker in self._workers])
                for worker in [worker for worker in self._workers if worker.connection in ready]:
                    try:
                        number, *outcome = worker.connection.recv()
                    except (EOFError, OSError):
                        self._replace(worker)
                        continue
                    bank = worker.banks[number]
                    ended, orders = bank.advance(act, waiting, *outcome)
                    worker.send(number, orders)
                    worker.crashes = 0 if ended else worker.crashes
                    yield from ended
            clean = True
        finally:
            self._is_playing = False
            if not clean:  # workers may be at something that nobody waits for any more
                self._stop()

    def _stop(self) -> None:
        for worker in self._workers:
            worker.connection.close()  # which ends it after what it is at
        for worker in self._workers:
            worker.process.join()
        self._workers = []

    def _start(self) -> "_Worker":
        shape, dtype = (self._lanes, *self._frame.shape), np.dtype(self._frame.dtype)
        buffers = [self._context.RawArray("B", int(np.prod(shape)) * dtype.itemsize) for _ in range(_BANKS)]
        ours, theirs = self._context.Pipe()
        arguments = (theirs, self._make_env, buffers, shape, dtype.str)
        process = self._context.Process(target=serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return _Worker(ours, process, [np.frombuffer(buffer, dtype).reshape(shape) for buffer in buffers])

    def _replace(self, worker: "_Worker") -> None:
        """Start a worker anew, with the episodes that it was at."""
        worker.crashes += 1
        self.restarts += 1
        if worker.crashes == _CRASHES:
            seeds = [bank.jobs[job].seed for bank in worker.banks for job in bank.playing if job is not None]
            raise RuntimeError(
                f"a worker died {_CRASHES} times while it played the seeds {seeds} (its own message, if any, is above)"
            )
        worker.connection.close()
        worker.process.join()
        new = self._start()
        worker.connection, worker.process, worker.frames = new.connection, new.process, new.frames
        for number, bank in enumerate(worker.banks):
            bank.frames = worker.frames[number]
            worker.send(number, [bank.open(lane, job) for lane, job in enumerate(bank.playing)])


def population_returns(
    pool: GamePool,
    model: LatentModel,
    policy: AnyPolicy,
    params: tuple[Params, Params],
    key: Key,
    seeds: np.ndarray,
) -> Returns:
    """Play the games `seeds` [N, E] with a population [N, ...]: -> [N, E]. `params` as in `GamePool.play`."""
    jobs = [Job(candidate, int(seed)) for candidate, row in enumerate(seeds) for seed in row]
    total, steps = np.zeros(seeds.size, np.float32), np.zeros(seeds.size, np.int32)
    for ended in pool.play(model, policy, params, key, jobs):
        total[ended.job], steps[ended.job] = ended.played.total, ended.played.steps
    return Returns(jnp.array(total.reshape(seeds.shape)), jnp.array(steps.reshape(seeds.shape)))


def drawn_seeds(entropy: Sequence[int], size: int, episodes: int, groups: int) -> np.ndarray:
    """Draw the games of a generation: seeds [size, episodes] below `FRESH`.

    There are that many groups, whose members share their games: with 1 the whole population does. In the published
    runs of Ha & Schmidhuber 2018 individuals i and i + size / 2 did.

    Raises: ValueError if the groups are not of equal size.
    """
    if size % groups:
        raise ValueError(f"{size} individuals cannot be in {groups} groups of one size")
    drawn = np.random.default_rng(entropy).integers(FRESH, size=(groups, episodes))
    return np.tile(drawn, (size // groups, 1))


@partial(jax.jit, static_argnames=("model", "policy"))
def _act(
    model: LatentModel,
    policy: AnyPolicy,
    model_params: Params,
    population: Params,
    key: Key,
    memories: State,
    frames: Array,
    playing: tuple[Array, Array, Array, Array],
) -> tuple[State, Action]:
    """Act in some games of a bank: `playing` are lane, candidate, seed and steps so far of each; all lanes remember."""
    lanes, candidates, seeds, steps = playing
    keys = jax.vmap(lambda seed, step: jax.random.fold_in(jax.random.fold_in(key, seed), step))(seeds, steps)
    no = jnp.zeros(len(steps), bool)
    step = Step(frames, jnp.zeros(len(steps)), steps == 0, no, no)
    agent = rollout.agent(model, model_params, policy)
    rows = lambda tree, index: jax.tree.map(lambda leaf: leaf[index], tree)  # noqa: E731
    after, action = jax.vmap(agent.act)(rows(population, candidates), keys, rows(memories, lanes), step)
    return jax.tree.map(lambda leaf, new: leaf.at[lanes].set(new), memories, after), action


class _Worker:
    """A process, and the two banks of games that it has."""

    def __init__(self, connection: Connection, process: Any, frames: list[np.ndarray]) -> None:
        self.connection, self.process, self.frames = connection, process, frames
        self.crashes = 0
        self.banks: list[_Bank] = []

    def send(self, bank: int, orders: list[Order]) -> None:
        if all(order is None for order in orders):
            return
        try:
            self.connection.send((bank, orders))
        except (BrokenPipeError, ConnectionResetError):
            return  # it died; that is found out where its answer is read


class _Bank:
    """What is known here of the games that a worker steps together."""

    def __init__(self, jobs: Sequence[Job], memories: State, record: bool, frames: np.ndarray, actions: Space) -> None:
        lanes = len(frames)
        self.jobs, self.memories, self.record, self.frames, self.actions = jobs, memories, record, frames, actions
        self.playing: list[int | None] = [None] * lanes  # index of the job of each game
        self.steps, self.totals = np.zeros(lanes, np.int32), np.zeros(lanes)
        self._opening = np.zeros(lanes, bool)  # the worker was told to begin an episode
        self._seen: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(lanes)]
        self._rewards: list[list[float]] = [[] for _ in range(lanes)]

    @property
    def busy(self) -> bool:
        return any(job is not None for job in self.playing)

    def open(self, lane: int, job: int | None) -> Order:
        """Give a game the episode of a job, from its beginning, or none; return what to tell the worker."""
        self.playing[lane], self.steps[lane], self.totals[lane] = job, 0, 0.0
        self._seen[lane], self._rewards[lane] = [], []
        self._opening[lane] = job is not None
        return None if job is None else self.jobs[job].seed

    def advance(
        self,
        act: Callable[..., tuple[State, Action]],
        waiting: Iterator[int],
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
    ) -> tuple[list[Ended], list[Order]]:
        """Take in what the games answered; return the episodes that ended, and what to do next in each game."""
        orders: list[Order] = [None] * len(self.playing)
        ended = []
        for lane, job in enumerate(self.playing):
            if job is None:
                continue
            if self._opening[lane]:
                self._opening[lane] = False
                continue
            self.steps[lane] += 1
            self.totals[lane] += rewards[lane]
            self._rewards[lane].append(float(rewards[lane]))
            if terminated[lane] or truncated[lane]:
                ended.append(self._ended(lane, job, bool(terminated[lane] and not truncated[lane])))
                orders[lane] = self.open(lane, next(waiting, None))
        acting = [lane for lane, job in enumerate(self.playing) if job is not None and orders[lane] is None]
        if acting:
            # As many rows as games go on, to the next power of two so that few programs do: some games fill two rows.
            # At least four, because one alone is rounded otherwise.
            lanes = np.resize(acting, min(max(4, 1 << (len(acting) - 1).bit_length()), len(orders)))
            candidates, seeds = np.array([self.jobs[self.playing[lane]] for lane in lanes], np.uint32).T
            frames = self.frames[lanes]
            self.memories, action = act(self.memories, frames, (lanes, candidates, seeds, self.steps[lanes]))
            chosen = within(self.actions, action)
            chosen = chosen.astype(np.float16).astype(chosen.dtype) if self.record else chosen
            for row, lane in enumerate(acting):
                orders[lane] = chosen[row]
                if self.record:
                    self._seen[lane].append((frames[row].copy(), chosen[row].astype(np.float16)))
        return ended, orders

    def _ended(self, lane: int, job: int, terminated: bool) -> Ended:
        seed, episode = self.jobs[job].seed, None
        if self.record:
            frames, actions = zip(*self._seen[lane], strict=True)
            arrays = np.stack([*frames, self.frames[lane]]), np.stack([*actions, np.zeros_like(actions[0])])
            episode = Episode(*arrays, np.array([0.0, *self._rewards[lane]], np.float32), terminated, seed)
        return Ended(job, Played(seed, float(self.totals[lane]), int(self.steps[lane]), terminated, None), episode)
