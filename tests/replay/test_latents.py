"""Chunks of encoded episodes against the same streams built from lists."""

import itertools
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from dreamjax.replay.latents import Chunk, Latents, chunks, chunks_per_epoch, concatenate, end_to_end
from dreamjax.types import Step

LENGTHS = [5, 9, 1, 12, 7, 3, 20, 4]  # 61 steps


def latents(lengths: list[int]) -> Latents:
    """Step i has mean i, log variance -i, action i / 2, reward 3 i: numbers name steps. Every third is terminal."""
    number = np.arange(sum(lengths), dtype=np.float16)
    reward, is_terminal = 3 * number.astype(np.float32), number % 3 == 0
    return Latents(number[:, None], -number[:, None], number / 2, reward, is_terminal, np.array(lengths, np.int64))


def epoch_order(lengths: list[int], seed: int, epoch: int) -> tuple[list[int], list[bool], list[bool]]:
    """The steps of an epoch end to end, whether each opens an episode, and whether it closes one."""
    starts = [sum(lengths[:e]) for e in range(len(lengths))]
    steps, is_first, is_last = [], [], []
    for e in np.random.default_rng([seed, epoch]).permutation(len(lengths)):
        steps += range(starts[e], starts[e] + lengths[e])
        is_first += [True] + [False] * (lengths[e] - 1)
        is_last += [False] * (lengths[e] - 1) + [True]
    return steps, is_first, is_last


def take(stream: list[int], streams: int, length: int) -> list[list[list[int]]]:
    """Fold a list into streams and cut those: [chunk][stream][length + 1 steps], one of them shared with the next."""
    width = len(stream) // streams
    folded = [stream[b * width : (b + 1) * width] for b in range(streams)]
    cuts = range(0, width - length, length)
    return [[one[i : i + length + 1] for one in folded] for i in cuts]


def assert_same(left: Chunk, right: Chunk) -> None:
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


@given(
    st.lists(st.integers(1, 12), min_size=3, max_size=12),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 3),
)
def test_chunks_equal_those_of_lists(lengths: list[int], streams: int, length: int, seed: int) -> None:
    """Two epochs of them."""
    if sum(lengths) // streams < length + 1:
        with pytest.raises(ValueError, match="steps do not fill"):
            next(chunks(latents(lengths), seed, streams, length))
        return
    got = chunks(latents(lengths), seed, streams, length)
    for epoch in range(2):
        expected = zip(*(take(one, streams, length) for one in epoch_order(lengths, seed, epoch)), strict=True)
        count = 0
        for i, (numbers, is_first, is_last) in enumerate(expected):
            chunk = next(got)
            assert chunk.mean.shape == chunk.log_variance.shape == (length + 1, streams, 1)
            np.testing.assert_array_equal(chunk.mean[..., 0].T, numbers)
            np.testing.assert_array_equal(chunk.log_variance, -chunk.mean)
            np.testing.assert_array_equal(chunk.action, chunk.mean[..., 0] / 2)
            np.testing.assert_array_equal(chunk.reward, 3 * chunk.mean[..., 0])
            np.testing.assert_array_equal(chunk.is_terminal, chunk.mean[..., 0] % 3 == 0)
            np.testing.assert_array_equal(chunk.is_first.T, is_first)
            np.testing.assert_array_equal(chunk.is_last.T, is_last)
            assert chunk.reset.shape == () and chunk.reset == (i == 0)
            count += 1
        assert count == chunks_per_epoch(latents(lengths), streams, length)


