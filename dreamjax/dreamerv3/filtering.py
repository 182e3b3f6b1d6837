"""Filtering: the latent states of recorded sequences, step by step, with a gradient written by hand.

The recurrence is the longest chain of an update, and its layers are small: on an accelerator a step takes the time to
start its kernels. So the two loops, forwards and backwards, hold nothing but what depends on the step before them:

- what actions, observations and noise contribute is computed for all steps at once, before, and the gradients of all
  weights after the loops;
- each keeps one array: states and outputs of products, from which all else is computed again, and their gradients.

Source: Hafner et al. 2023, equation 3; the same function as T times `rssm.observe`, but for the noise.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.dreamerv3 import rssm
from dreamjax.dreamerv3.config import RSSMConfig
from dreamjax.dreamerv3.rssm import RSSMState
from dreamjax.nets.dense import NormGradient, silu_norm
from dreamjax.types import Array, Key, Params


class Weights(NamedTuple):
    """What a step multiplies, in the compute dtype, and the biases and scales of its norms, in float32."""

    deter: Array  # [D, H]
    stoch: Array  # [S K, H]
    inputs_bias: Array  # [2, H], of both
    inputs_scale: Array  # [2, H]
    hidden: Array  # [g, D/g + 2 H, D/g], for the recurrent state and the two embedded inputs
    hidden_scale: Array  # [D]
    gates: Array  # [g, D/g, 3 D/g]
    gates_bias: Array  # [g, 3 D/g]
    posterior: tuple[Array, ...]  # [D, H], then [H, H]
    posterior_bias: tuple[Array, ...]  # [H], of all but the first
    posterior_scale: tuple[Array, ...]  # [H]
    logits: Array  # [H, S K]
    logits_bias: Array  # [S K]


class Given(NamedTuple):
    """What actions and observations contribute."""

    action: Array  # [T, B, D] float32, contribution to the hidden layer, with its bias
    tokens: Array  # [T, B, H] float32, contribution to the posterior's first layer, with its bias


class Products(NamedTuple):
    """Outputs of the products of a step, biases added; in the backward loop, gradients that stand for theirs."""

    inputs: Array  # [B, 2, H], of recurrent state and latent
    hidden: Array  # [B, D]
    gates: Array  # [B, g, 3 D/g]
    posterior: tuple[Array, ...]  # [B, H]
    logits: Array  # [B, S K]


def observe_sequence(
    cfg: RSSMConfig, params: Params, key: Key, state: RSSMState, actions: Array, tokens: Array, is_first: Array
) -> tuple[RSSMState, Array]:
    """Filter T steps of B sequences: z is drawn from the posterior, whose logits are returned too.

    Shapes: state [B, ...] before the first step, actions [T, B, A], each taken before the step of the same
    index, tokens [T, B, E], is_first [T, B] -> states [T, B, ...], logits [T, B, S, K].
    """
    dtype = state.deter.dtype
    kernel = {name: leaf["kernel"].astype(dtype) for name, leaf in params.items() if "kernel" in leaf}
    bias = {name: leaf["bias"] for name, leaf in params.items() if "bias" in leaf}
    scale = {name.removesuffix("norm"): leaf["scale"] for name, leaf in params.items() if "scale" in leaf}
    first, *others = (f"obs{i}" for i in range(cfg.posterior_layers))
    own = cfg.deter // cfg.blocks + 2 * cfg.hidden
    weights = Weights(
        kernel["dynin0"],
        kernel["dynin1"],
        jnp.stack([bias["dynin0"], bias["dynin1"]]),
        jnp.stack([scale["dynin0"], scale["dynin1"]]),
        kernel["dynhid0"][:, :own],
        scale["dynhid0"],
        kernel["dyngru"],
        bias["dyngru"].reshape(cfg.blocks, -1),
        (kernel[first][: cfg.deter], *(kernel[name] for name in others)),
        tuple(bias[name] for name in others),
        tuple(scale[name] for name in (first, *others)),
        kernel["obslogit"],
        bias["obslogit"],
    )
    action = rssm.embed(params, rssm.reset(actions, is_first).astype(dtype))
    action @= jnp.swapaxes(kernel["dynhid0"][:, own:], 0, 1).reshape(-1, cfg.deter)
    given = Given(_add(action, bias["dynhid0"]), _add(tokens @ kernel[first][cfg.deter :], bias[first]))
    noise = rssm.noise(cfg, key, is_first.shape).reshape(*is_first.shape, -1)
    ends = jnp.concatenate([is_first[1:], jnp.zeros_like(is_first[:1])])
    begin = rssm.reset(RSSMState(state.deter, _flat(state.stoch)), is_first[0])
    states, logits = _filter(cfg, weights, begin, given, noise, ends)
    return RSSMState(states.deter, _latent(cfg, states.stoch)), _latent(cfg, logits)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _filter(
    cfg: RSSMConfig, weights: Weights, state: RSSMState, given: Given, noise: Array, ends: Array
) -> tuple[RSSMState, Array]:
    """Filter with flat latents; `ends` says whether the next step belongs to another episode.

    Shapes: state [B, D] and [B, S K], noise [T, B, S K], ends [T, B] -> states [T, B, ...], logits [T, B, S K].
    """
    return _filter_fwd(cfg, weights, state, given, noise, ends)[0]


def _filter_fwd(cfg, weights, state, given, noise, ends):  # type: ignore[no-untyped-def]
    def step(state: tuple[Array, Array], data: tuple[Given, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        given, noise, ends = data
        deter, stoch, products = _step(cfg, weights, *state, given, noise)
        state = jnp.where(ends[:, None], 0, deter), jnp.where(ends[:, None], 0, stoch)
        return state, _pack((RSSMState(_joined(deter), stoch), products))

    begin = _blocks(cfg, state.deter), state.stoch
    like = jax.eval_shape(partial(_step, cfg, weights), *begin, *jax.tree.map(lambda x: x[0], (given, noise)))
    states, products = _unpack((state, like[-1]), _loop(step, begin, (given, noise, ends))[1])
    return (states, products.logits), (weights, state, ends, states, products)


def _step(
    cfg: RSSMConfig, weights: Weights, deter: Array, stoch: Array, given: Given, noise: Array
) -> tuple[Array, Array, Products]:
    """Shapes: deter [g, B, D/g], stoch and noise [B, S K], given [B, ...] -> the same, products [B, ...]."""
    dtype = deter.dtype
    inputs = _add(jnp.stack([_joined(deter) @ weights.deter, stoch @ weights.stoch], -2), weights.inputs_bias)
    embedded = _flat(silu_norm(weights.inputs_scale, inputs).astype(dtype))
    embedded = jnp.broadcast_to(embedded, (cfg.blocks, *embedded.shape))
    hidden = _add(_joined(jnp.concatenate([deter, embedded], -1) @ weights.hidden), given.action)
    gates = _blocks(cfg, silu_norm(weights.hidden_scale, hidden).astype(dtype)) @ weights.gates
    gates = _add(gates, weights.gates_bias[:, None]).astype(dtype)
    deter = rssm.gru(gates, deter)
    posterior = [_add(_joined(deter) @ weights.posterior[0], given.tokens)]
    for i, bias in enumerate(weights.posterior_bias):
        x = silu_norm(weights.posterior_scale[i], posterior[i]).astype(dtype)
        posterior.append(_add(x @ weights.posterior[i + 1], bias))
    x = silu_norm(weights.posterior_scale[-1], posterior[-1]).astype(dtype)
    logits = _add(x @ weights.logits, weights.logits_bias)
    best = _latent(cfg, logits + noise).argmax(-1)
    products = Products(inputs, hidden, jnp.swapaxes(gates, 0, 1), tuple(posterior), logits)
    stoch = _flat(jax.nn.one_hot(best, cfg.classes, dtype=dtype))
    return deter, stoch, jax.tree.map(lambda x: x.astype(dtype), products)


class Recalled(NamedTuple):
    """What a step backwards reads of the step forwards."""

    deter: Array  # [T, B, D], before the step
    gates: Array  # [T, B, g, 3 D/g]
    probs: Array  # [T, B, S, K] float32, softmax of the logits
    inputs: NormGradient
    hidden: NormGradient
    posterior: tuple[NormGradient, ...]


def _filter_bwd(cfg: RSSMConfig, saved: Any, cotangents: Any):  # type: ignore[no-untyped-def]
    weights, state, ends, states, products = saved
    before = jax.tree.map(lambda x, later: jnp.concatenate([x[None], later[:-1]]), state, rssm.reset(states, ends))
    recalled = Recalled(
        before.deter,
        products.gates,
        jax.nn.softmax(_latent(cfg, products.logits).astype(jnp.float32)),
        NormGradient.of(weights.inputs_scale, products.inputs),
        NormGradient.of(weights.hidden_scale, products.hidden),
        tuple(map(NormGradient.of, weights.posterior_scale, products.posterior)),
    )
    step = partial(_step_back, cfg, weights)
    data = ends, recalled, jax.tree.map(jnp.float32, cotangents)
    last = jax.tree.map(jnp.zeros_like, state)
    like = jax.eval_shape(step, last, jax.tree.map(lambda x: x[0], data))[1]

    def kept(dstate: RSSMState, data: Any) -> tuple[RSSMState, Array]:
        dstate, dproducts = step(dstate, data)
        return dstate, _pack(dproducts)

    dstate, packed = _loop(kept, last, data, reverse=True)
    dweights, dgiven = _sums(cfg, weights, recalled, before, states, products, _unpack(like, packed))
    return dweights, dstate, dgiven, None, None


def _step_back(cfg: RSSMConfig, weights: Weights, dstate: RSSMState, data: Any) -> tuple[RSSMState, Products]:
    """Gradient of the state before a step; of `Products`, those before SiLU where there is one."""
    ends, recalled, (outside, dlogits) = data
    dtype = dstate.deter.dtype
    dstate = jax.tree.map(lambda x, y: x.astype(jnp.float32) + y, rssm.reset(dstate, ends), outside)
    # Straight through the sample: as if it were the probabilities.
    toward = _latent(cfg, dstate.stoch)
    slope = recalled.probs * (toward - (recalled.probs * toward).sum(-1, keepdims=True))
    dlogits = (dlogits + (1.0 - cfg.unimix) * _flat(slope)).astype(dtype)
    dx = dlogits @ weights.logits.T
    dposterior: list[Array] = []
    layers = zip(weights.posterior, weights.posterior_scale, recalled.posterior, strict=True)
    for kernel, scale, norm in reversed([*layers]):
        dposterior.insert(0, norm.before_silu(dx))
        dx = norm.input(scale, dposterior[0]) @ kernel.T
    _, back = jax.vjp(rssm.gru, jnp.swapaxes(recalled.gates, 0, 1), _blocks(cfg, recalled.deter))
    dgates, direct = back(_blocks(cfg, _add(dx, dstate.deter).astype(dtype)))
    dhidden = recalled.hidden.before_silu(_joined(dgates @ jnp.swapaxes(weights.gates, 1, 2)))
    dx = _blocks(cfg, recalled.hidden.input(weights.hidden_scale, dhidden)) @ jnp.swapaxes(weights.hidden, 1, 2)
    own, embedded = jnp.split(dx, [direct.shape[-1]], -1)
    embedded = embedded.astype(jnp.float32).sum(0).astype(dtype).reshape(recalled.inputs.slope.shape)
    dinputs = recalled.inputs.before_silu(embedded)
    dx = recalled.inputs.input(weights.inputs_scale, dinputs)
    ddeter = _add(dx[..., 0, :] @ weights.deter.T, _joined(own.astype(jnp.float32) + direct)).astype(dtype)
    dstate = RSSMState(ddeter, dx[..., 1, :] @ weights.stoch.T)
    return dstate, Products(dinputs, dhidden, jnp.swapaxes(dgates, 0, 1), tuple(dposterior), dlogits)


def _sums(cfg, weights, recalled, before, states, products, d):  # type: ignore[no-untyped-def]
    """Gradients of what all steps share, and of what they were given."""
    dtype = states.deter.dtype
    dinputs = recalled.inputs.input(weights.inputs_scale, d.inputs)
    dhidden = recalled.hidden.input(weights.hidden_scale, d.hidden)
    dposterior = list(map(NormGradient.input, recalled.posterior, weights.posterior_scale, d.posterior))
    embedded = _flat(silu_norm(weights.inputs_scale, products.inputs).astype(dtype))
    blocks = partial(jnp.reshape, shape=(*dhidden.shape[:2], cfg.blocks, -1))
    own = _block_outer(blocks(before.deter), blocks(dhidden))
    shared = _outer(embedded, dhidden).reshape(-1, cfg.blocks, own.shape[-1])
    read = [x.astype(dtype) for x in map(silu_norm, weights.posterior_scale, products.posterior)]
    dweights = Weights(
        _outer(before.deter, dinputs[..., 0, :]),
        _outer(before.stoch, dinputs[..., 1, :]),
        _sum(dinputs),
        recalled.inputs.scale(d.inputs),
        jnp.concatenate([own, jnp.swapaxes(shared, 0, 1)], 1),
        recalled.hidden.scale(d.hidden),
        _block_outer(blocks(silu_norm(weights.hidden_scale, products.hidden).astype(dtype)), d.gates),
        _sum(d.gates),
        tuple(map(_outer, [states.deter, *read[:-1]], dposterior)),
        tuple(map(_sum, dposterior[1:])),
        tuple(map(NormGradient.scale, recalled.posterior, d.posterior)),
        _outer(read[-1], d.logits),
        _sum(d.logits),
    )
    return dweights, Given(dhidden.astype(jnp.float32), dposterior[0].astype(jnp.float32))


_filter.defvjp(_filter_fwd, _filter_bwd)


def _loop(step: Callable[[Any, Any], Any], begin: Any, data: Any, reverse: bool = False) -> Any:
    """Scan. Accelerators take four steps as one, between which no state is copied; CPUs would only compile longer."""
    scan = partial(jax.lax.scan, step, reverse=reverse)
    return jax.lax.platform_dependent(begin, data, cpu=scan, default=partial(scan, unroll=4))


def _outer(x: Array, dy: Array) -> Array:
    """Gradient of the kernel of a product. Shapes: [T, B, I], [T, B, O] -> [I, O]."""
    return x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])


def _block_outer(x: Array, dy: Array) -> Array:
    """Gradient of the kernels of the blocks. Shapes: [T, B, g, I], [T, B, g, O] -> [g, I, O]."""
    x, dy = (jnp.moveaxis(a, -2, 0).reshape(a.shape[-2], -1, a.shape[-1]) for a in (x, dy))
    return jnp.einsum("gni,gno->gio", x, dy)


def _sum(dy: Array) -> Array:  # gradient of a bias, [T, B, ...] -> [...] float32
    return dy.astype(jnp.float32).sum((0, 1))


def _add(x: Array, y: Array) -> Array:
    """Add in float32, which keeps the sum out of a product's own kernel, where a slice of y would first be copied."""
    return x.astype(jnp.float32) + jnp.broadcast_to(y, x.shape)


