"""C: the controller, a single linear layer evolved rather than trained.

Source: Ha & Schmidhuber 2018, appendix A.3 and A.4.
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from dreamjax.types import Action, Array, Key, Params, Policy


@dataclass(frozen=True)
class ControllerConfig:
    """What shapes C. The features are those of `worldmodels.model`: [z, c, h] for Doom, [z, h] for CarRacing."""

    game: Literal["doom", "carracing"] = "doom"
    features: int = 1088  # 288 for CarRacing


def make(cfg: ControllerConfig) -> Policy:
    """Build C as a `Policy`.

    Doom: action = tanh(w . features), a scalar in [-1, 1], without bias (1,088 parameters). CarRacing:
    tanh(W features + b), the second output moved from [-1, 1] to [0, 1] (gas) and the third cut off below 0 (brake)
    (867 parameters).
    All-zero parameters, where evolution starts, do nothing in Doom and give half gas in CarRacing.

    Raises: ValueError for an unknown game.
    """
    if cfg.game not in ("doom", "carracing"):
        raise ValueError(f"game must be 'doom' or 'carracing', got {cfg.game!r}")
    doom = cfg.game == "doom"

    def init(key: Key) -> Params:
        del key  # evolution starts at zero
        if doom:
            return {"kernel": jnp.zeros(cfg.features)}
        return {"bias": jnp.zeros(3), "kernel": jnp.zeros((cfg.features, 3))}

    def act(params: Params, key: Key, features: Array) -> Action:
        del key  # deterministic
        if doom:
            return jnp.tanh((params["kernel"] * features).sum(-1))
        y = jnp.tanh(features @ params["kernel"] + params["bias"])
        return jnp.stack([y[..., 0], (y[..., 1] + 1) / 2, jnp.clip(y[..., 2], 0, 1)], -1)

    return Policy(init, act)
