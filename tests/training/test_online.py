"""Online training: an exact train ratio, the same run however often it is stopped, and workers that die or hang."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest

from dreamjax.acting.vector import VectorEnvironment
from dreamjax.dreamerv3 import experience
from dreamjax.dreamerv3.config import DreamerConfig, HeadsConfig, RSSMConfig
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.envs import probes
from dreamjax.envs.gymnasium import to_gymnasium
from dreamjax.replay.sequences import Address
from dreamjax.storage.agents import read_starts
from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog, read_metrics
from dreamjax.storage.recordings import open_recording, write_recording
from dreamjax.storage.replays import ReplayError
from dreamjax.training import plan
from dreamjax.training.online import train_offline, train_online
from dreamjax.training.online_config import OnlineConfig, updates_at_once, updates_due
from dreamjax.training.trainer import Training
from dreamjax.types import Step

TINY = DreamerConfig(
    RSSMConfig(deter=16, hidden=8, stoch=4, classes=4),
    heads=HeadsConfig(units=8, bins=15),
    compute_dtype="float32",
)
TINY = replace(TINY, codec=replace(TINY.codec, units=8), behaviour=replace(TINY.behaviour, horizon=3))
CFG = OnlineConfig(160, batch_size=2, batch_length=8, train_ratio=8, capacity=400, checkpoint_every=10, log_every=5)


@pytest.mark.parametrize("streams", [1, 3, 16])
@pytest.mark.parametrize("ratio", [0.7, 32, 512, 2000])
def test_the_train_ratio_is_exact(streams: int, ratio: float):
    cfg = OnlineConfig(10**6, train_ratio=ratio)
    first = next(w for w in range(10**6) if streams * max(0, w - 65 + 1) >= 16 * 64)
    assert updates_due(cfg, 65, streams, first * streams - 1) == 0
    assert updates_due(cfg, 65, streams, first * streams) == 1
    far = first * streams + 100_000
    assert abs(updates_due(cfg, 65, streams, far) - 100_000 * ratio / 1024) <= 1


def test_the_published_loop_begins_after_2048_steps_of_16_environments():
    cfg = OnlineConfig(10**6, train_ratio=32)
    assert [updates_due(cfg, 65, 16, steps) for steps in (2032, 2048, 2079, 2080)] == [0, 1, 1, 2]


def counter() -> gymnasium.Env:
    return to_gymnasium(probes.counter(max_steps=7))


SPEC = VectorEnvironment(counter, 1, 7).spec


class Telling(gymnasium.Wrapper):
    """Says in every `info` how many steps it has seen."""

    seen = 0

    def step(self, action):
        self.seen += 1
        return *super().step(action)[:4], {"seen": self.seen}


@pytest.mark.long
def test_the_plan_times_the_update_that_training_uses_and_leaves_the_agent_new(tmp_path):
    before = experience.learn_several._cache_size()
    run(tmp_path, CFG)
    assert experience.learn_several._cache_size() - before <= 1  # none if another test has compiled it
    updates = updates_due(CFG, 9, 2, CFG.steps)
    assert f"  learning   {updates} updates of " in (tmp_path / "plan.txt").read_text()
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == updates
    with jax.debug_key_reuse(False):
        training = Training(RunFolder(tmp_path / "new", TINY), Dreamer.of(TINY, SPEC), 2, CFG, 0, 1)
        new = jax.device_get(training.state)
        assert training.probe() > 0
        training.updates = 1
        with pytest.raises(RuntimeError, match="probe before it learns"):
            training.probe()
    again = plan.learning(Dreamer.of(TINY, SPEC), CFG, 2, tmp_path, 1.0)  # as after a kill before the first checkpoint
    assert (tmp_path / "plan.txt").read_text().splitlines()[-1:] == [again]
    assert (tmp_path / "plan.txt").read_text().count("learning") == 1
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(training.state), new)


def test_what_environments_tell_about_an_episode_is_written_down(tmp_path):
    run(tmp_path, replace(CFG, steps=40), VectorEnvironment(lambda: Telling(counter()), 2, 7))
    metrics = read_metrics(tmp_path / "metrics.jsonl")["episode"]
    steps, lengths = metrics["length"]
    for environment in (0, 1):
        mine = steps % 2 == environment
        np.testing.assert_array_equal(metrics["info/seen"][1][mine], np.cumsum(lengths[mine]))


def run(
    folder: Path, cfg: OnlineConfig, environment: VectorEnvironment | None = None, agent: DreamerConfig = TINY
) -> Any:
    environment = environment or VectorEnvironment(counter, 2, 7)
    with closing(environment), jax.debug_key_reuse(False):
        dreamer = Dreamer.of(agent, environment.spec)
        return train_online(RunFolder(folder, agent), dreamer, environment, cfg, 0)


def learn(
    folder: Path,
    updates: int,
    recording: Path | None = None,
    agent: DreamerConfig = TINY,
    cfg: OnlineConfig = CFG,
) -> Any:
    with jax.debug_key_reuse(False):
        return train_offline(RunFolder(folder, agent), Dreamer.of(agent, SPEC), cfg, 0, updates, recording, at_once=4)


def test_a_run_learns_at_its_ratio_writes_episodes_and_goes_on(tmp_path):
    state = run(tmp_path, CFG)
    due = updates_due(CFG, 9, 2, 160)
    assert int(state.step) == due > 50
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    steps, returns = metrics["episode"]["return"]
    assert len(steps) > 15
    assert set(returns) == {0.0, 1.0}
    assert metrics["episode"]["length"][1].max() == 7
    assert metrics["learn"]["loss"][0][-1] == due // 5 * 5
    longer = run(tmp_path, replace(CFG, steps=200))
    assert int(longer.step) == updates_due(CFG, 9, 2, 200)
    again = run(tmp_path, replace(CFG, steps=200))
    jax.tree.map(np.testing.assert_array_equal, again, longer)


def test_what_other_processes_saw_after_the_checkpoint_is_forgotten_when_fewer_go_on(tmp_path):
    run(tmp_path, CFG)
    with MetricsLog(tmp_path / "processes" / "1") as log:
        for step in (100, CFG.steps + 10):
            log.write("episode", step, {"return": step})
    run(tmp_path, replace(CFG, steps=CFG.steps + 20))
    assert read_metrics(tmp_path / "processes" / "1" / "metrics.jsonl")["episode"]["return"][0].tolist() == [100]


def test_several_updates_of_a_step_are_one_call(tmp_path):
    cfg = replace(CFG, steps=60, train_ratio=56, log_every=1)  # 7 updates to a step of both environments
    assert [updates_at_once(cfg, 2, most) for most in (4, 8)] == [4, 7]
    due = updates_due(cfg, 9, 2, 60)
    with closing(VectorEnvironment(counter, 2, 7)) as environment, jax.debug_key_reuse(False):
        dreamer = Dreamer.of(TINY, environment.spec)
        state = train_online(RunFolder(tmp_path, TINY), dreamer, environment, cfg, 0, at_once=4)
    assert int(state.step) == due == 99
    assert read_metrics(tmp_path / "metrics.jsonl")["learn"]["loss"][0].tolist() == list(range(1, due + 1))


DRAWN = replace(CFG, prioritized=0.5)  # half by priorities, which updates set


def test_offline_learning_is_the_same_however_often_it_stops(tmp_path):
    begun = int(run(tmp_path / "a", DRAWN).step)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    at_once = learn(tmp_path / "a", begun + 24, cfg=DRAWN)
    for updates in (5, 6, 13, 24):
        in_parts = learn(tmp_path / "b", begun + updates, cfg=DRAWN)
    jax.tree.map(np.testing.assert_array_equal, at_once, in_parts)
    assert int(at_once.step) == begun + 24


KILLED = """
import os, signal, sys
from pathlib import Path
import tests.conftest  # compiles with as much care as the tests do
from tests.training.test_online import DRAWN, learn

