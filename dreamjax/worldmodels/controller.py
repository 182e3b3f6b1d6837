"""C: the controller, a single linear layer evolved rather than trained, or a small network of two, perhaps recurrent.

It needs neither V nor M: `make(ControllerConfig(), features, action)` is a linear policy for any vector of features and
any action space, so that `Agent(model, policy)` lets it act on the features of any `LatentModel`, an RSSM's too, and
`rollout.reactive(policy)` on observations that are vectors.

Source: Ha & Schmidhuber 2018, section 3.3 (with a hidden layer), appendix A.3 and A.4.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.types import Action, AnyPolicy, Array, Key, Params, Policy, PyTree, RecurrentPolicy, Space


@dataclass(frozen=True)
class ControllerConfig:
    """What shapes C, besides the features that it reads and the actions that it takes."""

    hidden: int = 0  # tanh units between features and actions; the paper tried 40 on z alone
    recurrent: bool = False  # these units also read themselves, as they were one step ago
    bias: bool = True  # of the output layer
    clipped: tuple[int, ...] = ()  # entries of a continuous action whose tanh is clipped at their bounds, not rescaled

    def __post_init__(self) -> None:
        if self.hidden < 0:
            raise ValueError(f"need hidden >= 0, got {self.hidden}")
        if self.recurrent and not self.hidden:
            raise ValueError("what is recurrent are the hidden units: set hidden to how many")
        if min(self.clipped, default=0) < 0:
            raise ValueError(f"clipped holds indices of a flat action, from 0, got {self.clipped}")


def make(cfg: ControllerConfig, features: int, action: PyTree) -> AnyPolicy:
    """Build C for an action space as a `Policy`, or as a `RecurrentPolicy`.

    A continuous action is tanh(W features + b), moved from [-1, 1] to the bounds of its space; entries in `cfg.clipped`
    are cut off at their bounds instead (the brake of CarRacing, below 0). An entry that lacks a bound is W features + b
    itself, cut off at the one that it may have. A discrete action is the class with the largest of its logits
    W features + b, the first one among equals. A tree of spaces has a head for each.

    With hidden units tanh(V features + a) stands for the features, and tanh(V [features, m] + a) if they are recurrent,
    where m are those units one step ago, at first zero (the paper's discussion points to such controllers, of *Learning
    to Think*, Schmidhuber 2015). Parameters begin at zero, where evolution starts: in Doom this does nothing, in
    CarRacing it gives half gas. They number 1,088 for Doom (without bias) and 867 for CarRacing, as published; on z
    alone 99, and 1,443 with 40 hidden units.

    Shapes: for one space "kernel" [features, n] and "bias" [n] of n flat outputs, and [features] and [] for a single
    number; for a tree of spaces the same tree of these, named "heads"; "hidden" holds V and a.
    Raises: ValueError for a discrete action without a finite number of classes, or `cfg.clipped` that names no entry of
        the action, or one without bounds.
    """
    if features < 1:
        raise ValueError(f"need features >= 1, got {features}")
    inputs = cfg.hidden or features
    for path, space in jax.tree_util.tree_leaves_with_path(action):
        _check(cfg, space, jax.tree_util.keystr(path))
    is_lone = isinstance(action, Space)

    def init(key: Key) -> Params:
        del key  # evolution starts at zero
        heads = jax.tree.map(lambda space: _zeros(inputs, _outputs(space), cfg.bias), action)
        params: Params = heads if is_lone else {"heads": heads}
        read = features + cfg.recurrent * cfg.hidden
        return params | {"hidden": _zeros(read, (cfg.hidden,), True)} if cfg.hidden else params

    def units(params: Params, x: Array) -> Array:
        return jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])

    def decide(params: Params, x: Array) -> Action:
        heads = params if is_lone else params["heads"]
        return jax.tree.map(lambda space, head: _decide(cfg, space, head, x), action, heads)

    def act(params: Params, key: Key, x: Array) -> Action:
        del key  # deterministic
        return decide(params, units(params, x) if cfg.hidden else x)

    def act_recurrently(params: Params, key: Key, memory: Array, x: Array) -> tuple[Array, Action]:
        del key
        memory = units(params, jnp.concatenate([x, memory], -1))
        return memory, decide(params, memory)

    if cfg.recurrent:
        return RecurrentPolicy(init, lambda params: jnp.zeros(cfg.hidden), act_recurrently)
    return Policy(init, act)


def _outputs(space: Space) -> tuple[int, ...]:
    """Shape of the output layer: () for a single number, else [n], of logits if the space is discrete."""
    size = int(np.prod(space.shape))
    if space.is_discrete:
        return (size * int((space.high_array - space.low_array).max()),)
    return (size,) if space.shape else ()


def _decide(cfg: ControllerConfig, space: Space, head: Params, x: Array) -> Array:
    kernel, bias = head["kernel"], head.get("bias", 0.0)
    y = (x @ kernel if kernel.ndim > 1 else (kernel * x).sum(-1)) + bias
    low, high = space.low_array, space.high_array
    if space.is_discrete:
        logits = y.reshape(*space.shape, -1)
        exists = np.arange(logits.shape[-1]) < (high - low)[..., None]
        return (jnp.where(exists, logits, -jnp.inf).argmax(-1) + low).astype(space.dtype)
    y = y.reshape(space.shape)
    is_bounded = np.isfinite(low) & np.isfinite(high)
    bottom, top = np.where(is_bounded, low, -1), np.where(is_bounded, high, 1)
    squashed = jnp.tanh(y)
    # In this form [-1, 1] comes out as it is, to the last bit.
    scaled = (top + bottom) / 2 + squashed * (top - bottom) / 2
    is_clipped = np.isin(np.arange(low.size), cfg.clipped).reshape(space.shape)
    bounded = jnp.where(is_clipped, squashed.clip(bottom, top), scaled)
    return jnp.where(is_bounded, bounded, y.clip(low, high)).astype(space.dtype)


def _zeros(inputs: int, outputs: tuple[int, ...], bias: bool) -> Params:
    kernel = {"kernel": jnp.zeros((inputs, *outputs))}
    return {"bias": jnp.zeros(outputs)} | kernel if bias else kernel


def _check(cfg: ControllerConfig, space: Space, path: str) -> None:
    name = f"the action{f' {path}' if path else ''}"
    is_bounded = np.isfinite([space.low_array, space.high_array]).all(0).reshape(-1)
    if space.is_discrete and not is_bounded.all():
        raise ValueError(f"C needs finite bounds for {name}, got {space}; give its Space low and high")
    if not space.is_discrete and not all(i < is_bounded.size and is_bounded[i] for i in cfg.clipped):
        raise ValueError(
            f"clipped={cfg.clipped} names an entry that {name} does not have or that has no bounds: {space}"
        )
