"""The host loop: an exact train ratio, and the same run however often it is stopped."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest
from dreamjax.envs.lanes import Lanes, make_lanes

from dreamjax.dreamerv3.config import DreamerConfig, HeadsConfig, RSSMConfig
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.envs import probes
from dreamjax.envs.gymnasium import to_gymnasium, to_gymnasium_vector
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog, read_metrics
from dreamjax.storage.recordings import write_spec
from dreamjax.storage.replays import ReplayError
from dreamjax.training.online import HostConfig, train_offline, train_on_host, updates_due

TINY = DreamerConfig(
    RSSMConfig(deter=16, hidden=8, stoch=4, classes=4),
    heads=HeadsConfig(units=8, bins=15),
    compute_dtype="float32",
)
TINY = replace(TINY, codec=replace(TINY.codec, units=8), behaviour=replace(TINY.behaviour, horizon=3))
CFG = HostConfig(160, batch_size=2, batch_length=8, train_ratio=8, capacity=400, checkpoint_every=10, log_every=5)


@pytest.mark.parametrize("streams", [1, 3, 16])
@pytest.mark.parametrize("ratio", [0.7, 32, 512, 2000])
def test_the_train_ratio_is_exact(streams: int, ratio: float):
    cfg = HostConfig(10**6, train_ratio=ratio)
    first = next(w for w in range(10**6) if streams * max(0, w - 65 + 1) >= 16 * 64)
    assert updates_due(cfg, 65, streams, first * streams - 1) == 0
    assert updates_due(cfg, 65, streams, first * streams) == 1
    far = first * streams + 100_000
    assert abs(updates_due(cfg, 65, streams, far) - 100_000 * ratio / 1024) <= 1


def test_the_published_loop_begins_after_2048_steps_of_16_environments():
    cfg = HostConfig(10**6, train_ratio=32)
    assert [updates_due(cfg, 65, 16, steps) for steps in (2032, 2048, 2079, 2080)] == [0, 1, 1, 2]


def lanes() -> Lanes:
    return Lanes(to_gymnasium_vector(probes.counter(max_steps=7), 2), 7)


class Telling(gymnasium.Wrapper):
    """Says in every `info` how many steps it has seen."""

    seen = 0

    def step(self, action):
        self.seen += 1
        return *super().step(action)[:4], {"seen": self.seen}


def test_what_environments_tell_about_an_episode_is_written_down(tmp_path):
    telling = make_lanes(lambda: Telling(to_gymnasium(probes.counter(max_steps=7))), 2, 7)
    run(tmp_path, replace(CFG, steps=40), made=telling)
    metrics = read_metrics(tmp_path / "metrics.jsonl")["episode"]
    steps, lengths = metrics["length"]
    for lane in (0, 1):
        mine = steps % 2 == lane
        np.testing.assert_array_equal(metrics["info/seen"][1][mine], np.cumsum(lengths[mine]))


def run(folder: Path, cfg: HostConfig, made: Lanes | None = None):
    made = made or lanes()
    dreamer = Dreamer.of(TINY, made.spec)
    with MetricsLog(folder) as log, jax.debug_key_reuse(False):
        return train_on_host(RunFolder(folder, TINY), log, dreamer, made, cfg, 0)


def learn(folder: Path, updates: int, recording: Path | None = None, agent: DreamerConfig = TINY):
    spec = lanes().spec
    with MetricsLog(folder) as log, jax.debug_key_reuse(False):
        dreamer = Dreamer.of(agent, spec)
        return train_offline(RunFolder(folder, agent), log, dreamer, CFG, 0, updates, recording)


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


def test_offline_learning_is_the_same_however_often_it_stops(tmp_path):
    collected = run(tmp_path / "a", CFG)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    begun = int(collected.step)
    at_once = learn(tmp_path / "a", begun + 24)
    learn(tmp_path / "b", begun + 11)
    in_parts = learn(tmp_path / "b", begun + 24)
    jax.tree.map(np.testing.assert_array_equal, at_once, in_parts)
    assert int(at_once.step) == begun + 24


def test_another_agent_learns_from_the_replay_of_a_run(tmp_path):
    run(tmp_path / "collected", replace(CFG, steps=60))
    write_spec(tmp_path / "collected", lanes().spec)
    wider = replace(TINY, rssm=replace(TINY.rssm, deter=32))
    assert int(learn(tmp_path / "other", 3, tmp_path / "collected", wider).step) == 3
    with pytest.raises(ReplayError, match="name a recording"):
        learn(tmp_path / "nothing", 3)


def test_all_that_was_collected_is_saved_even_before_the_first_update(tmp_path):
    short = replace(CFG, steps=10)
    assert int(run(tmp_path, short).step) == 0
    assert json.loads((tmp_path / "replay" / "replay-0.json").read_text())["written"] == 5
    assert int(run(tmp_path, CFG).step) == updates_due(CFG, 9, 2, 160)


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


def test_what_is_not_finite_stops_the_run(tmp_path):
    broken = replace(TINY, optimizer=replace(TINY.optimizer, learning_rate=1e30, warmup=0))
    made = lanes()
    dreamer = Dreamer.of(broken, made.spec)
    with MetricsLog(tmp_path) as log, jax.debug_key_reuse(False), pytest.raises(FloatingPointError, match="learn"):
        train_on_host(RunFolder(tmp_path, broken), log, dreamer, made, CFG, 0)


def test_metrics_are_lines_of_json(tmp_path):
    run(tmp_path, replace(CFG, steps=40))
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["stage"] in ("learn", "episode")


@pytest.mark.parametrize("change", [{"steps": 0}, {"train_ratio": 0.0}, {"batch_size": 0}])
def test_bad_settings_are_refused(change: dict):
    with pytest.raises(ValueError, match="positive"):
        replace(CFG, **change)
