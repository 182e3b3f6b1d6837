"""Experiments that are killed, in every stage that could be lost, and end in the numbers of a run that was not."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.scripts import REPO, finish, kill_when, outcome, start

pytestmark = pytest.mark.long

# Arguments, and the files after whose arrival it is killed, one after the other.
CASES = {
    "doom_take_cover": (
        (),
        (
            "episodes/episode_000001.npz",
            "checkpoints/vision/2",
            "latents",
            "checkpoints/memory/2",
            "checkpoints/evolve",
            "evaluation/real.jsonl",
        ),
    ),
    "doom_temperature_sweep": ((), ("checkpoints/z-50",)),
    "doom_iterative": ((), ("checkpoints/memory",)),
    "car_racing": (("--controller", "untrained-memory"), ("checkpoints/untrained-memory-evolve/1",)),
    "car_racing, in dreams": (("--controller", "full-dream"), ("stages/full-dream-iteration-01.json",)),
    "swingup_iterative": (
        ("--curiosity", "1", "--units", "2"),
        ("stages/iteration-01.json", "checkpoints/memory/4"),
    ),
    "dreamerv3_ablations": ((), ("checkpoints/memory-DreamerV3/1",)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_killed_experiment_ends_in_the_same_numbers(name: str, tmp_path: Path) -> None:
    script = REPO / "experiments" / f"{name.partition(',')[0]}.py"
    arguments, marks = CASES[name]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = (script, "--preset", "smoke", *arguments, "--folder")
    finish(start(*command, str(whole)))
    for mark in marks:
        kill_when(start(*command, str(killed)), killed / mark)
        if mark.startswith("episodes/"):  # as if another process had recorded one more than was asked for
            shutil.copy(killed / mark, killed / "episodes" / "episode_000099.npz")
    finish(start(*command, str(killed)))
    for ours, theirs in zip(outcome(killed), outcome(whole), strict=True):
        assert ours.keys() == theirs.keys()
        assert {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]} == {}
    for path in whole.glob("agent*.npz"):
        with np.load(killed / path.name) as ours, np.load(path) as theirs:
            assert all(np.array_equal(ours[leaf], theirs[leaf]) for leaf in theirs.files)
