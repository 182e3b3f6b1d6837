"""The recurrent state-space model: a block-diagonal GRU with a categorical posterior and prior.

Source: Hafner et al. 2023, equation 3, and its published code, whose parameter names are used.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamjax.distributions import onehot_sample, unimix, unimix_probs
from dreamjax.dreamerv3.config import RSSMConfig
from dreamjax.nets.dense import block_product, fan_in, silu_norm
from dreamjax.types import Array, Key, Params, PyTree


class RSSMState(NamedTuple):
    """Latent state at time t."""

    deter: Array  # [..., D] h_t, recurrent
    stoch: Array  # [..., S, K] z_t, one-hot


def init(cfg: RSSMConfig, key: Key, actions: int, tokens: int) -> Params:
    """Draw all parameters, for actions [A] and tokens [E]."""
    latent, block = cfg.stoch * cfg.classes, cfg.deter // cfg.blocks
    kernels = {
        "dynin0": (cfg.deter, cfg.hidden),
        "dynin1": (latent, cfg.hidden),
        "dynin2": (actions, cfg.hidden),
        "dynhid0": (cfg.blocks, block + 3 * cfg.hidden, block),
        "dyngru": (cfg.blocks, block, 3 * block),
        "obslogit": (cfg.hidden, latent),
        "priorlogit": (cfg.hidden, latent),
    }
    for i in range(cfg.posterior_layers):
        kernels[f"obs{i}"] = (cfg.hidden if i else cfg.deter + tokens, cfg.hidden)
    for i in range(cfg.prior_layers):
        kernels[f"prior{i}"] = (cfg.hidden if i else cfg.deter, cfg.hidden)
    params: dict[str, dict[str, Array]] = {}
    for key_one, (name, shape) in zip(jax.random.split(key, len(kernels)), kernels.items(), strict=True):
        outputs = shape[-1] * (shape[0] if len(shape) == 3 else 1)
        params[name] = {"kernel": fan_in()(key_one, shape), "bias": jnp.zeros(outputs)}
        if name not in ("dyngru", "obslogit", "priorlogit"):
            params[f"{name}norm"] = {"scale": jnp.ones(outputs)}
    return params


def start(cfg: RSSMConfig, batch: tuple[int, ...] = (), dtype: str = "float32") -> RSSMState:
    """State before the first step of an episode: zeros. Shapes: -> deter [*batch, D], stoch [*batch, S, K]."""
    return RSSMState(jnp.zeros((*batch, cfg.deter), dtype), jnp.zeros((*batch, cfg.stoch, cfg.classes), dtype))


def reset(state: PyTree, is_first: Array) -> PyTree:
    """Set to zero what came before an episode. Shapes: is_first [...], leaves of state [..., *] -> the same."""

    def mask(x: Array) -> Array:
        return jnp.where(is_first.reshape(is_first.shape + (1,) * (x.ndim - is_first.ndim)), jnp.zeros((), x.dtype), x)

    return jax.tree.map(mask, state)


def core(cfg: RSSMConfig, params: Params, state: RSSMState, action: Array) -> Array:
    """Recurrent step h_t = f(h, z, a)_{t-1}. Shapes: state, action [..., A] at t-1 -> deter [..., D] at t."""
    lead, dtype = state.deter.shape[:-1], state.deter.dtype
    h = _hidden(params, "dynin0", _affine(params, "dynin0", state.deter))
    z = _hidden(params, "dynin1", _affine(params, "dynin1", state.stoch.reshape(*lead, -1)))
    embedded = embed(params, action.astype(dtype))
    own, shared = _split_hidden(cfg, params, dtype)
    blocks = state.deter.reshape(*lead, cfg.blocks, -1)
    y = block_product(blocks, own).reshape(*lead, -1) + jnp.concatenate([h, z, embedded], -1) @ shared
    y = _hidden(params, "dynhid0", y + jnp.broadcast_to(params["dynhid0"]["bias"].astype(dtype), y.shape))
    gates = block_product(y.reshape(blocks.shape), params["dyngru"]["kernel"].astype(dtype))
    gates += jnp.broadcast_to(params["dyngru"]["bias"].astype(dtype).reshape(cfg.blocks, -1), gates.shape)
    return gru(gates, blocks).reshape(state.deter.shape)


def posterior(cfg: RSSMConfig, params: Params, deter: Array, tokens: Array) -> Array:
    """Logits of z given h and the observation, before unimix.

    Shapes: deter [..., D], tokens [..., E] -> [..., S, K].
    """
    return _logits(cfg, params, "obs", cfg.posterior_layers, jnp.concatenate([deter, tokens], -1))


def prior(cfg: RSSMConfig, params: Params, deter: Array) -> Array:
    """Logits of z given h alone, before unimix. Shapes: deter [..., D] -> [..., S, K]."""
    return _logits(cfg, params, "prior", cfg.prior_layers, deter)


def _logits(cfg: RSSMConfig, params: Params, name: str, layers: int, x: Array) -> Array:
    for i in range(layers):
        x = _hidden(params, f"{name}{i}", _affine(params, f"{name}{i}", x))
    x = _affine(params, f"{name}logit", x)
    return x.reshape(*x.shape[:-1], cfg.stoch, cfg.classes)


def sample(cfg: RSSMConfig, uniform: Array, logits: Array, temperature: Array | float = 1.0) -> Array:
    """Draw z with straight-through gradients, in the dtype of the logits.

    Shapes: uniform [..., S] in [0, 1), logits [..., S, K] -> [..., S, K].
    """
    if isinstance(temperature, float) and temperature == 1.0:
        probs = unimix_probs(logits, cfg.unimix)
    else:
        probs = jax.nn.softmax(unimix(logits, cfg.unimix) / temperature)
    return onehot_sample(uniform, probs).astype(logits.dtype)


def noise(cfg: RSSMConfig, key: Key, shape: tuple[int, ...]) -> Array:
    """Draw what turns logits into samples: argmax(logits + noise) is one of softmax(logits), mixed with uniform ones.

    The largest of Gumbel variables is a uniform class, so it decides alone for the share of the uniform distribution.

    Shapes: -> [*shape, S, K] float32. Source: the Gumbel-max trick.
    """
    key_gumbel, key_mix = jax.random.split(key)
    gumbel = jax.random.gumbel(key_gumbel, (*shape, cfg.stoch, cfg.classes))
    if not cfg.unimix:
        return gumbel
    is_uniform = jax.random.uniform(key_mix, (*shape, cfg.stoch, 1)) < cfg.unimix
    return jnp.where(is_uniform & (gumbel == gumbel.max(-1, keepdims=True)), 1e30, gumbel)


def observe(
    cfg: RSSMConfig, params: Params, key: Key, state: RSSMState, action: Array, tokens: Array, is_first: Array
) -> tuple[RSSMState, Array]:
    """Step with the observation: z is drawn from the posterior, whose logits are returned too.

    Shapes: action [..., A] at t-1, tokens [..., E] and is_first [...] at t -> state at t, logits [..., S, K].
    """
    deter = core(cfg, params, *reset((state, action), is_first))
    logits = posterior(cfg, params, deter, tokens)
    return RSSMState(deter, sample(cfg, _uniform(key, logits), logits)), logits


def imagine(
    cfg: RSSMConfig, params: Params, key: Key, state: RSSMState, action: Array, temperature: Array | float = 1.0
) -> RSSMState:
    """Step without the observation: z is drawn from the prior, whose log probabilities the temperature divides.

    Shapes: state, action [..., A] at t-1 -> state at t.
    """
    deter = core(cfg, params, state, action)
    logits = prior(cfg, params, deter)
    return RSSMState(deter, sample(cfg, _uniform(key, logits), logits, temperature))


def _uniform(key: Key, logits: Array) -> Array:
    return jax.random.uniform(key, logits.shape[:-1])


def features(state: RSSMState) -> Array:
    """Concatenate h and z, which heads and policies read. Shapes: -> [..., D + S K]."""
    return jnp.concatenate([state.deter, state.stoch.reshape(*state.stoch.shape[:-2], -1)], -1)


def gru(gates: Array, deter: Array) -> Array:
    """Update the recurrent state, by blocks. Shapes: gates [..., g, 3 D/g], deter [..., g, D/g] -> [..., g, D/g]."""
    reset, candidate, update = jnp.split(gates, 3, -1)
    update = nn.sigmoid(update - 1.0)
    return update * jnp.tanh(nn.sigmoid(reset) * candidate) + (1.0 - update) * deter


def embed(params: Params, action: Array) -> Array:
    """Limit every entry of the action to [-1, 1] and embed it. Shapes: [..., A] -> [..., hidden]."""
    action = action / jax.lax.stop_gradient(jnp.maximum(1.0, jnp.abs(action)))
    return _hidden(params, "dynin2", _affine(params, "dynin2", action))


def _affine(params: Params, name: str, x: Array) -> Array:
    """Apply a dense layer in the dtype of its input. Shapes: [..., I] -> [..., O]."""
    y = x @ params[name]["kernel"].astype(x.dtype)
    return y + jnp.broadcast_to(params[name]["bias"].astype(x.dtype), y.shape)


def _split_hidden(cfg: RSSMConfig, params: Params, dtype: Any) -> tuple[Array, Array]:
    """Split the kernel of the recurrent hidden layer by its inputs, so that those of all blocks are multiplied once.

    Shapes: -> own [g, D/g, D/g], shared [3 hidden, D], for the embedded state, latent and action.
    """
    kernel, block = params["dynhid0"]["kernel"].astype(dtype), cfg.deter // cfg.blocks
    return kernel[:, :block], jnp.swapaxes(kernel[:, block:], 0, 1).reshape(-1, cfg.deter)


def _hidden(params: Params, name: str, x: Array) -> Array:
    return silu_norm(params[f"{name}norm"]["scale"], x)
