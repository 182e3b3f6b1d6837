"""Collecting: which attempts are kept, whoever plays them and whatever is killed; and random play by its rules."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import rollout
from dreamjax.acting import random_play, seeds
from dreamjax.acting.collection import CollectConfig, _missing, collect
from dreamjax.acting.pool import Pool
from dreamjax.storage import episodes
from dreamjax.types import Agent
from tests.acting.agents import AGENT, MODEL, ONE, SPEC
from tests.acting.environments import Faulty, Ragged, wait_until_gone

CONFIG = CollectConfig(episodes=8, seed=4, min_steps=6)
SHORT = Agent(MODEL._replace(spec=SPEC._replace(max_steps=13)), AGENT.policy)  # cuts some of the episodes


def fill(folder: Path, cfg: CollectConfig = CONFIG, make_env: Any = Ragged, **pool: Any) -> episodes.Store:
    with Pool(make_env, **({"envs": 1} | pool)) as made:
        return collect(cfg, folder, made, SHORT, ONE)


def contents(folder: Path) -> dict[str, bytes]:
    """The episodes of a folder."""
    return {path.name: path.read_bytes() for path in folder.glob("*episode_*")}


def noted(folder: Path) -> set[int]:
    """The attempts that were too short; how many that are depends on when one knows that no more are needed."""
    return set(json.loads((folder / "collect.json").read_text())["short"])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of 8 episodes, played one after the other."""
    folder = tmp_path_factory.mktemp("reference")
    fill(folder)
    return folder


def assert_same(folder: Path, reference: Path) -> None:
    assert contents(folder) == contents(reference)
    last = max(number_of(name) for name in contents(folder))
    assert {number for number in noted(folder) if number < last} == {n for n in noted(reference) if n < last}


def number_of(name: str) -> int:
    return int(name.removeprefix("episode_").removesuffix(".npz"))


def test_kept_are_the_first_attempts_that_last_long_enough(reference: Path) -> None:
    store = episodes.open_store(reference)
    numbers = [number_of(path.name) for path in store.paths]
    lengths = [min(3 + seeds.collecting(4, number) % 13, 13) for number in range(max(numbers) + 1)]
    assert numbers == [number for number, length in enumerate(lengths) if length >= 6]
    assert noted(reference) == {number for number, length in enumerate(lengths) if length < 6} != set()
    assert list(store.lengths) == [lengths[number] + 1 for number in numbers] and 13 in lengths
    for path in store.paths:
        episode = episodes.read(path)
        assert episode.seed == seeds.collecting(4, number_of(path.name))
        assert episode.action.dtype == np.float16 and episode.action[-1] == 0 and np.abs(episode.action).max() <= 1
        own = 3 + episode.seed % 13
        assert episode.terminated == (episode.seed % 3 == 0 and own <= 13)
        # `Ragged` pays for the action that it was given: exactly the one that is stored.
        paid = episode.seed % 64 + episode.action[:-1].astype(np.float64)
        np.testing.assert_array_equal(episode.reward, np.float32([0, *paid]))
        env = Ragged()
        np.testing.assert_array_equal(episode.observation[0], env.reset(seed=episode.seed)[0])
        for action, frame in zip(episode.action[:-1], episode.observation[1:], strict=True):
            np.testing.assert_array_equal(frame, env.step(np.float32(action))[0])


@pytest.mark.parametrize("pool", [{"envs": 11}, {"envs": 2, "workers": 1}, {"envs": 6, "workers": 2}], ids=str)
def test_the_number_of_environments_and_workers_changes_nothing(
    reference: Path, tmp_path: Path, pool: dict[str, int]
) -> None:
    progress: list[tuple[int, int]] = []
    with Pool(Ragged, **pool) as made:
        store = collect(CONFIG, tmp_path, made, SHORT, ONE, progress=lambda *now: progress.append(now))
    assert store.lengths == episodes.open_store(reference).lengths
    assert_same(tmp_path, reference)
    assert progress[-1][0] == 8 and [made for _, made in progress] == list(range(1, len(progress) + 1))


@pytest.mark.parametrize("how", ["raise", "kill", "hang"])
def test_what_dies_or_hangs_changes_nothing(reference: Path, tmp_path: Path, how: str) -> None:
    folder, count = tmp_path / "episodes", tmp_path / "count"
    count.mkdir()
    bad = episodes.read(episodes.open_store(reference).paths[2]).seed
    fill(folder, make_env=partial(Faulty, count, how, bad, times=2), envs=4, workers=2, timeout=6)
    assert len(list(count.iterdir())) == 2
    assert_same(folder, reference)


