"""Learning to act in imagination: the losses of actor and critic.

Source: Hafner et al. 2023, equations 7 to 13, and its published code: rewards and continues are those of the state
that is arrived at, and the critic is also trained on replayed experience.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamjax.dreamerv3 import heads
from dreamjax.dreamerv3.model import Dreamer, DreamerParams
from dreamjax.returns import ReturnRange, lambda_returns, range_scale, range_update
from dreamjax.types import Action, Array, Metrics, Params

stop = jax.lax.stop_gradient


class Imagined(NamedTuple):
    """What came of imagined trajectories."""

    policy_loss: Array  # [H, N]
    value_loss: Array  # [H, N]
    returns: Array  # [H, N]
    range: ReturnRange
    reward: Array  # [H+1, N]
    continues: Array  # [H+1, N]
    metrics: Metrics


def imagined_losses(
    dreamer: Dreamer, params: DreamerParams, slow: Params, features: Array, actions: Action, range_: ReturnRange
) -> Imagined:
    """Losses of actor and critic on imagined trajectories, which get no gradient themselves.

    The actor follows REINFORCE with returns divided by their range; the critic the lambda returns, held back by the
    slow critic. Step t counts as much as the model thinks the trajectory still goes on there.

    Shapes: features [H+1, N, F], actions [H, N, ...], each taken at the state of the same index.
    """
    cfg, settings = dreamer.cfg, dreamer.cfg.behaviour
    features = stop(features)
    reward = heads.scalar_mean(cfg.heads, heads.apply(dreamer.reward, stop(params.rew), features))
    continues = jax.nn.sigmoid(heads.apply(dreamer.continues, stop(params.con), features))
    output = heads.apply(dreamer.critic, params.val, features)
    value = stop(heads.scalar_mean(cfg.heads, output))
    slow_value = heads.scalar_mean(cfg.heads, heads.apply(dreamer.critic, stop(slow), features))

    never = jnp.zeros_like(continues)
    # The predicted continue contains the discount.
    returns = lambda_returns(reward, never, 1.0 - continues, value, 1.0, settings.mix)
    weight = jnp.cumprod(continues, 0)[:-1]

    percentiles = (settings.return_low, settings.return_high)
    range_ = range_update(range_, returns, settings.return_rate, *percentiles)
    scale = range_scale(range_, settings.return_limit) if settings.normalize_returns else jnp.float32(1)
    advantage = (returns - value[:-1]) / scale

    policy = heads.apply(dreamer.actor, params.pol, features[:-1])
    entropy = heads.entropies(policy, dreamer.action)
    log_prob = heads.log_prob(policy, actions, dreamer.action)
    policy_loss = -weight * (log_prob * advantage + settings.entropy * sum(entropy.values()))
    value_loss = weight * _value_loss(dreamer, output[:-1], returns, slow_value[:-1])
    metrics = {
        "advantage": advantage.mean(),
        "advantage_std": advantage.std(),
        "advantage_magnitude": jnp.abs(advantage).mean(),
        "imagined_reward": reward.mean(),
        "imagined_continue": continues.mean(),
        "imagined_return": returns.mean(),
        "return_range": range_.high - range_.low,
        "value": value.mean(),
        "slow_value": slow_value.mean(),
        "weight": weight.mean(),
    } | {f"entropy/{name}": x.mean() for name, x in entropy.items()}
    return Imagined(policy_loss, value_loss, returns, range_, reward, continues, metrics)


def replayed_value_loss(
    dreamer: Dreamer,
    params: DreamerParams,
    slow: Params,
    features: Array,
    reward: Array,
    is_last: Array,
    is_terminal: Array,
    bootstrap: Array,
) -> tuple[Array, Array]:
    """Loss of the critic on replayed experience, whose gradient also reaches the features; and the returns.

    The bootstrap of each state is the return imagined from it. The last step of an episode has no target of its own.

    Shapes: features [B, T, F], the others [B, T] -> loss [B, T-1], returns [B, T-1].
    """
    cfg, settings = dreamer.cfg, dreamer.cfg.behaviour
    given = reward.T, is_last.T, is_terminal.T, bootstrap.T
    returns = stop(lambda_returns(*given, settings.discount, settings.mix)).T
    output = heads.apply(dreamer.critic, params.val, features)[:, :-1]
    slow_value = heads.scalar_mean(cfg.heads, heads.apply(dreamer.critic, stop(slow), stop(features[:, :-1])))
    loss = _value_loss(dreamer, output, returns, slow_value)
    return (1.0 - is_last[:, :-1].astype(jnp.float32)) * loss, returns


def _value_loss(dreamer: Dreamer, output: Array, returns: Array, slow_value: Array) -> Array:
    cfg = dreamer.cfg
    loss = heads.scalar_loss(cfg.heads, output, stop(returns))
    if cfg.behaviour.slow_regularizer:
        loss += cfg.behaviour.slow_regularizer * heads.scalar_loss(cfg.heads, output, stop(slow_value))
    return loss
