"""Environments with the actions that DreamerV3 chooses, and with pictures of the size that it reads: `adapted`.

Imports no JAX, for quick workers.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TransformAction, TransformObservation
from PIL import Image

from dreamjax.envs.host import Leaf, bounds, checked, flatten, leaves, unflatten

SMALLEST = 32  # rows and columns of a picture; smaller arrays of bytes are taken for grids and left alone

Change = tuple[spaces.Space, Callable[[Any], Any]]  # the space that an agent sees, and how its values are changed


def adapted(make_env: Callable[[], gymnasium.Env], resize: int | tuple[int, int] | None = None) -> gymnasium.Env:
    """Make an environment that DreamerV3 can act in, whatever spaces it has; what fits already stays as it is.

    Actions of floats lie in [-1, 1], and are mapped linearly to the bounds of the environment. An action of integers
    whose entries have different bounds, such as MultiDiscrete([3, 4]), becomes a tuple of Discrete. What an agent may
    observe stays as it is, but for pictures with `resize`: arrays of bytes from 0 to 255, [H, W, C] or [H, W] with
    sides of at least 32, are brought to that height and width by averaging.

    Raises: ValueError, naming the part, for actions of floats without bounds (the published code would act in [-1, 1],
        and only who knows the environment can tell whether that is enough), or if there is no picture to resize.
    """
    env = make_env()
    action, back = _action(env.action_space, "")
    if action != env.action_space:
        env = TransformAction(env, back, action)
    if resize is None:
        return env
    size = (resize, resize) if isinstance(resize, int) else resize
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"resize must be a side, or a height and a width, got {resize}")
    declared = leaves(env.observation_space)
    if not any(_is_picture(leaf) for leaf in declared):
        raise ValueError(f"there is no picture to resize, uint8 [H, W, C] or [H, W], in {env.observation_space}")
    space = _with_sizes(env.observation_space, size)

    def change(observation: Any) -> Any:
        parts = zip(declared, flatten(env.observation_space, observation), strict=True)
        changed = (_resized(checked(leaf, part), size) if _is_picture(leaf) else part for leaf, part in parts)
        return unflatten(env.observation_space, changed)

    return TransformObservation(env, change, space) if space != env.observation_space else env


def _action(space: spaces.Space, name: str) -> Change:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return _each(space, name, _action)
    if isinstance(space, spaces.Box) and space.dtype.kind == "f":
        return _unit(space, name)
    if isinstance(space, spaces.Box | spaces.MultiDiscrete):
        return _split(space)
    return space, _same


def _each(space: Any, name: str, change: Callable[[spaces.Space, str], Change]) -> Change:
    """Change the parts of a dict or tuple."""
    named = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    parts: dict[Any, Change] = {key: change(one, f"{name}/{key}".lstrip("/")) for key, one in named}
    if isinstance(space, spaces.Dict):
        changed: spaces.Space = spaces.Dict([(key, part) for key, (part, _) in parts.items()])
        return changed, lambda value: {key: convert(value[key]) for key, (_, convert) in parts.items()}
    changed = spaces.Tuple([part for part, _ in parts.values()])
    return changed, lambda value: tuple(convert(value[key]) for key, (_, convert) in parts.items())


def _unit(space: spaces.Box, name: str) -> Change:
    """Map [-1, 1] to the bounds of a space."""
    low, high = space.low, space.high
    if (low == -1).all() and (high == 1).all():
        return space, _same
    if not space.is_bounded():
        what = f"action {name!r}" if name else "the action"
        raise ValueError(
            f"{what} has no bounds: {space}, and an actor chooses in [-1, 1]. Give it some, such as gymnasium.wrappers."
            f"TransformAction(env, lambda action: action, <the space of actions with bounds>)"
        )

    def back(action: np.ndarray) -> np.ndarray:
        share = (action.astype(np.float64) + 1) / 2
        return np.asarray((low * (1 - share) + high * share).clip(low, high), space.dtype)

    return spaces.Box(-1, 1, space.shape, space.dtype.type), back


def _split(space: spaces.Box | spaces.MultiDiscrete) -> Change:
    """Make a tuple of the entries of an array of integers, where they differ in their bounds."""
    low, high = (np.broadcast_to(bound, space.shape).ravel().tolist() for bound in bounds(space))
    if len(set(low)) <= 1 and len(set(high)) <= 1:
        return space, _same
    entries = [spaces.Discrete(last - first + 1, start=first) for first, last in zip(low, high, strict=True)]
    return spaces.Tuple(entries), lambda parts: np.array(parts, space.dtype).reshape(space.shape)


def _with_sizes(space: spaces.Space, size: tuple[int, int]) -> spaces.Space:
    """Return a space with the sizes that its pictures will have. Raises ValueError for channels that come first."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict([(key, _with_sizes(one, size)) for key, one in space.spaces.items()])
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([_with_sizes(one, size) for one in space.spaces])
    if not _is_picture(leaves(space)[0]):
        return space
    shape = space.shape or ()
    if len(shape) == 3 and shape[2] > min(shape[:2]):
        raise ValueError(
            f"a picture of more channels than rows or columns, {space}: bring it to [H, W, C] with gymnasium.wrappers."
            "TransformObservation before it is resized"
        )
    return spaces.Box(0, 255, (*size, *shape[2:]), np.uint8)


def _same(value: Any) -> Any:
    return value


def _is_picture(leaf: Leaf) -> bool:
    if leaf.dtype != np.uint8 or leaf.low is not None or len(leaf.shape) not in (2, 3):
        return False
    return sorted(leaf.shape)[-2] >= SMALLEST  # whichever axis the channels are


def _resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Average a picture to another size, one channel at a time, which alpha and stacks of frames need."""
    channels = picture[..., None] if picture.ndim == 2 else picture
    parts = [
        np.asarray(Image.fromarray(np.ascontiguousarray(channel)).resize(size[::-1], Image.Resampling.BOX))
        for channel in np.moveaxis(channels, -1, 0)
    ]
    return parts[0] if picture.ndim == 2 else np.stack(parts, -1)
