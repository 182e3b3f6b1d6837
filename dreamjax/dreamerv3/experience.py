"""What is stored of each step, and how an agent acts on it and learns from it."""

from collections.abc import Iterable
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
from dreamjax.types import Action, Agent, Array, EnvSpec, Key, Metrics, Space, Step


class Latent(NamedTuple):
    """A latent state as it is stored, without loss."""

    deter: Array  # [..., D] in the dtype of the computation
    stoch: Array  # [..., S] uint8, which class is the hot one


class Experience(NamedTuple):
    """What is stored of one step."""

    step: Step
    action: Action  # chosen after it
    latent: Latent | None  # the agent's posterior state, from which a replayed sequence can begin; None in a recording


class Learned(NamedTuple):
    """What an update leaves besides the new state."""

    latent: Latent  # [B, T, ...] of the trained steps, to be stored in place of the old ones
    priority: Array  # [B, T] float32, losses of the world model: what it has not understood yet
    metrics: Metrics


def pack(state: RSSMState) -> Latent:
    """Store a latent state."""
    return Latent(state.deter, state.stoch.argmax(-1).astype(jnp.uint8))


def unpack(dreamer: Dreamer, latent: Latent) -> RSSMState:
    """Take a latent state out of storage."""
    classes = dreamer.cfg.rssm.classes
    dtype = dreamer.cfg.compute_dtype
    return RSSMState(latent.deter.astype(dtype), jax.nn.one_hot(latent.stoch, classes, dtype=dtype))


def recorded(observation: Iterable[tuple[str, Space]], action: Iterable[tuple[str, Space]]) -> Experience:
    """Shapes and dtypes of one step of named spaces, as `jax.ShapeDtypeStruct`s, without a latent state."""
    described: Any = jax.ShapeDtypeStruct
    seen, done = ({name: described(space.shape, space.dtype) for name, space in x} for x in (observation, action))
    flag = described((), bool)
    return Experience(Step(seen, described((), np.float32), flag, flag, flag), done, None)


def example(dreamer: Dreamer) -> Experience:
    """Shapes and dtypes of one stored step, as `jax.ShapeDtypeStruct`s."""
    described: Any = jax.ShapeDtypeStruct
    cfg = dreamer.cfg.rssm
    latent = Latent(described((cfg.deter,), dreamer.cfg.compute_dtype), described((cfg.stoch,), np.uint8))
    return recorded(dreamer.observation, dreamer.action)._replace(latent=latent)


def start(dreamer: Dreamer, environments: int) -> AgentState:
    """What the agent remembers of E environments before their first step."""
    action = {name: jnp.zeros((environments, *space.shape), space.dtype) for name, space in dreamer.action}
    return AgentState(rssm.start(dreamer.cfg.rssm, (environments,), dreamer.cfg.compute_dtype), action)


@partial(jax.jit, static_argnums=0)
def act(dreamer: Dreamer, params: DreamerParams, key: Key, memory: AgentState, step: Step) -> tuple[AgentState, Latent]:
    """Act once in E environments: what is remembered, with the actions, and what is to be stored with the step.

    Shapes: memory and step [E, ...] -> [E, ...]; observations and actions are by name.
    """
    spec = EnvSpec(dict(dreamer.observation), dict(dreamer.action), 0)
    # All layers take leading axes, so the agent of one environment is that of many.
    agent = rollout.step_policy(Agent(model.make(dreamer, spec), model.policy(dreamer, spec)), params)
    memory, _ = agent.act(params.pol, key, memory, step)
    return memory, pack(memory.latent)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def learn(dreamer: Dreamer, key: Key, state: TrainState, drawn: Experience) -> tuple[TrainState, Learned]:
    """Update everything on replayed sequences, as `learner.train_step` does. Shapes: drawn [B, C+T, ...]."""
    state, trained = learner.train_step(dreamer, key, state, as_batch(dreamer, drawn))
    return state, Learned(pack(trained.latents), trained.surprise, trained.metrics)


def as_batch(dreamer: Dreamer, drawn: Experience) -> Batch:
    """Make a batch of replayed sequences.

    The first step of each opens an episode, as far as the sequence shows; the step before the first of another episode
    was the last of its own, also where that episode was abandoned.
    """
    context, step = dreamer.cfg.context, drawn.step
    is_first = step.is_first.at[:, 0].set(True)
    followed = jnp.pad(is_first[:, 1:], ((0, 0), (0, 1)))
    step = step._replace(is_first=is_first, is_last=step.is_last | followed)
    begin = jax.tree.map(lambda x: x[:, max(context - 1, 0)], drawn.latent)
    return Batch(step, drawn.action, unpack(dreamer, begin))
