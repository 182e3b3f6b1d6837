"""Environments of online training: flags, automatic resets, bounds, and environments that misbehave."""

from typing import Any

import gymnasium
import jax
import numpy as np
import pytest

from dreamjax.acting import seeds
from dreamjax.acting.vector import VectorEnvironment
from dreamjax.envs import probes
from dreamjax.envs.gymnasium import to_gymnasium
from dreamjax.envs.host import InvalidStep
from dreamjax.types import Space, Step
from tests.acting.environments import Everything, FailsToReset, Scripted, running_children, wait_until_gone

MADE_ANEW = pytest.mark.filterwarnings("ignore:environment . is made anew")


@pytest.fixture
def one():
    """One environment in this process, at the beginning of an episode."""
    vector = VectorEnvironment(Scripted, 1, 6)
    vector.reset((0,))
    yield vector
    vector.close()


def act(*actions: int) -> np.ndarray:
    return np.array(actions, np.int32)


def flags(step: Step) -> list[tuple[Any, ...]]:
    """is_first, is_last, is_terminal and reward of each environment."""
    return list(zip(step.is_first, step.is_last, step.is_terminal, step.reward, strict=True))


def test_after_the_last_step_of_an_episode_comes_the_first_of_the_next(one: VectorEnvironment) -> None:
    seen = [flags(one.step(act(0)))[0] for _ in range(8)]
    assert seen[:1] + seen[4:] == [(0, 0, 0, 1), (0, 0, 0, 5), (0, 1, 0, 6), (1, 0, 0, 0), (0, 0, 0, 1)]
    assert flags(one.step(act(4))) == [(0, 1, 1, 2)]
    step = one.step(act(1))  # is ignored
    assert flags(step) == [(1, 0, 0, 0)] and step.observation[0, 0] == 0 and one.failures == 0


def test_steps_are_the_callers_and_in_32_bits(one: VectorEnvironment) -> None:
    assert one.spec.observation == Space((2,), np.float32, -1, np.inf) and one.spec.action == Space((), np.int32, 0, 6)
    assert len(one) == 1
    first = one.step(act(0))
    kept = jax.tree.map(np.copy, first)
    one.step(act(4))
    jax.tree.map(np.testing.assert_array_equal, first, kept)
    assert (first.observation.dtype, first.reward.dtype) == (np.float32, np.float32)
    assert {flag.dtype for flag in (first.is_first, first.is_last, first.is_terminal)} == {np.dtype(bool)}


def test_the_step_limit_is_enforced_and_is_not_terminal() -> None:
    vector = VectorEnvironment(Scripted, 2, 3)
    vector.reset((0,))
    seen = [flags(vector.step(act(0, 0))) for _ in range(2)] + [flags(vector.step(act(0, 4)))]
    assert [step[0] for step in seen] == [(0, 0, 0, 1), (0, 0, 0, 2), (0, 1, 0, 3)]
    assert seen[-1][1] == (0, 1, 1, 3)
    assert flags(vector.step(act(0, 0))) == [(1, 0, 0, 0)] * 2
    vector.close()


def test_an_end_that_is_both_is_not_terminal() -> None:
    class Both(Scripted):
        def step(self, action: np.int64) -> Any:
            return self._observation(), 1.0, True, True, {}

    vector = VectorEnvironment(Both, 1, 6)
    vector.reset((0,))
    assert flags(vector.step(act(0))) == [(0, 1, 0, 1)]
    vector.close()


def test_the_numbers_of_the_last_info_of_an_episode() -> None:
    vector = VectorEnvironment(Scripted, 2, 6)
    vector.reset((0,))
    for _ in range(2):
        vector.step(act(0, 0))
        assert vector.info == {}
    vector.step(act(0, 4))
    assert vector.info == {1: {"time": 3.0, "by/half": 1.5}}
    vector.step(act(0, 0))
    assert vector.info == {}
    vector.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_seeds_repeat_and_differ_between_environments(workers: int) -> None:
    def opened(*seed: int) -> np.ndarray:
        vector = VectorEnvironment(Scripted, 4, 6, workers)
        numbers = [vector.reset(seed).observation[:, 1]]
        numbers += [vector.step(action).observation[:, 1] for action in (act(4, 4, 4, 4), act(0, 0, 0, 0))]
        vector.close()
        return np.stack([numbers[0], numbers[2]])

    first = opened(3, 0)
    np.testing.assert_array_equal(opened(3, 0), first)
    assert len(np.unique([first, opened(3, 1), opened(4, 0)])) == 24
    for i in range(4):
        drawn = Scripted().reset(seed=seeds.training(3, 0, i, 0))[0][1]
        assert first[0, i] == drawn


@MADE_ANEW
@pytest.mark.parametrize(("how", "workers"), [(1, 0), (1, 2), (2, 2), (3, 2)])
def test_a_failure_closes_the_episodes_of_its_worker_and_everything_goes_on(how: int, workers: int) -> None:
    """One that raises ends alone; one whose process dies or hangs takes the other of its worker along."""
    before = running_children()
    vector = VectorEnvironment(Scripted, 4, 6, workers, timeout=6)
    opened = vector.reset((5,))
    vector.step(act(0, 0, 0, 0))
    bad = [2] if how == 1 else [2, 3]
    step = vector.step(act(0, 0, how, 0))
    for i, row in enumerate(flags(step)):
        assert row == ((0, 1, 0, 0) if i in bad else (0, 0, 0, 2))
    seen = np.stack([np.where(np.isin(np.arange(4), bad), 1, 2), opened.observation[:, 1]], axis=1)
    np.testing.assert_array_equal(step.observation, seen)  # with the observation seen last
    assert vector.failures == len(bad) and vector.restarts == (how != 1) and vector.info == {}
    step = vector.step(act(0, 0, 0, 0))
    for i, row in enumerate(flags(step)):
        assert row == ((1, 0, 0, 0) if i in bad else (0, 0, 0, 3))
    for i in range(4):
        number = Scripted().reset(seed=seeds.training(5, i, len(bad) if i in bad else 0))[0][1]
        assert step.observation[i, 1] == number
    assert [row[3] for row in flags(vector.step(act(0, 0, 0, 0)))] == [1 if i in bad else 4 for i in range(4)]
    children = running_children() - before
    assert len(children) == workers
    vector.close()
    wait_until_gone(children)


