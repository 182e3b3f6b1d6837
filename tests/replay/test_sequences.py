"""Sequence replay against a plain list of everything that was ever written."""

import jax
import numpy as np
import pytest

from dreamjax.replay.sequences import Address, ReplayConfig, SequenceReplay

STREAMS, LENGTH = 3, 4
CFG = ReplayConfig(capacity=30, length=LENGTH, online=False, block=4)


def step_at(t: int) -> dict[str, np.ndarray]:
    """Says of every stream what time it is: 100 e + t."""
    value = 100 * np.arange(STREAMS) + t
    return {"x": value.astype(np.int32), "wide": value[:, None].astype(np.float32) + np.float32([[0.0, 0.5]])}


EXAMPLE = {"x": jax.ShapeDtypeStruct((), np.int32), "wide": jax.ShapeDtypeStruct((2,), np.float32)}


def filled(steps: int, cfg: ReplayConfig = CFG) -> SequenceReplay:
    replay = SequenceReplay(cfg, EXAMPLE, STREAMS)
    for t in range(steps):
        replay.add(step_at(t))
    return replay


def firsts(address: Address) -> list[int]:
    return (100 * address.stream + address.time).tolist()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("steps", [4, 9, 10, 27])
def test_samples_are_consecutive_steps_of_one_stream_and_all_come_up_alike(steps: int):
    replay = filled(steps)
    drawn, address = replay.sample(rng(), 3000)
    first = 100 * address.stream + address.time
    np.testing.assert_array_equal(drawn["x"], first[:, None] + np.arange(LENGTH))
    np.testing.assert_array_equal(drawn["wide"][..., 1], drawn["x"] + 0.5)
    oldest = max(0, steps - 10)
    wanted = {100 * e + t for e in range(STREAMS) for t in range(oldest, steps - LENGTH + 1)}
    values, counts = np.unique(first, return_counts=True)
    assert set(values.tolist()) == wanted
    assert len(wanted) == len(replay)
    expected = 3000 / len(wanted)
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)


def test_what_is_too_old_is_dropped_and_its_memory_with_it():
    replay = filled(4000)
    assert replay.steps == 30
    assert replay.oldest == 3990
    assert replay.nbytes <= 4 * 4 * STREAMS * (4 + 8)  # the blocks that the last ten steps touch


def test_adding_looks_at_the_oldest_block_alone():
    class Unlisted(dict):
        def __iter__(self):
            raise AssertionError("all blocks are looked at")

    replay = filled(40)
    replay._blocks = Unlisted(replay._blocks.items())
    for t in range(40, 60):
        replay.add(step_at(t))
    assert list(replay._blocks.keys()) == [12, 13, 14]


def test_every_step_after_the_first_is_drawn_once_from_the_online_queue():
    replay = SequenceReplay(ReplayConfig(capacity=300, length=LENGTH, block=8), EXAMPLE, STREAMS)
    seen = []
    for t in range(25):
        replay.add(step_at(t))
        if len(replay.state().online) >= 2:
            seen += replay.sample(rng(), 2)[0]["x"].ravel().tolist()
    seen += replay.sample(rng(), len(replay.state().online))[0]["x"].ravel().tolist()
    assert sorted(seen) == sorted(100 * e + t for e in range(STREAMS) for t in range(1, 25))


def test_the_rest_of_a_batch_is_drawn_at_random():
    replay = SequenceReplay(ReplayConfig(capacity=300, length=LENGTH, block=8), EXAMPLE, STREAMS)
    for t in range(6):
        replay.add(step_at(t))
    _, address = replay.sample(rng(), 200)
    assert firsts(address)[:STREAMS] == [1, 101, 201]
    assert set(firsts(address)) == {100 * e + t for e in range(STREAMS) for t in range(3)}


def test_update_writes_where_the_sample_came_from_and_nowhere_else():
    replay = filled(13)
    before = dict(replay.versions)
    replay.update(Address(np.array([1, 2]), np.array([4, 8])), 1, {"x": np.full((2, 3), -1), "wide": None})
    drawn, address = replay.sample(rng(), 500)
    times = 100 * address.stream[:, None] + address.time[:, None] + np.arange(LENGTH)
    written = np.isin(times, [105, 106, 107, 209, 210, 211])
    np.testing.assert_array_equal(drawn["x"], np.where(written, -1, times))
    np.testing.assert_array_equal(drawn["wide"][..., 0], times)
    assert {number for number, version in replay.versions.items() if version != before[number]} == {1, 2}


