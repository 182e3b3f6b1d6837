"""Whole episodes: what each one is, whoever is played beside it and whatever dies."""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import rollout
from dreamjax.acting import random_play
from dreamjax.acting.evaluation import evaluate
from dreamjax.acting.playing import Played, Request, evaluate_population, play
from dreamjax.acting.pool import Pool
from dreamjax.envs.host import InvalidStep
from dreamjax.types import Step
from tests.acting.agents import AGENT, KEY, MODEL, PARAMS, SPEC
from tests.acting.environments import Faulty, Ragged, Returning

# 26 episodes of all lengths, some of which both policies play; some seeds are as large as they come.
REQUESTS = [Request(seed, i % 2) for i, seed in enumerate([*range(20), 3, 11, 7, 8, 2**31 - 1, 2**30])]
BAD = 9  # a seed whose episode lasts 12 steps


def played(pool: Pool, requests: list[Request] = REQUESTS, **settings: object) -> dict[int, Played]:
    """Play episodes; return them by their number."""
    episodes = list(play(pool, AGENT, PARAMS, KEY, requests, **({"record": True} | settings)))
    assert len({episode.request for episode in episodes}) == len(episodes) == len(requests)
    return {episode.request: episode for episode in sorted(episodes, key=lambda one: one.request)}


@cache
def expected() -> dict[int, Played]:
    """All episodes, one after the other in one environment."""
    with Pool(Ragged) as pool:
        return played(pool)


def assert_same(found: dict[int, Played], wanted: dict[int, Played]) -> None:
    """To the last bit."""
    assert found.keys() == wanted.keys()
    for number, episode in found.items():
        assert episode._replace(recorded=None) == wanted[number]._replace(recorded=None)
        jax.tree.map(np.testing.assert_array_equal, episode.recorded, wanted[number].recorded)


def test_an_episode_is_what_a_plain_loop_plays() -> None:
    """Time is that of `dreamjax.types`: steps + 1 steps, no reward at the first, no action at the last."""
    act = jax.jit(rollout.step_policy(AGENT, PARAMS.model).act)
    env = Ragged()
    for number, request in list(enumerate(REQUESTS))[::5]:
        params = jax.tree.map(lambda leaf, row=request.policy: leaf[row], PARAMS.policy)
        memory = rollout.step_policy(AGENT, PARAMS.model).start(params)
        observation, _ = env.reset(seed=request.seed)
        steps, actions = [Step(observation, np.float32(0), True, False, False)], []
        while not steps[-1].is_last:
            key = jax.random.fold_in(jax.random.fold_in(KEY, np.uint32(request.seed)), len(actions))
            memory, action = act(params, key, memory, steps[-1])
            actions.append(np.asarray(action))
            observation, reward, terminated, truncated, _ = env.step(np.clip(actions[-1], -1, 1))
            over = terminated or truncated
            steps.append(Step(observation, np.float32(reward), False, over, terminated and not truncated))
        episode = expected()[number]
        assert episode.recorded is not None
        recorded, done = episode.recorded
        wanted = jax.tree.map(lambda *leaves: np.stack(leaves), *steps)
        assert episode.steps == len(actions) == 3 + request.seed % 13
        assert len(done) == len(recorded.reward) == episode.steps + 1
        np.testing.assert_array_equal(recorded.observation, wanted.observation)
        for flag in ("is_first", "is_last", "is_terminal"):
            np.testing.assert_array_equal(getattr(recorded, flag), getattr(wanted, flag))
        np.testing.assert_allclose(recorded.reward, wanted.reward, atol=1e-5)
        np.testing.assert_allclose(done, [*actions, 0], atol=1e-5)  # but for rounding in a batch
        assert recorded.reward.dtype == done.dtype == np.float32 and recorded.observation.dtype == np.uint8
        assert (recorded.reward[0], done[-1]) == (0, 0)
        np.testing.assert_allclose(episode.total, wanted.reward.sum(), rtol=1e-5)
        assert episode.terminated == (request.seed % 3 == 0)
        assert episode.seed == request.seed
        assert episode.info == {"steps": episode.steps, "seed": request.seed}


def test_the_agent_moves_to_all_sides_and_beyond() -> None:
    """Else the tests here would prove little."""
    actions = np.concatenate([episode.recorded.action[:-1] for episode in expected().values() if episode.recorded])
    assert min((actions < -1).mean(), (np.abs(actions) < 0.5).mean(), (actions > 1).mean()) > 0.03
    assert len({(episode.steps, episode.terminated) for episode in expected().values()}) > 12
    assert expected()[3].total != expected()[20].total  # another policy, the same seed


