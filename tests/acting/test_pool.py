"""Environments in this process and in workers: what they observe, what is refused, and what dies."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dreamjax.acting.pool import Pool
from dreamjax.acting.process import WorkerLost
from dreamjax.acting.worker import Reply
from dreamjax.envs.host import InvalidStep
from tests.acting import environments
from tests.acting.environments import Everything, Ragged, Returning, Scripted

ACTION = [np.int32(4), np.float32([0.25, -7.0]), np.int32([1, 8]), np.int8([1, 0, 1])]  # one is beyond its bounds


def ask(pool: Pool, orders: list[Any]) -> list[Reply]:
    """Send every group its orders, and return the replies in the order of the groups."""
    for group in range(pool.groups):
        pool.send(group, orders[group * pool.size : (group + 1) * pool.size])
    replies: dict[int, Reply] = {}
    while len(replies) < pool.groups:
        for answer in pool.receive():
            assert answer.group not in replies
            replies[answer.group] = answer.reply
    return [replies[group] for group in range(pool.groups)]


def observed(pool: Pool) -> Any:
    """Return what all environments observe, [E, ...]."""
    each = [pool.observation(group) for group in range(pool.groups)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *each)


def test_spaces_of_every_kind_are_the_same_in_this_process_and_in_workers() -> None:
    seen = []
    for workers in (0, 2):
        with Pool(Everything, 4, workers) as pool:
            assert len(pool) == 4 and pool.groups == max(workers, 1)
            assert pool.observation_space == Everything.observation_space
            first = ask(pool, [5, 6, 7, -1])
            opened = observed(pool)
            replies = ask(pool, [ACTION, None, ACTION, ACTION])
            assert not any(reply.errors for reply in first + replies)
            after = observed(pool)
            reward = np.concatenate([reply.reward for reply in replies])
            np.testing.assert_array_equal(reward, np.float32([0.5, 0, 0.5, 0.5]))
            seen.append(jax.tree.map(lambda leaf: leaf[:3], (opened, after)))  # the last one's noise is its own
            spec = pool.spec(10)
            declared = jax.tree.map(lambda space: (space.shape, np.dtype(space.dtype)), spec.observation)
            got = jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), after)
            assert jax.tree.structure(declared) == jax.tree.structure(got) and declared == got
    jax.tree.map(np.testing.assert_array_equal, *seen)
    opened, after = seen[0]
    assert len(np.unique(opened["wide"])) == 6  # by their seeds
    np.testing.assert_array_equal(after["image"][:, 0, 0, 0], [1, 0, 1])
    np.testing.assert_array_equal(after["level"][:, :, 0], [[1, -1], [0, 0], [1, -1]])
    np.testing.assert_array_equal(after["mask"][:, 0], [False, True, False])
    np.testing.assert_array_equal(after["deep"]["number"], [1, 0, 1])
    last = after["deep"]["last"]
    np.testing.assert_array_equal(last["button"], [4, 3, 4])
    np.testing.assert_array_equal(last["sticks"][0][0], np.float32([0.25, -1.0]))
    np.testing.assert_array_equal(last["sticks"][1][0], [1, 8])
    np.testing.assert_array_equal(last["bits"][0], [1, 0, 1])


@pytest.mark.parametrize(
    ("envs", "workers", "groups", "expected"),
    [
        *[(3, 0, 2, (1, 3)), (1, 2, 2, (1, 1)), (4, 2, 1, (2, 2)), (5, 2, 2, (4, 2)), (2, 2, 2, (2, 1))],
        *[(16, 2, None, (2, 8)), (31, 2, None, (2, 16)), (32, 2, None, (4, 8)), (16, 1, None, (2, 8))],
    ],
)
def test_environments_are_shared_out_equally(
    envs: int, workers: int, groups: int | None, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreamjax.acting.cluster.Process", Unstarted)
    pool = Pool(Scripted, envs, workers, groups=groups)
    assert (pool.groups, pool.size) == expected and len(pool) >= envs


class Unstarted:
    """A worker that is never started."""

    about = Scripted.observation_space, Scripted.action_space, "scripted"

    def __init__(self, *args: Any, timeout: float) -> None:
        assert timeout == 120

    def begin(self) -> None:
        """There is nothing to begin."""


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"envs": 0}, "need envs >= 1, got 0"),
        ({"workers": -1}, "need workers >= 0, got -1"),
        ({"groups": 0}, "need groups >= 1, got 0"),
        ({"timeout": 0}, "need a timeout > 0, got 0"),
    ],
)
def test_counts_that_are_not_positive_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pool(Scripted, **bad)


NAN, INF = np.array([0.0, np.nan]), np.array([0.5, np.inf])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((2, 3), np.uint8)}, r"'image' was declared as Box\(0, 255, \(2, 2\), uint8\), got shape"),
        ({"image": np.zeros((2, 2))}, r"'image' was declared as Box\(0, 255, \(2, 2\), uint8\), got dtype float64"),
        ({"image": np.zeros((2, 2), int)}, r"'image' was declared as Box\(0, 255, \(2, 2\), uint8\), got dtype int64"),
        ({"image": None}, r"the observation was declared with keys \['image', 'inner'\], got \['inner'\]"),
        ({"0": np.zeros(2, int)}, r"'inner/0' was declared as Box\(-1.0, 1.0, \(2,\), float32\), got dtype int64"),
        ({"0": np.zeros(3)}, r"'inner/0' was declared as Box\(-1.0, 1.0, \(2,\), float32\), got shape \(3,\)"),
        ({"0": "text"}, r"'inner/0' was declared as Box\(-1.0, 1.0, \(2,\), float32\), got shape \(\)"),
        (
            {"0": np.zeros(2, complex)},
            r"'inner/0' was declared as .* float32\), got dtype complex",
        ),
        ({"0": [0.0, [1.0]]}, "'inner/0' is no array"),
        ({"0": NAN}, r"'inner/0' is nan at \[1\], and must be finite in 32 bits"),
        ({"0": INF}, r"'inner/0' is inf at \[1\], and must be finite in 32 bits"),
        ({"0": -INF}, r"'inner/0' is -inf at \[1\], and must be finite in 32 bits"),
        (
            {"0": np.array([0.0, 1.001])},
            r"'inner/0' lies outside .* float32\): it is 1.00.* at \[1\]",
        ),
        ({"1": 3}, r"'inner/1' lies outside Discrete\(3\): it is 3"),
        ({"1": -1}, r"'inner/1' lies outside Discrete\(3\): it is -1"),
        ({"1": 1.0}, r"'inner/1' was declared as Discrete\(3\), got dtype float64"),
        ({"2": np.array([0, 2])}, r"'inner/2' lies outside MultiDiscrete\(\[2 2\]\)"),
    ],
)
def test_an_observation_other_than_declared_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with Pool(partial(Returning, change)) as pool:
        assert not ask(pool, [0])[0].errors
        with pytest.raises(InvalidStep, match=message):
            ask(pool, [[np.int32(0)]])


@pytest.mark.parametrize("value", [1.0, np.nextafter(1, 2), [1, 0.25], np.float16(0.5), [np.float64(-0.7), 1e-50]])
def test_floats_of_any_size_within_their_bounds_in_32_bits_are_passed_on(value: Any) -> None:
    given = np.resize(np.asarray(value), 2)
    with Pool(partial(Returning, {"0": given, "1": np.uint8(2), "2": np.array([True, False])})) as pool:
        ask(pool, [0])
        assert not ask(pool, [[np.int32(0)]])[0].errors
        seen = pool.observation(0)["inner"]
        np.testing.assert_array_equal(seen[0], given[None].astype(np.float32))
        np.testing.assert_array_equal(np.concatenate([seen[1], seen[2][0]]), [2, 1, 0])


def test_an_invalid_step_in_a_worker_is_the_users_to_see_and_the_pool_can_be_used_again() -> None:
    with Pool(partial(Returning, {"0": NAN}), 2, 1) as pool:
        ask(pool, [0, 0])
        with pytest.raises(InvalidStep, match="'inner/0' is nan at"):
            ask(pool, [[np.int32(0)], [np.int32(0)]])
        assert pool.begin() == 1
        assert not any(reply.errors for reply in ask(pool, [0, 0])) and pool.restarts == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_an_environment_that_raises_loses_its_own_episode(workers: int) -> None:
    with Pool(Scripted, 3, workers, groups=1) as pool:
        ask(pool, [1, 2, 3])
        ask(pool, [[np.int32(0)]] * 3)
        [reply] = ask(pool, [[np.int32(0)], [np.int32(1)], [np.int32(4)]])
        assert list(reply.errors) == [1] and isinstance(reply.errors[1], LookupError)
        assert "environments.py" in "".join(reply.errors[1].__notes__)
        np.testing.assert_array_equal(reply.reward, [2, 0, 2])
        np.testing.assert_array_equal(reply.terminated, [False, False, True])
        assert reply.info == {2: {"time": 2.0, "by/half": 1.0}}
        [reply] = ask(pool, [[np.int32(0)], [np.int32(0)], None])
        assert "before it was reset" in str(reply.errors[1])
        [reply] = ask(pool, [None, 2, None])
        assert not reply.errors and pool.restarts == 0
        np.testing.assert_array_equal(pool.observation(0)[:, 0], [3, 0, 2])


class Unpicklable(Exception):
    """An error that cannot be sent."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def test_an_error_that_cannot_be_sent_comes_as_its_text() -> None:
    class Throws(Scripted):
        def step(self, action: np.int64) -> Any:
            raise Unpicklable(1, 2)

    with Pool(Throws, 1, 1) as pool:
        ask(pool, [0])
        [reply] = ask(pool, [[np.int32(0)]])
        assert isinstance(reply.errors[0], RuntimeError) and "Unpicklable: 1 and 2" in str(reply.errors[0])


