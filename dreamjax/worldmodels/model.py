"""V and M together as one `LatentModel`.

Source: Ha & Schmidhuber 2018, figure 8 and appendix A; the order of events is that of the published code.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.distributions import gaussian_sample, mixture_sample
from dreamjax.nets.lstm import LSTMState
from dreamjax.types import Action, Array, EnvSpec, Key, LatentModel, Outcome, Params, PyTree, Space
from dreamjax.worldmodels import memory, vision
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.vision import VisionConfig


@dataclass(frozen=True)
class WorldModelConfig:
    """V, M, and what of M's state the controller sees."""

    vision: VisionConfig = VisionConfig()
    memory: MemoryConfig = MemoryConfig()
    sees: Literal["z", "zh", "zch"] = "zch"  # features: [z, c, h] (Doom), [z, h] (CarRacing), or z without memory
    max_steps: int = 2100  # of an episode, real or dreamed
    action_low: tuple[float, ...] = ()  # of each action; empty for a scalar action in [-1, 1]

    def __post_init__(self) -> None:
        if self.sees not in ("z", "zh", "zch"):
            raise ValueError(f"sees must be 'z', 'zh' or 'zch', got {self.sees!r}")
        if self.vision.latent_size != self.memory.latent_size:
            raise ValueError(
                f"V has {self.vision.latent_size} latents and M {self.memory.latent_size}; they must be the same"
            )
        if len(self.action_low or (0,)) != self.memory.action_size:
            raise ValueError(
                f"action_low names {len(self.action_low or (0,))} actions, M reads {self.memory.action_size}"
            )


DOOM = WorldModelConfig()
CAR_RACING = WorldModelConfig(
    vision=VisionConfig(latent_size=32),
    memory=MemoryConfig(latent_size=32, action_size=3, hidden_size=256, predict_done=False),
    sees="zh",
    max_steps=1000,
    action_low=(-1.0, 0.0, 0.0),
)


class WorldModelParams(NamedTuple):
    """Parameters of V and M."""

    vision: Params
    memory: Params


class WorldModelState(NamedTuple):
    """Latent state at time t: the frame as V sees it, and M as it was before it heard of that frame."""

    z: Array  # [Z], drawn
    c: Array  # [H]
    h: Array  # [H]
    is_first: Array  # [] bool


def make(cfg: WorldModelConfig) -> LatentModel:
    """Bind a configuration.

    `observe` and `imagine` first let M take in (z, a) of the step before, then draw the new z: from V's posterior of
    the real frame or from M's mixture density. So the controller acts on z_t and on the state of M that predicted it.
    A dreamed step pays what M predicts. Without that head an episode that M can end pays 1 for every step, as Take
    Cover does, and one that it cannot end pays nothing.
    """

    def init(key: Key) -> WorldModelParams:
        key_vision, key_memory = jax.random.split(key)
        return WorldModelParams(vision.init(cfg.vision, key_vision), memory.init(cfg.memory, key_memory))

    def start(params: WorldModelParams) -> WorldModelState:
        del params
        lstm = memory.start(cfg.memory)
        return WorldModelState(jnp.zeros(cfg.vision.latent_size), lstm.c, lstm.h, jnp.array(True))

    def encode(params: WorldModelParams, frame: Array) -> PyTree:
        return vision.encode(cfg.vision, params.vision, frame)

    def remember(params: WorldModelParams, state: WorldModelState, action: Action) -> LSTMState:
        lstm = LSTMState(state.c, state.h)
        return memory.step(cfg.memory, params.memory, lstm, state.z, action, state.is_first)

    def observe(
        params: WorldModelParams, key: Key, state: WorldModelState, action: Action, posterior: PyTree, is_first: Array
    ) -> WorldModelState:
        c, h = (jnp.where(is_first, 0.0, x) for x in remember(params, state, action))
        return WorldModelState(gaussian_sample(key, *posterior), c, h, is_first)

    def imagine(
        params: WorldModelParams, key: Key, state: WorldModelState, action: Action, temperature: Array | float
    ) -> WorldModelState:
        c, h = remember(params, state, action)
        latent = memory.predict(cfg.memory, params.memory, h).latent
        return WorldModelState(mixture_sample(key, latent, temperature), c, h, jnp.array(False))

    def features(state: WorldModelState) -> Array:
        return jnp.concatenate([getattr(state, name) for name in cfg.sees])

    def outcome(params: WorldModelParams, state: WorldModelState) -> Outcome:
        expected = memory.predict(cfg.memory, params.memory, state.h)
        reward = jnp.float32(cfg.memory.predict_done) if expected.reward is None else expected.reward
        return Outcome(reward, jax.nn.sigmoid(-expected.done))

    def decode(params: WorldModelParams, state: WorldModelState) -> Array:
        return vision.decode(cfg.vision, params.vision, state.z)

    low = np.array(cfg.action_low) if cfg.action_low else -1.0
    action = Space(np.shape(low), np.float32, float(np.min(low)), 1.0)
    spec = EnvSpec(Space(vision.FRAME, np.uint8, 0, 256), action, cfg.max_steps)
    return LatentModel(init, start, encode, observe, imagine, features, outcome, decode, spec)


def feature_size(cfg: WorldModelConfig) -> int:
    """Length of the feature vector that a policy reads."""
    sizes = {"z": cfg.vision.latent_size, "c": cfg.memory.hidden_size, "h": cfg.memory.hidden_size}
    return sum(sizes[name] for name in cfg.sees)
