"""Videos: what is written plays back as what was shown, and what is no video is refused."""

import os

import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image, ImageSequence

from dreamjax.reporting.videos import contact_sheet, side_by_side, upscale, write_gif, write_image, write_video

# JAX warns of every fork, here that of the ffmpeg which reads the video back.
reads_with_ffmpeg = pytest.mark.filterwarnings("ignore:os.fork")


def clip(length: int = 6, height: int = 16, width: int = 24, level: int = 0) -> np.ndarray:
    """Smooth frames that brighten evenly, which a lossy codec keeps nearly as they are."""
    frames = np.zeros((length, height, width, 3), np.uint8) + np.uint8(level)
    frames[..., 1] += (np.arange(length, dtype=np.uint8) * 30)[:, None, None]
    return frames


@reads_with_ffmpeg
def test_an_mp4_plays_back_as_written(tmp_path):
    write_video(tmp_path / "a.mp4", clip(), fps=35)
    frames = iio.imread(tmp_path / "a.mp4", plugin="FFMPEG")
    assert frames.shape == (6, 16, 24, 3)
    np.testing.assert_allclose(frames.astype(int), clip().astype(int), atol=6)
    metadata = iio.immeta(tmp_path / "a.mp4", plugin="FFMPEG")
    assert metadata["fps"] == 35 and metadata["codec"] == "h264" and metadata["pix_fmt"].startswith("yuv420p")


@reads_with_ffmpeg
def test_an_mp4_of_odd_size_grows_by_one(tmp_path):
    frames = clip(height=15, width=23)
    write_video(tmp_path / "a.mp4", frames, fps=10)
    shown = iio.imread(tmp_path / "a.mp4", plugin="FFMPEG")
    assert shown.shape == (6, 16, 24, 3)
    np.testing.assert_allclose(shown[:, :15, :23].astype(int), frames.astype(int), atol=6)


@reads_with_ffmpeg
def test_a_gif_plays_at_its_rate_in_the_colours_of_the_film(tmp_path):
    frames = np.zeros((10, 32, 48, 3), np.uint8)
    frames[5:] = (0, 128, 255)
    write_video(tmp_path / "film.mp4", frames, fps=10)
    write_gif(tmp_path / "film.gif", tmp_path / "film.mp4", fps=20)
    with Image.open(tmp_path / "film.gif") as gif:
        played = [(one.info["duration"], np.asarray(one.convert("RGB"))) for one in ImageSequence.Iterator(gif)]
    assert sum(duration for duration, _ in played) == 1000  # milliseconds
    np.testing.assert_allclose(played[0][1], frames[0], atol=8)
    np.testing.assert_allclose(played[-1][1], frames[-1], atol=8)
    (tmp_path / "broken.mp4").write_bytes(b"film")
    with pytest.raises(ValueError, match=r"broken\.mp4 is no film that can be read"):
        write_gif(tmp_path / "film.gif", tmp_path / "broken.mp4")
    assert (tmp_path / "film.gif").read_bytes().startswith(b"GIF89a")


def test_an_image_is_written_exactly(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    write_image(tmp_path / "a.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), image)
    with pytest.raises(ValueError, match="uint8"):
        write_image(tmp_path / "b.png", image / 255)


def test_a_failed_write_leaves_the_old_video(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", clip(), fps=10)
    before = (tmp_path / "a.mp4").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_video(tmp_path / "a.mp4", clip(level=9), fps=10)
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize(
    ("name", "frames", "fps", "problem"),
    [
        ("a.gif", clip(), 10, r"written as \.mp4"),
        ("a.mp4", clip(), 0, "fps must be positive"),
        ("a.mp4", clip() / 255.0, 10, "uint8"),
        ("a.mp4", clip()[0], 10, r"\[T, H, W, 3\]"),
        ("a.mp4", clip()[..., :1], 10, r"\[T, H, W, 3\]"),
        ("a.mp4", clip()[:0], 10, "at least one frame"),
        ("a.mp4", [clip()], 10, "numpy array"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path, name, frames, fps, problem):
    with pytest.raises(ValueError, match=problem):
        write_video(tmp_path / name, frames, fps)
    assert os.listdir(tmp_path) == []


def test_upscale_makes_every_pixel_a_square():
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 3), np.uint8)
    large = upscale(frames, 3)
    assert large.shape == (2, 9, 12, 3)
    for offset_y in range(3):
        for offset_x in range(3):
            np.testing.assert_array_equal(large[:, offset_y::3, offset_x::3], frames)
    with pytest.raises(ValueError, match="factor"):
        upscale(frames, 0)


def test_side_by_side_pads_the_shorter_with_its_darkened_end():
    long, short = clip(length=6, level=60), clip(length=2, width=10, level=90)
    both = side_by_side([long, short], ["real", "dream"], gap=4)
    strip = both.shape[1] - 16
    assert both.shape == (6, strip + 16, 24 + 4 + 10, 3) and strip >= 10
    np.testing.assert_array_equal(both[:, strip:, :24], long)
    np.testing.assert_array_equal(both[:2, strip:, 28:], short)
    np.testing.assert_array_equal(both[2:, strip:, 28:], np.repeat(short[-1:] // 3, 4, axis=0))
    assert (both[:, :, 24:28] == both[0, 0, 24]).all()


def test_side_by_side_draws_each_label_above_its_video_only():
    videos = [clip(length=1, height=32, width=64)] * 2
    plain = side_by_side(videos, ["", ""])
    left = side_by_side(videos, ["a label that is far too long for its video", ""])
    assert (left[:, :-32, :64] != plain[:, :-32, :64]).any()
    np.testing.assert_array_equal(left[:, :, 64:], plain[:, :, 64:])
    np.testing.assert_array_equal(left[:, -32:], plain[:, -32:])


def test_side_by_side_needs_equal_heights_and_a_label_each():
    with pytest.raises(ValueError, match=r"different heights, \[16, 32\]"):
        side_by_side([clip(), clip(height=32)], ["a", "b"])
    with pytest.raises(ValueError, match="a label for each"):
        side_by_side([clip()], [])
    with pytest.raises(ValueError, match="at least one video"):
        side_by_side([], [])


def test_a_contact_sheet_is_read_like_a_page():
    frames = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 3), np.uint8)
    sheet = contact_sheet(frames, columns=3, gap=2)
    assert sheet.shape == (3 + 2 + 3, 4 + 2 + 4 + 2 + 4, 3)
    np.testing.assert_array_equal(sheet[:3, 6:10], frames[1])
    np.testing.assert_array_equal(sheet[5:, 6:10], frames[4])
    assert len(np.unique(sheet[5:, 12:])) == 1  # nothing in the last place
    assert contact_sheet(frames, columns=50).shape[1] == 5 * 6 - 2
    with pytest.raises(ValueError, match="columns"):
        contact_sheet(frames, columns=0)
