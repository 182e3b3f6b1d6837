"""A replay that was saved comes back as it was, whatever happened in between."""

import contextlib
import itertools
import json
import os
import zlib
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest

from dreamjax.replay.sequences import Address, Allocate, ReplayConfig, SequenceReplay
from dreamjax.storage.replays import ReplayError, ReplayFolder, mapped, read_share

EXAMPLE = {"x": jax.ShapeDtypeStruct((), np.int32), "half": jax.ShapeDtypeStruct((2,), ml_dtypes.bfloat16)}
CFG = ReplayConfig(capacity=60, length=4, prioritized=0.5, block=8)


def replay(cfg: ReplayConfig = CFG, allocate: Allocate | None = None) -> SequenceReplay:
    return SequenceReplay(cfg, EXAMPLE, 2, allocate)


def fill(one: SequenceReplay, steps: int) -> None:
    for _ in range(steps):
        time = one.written + 100 * np.arange(2)
        one.add({"x": time.astype(np.int32), "half": (time[:, None] + np.zeros(2)).astype(ml_dtypes.bfloat16)})


def everything(one: SequenceReplay) -> list:
    batches = [one.sample(np.random.default_rng(seed), 5) for seed in range(20)]
    return [(np.asarray(d["x"]).tolist(), d["half"].astype(float).tolist(), a.time.tolist()) for d, a in batches]


def test_a_restored_replay_draws_the_same(tmp_path):
    one = replay()
    folder = ReplayFolder(tmp_path)
    fill(one, 20)
    folder.save(one, 1)
    fill(one, 25)
    one.update(Address(np.array([1]), np.array([40])), 0, {"x": np.array([[7, 7]]), "half": None})
    folder.save(one, 2)
    other = replay()
    ReplayFolder(tmp_path).restore(other, 2)
    assert other.written == one.written and other.state().online == one.state().online
    fill(one, 9)
    fill(other, 9)
    assert everything(other) == everything(one)


def test_a_replay_in_files_draws_what_one_in_memory_does(tmp_path):
    one, other = replay(), replay(allocate=mapped(tmp_path / "mapped"))
    for some in (one, other):
        fill(some, 45)
        some.update(Address(np.array([1]), np.array([40])), 0, {"x": np.array([[7, 7]]), "half": None})
    assert everything(other) == everything(one)
    assert all(isinstance(leaf, np.memmap) for leaves in other.state().blocks.values() for leaf in leaves)
    assert list((tmp_path / "mapped").iterdir()) == []  # a kill leaves nothing
    ReplayFolder(tmp_path / "saved").save(other, 1)
    again = replay(allocate=mapped(tmp_path / "mapped"))
    ReplayFolder(tmp_path / "saved").restore(again, 1)
    assert all(isinstance(leaf, np.memmap) for leaves in again.state().blocks.values() for leaf in leaves)
    back = replay()  # and the other way round
    ReplayFolder(tmp_path / "saved").restore(back, 1)
    for some in (one, again, back):
        fill(some, 9)
    drawn = everything(one)
    assert everything(again) == drawn and everything(back) == drawn


def test_what_is_still_to_be_written_is_kept_beside_it(tmp_path):
    one, folder = replay(), ReplayFolder(tmp_path)
    fill(one, 20)
    late = [np.arange(6).reshape(2, 3), np.full((2, 1), 0.5, ml_dtypes.bfloat16)]
    folder.save(one, 1, late)
    folder.save(one, 2)
    folder.save(one, 3, [])
    assert not (tmp_path / "late-1.npz").exists()  # as nothing of step 1 is
    folder.save(one, 4, late)
    back = ReplayFolder(tmp_path)
    found = back.restore(replay(), 4)
    for array, same in zip(found, late, strict=True):
        np.testing.assert_array_equal(array, same)
        assert array.dtype == same.dtype
    assert back.restore(replay(), 3) == []


