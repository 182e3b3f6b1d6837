"""What an agent computes at every tick, one program for each of the two worlds: the real one, and the dreamed one.

They are apart, and not one, so that the dream is computed while a host environment makes its step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreamjax import dream, rollout
from dreamjax.distributions import categorical_kl, mixture_log_prob, unimix
from dreamjax.dreamerv3 import actor_critic, rssm
from dreamjax.dreamerv3.config import DreamerConfig
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.planning.beliefs import within
from dreamjax.rollout import AgentState
from dreamjax.storage.agents import Stored
from dreamjax.types import AgentParams, Array, EnvSpec, Key, Params, PyTree, State, Step
from dreamjax.worldmodels import memory


class PlayParams(NamedTuple):
    """What is learned, of all that plays."""

    agent: AgentParams
    value: Params | None  # of the critic, if there is one


class Belief(NamedTuple):
    """What the model makes of a latent state."""

    decoded: PyTree  # shaped as `spec.observation`
    reward: Array  # [] float32, that it predicts
    continues: Array  # [] float32, probability that the episode goes on
    value: Array  # [] float32, return that the critic expects, discounted; NaN without one
    surprise: Array  # [] float32, how little the prior expected the real observation; NaN in a dream


class Programs(NamedTuple):
    """Jitted functions. Numbers of ticks are folded into the key of a session, so that each is used once."""

    params: PlayParams
    spec: EnvSpec
    has_starts: bool  # whether there is something for a dream to begin with
    start: Callable[[], AgentState]
    see: Callable[[PlayParams, Key, int, AgentState, Step], tuple[AgentState, Belief]]
    begin: Callable[[PlayParams, Key, int], tuple[AgentState, Belief]]
    imagine: Callable[[PlayParams, Key, int, AgentState, Array | float], tuple[AgentState, Belief]]


def make(stored: Stored) -> Programs:
    """Make the programs of a stored agent; `compiled` compiles them before they are needed.

    In `see`, `state.action` is the action that was taken after the step before, whoever chose it; in the state that
    comes back it is what the agent would do now. `imagine` follows `state.action` in the dream in the same way. Actions
    are within their bounds.

    Surprise is that of World Models, `memory.surprise` in nats per latent, or the KL divergence of DreamerV3's
    posterior from its prior, in nats.
    """
    agent, model = stored.agent, stored.agent.model
    acting, value, surprise = rollout.recurrent(agent.policy), _value(stored), _surprise(stored)
    bounded = partial(jax.tree.map, within, model.spec.action)

    def believe(params: PlayParams, latent: State, surprised: Array) -> Belief:
        outcome = model.outcome(params.agent.model, latent)
        decoded = model.decode(params.agent.model, latent)
        worth = value(params.value, model.features(latent))
        return Belief(decoded, outcome.reward, outcome.continues, worth, surprised)

    def act(params: PlayParams, key: Key, memory: State, latent: State) -> AgentState:
        memory, action = acting.act(params.agent.policy, key, memory, model.features(latent))
        return AgentState(latent, bounded(action), memory)

    @jax.jit
    def see(params: PlayParams, key: Key, number: int, before: AgentState, step: Step) -> tuple[AgentState, Belief]:
        state, action = rollout.act(agent, params.agent, jax.random.fold_in(key, number), before, step)
        embedding = model.encode(params.agent.model, step.observation)
        surprised = jnp.where(step.is_first, jnp.nan, surprise(params.agent.model, state.latent, embedding))
        return state._replace(action=bounded(action)), believe(params, state.latent, surprised)

    @jax.jit
    def begin(params: PlayParams, key: Key, number: int) -> tuple[AgentState, Belief]:
        key_reset, key_act = jax.random.split(jax.random.fold_in(key, number))
        dreamed, _ = dream.environment(model, params.agent.model, params.agent.starts).reset(key_reset)
        state = act(params, key_act, acting.start(params.agent.policy), dreamed.latent)
        return state, believe(params, dreamed.latent, jnp.float32(jnp.nan))

    @jax.jit
    def imagine(
        params: PlayParams, key: Key, number: int, before: AgentState, temperature: Array | float
    ) -> tuple[AgentState, Belief]:
        key_imagine, key_act = jax.random.split(jax.random.fold_in(key, number))
        latent = model.imagine(params.agent.model, key_imagine, before.latent, before.action, temperature)
        return act(params, key_act, before.memory, latent), believe(params, latent, jnp.float32(jnp.nan))

    params = jax.device_put(PlayParams(stored.params, stored.value))
    start: Any = jax.jit(partial(rollout.start, agent))
    return Programs(
        params,
        model.spec,
        bool(jax.tree.leaves(stored.params.starts)),
        lambda: start(params.agent),
        see,
        begin,
        imagine,
    )


def compiled(programs: Programs) -> Programs:
    """Run every program once, so that nobody waits for its compilation at play."""
    params, key = programs.params, jax.random.key(0)
    no, zeros = jnp.array(False), rollout.zero_action(programs.spec.observation)
    flags = jnp.float32(0), ~no, no, no
    before = programs.start()
    see = programs.see(params, key, 0, before, jax.device_get(Step(zeros, *flags)))
    imagine = programs.imagine(params, key, 0, see[0], jnp.float32(1))
    begin = programs.begin(params, key, 0) if programs.has_starts else ()
    jax.block_until_ready((see, imagine, begin))
    return programs


def _value(stored: Stored) -> Callable[[Params | None, Array], Array]:
    """What the critic expects of features; NaN if there is none."""
    cfg = stored.config
    if stored.value is None or not isinstance(cfg, DreamerConfig):
        return lambda params, features: jnp.float32(jnp.nan)
    return actor_critic.value(Dreamer.of(cfg, stored.agent.model.spec).actor_critic)


def _surprise(stored: Stored) -> Callable[[Params, Any, PyTree], Array]:
    """How little was expected of an embedding, given the state that it led to: (params, state, embedding) -> []."""
    cfg = stored.config
    if isinstance(cfg, DreamerConfig):

        def divergence(params: Params, state: Any, tokens: PyTree) -> Array:
            logits = (
                rssm.posterior(cfg.rssm, params.dyn, state.deter, tokens),
                rssm.prior(cfg.rssm, params.dyn, state.deter),
            )
            return categorical_kl(*(unimix(one, cfg.rssm.unimix) for one in logits)).sum()

        return divergence

    def unexpected(params: Params, state: Any, posterior: PyTree) -> Array:
        expected = memory.predict(cfg.memory, params.memory, state.h).latent
        known = 0.5 * (jnp.log(2 * jnp.pi) + 1.0 + posterior[1])  # entropy of V's own draw, which nobody can foresee
        return -(mixture_log_prob(expected, state.z) + known).mean()

    return unexpected
