"""Pure environments as stable-baselines3 wants them, beside the environment itself."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from stable_baselines3 import PPO

from dreamjax.envs.offers import offers
from dreamjax.envs.probes import counter, dodge
from dreamjax.envs.sb3 import VectorEnv
from dreamjax.types import Environment, EnvSpec, Space


def test_an_ended_copy_shows_the_next_episode_and_tells_the_last_observation() -> None:
    env = VectorEnv(counter(size=3, max_steps=3), 2)
    np.testing.assert_array_equal(env.reset(), [[1, 0, 0]] * 2)
    seen = []
    for actions in ([1, 0], [1, 0], [0, 0]):
        env.step_async(np.array(actions))
        seen.append(env.step_wait())
    shown, reward, over, infos = seen[1]  # the first has arrived at the top
    np.testing.assert_array_equal(shown, [[1, 0, 0]] * 2)
    np.testing.assert_array_equal(infos[0]["terminal_observation"], [0, 0, 1])
    assert (reward.tolist(), over.tolist(), infos[0]["TimeLimit.truncated"]) == ([1, 0], [True, False], False)
    assert "terminal_observation" not in infos[1]
    shown, reward, over, infos = seen[2]  # the time of the second is over
    assert (over.tolist(), infos[1]["TimeLimit.truncated"]) == ([False, True], True)
    np.testing.assert_array_equal(infos[1]["terminal_observation"], [1, 0, 0])


def test_a_dtype_that_numpy_lacks_is_shown_as_float32() -> None:
    game, half = counter(size=3, max_steps=3), partial(jnp.asarray, dtype=jnp.bfloat16)
    show = lambda state, step: (state, step._replace(observation=half(step.observation)))  # noqa: E731
    spec = game.spec._replace(observation=Space((3,), jnp.bfloat16, 0.0, 1.0))
    env = VectorEnv(Environment(lambda key: show(*game.reset(key)), lambda *args: show(*game.step(*args)), spec), 1)
    seen = [env.reset()]
    for _ in range(2):
        env.step_async(np.array([1]))
        shown, *_, infos = env.step_wait()
        seen.append(shown)
    seen.append(infos[0]["terminal_observation"])
    assert {one.dtype for one in seen} == {np.dtype(np.float32)} and env.observation_space.contains(seen[-1])


def test_everything_follows_from_the_seed() -> None:
    def played(seed: int) -> np.ndarray:
        env = VectorEnv(offers(), 3)
        env.seed(seed)
        found = [env.reset()]
        for _ in range(12):
            env.step_async(np.zeros(3, int))
            found.append(env.step_wait()[0])
        return np.stack(found)

    one = played(7)
    np.testing.assert_array_equal(one, played(7))
    assert (one != played(8)).any()
    np.testing.assert_array_equal(one[:, 1:], played(8)[:, :2])  # copy i has seed s + i


def test_what_it_cannot_express_is_refused() -> None:
    game = counter()
    parts = game._replace(spec=EnvSpec({"a": Space((2,))}, game.spec.action, 3))
    shifted = game._replace(spec=EnvSpec(game.spec.observation, Space((), np.int32, 1, 3), 3))
    with pytest.raises(ValueError, match="at least 1"):
        VectorEnv(game, 0)
    with pytest.raises(ValueError, match="observation that is a single array"):
        VectorEnv(parts, 1)
    with pytest.raises(ValueError, match="begin at 0"):
        VectorEnv(shifted, 1)
    with pytest.raises(AttributeError, match="no methods"):
        VectorEnv(game, 1).env_method("fly")


def test_an_algorithm_of_theirs_learns_to_count() -> None:
    env = VectorEnv(counter(size=4, max_steps=8), 4)
    learner = PPO("MlpPolicy", env, n_steps=64, learning_rate=3e-3, batch_size=64, seed=0, device="cpu")
    learner.learn(1024)
    chosen = learner.predict(np.eye(4, dtype=np.float32)[:3], deterministic=True)[0]
    np.testing.assert_array_equal(chosen, 1)


def test_continuous_actions_reach_the_game() -> None:
    env = VectorEnv(dodge(observation="state", rate=0.0, aim=0.0), 1)
    begin = env.reset()[0, 0]
    env.step_async(np.array([1.0], np.float32))
    assert env.step_wait()[0][0, 0] >= begin + 1 / 32
