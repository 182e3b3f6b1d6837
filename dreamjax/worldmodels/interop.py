"""Weights of V, M and C in the format of the published ones, in both directions.

The published files are JSON. V and M are lists of nested lists of integers, round(10,000 w), without names: the order
of the arrays says what they are, and for M it differs between Doom and CarRacing. C is one flat list of numbers with
four decimals. The caller reads and writes the files: `json.load` gives what the functions here take, and `json.dump`
takes what they give.

Source: the repository hardmaru/WorldModelsExperiments, published with Ha & Schmidhuber 2018.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.types import Array, Key, Params, Space
from dreamjax.worldmodels import controller, memory, vision
from dreamjax.worldmodels.controller import ControllerConfig
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.model import CAR_RACING, DOOM, feature_size
from dreamjax.worldmodels.vision import VisionConfig

SCALE = 10_000  # of the integers in the files

_VISION_LAYERS = (
    *("enc_conv1", "enc_conv2", "enc_conv3", "enc_conv4", "enc_fc_mu", "enc_fc_log_var"),
    *("dec_fc", "dec_deconv1", "dec_deconv2", "dec_deconv3", "dec_deconv4"),
)
_PUBLISHED = {"Doom": DOOM, "CarRacing": CAR_RACING}

_Layout = dict[tuple[str, str], tuple[int, ...]]  # (layer, kernel or bias) -> shape, in the order of the file


def vision_from_published(cfg: VisionConfig, arrays: Sequence[Any]) -> Params:
    """Take V's parameters from the 22 arrays of a published vae.json.

    Raises: ValueError if number or shapes of the arrays are not those of `cfg`, or the values are not integers.
    """
    return _from_integers("V", _vision_layout(cfg), arrays)


def vision_to_published(cfg: VisionConfig, params: Params) -> list[Any]:
    """Write V's parameters as the 22 arrays of a vae.json, to four decimals.

    Raises: ValueError if the shapes of the parameters are not those of `cfg`.
    """
    return [array.tolist() for array in _to_integers("V", _vision_layout(cfg), params).values()]


def memory_from_published(cfg: MemoryConfig, arrays: Sequence[Any]) -> Params:
    """Take M's parameters from the 4 arrays of a published rnn.json.

    With a done head the LSTM comes first, as in Doom's file, without one the output layer, as in CarRacing's. The files
    keep what belongs to one latent together and the done logit in front; here the logits, means and deviations of all
    latents each stay together, and the done logit is last.

    Raises: ValueError if number or shapes of the arrays are not those of `cfg`, or the values are not integers.
    """
    params = _from_integers("M", _memory_layout(cfg), arrays)
    return params | {"output": {part: _columns_from_published(cfg, w) for part, w in params["output"].items()}}


def memory_to_published(cfg: MemoryConfig, params: Params) -> list[Any]:
    """Write M's parameters as the 4 arrays of an rnn.json, to four decimals.

    Raises: ValueError if the shapes of the parameters are not those of `cfg`.
    """
    integers = _to_integers("M", _memory_layout(cfg), params)
    return [
        (_columns_to_published(cfg, array) if layer == "output" else array).tolist()
        for (layer, _), array in integers.items()
    ]


def controller_from_published(cfg: ControllerConfig, features: int, action: Space, theta: Sequence[float]) -> Params:
    """Take C's parameters from the vector of a published best.json, whose content is [theta, score].

    `cfg`, `features` and `action` are those of `controller.make`.

    Shapes: theta [features] (Doom, without bias), or [3 + 3 * features], biases first (CarRacing).
    Raises: ValueError if the vector has another length or is not finite, or C has hidden units.
    """
    shapes = _controller_shapes(cfg, features, action)
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        values = _array("C's vector", theta).astype(np.float32)
    size = sum(map(math.prod, shapes.values()))
    if values.shape != (size,):
        published = {(feature_size(DOOM),): "Doom", (3 + 3 * feature_size(CAR_RACING),): "CarRacing"}
        guess = f"; this is the shape of C for {published[values.shape]}" if values.shape in published else ""
        raise ValueError(f"C with {cfg} is a vector of shape {[size]}, got {list(values.shape)}{guess}")
    if not np.isfinite(values).all():
        raise ValueError("C's vector must be finite numbers")
    parts = np.split(values, np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1])
    return {name: jnp.asarray(part.reshape(shape)) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def controller_to_published(cfg: ControllerConfig, features: int, action: Space, params: Params) -> list[float]:
    """Write C's parameters as the vector of a best.json, to four decimals.

    Raises: ValueError if the shapes of the parameters are not those of `controller.make(cfg, features, action)`.
    """
    expected = _controller_shapes(cfg, features, action)
    shapes = {name: leaf.shape for name, leaf in params.items()}
    if shapes != expected:
        raise ValueError(f"C with {cfg} has the parameters {expected}, got {shapes}")
    theta = np.concatenate([np.ravel(params[name]) for name in expected]).astype(np.float64)
    return np.round(theta, 4).tolist()


def _controller_shapes(cfg: ControllerConfig, features: int, action: Space) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters, in the order of the file: the biases come first."""
    if cfg.hidden:
        raise ValueError("no published C has hidden units; set hidden=0")
    made = jax.eval_shape(controller.make(cfg, features, action).init, jax.random.key(0))
    return {name: made[name].shape for name in ("bias", "kernel") if name in made}


