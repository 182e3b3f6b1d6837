"""A population in worker processes: what each episode is, whoever plays beside it and whatever dies."""

import os
import signal
from functools import partial

import jax
import numpy as np
import pytest

from dreamjax.envs.vizdoom import TakeCover
from dreamjax.run.play import play
from dreamjax.run.pool import FRESH, GamePool, Job, drawn_seeds, population_returns
from dreamjax.types import Params
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
            np.testing.assert_array_equal(ours.episode.observation, theirs.recorded.step.observation)
            np.testing.assert_allclose(ours.episode.action, theirs.recorded.action, atol=1e-3)  # kept as float16
            assert ours.episode.action.dtype == np.float16 and not ours.episode.terminated
            np.testing.assert_array_equal(ours.episode.reward, np.ones(MAX_STEPS, np.float32))
    assert (ended[0].episode.observation != ended[5].episode.observation).any()  # another candidate, the same seed


def test_returns_are_sorted_by_candidate_and_a_pool_plays_again_and_again(params: tuple[Params, Params]) -> None:
    seeds = np.array([[3, 4, 5], [11, 7, 3]])
    with GamePool(MAKE_ENV, MODEL.spec.observation, workers=1, lanes=2) as pool:
        for _ in range(2):
            found = population_returns(pool, MODEL, POLICY, params, KEY, seeds)
            np.testing.assert_array_equal(found.total, np.full((2, 3), MAX_STEPS))
            np.testing.assert_array_equal(found.steps, np.full((2, 3), MAX_STEPS))
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


@pytest.mark.parametrize("bad", [{"workers": 0}, {"lanes": 0}])
def test_a_pool_without_games_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        GamePool(MAKE_ENV, MODEL.spec.observation, **bad)