def test_streams_are_shared_anew_by_more_or_fewer_processes(tmp_path):
    """Four streams of one, of two and of four processes: whoever reads them draws the same."""

    def held(first: int, streams: int, written: int) -> SequenceReplay:
        one = SequenceReplay(replace(CFG, capacity=30 * streams), EXAMPLE, streams)
        for _ in range(written):
            time = one.written + 100 * np.arange(first, first + streams)
            one.add({"x": time.astype(np.int32), "half": np.zeros((streams, 2), ml_dtypes.bfloat16)})
        one.prioritize(Address(np.arange(streams), np.full(streams, 33)), 0, 1.0 + first + np.zeros((streams, 2)))
        return one

    for processes in (1, 2, 4):
        share = 4 // processes
        parts = [ReplayFolder(tmp_path / f"{number}-of-{processes}") for number in range(processes)]
        for number, part in enumerate(parts):
            part.save(held(number * share, share, 45), 7, [np.array([number])])
        for now in (1, 2, 4):
            streams = 4 // now
            for first in range(0, 4, streams):
                back = SequenceReplay(replace(CFG, capacity=30 * streams), EXAMPLE, streams)
                assert read_share(parts, back, 7, first) == [[[number]] for number in range(processes)]
                expected = held(first, streams, 45)
                assert back.state().online == expected.state().online
                if processes == now:
                    np.testing.assert_array_equal(back.state().priorities, expected.state().priorities)
                every = Address(np.arange(streams), np.full(streams, 20))
                np.testing.assert_array_equal(back.read(every, 25)["x"], expected.read(every, 25)["x"])
    parts[1].save(held(1, 1, 46), 8)
    parts[0].save(held(0, 1, 45), 8)
    with pytest.raises(ReplayError, match=r"hold \[45, 46\] steps"):
        read_share(parts[:2], SequenceReplay(replace(CFG, capacity=60), EXAMPLE, 2), 8, 0)


def test_going_back_and_on_from_there(tmp_path):
    one = replay()
    folder = ReplayFolder(tmp_path)
    fill(one, 20)
    folder.save(one, 1)
    one.update(Address(np.array([0]), np.array([2])), 0, {"x": np.array([[-5]]), "half": None})
    fill(one, 1)
    folder.save(one, 2)
    back = replay()
    again = ReplayFolder(tmp_path)
    again.restore(back, 1)
    assert again.steps() == [1]
    fill(back, 1)
    again.save(back, 2)
    third = replay()
    ReplayFolder(tmp_path).restore(third, 2)
    assert third.state().blocks[0][1][0, 2] == 2
    assert everything(third) == everything(back)


def test_only_what_changed_is_written_and_only_what_is_needed_kept(tmp_path):
    one = replay(ReplayConfig(capacity=60, length=4, block=8))
    folder = ReplayFolder(tmp_path)
    for step in range(1, 8):
        fill(one, 8)
        folder.save(one, step)
    assert folder.steps() == [6, 7]
    names = {path.name for path in tmp_path.glob("*.npz")}
    assert names == {f"block-{i}-{i + 1}.npz" for i in range(2, 7)}
    assert not list(tmp_path.glob(".*"))


def test_a_save_that_fails_leaves_the_last_one(tmp_path, monkeypatch):
    one = replay()
    folder = ReplayFolder(tmp_path)
    fill(one, 20)
    folder.save(one, 1)
    fill(one, 9)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        folder.save(one, 2)
    monkeypatch.undo()
    other = replay()
    ReplayFolder(tmp_path).restore(other, 1)
    assert other.written == 20
    folder.save(one, 2)
    ReplayFolder(tmp_path).restore(other, 2)
    assert everything(other) == everything(one)


@pytest.mark.parametrize("name", ["replay-1.json", "block-1-1.npz", "priorities-1.npz", "late-1.npz"])
def test_a_flipped_bit_is_noticed(tmp_path, name: str):
    one = replay()
    fill(one, 20)
    ReplayFolder(tmp_path).save(one, 1, [np.arange(50)])
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ReplayError, match=name):
        ReplayFolder(tmp_path).restore(replay(), 1)


