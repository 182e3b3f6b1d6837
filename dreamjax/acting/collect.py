"""Recording episodes of a random policy with several processes. Imports no JAX, for quick worker processes.

Attempt number i depends on (seed, i) alone and is stored under its number, so a collection that was stopped anywhere
and started again ends with the files it would have had. Numbers of discarded attempts are missing from the folder.
"""

import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import gymnasium
import numpy as np

from dreamjax.envs.vizdoom import GameCrashed
from dreamjax.storage import episodes as store

Actions = Callable[[np.random.Generator, int], np.ndarray]  # (rng, length) -> float32 [length, *action shape]
Settings = dict[str, int | str]

_LONGEST_HOLD = 10
_CRASHES = 3  # how often one attempt may crash its game before the collection stops


def held_random_actions(rng: np.random.Generator, length: int) -> np.ndarray:
    """The collection policy of Ha & Schmidhuber (2018) in Doom, from their code: float32 [length] in [-1, 1].

    An action a ~ U(-1, 1) is held. On every frame whose number is divisible by r, both are drawn anew, a and
    r ~ U{1, ..., 10}, which is not quite the same as holding for r frames.
    """
    return _hold(rng, length, _LONGEST_HOLD)


def wandering_random_actions(rng: np.random.Generator, length: int) -> np.ndarray:
    """`held_random_actions` in every other episode, and in the others the same with holds of up to 40 frames.

    Longer holds reach the walls of Take Cover's room more often. A controller evolved in the dream of a model without
    them was seen to walk to a wall, survive there in the dream, and die there in the game.
    """
    return _hold(rng, length, _LONGEST_HOLD if rng.random() < 0.5 else 4 * _LONGEST_HOLD)


def _hold(rng: np.random.Generator, length: int, longest: int) -> np.ndarray:
    actions = np.empty(length, np.float32)
    hold = rng.integers(1, longest + 1)
    for frame in range(length):
        if frame % hold == 0:
            action = rng.uniform(-1.0, 1.0)
            hold = rng.integers(1, longest + 1)
        actions[frame] = action
    return actions


def every_tic_random_actions(rng: np.random.Generator, length: int) -> np.ndarray:
    """A new a ~ U(-1, 1) on every frame: float32 [length]."""
    return rng.uniform(-1.0, 1.0, length).astype(np.float32)


def random_network_actions(rng: np.random.Generator, length: int) -> np.ndarray:
    """The collection policy of Ha & Schmidhuber (2018) in CarRacing, from their code: float32 [length, 3].

    A whole agent with random weights drives: Cauchy-distributed, and scaled for each episode by s ~ U(0, 0.01) in C
    and by a ten-thousandth of that in V and M. So V says next to nothing, which makes z ~ N(0, I), and M's output is
    next to zero; what is left is C's bias and its weights on 32 such latents. Gas stays about one half, steering and
    braking are noise; uniform actions would brake half of the time and hardly move.
    """
    scale = rng.uniform(0.0, 0.01)
    bias, kernel = scale * rng.standard_cauchy(3), scale * rng.standard_cauchy((32, 3))
    steer, gas, brake = np.tanh(rng.standard_normal((length, 32)) @ kernel + bias).T
    return np.stack([steer, (gas + 1) / 2, np.clip(brake, 0, 1)], 1).astype(np.float32)


def record(env: gymnasium.Env, actions: np.ndarray, seed: int) -> store.Episode:
    """Play `actions` from `reset(seed=seed)` until the episode ends or they run out.

    Actions are rounded to float16 first, so that those in the file are exactly those that the environment took.
    """
    actions = np.concatenate([actions, np.zeros_like(actions[:1])]).astype(np.float16)
    frames = np.empty((len(actions), *store.FRAME_SHAPE), np.uint8)
    rewards = np.zeros(len(actions), np.float32)
    frames[0], _ = env.reset(seed=seed)
    terminated = truncated = False
    length = 0
    while length < len(actions) - 1 and not (terminated or truncated):
        action = actions[length].astype(np.float32)
        length += 1
        frames[length], rewards[length], terminated, truncated, _ = env.step(action)
    actions[length] = 0
    end = length + 1
    return store.Episode(frames[:end], actions[:end], rewards[:end], bool(terminated), seed)


