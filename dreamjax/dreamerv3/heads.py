"""Heads that predict numbers from the features of a latent state: reward, continue and value.

Source: Hafner et al. 2023, equations 4, 5, 10 and 11, and its published code, whose parameter names are used.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamjax.distributions import symexp, symexp_bins, symlog, twohot_loss, twohot_mean
from dreamjax.dreamerv3.config import HeadsConfig
from dreamjax.nets.dense import MLP, Linear
from dreamjax.types import Array, Params


class ScalarHead(nn.Module):
    """Predict a real number: logits of its two-hot distribution or, without `twohot`, its symlog or itself."""

    cfg: HeadsConfig
    layers: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """Shapes: [..., F] -> [..., bins], or [..., 1] without `twohot`."""
        x = MLP(self.layers, self.cfg.units, name="mlp")(features)
        outputs = self.cfg.bins if self.cfg.twohot else 1
        return Linear((outputs,), 0.0 if self.cfg.zero_init else 1.0, name="head/logits")(x)


def scalar_mean(cfg: HeadsConfig, output: Array) -> Array:
    """Expected value of what a `ScalarHead` predicts. Shapes: [..., bins] or [..., 1] -> [...] float32."""
    if cfg.twohot:
        return twohot_mean(output, symexp_bins(cfg.bins))
    number = output[..., 0].astype(jnp.float32)
    return number if cfg.huber else symexp(number)


def scalar_loss(cfg: HeadsConfig, output: Array, target: Array) -> Array:
    """Loss of a `ScalarHead`: cross entropy with the two-hot target or, without `twohot`, squared error of the symlog.

    With `huber` it is sqrt(error² + 1) - 1: half the squared error where that is small, the absolute one elsewhere.

    Shapes: output [..., bins] or [..., 1], target [...] -> [...] float32.
    """
    if cfg.twohot:
        return twohot_loss(output, target, symexp_bins(cfg.bins))
    number, target = output[..., 0].astype(jnp.float32), target.astype(jnp.float32)
    if cfg.huber:
        return jnp.sqrt((number - target) ** 2 + 1.0) - 1.0
    return (number - symlog(target)) ** 2


class ContinueHead(nn.Module):
    """Predict whether the episode continues."""

    cfg: HeadsConfig

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """Shapes: features [..., F] -> logit [...] float32."""
        x = MLP(self.cfg.continue_layers, self.cfg.units, name="mlp")(features)
        return Linear((), name="head/logit")(x).astype(jnp.float32)


def continue_loss(logit: Array, target: Array) -> Array:
    """Cross entropy, in nats, of the predicted with a given probability to continue. Shapes: both [...] -> [...]."""
    return -(target * jax.nn.log_sigmoid(logit) + (1.0 - target) * jax.nn.log_sigmoid(-logit))


def apply(module: nn.Module, params: Params, *args: Any) -> Any:
    """Call a module with its parameters."""
    return module.apply({"params": params}, *args)
