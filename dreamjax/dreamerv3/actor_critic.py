"""Actor and critic: distributions over actions, and the losses of learning from imagined and replayed trajectories.

Source: Hafner et al. 2023, equations 6 to 13, and its published code, whose parameter names are used and which is
followed where the two differ: rewards and continues are those of the state that is arrived at, and the critic is also
trained on replayed experience.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamjax.distributions import categorical_entropy, normal_entropy, normal_log_prob, unimix
from dreamjax.dreamerv3 import heads
from dreamjax.dreamerv3.codec import Spaces, check_discrete, classes
from dreamjax.dreamerv3.config import BehaviourConfig, HeadsConfig
from dreamjax.dreamerv3.heads import ScalarHead
from dreamjax.nets.dense import MLP, Linear
from dreamjax.returns import ReturnRange, lambda_returns, range_scale, range_update
from dreamjax.types import Action, Array, Init, Key, Metrics, Params, Policy

stop = jax.lax.stop_gradient


class Normal(NamedTuple):
    """Distribution of a continuous action, without bounds."""

    mean: Array  # [..., *shape] float32, in (-1, 1)
    std: Array  # [..., *shape] float32


class Categorical(NamedTuple):
    """Distribution of a discrete action."""

    log_probs: Array  # [..., *shape, classes] float32


Distributions = dict[str, Normal | Categorical]  # by name of the action


class Actor(nn.Module):
    """Predict a distribution for every action."""

    cfg: HeadsConfig
    spaces: Spaces

    @nn.compact
    def __call__(self, features: Array) -> Distributions:
        """Shapes: features [..., F] -> `Normal` or `Categorical` by name."""
        cfg, distributions = self.cfg, Distributions()
        x = MLP(cfg.policy_layers, cfg.units, name="mlp")(features)
        for name, space in self.spaces:
            if space.is_discrete:
                logits = Linear((*space.shape, classes(space)), 0.01, name=f"head/{name}/logits")(x)
                distributions[name] = Categorical(unimix(logits, cfg.policy_unimix))
            else:
                mean = jnp.tanh(Linear(space.shape, 0.01, name=f"head/{name}/mean")(x))
                std = nn.sigmoid(Linear(space.shape, 0.01, name=f"head/{name}/stddev")(x) + 2.0)
                std = (cfg.max_std - cfg.min_std) * std + cfg.min_std
                distributions[name] = Normal(mean.astype(jnp.float32), std.astype(jnp.float32))
        return distributions


@dataclass(frozen=True)
class ActorCritic:
    """Describe the actor and the critic for named action spaces. Hashable."""

    behaviour: BehaviourConfig
    heads: HeadsConfig
    action: Spaces
    rematerialize: bool = False

    @cached_property
    def actor(self) -> Actor:
        return (nn.remat(Actor) if self.rematerialize else Actor)(self.heads, self.action)

    @cached_property
    def critic(self) -> ScalarHead:
        return (nn.remat(ScalarHead) if self.rematerialize else ScalarHead)(self.heads, self.heads.value_layers)


def check_actions(spaces: Spaces) -> None:
    """Raise ValueError, with the name of the space, where the actor cannot act in it."""
    for name, space in spaces:
        if space.is_discrete:
            check_discrete("action", name, space)
        elif (space.low, space.high) != (-1.0, 1.0):
            raise ValueError(
                f"continuous action {name!r} must lie in [-1, 1], got {space}; `envs.adapted` brings those of a host "
                "environment there"
            )


def sample_actions(key: Key, distributions: Distributions, spaces: Spaces) -> dict[str, Array]:
    """Draw every action, in the dtype of its space. Continuous ones may leave [-1, 1].

    Shapes: -> [..., *space.shape] by name.
    """
    drawn = {}
    for (name, space), key_one in zip(spaces, jax.random.split(key, len(spaces)), strict=True):
        match distributions[name]:
            case Normal(mean, std):
                drawn[name] = (mean + std * jax.random.normal(key_one, mean.shape)).astype(space.dtype)
            case Categorical(log_probs):
                drawn[name] = (jax.random.categorical(key_one, log_probs) + int(space.low)).astype(space.dtype)
    return drawn


def policy(actor_critic: ActorCritic, structure: Any, init: Init) -> Policy:
    """Let the actor act, sampling; `structure` is the `jax.tree.structure` of its actions, `init` draws its parameters.

    Shapes: features [F] -> actions [*space.shape]; all layers take leading axes.
    """

    def act(params: Params, key: Key, features: Array) -> Action:
        distributions = heads.apply(actor_critic.actor, params, features)
        drawn = sample_actions(key, distributions, actor_critic.action)
        return jax.tree.unflatten(structure, [drawn[name] for name, _ in actor_critic.action])

    return Policy(init, act)


@lru_cache(maxsize=128)
def value(actor_critic: ActorCritic) -> Callable[[Params, Array], Array]:
    """Let the critic say what return follows, discounted: a planner's `value`, whose parameters `DreamerParams` has.

    Shapes: (params, features [..., F]) -> [...].
    """

    def predict(params: Params, features: Array) -> Array:
        return heads.scalar_mean(actor_critic.heads, heads.apply(actor_critic.critic, params, features))

    return predict


def log_prob(distributions: Distributions, actions: Mapping[str, Array], spaces: Spaces) -> Array:
    """Log probability of actions, summed over names and entries.

    Shapes: actions [..., *space.shape] by name -> [...] float32.
    """
    total = jnp.float32(0)
    for name, space in spaces:
        axes = tuple(range(-len(space.shape), 0))
        match distributions[name]:
            case Normal(mean, std):
                total += normal_log_prob(mean, std, actions[name].astype(jnp.float32)).sum(axes)
            case Categorical(log_probs):
                chosen = jax.nn.one_hot(actions[name].astype(jnp.int32) - int(space.low), classes(space))
                total += (chosen * log_probs).sum(-1).sum(axes)
    return total


def entropies(distributions: Distributions, spaces: Spaces) -> dict[str, Array]:
    """Entropy of every action in nats, summed over its entries. Shapes: -> [...] float32 by name."""
    found = {}
    for name, space in spaces:
        axes = tuple(range(-len(space.shape), 0))
        match distributions[name]:
            case Normal(_, std):
                found[name] = normal_entropy(std).sum(axes)
            case Categorical(log_probs):
                found[name] = categorical_entropy(log_probs).sum(axes)
    return found


class Trajectory(NamedTuple):
    """N imagined trajectories of H steps; no gradient goes into them."""

    features: Array  # [H+1, N, F]
    actions: Mapping[str, Array]  # [H, N, ...] by name, each taken in the state of the same index
    reward: Array  # [H+1, N] float32, predicted
    continues: Array  # [H+1, N] float32, predicted probability to continue; contains the discount


class Imagined(NamedTuple):
    """Losses on imagined trajectories, and what came with them."""

    policy_loss: Array  # [H, N]
    value_loss: Array  # [H, N]
    returns: Array  # [H, N], lambda returns
    range: ReturnRange
    metrics: Metrics


def imagined_losses(
    actor_critic: ActorCritic,
    params: tuple[Params, Params, Params],
    range_: ReturnRange,
    trajectory: Trajectory,
    entropy: Array | float,
) -> Imagined:
    """Losses of actor and critic on imagined trajectories.

    The actor follows REINFORCE with returns divided by their range, or normalised advantages, as the configuration
    says, and is rewarded for its entropy at the scale `entropy` []. The critic predicts the lambda returns and is
    regularised towards the slow critic. Step t is weighted by the predicted probability that the trajectory reaches it.

    `params` are those of the actor, the critic and the slow critic.
    """
    cfg, settings = actor_critic.heads, actor_critic.behaviour
    policy, value, slow = params
    features, actions, reward, continues = stop(trajectory)
    output = heads.apply(actor_critic.critic, value, features)
    mean = stop(heads.scalar_mean(cfg, output))
    slow_mean = heads.scalar_mean(cfg, heads.apply(actor_critic.critic, stop(slow), features))

    never = jnp.zeros_like(continues)
    # The predicted continue contains the discount.
    returns = lambda_returns(reward, never, 1.0 - continues, mean, 1.0, settings.mix)
    weight = jnp.cumprod(continues, 0)[:-1]

    percentiles = (settings.return_low, settings.return_high)
    range_ = range_update(range_, returns, settings.return_rate, *percentiles)
    scale = range_scale(range_, settings.return_limit) if settings.normalize_returns else jnp.float32(1)
    advantage = (returns - mean[:-1]) / scale
    if settings.normalize_advantages:
        advantage = (advantage - advantage.mean()) / jnp.maximum(advantage.std(), 1e-8)

    distributions = heads.apply(actor_critic.actor, policy, features[:-1])
    entropy_of = entropies(distributions, actor_critic.action)
    log_probs = log_prob(distributions, actions, actor_critic.action)
    policy_loss = -weight * (log_probs * advantage + entropy * sum(entropy_of.values()))
    value_loss = weight * _value_loss(actor_critic, output[:-1], returns, slow_mean[:-1])
    metrics = {
        "advantage": advantage.mean(),
        "advantage_std": advantage.std(),
        "advantage_magnitude": jnp.abs(advantage).mean(),
        "imagined_reward": reward.mean(),
        "imagined_continue": continues.mean(),
        "imagined_return": returns.mean(),
        "return_range": range_.high - range_.low,
        "value": mean.mean(),
        "slow_value": slow_mean.mean(),
        "weight": weight.mean(),
    } | {f"entropy/{name}": x.mean() for name, x in entropy_of.items()}
    return Imagined(policy_loss, value_loss, returns, range_, metrics)


class Replayed(NamedTuple):
    """B replayed sequences of T steps, as the critic learns from them."""

    features: Array  # [B, T, F]; the gradient of the loss reaches them
    reward: Array  # [B, T] float32
    is_last: Array  # [B, T] bool
    is_terminal: Array  # [B, T] bool
    bootstrap: Array  # [B, T] float32, the return imagined from each state


def replayed_value_loss(
    actor_critic: ActorCritic, params: tuple[Params, Params], replayed: Replayed, discount: Array | float
) -> tuple[Array, Array]:
    """Loss of the critic on replayed experience, and the lambda returns that it predicts.

    The last step of an episode has no return to predict. `params` are those of the critic and of the slow critic.

    Shapes: -> loss [B, T-1], returns [B, T-1].
    """
    features, reward, is_last, is_terminal, bootstrap = replayed
    mix, (value, slow) = actor_critic.behaviour.mix, params
    returns = stop(lambda_returns(reward.T, is_last.T, is_terminal.T, bootstrap.T, discount, mix)).T
    output = heads.apply(actor_critic.critic, value, features)[:, :-1]
    slow_output = heads.apply(actor_critic.critic, stop(slow), stop(features[:, :-1]))
    loss = _value_loss(actor_critic, output, returns, heads.scalar_mean(actor_critic.heads, slow_output))
    return (1.0 - is_last[:, :-1].astype(jnp.float32)) * loss, returns


def _value_loss(actor_critic: ActorCritic, output: Array, returns: Array, slow_value: Array) -> Array:
    regularizer = actor_critic.behaviour.slow_regularizer
    loss = heads.scalar_loss(actor_critic.heads, output, stop(returns))
    if regularizer:
        loss += regularizer * heads.scalar_loss(actor_critic.heads, output, stop(slow_value))
    return loss
