"""Reward, continue, actor and critic.

Source: Hafner et al. 2023, equations 4 to 6 and 11, and its published code, whose parameter names are used.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.distributions import (
    categorical_entropy,
    normal_entropy,
    normal_log_prob,
    symexp,
    symexp_bins,
    symlog,
    twohot_loss,
    twohot_mean,
    unimix,
)
from dreamjax.dreamerv3.codec import Spaces, classes
from dreamjax.dreamerv3.config import HeadsConfig
from dreamjax.nets.dense import MLP, Linear
from dreamjax.types import Array, Key, Params, Space


class ScalarHead(nn.Module):
    """A number, as logits of its two-hot distribution; without `twohot`, in symlog space."""

    cfg: HeadsConfig
    layers: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """Shapes: [..., F] -> [..., bins], or [..., 1] without `twohot`."""
        x = MLP(self.layers, self.cfg.units, name="mlp")(features)
        outputs = self.cfg.bins if self.cfg.twohot else 1
        return Linear((outputs,), 0.0 if self.cfg.zero_init else 1.0, name="head/logits")(x)


def scalar_mean(cfg: HeadsConfig, output: Array) -> Array:
    """Value of a `ScalarHead`'s output, [...] float32."""
    if cfg.twohot:
        return twohot_mean(output, symexp_bins(cfg.bins))
    return symexp(output[..., 0].astype(jnp.float32))


def scalar_loss(cfg: HeadsConfig, output: Array, target: Array) -> Array:
    """Loss of a `ScalarHead`'s output. Shapes: target [...] -> [...] float32."""
    if cfg.twohot:
        return twohot_loss(output, target, symexp_bins(cfg.bins))
    return (output[..., 0].astype(jnp.float32) - symlog(target.astype(jnp.float32))) ** 2


class ContinueHead(nn.Module):
    """Logit of the episode going on."""

    cfg: HeadsConfig

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """Shapes: [..., F] -> [...] float32."""
        x = MLP(self.cfg.continue_layers, self.cfg.units, name="mlp")(features)
        return Linear((), name="head/logit")(x).astype(jnp.float32)


def continue_loss(logit: Array, target: Array) -> Array:
    """Cross entropy with a probability. Shapes: [...] -> [...]."""
    return -(target * jax.nn.log_sigmoid(logit) + (1.0 - target) * jax.nn.log_sigmoid(-logit))


class Normal(NamedTuple):
    """Distribution of a continuous action; neither squashed nor cut off."""

    mean: Array  # [..., *shape] float32
    std: Array  # [..., *shape] float32


class Categorical(NamedTuple):
    """Distribution of a discrete action."""

    log_probs: Array  # [..., *shape, classes] float32


Actions = dict[str, Normal | Categorical]  # by name


class Actor(nn.Module):
    """Distributions of all actions, by name."""

    cfg: HeadsConfig
    spaces: Spaces

    @nn.compact
    def __call__(self, features: Array) -> Actions:
        """Shapes: [..., F] -> one distribution per action."""
        cfg, actions = self.cfg, Actions()
        x = MLP(cfg.policy_layers, cfg.units, name="mlp")(features)
        for name, space in self.spaces:
            if space.is_discrete:
                logits = Linear((*space.shape, classes(space)), 0.01, name=f"head/{name}/logits")(x)
                actions[name] = Categorical(unimix(logits, cfg.policy_unimix))
            else:
                mean = jnp.tanh(Linear(space.shape, 0.01, name=f"head/{name}/mean")(x))
                std = nn.sigmoid(Linear(space.shape, 0.01, name=f"head/{name}/stddev")(x) + 2.0)
                std = (cfg.max_std - cfg.min_std) * std + cfg.min_std
                actions[name] = Normal(mean.astype(jnp.float32), std.astype(jnp.float32))
        return actions


def check_actions(spaces: Mapping[str, Space]) -> Spaces:
    """Name the spaces of actions. Raises ValueError for one that no actor could act in."""
    for name, space in spaces.items():
        if space.is_discrete and not np.isfinite([space.low, space.high]).all():
            raise ValueError(f"discrete action {name!r} needs finite bounds, got {space}")
        if not space.is_discrete and (space.low, space.high) != (-1.0, 1.0):
            raise ValueError(f"continuous action {name!r} must lie in [-1, 1], got {space}; rescale the environment's")
    return tuple(spaces.items())


def sample_actions(key: Key, actions: Actions, spaces: Spaces) -> dict[str, Array]:
    """Draw one action per name, in the dtype of its space. Continuous ones may leave [-1, 1]."""
    drawn = {}
    for (name, space), key_one in zip(spaces, jax.random.split(key, len(spaces)), strict=True):
        match actions[name]:
            case Normal(mean, std):
                drawn[name] = (mean + std * jax.random.normal(key_one, mean.shape)).astype(space.dtype)
            case Categorical(log_probs):
                drawn[name] = (jax.random.categorical(key_one, log_probs) + int(space.low)).astype(space.dtype)
    return drawn


def log_prob(actions: Actions, taken: Mapping[str, Array], spaces: Spaces) -> Array:
    """Log probability of actions, summed over names and entries. Shapes: [..., *shape] of each -> [...] float32."""
    total = jnp.float32(0)
    for name, space in spaces:
        axes = tuple(range(-len(space.shape), 0))
        match actions[name]:
            case Normal(mean, std):
                total += normal_log_prob(mean, std, taken[name].astype(jnp.float32)).sum(axes)
            case Categorical(log_probs):
                chosen = jax.nn.one_hot(taken[name].astype(jnp.int32) - int(space.low), classes(space))
                total += (chosen * log_probs).sum(-1).sum(axes)
    return total


def entropies(actions: Actions, spaces: Spaces) -> dict[str, Array]:
    """Entropy of each action in nats, summed over its entries. Shapes: -> [...] float32 of each."""
    found = {}
    for name, space in spaces:
        axes = tuple(range(-len(space.shape), 0))
        match actions[name]:
            case Normal(_, std):
                found[name] = normal_entropy(std).sum(axes)
            case Categorical(log_probs):
                found[name] = categorical_entropy(log_probs).sum(axes)
    return found


def flatten_actions(spaces: Spaces, actions: Mapping[str, Array], dtype: str) -> Array:
    """Lay actions end to end, as the RSSM reads them: in the order of their names, discrete ones one-hot.

    Shapes: [..., *shape] of each -> [..., A].
    """
    parts = []
    for name, space in sorted(spaces, key=lambda pair: pair[0]):
        x = actions[name]
        lead = x.shape[: x.ndim - len(space.shape)]
        if space.is_discrete:
            x = jax.nn.one_hot(x.astype(jnp.int32) - int(space.low), classes(space))
        parts.append(x.reshape(*lead, -1).astype(dtype))
    return jnp.concatenate(parts, -1)


def apply(module: nn.Module, params: Params, *args: Any) -> Any:
    """Run a module on its parameters."""
    return module.apply({"params": params}, *args)
