"""Training of V and M: pure steps over a train state.

Source: Ha & Schmidhuber 2018, appendix A.1 and A.2; settings of the published code.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dreamjax.nets.lstm import LSTMState
from dreamjax.replay.latents import Chunk
from dreamjax.types import Array, Key, Metrics, Params
from dreamjax.worldmodels import memory, vision
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.vision import VisionConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam whose learning rate falls by `decay` a step from `learning_rate` towards `final_learning_rate`."""

    learning_rate: float = 1e-4
    final_learning_rate: float = 0.0
    decay: float = 1.0
    clip: float = float("inf")  # of every single gradient entry

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or not 0 < self.decay <= 1 or self.clip <= 0:
            raise ValueError(f"need learning_rate > 0, 0 < decay <= 1 and clip > 0, got {self}")


VISION_OPTIMIZER = OptimizerConfig()
MEMORY_OPTIMIZER = OptimizerConfig(1e-3, 1e-5, 0.99999, clip=1.0)


class VisionState(NamedTuple):
    """What training V carries."""

    step: Array  # [] int32, updates so far
    params: Params
    opt_state: optax.OptState


class MemoryState(NamedTuple):
    """What training M carries."""

    step: Array  # [] int32, updates so far
    params: Params
    opt_state: optax.OptState
    lstm: LSTMState  # [B, H], where the streams of the batch stand


def optimizer(cfg: OptimizerConfig) -> optax.GradientTransformation:
    """Build the optimiser."""

    def learning_rate(step: Array) -> Array:
        return (cfg.learning_rate - cfg.final_learning_rate) * cfg.decay**step + cfg.final_learning_rate

    return optax.chain(optax.clip(cfg.clip), optax.adam(learning_rate))


def vision_init(cfg: VisionConfig, opt: OptimizerConfig, key: Key) -> VisionState:
    """Start training V."""
    params = vision.init(cfg, key)
    return VisionState(jnp.int32(0), params, optimizer(opt).init(params))


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3,))
def vision_step(
    cfg: VisionConfig, opt: OptimizerConfig, key: Key, state: VisionState, frames: Array
) -> tuple[VisionState, Metrics]:
    """Update V on one batch. The same key may be passed at every step; `state` is given up.

    Shapes: frames uint8 [B, 64, 64, 3].
    """
    gradient = jax.grad(partial(vision.loss, cfg), has_aux=True)
    grads, metrics = gradient(state.params, jax.random.fold_in(key, state.step), frames)
    updates, opt_state = optimizer(opt).update(grads, state.opt_state, state.params)
    return VisionState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics


def memory_init(cfg: MemoryConfig, opt: OptimizerConfig, key: Key, batch: int) -> MemoryState:
    """Start training M on `batch` parallel streams."""
    params = memory.init(cfg, key)
    return MemoryState(jnp.int32(0), params, optimizer(opt).init(params), memory.start(cfg, (batch,)))


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3,))
def memory_step(
    cfg: MemoryConfig, opt: OptimizerConfig, key: Key, state: MemoryState, data: Chunk
) -> tuple[MemoryState, Metrics]:
    """Update M on the next chunk of its streams. The same key may be passed at every step; `state` is given up.

    Shapes: data [T+1, B, ...], of which the last time step is the first of the next chunk.
    """
    gradient = jax.grad(partial(memory.loss, cfg), has_aux=True)
    grads, (lstm, metrics) = gradient(state.params, jax.random.fold_in(key, state.step), state.lstm, data)
    updates, opt_state = optimizer(opt).update(grads, state.opt_state, state.params)
    return MemoryState(state.step + 1, optax.apply_updates(state.params, updates), opt_state, lstm), metrics