@pytest.mark.parametrize(("how", "message"), [(2, "died .killed by signal 9"), (3, "did not answer within 6 s")])
def test_a_worker_that_dies_or_hangs_is_replaced_and_the_others_go_on(how: int, message: str) -> None:
    with Pool(Scripted, 4, 2, groups=2, timeout=6) as pool:
        before = running_workers()
        assert len(before) == 2
        ask(pool, [1, 2, 3, 4])
        numbers = observed(pool)[:, 1]
        replies = ask(pool, [[np.int32(action)] for action in (0, how, 0, 0)])
        assert pool.restarts == 1
        # The groups of a worker are stepped one after the other, so that the first had answered.
        assert [list(reply.errors) for reply in replies] == [[], [0], [], []]
        assert isinstance(replies[1].errors[0], WorkerLost)
        with pytest.raises(WorkerLost, match=message):
            raise replies[1].errors[0]
        after = running_workers()
        assert len(after) == 2 and len(before & after) == 1
        assert not any(reply.errors for reply in ask(pool, [1, 2, [np.int32(0)], [np.int32(0)]]))
        np.testing.assert_array_equal(observed(pool)[:, 0], [0, 0, 2, 2])
        np.testing.assert_array_equal(observed(pool)[:, 1], numbers)
    environments.wait_until_gone(before | after)