def _blocks(cfg: RSSMConfig, x: Array) -> Array:
    """Put the blocks in front, where products are fastest. Shapes: [B, D] -> [g, B, D/g]."""
    return jnp.moveaxis(x.reshape(*x.shape[:-1], cfg.blocks, -1), -2, 0)


def _joined(x: Array) -> Array:
    """Undo `_blocks`. Shapes: [g, B, D/g] -> [B, D]."""
    return _flat(jnp.moveaxis(x, 0, -2))


def _flat(x: Array) -> Array:
    return x.reshape(*x.shape[:-2], -1)


def _latent(cfg: RSSMConfig, x: Array) -> Array:
    return x.reshape(*x.shape[:-1], cfg.stoch, cfg.classes)


def _pack(tree: Any) -> Array:
    """Put arrays side by side. Shapes: [B, ...] each -> [B, all features]."""
    return jnp.concatenate([x.reshape(x.shape[0], -1) for x in jax.tree.leaves(tree)], -1)


def _unpack(like: Any, packed: Array) -> Any:
    """Undo `_pack` for T steps. Shapes: `like` [B, ...], packed [T, B, all features] -> [T, B, ...]."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([x.size // x.shape[0] for x in leaves])
    parts = jnp.split(packed, ends[:-1], -1)
    return jax.tree.unflatten(structure, [part.reshape(-1, *x.shape) for part, x in zip(parts, leaves, strict=True)])
