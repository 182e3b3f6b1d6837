"""C: the controller, a single linear layer evolved rather than trained, or a small network of two.

Source: Ha & Schmidhuber 2018, section 3.3 (with a hidden layer), appendix A.3 and A.4.
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from dreamjax.types import Action, Array, Key, Params, Policy


@dataclass(frozen=True)
class ControllerConfig:
    """What shapes C. The features are those of `worldmodels.model`: [z, c, h] for Doom, [z, h] or z for CarRacing."""

    game: Literal["doom", "carracing"] = "doom"
    features: int = 1088  # 288 for CarRacing, 32 without M
    hidden: int = 0  # tanh units in between; the paper tried 40 on z alone

    def __post_init__(self) -> None:
        if self.game not in ("doom", "carracing"):
            raise ValueError(f"game must be 'doom' or 'carracing', got {self.game!r}")
        if self.features < 1 or self.hidden < 0:
            raise ValueError(f"need features >= 1 and hidden >= 0, got {self.features} and {self.hidden}")


def make(cfg: ControllerConfig) -> Policy:
    """Build C as a `Policy`.

    Doom: action = tanh(w . features), a scalar in [-1, 1], without bias (1,088 parameters). CarRacing:
    tanh(W features + b), the second output moved from [-1, 1] to [0, 1] (gas) and the third cut off below 0 (brake)
    (867 parameters, 99 on z alone). With hidden units tanh(V features + a) stands for the features (1,443 with 40 on
    z alone).
    All-zero parameters, where evolution starts, do nothing in Doom and give half gas in CarRacing.
    """
    doom = cfg.game == "doom"

    def init(key: Key) -> Params:
        del key  # evolution starts at zero
        inputs = cfg.hidden or cfg.features
        params: Params = {"kernel": jnp.zeros(inputs)} if doom else _zeros(inputs, 3)
        return params | {"hidden": _zeros(cfg.features, cfg.hidden)} if cfg.hidden else params

    def act(params: Params, key: Key, features: Array) -> Action:
        del key  # deterministic
        if cfg.hidden:
            features = jnp.tanh(features @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        if doom:
            return jnp.tanh((params["kernel"] * features).sum(-1))
        y = jnp.tanh(features @ params["kernel"] + params["bias"])
        return jnp.stack([y[..., 0], (y[..., 1] + 1) / 2, jnp.clip(y[..., 2], 0, 1)], -1)

    return Policy(init, act)


def _zeros(inputs: int, outputs: int) -> Params:
    return {"bias": jnp.zeros(outputs), "kernel": jnp.zeros((inputs, outputs))}