def test_a_failure_is_said(one: VectorEnvironment) -> None:
    one.step(act(0))
    with pytest.warns(UserWarning, match="environment 0 is made anew: it raised LookupError.*the simulator is gone"):
        one.step(act(1))


@MADE_ANEW
def test_one_that_always_fails_is_the_users_to_see(one: VectorEnvironment) -> None:
    with pytest.raises(
        RuntimeError, match="environment 0 failed 3 times in a row, at last with: the simulator is gone"
    ):
        for _ in range(10):
            one.step(act(1))
    assert one.failures == 3


@MADE_ANEW
def test_failures_before_an_episode_came_to_its_end_do_not_count(one: VectorEnvironment) -> None:
    for _ in range(4):
        for action in (1, 0, 1, 0, 4, 0):
            one.step(act(action))
    assert one.failures == 8


@MADE_ANEW
def test_one_that_cannot_be_reset_is_the_users_to_see() -> None:
    vector = VectorEnvironment(FailsToReset, 2, 6)
    with pytest.raises(RuntimeError, match="failed 3 times in a row, at last with: no luck"):
        vector.reset((0,))
    vector.close()


@MADE_ANEW
@pytest.mark.parametrize("how", ["raise", "kill"])
def test_a_reset_that_fails_is_tried_again_with_another_seed(how: str, tmp_path: Any) -> None:
    """Where a worker dies in it, the episodes of its other environments end, also if they had just gone on."""

    class FailsOnce(Scripted):
        def step(self, action: np.int64) -> Any:
            self.is_bad = action == 4
            return super().step(action)

        def reset(self, **arguments: Any) -> Any:
            if getattr(self, "is_bad", False) and not list(tmp_path.iterdir()):
                (tmp_path / "failed").touch()
                from tests.acting.environments import misbehave

                misbehave(how)
            return super().reset(**arguments)

    vector = VectorEnvironment(FailsOnce, 4, 6, 2, timeout=20)
    vector.reset((5,))
    assert flags(vector.step(act(0, 4, 0, 0)))[1] == (0, 1, 1, 1)
    step = vector.step(act(0, 0, 0, 0))
    lost = (0, 1, 0, 0) if how == "kill" else (0, 0, 0, 2)
    assert flags(step) == [lost, (1, 0, 0, 0), (0, 0, 0, 2), (0, 0, 0, 2)]
    count = 2 if how == "kill" else 1
    assert vector.failures == count
    assert step.observation[1, 1] == Scripted().reset(seed=seeds.training(5, 1, count))[0][1]
    assert flags(vector.step(act(0, 0, 0, 0)))[0] == ((1, 0, 0, 0) if how == "kill" else (0, 0, 0, 3))
    vector.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_reward_or_an_observation_other_than_declared_is_refused(workers: int) -> None:
    class Low(gymnasium.Env[int, int]):
        observation_space = gymnasium.spaces.Discrete(3)
        action_space = gymnasium.spaces.Discrete(4)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            return 0, {}

        def step(self, action: int) -> Any:
            return int(action), 0.0, False, False, {}

    vector = VectorEnvironment(Low, 1, 5, workers)
    vector.reset((0,))
    assert vector.step(act(2)).observation.tolist() == [2]
    with pytest.raises(InvalidStep, match=r"lies outside Discrete\(3\): it is 3"):
        vector.step(act(3))
    vector.close()
    vector = VectorEnvironment(Scripted, 1, 6, workers)
    vector.reset((0,))
    with pytest.raises(InvalidStep, match="a reward must be one finite number of 32 bits, got nan"):
        vector.step(act(5))
    vector.close()


def test_workers_give_the_same_steps_as_this_process() -> None:
    """Nested, and a pure environment of ours."""
    button = {"button": act(3, 4, 5, 6), "bits": np.ones((4, 3), np.int8)}
    action = button | {"sticks": (np.linspace(-2, 2, 8, dtype=np.float32).reshape(4, 2), np.ones((4, 2), np.int32))}
    dodge = lambda: to_gymnasium(probes.dodge(observation="state", max_steps=7))  # noqa: E731
    for make, chosen, workers in ((Everything, action, 2), (dodge, np.float32([-0.9, 0.1, 0.9, 0]), 1)):
        seen = []
        for count in (0, workers):
            vector = VectorEnvironment(make, 4, 20, count)
            steps = [vector.reset((3, 4))] + [vector.step(chosen) for _ in range(15)]
            vector.close()
            seen.append(jax.tree.map(lambda *leaves: np.stack(leaves), *steps))
        jax.tree.map(np.testing.assert_array_equal, *seen)
        assert seen[0].is_first.sum() > (0 if make is Everything else 4)
    assert not np.array_equal(seen[0].observation[0, 0], seen[0].observation[0, 1])


def test_workers_that_cannot_share_are_refused() -> None:
    with pytest.raises(ValueError, match="2 workers cannot share 3 environments equally"):
        VectorEnvironment(Scripted, 3, 6, 2)
