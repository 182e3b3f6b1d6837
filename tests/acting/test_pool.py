"""A population in worker processes: what each episode is, whoever plays beside it and whatever dies."""

import os
import signal
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dreamjax.acting.play import play

from dreamjax import rollout
from dreamjax.acting.pool import FRESH, GamePool, Job, _act, drawn_seeds, population_returns
from dreamjax.envs.vizdoom import TakeCover
from dreamjax.types import Agent, Params
from dreamjax.worldmodels import controller, model
from dreamjax.worldmodels.controller import ControllerConfig
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.model import WorldModelConfig
from dreamjax.worldmodels.vision import VisionConfig

MAX_STEPS = 25
MAKE_ENV = partial(TakeCover, max_steps=MAX_STEPS)
WORLD = WorldModelConfig(VisionConfig(4), MemoryConfig(latent_size=4, hidden_size=8, mixtures=2))
MODEL = model.make(WORLD)
POLICY = controller.make(ControllerConfig(features=model.feature_size(WORLD)))
KEY = jax.random.key(6)
JOBS = [Job(i % 2, seed) for i, seed in enumerate([3, 11, 4, 7, 5, 3, 2])]


@pytest.fixture(scope="module")
def params() -> tuple[Params, Params]:
    """A model, and two restless controllers."""
    key_model, key_policy = jax.random.split(jax.random.key(0))
    kernel = jax.random.normal(key_policy, (2, model.feature_size(WORLD)))
    return jax.jit(MODEL.init)(key_model), {"kernel": kernel}


@pytest.mark.parametrize(("workers", "lanes"), [(1, 1), (2, 3)])
def test_episodes_are_those_that_each_candidate_plays_alone(
    workers: int, lanes: int, params: tuple[Params, Params]
) -> None:
    """Fewer games than jobs, and more."""
    with GamePool(MAKE_ENV, MODEL.spec.observation, workers, lanes) as pool:
        ended = {one.job: one for one in pool.play(MODEL, POLICY, params, KEY, JOBS, record=True)}
    assert ended.keys() == set(range(len(JOBS)))
    for candidate in range(2):
        alone = params[0], jax.tree.map(lambda leaf, i=candidate: leaf[i], params[1])
        seeds = [job.seed for job in JOBS if job.candidate == candidate]
        expected = {played.seed: played for played in play(MAKE_ENV, MODEL, POLICY, alone, KEY, seeds, film=seeds)}
        for number, job in enumerate(JOBS):
            if job.candidate != candidate:
                continue
            ours, theirs = ended[number], expected[job.seed]
            assert ours.played == theirs._replace(recorded=None)
            np.testing.assert_array_equal(ours.episode.observation[:-1], theirs.recorded.step.observation)
            np.testing.assert_allclose(ours.episode.action[:-1], theirs.recorded.action, atol=1e-3)  # kept as float16
            assert len(ours.episode.observation) == MAX_STEPS + 1 and ours.episode.action[-1] == 0
            assert ours.episode.action.dtype == np.float16 and not ours.episode.terminated
            np.testing.assert_array_equal(ours.episode.reward, [0.0] + [1.0] * MAX_STEPS)
    assert (ended[0].episode.observation != ended[5].episode.observation).any()  # another candidate, the same seed


class Ragged(gymnasium.Env):
    """Episodes that are told apart by everything: pictures, rewards, lengths, and how they end."""

    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, ())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.seed, self.steps = seed, 0
        return self._picture(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        assert -1 <= action <= 1
        self.steps += 1
        over = self.steps == 3 + self.seed % 13
        reward = self.seed + float(action)
        ends = self.seed % 3  # by itself, by a limit, or both
        return self._picture(), reward, over and ends != 1, over and ends != 0, {}

    def _picture(self) -> np.ndarray:
        return np.random.default_rng([self.seed, self.steps]).integers(0, 256, (64, 64, 3), np.uint8)


def test_no_episode_is_taken_for_another_where_all_differ(params: tuple[Params, Params]) -> None:
    """More lanes than rows of the smallest batch, banks that run out of jobs, and both ways to end at once."""
    jobs = [Job(i % 2, 7 * i % 60) for i in range(50)]
    restless = params[0], jax.tree.map(lambda leaf: 10 * leaf, params[1])  # cut off at the bounds of the action
    with GamePool(Ragged, MODEL.spec.observation, workers=2, lanes=9) as pool:
        ended = {one.job: one.played for one in pool.play(MODEL, POLICY, restless, KEY, jobs)}
    assert ended.keys() == set(range(50))
    for candidate in range(2):
        alone = restless[0], jax.tree.map(lambda leaf, i=candidate: leaf[i], restless[1])
        seeds = [job.seed for job in jobs if job.candidate == candidate]
        expected = {played.seed: played for played in play(Ragged, MODEL, POLICY, alone, KEY, seeds)}
        for number, job in enumerate(jobs):
            if job.candidate == candidate:
                assert ended[number]._replace(total=0) == expected[job.seed]._replace(total=0)
                np.testing.assert_allclose(ended[number].total, expected[job.seed].total, rtol=1e-5)
    assert len({(played.steps, played.terminated) for played in ended.values()}) > 15


def test_an_episode_is_the_same_in_batches_of_all_sizes() -> None:
    """To the last bit, because what is at first a rounding error ends on another road."""
    world = replace(model.CAR_RACING, sees="zh")
    whole, policy = model.make(world), controller.make(ControllerConfig("carracing", model.feature_size(world)))
    world_params = whole.init(jax.random.key(0))
    shape = policy.init(jax.random.key(0))
    population = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(1), (16, *leaf.shape)), shape)
    start = rollout.step_policy(Agent(whole, policy), world_params).start(
        jax.tree.map(lambda leaf: leaf[0], population)
    )
    frames = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8)
    found = []
    for size in (16, 8, 4):
        memories = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], 16, 0), start)
        for step in range(3):
            actions = []
            for lanes in np.arange(16, dtype=np.uint32).reshape(-1, size):
                playing = lanes, lanes, lanes, np.full(size, step, np.int32)
                memories, action = _act(whole, policy, world_params, population, KEY, memories, frames[lanes], playing)
                actions.append(action)
        found.append(np.concatenate(actions))
    assert np.std(found[0]) > 0.1
    np.testing.assert_array_equal(found[1:], [found[0]] * 2)