folder, at, until = sys.argv[1:]

def watch(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith(f"replay-{at}.json"):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
learn(Path(folder), int(until), cfg=DRAWN)
"""


@pytest.mark.long
def test_offline_learning_that_is_killed_while_it_saves_goes_on_as_if_it_had_not_been(tmp_path):
    begun = int(run(tmp_path / "a", DRAWN).step)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    at_once = learn(tmp_path / "a", begun + 24, cfg=DRAWN)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "b"), str(begun + 20), str(begun + 24)]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    child = subprocess.run(command, env=environment, timeout=600, check=False)
    assert child.returncode == -signal.SIGKILL
    assert Checkpoints(tmp_path / "b" / "checkpoints").steps()[-1] == begun + 10
    resumed = learn(tmp_path / "b", begun + 24, cfg=DRAWN)
    jax.tree.map(np.testing.assert_array_equal, at_once, resumed)


@pytest.mark.long
def test_another_agent_learns_from_the_replay_of_a_run(tmp_path):
    run(tmp_path / "collected", replace(CFG, steps=60))
    wider = replace(TINY, rssm=replace(TINY.rssm, deter=32))
    assert int(learn(tmp_path / "other", 3, tmp_path / "collected", wider).step) == 3
    with pytest.raises(ReplayError, match="name a recording"):
        learn(tmp_path / "nothing", 3)


def test_all_that_was_collected_is_saved_even_before_the_first_update(tmp_path):
    short = replace(CFG, steps=10)
    assert int(run(tmp_path, short).step) == 0
    assert json.loads((tmp_path / "replay" / "replay-0.json").read_text())["written"] == 5
    assert int(run(tmp_path, CFG).step) == updates_due(CFG, 9, 2, 160)
    with pytest.raises(ValueError, match="has 160 steps already, more than the 10 that were asked for"):
        run(tmp_path, short)
    with pytest.raises(ValueError, match="has a replay of its own: leave the recording out"):
        learn(tmp_path, 1000, tmp_path / "recording")


def test_a_damaged_replay_is_refused_with_a_way_on(tmp_path):
    run(tmp_path, replace(CFG, steps=100))
    newest, older = sorted(map(int, (path.name for path in (tmp_path / "checkpoints").glob("[0-9]*"))))[::-1]
    with open(next((tmp_path / "replay").glob(f"*-{newest}.npz")), "r+b") as file:
        file.seek(100)
        file.write(b"damage")
    with pytest.raises(ReplayError, match=f"remove .*{newest} to go on from") as error:
        run(tmp_path, replace(CFG, steps=120))
    assert str(older) in str(error.value)
    shutil.rmtree(tmp_path / "checkpoints" / str(newest))
    assert int(run(tmp_path, replace(CFG, steps=120)).step) == updates_due(CFG, 9, 2, 120)
    newest = Checkpoints(tmp_path / "checkpoints").steps()[-1]
    shutil.rmtree(tmp_path / "checkpoints" / str(newest) / "state")  # and an agent that is damaged is set aside
    with pytest.warns(UserWarning, match=f"renamed to damaged-{newest}"):
        assert int(run(tmp_path, replace(CFG, steps=130)).step) == updates_due(CFG, 9, 2, 130)


def test_a_replay_in_files_learns_the_same_and_may_be_chosen_later(tmp_path):
    """In memory to the end, and in files from the middle on."""
    whole = run(tmp_path / "a", CFG)
    run(tmp_path / "b", replace(CFG, steps=100))
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    ended = [run(tmp_path / name, replace(CFG, on_disk=name == "c")) for name in ("b", "c")]
    jax.tree.map(np.testing.assert_array_equal, *ended)
    assert int(whole.step) == int(ended[0].step)


def test_chosen_updates_are_profiled(tmp_path):
    with closing(VectorEnvironment(counter, 2, 7)) as environment, jax.debug_key_reuse(False):
        folder = RunFolder(tmp_path, TINY)
        folder.profile = (3, 4)
        train_online(folder, Dreamer.of(TINY, environment.spec), environment, replace(CFG, steps=60), 0)
    (trace,) = (tmp_path / "profile" / "train").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000


def test_what_is_not_finite_stops_the_run(tmp_path):
    broken = replace(TINY, optimizer=replace(TINY.optimizer, learning_rate=1e30, warmup=0))
    with pytest.raises(FloatingPointError, match="learn"):
        run(tmp_path, CFG, agent=broken)


def test_metrics_are_lines_of_json(tmp_path):
    run(tmp_path, replace(CFG, steps=40))
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["stage"] in ("learn", "episode")


@pytest.mark.parametrize("change", [{"steps": 0}, {"train_ratio": 0.0}, {"batch_size": 0}])
def test_bad_settings_are_refused(change: dict):
    with pytest.raises(ValueError, match="positive"):
        replace(CFG, **change)


def brittle(folder: Path, how: str) -> Any:
    """Make environments of 7 steps each, of which the first to take 10 steps in all raises, is killed or hangs."""

    class Brittle(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, 1, (1,))
        action_space = gymnasium.spaces.Discrete(2)
        total = 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
            self.time = 0
            return np.zeros(1, np.float32), {}

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            self.time, self.total = self.time + 1, self.total + 1
            if self.total == 10 and self._is_first():
                if how == "raise":
                    raise LookupError("the simulator is gone")
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(600)
            return np.ones(1, np.float32), 1.0, self.time == 7, False, {}

        def _is_first(self) -> bool:
            try:
                (folder / "failed").touch(exist_ok=False)
            except FileExistsError:
                return False
            return True

    return Brittle


@pytest.mark.filterwarnings("ignore:environment . is made anew")
@pytest.mark.parametrize(("how", "workers"), [("raise", 0), ("kill", 2), ("hang", 2)])
def test_a_failing_environment_costs_its_episode_alone(tmp_path: Path, how: str, workers: int) -> None:
    environment = VectorEnvironment(brittle(tmp_path, how), 2, 9, workers, timeout=6.0)
    state = run(tmp_path / "run", CFG, environment)
    assert int(state.step) == updates_due(CFG, 9, 2, 160)
    assert (environment.failures, environment.restarts) == (1, int(how != "raise"))
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert metrics["failures"]["environments"][1].tolist() == [1]
    assert metrics["failures"]["environments"][0].tolist() == [22]  # steps of both, before the episodes' next ones
    lengths = metrics["episode"]["length"][1]
    assert lengths[lengths != 7].tolist() == [3] and len(lengths) > 15
    recording = open_recording(tmp_path / "run")
    step = recording.read(Address(np.arange(2), np.zeros(2, int)), recording.written).step
    assert (step.is_last & ~step.is_terminal).sum() == 1


def test_the_newest_first_observations_are_kept_over_a_resumed_run(tmp_path: Path) -> None:
    class Numbered(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0, np.inf, (1,))
        action_space = gymnasium.spaces.Discrete(2)
        number = 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
            Numbered.number += 1
            return np.float32([Numbered.number]), {}

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            return np.zeros(1, np.float32), 0.0, True, False, {}

    # Each run ends with two episodes that are open and not yet acted on: 21 and 22, 43 and 44.
    first, second, third = list(range(1, 21)), list(range(23, 43)), list(range(45, 105))
    for steps, kept in ((40, first), (80, first + second), (200, (second + third)[-64:])):
        environment = VectorEnvironment(Numbered, 2, 9)
        run(tmp_path, replace(CFG, steps=steps), environment)
        starts = read_starts(tmp_path, environment.spec)
        assert np.asarray(starts).ravel().tolist() == kept


def test_offline_learning_begins_dreams_where_its_recording_does(tmp_path: Path) -> None:
    def steps() -> Any:
        for count in range(40):
            first = np.array([count % 5 == 0])
            no, zero = np.array([False]), np.zeros(1, np.float32)
            observation = np.full((1, *SPEC.observation.shape), count % 3 / 2, SPEC.observation.dtype)
            yield Step(observation, zero, first, no, no), np.zeros(1, np.int32)

    write_recording(tmp_path / "recording", SPEC, 1, steps())
    learn(tmp_path / "run", 1, tmp_path / "recording")
    starts = np.asarray(read_starts(tmp_path / "run", SPEC))
    assert starts.reshape(8, -1)[:, 0].tolist() == [count % 3 / 2 for count in range(0, 40, 5)]
    told = json.loads((tmp_path / "run" / "offline.json").read_text())
    assert told == {"offline": 1, "recording": str(tmp_path / "recording")}
    with pytest.raises(ValueError, match="has 1 updates already, more than the 0"):
        learn(tmp_path / "run", 0)
    with pytest.raises(ValueError, match="is of 1 environments, and this run has 2"):
        run(tmp_path / "run", CFG)
    with pytest.raises(ValueError, match="would be lost: name another folder"):
        learn(tmp_path / "recording", 1, tmp_path / "recording")
    assert open_recording(tmp_path / "recording").written == 40
