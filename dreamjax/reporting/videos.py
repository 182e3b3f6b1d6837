"""Write and arrange videos, uint8 [T, H, W, 3], and images, uint8 [H, W, 3]."""

import os
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dreamjax._extras import extra
from dreamjax.storage.atomic import replacing

_BACKGROUND = 24  # grey level of gaps and label strips


def write_video(path: str | os.PathLike[str], frames: np.ndarray, fps: float) -> None:
    """Write frames uint8 [T, H, W, 3] as an `.mp4` (H.264, 4:2:0, which every browser plays), atomically.

    Raises:
        ValueError: the suffix is another one, `frames` is no video, or `fps` is not positive.
        ModuleNotFoundError: the extra "experiments" is not installed.
    """
    _check_video(frames)
    with video_writer(path, fps) as write:
        for frame in frames:
            write(frame)


@contextmanager
def video_writer(path: str | os.PathLike[str], fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Write a video frame by frame, as `write_video` does: `with video_writer(path, 30) as write: write(frame)`.

    An odd height or width grows by one, repeating the last row or column: 4:2:0 halves the resolution of colours.
    There is no file until the block ends without an error.

    Shapes: each frame uint8 [H, W, 3]. Raises: as `write_video` does.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise ValueError(f"a video is written as .mp4, got {path.name!r}")
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    with extra("experiments", "a video"):
        import imageio.v2 as imageio
    with replacing(path) as temporary:
        writer = imageio.get_writer(
            temporary,
            format="FFMPEG",
            fps=fps,
            codec="libx264",
            pixelformat="yuv420p",
            macro_block_size=1,
            quality=8,
            ffmpeg_log_level="error",
            output_params=["-movflags", "+faststart"],
        )

        def write(frame: np.ndarray) -> None:
            even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
            with warnings.catch_warnings():
                # JAX warns that a fork of its threads may deadlock; this child becomes ffmpeg at once.
                warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
                writer.append_data(even)

        with closing(writer):
            yield write


def write_gif(path: str | os.PathLike[str], film: str | os.PathLike[str], fps: float = 20) -> None:
    """Write a film once more as a `.gif`, atomically, in the 256 colours that suit it best.

    Raises: ValueError if there is no film to be read; ModuleNotFoundError without the extra "experiments".
    """
    with extra("experiments", "a video"):
        from imageio.plugins.ffmpeg import get_exe
    # Colours first, then pictures: in one pass ffmpeg would keep the whole film in memory.
    with replacing(path) as temporary, tempfile.TemporaryDirectory() as folder:
        colours = Path(folder) / "colours.png"
        for given in (
            ["-i", str(film), "-vf", f"fps={fps},palettegen", str(colours)],
            ["-i", str(film), "-i", str(colours), "-lavfi", f"fps={fps}[f];[f][1:v]paletteuse", "-y", str(temporary)],
        ):
            command = [get_exe(), "-v", "error", *given]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ValueError(f"{film} is no film that can be read: {done.stderr.strip()}")


def write_image(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Write uint8 [H, W, 3] in the format of the suffix (`.png`), atomically."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image is uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    with replacing(path) as temporary:
        Image.fromarray(image).save(temporary)


def upscale(frames: np.ndarray, factor: int) -> np.ndarray:
    """Repeat every pixel `factor` times both ways. Shapes: [T, H, W, 3] -> [T, H * factor, W * factor, 3]."""
    _check_video(frames)
    if factor < 1:
        raise ValueError(f"factor must be at least 1, got {factor}")
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def side_by_side(videos: Sequence[np.ndarray], labels: Sequence[str], gap: int = 4) -> np.ndarray:
    """Arrange videos side by side, each under its label.

    A video that ends earlier stays on its last frame, darkened. A label wider than its video is cut off.
    Shapes: videos [T_i, H, W_i, 3] -> [max T_i, H + label strip, sum of widths and gaps, 3].

    Raises:
        ValueError: no videos, another number of labels, or heights that differ.
    """
    if not videos or len(videos) != len(labels):
        raise ValueError(
            f"needs a label for each of at least one video, got {len(videos)} videos, {len(labels)} labels"
        )
    for video in videos:
        _check_video(video)
    heights = {video.shape[1] for video in videos}
    if len(heights) > 1:
        raise ValueError(f"the videos have different heights, {sorted(heights)}: upscale them to one")
    length = max(len(video) for video in videos)
    text_height = int(np.clip(heights.pop() // 16, 10, 24))
    columns = []
    for video, label in zip(videos, labels, strict=True):
        after = np.repeat(video[-1:] // 3, length - len(video), axis=0)
        columns.append(labelled(np.concatenate([video, after]), label, text_height))
        columns.append(np.full((*columns[-1].shape[:2], gap, 3), _BACKGROUND, np.uint8))
    return np.concatenate(columns[:-1], axis=2)


def labelled(video: np.ndarray, label: str, text_height: int) -> np.ndarray:
    """Add a strip with a label on top, cut off if too wide. Shapes: [T, H, W, 3] -> [T, H + label strip, W, 3]."""
    _check_video(video)
    strip = _label_strip(label, video.shape[2], text_height)
    return np.concatenate([np.broadcast_to(strip, (len(video), *strip.shape)), video], axis=1)


def contact_sheet(frames: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Arrange frames [T, H, W, 3] in reading order, `columns` in a row, on one image; the last row may be short."""
    _check_video(frames)
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    count, height, width, _ = frames.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), _BACKGROUND, np.uint8)
    for index, frame in enumerate(frames):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = frame
    return sheet


def _label_strip(label: str, width: int, text_height: int) -> np.ndarray:
    strip = Image.new("RGB", (width, text_height + text_height // 2), (_BACKGROUND,) * 3)
    font = ImageFont.load_default(text_height)
    ImageDraw.Draw(strip).text((text_height // 3, text_height // 8), label, fill=(235, 235, 235), font=font)
    return np.asarray(strip)


def _check_video(frames: np.ndarray) -> None:
    if not isinstance(frames, np.ndarray) or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        shown = list(getattr(frames, "shape", [])) or type(frames).__name__
        raise ValueError(f"a video is a numpy array [T, H, W, 3] with at least one frame, got {shown}")
    if frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 in 0..255, got {frames.dtype}: scale, round and cast them first")
