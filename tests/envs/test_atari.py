"""Atari against the emulator itself, driven frame by frame."""

from collections.abc import Iterator

import ale_py
import numpy as np
import pytest
from ale_py import roms
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env
from PIL import Image

from dreamjax.acting.vector import VectorEnvironment
from dreamjax.envs import atari
from dreamjax.envs.atari import Atari

FEW = {"size": 64, "grey": False, "sticky": False, "all_actions": False}  # the settings of Atari 100k


def played(game: str, seed: int, meanings: list[int], sticky: float) -> Iterator[tuple[np.ndarray, float, bool]]:
    """What an episode shows before it is resized, with joystick actions by their number."""
    rng, _ = seeding.np_random(seed)
    emulator = ale_py.ALEInterface()
    emulator.setInt("random_seed", int(rng.integers(2**31)))
    emulator.setFloat("repeat_action_probability", sticky)
    emulator.loadROM(roms.get_rom_path(game))
    emulator.reset_game()
    for _ in range(rng.integers(31)):
        emulator.act(0)
    drawn = [emulator.getScreenRGB()] * 2
    yield drawn[0], 0.0, False
    for meaning in meanings:
        rewards = []
        for frame in (1, 2, 3, 4):
            rewards.append(emulator.act(meaning))
            if frame in (3, 4):
                drawn.append(emulator.getScreenRGB())
            if emulator.game_over():
                break
        yield np.where(drawn[-1] > drawn[-2], drawn[-1], drawn[-2]), sum(rewards), emulator.game_over()


def grey(image: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(image.astype(float), -1, 0)
    return np.trunc(0.299 * red + 0.587 * green + (1 - (0.299 + 0.587)) * blue)[:, :, None]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [{}, FEW])
def test_gymnasium_accepts_it(settings: dict):
    check_env(Atari("pong", **settings), skip_render_check=True)


@pytest.mark.parametrize(("game", "settings"), [("space_invaders", {}), ("ms_pacman", FEW)])
def test_an_episode_is_that_of_the_emulator(game: str, settings: dict):
    ours = Atari(game, **settings)
    size, sticky = (64, 0.0) if settings else (96, 0.25)
    # All 18 are numbered as the joystick has them; in Ms. Pac-Man standing and the eight directions mean something.
    meanings = list(range(18)) if not settings else [0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert ours.action_space.n == len(meanings)
    actions = np.random.default_rng(0).integers(len(meanings), size=1000)
    total, steps, arrived = 0.0, 0, (ours.reset(seed=3)[0], 0.0, False, False, {})
    for picture, reward, over in played(game, 3, [meanings[action] for action in actions], sticky):
        expected = np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(arrived[0], expected if settings else grey(expected))
        assert arrived[1:] == (reward, over, False, {})
        total += reward
        if over:
            break
        arrived = ours.step(actions[steps])
        steps += 1
    assert over
    assert total > 0
    assert 100 < steps < 1000


def test_episodes_follow_from_the_seed_and_open_differently():
    env, other = Atari("pong"), Atari("pong")
    opened = [env.reset(seed=5)[0], *(env.reset()[0] for _ in range(3))]
    again = [other.reset(seed=5)[0], *(other.reset()[0] for _ in range(3))]
    np.testing.assert_array_equal(opened, again)
    assert len({image.tobytes() for image in opened}) > 1


def test_the_limit_of_frames_terminates_as_published(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(atari, "LIMIT", 10)
    env = Atari("pong", **FEW)
    for _ in range(2):
        env.reset(seed=0)
        assert [env.step(0)[2:4] for _ in range(3)] == [(False, False), (False, False), (True, False)]


def test_in_a_vector_environment():
    vector = VectorEnvironment(lambda: Atari("pong", **FEW), 2, 27_000)
    assert vector.reset((0,)).observation.shape == (2, 64, 64, 3)
    assert vector.spec.action.high == 6
    vector.step(np.array([0, 5]))
    vector.close()


def test_actions_are_named_as_gymnasium_names_them() -> None:
    assert Atari("pong", **FEW).get_action_meanings() == ["NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE"]


def test_bad_settings_are_refused_and_names_are_those_of_the_publications():
    with pytest.raises(ValueError, match="unknown game 'chess'; there are adventure, "):
        Atari("chess")
    with pytest.raises(ValueError, match="size"):
        Atari("pong", size=0)
    assert Atari("james_bond").reset(seed=0)[0].shape == (96, 96, 1)
