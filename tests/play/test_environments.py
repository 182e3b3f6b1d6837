"""Environments by name, and whether they are those of an agent."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest

from dreamjax.acting import seeds
from dreamjax.envs import jitted
from dreamjax.envs.gymnasium import spec_from_gymnasium
from dreamjax.envs.suites import task
from dreamjax.play import environments
from dreamjax.play.environments import Failed, Unplayable, find
from dreamjax.types import EnvSpec, Space
from tests.acting.environments import Ragged
from tests.play.sessions import RESULTS, stored

CATCH = jitted.make("catch").spec


def test_committed_agents_say_what_they_were_trained_in() -> None:
    files = sorted(RESULTS.glob("*/agent*.npz"))
    assert len(files) >= 3
    for file in files:
        agent = stored(file.relative_to(RESULTS).as_posix())
        assert agent.task is not None
        playable = find(agent.task, agent.agent.model.spec)
        assert playable.rate == {"take_cover": 35, "car_racing": 50, "catch": 2}[agent.task]


def test_a_host_environment_plays_the_test_episode_of_a_number() -> None:
    spec = stored("doom_take_cover").agent.model.spec
    running, alone = find("tests.acting.environments:Ragged", spec).open(), Ragged()
    first = running.reset(3)
    np.testing.assert_array_equal(first.observation, alone.reset(seed=seeds.test(1, 3)[0])[0])
    assert first.is_first and not first.is_last and first.reward == 0
    for number in range(alone.length):
        step = running.step(np.float32(1.0))
        observation, reward, *_ = alone.step(np.float32(1.0))
        np.testing.assert_array_equal(step.observation, observation)
        assert step.reward == reward and not step.is_first and step.is_last == (number == alone.length - 1)
    running.close()


def test_an_episode_ends_at_the_limit_of_the_agent() -> None:
    spec = stored("doom_take_cover").agent.model.spec._replace(max_steps=2)
    running = find("tests.acting.environments:Ragged", spec).open()
    running.reset(0)
    assert [bool(running.step(np.float32(0)).is_last) for _ in range(2)] == [False, True]
    running.close()
    pure = find("catch", CATCH._replace(max_steps=1)).open()
    pure.reset(0)
    step = pure.step(np.int32(0))
    assert step.is_last and not step.is_terminal


def test_episodes_of_a_pure_environment_repeat() -> None:
    running = find("catch", CATCH).open()
    begun = [running.reset(number).observation for number in (4, 5, 4)]
    np.testing.assert_array_equal(begun[0], begun[2])
    assert isinstance(begun[0], np.ndarray) and running.step(np.int32(1)).reward == 0
    running.close()


def test_tasks_of_suites_are_adapted_and_resized_for_the_agent() -> None:
    with task("gym_CartPole-v1").make_env() as env:
        spec = spec_from_gymnasium(env, 500)
    playable = find("gym_CartPole-v1", spec, rate=25.0)
    assert playable.rate == 25 and find("gym_CartPole-v1", spec).rate == 50
    running = playable.open()
    assert running.reset(0).observation.shape == (4,) and running.step(np.int32(1)).reward == 1
    running.close()
    with task("crafter_reward").make_env() as env:
        labelled = find("crafter_reward", spec_from_gymnasium(env, 10_000))
        small = spec_from_gymnasium(env, 100)._replace(observation=Space((96, 96, 3), np.uint8, 0, 256))
    assert labelled.labels[:3] == ("noop", "move_left", "move_right") and labelled.rate == 10
    running = find("crafter_reward", small).open()
    assert running.reset(0).observation.shape == (96, 96, 3)
    running.close()


def test_actions_of_an_actor_are_brought_to_the_bounds_of_the_environment() -> None:
    spec = EnvSpec(Space((3,)), Space((1,), np.float32, -1.0, 1.0), 200)
    running = find("gym_Pendulum-v1", spec).open()  # whose torque lies in [-2, 2]
    assert running.reset(0).observation.shape == (3,)
    assert np.isfinite(running.step(np.float32([1.0])).reward)
    running.close()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("chess", "unknown environment 'chess'; there are take_cover, car_racing, counter, .* name package.module:f"),
        ("dodge_state", "another environment: observation is .* for the agent. Is 'dodge_state' the environment"),
        ("dodge", "another environment: .* Is 'dodge' the env"),
        ("doom_defend", "the task of Doom is doom_takecover"),
        ("dreamjax.envs.probes:chess", "dreamjax.envs.probes has no 'chess'"),
    ],
)
def test_what_cannot_be_played_says_why(name: str, why: str) -> None:
    with pytest.raises(Unplayable, match=why):
        find(name, CATCH)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        find("no_such_module:Game", CATCH)


def test_a_factory_may_make_an_environment_of_ours() -> None:
    assert find("dreamjax.envs.probes:catch", CATCH).open().reset(0).is_first


def test_an_environment_that_raises_has_failed_and_goes_on_after_a_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Ragged):
        """Fails in its second step, the first time."""

        def step(self, action: np.ndarray) -> tuple:
            if self.steps == 1 and not (tmp_path / "failed").exists():
                (tmp_path / "failed").touch()
                raise LookupError("the simulator is gone")
            return super().step(action)

    monkeypatch.setattr(environments.naming, "find", lambda name: Broken)
    running = find("broken", stored("doom_take_cover").agent.model.spec).open()
    running.reset(0)
    running.step(np.float32(0))
    with pytest.raises(Failed, match="the simulator is gone"):
        running.step(np.float32(0))
    running.reset(0)
    assert [bool(running.step(np.float32(0)).is_last) for _ in range(2)] == [False, False]
    running.close()
    assert isinstance(Broken(), gymnasium.Env)
