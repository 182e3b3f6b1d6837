"""A film of what is on the page: all that is shown side by side, each under its name."""

import re
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from dreamjax.reporting import videos

LABELS = {"real": "the real environment", "seen": "what the model sees", "dream": "its dream"}
_TALL = 256  # pixels, at least
_NUMBER = re.compile(r"play-(\d+)\.mp4")


class Film:
    """A film that is being written, frame by frame; it is there once it is closed.

    Raises: ModuleNotFoundError without the extra "play"; OSError if the folder cannot be written.
    """

    def __init__(self, folder: Path, fps: float) -> None:
        self.path = _reserved(folder)
        self._stack = ExitStack()
        self._stack.callback(self._remove_if_empty)
        self._size: tuple[int, ...] = ()
        try:
            self._write = self._stack.enter_context(videos.video_writer(self.path, fps))
        except BaseException:
            self._stack.close()
            raise

    def add(self, pictures: dict[str, np.ndarray]) -> None:
        """Add a frame. Shapes: uint8 [H, W, 3] of each picture. What was shown first decides the size of the film."""
        large = [videos.upscale(one[None], max(1, -(-_TALL // len(one)))) for one in pictures.values()]
        (frame,) = videos.side_by_side(large, [LABELS[name] for name in pictures])
        self._size = self._size or frame.shape
        canvas = np.zeros(self._size, np.uint8)
        height, width = (min(a, b) for a, b in zip(self._size[:2], frame.shape[:2], strict=True))
        canvas[:height, :width] = frame[:height, :width]
        self._write(canvas)

    def close(self) -> Path:
        """End the film, and return where it is."""
        self._stack.close()
        return self.path

    def _remove_if_empty(self) -> None:
        if not self.path.stat().st_size:
            self.path.unlink()


def is_film(path: Path) -> bool:
    """Whether a path names a film of a folder: one that was written there, no link to another place."""
    return bool(_NUMBER.fullmatch(path.name)) and path.is_file() and not path.is_symlink()


def _reserved(folder: Path) -> Path:
    """Make an empty file with the next number, which nobody else gets."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = [int(found[1]) for path in folder.iterdir() if (found := _NUMBER.fullmatch(path.name))]
    number = max(taken, default=0) + 1
    while True:
        try:
            (folder / f"play-{number:03}.mp4").touch(exist_ok=False)
            return folder / f"play-{number:03}.mp4"
        except FileExistsError:
            number += 1