@pytest.mark.parametrize(("envs", "workers"), [(3, 0), (9, 0), (40, 0), (2, 1), (5, 2), (16, 2)])
def test_an_episode_does_not_depend_on_those_beside_it_or_on_the_workers(envs: int, workers: int) -> None:
    """Fewer environments than episodes, and more; groups of one, and batches that are filled up."""
    with Pool(Ragged, envs, workers, groups=2) as pool:
        assert_same(played(pool), expected())


@pytest.mark.parametrize(
    ("how", "at", "workers"), [("raise", 2, 0), ("raise", 0, 2), ("kill", 2, 2), ("kill", 0, 1), ("hang", 12, 2)]
)
def test_what_dies_or_hangs_changes_nothing(tmp_path: Path, how: str, at: int, workers: int) -> None:
    """Twice in one episode, in its middle, at its reset and in its last step."""
    with Pool(partial(Faulty, tmp_path, how, BAD, at, times=2), 6, workers, groups=2, timeout=6) as pool:
        assert_same(played(pool), expected())
        assert pool.restarts == (0 if how == "raise" else 2)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("how", "workers"), [("raise", 0), ("raise", 1), ("kill", 2)])
def test_an_episode_that_always_fails_is_an_error_that_names_its_seed(tmp_path: Path, how: str, workers: int) -> None:
    make_env = partial(Faulty, tmp_path, how, BAD, times=99)
    with Pool(make_env, 1, workers) as pool, pytest.raises(RuntimeError, match=f"seed {BAD} failed 3 times, at last"):
        played(pool)
    assert len(list(tmp_path.iterdir())) == 3


def test_failures_of_other_episodes_are_not_held_against_one(tmp_path: Path) -> None:
    """Two in each of two episodes that the same environment plays; three would end it."""

    class Both(Faulty):
        def reset(self, **arguments: int) -> tuple:
            self.times = 2 if arguments["seed"] == BAD else 4
            self.bad_seed = arguments["seed"]
            return super().reset(**arguments)

    with Pool(partial(Both, tmp_path, "raise", BAD)) as pool:
        found = played(pool, [Request(BAD), Request(BAD + 1)], record=False)
    assert [found[number].steps for number in (0, 1)] == [12, 13] and len(list(tmp_path.iterdir())) == 4


def test_a_population_is_played_row_by_row(tmp_path: Path) -> None:
    """With a worker that dies and one that hangs, the same."""
    seeds = np.array([[3, 4, 9], [11, 9, 3]])
    with Pool(Ragged, 4) as pool:
        wanted = evaluate_population(pool, AGENT, PARAMS, KEY, seeds)
        limited = evaluate_population(pool, AGENT, PARAMS, KEY, seeds, max_steps=4)
    np.testing.assert_array_equal(wanted.steps, 3 + seeds % 13)
    np.testing.assert_array_equal(limited.steps, np.minimum(3 + seeds % 13, 4))
    requests = [Request(int(seed), row) for row, part in enumerate(seeds) for seed in part]
    with Pool(Ragged, 2) as pool:
        each = played(pool, requests)
    np.testing.assert_array_equal(wanted.total.ravel(), np.float32([each[i].total for i in range(6)]))
    assert wanted.total.dtype == jnp.float32 and wanted.total[0, 0] != wanted.total[1, 2]
    for how in ("kill", "hang"):
        folder = tmp_path / how
        folder.mkdir()
        with Pool(partial(Faulty, folder, how, BAD), 4, 2, timeout=6) as pool:
            found = evaluate_population(pool, AGENT, PARAMS, KEY, seeds)
            assert pool.restarts == 1
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_a_lone_policy_is_the_row_of_a_population() -> None:
    """Which all rows multiply by one matrix, that may round otherwise."""
    one = PARAMS._replace(policy=jax.tree.map(lambda leaf: leaf[:1], PARAMS.policy))
    with Pool(Ragged, 5) as pool:
        found = {p.request: p for p in play(pool, AGENT, one, KEY, REQUESTS[::2], record=True)}
    for number, episode in found.items():
        wanted = expected()[2 * number]
        np.testing.assert_allclose(episode.total, wanted.total, rtol=1e-5)
        assert episode.steps == wanted.steps


def test_policies_that_are_not_there_are_refused() -> None:
    one = PARAMS._replace(policy=jax.tree.map(lambda leaf: leaf[1], PARAMS.policy))
    with Pool(Ragged, 2) as pool:
        for wrong in (2, -1):
            with pytest.raises(ValueError, match=f"is for policy {wrong}, but there are 2"):
                list(play(pool, AGENT, PARAMS, KEY, [Request(3, wrong)]))
        for seeds in ([[3], [4], [9]], [[3]], [3, 4]):
            with pytest.raises(ValueError, match=r"a row for each of 2 policies, got"):
                evaluate_population(pool, AGENT, PARAMS, KEY, np.array(seeds))
        with pytest.raises(ValueError, match=r"stacked, every array \[N, ...\].* Got .*'bias': \(\)"):
            list(play(pool, AGENT, one, KEY, [Request(3)]))
        with pytest.raises(ValueError, match="max_steps must be 1 or more, got 0"):
            list(play(pool, AGENT, PARAMS, KEY, [Request(3)], max_steps=0))
    with pytest.raises(ValueError, match=r"policy\['bias'\] must be \[\], as its `init` makes them, got \[2\]"):
        evaluate(AGENT, PARAMS, Ragged, [3], KEY, workers=0)