def test_a_collection_grows_and_finished_episodes_stay(reference: Path, tmp_path: Path) -> None:
    few = CollectConfig(3, CONFIG.seed, CONFIG.min_steps)
    fill(tmp_path, few, envs=5)
    assert len(contents(tmp_path)) == 3
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("episode_*")}
    fill(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert_same(tmp_path, reference)

    sorted(tmp_path.glob("episode_*"))[2].unlink()
    attempts: list[int] = []
    with Pool(Ragged) as pool:
        collect(CONFIG, tmp_path, pool, SHORT, ONE, progress=lambda kept, made: attempts.append(made))
    assert attempts == [1]
    assert_same(tmp_path, reference)

    with Pool(Ragged) as pool:
        pool.send = partial(pytest.fail, "a finished collection plays nothing")  # type: ignore[method-assign]
        whole = collect(CONFIG, tmp_path, pool, SHORT, ONE)
        assert collect(few, tmp_path, pool, SHORT, ONE) == whole.head(3)
    assert_same(tmp_path, reference)


def test_what_was_played_beside_the_last_one_does_not_stay_after_a_kill(reference: Path, tmp_path: Path) -> None:
    """A call for 5 was killed before its fifth episode had ended, when its sixth had."""
    few = CollectConfig(5, CONFIG.seed, CONFIG.min_steps)
    (tmp_path / "collect.json").write_text((reference / "collect.json").read_text().replace('"asked": 8', '"asked": 5'))
    whole = sorted(contents(reference))
    for name in [*whole[:4], whole[5]]:
        (tmp_path / name).write_bytes(contents(reference)[name])
    fill(tmp_path, few)
    assert sorted(contents(tmp_path)) == whole[:5]
    fill(tmp_path)
    assert_same(tmp_path, reference)


KILLED = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from tests.acting.environments import running_children
from tests.acting.test_collection import CONFIG, ONE, Pool, Ragged, SHORT, collect

def progress(kept, made):
    if kept == 3:  # it waits for the signal, which would otherwise race with the other five
        print(*running_children(), flush=True)
        time.sleep(60)

with Pool(Ragged, 6, 2) as pool:
    collect(CONFIG, Path(sys.argv[1]), pool, SHORT, ONE, progress)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_collection_resumes_to_the_same_files(reference: Path, tmp_path: Path, how: signal.Signals) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        try:
            assert process.stdout is not None
            workers = [int(word) for word in process.stdout.readline().split()]
            assert len(workers) == 2
        finally:
            # As a terminal sends an interrupt, to all processes.
            os.killpg(process.pid, how) if how == signal.SIGINT else process.send_signal(how)
        assert process.wait(30) != 0
    wait_until_gone(workers)
    assert len(contents(tmp_path)) < 8
    (tmp_path / ".episode_000099.1.npz").write_bytes(b"unfinished")
    fill(tmp_path)
    assert_same(tmp_path, reference)


@pytest.mark.parametrize("change", ["seed", "min_steps", "max_steps", "by"])
def test_other_settings_are_refused(reference: Path, change: str) -> None:
    cfg = {"seed": {"seed": 5}, "min_steps": {"min_steps": 7}, "by": {"name": "somebody else"}}.get(change, {})
    agent = AGENT if change == "max_steps" else SHORT
    settings: Any = {"episodes": 8, "seed": 4, "min_steps": 6} | cfg
    with Pool(Ragged) as pool, pytest.raises(ValueError, match="another folder"):
        collect(CollectConfig(**settings), reference, pool, agent, ONE)


def test_episodes_of_an_older_version_are_refused_before_anything_is_played(tmp_path: Path) -> None:
    frames, zeros = np.zeros((70, 64, 64, 3), np.uint8), np.zeros(70, np.float16)
    old = {"observation": frames, "action": zeros, "reward": zeros.astype(np.float32), "terminated": True, "seed": 1}
    np.savez(episodes.episode_path(tmp_path, 0), **old)
    with Pool(Ragged) as pool:
        pool.send = partial(pytest.fail, "nothing may be played")  # type: ignore[method-assign]
        with pytest.raises(episodes.EpisodeError, match="older version of dreamjax"):
            collect(CONFIG, tmp_path, pool, SHORT, ONE)


@pytest.mark.parametrize("bad", [{"episodes": 0}, {"episodes": 1, "min_steps": 0}])
def test_a_collection_of_nothing_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="need episodes >= 1 and min_steps >= 1"):
        CollectConfig(**bad)


def test_an_episode_that_always_fails_is_reported_by_its_seed(tmp_path: Path) -> None:
    folder, count = tmp_path / "episodes", tmp_path / "count"
    count.mkdir()
    bad = seeds.collecting(4, 0)
    with pytest.raises(RuntimeError, match=f"the episode of seed {bad} failed 3 times, at last with: .*simulator"):
        fill(folder, make_env=partial(Faulty, count, "raise", bad, at=0, times=99))


