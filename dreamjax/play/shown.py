"""What of an observation is shown: its pictures side by side, and its numbers by name."""

import math

import numpy as np

from dreamjax.dreamerv3.codec import leaves_by_name
from dreamjax.types import PyTree, Space

MOST_NUMBERS = 64  # that are drawn as traces


def is_picture(space: Space) -> bool:
    """Whether a space is drawn as a picture: bytes, or anything between 0 and 255, [H, W] or [H, W, C]."""
    return space.dtype == np.uint8 and len(space.shape) in (2, 3) and min(space.shape[:2]) >= 8


def numbers_of(spec: PyTree) -> list[str]:
    """Name the numbers that are drawn, such as "state[3]", the first `MOST_NUMBERS` of them."""
    names = []
    for name, space in leaves_by_name(spec, "observation").items():
        if not is_picture(space):
            names += [f"{name}[{i}]" for i in range(int(np.prod(space.shape)))] if space.shape else [name]
    return names[:MOST_NUMBERS]


def numbers(spec: PyTree, observation: PyTree) -> list[float | None]:
    """Return the numbers of `numbers_of`, None for what is not finite, or not among what a model decodes.

    `observation` is one of `spec`, as numpy arrays, or such parts of one as are modelled.
    """
    leaves, found = leaves_by_name(observation, "observation"), list[float | None]()
    for name, space in leaves_by_name(spec, "observation").items():
        if not is_picture(space):
            absent = np.full(space.shape, np.nan)
            found += [
                value if math.isfinite(value) else None
                for value in np.ravel(leaves.get(name, absent)).astype(float).tolist()
            ]
    return found[:MOST_NUMBERS]


def picture(spec: PyTree, observation: PyTree) -> np.ndarray | None:
    """Put the pictures of an observation side by side; None if there are none.

    Those of neither one nor three channels are shown as the mean of their channels. Shapes: -> uint8 [H, W, 3].
    """
    leaves, spaces = leaves_by_name(observation, "observation"), leaves_by_name(spec, "observation")
    parts = [_coloured(leaves[name]) for name, space in spaces.items() if is_picture(space) and name in leaves]
    if len(parts) < 2:
        return parts[0] if parts else None
    height = max(len(part) for part in parts)
    return np.concatenate([np.pad(part, ((0, height - len(part)), (0, 0), (0, 0))) for part in parts], axis=1)


def _coloured(image: np.ndarray) -> np.ndarray:
    image = np.atleast_3d(np.asarray(image))
    if image.shape[2] == 3:
        return image
    return np.broadcast_to(image.mean(2, keepdims=True).astype(np.uint8), (*image.shape[:2], 3))
