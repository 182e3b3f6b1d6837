"""Films: of an open loop, every picture in its place, framed by who made it; of an agent at play."""

from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v2 as imageio
import jax
import numpy as np
import pytest
from PIL import Image

from dreamjax.acting.random_play import PARAMS, random_agent
from dreamjax.envs.gymnasium import spec_from_gymnasium, to_gymnasium
from dreamjax.envs.swingup import swingup
from dreamjax.reporting.films import (
    CannotFilm,
    film,
    film_dream_and_real,
    film_episode,
    film_section,
    write_open_loop,
)
from tests.acting.agents import AGENT as SEEING, ONE
from tests.acting.environments import Ragged

GREEN, RED = (0, 158, 115), (213, 94, 0)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_sheet_shows_truth_prediction_and_difference(tmp_path: Path, channels: int) -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 256, (2, 2, 7, 48, 64, channels), np.uint8)
    names = write_open_loop(tmp_path, "film", truth, predicted, observed=3)
    assert names == ["film.mp4", "film.png"]
    sheet = np.asarray(Image.open(tmp_path / "film.png"))
    height, width = 2 * 48 + 6, 2 * 64 + 6  # twice as large, in a border of 3
    assert sheet.shape == (3 * height, 7 * width, 3)

    def shown(pictures: np.ndarray) -> np.ndarray:
        return pictures if channels == 3 else pictures.mean(-1, keepdims=True).astype(np.uint8).repeat(3, -1)

    difference = (predicted.astype(int) - truth + 255) // 2
    for row, pictures in enumerate([truth, predicted, difference.astype(np.uint8)]):
        for t in range(7):
            panel = sheet[row * height : (row + 1) * height, t * width : (t + 1) * width]
            np.testing.assert_array_equal(panel[3:-3:2, 3:-3:2], shown(pictures)[0, t])
            np.testing.assert_array_equal(panel[4:-3:2, 4:-3:2], shown(pictures)[0, t])
            border = GREEN if t < 3 else RED
            assert (panel[:3] == border).all() and (panel[:, -3:] == border).all()


def test_the_film_has_all_sequences_and_a_pause(tmp_path: Path) -> None:
    truth = np.zeros((3, 4, 96, 96, 3), np.uint8)
    truth[1] = 200  # the middle sequence
    write_open_loop(tmp_path, "film", truth, truth, observed=2)
    film = np.stack(imageio.mimread(tmp_path / "film.mp4", memtest=False))
    assert film.shape[0] == 4 + 10
    assert film.shape[2] == 3 * (96 + 6)
    assert film[-10:].max() < 20  # black, but for what compression leaves
    middle = film[:4, :, 102 + 10 : 204 - 10].mean(-1)
    brightness = middle.mean(2)[0]  # down one frame: labels, then truth, prediction, difference
    assert (np.abs(brightness - 200) < 10).sum() >= 2 * 96 and (np.abs(brightness - 127) < 10).sum() >= 90
    assert film[:4, :, 10:92].mean() < 90  # black, black, and grey


class Dot(gymnasium.Env[np.ndarray, np.integer]):
    """A dot that moves to the right: a number to see, and a picture to show."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012, the base class declares it so

    def __init__(self, render_mode: str | None = None, broken: bool = False) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 100, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.render_mode, self.broken = render_mode, broken

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.place = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.integer) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += 1
        return np.full(1, self.place, np.float32), 1.0, self.place == 12, False, {}

    def render(self) -> np.ndarray:
        if self.broken:
            raise OSError("no screen")
        picture = np.zeros((64, 96, 3), np.uint8)
        picture[24:40, 8 * self.place : 8 * self.place + 8] = 255
        return picture


AGENT = random_agent(spec_from_gymnasium(Dot(), 50))


@pytest.mark.filterwarnings("ignore:os.fork")  # JAX warns of the ffmpeg that reads the film back
def test_an_agent_that_sees_no_picture_is_filmed_as_its_environment_renders(tmp_path: Path) -> None:
    (section,) = film_section(tmp_path, AGENT, PARAMS, partial(Dot, "rgb_array"), seed=0)
    shown = np.stack(imageio.mimread(tmp_path / section.media[0], memtest=False))
    assert shown.shape == (13, 256, 384, 3)  # four times as large, with the picture of the end
    bright = shown[:, 128, :, 0] > 128
    assert [int(np.flatnonzero(row).mean()) // 32 for row in bright[:12]] == list(range(12))
    assert film(tmp_path / "short.mp4", AGENT, PARAMS, partial(Dot, "rgb_array"), episodes=2, max_steps=3) == [3, 3]
    assert len(imageio.mimread(tmp_path / "short.mp4", memtest=False)) == 2 * 4


def test_an_environment_that_tells_no_rate_is_filmed_beside_its_dream(tmp_path: Path) -> None:
    assert "render_fps" not in Ragged.metadata
    params = ONE._replace(starts=np.zeros((2, 3), np.float32))
    film_dream_and_real(tmp_path / "both.mp4", SEEING, params, Ragged, jax.random.key(0), 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["both.mp4", "both.png"]


@pytest.mark.parametrize(
    ("mode", "broken", "why"),
    [("rgb_array", True, "<Dot instance> cannot render: no screen"), (None, False, "neither renders pictures")],
)
def test_what_cannot_be_filmed_is_said_in_a_line(
    mode: str | None, broken: bool, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_env = partial(Dot, mode, broken)
    assert film_section(tmp_path, AGENT, PARAMS, make_env, seed=0) == []
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("No film of an episode: ") and why in line
    with pytest.raises(CannotFilm, match=why):
        film(tmp_path / "film.mp4", AGENT, PARAMS, make_env)
    assert list(tmp_path.iterdir()) == []


def test_an_episode_is_filmed_by_the_one_picture_that_is_seen() -> None:
    key = jax.random.key(0)
    both, state = (swingup(max_steps=4, observation=kind) for kind in ("both", "state"))
    frames = film_episode(random_agent(both.spec), PARAMS, partial(to_gymnasium, both), 0, key)
    assert frames.shape == (5, 64, 64, 3) and frames.dtype == np.uint8 and frames.std() > 0
    with pytest.raises(ValueError, match="an observation of 0 pictures cannot be filmed"):
        film_episode(random_agent(state.spec), PARAMS, partial(to_gymnasium, state), 0, key)
