"""From the picture of a game engine to the 64x64 picture that the models see, on the host."""

import numpy as np
from PIL import Image

SIZE = 64  # height and width of what the models see


def checked_render_mode(mode: str | None) -> str | None:
    """Return a `render_mode` that our environments have. Raises ValueError for another one."""
    if mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode must be None or 'rgb_array', got {mode!r}")
    return mode


def resize(image: np.ndarray) -> np.ndarray:
    """Resize with an antialiased bilinear filter. Shapes: uint8 [H, W, 3] -> uint8 [64, 64, 3]."""
    # The width first: left alone, newer versions of Pillow choose the order by the shape, and each pass rounds.
    narrow = Image.fromarray(image).resize((SIZE, len(image)), Image.Resampling.BILINEAR)
    return np.array(narrow.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def clean(frame: np.ndarray, rows: int) -> np.ndarray:
    """Crop a frame to its first `rows` rows, above the status bar, and resize it: uint8 [H, W, 3] -> [64, 64, 3]."""
    return resize(frame[:rows])


def published(frame: np.ndarray, rows: int) -> np.ndarray:
    """Process a frame as the released code of Ha & Schmidhuber (2018): uint8 [H, W, 3] -> [64, 64, 3].

    Needed only for their weights and data. Their image library stretched the range of each frame to 0..255 over all
    channels before resizing it, and their `(1 - x) * 255` was applied to bytes instead of fractions, which is `x - 1`
    modulo 256: colours hardly change, but pure black turns white. The modulo is written out because casting a negative
    float to a byte is undefined.
    """
    frame = frame[:rows]
    levels = np.arange(256) / 255.0  # in fractions, as theirs, so that halves round the same way
    low, high = levels[frame.min()], levels[frame.max()]
    stretch = 255.0 / (high - low if high > low else 1.0)
    table = (np.clip((levels - low) * stretch, 0.0, 255.0) + 0.5).astype(np.uint8)
    return resize(table[frame]) - np.uint8(1)  # unsigned bytes wrap around
