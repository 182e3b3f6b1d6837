"""From the picture of a game engine to the 64x64 picture that the models see, in plain numpy.

Both pipelines share one resize: a separable triangle filter that widens with the reduction, in the fixed-point
arithmetic of Pillow's `BILINEAR`, so that it returns the very bytes Pillow does, on every machine. Sums of whole
numbers do not depend on their order, which a matrix product in floats would.
"""

from functools import lru_cache

import numpy as np

SIZE = 64  # height and width of what the models see
_FRACTION_BITS = 22  # Pillow's weights are whole numbers over 2**22, and a sum of bytes times them fits in 32 bits


@lru_cache(maxsize=32)
def _taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each of `target` pixels looks in a line of `source` pixels: indices and weights, int32 [taps, target]."""
    scale = source / target
    support = max(scale, 1.0)  # the triangle is never narrower than one pixel of the source
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int32), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int32), source)
    index = first + np.arange((last - first).max())[:, None]
    weight = np.maximum(1.0 - np.abs((index + 0.5 - centre) / support), 0.0)
    weight = np.where(index < last, weight, 0.0)
    weight = np.floor(weight / weight.sum(axis=0) * (1 << _FRACTION_BITS) + 0.5)
    return np.minimum(index, source - 1).astype(np.int32), weight.astype(np.int32)


def _resize_axis(image: np.ndarray, target: int, axis: int) -> np.ndarray:
    """One pass of the resize, along `axis` 0 or 1 of a uint8 [H, W, C]."""
    index, weight = _taps(image.shape[axis], target)
    weight = weight[:, :, None, None] if axis == 0 else weight[:, None, :, None]
    total = np.full(1, 1 << (_FRACTION_BITS - 1), np.int32)  # one half, to round to nearest
    for i, w in zip(index, weight, strict=True):
        total = total + image.take(i, axis=axis) * w
    return (total >> _FRACTION_BITS).astype(np.uint8)


def resize(image: np.ndarray, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """Antialiased bilinear resize of a uint8 [H, W, C] to [height, width, C]; each pass rounds to a byte."""
    return _resize_axis(_resize_axis(image, width, axis=1), height, axis=0)


def clean(frame: np.ndarray, rows: int) -> np.ndarray:
    """The first `rows` rows of a uint8 [H, W, 3] (the status bar lies below), as uint8 [64, 64, 3]."""
    return resize(frame[:rows])


def published(frame: np.ndarray, rows: int) -> np.ndarray:
    """What the released code of Ha & Schmidhuber (2018) made of a frame: [H, W, 3] -> [64, 64, 3], both uint8.

    Needed only for their weights and data. Their image library stretched the range of each frame to 0..255 over all
    channels before it resized, and their `(1 - x) * 255` met bytes instead of fractions, which is `x - 1` modulo 256:
    colours stay as they are, but pure black turns to white. The modulo is written out because casting a negative
    float to a byte means different things on different processors.
    """
    frame = frame[:rows]
    levels = np.arange(256) / 255.0  # in fractions, as they had it: halves then round the way theirs did
    low, high = levels[frame.min()], levels[frame.max()]
    stretch = 255.0 / (high - low if high > low else 1.0)
    table = (np.clip((levels - low) * stretch, 0.0, 255.0) + 0.5).astype(np.uint8)
    return resize(table[frame]) - np.uint8(1)  # unsigned bytes wrap around