def test_two_plays_at_once_are_refused(params: tuple[Params, Params]) -> None:
    with GamePool(Ragged, MODEL.spec.observation, workers=1, lanes=2) as pool:
        first = pool.play(MODEL, POLICY, params, KEY, JOBS)
        next(first)
        with pytest.raises(RuntimeError, match="is playing"):
            next(pool.play(MODEL, POLICY, params, KEY, JOBS))
        assert len(list(first)) == len(JOBS) - 1


def test_returns_are_sorted_by_candidate_and_a_pool_plays_again_and_again(params: tuple[Params, Params]) -> None:
    seeds = np.array([[3, 4, 5], [11, 7, 3]])
    with GamePool(Ragged, MODEL.spec.observation, workers=1, lanes=2) as pool:
        for _ in range(2):
            found = population_returns(pool, MODEL, POLICY, params, KEY, seeds)
            np.testing.assert_array_equal(found.steps, 3 + seeds % 13)
            assert (np.abs(found.total - found.steps * seeds) <= found.steps).all()
            for _ in pool.play(MODEL, POLICY, params, KEY, JOBS):  # and is left in the middle
                break


def test_a_worker_that_dies_is_replaced_and_its_episodes_begin_again(params: tuple[Params, Params]) -> None:
    def frames(kill: bool) -> list[np.ndarray]:
        with GamePool(MAKE_ENV, MODEL.spec.observation, workers=2, lanes=2) as pool:
            ended = []
            for one in pool.play(MODEL, POLICY, params, KEY, JOBS, record=True):
                if kill and not ended:
                    os.kill(pool._workers[0].process.pid, signal.SIGKILL)
                ended.append(one)
            assert pool.restarts == kill
        return [one.episode.observation for one in sorted(ended, key=lambda one: one.job)]

    for whole, broken in zip(frames(False), frames(True), strict=True):
        np.testing.assert_array_equal(whole, broken)


def test_a_worker_that_keeps_dying_is_an_error_that_names_the_seeds(params: tuple[Params, Params]) -> None:
    with (
        GamePool(partial(TakeCover, skill=99), MODEL.spec.observation, workers=1, lanes=1) as pool,
        pytest.raises(RuntimeError, match=r"died 3 times while it played the seeds \[3, 11\]"),
    ):
        list(pool.play(MODEL, POLICY, params, KEY, JOBS))


def test_seeds_are_shared_within_groups_and_never_those_of_the_final_score() -> None:
    seeds = drawn_seeds([1, 2], 8, 5, 4)
    assert seeds.shape == (8, 5) and seeds.max() < FRESH
    np.testing.assert_array_equal(seeds[:4], seeds[4:])
    assert len(np.unique(seeds)) == 20
    assert (drawn_seeds([1, 2], 8, 5, 1) == drawn_seeds([1, 2], 8, 5, 1)[0]).all()
    assert (drawn_seeds([1, 3], 8, 5, 4) != seeds).any()
    with pytest.raises(ValueError, match="9 individuals cannot be in 4 groups"):
        drawn_seeds([1, 2], 9, 5, 4)


@pytest.mark.parametrize("bad", [{"workers": 0}, {"lanes": 0}])
def test_a_pool_without_games_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        GamePool(MAKE_ENV, MODEL.spec.observation, **bad)