def test_another_replay_is_refused(tmp_path):
    one = replay()
    fill(one, 5)
    ReplayFolder(tmp_path).save(one, 1)
    with pytest.raises(ValueError, match="capacity"):
        ReplayFolder(tmp_path).restore(replay(ReplayConfig(capacity=80, length=4, prioritized=0.5, block=8)), 1)
    with pytest.raises(ReplayError, match="replay-3"):
        ReplayFolder(tmp_path).restore(replay(), 3)


HALF = ["['half']"]  # as a replay names it


def refresh(one: SequenceReplay, time: int, value: float) -> None:
    half = np.full((1, 3, 2), value, ml_dtypes.bfloat16)
    one.update(Address(np.array([0]), np.array([time])), 0, {"x": None, "half": half})


def contents(one: SequenceReplay) -> list:
    """All steps that are kept, and their priorities."""
    every = Address(np.arange(2), np.full(2, one.oldest))
    read = one.read(every, one.written - one.oldest)
    return [one.written, read["x"].tolist(), read["half"].astype(float).tolist(), one.state().priorities.tolist()]


def test_what_is_refreshed_is_written_without_the_rest(tmp_path):
    one, folder = replay(), ReplayFolder(tmp_path, apart=HALF)
    fill(one, 20)
    folder.save(one, 1)
    refresh(one, 6, 0.5)  # in two blocks
    folder.save(one, 2)
    new = {path.name for path in tmp_path.glob("*-2.npz")}
    assert new == {"apart-0-2.npz", "apart-1-2.npz", "priorities-2.npz"}
    again, back = ReplayFolder(tmp_path, apart=HALF), replay()
    again.restore(back, 2)
    assert contents(back) == contents(one)
    refresh(back, 0, 0.25)
    again.save(back, 3)
    assert {path.name for path in tmp_path.glob("*-3.npz")} == {"apart-0-3.npz", "priorities-3.npz"}
    assert not (tmp_path / "apart-0-1.npz").exists() and (tmp_path / "block-0-1.npz").exists()
    third = replay()
    ReplayFolder(tmp_path).restore(third, 3)
    assert contents(third) == contents(back)


def test_what_older_versions_wrote_is_read_and_gone_on_with(tmp_path):
    one = replay()
    fill(one, 20)
    ReplayFolder(tmp_path).save(one, 1)
    listed = json.loads((tmp_path / "replay-1.json").read_text())
    del listed["crc32"]
    listed["blocks"] = {number: names[0] for number, names in listed["blocks"].items()}  # one file for all leaves
    listed["crc32"] = zlib.crc32(json.dumps(listed, sort_keys=True).encode())
    (tmp_path / "replay-1.json").write_text(json.dumps(listed))
    folder, back = ReplayFolder(tmp_path, apart=HALF), replay()
    folder.restore(back, 1)
    assert contents(back) == contents(one)
    refresh(back, 1, 0.5)
    folder.save(back, 2)
    folder.save(back, 3)
    assert folder.steps() == [2, 3] and not list(tmp_path.glob("block-*-[23].npz"))
    third = replay()
    ReplayFolder(tmp_path).restore(third, 3)
    assert contents(third) == contents(back)


@pytest.mark.parametrize("step", [1, 2])
def test_a_kill_at_any_moment_leaves_what_was_saved(tmp_path, monkeypatch, step: int):
    """While the next step is saved, and while the same one is saved again with more in it."""
    one, folder = replay(), ReplayFolder(tmp_path, apart=HALF)
    fill(one, 45)
    folder.save(one, 1)
    saved = contents(one)
    replace_file = os.replace
    for whole in itertools.count():
        fill(one, 1)
        refresh(one, one.oldest, whole + 0.5)
        left = iter(range(whole))

        def killed(*paths, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            replace_file(*paths)

        monkeypatch.setattr(os, "replace", killed)
        with contextlib.suppress(KeyboardInterrupt):
            folder.save(one, step)
            break
        back = replay()
        ReplayFolder(tmp_path).read(back, 1)
        assert contents(back) == saved
    assert whole > 3
    back = replay()
    ReplayFolder(tmp_path).restore(back, step)
    assert contents(back) == contents(one)
