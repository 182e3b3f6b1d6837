"""What is stored of each step, and how an agent acts and learns from it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import rollout
from dreamjax.dreamerv3 import learner, model, rssm
from dreamjax.dreamerv3.learner import Batch, TrainState
from dreamjax.dreamerv3.model import Dreamer, DreamerParams
from dreamjax.dreamerv3.rssm import RSSMState
from dreamjax.rollout import AgentState
from dreamjax.types import Action, Array, EnvSpec, Key, Metrics, PyTree, Step


class Latent(NamedTuple):
    """A latent state as it is stored, without loss."""

    deter: Array  # [..., D] in the compute dtype
    stoch: Array  # [..., S] uint8, index of the class


class Experience(NamedTuple):
    """What is stored of one step. Observation and action are the environment's own pytrees."""

    step: Step
    action: Action  # chosen after it
    latent: Latent | None  # the agent's posterior state, where replayed sequences start; None in a recording


class Learned(NamedTuple):
    """What an update gives besides the new state."""

    latent: Latent  # [B, T, ...] of the trained steps, to be stored in place of the old ones
    priority: Array  # [B, T] float32, losses of the world model
    metrics: Metrics


def pack(state: RSSMState) -> Latent:
    """Make a latent state small enough to store. Shapes: [..., S, K] -> [..., S]."""
    return Latent(state.deter, state.stoch.argmax(-1).astype(jnp.uint8))


def unpack(dreamer: Dreamer, latent: Latent) -> RSSMState:
    """Undo `pack`. Shapes: [..., S] -> [..., S, K]."""
    classes = dreamer.cfg.rssm.classes
    dtype = dreamer.cfg.compute_dtype
    return RSSMState(latent.deter.astype(dtype), jax.nn.one_hot(latent.stoch, classes, dtype=dtype))


def recorded(spec: EnvSpec) -> Experience:
    """Shapes and dtypes of one step of an environment, as `jax.ShapeDtypeStruct`s, without a latent state."""
    described: Any = jax.ShapeDtypeStruct

    def like(spaces: PyTree) -> PyTree:
        return jax.tree.map(lambda space: described(space.shape, space.dtype), spaces)

    flag = described((), bool)
    step = Step(like(spec.observation), described((), np.float32), flag, flag, flag)
    return Experience(step, like(spec.action), None)


def example(dreamer: Dreamer) -> Experience:
    """Shapes and dtypes of one stored step, as `jax.ShapeDtypeStruct`s."""
    described: Any = jax.ShapeDtypeStruct
    cfg = dreamer.cfg.rssm
    latent = Latent(described((cfg.deter,), dreamer.cfg.compute_dtype), described((cfg.stoch,), np.uint8))
    step, action, _ = recorded(dreamer.spec)
    return Experience(step, action, latent)


def refreshed(dreamer: Dreamer, latent: Latent) -> Experience:
    """Latent states as an update of stored steps, where None is what stays as it is. Shapes: [B, T, ...]."""
    step, action, _ = jax.tree.map(lambda _: None, recorded(dreamer.spec))
    return Experience(step, action, latent)


def start(dreamer: Dreamer, environments: int) -> AgentState:
    """State of an agent in E environments before their first step."""
    state = rssm.start(dreamer.cfg.rssm, (environments,), dreamer.cfg.compute_dtype)
    action = jax.tree.map(lambda space: jnp.zeros((environments, *space.shape), space.dtype), dreamer.spec.action)
    return AgentState(state, action)


@partial(jax.jit, static_argnums=0)
def act(dreamer: Dreamer, params: DreamerParams, key: Key, state: AgentState, step: Step) -> tuple[AgentState, Latent]:
    """Act once in E environments. The new state holds the actions; the latent state is to be stored with the step.

    Shapes: state and step [E, ...] -> [E, ...].
    """
    # All layers take leading axes, so the agent of one environment is that of many.
    acting = rollout.step_policy(model.agent(dreamer), params.model)
    state, _ = acting.act(params.policy, key, state, step)
    return state, pack(state.latent)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def learn(dreamer: Dreamer, key: Key, state: TrainState, drawn: Experience) -> tuple[TrainState, Learned]:
    """Update everything on replayed sequences, by `learner.train_step`; `state` is donated.

    Shapes: drawn [B, C+T, ...].
    """
    state, trained = learner.train_step(dreamer, key, state, as_batch(dreamer, drawn))
    return state, Learned(pack(trained.latents), trained.surprise, trained.metrics)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def learn_several(
    dreamer: Dreamer, key: Key, state: TrainState, drawn: Experience, count: Array
) -> tuple[TrainState, Learned]:
    """Update on the first `count` of K batches, one after the other, as `learn` does; `state` is donated.

    The host is not waited for in between. The count is traced, so that one compiled program serves them all, and the
    result does not depend on how updates are divided among calls.

    Shapes: drawn [K, B, C+T, ...], count [] int32, at most K -> what was learned [K, ...], zeros from `count` on.
    """

    def update(i: Array, carry: tuple[TrainState, Learned]) -> tuple[TrainState, Learned]:
        state, learned = carry
        state, one = learn(dreamer, key, state, batch(i))
        return state, jax.tree.map(lambda all_, new: all_.at[i].set(new), learned, one)

    def batch(i: Array | int) -> Experience:
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), drawn)

    _, one = jax.eval_shape(partial(learn, dreamer), key, state, batch(0))
    several = len(drawn.step.reward)
    empty = jax.tree.map(lambda like: jnp.zeros((several, *like.shape), like.dtype), one)
    return jax.lax.fori_loop(0, count, update, (state, empty))


def as_batch(dreamer: Dreamer, drawn: Experience) -> Batch:
    """Make a batch of replayed sequences.

    The first step of each sequence is marked as the first of an episode, since what came before is unknown. A step
    before the first of another episode is marked as the last of its own, even if that episode was abandoned.

    Shapes: drawn [B, C+T, ...].
    """
    context, step = dreamer.cfg.context, drawn.step
    is_first = step.is_first.at[:, 0].set(True)
    followed = jnp.pad(is_first[:, 1:], ((0, 0), (0, 1)))
    step = step._replace(is_first=is_first, is_last=step.is_last | followed)
    begin = jax.tree.map(lambda x: x[:, max(context - 1, 0)], drawn.latent)
    return Batch(step, drawn.action, unpack(dreamer, begin))