def running_workers() -> set[int]:
    return environments.running_children()


def test_a_worker_that_is_killed_while_nobody_asks_is_noticed_when_somebody_does() -> None:
    with Pool(Scripted, 2, 1, groups=1) as pool:
        ask(pool, [1, 2])
        [pid] = running_workers()
        os.kill(pid, signal.SIGKILL)
        environments.wait_until_gone([pid])
        [reply] = ask(pool, [[np.int32(0)]] * 2)
        assert all(isinstance(reply.errors[i], WorkerLost) for i in range(2)) and pool.restarts == 1
        assert not ask(pool, [1, 2])[0].errors


def test_no_environment_at_all_is_an_error_at_once() -> None:
    def broken() -> Any:
        raise LookupError("the game is not installed")

    def exits() -> Any:
        os._exit(7)

    before = running_workers()
    for workers in (0, 2):
        with pytest.raises(LookupError, match="the game is not installed"):
            Pool(broken, 2, workers)
    with pytest.raises(RuntimeError, match=r"a worker died \(exit code 7.*while it made its first environment"):
        Pool(exits, 2, 2)
    assert running_workers() == before


def test_a_replacement_that_cannot_make_its_environment_is_replaced_as_well(tmp_path: Path) -> None:
    def brittle() -> Any:
        count = len(list(tmp_path.iterdir()))
        (tmp_path / f"{count}").touch()
        if count == 1:
            raise LookupError("the port is in use")
        return Scripted()

    with Pool(brittle, 1, 1) as pool:
        ask(pool, [1])
        for order, message in (([np.int32(2)], "died"), (1, r"could not make an environment .*the port is in use")):
            [reply] = ask(pool, [order])
            assert isinstance(reply.errors[0], WorkerLost) and re.search(message, str(reply.errors[0]))
        assert not ask(pool, [1])[0].errors and pool.restarts == 2