def starts_from_published(arrays: Sequence[Any]) -> tuple[Array, Array]:
    """Take the posteriors that dreams begin in from an initial_z.json: the first frames of S episodes.

    Shapes: two of [S, Z] -> mean [S, Z], log variance [S, Z].
    Raises: ValueError if there are not two arrays of one shape, or the values are not integers.
    """
    values = _integers("initial_z.json", arrays)
    if values.ndim != 3 or len(values) != 2:
        raise ValueError(f"initial_z.json holds means and log variances, [2, S, Z], got {list(values.shape)}")
    mean, log_variance = jnp.asarray(values / SCALE, jnp.float32)
    return mean, log_variance


def _vision_layout(cfg: VisionConfig) -> _Layout:
    return _layout(partial(vision.init, cfg), _VISION_LAYERS)


def _memory_layout(cfg: MemoryConfig) -> _Layout:
    if cfg.predict_reward or cfg.predict_action:
        raise ValueError("no published M predicts rewards or actions; set predict_reward=predict_action=False")
    return _layout(partial(memory.init, cfg), ("lstm", "output") if cfg.predict_done else ("output", "lstm"))


def _layout(init: Callable[[Key], Params], layers: Sequence[str]) -> _Layout:
    shapes = jax.eval_shape(init, jax.random.key(0))
    return {(layer, part): shapes[layer][part].shape for layer in layers for part in ("kernel", "bias")}


def _from_integers(what: str, layout: _Layout, arrays: Sequence[Any]) -> dict[str, dict[str, Array]]:
    values = [_integers(f"array {i} of {what}'s file", array) for i, array in enumerate(arrays)]
    _check(what, layout, [array.shape for array in values])
    params: dict[str, dict[str, Array]] = {layer: {} for layer, _ in layout}
    for (layer, part), array in zip(layout, values, strict=True):
        params[layer][part] = jnp.asarray(array / SCALE, jnp.float32)
    return params


def _to_integers(what: str, layout: _Layout, params: Params) -> dict[tuple[str, str], np.ndarray]:
    layers = dict.fromkeys(layer for layer, _ in layout)
    if set(params) != set(layers):
        raise ValueError(f"the parameters of {what} are {', '.join(layers)}, got {', '.join(params)}")
    values = {(layer, part): np.asarray(params[layer][part], np.float64) for layer, part in layout}
    _check(what, layout, [array.shape for array in values.values()])
    if not all((np.abs(array) < 2**31 / SCALE).all() for array in values.values()):  # NaN is not, either
        raise ValueError(f"the parameters of {what} must be finite, and no larger than {2**31 / SCALE:,.0f}")
    return {name: np.rint(SCALE * array).astype(np.int64) for name, array in values.items()}


def _check(what: str, layout: _Layout, shapes: list[tuple[int, ...]]) -> None:
    """Compare shapes with a layout; if they differ, say where, and what the arrays are instead."""
    if shapes == list(layout.values()):
        return
    known = {f"V for {name}": _vision_layout(world.vision) for name, world in _PUBLISHED.items()}
    known |= {f"M for {name}": _memory_layout(world.memory) for name, world in _PUBLISHED.items()}
    guesses = [title for title, other in known.items() if shapes == list(other.values())]
    guess = f"; these are the shapes of {guesses[0]}, which needs that configuration" if guesses else ""
    if len(shapes) != len(layout):
        raise ValueError(f"{what} has {len(layout)} arrays, got {len(shapes)}{guess}")
    for i, ((name, expected), got) in enumerate(zip(layout.items(), shapes, strict=True)):
        if got != expected:
            raise ValueError(
                f"array {i} of {what} ({' '.join(name)}) should have the shape {list(expected)}, got {list(got)}{guess}"
            )


def _integers(name: str, values: Any) -> np.ndarray:
    array = _array(name, values)
    if array.dtype.kind != "i":
        raise ValueError(f"{name} should hold integers, round({SCALE} w), got {array.dtype}")
    return array


def _array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} should be evenly nested lists of numbers: {error}") from error


def _columns_from_published(cfg: MemoryConfig, w: Array) -> Array:
    """Published columns [done, Z x (logits, means, log deviations) x K] -> [(...) x K x Z, done]."""
    done, w = jnp.split(w, [int(cfg.predict_done)], -1)
    w = jnp.moveaxis(w.reshape(*w.shape[:-1], cfg.latent_size, 3, cfg.mixtures), -3, -1)
    return jnp.concatenate([w.reshape(*done.shape[:-1], -1), done], -1)


def _columns_to_published(cfg: MemoryConfig, w: np.ndarray) -> np.ndarray:
    """Undo `_columns_from_published`."""
    w, done = np.split(w, [3 * cfg.mixtures * cfg.latent_size], -1)
    w = np.moveaxis(w.reshape(*w.shape[:-1], 3, cfg.mixtures, cfg.latent_size), -1, -3)
    return np.concatenate([done, w.reshape(*done.shape[:-1], -1)], -1)
