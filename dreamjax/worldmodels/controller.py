"""C: the controller, a single linear layer evolved rather than trained, or a small network of two, perhaps recurrent.

Source: Ha & Schmidhuber 2018, section 3.3 (with a hidden layer), appendix A.3 and A.4.
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from dreamjax.types import Action, AnyPolicy, Array, Key, Params, Policy, RecurrentPolicy


@dataclass(frozen=True)
class ControllerConfig:
    """What shapes C. The features are those of `worldmodels.model`: [z, c, h] for Doom, [z, h] or z for CarRacing."""

    game: Literal["doom", "carracing"] = "doom"
    features: int = 1088  # 288 for CarRacing, 32 without M
    hidden: int = 0  # tanh units in between; the paper tried 40 on z alone
    recurrent: bool = False  # these units also read themselves, as they were one step ago

    def __post_init__(self) -> None:
        if self.game not in ("doom", "carracing"):
            raise ValueError(f"game must be 'doom' or 'carracing', got {self.game!r}")
        if self.features < 1 or self.hidden < 0:
            raise ValueError(f"need features >= 1 and hidden >= 0, got {self.features} and {self.hidden}")
        if self.recurrent and not self.hidden:
            raise ValueError("what is recurrent are the hidden units: set hidden to how many")


def make(cfg: ControllerConfig) -> AnyPolicy:
    """Build C as a `Policy`, or as a `RecurrentPolicy`.

    Doom: action = tanh(w . features), a scalar in [-1, 1], without bias (1,088 parameters). CarRacing:
    tanh(W features + b), the second output moved from [-1, 1] to [0, 1] (gas) and the third cut off below 0 (brake)
    (867 parameters, 99 on z alone). With hidden units tanh(V features + a) stands for the features (1,443 with 40 on
    z alone), and tanh(V [features, m] + a) if they are recurrent, where m are those units one step ago, at first zero
    (the paper's discussion points to such controllers, of *Learning to Think*, Schmidhuber 2015).
    All-zero parameters, where evolution starts, do nothing in Doom and give half gas in CarRacing.
    """
    doom = cfg.game == "doom"

    def init(key: Key) -> Params:
        del key  # evolution starts at zero
        inputs = cfg.hidden or cfg.features
        params: Params = {"kernel": jnp.zeros(inputs)} if doom else _zeros(inputs, 3)
        read = cfg.features + cfg.recurrent * cfg.hidden
        return params | {"hidden": _zeros(read, cfg.hidden)} if cfg.hidden else params

    def units(params: Params, features: Array) -> Array:
        return jnp.tanh(features @ params["hidden"]["kernel"] + params["hidden"]["bias"])

    def decide(params: Params, features: Array) -> Action:
        if doom:
            return jnp.tanh((params["kernel"] * features).sum(-1))
        y = jnp.tanh(features @ params["kernel"] + params["bias"])
        return jnp.stack([y[..., 0], (y[..., 1] + 1) / 2, jnp.clip(y[..., 2], 0, 1)], -1)

    def act(params: Params, key: Key, features: Array) -> Action:
        del key  # deterministic
        return decide(params, units(params, features) if cfg.hidden else features)

    def act_and_remember(params: Params, key: Key, memory: Array, features: Array) -> tuple[Array, Action]:
        del key
        memory = units(params, jnp.concatenate([features, memory], -1))
        return memory, decide(params, memory)

    if cfg.recurrent:
        return RecurrentPolicy(init, lambda params: jnp.zeros(cfg.hidden), act_and_remember)
    return Policy(init, act)


def _zeros(inputs: int, outputs: int) -> Params:
    return {"bias": jnp.zeros(outputs), "kernel": jnp.zeros((inputs, outputs))}
