"""Every task of POPGym fits an agent as it is, and its seeds decide its episodes."""

import numpy as np
import pytest

from dreamjax.envs import popgym, suites
from dreamjax.envs.gymnasium import spec_from_gymnasium
from dreamjax.envs.host import checked, flatten, leaves


def play(task: str, seed: int) -> list[np.ndarray]:
    env = suites.task(f"popgym_{task}").make_env()
    env.action_space.seed(0)
    observations, is_over = [env.reset(seed=seed)[0]], False
    while not is_over:
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        observations.append(observation)
        is_over = terminated or truncated
    assert len(observations) <= suites.SUITES["popgym"].max_steps
    parts = [flatten(env.observation_space, one) for one in observations]
    checked_parts = [map(checked, leaves(env.observation_space), part) for part in parts]
    return [np.concatenate([np.ravel(leaf) for leaf in part]) for part in checked_parts]


@pytest.mark.parametrize("task", [name for name in popgym.TASKS if name.endswith("Medium")])
def test_a_task_fits_and_its_seed_decides_the_episode(task: str) -> None:
    spec_from_gymnasium(popgym.make(task), max_steps=1000)
    first = play(task, seed=1)
    np.testing.assert_array_equal(first, play(task, seed=1))
    others = [play(task, seed=seed) for seed in (2, 3)]
    assert not all(np.array_equal(first[: len(other)], other[: len(first)]) for other in others)


def test_an_unknown_task_names_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"there are .*RepeatPreviousEasy"):
        suites.task("popgym_RepeatNothing").make_env()
