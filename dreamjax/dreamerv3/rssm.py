"""The recurrent state-space model: a block-diagonal GRU with a categorical posterior and prior.

Source: Hafner et al. 2023, equation 3, and its published code, whose parameter names are used.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamjax.distributions import onehot_sample, unimix, unimix_probs
from dreamjax.dreamerv3.config import RSSMConfig
from dreamjax.nets.dense import block_product, fan_in, rms_norm
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
    embedded = _embed(params, action.astype(state.deter.dtype))
    return _core(cfg, _affine(_weights(cfg, params, state.deter.dtype)), params, state, embedded)


def posterior(cfg: RSSMConfig, params: Params, deter: Array, tokens: Array) -> Array:
    """Logits of z given h and the observation, before unimix.

    Shapes: deter [..., D], tokens [..., E] -> [..., S, K].
    """
    affine = _affine(_weights(cfg, params, deter.dtype))
    return _posterior(cfg, affine, params, deter, _read(cfg, params, tokens))


def prior(cfg: RSSMConfig, params: Params, deter: Array) -> Array:
    """Logits of z given h alone, before unimix. Shapes: deter [..., D] -> [..., S, K]."""
    for i in range(cfg.prior_layers):
        deter = _hidden(params, f"prior{i}", _layer(params, f"prior{i}", deter))
    return _latent(cfg, _layer(params, "priorlogit", deter))


def sample(cfg: RSSMConfig, uniform: Array, logits: Array, temperature: Array | float = 1.0) -> Array:
    """Draw z with straight-through gradients, in the dtype of the logits.

    Shapes: uniform [..., S] in [0, 1), logits [..., S, K] -> [..., S, K].
    """
    if isinstance(temperature, float) and temperature == 1.0:
        probs = unimix_probs(logits, cfg.unimix)
    else:
        probs = jax.nn.softmax(unimix(logits, cfg.unimix) / temperature)
    return onehot_sample(uniform, probs).astype(logits.dtype)


def observe(
    cfg: RSSMConfig, params: Params, key: Key, state: RSSMState, action: Array, tokens: Array, is_first: Array
) -> tuple[RSSMState, Array]:
    """Step with the observation: z is drawn from the posterior, whose logits are returned too.

    Shapes: action [..., A] at t-1, tokens [..., E] and is_first [...] at t -> state at t, logits [..., S, K].
    """
    deter = core(cfg, params, *reset((state, action), is_first))
    logits = posterior(cfg, params, deter, tokens)
    return RSSMState(deter, sample(cfg, _uniform(key, logits), logits)), logits


def observe_sequence(
    cfg: RSSMConfig, params: Params, key: Key, state: RSSMState, actions: Array, tokens: Array, is_first: Array
) -> tuple[RSSMState, Array]:
    """`observe` T steps of B sequences, with everything that does not depend on the state computed at once.

    Shapes: state [B, ...] before the first step, actions [T, B, A], each taken before the step of the same
    index, tokens [T, B, E], is_first [T, B] -> states [T, B, ...], logits [T, B, S, K].
    """
    embedded = _embed(params, reset(actions, is_first).astype(state.deter.dtype))
    scales = {name: leaf for name, leaf in params.items() if name.endswith("norm")}
    weights = _weights(cfg, params, state.deter.dtype)
    uniform = jax.random.uniform(key, (*is_first.shape, cfg.stoch))
    return _scan_steps(cfg, weights, scales, state, embedded, _read(cfg, params, tokens), uniform, is_first)


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


Affine = Callable[[str, Array], Array]  # name of a layer, its inputs -> its outputs


class _Weights(NamedTuple):
    """Kernel and bias of one affine map."""

    kernel: Array  # [I, O], or [g, I, O] for inputs [..., g, I]
    bias: Array  # [O], or [g, O]


def _weights(cfg: RSSMConfig, params: Params, dtype: Any) -> dict[str, _Weights]:
    """Prepare the weights of the recurrent step.

    A kernel with several inputs is split by input, so that inputs which all blocks share, or which are known before
    the recurrence, are multiplied once.
    """
    kernel, bias = ({name: leaf[kind] for name, leaf in params.items() if kind in leaf} for kind in ("kernel", "bias"))
    block, hid, g = cfg.deter // cfg.blocks, kernel["dynhid0"], cfg.blocks
    cut = {
        "own": (hid[:, :block], bias["dynhid0"].reshape(g, -1)),
        "shared": (jnp.swapaxes(hid[:, block:], 0, 1).reshape(-1, cfg.deter), jnp.zeros_like(bias["dynhid0"])),
        "dyngru": (kernel["dyngru"], bias["dyngru"].reshape(g, -1)),
        "obs0": (kernel["obs0"][: cfg.deter], bias["obs0"]),
    }
    whole = ["dynin0", "dynin1", *(f"obs{i}" for i in range(1, cfg.posterior_layers)), "obslogit"]
    cut |= {name: (kernel[name], bias[name]) for name in whole}
    return {name: _Weights(*(x.astype(dtype) for x in pair)) for name, pair in cut.items()}


def _multiply(kernel: Array, x: Array) -> Array:
    return x @ kernel if kernel.ndim == 2 else block_product(x, kernel)


def _affine(weights: dict[str, _Weights]) -> Affine:
    def apply(name: str, x: Array) -> Array:
        y = _multiply(weights[name].kernel, x)
        return y + jnp.broadcast_to(weights[name].bias, y.shape)

    return apply


def _layer(params: Params, name: str, x: Array) -> Array:
    kernel, bias = (params[name][kind].astype(x.dtype) for kind in ("kernel", "bias"))
    return _affine({name: _Weights(kernel, bias)})(name, x)


def _hidden(params: Params, name: str, x: Array) -> Array:
    return nn.silu(rms_norm(params[f"{name}norm"]["scale"], x))


def _latent(cfg: RSSMConfig, x: Array) -> Array:
    return x.reshape(*x.shape[:-1], cfg.stoch, cfg.classes)


def _embed(params: Params, action: Array) -> Array:
    """Limit every entry of the action to [-1, 1] and embed it. Shapes: [..., A] -> [..., hidden]."""
    action = action / jax.lax.stop_gradient(jnp.maximum(1.0, jnp.abs(action)))
    return _hidden(params, "dynin2", _layer(params, "dynin2", action))


def _read(cfg: RSSMConfig, params: Params, tokens: Array) -> Array:
    """Contribution of the tokens to the first layer of the posterior. Shapes: [..., E] -> [..., hidden]."""
    return tokens @ params["obs0"]["kernel"][cfg.deter :].astype(tokens.dtype)


def _core(cfg: RSSMConfig, affine: Affine, params: Params, state: RSSMState, embedded: Array) -> Array:
    lead = state.deter.shape[:-1]
    h = _hidden(params, "dynin0", affine("dynin0", state.deter))
    z = _hidden(params, "dynin1", affine("dynin1", state.stoch.reshape(*lead, -1)))
    own = state.deter.reshape(*lead, cfg.blocks, -1)
    y = affine("own", own).reshape(*lead, -1) + affine("shared", jnp.concatenate([h, z, embedded], -1))
    gates = affine("dyngru", _hidden(params, "dynhid0", y).reshape(own.shape))
    reset, candidate, update = jnp.split(gates, 3, -1)
    update = nn.sigmoid(update - 1.0)
    deter = update * jnp.tanh(nn.sigmoid(reset) * candidate) + (1.0 - update) * own
    return deter.reshape(state.deter.shape)


def _posterior(cfg: RSSMConfig, affine: Affine, params: Params, deter: Array, read: Array) -> Array:
    x = _hidden(params, "obs0", affine("obs0", deter) + read)
    for i in range(1, cfg.posterior_layers):
        x = _hidden(params, f"obs{i}", affine(f"obs{i}", x))
    return _latent(cfg, affine("obslogit", x))


def _step(cfg: RSSMConfig, affine: Affine, scales: Params, state: RSSMState, data: Any) -> tuple[RSSMState, Array]:
    embedded, read, uniform, is_first = data
    deter = _core(cfg, affine, scales, reset(state, is_first), embedded)
    logits = _posterior(cfg, affine, scales, deter, read)
    return RSSMState(deter, sample(cfg, uniform, logits)), logits


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan_steps(
    cfg: RSSMConfig,
    weights: dict[str, _Weights],
    scales: Params,
    state: RSSMState,
    embedded: Array,
    read: Array,
    uniform: Array,
    is_first: Array,
) -> tuple[RSSMState, Array]:
    """Scan `_step`. The gradient of each kernel is one product after the scan, not a sum of T small ones."""

    def step(state: RSSMState, data: Any) -> tuple[RSSMState, tuple[RSSMState, Array]]:
        state, logits = _step(cfg, _affine(weights), scales, state, data)
        return state, (state, logits)

    return jax.lax.scan(step, state, (embedded, read, uniform, is_first))[1]


def _scan_steps_fwd(cfg, weights, scales, state, embedded, read, uniform, is_first):  # type: ignore[no-untyped-def]
    def run(added, scales, state, embedded, read):  # type: ignore[no-untyped-def]
        def step(state, data):  # type: ignore[no-untyped-def]
            added, *data = data
            inputs = {}

            def affine(name: str, x: Array) -> Array:
                inputs[name] = x
                return _affine(weights)(name, x) + added[name]

            state, logits = _step(cfg, affine, scales, state, data)
            return state, ((state, logits), inputs)

        return jax.lax.scan(step, state, (added, embedded, read, uniform, is_first))[1]

    # Zeros are added to the outputs of the layers, because their gradient is that of the outputs.
    lead = embedded.shape[:-1]
    added = {name: jnp.zeros((*lead, *pair.bias.shape), embedded.dtype) for name, pair in weights.items()}
    seen, back, inputs = jax.vjp(run, added, scales, state, embedded, read, has_aux=True)
    return seen, (back, inputs)


def _scan_steps_bwd(cfg, saved, cotangents):  # type: ignore[no-untyped-def]
    del cfg
    back, inputs = saved
    outputs, *others = back(cotangents)
    weights = {}
    for name, x in inputs.items():
        dy = outputs[name]
        kernel = jax.linear_transpose(lambda k, x=x: _multiply(k, x), _kernel_like(x, dy))(dy)[0]
        weights[name] = _Weights(kernel, dy.sum((0, 1)))
    return weights, *others, None, None


def _kernel_like(x: Array, y: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*x.shape[2:], y.shape[-1]), x.dtype)


_scan_steps.defvjp(_scan_steps_fwd, _scan_steps_bwd)
