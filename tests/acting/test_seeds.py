"""Seeds of different purposes never meet."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st

from dreamjax.acting import seeds

RANGES = [seeds.COLLECT, seeds.TRAIN, seeds.VALIDATION, seeds.TEST]
ENTROPY = st.lists(st.integers(0, 2**40), min_size=1, max_size=4)


def test_the_ranges_are_disjoint_and_are_seeds_of_every_engine() -> None:
    ends = [(one.start, one.stop) for one in RANGES]
    assert all(stop <= start for (_, stop), (start, _) in pairwise(ends))
    assert all(len(one) >= 2**28 and one.step == 1 for one in RANGES)
    assert ends[0][0] == 0 and ends[-1][1] == 2**31


@given(ENTROPY)
def test_draws_lie_in_their_range_and_repeat(entropy: list[int]) -> None:
    assert seeds.collecting(*entropy) in seeds.COLLECT
    assert seeds.training(*entropy) in seeds.TRAIN
    assert seeds.collecting(*entropy) == seeds.collecting(*entropy)
    assert seeds.training(*entropy) == seeds.training(*entropy)
    assert seeds.training(*entropy) != seeds.training(*entropy, 1)


@given(ENTROPY, st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_groups_of_a_generation_share_their_episodes(entropy: list[int], groups: int, each: int, episodes: int) -> None:
    drawn = seeds.generation(tuple(entropy), groups * each, episodes, groups)
    assert drawn.shape == (groups * each, episodes) and drawn.dtype == np.int64
    assert all(seed in seeds.TRAIN for seed in drawn.ravel().tolist())
    for individual in range(groups, groups * each):
        np.testing.assert_array_equal(drawn[individual], drawn[individual - groups])
    assert len(np.unique(drawn)) == groups * episodes  # no two groups share any, nor does one repeat


@given(st.integers(0, 300), st.integers(0, 2**20))
def test_validation_and_test_seeds_are_always_the_same(count: int, first: int) -> None:
    assert seeds.validation(count) == seeds.validation(count + 1)[:count]
    assert all(seed in seeds.VALIDATION for seed in seeds.validation(count))
    assert seeds.test(count, first) == seeds.test(first + count)[first:]
    assert all(seed in seeds.TEST for seed in seeds.test(count, first))


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="9 individuals cannot be in 4 groups"):
        seeds.generation((1, 2), 9, 5, 4)
    with pytest.raises(ValueError, match="a count of -1"):
        seeds.validation(-1)
    with pytest.raises(ValueError, match="1 such seeds, got a count of 2"):
        seeds.test(2, first=len(seeds.TEST) - 1)
