"""Workers that are killed or stopped at moments drawn at random: the numbers stay, or one episode is lost for each.

A worker is struck right after some orders were sent, while it is at a step, answers, or waits. A stopped process is one
that hangs. A few moments are in the normal suite; `python -m pytest -m slow tests/faults/test_kills.py` has a hundred.
"""

import itertools
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest

from dreamjax.acting.collection import CollectConfig, collect
from dreamjax.acting.evaluation import evaluate, play_all
from dreamjax.acting.pool import Pool
from dreamjax.acting.vector import VectorEnvironment
from dreamjax.acting.worker import Order
from tests.acting.agents import AGENT, KEY, ONE
from tests.acting.environments import Ragged, Scripted, running_children
from tests.acting.test_playing import assert_same, expected, played

HOW = (signal.SIGKILL, signal.SIGSTOP)
TIMEOUT = 4.0  # seconds; the environments here take next to none
SEEDS = list(range(40))  # of evaluated episodes


def moments(count: int, normal: int) -> list:
    """Numbers of drawn moments, of which only the first are in the normal suite."""
    return [pytest.param(i, marks=() if i < normal else pytest.mark.slow) for i in range(count)]


@pytest.fixture
def workers() -> Iterator["Workers"]:
    yield Workers()


class Workers:
    """The processes that were started since."""

    def __init__(self) -> None:
        self._before = running_children()

    def strike(self, rng: np.random.Generator, how: signal.Signals) -> None:
        os.kill(int(rng.choice(sorted(running_children() - self._before))), how)


def struck(pool: Pool, workers: Workers, number: int, latest: int) -> Pool:
    """Let a worker be struck after one of the first `latest` orders."""
    rng, send, count = np.random.default_rng([7, number]), pool.send, itertools.count(1)
    at, how = rng.integers(1, latest + 1), HOW[number % 2]

    def sending(group: int, orders: Sequence[Order]) -> None:
        send(group, orders)
        if next(count) == at:
            workers.strike(rng, how)

    pool.send = sending  # type: ignore[method-assign]
    return pool


@pytest.mark.parametrize("number", moments(30, 2))
def test_played_episodes_are_the_same(workers: Workers, number: int) -> None:
    with Pool(Ragged, 6, 2, groups=1 + number // 2 % 2, timeout=TIMEOUT) as pool:
        assert_same(played(struck(pool, workers, number, 20)), expected())
        assert pool.restarts == 1


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("collected")
    with Pool(Ragged) as pool:
        collect(CollectConfig(12), folder, pool, AGENT, ONE)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*episode_*")}


@pytest.mark.parametrize("number", moments(20, 1))
def test_collected_files_are_the_same(
    workers: Workers, number: int, collected: dict[str, bytes], tmp_path: Path
) -> None:
    with Pool(Ragged, 4, 2, timeout=TIMEOUT) as pool:
        collect(CollectConfig(12), tmp_path, struck(pool, workers, number, 12), AGENT, ONE)
        assert pool.restarts == 1
    assert contents(tmp_path) == collected


@pytest.mark.parametrize("number", moments(20, 1))
def test_evaluated_returns_are_the_same(workers: Workers, number: int) -> None:
    rng = np.random.default_rng([8, number])
    at, totals = rng.integers(0, 25), dict[int, float]()
    for count, one in enumerate(play_all(AGENT, ONE, Ragged, SEEDS, KEY, envs=6, workers=2)):
        totals[one.seed] = one.total
        if count == at:
            workers.strike(rng, signal.SIGKILL)
    np.testing.assert_array_equal([totals[seed] for seed in SEEDS], evaluate(AGENT, ONE, Ragged, SEEDS, KEY, workers=0))


@pytest.mark.filterwarnings("ignore:environment . is made anew")
@pytest.mark.parametrize("number", moments(30, 2))
def test_online_one_episode_is_lost(workers: Workers, number: int) -> None:
    """It ends where its worker was struck, truncated; everything else is as if nothing had happened."""
    rng = np.random.default_rng([9, number])
    at, action, steps = int(rng.integers(1, 18)), np.zeros(2, np.int32), []
    for processes in (0, 2):
        vector = VectorEnvironment(Scripted, 2, 6, processes, timeout=TIMEOUT)
        rows = [vector.reset((number,))]
        for time in range(1, 26):
            if processes and time == at:
                workers.strike(rng, HOW[number % 2])
            rows.append(vector.step(action))
        steps.append(jax.tree.map(lambda *leaves: np.stack(leaves), *rows))
        assert (vector.failures, vector.restarts) == (processes // 2, processes // 2)
        vector.close()
    calm, now = steps
    moved = [i for i in range(2) if not np.array_equal(calm.observation[:, i], now.observation[:, i])]
    assert len(moved) == 1  # a new environment draws other episodes
    other, lost = 1 - moved[0], moved[0]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, other], b[:, other]), calm, now)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:at, lost], b[:at, lost]), calm, now)
    flags = [(now.is_first[t, lost], now.is_last[t, lost], now.reward[t, lost]) for t in range(at, 26)]
    assert not now.is_terminal[:, lost].any()
    if calm.is_first[at, lost]:  # it was to be reset, and is
        assert flags[0] == (True, False, 0)
        begun = at
    else:
        assert flags[0] == (False, True, 0)
        np.testing.assert_array_equal(now.observation[at, lost], now.observation[at - 1, lost])
        begun = at + 1
    whole = [(time % 7 == 0, time % 7 == 6, time % 7) for time in range(26 - begun)]
    assert flags[begun - at :] == whole
