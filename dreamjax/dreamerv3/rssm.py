"""The recurrent state-space model: a block-diagonal GRU with a categorical posterior and prior.

Source: Hafner et al. 2023, equation 3, and its published code, whose parameter names are used.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamjax.distributions import onehot_sample, unimix
from dreamjax.dreamerv3.config import RSSMConfig
from dreamjax.nets.dense import BlockLinear, Linear, RMSNorm
from dreamjax.types import Array, Key, Params


class RSSMState(NamedTuple):
    """Latent state at time t."""

    deter: Array  # [..., D] h_t, what is remembered
    stoch: Array  # [..., S, K] z_t, one-hot


class Network(nn.Module):
    """All layers. They take any leading axes and compute in the dtype of the recurrent state."""

    cfg: RSSMConfig

    def setup(self) -> None:
        """Make the layers."""
        cfg = self.cfg
        hidden = [f"dynin{i}" for i in range(3)]
        hidden += [f"obs{i}" for i in range(cfg.posterior_layers)] + [f"prior{i}" for i in range(cfg.prior_layers)]
        for name in hidden:
            setattr(self, name, Linear((cfg.hidden,)))
            setattr(self, f"{name}norm", RMSNorm())
        self.dynhid0 = BlockLinear(cfg.deter, cfg.blocks)
        self.dynhid0norm = RMSNorm()
        self.dyngru = BlockLinear(3 * cfg.deter, cfg.blocks)
        self.obslogit = Linear((cfg.stoch, cfg.classes))
        self.priorlogit = Linear((cfg.stoch, cfg.classes))

    def core(self, state: RSSMState, action: Array) -> Array:
        """Remember: h_t of (h, z, a) at t-1. Shapes: action [..., A] -> deter [..., D]."""
        cfg, lead = self.cfg, state.deter.shape[:-1]
        action = action / jax.lax.stop_gradient(jnp.maximum(1.0, jnp.abs(action)))
        inputs = (state.deter, state.stoch.reshape(*lead, -1), action)
        x = jnp.concatenate([self._hidden(f"dynin{i}", part) for i, part in enumerate(inputs)], -1)
        # Every block reads its own part of h, and all of x.
        own = state.deter.reshape(*lead, cfg.blocks, -1)
        shared = jnp.broadcast_to(x[..., None, :], (*lead, cfg.blocks, x.shape[-1]))
        y = self.dynhid0(jnp.concatenate([own, shared], -1))
        y = nn.silu(self.dynhid0norm(y.reshape(*lead, -1))).reshape(own.shape)
        reset, candidate, update = jnp.split(self.dyngru(y), 3, -1)
        update = nn.sigmoid(update - 1.0)
        deter = update * jnp.tanh(nn.sigmoid(reset) * candidate) + (1.0 - update) * own
        return deter.reshape(state.deter.shape)

    def posterior(self, deter: Array, tokens: Array) -> Array:
        """Logits of z_t, given what was observed. Shapes: deter [..., D], tokens [..., E] -> [..., S, K]."""
        x = jnp.concatenate([deter, tokens], -1)
        for i in range(self.cfg.posterior_layers):
            x = self._hidden(f"obs{i}", x)
        return self.obslogit(x)

    def prior(self, deter: Array) -> Array:
        """Logits of z_t, given only what is remembered. Shapes: deter [..., D] -> [..., S, K]."""
        for i in range(self.cfg.prior_layers):
            deter = self._hidden(f"prior{i}", deter)
        return self.priorlogit(deter)

    def __call__(self, state: RSSMState, action: Array, tokens: Array) -> tuple[Array, Array]:
        """Create every parameter."""
        deter = self.core(state, action)
        return self.posterior(deter, tokens), self.prior(deter)

    def _hidden(self, name: str, x: Array) -> Array:
        return nn.silu(getattr(self, f"{name}norm")(getattr(self, name)(x)))


def start(cfg: RSSMConfig, batch: tuple[int, ...] = (), dtype: str = "float32") -> RSSMState:
    """State before the first step of an episode: zero."""
    return RSSMState(jnp.zeros((*batch, cfg.deter), dtype), jnp.zeros((*batch, cfg.stoch, cfg.classes), dtype))


def reset(state: RSSMState, action: Array, is_first: Array) -> tuple[RSSMState, Array]:
    """Forget what came before an episode. Shapes: is_first [...], action [..., A]."""

    def mask(x: Array) -> Array:
        return jnp.where(is_first.reshape(is_first.shape + (1,) * (x.ndim - is_first.ndim)), jnp.zeros((), x.dtype), x)

    return jax.tree.map(mask, state), mask(action)


def core(cfg: RSSMConfig, params: Params, state: RSSMState, action: Array) -> Array:
    """Remember one step. Shapes: state at t-1, action [..., A] at t-1 -> deter [..., D] at t."""
    return _apply(cfg, params, "core", state, action)


def posterior(cfg: RSSMConfig, params: Params, deter: Array, tokens: Array) -> Array:
    """Logits of z, before the uniform share. Shapes: deter [..., D], tokens [..., E] -> [..., S, K]."""
    return _apply(cfg, params, "posterior", deter, tokens)


def prior(cfg: RSSMConfig, params: Params, deter: Array) -> Array:
    """Logits of z, before the uniform share. Shapes: deter [..., D] -> [..., S, K]."""
    return _apply(cfg, params, "prior", deter)


def _apply(cfg: RSSMConfig, params: Params, method: str, *args: Any) -> Any:
    return Network(cfg).apply({"params": params}, *args, method=method)


def sample(cfg: RSSMConfig, key: Key, logits: Array, temperature: Array | float = 1.0) -> Array:
    """Draw z with straight-through gradients, in the dtype of the logits. Shapes: [..., S, K] -> [..., S, K]."""
    log_probs = unimix(logits, cfg.unimix) / temperature
    return onehot_sample(key, log_probs).astype(logits.dtype)


def observe(
    cfg: RSSMConfig, params: Params, key: Key, state: RSSMState, action: Array, tokens: Array, is_first: Array
) -> tuple[RSSMState, Array]:
    """Take in one step of experience; also the posterior's logits.

    Shapes: action [..., A] at t-1, tokens [..., E] and is_first [...] at t -> state at t, logits [..., S, K].
    """
    deter = core(cfg, params, *reset(state, action, is_first))
    logits = posterior(cfg, params, deter, tokens)
    return RSSMState(deter, sample(cfg, key, logits)), logits


def imagine(
    cfg: RSSMConfig, params: Params, key: Key, state: RSSMState, action: Array, temperature: Array | float = 1.0
) -> RSSMState:
    """Take one step without experience: z comes from the prior, whose log probabilities the temperature divides."""
    deter = core(cfg, params, state, action)
    return RSSMState(deter, sample(cfg, key, prior(cfg, params, deter), temperature))


def features(state: RSSMState) -> Array:
    """What heads and policies read: h and z. Shapes: -> [..., D + S K]."""
    return jnp.concatenate([state.deter, state.stoch.reshape(*state.stoch.shape[:-2], -1)], -1)
