"""Runs as people run them: what is not finite, signals, two at once, longer ones, and ones that do not fit."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest

from dreamjax.acting.vector import VectorEnvironment
from dreamjax.dreamerv3 import experience, learner
from dreamjax.dreamerv3.config import SIZES, DreamerConfig, HeadsConfig, RSSMConfig
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.envs import probes
from dreamjax.envs.gymnasium import to_gymnasium
from dreamjax.envs.vizdoom import TakeCover, take_cover_spec
from dreamjax.replay.latents import Chunk
from dreamjax.replay.sequences import SequenceReplay
from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.storage.folder import ConfigMismatch, FolderInUse, RunFolder
from dreamjax.storage.metrics import MetricsLog
from dreamjax.storage.replays import mapped
from dreamjax.training import plan
from dreamjax.training.devices import keep_compiled_programs
from dreamjax.training.loop import generations, train, updates
from dreamjax.training.online import train_online
from dreamjax.training.online_config import OnlineConfig, updates_due
from dreamjax.training.stages import Collect, Evolve, TrainVision, collect, may_change
from dreamjax.types import EnvSpec, PyTree, Space
from dreamjax.worldmodels import MemoryConfig, MemoryLearner, learner as worldmodels_learner

LIMIT = 600.0  # seconds that any wait may take
TINY = DreamerConfig(
    RSSMConfig(deter=16, hidden=8, stoch=4, classes=4),
    heads=HeadsConfig(units=8, bins=15),
    compute_dtype="float32",
)
TINY = replace(TINY, codec=replace(TINY.codec, units=8), behaviour=replace(TINY.behaviour, horizon=3))
CFG = OnlineConfig(100, batch_size=2, batch_length=8, train_ratio=8, capacity=400, checkpoint_every=1, log_every=5)


def counter() -> gymnasium.Env:
    return to_gymnasium(probes.counter(max_steps=7))


SPEC = VectorEnvironment(counter, 1, 7).spec
KEY = jax.random.key(0)


def run(
    folder: Path, cfg: OnlineConfig = CFG, agent: DreamerConfig = TINY, make_env: Callable[[], gymnasium.Env] = counter
) -> learner.TrainState:
    with closing(VectorEnvironment(make_env, 2, 7)) as environment, jax.debug_key_reuse(False):
        dreamer = Dreamer.of(agent, environment.spec)
        return train_online(RunFolder(folder, agent), dreamer, environment, cfg, 0)


def assert_same(left: PyTree, right: PyTree) -> None:
    jax.tree.map(np.testing.assert_array_equal, left, right)


def is_finite(tree: PyTree) -> bool:
    return all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


# What is not finite


def replayed(dreamer: Dreamer, value: float, reward: float = 0.0) -> experience.Experience:
    """Two sequences as `run` draws them, of which one has this number in an observation, and this reward."""
    zeros = lambda like: np.zeros((2, 9, *like.shape), like.dtype)  # noqa: E731
    drawn = jax.tree.map(zeros, experience.example(dreamer))
    drawn.step.observation[1, 4, 0] = value
    drawn.step.reward[1, 5] = reward
    return drawn


def test_an_update_that_is_not_finite_changes_nothing_but_its_number() -> None:
    dreamer = Dreamer.of(TINY, SPEC)
    state = learner.init(dreamer, jax.random.key(0))
    kept = []
    for broken in ((1.0,), (np.inf,), (np.nan,), (1.0, np.nan), (1.0, -np.inf), (1.0,)):
        state, learned = experience.learn(dreamer, jax.random.key(1), state, replayed(dreamer, *broken))
        kept.append(jax.device_get((state, learned.metrics["skipped"])))
    (one, _), *others, (last, _) = kept
    for other, _ in others:
        assert_same(one[1:], other[1:])
    assert [int(skipped) for _, skipped in kept] == [0, 1, 2, 3, 4, 4]
    assert int(last.step) == 6 and is_finite(last)
    moved = jax.tree.map(lambda new, old: bool((new != old).any()), last.params, one.params)
    assert any(jax.tree.leaves(moved))


def test_memory_skips_an_update_that_is_not_finite() -> None:
    cfg = MemoryLearner(MemoryConfig(latent_size=2, hidden_size=4, mixtures=1), streams=2)
    state, kept = worldmodels_learner.init(cfg, jax.random.key(0)), []
    for mean in (0.5, np.inf, 0.5):
        array, zeros, no = np.full((3, 2, 2), mean, np.float32), np.zeros((3, 2), np.float32), np.zeros((3, 2), bool)
        chunk = Chunk(array, np.zeros_like(array), zeros, zeros, no, no, no, np.array(False))
        state, metrics = worldmodels_learner.train_step(cfg, jax.random.key(1), state, chunk)
        kept.append(jax.device_get((state, metrics["skipped"])))
    assert_same(kept[0][0][1:], kept[1][0][1:])
    assert [int(skipped) for _, skipped in kept] == [0, 1, 1] and is_finite(kept[2][0])


@pytest.mark.long
def test_a_run_whose_updates_are_not_finite_stops_with_a_sound_checkpoint(tmp_path: Path) -> None:
    broken = replace(TINY, optimizer=replace(TINY.optimizer, learning_rate=1e30, warmup=3))  # the first rate is 0
    with pytest.raises(FloatingPointError, match=r"step 2 of stage 'learn' was not finite: .*update_norm = inf.*rate"):
        run(tmp_path, agent=broken)
    step, state = Checkpoints(tmp_path / "checkpoints").restore(learner.init(Dreamer.of(broken, SPEC), KEY)) or (0, 0)
    assert step == 1 and is_finite(state)


LOST, LEFT_OUT = (
    "^step 6 of stage 'learn' was not finite: loss = nan",
    "^an update before step 6 of stage 'learn' was not",
)


@pytest.mark.parametrize(("broken", "said"), [({"loss": np.nan}, LOST), ({"skipped": 1}, LEFT_OUT)])
def test_a_stage_is_not_saved_when_it_is_not_finite(tmp_path: Path, broken: dict, said: str) -> None:
    def step(state: PyTree, batch: int) -> tuple[PyTree, dict]:
        return {"w": state["w"] + 1}, {"loss": 1.0, "skipped": 0} | (broken if batch >= 5 else {})

    settings: Any = {"checkpoint_every": 2, "log_every": 100}
    with MetricsLog(tmp_path) as log, pytest.raises(FloatingPointError, match=said):
        train(
            RunFolder(tmp_path, TINY),
            log,
            "learn",
            {"w": np.zeros(2, np.float32)},
            updates(step, numbers),
            10,
            **settings,
        )
    assert Checkpoints(tmp_path / "checkpoints" / "learn").steps() == [2, 4]


def numbers(begin: int) -> Any:
    return iter(range(begin, 1000))


# Signals


class Signalling(gymnasium.Wrapper):
    """Sends this process a signal in its step number `when`, counted over all that are made."""

    steps, when, number = 0, 0, signal.SIGTERM

    def step(self, action: Any) -> Any:
        Signalling.steps += 1
        if Signalling.steps == Signalling.when:
            os.kill(os.getpid(), Signalling.number)
        return super().step(action)


def rows(folder: Path, stage: str) -> list[int]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in lines if row["stage"] == stage]


@pytest.mark.parametrize(
    ("when", "number", "code"), [(61, signal.SIGTERM, 75), (61, signal.SIGUSR1, 75), (20, signal.SIGINT, 130)]
)
def test_online_training_is_saved_at_a_signal_and_goes_on_from_there(
    tmp_path: Path, when: int, number: int, code: int, capsys: pytest.CaptureFixture
) -> None:
    """In the middle of learning, and before the first update. The steps of two environments come in turn."""
    Signalling.steps, Signalling.when, Signalling.number = 0, when, number  # type: ignore[assignment]
    cfg = replace(CFG, train_ratio=24, checkpoint_every=10**6, log_every=1)  # three updates in a call
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(tmp_path, cfg, make_env=lambda: Signalling(counter()))
    assert isinstance(stopped.value, SystemExit) and stopped.value.code == code
    steps = json.loads(next((tmp_path / "replay").glob("*.json")).read_text())["written"] * 2
    assert when <= steps <= when + 12  # some steps only open an episode
    said = f"stopped by {signal.Signals(number).name}: saved at step {steps} of 100; started again, it goes on from"
    assert said in capsys.readouterr().err
    assert Checkpoints(tmp_path / "checkpoints").steps() == [updates_due(cfg, 9, 2, steps - 2)]
    assert int(run(tmp_path, cfg).step) == updates_due(cfg, 9, 2, 100)
    assert rows(tmp_path, "learn") == list(range(1, updates_due(cfg, 9, 2, 100) + 1))  # each once, on and on
    assert rows(tmp_path, "episode") == sorted(set(rows(tmp_path, "episode")))


# Two at once


HOLD = """
import sys
from dataclasses import dataclass
from dreamjax.storage import RunFolder