def test_rounded_actions_are_within_bounds_and_what_half_the_bytes_store() -> None:
    with Pool(Ragged, 3) as pool:
        found = played(pool, rounded=True)
    for number, episode in found.items():
        whole, exact = episode.recorded, expected()[number].recorded
        assert whole is not None and exact is not None and whole.action.dtype == np.float32
        np.testing.assert_array_equal(whole.action.astype(np.float16).astype(np.float32), whole.action)
        assert np.abs(whole.action).max() <= 1
        # The reward of `Ragged` shows which action was really taken.
        np.testing.assert_array_equal(
            whole.step.reward[1:], np.float32(episode.seed % 64 + whole.action[:-1].astype(float))
        )
        np.testing.assert_allclose(whole.action[0], np.clip(exact.action[0], -1, 1), atol=1e-3)


def test_max_steps_truncates_and_only_what_is_asked_for_is_recorded() -> None:
    with Pool(Ragged, 3) as pool:
        found = played(pool, max_steps=5, record=lambda request: request.seed in (3, 11))
        assert [n for n, episode in found.items() if episode.recorded is not None] == [3, 11, 20, 21]
        for number, episode in found.items():
            assert episode.steps == min(5, expected()[number].steps)
            assert episode.terminated == (expected()[number].terminated and expected()[number].steps <= 5)
            if episode.recorded is not None:
                whole = expected()[number].recorded
                assert whole is not None
                np.testing.assert_array_equal(episode.recorded.action[:-1], whole.action[:5])
                assert episode.recorded.action[-1] == 0 and bool(episode.recorded.step.is_last[-1])
        short = AGENT._replace(model=MODEL._replace(spec=SPEC._replace(max_steps=4)))
        assert {one.steps for one in play(pool, short, PARAMS, KEY, REQUESTS)} == {3, 4}


def test_requests_may_depend_on_what_was_played() -> None:
    totals: list[float] = []

    def requests() -> Iterator[Request]:
        yield Request(1)
        yield Request(2)
        while len(totals) < 5:
            yield Request(len(totals))

    with Pool(Ragged) as pool:
        for episode in play(pool, AGENT, PARAMS, KEY, requests()):
            totals.append(episode.total)
    assert len(totals) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pool_plays_again_and_again_also_after_a_play_that_was_left(workers: int) -> None:
    with Pool(Ragged, 5, workers) as pool:
        for _ in range(2):
            for count, _ in enumerate(play(pool, AGENT, PARAMS, KEY, REQUESTS)):
                if count == 3:
                    break
            assert_same(played(pool), expected())
        first = play(pool, AGENT, PARAMS, KEY, REQUESTS)
        next(first)
        assert_same(played(pool), expected())
        with pytest.raises(RuntimeError, match="another play has begun"):
            list(first)
        assert list(play(pool, AGENT, PARAMS, KEY, [])) == []


def test_a_random_agent_plays_by_its_seed() -> None:
    """Alike, whatever is beside it; observations of several parts are recorded as they are."""
    with Pool(partial(Returning, {})) as pool:
        spec = pool.spec(6)
        agent = random_play.random_agent(spec)
        requests = [Request(seed) for seed in (5, 6, 5)]
        alone = list(play(pool, agent, random_play.PARAMS, KEY, requests, record=True))
    with Pool(partial(Returning, {}), 3) as pool:
        beside = sorted(play(pool, agent, random_play.PARAMS, KEY, requests, record=True))
    assert [one.request for one in alone] == [0, 1, 2]
    jax.tree.map(np.testing.assert_array_equal, [one.recorded for one in alone], [one.recorded for one in beside])
    actions = [one.recorded.action for one in alone if one.recorded]
    np.testing.assert_array_equal(actions[0], actions[2])
    assert (actions[0] != actions[1]).any() and {0, 1} == set(np.concatenate(actions).tolist())
    whole = alone[0].recorded
    assert whole is not None and whole.step.observation["inner"][2].shape == (7, 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_observation_other_than_declared_ends_the_play_at_once(workers: int) -> None:
    with Pool(partial(Returning, {"1": 3}), 2, workers) as pool:
        agent = random_play.random_agent(pool.spec(6))
        with pytest.raises(InvalidStep, match="'inner/1' lies outside"):
            list(play(pool, agent, random_play.PARAMS, KEY, [Request(5), Request(6)]))
