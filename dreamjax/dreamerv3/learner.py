"""Learning: one pure update of world model, actor and critic together.

Source: Hafner et al. 2023, and its published code, which minimises one sum of losses with one optimiser.
"""

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dreamjax import dream, optim, returns
from dreamjax.distributions import categorical_entropy, categorical_kl, unimix
from dreamjax.dreamerv3 import behaviour, codec, heads, model, rssm
from dreamjax.dreamerv3.model import Dreamer, DreamerParams
from dreamjax.dreamerv3.rssm import RSSMState
from dreamjax.returns import ReturnRange
from dreamjax.types import Agent, AgentParams, Array, EnvSpec, Key, Metrics, Params, Step

stop = jax.lax.stop_gradient

UNROLL = 3  # imagined steps compiled as one: on two cores 6 % faster for the whole update at 1m, and so is 15


class Batch(NamedTuple):
    """Replayed sequences: C context steps, then T to train on."""

    steps: Step  # [B, C+T, ...], observations by name
    actions: Mapping[str, Array]  # [B, C+T, ...], each taken after the step of the same index
    start: RSSMState  # [B, ...] latent state at the last context step, as stored; unused without context


class TrainState(NamedTuple):
    """What training carries."""

    step: Array  # [] int32, updates so far
    params: DreamerParams
    slow: Params  # the critic that follows slowly
    opt_state: optax.OptState
    range: ReturnRange  # of imagined returns


class Trained(NamedTuple):
    """What an update leaves besides the new state."""

    latents: RSSMState  # [B, T, ...] of the trained steps, to be stored in place of the old ones
    surprise: Array  # [B, T] float32, losses of the world model
    metrics: Metrics


