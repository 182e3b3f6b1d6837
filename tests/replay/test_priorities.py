"""Priorities against a table of all sequences, written out anew at every step."""

import tracemalloc

import numpy as np
import pytest

from dreamjax.replay.priorities import Priorities, SumTree


def test_a_tree_draws_in_proportion():
    tree = SumTree(5)
    tree.set(np.array([0, 2, 4]), np.array([1.0, 3.0, 4.0]))
    tree.set(np.array([4]), np.array([6.0]))
    rng = np.random.default_rng(0)
    counts = np.bincount([tree.sample(rng) for _ in range(20_000)], minlength=5) / 20_000
    np.testing.assert_allclose(counts, [0.1, 0, 0.3, 0, 0.6], atol=0.015)
    assert tree.total == 10


STREAMS, KEPT, LENGTH, EXPONENT, LARGEST = 2, 9, 3, 0.8, 0.5


def table(steps: dict[tuple[int, int], float], written: int) -> dict[tuple[int, int], float]:
    """Weight of every sequence that is there, from the priorities of all steps ever."""
    weights = {}
    for stream in range(STREAMS):
        for time in range(max(0, written - KEPT), written - LENGTH + 1):
            inside = np.array([steps[stream, time + i] for i in range(LENGTH)]) ** EXPONENT
            weights[stream, time] = LARGEST * inside.max() + (1 - LARGEST) * inside.mean()
    return weights


def drawn(priorities: Priorities, times: int) -> dict[tuple[int, int], float]:
    """How often each sequence is drawn from what stands now."""
    counts: dict[tuple[int, int], float] = {}
    steps, written = priorities.steps.copy(), priorities._written
    rng = np.random.default_rng(0)
    for _ in range(times):
        where = priorities.sample(rng)
        counts[where] = counts.get(where, 0) + 1 / times
        priorities.restore(steps.copy(), written)
    return counts


def test_draws_follow_the_steps():
    rng = np.random.default_rng(1)
    priorities = Priorities(STREAMS, KEPT, LENGTH, EXPONENT, LARGEST)
    steps: dict[tuple[int, int], float] = {}
    for time in range(23):
        priorities.add()
        steps |= {(stream, time): np.inf for stream in range(STREAMS)}
        begin = max(0, time - 5)
        values = rng.random((STREAMS, time + 1 - begin))
        priorities.update(np.arange(STREAMS), np.full(STREAMS, begin), values)
        steps |= {(e, begin + i): values[e, i] for e in range(STREAMS) for i in range(values.shape[1])}
    wanted = table(steps, 23)
    total = sum(wanted.values())
    found = drawn(priorities, 4000)
    assert found.keys() == wanted.keys()
    for where, weight in wanted.items():
        assert found[where] == pytest.approx(weight / total, abs=0.03)


def test_new_steps_come_first_and_what_was_drawn_waits():
    priorities = Priorities(STREAMS, KEPT, LENGTH, EXPONENT, LARGEST)
    for _ in range(5):
        priorities.add()
    rng = np.random.default_rng(0)
    sequences = [priorities.sample(rng) for _ in range(6)]
    assert {(e, t + i) for e, t in sequences for i in range(LENGTH)} == {
        (e, t) for e in range(STREAMS) for t in range(5)
    }
    priorities.add()
    assert {priorities.sample(rng) for _ in range(2)} == {(0, 3), (1, 3)}
    assert priorities.sample(rng)[1] in range(4)  # nothing has a priority: all are alike


def test_negative_priorities_are_refused():
    priorities = Priorities(1, KEPT, LENGTH, EXPONENT, LARGEST)
    priorities.add()
    with pytest.raises(ValueError, match="not negative"):
        priorities.update(np.array([0]), np.array([0]), np.array([[np.nan]]))


def test_restoring_needs_little_more_memory_than_drawing():
    kept, length = 300_000, 64
    priorities = Priorities(1, kept, length, EXPONENT, LARGEST)
    steps = np.random.default_rng(0).random((1, kept))
    tracemalloc.start()
    priorities.restore(steps, kept + 7)
    needed = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert needed < kept * length * 8  # bytes of the priorities in all sequences
    for time in (7, 65542, 65543, kept + 7 - length):  # the oldest, beside a boundary, and the newest
        inside = steps[0, (time + np.arange(length)) % kept] ** EXPONENT
        weight = priorities._finite._sums[priorities._finite._leaves + time % kept]
        assert weight == pytest.approx(LARGEST * inside.max() + (1 - LARGEST) * inside.mean())
    assert np.count_nonzero(priorities._finite._sums[priorities._finite._leaves :]) == kept - length + 1
