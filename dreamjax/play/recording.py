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


class Films:
    """The films of a game, one after the other. Where one fails, as on a full disk, the game goes on without it."""

    def __init__(self, folder: Path, fps: float) -> None:
        self._folder, self._fps = folder, fps
        self._film: Film | None = None
        self.newest: str | None = None  # name of the last that is whole
        self.note = ""  # what is to be said of them

    @property
    def is_on(self) -> bool:
        """Whether a film is being made."""
        return self._film is not None

    def toggle(self, pictures: dict[str, np.ndarray]) -> None:
        """Begin a film, with these pictures, or end the one that is being made."""
        if self._film:
            self.end()
        elif not pictures:
            self.note = "there is no picture to film"
        else:
            try:
                self._film = Film(self._folder, self._fps)
            except (ModuleNotFoundError, OSError) as error:
                self.note = f"no film: {error}"
            self.add(pictures)

    def add(self, pictures: dict[str, np.ndarray]) -> None:
        """Add a frame, if there is a film to add it to."""
        if self._film and pictures:
            try:
                self._film.add(pictures)
            except OSError as error:
                self.end()
                self.note = f"the film has ended: {error}"

    def end(self) -> None:
        """End the film, if there is one."""
        film, self._film = self._film, None
        if film:
            try:
                self.newest = film.close().name
            except OSError as error:
                self.note = f"the film was lost: {error}"


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