def collect(
    folder: str | os.PathLike,
    make_env: Callable[[], gymnasium.Env],
    episodes: int,
    seed: int,
    *,
    min_length: int = 101,
    max_steps: int = 2100,
    workers: int = 1,
    policy: Actions = held_random_actions,
    progress: Callable[[int, int], None] | None = None,
) -> store.Store:
    """Fills `folder` with the first `episodes` attempts that last at least `min_length` steps, and opens these.

    What the folder holds already is kept, so this also continues a collection that was stopped, or makes one larger;
    asking for fewer episodes than there are opens the first of them and deletes none. `make_env` and `policy` must be
    importable by new processes (functions of a module, or partials of them). `progress` is called with (episodes
    kept, attempts made) whenever an attempt ends.

    Raises ValueError if the folder was filled with other settings or by another version of dreamjax, OSError if the
    disk is full, RuntimeError if a game or a worker process keeps dying. After the last two, the same call continues
    where it stopped.
    """
    if episodes < 1 or workers < 1 or not 1 <= min_length <= max_steps:
        raise ValueError(
            "need episodes >= 1, workers >= 1 and 1 <= min_length <= max_steps, "
            f"got {episodes}, {workers}, {min_length} and {max_steps}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings: Settings = {"seed": seed, "min_length": min_length, "max_steps": max_steps, "policy": policy.__name__}
    short = _attempts_too_short(folder, settings)
    for unfinished in folder.glob(".episode_*.npz"):  # of a process that was killed while writing
        unfinished.unlink()
    kept = {int(path.stem.removeprefix("episode_")) for path in folder.glob("episode_*.npz")}
    if kept:
        store.open_store(folder)  # refuses files of another version before anything is played
    attempt = partial(_attempt, folder, seed=seed, min_length=min_length, max_steps=max_steps, policy=policy)
    found = frozenset(kept)
    with closing(_attempts(attempt, make_env, episodes, kept, short, workers)) as ended:
        for made, (number, is_kept) in enumerate(ended, start=1):
            (kept if is_kept else short).add(number)
            if not is_kept:
                _note(folder, settings, short)
            if progress:
                progress(min(len(kept), episodes), made)
    for surplus in set(sorted(kept)[episodes:]) - found:  # of workers that were busy when the last one came in
        store.episode_path(folder, surplus).unlink()
    return store.open_store(folder).head(episodes)


def _note(folder: Path, settings: Settings, short: set[int]) -> None:
    unfinished = folder / ".collect.json.tmp"
    unfinished.write_text(json.dumps({"settings": settings, "short": sorted(short)}))
    os.replace(unfinished, folder / "collect.json")


def _attempts_too_short(folder: Path, settings: Settings) -> set[int]:
    """What earlier calls found too short. Refuses to continue a collection that was begun with other settings."""
    path = folder / "collect.json"
    if not path.exists():
        _note(folder, settings, set())
    begun = json.loads(path.read_text())
    if begun["settings"] != settings:
        raise ValueError(
            f"{folder} was collected with {begun['settings']}, not {settings}; use the same settings or another folder"
        )
    return set(begun["short"])


def _attempt(
    folder: Path, env: gymnasium.Env, number: int, *, seed: int, min_length: int, max_steps: int, policy: Actions
) -> bool:
    """Plays attempt `number` and writes it if it is long enough; returns whether it was."""
    for crashes in range(1, _CRASHES + 1):
        rng = np.random.default_rng([seed, number])
        try:
            episode = record(env, policy(rng, max_steps), int(rng.integers(2**31)))
            break
        except GameCrashed as error:
            if crashes == _CRASHES:
                raise RuntimeError(f"the game crashed {crashes} times in attempt {number} with seed {seed}") from error
    is_kept = len(episode.action) - 1 >= min_length  # the last one only pads
    if is_kept:
        store.write(folder, number, episode)
    return is_kept


def _attempts(
    attempt: Callable[[gymnasium.Env, int], bool],
    make_env: Callable[[], gymnasium.Env],
    episodes: int,
    kept: set[int],
    short: set[int],
    workers: int,
) -> Generator[tuple[int, bool]]:
    """Hands out the missing attempts in order and yields (number, is kept) of each that ends; the caller notes them.

    An attempt is needed while fewer than `episodes` attempts with smaller numbers are known to be kept.
    """
    missing = (number for number in itertools.count() if number not in kept and number not in short)
    number = next(missing)
    processes: dict[Connection, BaseProcess] = {}
    busy: dict[Connection, int] = {}
    try:
        while True:
            while len(busy) < workers and sum(k < number for k in kept) < episodes:
                if len(processes) == len(busy):
                    connection, process = _start_worker(attempt, make_env)
                    processes[connection] = process
                connection = next(c for c in processes if c not in busy)
                connection.send(number)
                busy[connection] = number
                number = next(missing)
            if not busy:
                return
            ready = wait(list(busy))
            for connection in [c for c in busy if c in ready]:
                ended = busy.pop(connection)
                try:
                    reply = connection.recv()
                except (EOFError, ConnectionResetError):
                    raise RuntimeError(
                        f"a worker process died in attempt {ended} (its own message, if any, is above; the system may "
                        "have run out of memory); the same call continues where this one stopped"
                    ) from None
                if isinstance(reply, Exception):
                    raise reply
                yield ended, reply
    finally:
        for connection in processes:
            connection.close()  # which ends the worker after the attempt that it is at
        for process in processes.values():
            process.join()


def _start_worker(
    attempt: Callable[[gymnasium.Env, int], bool], make_env: Callable[[], gymnasium.Env]
) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads and devices of this process
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, attempt, make_env))
    process.start()
    theirs.close()
    return ours, process


def _work(
    connection: Connection, attempt: Callable[[gymnasium.Env, int], bool], make_env: Callable[[], gymnasium.Env]
) -> None:
    """The worker process: makes the attempts it is sent until the other side closes the connection or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt from the keyboard means
    env = make_env()
    try:
        while True:
            number = connection.recv()
            try:
                connection.send(attempt(env, number))
            except Exception as error:  # whatever it is, the parent must hear of it
                connection.send(error)
    except (EOFError, ConnectionError):
        return
    finally:
        env.close()