def actions_of(policy: str, steps: int, count: int = 1, spec: Any = SPEC) -> np.ndarray:
    """Play `count` episodes without an environment. Shapes: -> [count, steps, ...]."""
    whole = rollout.recurrent(random_play.random_agent(spec, policy).policy)
    act = jax.vmap(whole.act, (None, 0, 0, None))

    @jax.jit
    def play(keys: Any) -> Any:
        memories = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], count, 0), whole.start(()))
        return jax.lax.scan(lambda memory, keys: act((), keys, memory, jnp.zeros(1)), memories, keys)[1]

    return np.asarray(play(jax.random.split(jax.random.key(1), (steps, count)))).swapaxes(0, 1)


def test_held_actions_follow_the_published_rule() -> None:
    """Drawn anew on frames that their hold divides, and on no others; holds are uniform from 1 to 10."""
    [actions] = actions_of("held", 5000)
    changes = [0, *(1 + np.flatnonzero(np.diff(actions)))]
    gaps = np.diff(changes)
    assert np.abs(actions).max() <= 1 and gaps.min() == 1 and gaps.max() <= 10
    # With hold r drawn at frame t, the next frame that r divides follows after r - t % r frames.
    expected = np.mean([[r - t % r for r in range(1, 11)] for t in changes[:-1]])
    spread = np.std([[r - t % r for r in range(1, 11)] for t in changes[:-1]])
    assert abs(gaps.mean() - expected) < 4 * spread / np.sqrt(len(gaps))
    for t, gap in zip(changes, gaps, strict=False):
        assert any(r - t % r == gap for r in range(1, 11))
    held = actions[changes]
    for side in (held < -1 / 3, np.abs(held) <= 1 / 3, held > 1 / 3):
        assert 0.28 < side.mean() < 0.39
    assert len(np.unique(held)) > 0.99 * len(held)


def test_uniform_actions_are_independent() -> None:
    [actions] = actions_of("uniform", 5000)
    assert actions.dtype == np.float32 and np.abs(actions).max() <= 1 and abs(actions.mean()) < 0.03
    assert abs(np.corrcoef(actions[1:], actions[:-1])[0, 1]) < 0.05
    assert abs(actions.var() - 1 / 3) < 0.02


def test_wandering_holds_longer_in_half_of_the_episodes() -> None:
    def longest_run(actions: np.ndarray) -> int:
        changes = np.flatnonzero(np.diff(actions)) + 1
        return int(np.diff([0, *changes, len(actions)]).max())

    runs = [longest_run(actions) for actions in actions_of("wandering", 2000, 200)]
    assert max(longest_run(actions) for actions in actions_of("held", 2000, 20)) <= 10
    assert max(runs) <= 40 and 70 < sum(run > 20 for run in runs) < 130
    assert 70 < sum(run <= 10 for run in runs) < 130  # for a whole episode, not now and then


def test_a_random_network_drives_as_the_published_one() -> None:
    """Gas about one half, steering and braking noise around what its bias says, the same in a whole episode."""
    actions = actions_of("network", 200, 1000)
    steer, gas, brake = actions.transpose(2, 0, 1)
    assert actions.shape == (1000, 200, 3)
    assert np.abs(steer).max() <= 1 and gas.min() >= 0 and gas.max() <= 1 and brake.min() >= 0 and brake.max() <= 1
    # Medians over episodes of what was recorded of the published collection.
    assert np.median(steer.std(1)) == pytest.approx(0.16, abs=0.03)
    assert np.median(gas.mean(1)) == pytest.approx(0.5, abs=0.01)
    assert np.median(gas.std(1)) == pytest.approx(0.08, abs=0.015)
    assert np.median(brake.mean(1)) == pytest.approx(0.07, abs=0.015)
    assert len(np.unique(steer.mean(1).round(6))) > 950  # a network for each episode


def test_what_is_kept_is_not_counted_anew_for_every_number() -> None:
    class Counted(set[int]):
        counts = 0

        def __iter__(self) -> Iterator[int]:
            self.counts += 1
            return super().__iter__()

    kept, short = Counted({0, 2, 3, 5, 9}), {1}
    missing = _missing(kept, short, 8)
    assert [next(missing), next(missing)] == [4, 6]
    kept.add(6)
    short.add(4)
    assert [next(missing), next(missing)] == [7, 8]
    kept |= {7, 8}
    assert list(missing) == []  # 0, 2, 3, 5, 6, 7, 8 and 9
    assert kept.counts <= 1