def test_every_transition_comes_once_per_epoch_but_for_the_rest() -> None:
    """No order of episodes assumed: the transitions within episodes are known without one."""
    data, streams, length = latents(LENGTHS), 2, 4
    count = chunks_per_epoch(data, streams, length)
    assert count == (61 // 2 - 1) // 4 == 7
    within = {(i, i + 1) for i in range(60)} - {(end - 1, end) for end in itertools.accumulate(LENGTHS)}
    stream = chunks(data, 0, streams, length)
    for _ in range(3):
        seen: Counter[tuple[int, int]] = Counter()
        for chunk in itertools.islice(stream, count):
            mean = chunk.mean[..., 0].astype(int)
            for t, b in np.ndindex(length, streams):
                pair = (mean[t, b], mean[t + 1, b])
                assert (pair in within) != chunk.is_first[t + 1, b]
                assert chunk.is_last[t, b] == chunk.is_first[t + 1, b]
                seen[pair] += 1
        assert set(seen.values()) == {1} and seen.total() == count * streams * length
        # 60 transitions, of which one lies between the streams and three fill no chunk
        assert len(within - set(seen)) <= 60 - seen.total() == 4


def test_consecutive_chunks_share_one_step() -> None:
    first, second, third = itertools.islice(chunks(latents(LENGTHS), 3, 2, 4), 3)
    for before, after in ((first, second), (second, third)):
        for name in ("mean", "log_variance", "action", "reward", "is_terminal", "is_first", "is_last"):
            np.testing.assert_array_equal(getattr(before, name)[-1], getattr(after, name)[0])
    assert first.reset and not second.reset and not third.reset


@pytest.mark.parametrize("step", [0, 1, 6, 7, 8, 20])
def test_a_stream_resumes_at_any_step(step: int) -> None:
    """There are 7 chunks in an epoch."""
    whole = itertools.islice(chunks(latents(LENGTHS), 5, 2, 4), step, step + 9)
    resumed = chunks(latents(LENGTHS), 5, 2, 4, start_step=step)
    for left, right in zip(whole, resumed, strict=False):
        assert_same(left, right)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def epoch(seed: int, number: int) -> tuple:
        stream = chunks(latents(LENGTHS), seed, 1, 60, start_step=number)
        return tuple(next(stream).mean[:, 0, 0])

    assert chunks_per_epoch(latents(LENGTHS), 1, 60) == 1
    orders = [epoch(seed, number) for seed in range(3) for number in range(3)]
    assert len(set(orders)) == 9 and {tuple(sorted(order)) for order in orders} == {tuple(range(61))}


def test_too_few_steps_are_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"61 steps do not fill 6 streams of 10 \+ 1; use fewer or shorter streams"):
        next(chunks(latents(LENGTHS), 0, 6, 10))
    assert chunks_per_epoch(latents(LENGTHS), 6, 9) == 1
    with pytest.raises(ValueError, match="streams and length of 1 or more, got 2 and 0"):
        next(chunks(latents(LENGTHS), 0, 2, 0))
    whole = latents(LENGTHS)
    for wrong in (whole._replace(length=whole.length[:-1]), whole._replace(reward=whole.reward[:-1])):
        with pytest.raises(ValueError, match="lengths of the episodes sum up to"):
            next(chunks(wrong, 0, 2, 3))


def test_parts_are_put_end_to_end() -> None:
    whole = latents(LENGTHS)
    parts = [Latents(*(leaf[:15] for leaf in whole[:-1]), whole.length[:3])]
    parts.append(Latents(*(leaf[15:] for leaf in whole[:-1]), whole.length[3:]))
    for got, expected in zip(concatenate(parts), whole, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_dreams_begin_at_the_first_frames() -> None:
    mean, log_variance = latents(LENGTHS).first_frames(4)
    np.testing.assert_array_equal(mean[:, 0], [0, 5, 14, 15])
    np.testing.assert_array_equal(log_variance[:, 0], [0, -5, -14, -15])
    assert mean.dtype == log_variance.dtype == np.float32
    more = len(LENGTHS) + 2  # than there are: it begins again
    mean, _ = latents(LENGTHS).first_frames(more)
    assert len(mean) == more
    np.testing.assert_array_equal(mean[-2:], mean[:2])


def test_parallel_environments_are_put_end_to_end() -> None:
    """Environment 0 has an episode that ends for good, one that is cut by its limit, and the start of a third; the
    others were in the middle of an episode all the time, or began with the last step of one."""
    is_first = np.array([[1, 0, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]], bool)
    is_last = np.array([[0, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], bool)
    is_terminal = np.array([[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
    number = np.arange(18).reshape(3, 6)
    step = Step({"number": number, "pair": np.stack([number, -number], -1)}, 1 + number, is_first, is_last, is_terminal)
    got = end_to_end(step, number[..., None] + 1)
    np.testing.assert_array_equal(got.observation["number"], np.arange(18))
    np.testing.assert_array_equal(got.observation["pair"], np.stack([np.arange(18), -np.arange(18)], -1))
    np.testing.assert_array_equal(got.length, [3, 2, 1, 6, 1, 5])
    np.testing.assert_array_equal(got.reward, [0, 2, 3, 0, 5, 0, 0, 8, 9, 10, 11, 12, 0, 0, 15, 16, 17, 18])
    np.testing.assert_array_equal(got.action[:, 0], [1, 2, 0, 4, 0, 0, 7, 8, 9, 10, 11, 0, 0, 14, 15, 16, 17, 0])
    np.testing.assert_array_equal(got.is_terminal, is_terminal.ravel())
    assert number[1, 0] == 6 and step.reward[0, 0] == 1  # what was recorded is not written to
