"""Encoder and decoder: observations of any mixture of pictures, vectors and discrete values, to tokens and back.

Observations are pytrees outside and mappings by name here: see `leaves_by_name`.

A part of an observation may be missing in a `Step` made by hand, as of a robot that has only some of its sensors:
-inf among its floats, or -1 among signed integers whose classes start at 0 or above, says so. The encoder reads zeros
there, and the reconstruction has no target, neither loss nor gradient: see `present`. Environments and recordings hold
no such values: they are refused where they enter, as anything that is not finite.

Source: Hafner et al. 2023, "World model learning", and its published code, whose parameter names are used.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.distributions import symlog
from dreamjax.dreamerv3.config import CodecConfig
from dreamjax.nets.dense import MLP, BlockLinear, Linear, RMSNorm
from dreamjax.nets.image import DoublingConv, HalvingConv
from dreamjax.types import Array, PyTree, Space

Spaces = tuple[tuple[str, Space], ...]  # the leaves of a pytree of spaces with their names, in the order of `jax.tree`

SMALLEST, LARGEST = 48, 256  # sides of a picture, pixels
MOST_ONE_HOT = 2**18  # one-hot features of one observation; 24 rows and 80 columns of 128 characters have 245,760


def leaves_by_name(tree: PyTree, lone: str) -> dict[str, Any]:
    """Name the leaves of a pytree by their paths: "a/b" in nested mappings, "0" in a tuple, `lone` for a single leaf.

    Raises: ValueError if two leaves have the same path, as those of {"a/b": x, "a": {"b": y}}.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or lone
        if name in leaves:
            raise ValueError(f"two leaves are named {name!r}; rename one of them")
        leaves[name] = leaf
    return leaves


def check_observations(spaces: Spaces) -> None:
    """Raise ValueError, with the name of the space, where the encoder cannot read an observation."""
    for name, space in spaces:
        if space.dtype == np.uint8 and len(space.shape) > 3:
            raise ValueError(f"observation {name!r} of bytes must be [H, W, C] or have fewer axes, got {space}")
        if not space.is_discrete and len(space.shape) == 3 and min(space.shape[:2]) >= SMALLEST:
            raise ValueError(f"observation {name!r} must be uint8 to be read as a picture, got {space}")
        if is_image(space) and not all(size % 16 == 0 and size <= LARGEST for size in space.shape[:2]):
            raise ValueError(
                f"the sides of {name!r} must be multiples of 16 from {SMALLEST} to {LARGEST}, got {space.shape}: "
                "resize it, with `train(..., resize=64)`, `--resize 64` or `envs.adapted(make_env, resize=64)`"
            )
        if not is_image(space) and space.is_discrete:
            check_discrete("observation", name, space)
    sizes = {space.shape[:2] for _, space in spaces if is_image(space)}
    if len(sizes) > 1:
        raise ValueError(f"all pictures must have one size, got {sorted(sizes)}")


def check_discrete(kind: str, name: str, space: Space) -> None:
    """Raise ValueError unless the entries of a discrete space have the same finite bounds, and few enough classes."""
    if np.ndim(space.low) or np.ndim(space.high) or not np.isfinite([space.low, space.high]).all():
        raise ValueError(
            f"discrete {kind} {name!r} needs finite bounds, the same for all its entries, got {space}: split it, as "
            "`envs.adapted` does for actions"
        )
    if flat_size(space) > MOST_ONE_HOT:
        raise ValueError(
            f"discrete {kind} {name!r} would be read as {flat_size(space):,} one-hot features, {classes(space):,} "
            f"classes for each of {math.prod(space.shape):,} entries, of {MOST_ONE_HOT:,} at most, got {space}: "
            "declare it as floats if its values are numbers, or as a picture, uint8 [H, W] or [H, W, C] from 0 to 255 "
            f"with sides of at least {SMALLEST}, if it is one: `resize` makes them so"
        )


def is_image(space: Space) -> bool:
    """Whether a space is a picture, uint8 [H, W, C] or [H, W] with sides of at least 48 whose values reach 255.

    Everything else is a vector, whatever its axes: smaller arrays of bytes are levels, as a grid or a memory of bytes.
    """
    is_large = len(space.shape) in (2, 3) and min(space.shape[:2]) >= SMALLEST
    return is_large and space.dtype == np.uint8 and bool((space.high_array >= 255).all())