def test_an_environment_that_takes_for_ever_to_make_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamjax.acting.process.START_TIMEOUT_S", 1.0)
    monkeypatch.setattr("dreamjax.acting.pool._END_TIMEOUT_S", 0.5)
    before = running_workers()
    with pytest.raises(RuntimeError, match="did not make an environment within 1 s"):
        Pool(environments.hangs_at_once, 1, 1)
    assert running_workers() == before


def test_workers_are_gone_after_close_even_those_that_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamjax.acting.pool._END_TIMEOUT_S", 1.0)
    descriptors = len(os.listdir("/proc/self/fd"))
    begun = time.monotonic()
    pool = Pool(Scripted, 2, 2)
    ask(pool, [1, 2])
    workers = running_workers()
    assert len(workers) == 2
    pool.send(0, [[np.int32(3)]])
    pool.close()
    pool.close()
    assert not workers & running_workers() and time.monotonic() - begun < 60
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def test_workers_start_without_jax() -> None:
    class Says(Scripted):
        def step(self, action: np.int64) -> Any:
            return np.zeros(2), float("jax" in sys.modules), False, False, {}

    with Pool(Says, 1, 1) as pool:
        ask(pool, [0])
        assert ask(pool, [[np.int32(0)]])[0].reward == 0


ORPHANS = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_DFL)
import numpy as np
from dreamjax.acting.pool import Pool
from tests.acting.environments import Scripted, running_children
pool = Pool(Scripted, 2, 2)
for group in range(2):
    pool.send(group, [1])
    pool.receive()
pool.send(0, [[np.int32(3)]])  # it hangs; the other one waits for orders
print(*running_children(), flush=True)
pool.receive()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_its_parent_even_one_that_hangs(how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            workers = [int(word) for word in parent.stdout.readline().split()]
            assert len(workers) == 2 and all(environments.is_running(pid) for pid in workers)
            time.sleep(0.5)  # until the first one is in its step
        finally:
            parent.send_signal(how)
        assert parent.wait(20) == -how
        environments.wait_until_gone(workers)


def test_observations_are_views_that_the_next_step_changes() -> None:
    with Pool(Ragged, 2, 1, groups=1) as pool:
        ask(pool, [3, 4])
        view = pool.observation(0)
        before = view.copy()
        ask(pool, [[np.float32(0)], None])
        assert (view[0] != before[0]).any() and (view[1] == before[1]).all()
