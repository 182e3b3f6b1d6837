"""The plan of World Models' stages: what is counted, what is refused, and that its probe compiles nothing twice."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from dreamjax.envs.vizdoom import take_cover_spec
from dreamjax.evolution import EvolutionConfig
from dreamjax.replay.latents import Latents
from dreamjax.storage import MetricsLog, RunFolder
from dreamjax.training import stage_plan, stages
from dreamjax.training.plan import Machine
from dreamjax.training.stages import Collect, Evolve, TrainMemory, TrainVision
from dreamjax.worldmodels import DOOM, learner, model

GIB = 2**30
AGENT = model.make(DOOM, take_cover_spec(2100))
PAPER = stage_plan.plan(Collect(), Evolve(), DOOM, AGENT)


@dataclass(frozen=True)
class Config:
    seed: int = 0


def test_the_published_run_is_counted() -> None:
    assert PAPER.frames == (10_000 * 2, 10_000 * 2101) and PAPER.frame == 64 * 64 * 3
    params = jax.eval_shape(AGENT.model.init, jax.random.key(0))
    assert PAPER.parameters["V"] == sum(leaf.size for leaf in jax.tree.leaves(params.vision))
    assert PAPER.dreamed == 64 * 16 * 1800 * 2100
    known = stage_plan.plan(Collect(), Evolve(), DOOM, AGENT, collected=2_000_000)
    assert known.frames == (2_000_000, 2_000_000) and known.memory[0] == known.memory[1] < PAPER.memory[1]


def test_only_what_surely_does_not_fit_is_refused() -> None:
    small = Machine(memory=GIB // 4, disk=100 * GIB, files=2**20)
    stage_plan.check(PAPER, small, Collect())  # episodes may be short
    known = stage_plan.plan(Collect(), Evolve(), DOOM, AGENT, collected=2_000_000)
    stage_plan.check(known, small._replace(memory=8 * GIB), Collect())
    with pytest.raises(ValueError, match=r"2,000,000 frames of 10,000 episodes .*: set collect.episodes to \d,\d+ or"):
        stage_plan.check(known, small, Collect())


def test_the_probe_compiles_what_training_uses(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    world = replace(DOOM, memory=replace(DOOM.memory, hidden_size=8))
    collect, evolve = Collect(4, min_steps=3), Evolve(EvolutionConfig(8), 2, 1)
    cfg = TrainMemory(2, streams=2, length=3)
    run = RunFolder(tmp_path, Config())
    planned = partial(stage_plan.announce, run, collect, TrainVision(2, 2), cfg, evolve, world)
    planned(model.make(world, take_cover_spec(9)))
    told, kept = capsys.readouterr().err, (tmp_path / "plan.txt").read_text()
    assert told == f"plan of {tmp_path}\n{kept}" and "vision     2 updates of " in kept
    run.finish_stage("vision")  # so that only M is timed
    planned(model.make(world, take_cover_spec(9)))
    told = capsys.readouterr().err
    assert (tmp_path / "plan.txt").read_text() == kept
    assert "memory     2 updates of " in told and "vision " not in told and "up to 40 frames" in told
    compiled = learner.train_step._cache_size()
    mean, flags = np.zeros((12, 64), np.float16), np.zeros(12, bool)
    data = Latents(mean, mean, np.zeros(12, np.float16), np.zeros(12, np.float32), flags, np.array([12]))
    with MetricsLog(tmp_path) as log:
        stages.train_memory(run, log, jax.random.key(0), cfg, world.memory, data, seed=0)
    assert learner.train_step._cache_size() == compiled