def with_channels(space: Space, picture: Array) -> Array:
    """Give a picture the channel that it may lack. Shapes: [..., *space.shape] -> [..., H, W, C]."""
    return picture if len(space.shape) == 3 else picture[..., None]


def classes(space: Space) -> int:
    """Count the values of a discrete space, whose bounds are numbers."""
    return 2 if np.dtype(space.dtype) == np.bool_ else int(space.high - space.low)


def flat_size(space: Space) -> int:
    """Count the features that `flatten` makes of a vector or discrete value."""
    return math.prod(space.shape) * (classes(space) if space.is_discrete else 1)


def present(space: Space, x: Array) -> tuple[Array, Array]:
    """Say whether a vector or discrete value is there, and replace it where it is not, so that it can be computed with.

    It is missing, all of it, if any of its entries is: -inf, or -1 where integers are signed and the space starts at 0
    or above.

    Shapes: x [..., *space.shape] -> [...] bool, [..., *space.shape].
    """
    axes = tuple(range(x.ndim - len(space.shape), x.ndim))
    if space.is_discrete:
        signed = np.issubdtype(space.dtype, np.signedinteger)
        there = (x != -1) if signed and space.low >= 0 else jnp.ones(x.shape, bool)
    else:
        there = x != -jnp.inf
    return there.all(axes), jnp.where(there, x, jnp.zeros_like(x))


def flatten(space: Space, x: Array, squash: bool) -> Array:
    """Turn a vector or discrete value into features: one-hot if discrete, else as it is, or its symlog if `squash`.

    What is missing becomes zeros, see `present`. Shapes: x [..., *space.shape] -> [..., flat_size] float32.
    """
    is_there, x = present(space, x)
    if space.is_discrete:
        features = jax.nn.one_hot(x.astype(jnp.int32) - int(space.low), classes(space))
    else:
        features = symlog(x.astype(jnp.float32)) if squash else x.astype(jnp.float32)
    return jnp.where(is_there[..., None], features.reshape(*is_there.shape, -1), 0.0)


def flatten_actions(spaces: Spaces, actions: Mapping[str, Array], dtype: str) -> Array:
    """Concatenate actions, sorted by name, as the RSSM reads them; discrete ones are one-hot.

    Shapes: [..., *space.shape] of each -> [..., A] in `dtype`.
    """
    parts = []
    for name, space in sorted(spaces, key=lambda pair: pair[0]):
        x = actions[name]
        lead = x.shape[: x.ndim - len(space.shape)]
        if space.is_discrete:
            x = jax.nn.one_hot(x.astype(jnp.int32) - int(space.low), classes(space))
        parts.append(x.reshape(*lead, -1).astype(dtype))
    return jnp.concatenate(parts, -1)


class Encoder(nn.Module):
    """Encode an observation as one vector of tokens: features of its vectors, then features of its pictures."""

    cfg: CodecConfig
    spaces: Spaces
    dtype: str

    @nn.compact
    def __call__(self, observation: Mapping[str, Array]) -> Array:
        """Shapes: observation [..., *space.shape] of each name -> [..., E] in the compute dtype."""
        cfg, tokens = self.cfg, []
        ordered = sorted(self.spaces, key=lambda pair: pair[0])
        vectors = [flatten(s, observation[name], cfg.symlog) for name, s in ordered if not is_image(s)]
        if vectors:
            x = jnp.concatenate(vectors, -1).astype(self.dtype)
            for i in range(cfg.encoder_layers):
                x = nn.silu(RMSNorm(name=f"mlp{i}norm")(Linear((cfg.units,), name=f"mlp{i}")(x)))
            tokens.append(x)
        images = [with_channels(s, observation[name]) for name, s in ordered if is_image(s)]
        if images:
            x = jnp.concatenate(images, -1).astype(self.dtype) / 255 - 0.5
            lead = x.shape[:-3]
            x = x.reshape(-1, *x.shape[-3:])
            for i, multiplier in enumerate(cfg.multipliers):
                x = HalvingConv(cfg.depth * multiplier, cfg.kernel, name=f"cnn{i}")(x)
                x = nn.silu(RMSNorm(name=f"cnn{i}norm")(x))
            tokens.append(x.reshape(*lead, -1))
        return jnp.concatenate(tokens, -1)


class Reconstruction(NamedTuple):
    """What the decoder predicts from a latent state, by name."""

    images: dict[str, Array]  # [..., *shape] in (0, 1)
    vectors: dict[str, Array]  # [..., *shape], their symlog where the encoder reads that
    logits: dict[str, Array]  # [..., *shape, classes]


