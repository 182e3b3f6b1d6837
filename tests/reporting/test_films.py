"""The film of an open loop: every picture in its place, framed by who made it."""

from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import Image

from dreamjax.reporting.films import write_open_loop

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
