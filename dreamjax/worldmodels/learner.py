"""Training of V and M: pure steps over a train state.

Source: Ha & Schmidhuber 2018, appendix A.1 and A.2; settings of the published code.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dreamjax import optim
from dreamjax.optim import AdamConfig
from dreamjax.types import Array, Key, Metrics, Params, PyTree
from dreamjax.worldmodels import memory, vision
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.vision import VisionConfig

VISION_OPTIMIZER = AdamConfig()
MEMORY_OPTIMIZER = AdamConfig(1e-3, 1e-5, 0.99999, clip=1.0)


@dataclass(frozen=True)
class VisionLearner:
    """V and its optimiser. A batch is frames uint8 [B, 64, 64, 3]."""

    cfg: VisionConfig = VisionConfig()
    optimizer: AdamConfig = VISION_OPTIMIZER


@dataclass(frozen=True)
class MemoryLearner:
    """M, its optimiser, and how many streams of episodes it reads side by side.

    A batch is the next `replay.latents.Chunk` of the streams, [T+1, streams, ...], of which the last time step is the
    first of the next chunk.
    """

    cfg: MemoryConfig = MemoryConfig()
    optimizer: AdamConfig = MEMORY_OPTIMIZER
    streams: int = 100

    def __post_init__(self) -> None:
        if self.streams < 1:
            raise ValueError(f"need streams >= 1, got {self.streams}")


class TrainState(NamedTuple):
    """What training carries from update to update."""

    step: Array  # [] int32, updates so far
    params: Params
    opt_state: optax.OptState
    carry: PyTree  # of M: the LSTM state [streams, H] in which the next chunk begins; of V: ()
    learning_rate: Array  # [] float32, from which the rate falls; traced, so that one program sweeps it, also vmapped


@partial(jax.jit, static_argnums=0)
def init(learner: VisionLearner | MemoryLearner, key: Key) -> TrainState:
    """Start training with the learning rate of the configuration, a number []. Shapes: as in `TrainState`."""
    part: Any = vision if isinstance(learner, VisionLearner) else memory
    carry = () if isinstance(learner, VisionLearner) else memory.start(learner.cfg, (learner.streams,))
    params = part.init(learner.cfg, key)
    opt_state = optim.adam(learner.optimizer).init(params)
    return TrainState(jnp.int32(0), params, opt_state, carry, jnp.float32(learner.optimizer.learning_rate))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def train_step(
    learner: VisionLearner | MemoryLearner, key: Key, state: TrainState, batch: PyTree
) -> tuple[TrainState, Metrics]:
    """Update V or M on one batch: frames uint8 [B, 64, 64, 3], or a `Chunk` [T + 1, B, ...]. `state` is donated.

    The key is folded with the number of the update, so that one key serves all of them. An update that
    is not finite, by its loss and the norm of its gradient and itself, changes nothing but that number; the metric
    `skipped` counts these since training began.

    Raises: ValueError for a chunk of other streams than the learner has.
    """
    if isinstance(learner, MemoryLearner) and (count := batch.mean.shape[1]) != len(jax.tree.leaves(state.carry)[0]):
        raise ValueError(f"the chunk has {count} streams, but the learner {learner.streams}: make it with as many")

    def loss(params: Params) -> tuple[Array, tuple[PyTree, Metrics]]:
        key_loss = jax.random.fold_in(key, state.step)
        if isinstance(learner, VisionLearner):
            total, metrics = vision.loss(learner.cfg, params, key_loss, batch)
            return total, ((), metrics)
        return memory.loss(learner.cfg, params, key_loss, state.carry, batch)

    grads, (carry, metrics) = jax.grad(loss, has_aux=True)(state.params)
    optimizer = optim.adam(learner.optimizer, state.learning_rate)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    is_finite = jnp.isfinite(metrics["loss"] + optax.tree.norm((grads, updates)))
    new = TrainState(state.step + 1, params, opt_state, carry, state.learning_rate)
    state = optim.keep_finite(is_finite, new, state._replace(step=new.step))
    return state, metrics | {"skipped": optim.skipped(state.step, state.opt_state)}