class Decoder(nn.Module):
    """Predict the observation from a latent state."""

    cfg: CodecConfig
    spaces: Spaces

    @nn.compact
    def __call__(self, deter: Array, stoch: Array) -> Reconstruction:
        """Shapes: deter [..., D], stoch [..., S, K] -> one array [..., *space.shape] per name, see `Reconstruction`."""
        out = Reconstruction({}, {}, {})
        stoch = stoch.reshape(*stoch.shape[:-2], -1)
        if vectors := [pair for pair in self.spaces if not is_image(pair[1])]:
            x = MLP(self.cfg.decoder_layers, self.cfg.units, name="mlp")(jnp.concatenate([stoch, deter], -1))
            for name, space in vectors:
                if space.is_discrete:
                    out.logits[name] = Linear((*space.shape, classes(space)), name=f"vec/{name}/logits")(x)
                else:
                    out.vectors[name] = Linear(space.shape, name=f"vec/{name}/pred")(x)
        if images := [pair for pair in self.spaces if is_image(pair[1])]:
            channels = [math.prod(space.shape[2:]) for _, space in images]
            x = self._pictures(deter, stoch, images[0][1].shape[:2], sum(channels))
            for (name, space), part in zip(images, jnp.split(x, np.cumsum(channels)[:-1], -1), strict=True):
                out.images[name] = part.reshape(*deter.shape[:-1], *space.shape)
        return out

    def _pictures(self, deter: Array, stoch: Array, size: tuple[int, ...], channels: int) -> Array:
        cfg, lead = self.cfg, deter.shape[:-1]
        deepest = cfg.depth * cfg.multipliers[-1]
        h, w = (side // 2 ** len(cfg.multipliers) for side in size)
        blocks = deter.reshape(-1, cfg.blocks, deter.shape[-1] // cfg.blocks)
        x0 = BlockLinear(h * w * deepest, cfg.blocks, name="sp0")(blocks)
        x0 = jnp.moveaxis(x0.reshape(-1, cfg.blocks, h, w, deepest // cfg.blocks), 1, 3).reshape(-1, h, w, deepest)
        x1 = stoch.reshape(-1, stoch.shape[-1])
        x1 = nn.silu(RMSNorm(name="sp1norm")(Linear((2 * cfg.units,), name="sp1")(x1)))
        x = nn.silu(RMSNorm(name="spnorm")(x0 + Linear((h, w, deepest), name="sp2")(x1)))
        for i in reversed(range(len(cfg.multipliers) - 1)):
            x = DoublingConv(cfg.depth * cfg.multipliers[i], cfg.kernel, name=f"conv{i}")(x)
            x = nn.silu(RMSNorm(name=f"conv{i}norm")(x))
        x = nn.sigmoid(DoublingConv(channels, cfg.kernel, name="imgout")(x))
        return x.reshape(*lead, *x.shape[-3:])


def reconstruction_losses(
    cfg: CodecConfig, spaces: Spaces, reconstruction: Reconstruction, observation: Mapping[str, Array]
) -> dict[str, Array]:
    """Negative log likelihood of each part of an observation, in nats up to constants, float32.

    Pictures and vectors: squared error, summed over all entries. Discrete values: cross entropy, summed likewise. What
    is missing has no loss, see `present`.

    Shapes: observation [..., *space.shape] of each name -> [...] of each.
    """
    losses = {}
    for name, space in spaces:
        x, axes = observation[name], tuple(range(-len(space.shape), 0))
        if is_image(space):
            error = reconstruction.images[name].astype(jnp.float32) - x.astype(jnp.float32) / 255
            losses[name] = (error**2).sum(axes)
            continue
        is_there, x = present(space, x)
        if space.is_discrete:
            log_probs = jax.nn.log_softmax(reconstruction.logits[name].astype(jnp.float32))
            wanted = jax.nn.one_hot(x.astype(jnp.int32) - int(space.low), classes(space))
            loss = -(wanted * log_probs).sum(-1).sum(axes)
        else:
            target = symlog(x.astype(jnp.float32)) if cfg.symlog else x.astype(jnp.float32)
            loss = ((reconstruction.vectors[name].astype(jnp.float32) - target) ** 2).sum(axes)
        losses[name] = jnp.where(is_there, loss, 0.0)
    return losses
