"""Training: one pure update of world model, actor and critic together.

Source: Hafner et al. 2023, and its published code, which minimises one sum of losses with one optimiser.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dreamjax import dream, optim, returns
from dreamjax.distributions import categorical_entropy, categorical_kl, unimix
from dreamjax.dreamerv3 import actor_critic, codec, filtering, heads, model, rssm
from dreamjax.dreamerv3.actor_critic import Replayed, Trajectory
from dreamjax.dreamerv3.config import DreamerConfig
from dreamjax.dreamerv3.model import Dreamer, DreamerParams, ModelParams
from dreamjax.dreamerv3.rssm import RSSMState
from dreamjax.returns import ReturnRange
from dreamjax.types import Action, Array, Key, Metrics, Params, Step

stop = jax.lax.stop_gradient

UNROLL = 3  # imagined steps compiled as one: on two cores 6 % faster for the whole update at 1m, and so is 15


class Batch(NamedTuple):
    """Replayed sequences: C context steps, then T to train on."""

    steps: Step  # [B, C+T, ...]
    actions: Action  # [B, C+T, ...], each taken after the step of the same index
    start: RSSMState  # [B, ...] latent state at the last context step, as stored; unused without context


class Hyper(NamedTuple):
    """Settings that are traced, so that one compiled program serves all values, also several at once by `vmap`.

    The continue head learns the discount, but an agent's `Outcome.continues` is divided by that of its configuration.
    """

    learning_rate: Array | float  # [] float32, at the end of the warmup
    entropy: Array | float  # [] float32, scale of the actor's entropy
    discount: Array | float  # [] float32

    @classmethod
    def of(cls, cfg: DreamerConfig) -> "Hyper":
        """Take the values of a configuration."""
        values = cfg.optimizer.learning_rate, cfg.behaviour.entropy, cfg.behaviour.discount
        return cls(*map(jnp.float32, values))


class TrainState(NamedTuple):
    """What training carries."""

    step: Array  # [] int32, updates so far
    params: DreamerParams
    slow: Params  # moving average of the critic's parameters
    opt_state: optax.OptState
    range: ReturnRange  # of imagined returns
    hyper: Hyper  # never changed by an update


class Trained(NamedTuple):
    """What an update gives besides the new state."""

    latents: RSSMState  # [B, T, ...] posteriors of the trained steps, to be stored in place of the old ones
    surprise: Array  # [B, T] float32, losses of the world model
    metrics: Metrics


@partial(jax.jit, static_argnums=0)
def init(dreamer: Dreamer, key: Key, hyper: Hyper | None = None) -> TrainState:
    """Start training, with the configuration's learning rate, entropy scale and discount where `hyper` is None.

    Shapes: `hyper` holds numbers [], which `jax.vmap` may stack to train with several at once.
    """
    params = model.init(dreamer, key)
    # Copies, as the state is donated.
    slow = jax.tree.map(jnp.array, params.value)
    hyper = Hyper(*(jnp.array(value, jnp.float32) for value in hyper or Hyper.of(dreamer.cfg)))
    opt_state = optim.laprop(dreamer.cfg.optimizer).init(params)
    return TrainState(jnp.int32(0), params, slow, opt_state, returns.range_init(), hyper)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def train_step(dreamer: Dreamer, key: Key, state: TrainState, batch: Batch) -> tuple[TrainState, Trained]:
    """Update everything on one batch. The same key may be passed at every step; `state` is donated.

    An update that is not finite, by its loss and by the norms of its gradient and of itself, changes nothing but the
    number of the step; the metric `skipped` counts these since training began.

    Shapes: as in `Batch`, sequences [B, C + T, ...].
    """
    key = jax.random.fold_in(key, state.step)
    grads, (range_, trained) = jax.grad(partial(loss, dreamer), has_aux=True)(state.params, key, state, batch)
    optimizer = optim.laprop(dreamer.cfg.optimizer, state.hyper.learning_rate)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    slow = optax.incremental_update(params.value, state.slow, dreamer.cfg.behaviour.slow_rate)
    metrics = trained.metrics | {"gradient_norm": optim.global_norm(grads), "update_norm": optim.global_norm(updates)}
    is_finite = jnp.isfinite(metrics["loss"] + metrics["gradient_norm"] + metrics["update_norm"])
    new = TrainState(state.step + 1, params, slow, opt_state, range_, state.hyper)
    state = optim.keep_finite(is_finite, new, state._replace(step=new.step))
    metrics["skipped"] = optim.skipped(state.step, state.opt_state)
    return state, trained._replace(metrics=metrics)


def loss(
    dreamer: Dreamer, params: DreamerParams, key: Key, state: TrainState, batch: Batch
) -> tuple[Array, tuple[ReturnRange, Trained]]:
    """Sum of all losses at `params`; of `state`, the slow critic, the range of returns and `hyper` are read.

    Shapes: -> [], (the new range of returns, what else the update gives).
    """
    cfg, scales, hyper = dreamer.cfg, dreamer.cfg.loss, state.hyper
    key_observe, key_imagine = jax.random.split(key)
    steps = jax.tree.map(lambda x: x[:, cfg.context :], batch.steps)

    tokens = model.agent(dreamer).model.encode(params.model, steps.observation)
    states, posterior = _observe(dreamer, params.model, key_observe, batch, tokens)
    losses = _model_losses(dreamer, params.model, states, posterior, steps, hyper.discount)
    surprise = sum(getattr(scales, name.split("/")[0]) * x for name, x in losses.items())

    lead = steps.reward.shape
    starts = jax.tree.map(lambda x: stop(x).reshape(-1, *x.shape[2:]), states)
    trajectory = _imagine(dreamer, stop(params), key_imagine, starts)
    actors, critics = dreamer.actor_critic, (params.value, state.slow)
    imagined = actor_critic.imagined_losses(actors, (params.policy, *critics), state.range, trajectory, hyper.entropy)
    losses["policy"], losses["value"] = imagined.policy_loss, imagined.value_loss
    if scales.replay_value:
        seen = rssm.features(states if scales.reward_value_gradient else stop(states))
        bootstrap = imagined.returns[0].reshape(lead)
        replayed = Replayed(seen, steps.reward, steps.is_last, steps.is_terminal, bootstrap)
        losses["replay_value"] = actor_critic.replayed_value_loss(actors, critics, replayed, hyper.discount)[0]

    means = {name: x.mean() for name, x in losses.items()}
    total = sum(getattr(scales, name.split("/")[0]) * x for name, x in means.items())
    metrics = imagined.metrics | {f"loss/{name}": x for name, x in means.items()} | {"loss": total}
    metrics["posterior_entropy"] = categorical_entropy(unimix(posterior, cfg.rssm.unimix)).sum(-1).mean()
    return total, (imagined.range, Trained(stop(states), stop(surprise), metrics))


def _observe(dreamer: Dreamer, params: ModelParams, key: Key, batch: Batch, tokens: Array) -> tuple[RSSMState, Array]:
    """Filter the replayed steps. Shapes: tokens [B, T, E] -> states [B, T, ...], posterior logits [B, T, S, K]."""
    cfg, dtype = dreamer.cfg, dreamer.cfg.compute_dtype
    taken = codec.flatten_actions(dreamer.action, dreamer.action_by_name(batch.actions), dtype)
    if cfg.context:
        previous, is_first = taken[:, cfg.context - 1 : -1], batch.steps.is_first[:, cfg.context :]
        state = jax.tree.map(lambda x: x.astype(dtype), batch.start)
    else:
        previous = jnp.concatenate([jnp.zeros_like(taken[:, :1]), taken[:, :-1]], 1)
        is_first = batch.steps.is_first.at[:, 0].set(True)
        state = rssm.start(cfg.rssm, tokens.shape[:1], dtype)

    swap = partial(jnp.swapaxes, axis1=0, axis2=1)
    filtered = filtering.observe_sequence(
        cfg.rssm, params.dyn, key, state, swap(previous), swap(tokens), swap(is_first)
    )
    return jax.tree.map(swap, filtered)


def _model_losses(
    dreamer: Dreamer, params: ModelParams, states: RSSMState, posterior: Array, steps: Step, discount: Array | float
) -> dict[str, Array]:
    """Losses of the world model, [B, T] each. Source: Hafner et al. 2023, equations 4 and 5."""
    cfg, scales = dreamer.cfg, dreamer.cfg.loss
    decoded = heads.apply(dreamer.decoder, params.dec, *(states if scales.reconstruction_gradient else stop(states)))
    observation = dreamer.observation_by_name(steps.observation)
    errors = codec.reconstruction_losses(cfg.codec, dreamer.observation, decoded, observation)
    losses = {f"reconstruction/{name}": error for name, error in errors.items()}

    seen = rssm.features(states if scales.reward_value_gradient else stop(states))
    losses["reward"] = heads.scalar_loss(cfg.heads, heads.apply(dreamer.reward, params.rew, seen), steps.reward)
    continues = (1.0 - steps.is_terminal.astype(jnp.float32)) * discount
    losses["continues"] = heads.continue_loss(heads.apply(dreamer.continues, params.con, seen), continues)

    prior = unimix(rssm.prior(cfg.rssm, params.dyn, states.deter), cfg.rssm.unimix)
    posterior = unimix(posterior, cfg.rssm.unimix)
    divergence = lambda p, q: jnp.maximum(scales.free_nats, categorical_kl(p, q).sum(-1))  # noqa: E731
    if scales.kl_balance:
        losses["dynamics"] = divergence(stop(posterior), prior)
        losses["representation"] = divergence(posterior, stop(prior))
    else:
        losses["dynamics"] = divergence(posterior, prior)
    return losses


def _imagine(dreamer: Dreamer, params: DreamerParams, key: Key, starts: RSSMState) -> Trajectory:
    """Dream from every replayed state. Shapes: starts [N, ...]."""
    # The same numbers as converted by each layer, but not at each step again.
    convert = lambda path, x: x if path[-1].key == "scale" else x.astype(dreamer.cfg.compute_dtype)  # noqa: E731
    params = jax.tree_util.tree_map_with_path(convert, params)
    # All layers take leading axes, so the dream of many starts is the dream of one.
    agent, horizon = model.agent(dreamer), dreamer.cfg.behaviour.horizon
    states, actions = dream.imagine(agent, model.agent_params(params), key, starts, horizon, unroll=UNROLL)
    features = rssm.features(states)
    reward = heads.scalar_mean(dreamer.cfg.heads, heads.apply(dreamer.reward, params.model.rew, features))
    continues = jax.nn.sigmoid(heads.apply(dreamer.continues, params.model.con, features))
    return Trajectory(features, dreamer.action_by_name(actions), reward, continues)
