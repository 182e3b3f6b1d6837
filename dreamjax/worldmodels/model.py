"""V, M and C together as one agent.

Source: Ha & Schmidhuber 2018, figure 8 and appendix A; the order of events is that of the published code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.distributions import gaussian_sample, mixture_sample
from dreamjax.nets.lstm import LSTMState
from dreamjax.types import Action, Agent, Array, EnvSpec, Key, LatentModel, Outcome, Params, PyTree, Space
from dreamjax.worldmodels import controller, memory, vision
from dreamjax.worldmodels.controller import ControllerConfig
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.vision import VisionConfig

_PICTURE = (vision.FRAME, np.dtype(np.uint8))


@dataclass(frozen=True)
class WorldModelConfig:
    """V, M, C, and what of the state of V and M the controller reads. Sizes are by default those of Doom."""

    vision: VisionConfig = VisionConfig()
    memory: MemoryConfig = MemoryConfig()
    controller: ControllerConfig = ControllerConfig()
    features: Literal["z", "zh", "zch"] = "zch"  # [z, c, h] (Doom), [z, h] (CarRacing), or z without memory
    step_reward: float = 0.0  # of every dreamed step, where M does not predict rewards; 1 where survival counts

    def __post_init__(self) -> None:
        if self.features not in ("z", "zh", "zch"):
            raise ValueError(f"features must be 'z', 'zh' or 'zch', got {self.features!r}")
        if self.vision.latent_size != self.memory.latent_size:
            raise ValueError(
                f"V has {self.vision.latent_size} latents and M {self.memory.latent_size}; they must be the same"
            )
        if self.step_reward and self.memory.predict_reward:
            raise ValueError("M predicts the reward of a step: leave step_reward at 0, or set predict_reward=False")


DOOM = WorldModelConfig(controller=ControllerConfig(bias=False), step_reward=1.0)
CAR_RACING = WorldModelConfig(
    vision=VisionConfig(latent_size=32),
    memory=MemoryConfig(latent_size=32, action_size=3, hidden_size=256, predict_done=False),
    controller=ControllerConfig(clipped=(2,)),
    features="zh",
)


class WorldModelParams(NamedTuple):
    """Parameters of V and M."""

    vision: Params
    memory: Params


class WorldModelState(NamedTuple):
    """Latent state at time t: the frame as V encodes it, and the state of M before consuming z_t."""

    z: Array  # [Z], drawn
    c: Array  # [H]
    h: Array  # [H]
    is_first: Array  # [] bool


def make(cfg: WorldModelConfig, spec: EnvSpec) -> Agent:
    """Bind a configuration to the spaces of an environment. Equal arguments return the same agent.

    The model: `observe` and `imagine` first step M with (z, a) of the step before, then draw the new z: from V's
    posterior of the real frame or from M's mixture density. So the controller acts on z_t and on the state of M that
    predicted it. M reads an action as its numbers, a class as its index. A dreamed step pays what M predicts, or
    `cfg.step_reward` if it predicts no rewards; it ends where M predicts an end, or never if it predicts none.

    V reads the one picture of `spec.observation`: a uint8 `Space` of shape [64, 64, 3], or a mapping that contains
    exactly one; other observations are not modelled, and `decode` returns what V reads, under its name.

    Raises: ValueError if there is no such picture, if M's action_size is not that of `spec.action`, or if
        `controller.make` refuses the action space.
    """
    leaves, structure = jax.tree.flatten(spec)
    return _make(cfg, tuple(leaves), structure)


@lru_cache(maxsize=64)
def _make(cfg: WorldModelConfig, leaves: tuple[Any, ...], structure: Any) -> Agent:
    spec = jax.tree.unflatten(structure, leaves)
    return Agent(_model(cfg, spec), controller.make(cfg.controller, feature_size(cfg), spec.action))


def _model(cfg: WorldModelConfig, spec: EnvSpec) -> LatentModel:
    picture = _picture(spec.observation)
    size = sum(int(np.prod(space.shape)) for space in jax.tree.leaves(spec.action))
    if size != cfg.memory.action_size:
        raise ValueError(
            f"M reads actions of {cfg.memory.action_size} numbers, those of the environment have {size}: set "
            f"memory.action_size={size}"
        )

    def init(key: Key) -> WorldModelParams:
        key_vision, key_memory = jax.random.split(key)
        return WorldModelParams(vision.init(cfg.vision, key_vision), memory.init(cfg.memory, key_memory))

    def start(params: WorldModelParams) -> WorldModelState:
        del params
        lstm = memory.start(cfg.memory)
        return WorldModelState(jnp.zeros(cfg.vision.latent_size), lstm.c, lstm.h, jnp.array(True))

    def encode(params: WorldModelParams, observation: PyTree) -> PyTree:
        return vision.encode(cfg.vision, params.vision, observation if picture is None else observation[picture])

    def consume(params: WorldModelParams, state: WorldModelState, action: Action) -> LSTMState:
        lstm = LSTMState(state.c, state.h)
        if not isinstance(spec.action, Space):
            action = jnp.concatenate([jnp.ravel(leaf).astype(jnp.float32) for leaf in jax.tree.leaves(action)])
        return memory.step(cfg.memory, params.memory, lstm, state.z, action, state.is_first)

    def observe(
        params: WorldModelParams, key: Key, state: WorldModelState, action: Action, posterior: PyTree, is_first: Array
    ) -> WorldModelState:
        c, h = (jnp.where(is_first, 0.0, x) for x in consume(params, state, action))
        return WorldModelState(gaussian_sample(key, *posterior), c, h, is_first)

    def imagine(
        params: WorldModelParams, key: Key, state: WorldModelState, action: Action, temperature: Array | float
    ) -> WorldModelState:
        c, h = consume(params, state, action)
        latent = memory.predict(cfg.memory, params.memory, h).latent
        return WorldModelState(mixture_sample(key, latent, temperature), c, h, jnp.array(False))

    def features(state: WorldModelState) -> Array:
        return jnp.concatenate([getattr(state, name) for name in cfg.features])

    def outcome(params: WorldModelParams, state: WorldModelState) -> Outcome:
        expected = memory.predict(cfg.memory, params.memory, state.h)
        reward = jnp.float32(cfg.step_reward) if expected.reward is None else expected.reward
        return Outcome(reward, jax.nn.sigmoid(-expected.done))

    def decode(params: WorldModelParams, state: WorldModelState) -> PyTree:
        frame = vision.decode(cfg.vision, params.vision, state.z)
        return frame if picture is None else {picture: frame}

    return LatentModel(init, start, encode, observe, imagine, features, outcome, decode, spec)


def _picture(observation: PyTree) -> str | None:
    """Name of the one picture in a mapping, None if the observation is the picture. Raises ValueError for others."""
    named = observation if isinstance(observation, Mapping) else {None: observation}
    pictures = [
        name for name, space in named.items() if isinstance(space, Space) and (space.shape, space.dtype) == _PICTURE
    ]
    if len(pictures) != 1:
        raise ValueError(
            f"V reads exactly one uint8 picture [64, 64, 3], got {len(pictures)} in {observation}; crop and resize "
            "frames with dreamjax.envs.pixels"
        )
    return pictures[0]


def feature_size(cfg: WorldModelConfig) -> int:
    """Length of the feature vector that a policy reads."""
    sizes = {"z": cfg.vision.latent_size, "c": cfg.memory.hidden_size, "h": cfg.memory.hidden_size}
    return sum(sizes[name] for name in cfg.features)