@dataclass(frozen=True)
class Config:
    seed: int = 0

run = RunFolder(sys.argv[1], Config())
print("has it", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Config:
    seed: int = 0


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "has it\n"
        with pytest.raises(FolderInUse, match=rf"{tmp_path} is being written by process {child.pid} on .*: wait for"):
            RunFolder(tmp_path, Config())
        assert RunFolder.opened(tmp_path, Config).config == Config()  # which only reads
        child.kill()
        child.wait(LIMIT)
    first, second = RunFolder(tmp_path, Config()), RunFolder(tmp_path, Config())  # one process may
    assert first.path == second.path


# Longer ones


@dataclass(frozen=True)
class Stages:
    collect: Collect = Collect(2, workers=0, envs=2)
    vision: TrainVision = TrainVision(5)
    evolve: Evolve = Evolve(generations=3)


MAY_CHANGE = may_change(["evolve"])


def test_a_finished_stage_trains_longer_in_the_same_numbers(tmp_path: Path) -> None:
    def learn(folder: Path, cfg: Stages) -> PyTree:
        step = lambda state, number: ({"w": state["w"] * 3 + number}, {"loss": 1.0})  # noqa: E731
        folder_of_run, count = RunFolder(folder, cfg, MAY_CHANGE), cfg.evolve.generations
        with MetricsLog(folder) as log:
            state = train(
                folder_of_run, log, "evolve", {"w": np.zeros(2, np.float32)}, generations(step), count, log_every=1
            )
        assert folder_of_run.stage_done("evolve")
        return state

    more = Stages(evolve=Evolve(generations=7))
    learn(tmp_path / "a", Stages())
    assert not RunFolder(tmp_path / "a", more, MAY_CHANGE).stage_done("evolve")
    assert_same(learn(tmp_path / "a", more), learn(tmp_path / "b", more))
    assert rows(tmp_path / "a", "evolve") == list(range(1, 8))
    (change,) = json.loads((tmp_path / "a" / "changes.json").read_text())
    assert change["changed"] == ["evolve.generations: the folder has 3, this run 7"]


def test_what_later_stages_made_use_of_may_not_change(tmp_path: Path) -> None:
    RunFolder(tmp_path, Stages(), MAY_CHANGE).finish_stage("vision")
    more = replace(Stages(), vision=TrainVision(9))
    assert not RunFolder(tmp_path, more, MAY_CHANGE).stage_done("vision")  # nothing has seen with it yet
    RunFolder(tmp_path, more, MAY_CHANGE).finish_stage("encode")
    with pytest.raises(
        ConfigMismatch, match=r"vision.updates: the folder has 9, this run 5, and encode made use of it"
    ):
        RunFolder(tmp_path, Stages(), MAY_CHANGE)
    with pytest.raises(ConfigMismatch, match=r"(?s)vision.batch: .*What may change: collect.episodes, vision.updates"):
        RunFolder(tmp_path, replace(more, vision=TrainVision(9, batch=3)), MAY_CHANGE)


def test_more_episodes_are_collected_in_the_same_folder(tmp_path: Path) -> None:
    cfg, game = Stages(), partial(TakeCover, max_steps=3)
    for episodes in (2, 3):
        cfg = replace(cfg, collect=replace(cfg.collect, episodes=episodes))
        folder = RunFolder(tmp_path, cfg, MAY_CHANGE)
        assert len(collect(folder, cfg.collect, game, take_cover_spec(3), 0)) == episodes
        assert folder.stage_record("collect")["summary"]["episodes"] == episodes


# What does not fit


PIXELS = Dreamer.of(SIZES["12m"], EnvSpec(Space((64, 64, 3), np.uint8, 0, 256), Space((), np.int32, 0, 3), 100))
GIB = 2**30
LAPTOP = plan.Machine(memory=16 * GIB, disk=200 * GIB, files=2**20)


def test_the_plan_says_what_will_be_needed(tmp_path: Path) -> None:
    dreamer, cfg = Dreamer.of(TINY, SPEC), replace(CFG, steps=3000, capacity=2500)
    needs = plan.plan(dreamer, cfg, 2)
    state = jax.eval_shape(partial(learner.init, dreamer), KEY)
    assert needs.parameters == sum(leaf.size for leaf in jax.tree.leaves(state.params))
    replay = SequenceReplay(cfg.replay(dreamer.cfg.context), experience.example(dreamer), 2)
    step = jax.tree.map(lambda like: np.zeros((2, *like.shape), like.dtype), experience.example(dreamer))
    largest = 0
    for _ in range(1500):
        replay.add(step)
        largest = max(largest, replay.nbytes)
    assert largest <= needs.replay <= 1.6 * largest and needs.steps == 2500 and needs.files == 0
    kept = SequenceReplay(replay.cfg, experience.example(dreamer), 2, mapped(tmp_path))
    for _ in range(1500):
        kept.add(step)
    held = len([fd for fd in os.listdir("/proc/self/fd") if str(tmp_path) in os.path.realpath(f"/proc/self/fd/{fd}")])
    assert held <= plan.plan(dreamer, replace(cfg, on_disk=True), 2).files <= 1.6 * held
    table = plan.table(needs, LAPTOP)
    assert f"{needs.parameters:,}" in table and "2,500 steps in memory" in table and "16 GiB" in table
    assert needs.part == needs.agent and "on every device\n" in table
    part = plan.plan(Dreamer.of(SIZES["12m"], PIXELS.spec), replace(cfg, sharded=True), 2)
    assert part.part == part.agent  # there is one device
    assert "on every device; 2 KiB in all" in plan.table(part._replace(part=1024, agent=2048), LAPTOP)


def test_a_run_that_cannot_fit_is_refused_with_what_to_change(tmp_path: Path) -> None:
    short, long = OnlineConfig(100_000), OnlineConfig(10_000_000)  # by default five million are kept
    plan.check(plan.plan(PIXELS, short, 4), LAPTOP, tmp_path)
    with pytest.raises(ValueError, match=r"replay of 5,000,000 steps takes 7\d.*GiB.*16 GiB: set capacity to \d+,"):
        plan.check(plan.plan(PIXELS, long, 4), LAPTOP, tmp_path)
    filed = plan.plan(PIXELS, replace(long, on_disk=True), 4)
    plan.check(filed, LAPTOP._replace(disk=400 * GIB), tmp_path)
    assert filed.disk - plan.plan(PIXELS, long, 4).disk == filed.replay and "in files" in plan.table(filed, LAPTOP)
    with pytest.raises(ValueError, match=rf"keeps {filed.files:,} files open .* have 1,024 here: .*capacity to \d+"):
        plan.check(filed, LAPTOP._replace(disk=400 * GIB, files=1024), tmp_path)
    with pytest.raises(ValueError, match=r"checkpoints .* are free in .*: make room"):
        plan.check(plan.plan(PIXELS, short, 4), LAPTOP._replace(disk=GIB), tmp_path)
    with pytest.raises(ValueError, match="set capacity"):
        run(tmp_path, replace(CFG, steps=10**13, capacity=10**13))
    assert not (tmp_path / "checkpoints").exists() and not RunFolder(tmp_path, TINY).stage_records()


# Programs that stay compiled


KEEP = """
from dreamjax.training.devices import keep_compiled_programs
import jax
jax.jit(lambda x: x + 1)(1.0)  # which decides that there is no cache
keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x * 2 + 1)(1.0)
"""


def test_compiled_programs_are_kept_where_nobody_said_otherwise(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    subprocess.run([sys.executable, "-c", KEEP], env=environment, check=True, timeout=LIMIT)
    assert [path for path in tmp_path.glob("dreamjax/jax/*/jit__lambda*") if path.is_file()]
    before = jax.config.values["jax_compilation_cache_dir"]
    keep_compiled_programs()
    assert before and jax.config.values["jax_compilation_cache_dir"] == before  # the tests have said so