def init(dreamer: Dreamer, key: Key) -> TrainState:
    """Start training; the slow critic begins as a copy of the critic."""
    params = model.init(dreamer, key)
    slow = jax.tree.map(jnp.array, params.val)  # buffers of its own: the state is donated
    opt_state = optim.laprop(dreamer.cfg.optimizer).init(params)
    return TrainState(jnp.int32(0), params, slow, opt_state, returns.range_init())


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def train_step(dreamer: Dreamer, key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Trained]:
    """Update everything on one batch. The same key may be passed at every step; `state` is given up."""
    gradient = jax.grad(partial(loss, dreamer), has_aux=True)
    key = jax.random.fold_in(key, state.step)
    grads, (range_, trained) = gradient(state.params, state.slow, state.range, key, batch)
    updates, opt_state = optim.laprop(dreamer.cfg.optimizer).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    slow = optax.incremental_update(params.val, state.slow, dreamer.cfg.behaviour.slow_rate)
    metrics = trained.metrics | {"gradient_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
    return TrainState(state.step + 1, params, slow, opt_state, range_), trained._replace(metrics=metrics)


def loss(
    dreamer: Dreamer, params: DreamerParams, slow: Params, range_: ReturnRange, key: Key, batch: Batch
) -> tuple[Array, tuple[ReturnRange, Trained]]:
    """Sum of all losses. Shapes: -> [], (range of returns, what was trained)."""
    cfg, scales = dreamer.cfg, dreamer.cfg.loss
    key_observe, key_imagine = jax.random.split(key)
    steps = jax.tree.map(lambda x: x[:, cfg.context :], batch.steps)

    tokens = heads.apply(dreamer.encoder, params.enc, steps.observation)
    states, posterior = _observe(dreamer, params, key_observe, batch, tokens)
    losses = _model_losses(dreamer, params, states, posterior, steps)
    surprise = sum(getattr(scales, name.split("/")[0]) * x for name, x in losses.items())

    lead = steps.reward.shape
    starts = jax.tree.map(lambda x: stop(x).reshape(-1, *x.shape[2:]), states)
    features, actions = _imagine(dreamer, stop(params), key_imagine, starts)
    imagined = behaviour.imagined_losses(dreamer, params, slow, features, actions, range_)
    losses["policy"], losses["value"] = imagined.policy_loss, imagined.value_loss
    if scales.replay_value:
        seen = rssm.features(states if scales.reward_value_gradient else stop(states))
        recorded = (steps.reward, steps.is_last, steps.is_terminal, imagined.returns[0].reshape(lead))
        losses["replay_value"] = behaviour.replayed_value_loss(dreamer, params, slow, seen, *recorded)[0]

    means = {name: x.mean() for name, x in losses.items()}
    total = sum(getattr(scales, name.split("/")[0]) * x for name, x in means.items())
    metrics = imagined.metrics | {f"loss/{name}": x for name, x in means.items()} | {"loss": total}
    metrics["posterior_entropy"] = categorical_entropy(unimix(posterior, cfg.rssm.unimix)).sum(-1).mean()
    return total, (imagined.range, Trained(stop(states), stop(surprise), metrics))


def _observe(dreamer: Dreamer, params: DreamerParams, key: Key, batch: Batch, tokens: Array) -> tuple[RSSMState, Array]:
    """Follow the recorded actions. Shapes: tokens [B, T, E] -> states [B, T, ...], posterior logits [B, T, S, K]."""
    cfg, dtype = dreamer.cfg, dreamer.cfg.compute_dtype
    taken = heads.flatten_actions(dreamer.action, batch.actions, dtype)
    if cfg.context:
        previous, is_first = taken[:, cfg.context - 1 : -1], batch.steps.is_first[:, cfg.context :]
        state = jax.tree.map(lambda x: x.astype(dtype), batch.start)
    else:
        previous = jnp.concatenate([jnp.zeros_like(taken[:, :1]), taken[:, :-1]], 1)
        is_first = batch.steps.is_first.at[:, 0].set(True)
        state = rssm.start(cfg.rssm, tokens.shape[:1], dtype)

    swap = partial(jnp.swapaxes, axis1=0, axis2=1)
    seen = rssm.observe_sequence(cfg.rssm, params.dyn, key, state, swap(previous), swap(tokens), swap(is_first))
    return jax.tree.map(swap, seen)


def _model_losses(
    dreamer: Dreamer, params: DreamerParams, states: RSSMState, posterior: Array, steps: Step
) -> dict[str, Array]:
    """Losses of the world model, [B, T] each."""
    cfg, scales = dreamer.cfg, dreamer.cfg.loss
    painted = heads.apply(dreamer.decoder, params.dec, *(states if scales.reconstruction_gradient else stop(states)))
    errors = codec.reconstruction_losses(cfg.codec, dreamer.observation, painted, steps.observation)
    losses = {f"reconstruction/{name}": error for name, error in errors.items()}

    seen = rssm.features(states if scales.reward_value_gradient else stop(states))
    losses["reward"] = heads.scalar_loss(cfg.heads, heads.apply(dreamer.reward, params.rew, seen), steps.reward)
    goes_on = (1.0 - steps.is_terminal.astype(jnp.float32)) * cfg.behaviour.discount
    losses["continues"] = heads.continue_loss(heads.apply(dreamer.continues, params.con, seen), goes_on)

    prior = unimix(rssm.prior(cfg.rssm, params.dyn, states.deter), cfg.rssm.unimix)
    posterior = unimix(posterior, cfg.rssm.unimix)
    divergence = lambda p, q: jnp.maximum(scales.free_nats, categorical_kl(p, q).sum(-1))  # noqa: E731
    if scales.kl_balance:
        losses["dynamics"] = divergence(stop(posterior), prior)
        losses["representation"] = divergence(posterior, stop(prior))
    else:
        losses["dynamics"] = divergence(posterior, prior)
    return losses


def _imagine(dreamer: Dreamer, params: DreamerParams, key: Key, starts: RSSMState) -> tuple[Array, Mapping[str, Array]]:
    """Dream from every replayed state. Shapes: starts [N, ...] -> features [H+1, N, F], actions [H, N, ...]."""
    spec = EnvSpec(dict(dreamer.observation), dict(dreamer.action), 0)
    bound, actor = model.make(dreamer, spec), model.policy(dreamer, spec)
    # All layers take leading axes, so the dream of many starts is the dream of one.
    horizon = dreamer.cfg.behaviour.horizon
    states, actions = dream.imagine(
        Agent(bound, actor), AgentParams(params, params.pol), key, starts, horizon, unroll=UNROLL
    )
    return rssm.features(states), actions