def test_update_leaves_alone_what_is_gone():
    replay = filled(24)
    replay.update(Address(np.array([0]), np.array([1])), 0, {"x": np.full((1, LENGTH), -1), "wide": None})
    assert (replay.sample(rng(), 200)[0]["x"] >= 0).all()


def test_recent_steps_are_preferred_as_one_over_their_age():
    replay = filled(10, ReplayConfig(capacity=30, length=LENGTH, online=False, recent=1.0, block=4))
    _, address = replay.sample(rng(), 20_000)
    age = STREAMS * (replay.written - LENGTH - address.time) + address.stream  # sequences that came after, and one
    counts = np.bincount(age, minlength=len(replay))
    wanted = 1.0 / np.arange(1, len(replay) + 1)
    np.testing.assert_allclose(counts / 20_000, wanted / wanted.sum(), atol=0.01)


def test_priorities_decide_what_is_drawn():
    cfg = ReplayConfig(capacity=30, length=LENGTH, online=False, prioritized=1.0, block=4)
    replay = filled(10, cfg)
    drawn, _ = replay.sample(rng(), len(replay))  # new steps come first, all of them
    assert set(drawn["x"].ravel().tolist()) == {100 * e + t for e in range(STREAMS) for t in range(10)}
    replay.prioritize(Address(np.array([1]), np.array([3])), 2, np.ones((1, 2)))
    _, address = replay.sample(rng(), 1)
    assert firsts(address)[0] in {102, 103, 104, 105, 106}


def test_half_by_priority():
    cfg = ReplayConfig(capacity=30, length=LENGTH, online=False, prioritized=0.5, block=4)
    replay = filled(10, cfg)
    for _ in range(30):
        replay.sample(rng(), 16)
    replay.prioritize(Address(np.array([2]), np.array([0])), 0, np.full((1, 1), 5.0))
    hits = 0
    for seed in range(400):
        _, address = replay.sample(rng(seed), 1)
        hits += firsts(address)[0] == 200
        replay.prioritize(Address(np.array([2]), np.array([0])), 0, np.full((1, 1), 5.0))
    assert 170 < hits < 260


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"capacity": 0}, "positive"),
        ({"prioritized": 0.7, "recent": 0.6}, "shares"),
        ({"capacity": 11, "length": 4}, "each needs the 4"),
    ],
)
def test_bad_settings_are_refused(cfg: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SequenceReplay(ReplayConfig(**cfg), EXAMPLE, STREAMS)


def test_steps_of_another_kind_are_refused():
    replay = filled(2)
    with pytest.raises(ValueError, match=r"wide.*float32 of shape \(3, 2\)"):
        replay.add(step_at(0) | {"wide": np.zeros((3, 3), np.float32)})
    with pytest.raises(ValueError, match=r"x.* must be int32"):
        replay.add(step_at(0) | {"x": np.zeros(3)})
    with pytest.raises(ValueError, match="structure"):
        replay.add({"x": np.zeros(3)})
    with pytest.raises(ValueError, match="add more"):
        replay.sample(rng(), 1)
    with pytest.raises(ValueError, match="prioritized"):
        replay.prioritize(Address(np.array([0]), np.array([0])), 0, np.ones((1, 1)))


@pytest.mark.parametrize("prioritized", [0.0, 0.5])
def test_a_restored_state_continues_as_the_original(prioritized: float):
    cfg = ReplayConfig(capacity=30, length=LENGTH, prioritized=prioritized, block=4)
    original, copy = filled(7, cfg), SequenceReplay(cfg, EXAMPLE, STREAMS)
    original.sample(rng(), 5)
    copy.restore(jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, original.state()))
    for t in range(7, 12):
        original.add(step_at(t))
        copy.add(step_at(t))
    for seed in range(5):
        (data, address), (other, other_address) = (
            one.sample(np.random.default_rng(seed), 6) for one in (original, copy)
        )
        np.testing.assert_array_equal(data["wide"], other["wide"])
        np.testing.assert_array_equal(address, other_address)


def test_a_state_of_another_layout_is_refused_and_changes_nothing():
    cfg = ReplayConfig(capacity=30, length=LENGTH, prioritized=0.5, block=4)
    replay = filled(7, cfg)
    with pytest.raises(ValueError, match="block 0 of the state holds"):
        replay.restore(filled(9, ReplayConfig(capacity=30, length=LENGTH, block=8)).state())
    with pytest.raises(ValueError, match="no priorities"):
        replay.restore(filled(9, ReplayConfig(capacity=30, length=LENGTH, block=4)).state())
    assert replay.written == 7 and len(replay.sample(rng(), 3)[0]["x"]) == 3
