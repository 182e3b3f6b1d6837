"""Crafter against the game itself. Each reset makes a world, which takes the game a second or two."""

import crafter
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding

from dreamjax.acting.vector import VectorEnvironment
from dreamjax.envs.crafter import ACHIEVEMENTS, Crafter, score

NOTHING = crafter.constants.actions.index("noop")


def test_episodes_are_those_of_the_game_and_their_length_truncates_them():
    rng, _ = seeding.np_random(7)
    game = crafter.Env(seed=int(rng.integers(2**31)))
    ours = Crafter(length=9)  # from step 10 on the game draws creatures, which differ from run to run without our order
    np.testing.assert_array_equal(ours.reset(seed=7)[0], game.reset())
    rewards = []
    for name in ["do", "do", "place_plant", *["move_left", "move_up"] * 3]:
        action = crafter.constants.actions.index(name)
        picture, wanted, _, told = game.step(action)
        observation, reward, terminated, truncated, info = ours.step(action)
        np.testing.assert_array_equal(observation, picture)
        rewards.append(reward)
        assert (reward, terminated, truncated) == (wanted, False, len(rewards) == 9)
        assert info == ({"achievements": told["achievements"]} if truncated else {})
    assert rewards == [0, 1, 1, *[0] * 6]
    assert {name for name in ACHIEVEMENTS if info["achievements"][name]} == {"collect_sapling", "place_plant"}
    np.testing.assert_array_equal(ours.reset()[0], game.reset())


def test_death_terminates_even_at_the_limit_and_the_last_info_has_the_achievements():
    class Dying(Crafter):
        def step(self, action: int) -> tuple:
            self._game._player.health = 0
            return super().step(action)

    vector = VectorEnvironment(lambda: Dying(length=1), 1, 1)
    vector.reset((0,))
    step = vector.step(np.array([NOTHING]))
    assert step.is_terminal[0]
    assert step.reward[0] == pytest.approx(-0.9)
    assert vector.info == {0: {f"achievements/{name}": 0.0 for name in ACHIEVEMENTS}}
    vector.close()


def test_equal_seeds_give_equal_worlds_whatever_the_memory_looks_like():
    def creatures() -> list[tuple]:
        env = Crafter()
        env.reset(seed=2)
        for _ in range(100):
            env.step(NOTHING)
        return [(type(thing).__name__, *thing.pos) for thing in env._game._world.objects]

    first = creatures()
    between = [object() for _ in range(12_345)]
    assert creatures() == first
    assert len(between) == 12_345


def test_rendering_changes_nothing_in_the_game():
    env = Crafter(render_mode="rgb_array")
    env.reset(seed=0)
    env._game._world.daylight = 0.1  # the night is noisy
    before = env._game._world.random.get_state()[1:3]
    picture = env.render()
    np.testing.assert_equal(env._game._world.random.get_state()[1:3], before)
    np.testing.assert_array_equal(picture, env.render())


def test_the_score_is_a_geometric_mean_of_success_rates():
    nothing, everything = dict.fromkeys(ACHIEVEMENTS, 0), dict.fromkeys(ACHIEVEMENTS, 3)
    assert score([nothing, nothing]) == 0
    assert score([everything]) == pytest.approx(100)
    half = nothing | {"collect_wood": 2}
    assert score([nothing, half]) == pytest.approx(51 ** (1 / 22) - 1)
    with pytest.raises(ValueError, match="at least one"):
        score([])


def test_bad_use_is_refused():
    with pytest.raises(ValueError, match="size >= 9"):
        Crafter(size=8)
    with pytest.raises(ValueError, match="length >= 1"):
        Crafter(length=0)
    with pytest.raises(ResetNeeded, match="reset"):
        Crafter().step(0)
