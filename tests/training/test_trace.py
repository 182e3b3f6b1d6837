"""A profile covers the updates it was asked for, and is written wherever training ends."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog
from dreamjax.training.loop import train, updates
from dreamjax.training.trace import tracing
from dreamjax.types import PyTree


@dataclass(frozen=True)
class Config:
    seed: int = 0


def numbers(begin: int) -> Iterator[int]:
    return iter(range(begin, 1000))


def named(folder: Path, stage: str) -> set[int]:
    """The updates whose name is in the profile."""
    (path,) = (folder / "profile" / stage).rglob("*.xplane.pb")
    data = path.read_bytes()
    return {number for number in range(1, 30) if f"update number {number:02}".encode() in data}


def learn(folder: Path, profile: tuple[int, int] | None, fails: int = 1000, steps: int = 12) -> None:
    def step(state: PyTree, batch: int) -> tuple[PyTree, dict]:
        with jax.profiler.TraceAnnotation(f"update number {batch + 1:02}"):
            if batch + 1 == fails:
                raise LookupError("it fails")
            return state + 1, {"loss": 1.0}

    run = RunFolder(folder, Config())
    run.profile = profile
    with MetricsLog(folder) as log:
        train(run, log, "learn", jnp.zeros(()), updates(step, numbers), steps)


def test_the_chosen_updates_are_in_the_profile(tmp_path: Path) -> None:
    learn(tmp_path, (4, 6))
    assert named(tmp_path, "learn") == {4, 5, 6}


def test_a_profile_is_written_where_training_ends_or_fails(tmp_path: Path) -> None:
    learn(tmp_path / "ends", (11, 20))
    assert named(tmp_path / "ends", "learn") == {11, 12}
    with pytest.raises(LookupError):
        learn(tmp_path / "fails", (1, 20), fails=3)
    assert {1, 2} <= named(tmp_path / "fails", "learn")


def test_nothing_is_profiled_unless_asked_for(tmp_path: Path) -> None:
    learn(tmp_path, None)
    learn(tmp_path, (3, 4), steps=12)  # which is done
    assert not (tmp_path / "profile").exists()


def test_where_calls_hold_several_updates_none_is_missed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, Config())
    run.profile = (10, 11)
    on = []
    with tracing(run, "learn") as trace:
        for done in (0, 8, 16, 24):
            trace.at(done, jnp.zeros(()), 8)
            on.append(trace._is_on)
    assert on == [False, True, False, False]
