"""The Behaviour Suite out of the adapter is the suite itself, and can be scored by it."""

from urllib.error import URLError

import bsuite
import numpy as np
import pytest
from bsuite import sweep
from bsuite.utils import datasets
from gymnasium.error import ResetNeeded

from dreamjax.acting.vector import VectorEnvironment
from dreamjax.envs.bsuite import SETTINGS, Bsuite
from dreamjax.envs.host import checked, leaves
from dreamjax.envs.suites import SUITES

# But mnist, whose pictures are downloaded.
EXPERIMENTS = sorted({name.partition("/")[0] for name in SETTINGS if not name.startswith("mnist")})
# In these there is no luck but what the setting fixes.
CERTAIN = {"bandit", "bandit_scale", "deep_sea", "discounting_chain"}


def play(env: Bsuite, seed: int, steps: int = 250) -> np.ndarray:
    rng, (leaf,) = np.random.default_rng(0), leaves(env.observation_space)
    seen = [env.reset(seed=seed)[0].ravel()]
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step(rng.integers(env.action_space.n))
        assert not truncated
        seen += [checked(leaf, observation).ravel(), [reward, terminated]]
        if terminated:
            seen.append(env.reset()[0].ravel())
    return np.concatenate(seen)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_seed_decides_all_episodes_from_there_on(experiment: str) -> None:
    env = Bsuite(f"{experiment}/0")
    first = play(env, seed=1)
    np.testing.assert_array_equal(first, play(env, seed=1))
    np.testing.assert_array_equal(first, play(Bsuite(f"{experiment}/0"), seed=1))
    assert np.array_equal(first, play(env, seed=2)) == (experiment in CERTAIN)


def test_pictures_that_cannot_be_downloaded_are_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(url: str, filename: str, directory: str) -> None:
        raise URLError("no network")

    monkeypatch.setattr(datasets, "_download", no_network)
    with pytest.raises(OSError, match=r"mnist/3 could not be made: .*no network.* copy the four files"):
        Bsuite("mnist/3")


def test_episodes_are_those_of_the_suite() -> None:
    ours, theirs = Bsuite("deep_sea/3"), bsuite.load("deep_sea", sweep.SETTINGS["deep_sea/3"])
    np.testing.assert_array_equal(ours.reset(seed=0)[0], theirs.reset().observation)
    for action in np.random.default_rng(0).integers(2, size=16):
        arrived, (observation, reward, terminated, *_) = theirs.step(action), ours.step(action)
        np.testing.assert_array_equal(observation, arrived.observation)
        assert (reward, terminated) == (arrived.reward, arrived.last())
    assert terminated and ours.observation_space.shape == (16, 16)


def test_what_the_suite_is_scored_by_goes_on_through_episodes_and_seeds() -> None:
    vector = VectorEnvironment(lambda: Bsuite("catch/0"), 1, 1000)
    vector.reset((0,))
    told, lost = [], 0.0
    for _ in range(40):
        step = vector.step(np.array([0]))
        lost += float(step.is_last[0] and 1 - step.reward[0])
        told += [vector.info[0]] if step.is_last[0] else []
    vector.close()
    assert [one["bsuite/episode"] for one in told] == [1, 2, 3, 4]
    assert told[-1]["bsuite/total_regret"] == lost > 0
    assert Bsuite("catch/0").episodes == 10_000


def test_there_are_468_settings_and_others_are_refused() -> None:
    assert len(SETTINGS) == 468
    with pytest.raises(ValueError, match=r"unknown setting 'catch'; there are bandit/0, .* 468 in all"):
        Bsuite("catch")
    env = Bsuite("bandit/0")
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(ResetNeeded):  # the suite itself would begin another episode
        env.step(0)


def test_the_longest_episodes_end_by_themselves() -> None:
    env, steps = Bsuite("cartpole_swingup/0"), 0
    env.reset(seed=0)
    terminated = False
    while not terminated:
        _, _, terminated, _, info = env.step(np.int64(1))  # no push
        steps += 1
    assert 1000 < steps <= SUITES["bsuite"].max_steps and info["bsuite"]["episode"] == 1
