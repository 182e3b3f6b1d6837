"""What the stages add to the loops that they run."""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np

from dreamjax.acting import random_play, seeds
from dreamjax.envs.vizdoom import TakeCover, take_cover_spec
from dreamjax.replay.latents import Latents
from dreamjax.storage import MetricsLog, RunFolder
from dreamjax.training import stages
from dreamjax.training.stages import TrainMemory
from dreamjax.types import Params
from dreamjax.worldmodels import MemoryConfig

MEMORY = MemoryConfig(latent_size=2, hidden_size=4, mixtures=1, predict_reward=True)


def remembered(folder: Path, lowest_reward: float | None, rewards: tuple[float, ...]) -> Params:
    """Parameters of M after two updates on one episode with these rewards."""
    n, cfg = len(rewards), TrainMemory(2, streams=1, length=3, lowest_reward=lowest_reward)
    mean, flags = np.ones((n, 2), np.float16), np.zeros(n, bool)
    data = Latents(mean, -mean, np.zeros(n, np.float16), np.array(rewards, np.float32), flags, np.array([n]))
    with MetricsLog(folder) as log:
        return stages.train_memory(RunFolder(folder, cfg), log, jax.random.key(0), cfg, MEMORY, data, seed=0).params


def test_memory_learns_no_reward_below_the_lowest(tmp_path: Path) -> None:
    raw = (0.0, 1.0, -100.0, 0.5, -2.0)
    clipped = remembered(tmp_path / "clipped", -1.0, raw)
    jax.tree.map(
        np.testing.assert_array_equal, clipped, remembered(tmp_path / "same", None, (0.0, 1.0, -1.0, 0.5, -1.0))
    )
    other = remembered(tmp_path / "raw", None, raw)
    assert any((a != b).any() for a, b in zip(jax.tree.leaves(clipped), jax.tree.leaves(other), strict=True))


def test_an_evaluation_notes_every_test_episode_and_records_the_score(tmp_path: Path) -> None:
    agent, make_env = random_play.random_agent(take_cover_spec(3)), partial(TakeCover, max_steps=3)
    run = RunFolder(tmp_path, TrainMemory())
    who = jax.random.key(0), "random", agent, random_play.PARAMS, make_env
    np.testing.assert_array_equal(stages.evaluate(run, *who, 2), [3, 3])
    assert run.stage_record("evaluate-random")["summary"] == {"mean": 3.0, "std": 0.0, "n": 2}
    notes = tmp_path / "evaluation" / "random.jsonl"
    assert sorted(json.loads(line)["seed"] for line in notes.read_text().splitlines()) == list(seeds.TEST[:2])
    before = notes.read_text()
    np.testing.assert_array_equal(stages.evaluate(run, *who, 2), [3, 3])
    assert notes.read_text() == before
