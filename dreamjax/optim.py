"""The optimisers of both systems as optax chains: Adam of World Models, LaProp of DreamerV3.

Sources: Ha & Schmidhuber 2018, Hafner et al. 2023, and their published code.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dreamjax.types import Array, Params, PyTree


@dataclass(frozen=True)
class AdamConfig:
    """Adam whose learning rate falls by `decay` a step from `learning_rate` towards `final_learning_rate`."""

    learning_rate: float = 1e-4
    final_learning_rate: float = 0.0
    decay: float = 1.0
    clip: float = float("inf")  # of every single gradient entry

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or not 0 < self.decay <= 1 or self.clip <= 0:
            raise ValueError(f"need learning_rate > 0, 0 < decay <= 1 and clip > 0, got {self}")


def adam(cfg: AdamConfig, learning_rate: Array | float | None = None) -> optax.GradientTransformation:
    """Build the optimiser: clip, then Adam at the rate (learning_rate - final) decay^step + final.

    `learning_rate` [] stands for that of `cfg` and may be traced, so that one program serves, and vmaps over, many.
    """
    first = cfg.learning_rate if learning_rate is None else learning_rate

    def rate(step: Array) -> Array:
        return (first - cfg.final_learning_rate) * cfg.decay**step + cfg.final_learning_rate

    return optax.chain(optax.clip(cfg.clip), optax.adam(rate))


@dataclass(frozen=True)
class LaPropConfig:
    """Published settings."""

    learning_rate: float = 4e-5
    warmup: int = 1000  # updates over which the learning rate rises linearly; the first update has a rate of zero
    clip: float = 0.3  # largest norm of a gradient, as a share of the norm of its parameter
    smallest: float = 1e-3  # norm that a parameter counts as having at least
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-20

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.warmup < 0 or self.clip <= 0 or self.smallest <= 0:
            raise ValueError(f"need learning_rate, clip and smallest > 0 and warmup >= 0, got {self}")
        if not 0 <= self.beta1 < 1 or not 0 <= self.beta2 < 1 or self.eps <= 0:
            raise ValueError(f"need beta1 and beta2 in [0, 1) and eps > 0, got {self}")


SMALL = 2**16  # entries of a tensor up to which a program of its own costs more than a copy


def norms(tree: PyTree) -> Array:
    """Euclidean norm of every leaf, in the order of `jax.tree.leaves`. Shapes: n leaves of any shape -> [n].

    Off CPUs, small leaves of about one size are put side by side: an accelerator then starts a few programs instead of
    hundreds. A CPU would only copy them.
    """
    return jax.lax.platform_dependent(*jax.tree.leaves(tree), cpu=_norms_one_by_one, default=_norms_together)


def _norms_one_by_one(*leaves: Array) -> Array:
    return jnp.sqrt(jnp.stack([(leaf**2).sum() for leaf in leaves]))


def _norms_together(*leaves: Array) -> Array:
    groups = defaultdict[tuple[int, int], list[int]](list)
    for i, leaf in enumerate(leaves):
        wide = 1 << max(leaf.size - 1, 0).bit_length()
        groups[wide, i if leaf.size > SMALL else 0].append(i)

    def squares(wide: int, group: list[int]) -> Array:
        if len(group) == 1:
            return (leaves[group[0]] ** 2).sum()[None]
        return (jnp.stack([jnp.pad(leaves[i].ravel(), (0, wide - leaves[i].size)) for i in group]) ** 2).sum(-1)

    found = jnp.concatenate([squares(wide, group) for (wide, _), group in groups.items()])
    return jnp.sqrt(found[np.argsort(np.concatenate(list(groups.values())))])


def global_norm(tree: PyTree) -> Array:
    """Euclidean norm of all leaves together, from `norms`. Shapes: -> []."""
    return jnp.linalg.norm(norms(tree))


def adaptive_gradient_clip(clip: float, smallest: float) -> optax.GradientTransformation:
    """Limit the norm of every gradient to `clip` times that of its parameter.

    A norm is that of a whole tensor, as published; optax's own `adaptive_grad_clip` takes one per unit.
    """

    def init(params: Params) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(grads: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        if params is None:
            raise ValueError("adaptive_gradient_clip compares gradients with parameters; pass update(..., params)")

        excess = jnp.maximum(1.0, norms(grads) / (clip * jnp.maximum(smallest, norms(params))))
        leaves, structure = jax.tree.flatten(grads)
        return jax.tree.unflatten(structure, [grad / excess[i] for i, grad in enumerate(leaves)]), state

    return optax.GradientTransformation(init, update)


def laprop(cfg: LaPropConfig, learning_rate: Array | float | None = None) -> optax.GradientTransformation:
    """Build the optimiser: clip, divide by the root mean square, then take momentum (Ziyin et al. 2020).

    `learning_rate` [] stands in for the configuration's. It may be traced: its state does not depend on it.
    """
    highest: Any = cfg.learning_rate if learning_rate is None else learning_rate
    rate = optax.linear_schedule(0.0, highest, cfg.warmup) if cfg.warmup else optax.constant_schedule(highest)
    return optax.chain(
        adaptive_gradient_clip(cfg.clip, cfg.smallest),
        optax.scale_by_rms(decay=cfg.beta2, eps=cfg.eps, eps_in_sqrt=False, bias_correction=True),
        optax.ema(cfg.beta1, debias=True),
        optax.scale_by_learning_rate(rate),
    )


def parameter_count(params: Params) -> int:
    """Count the numbers in a tree of parameters, or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def keep_finite(is_finite: Array, new: PyTree, old: PyTree) -> PyTree:
    """Return `new` where an update was finite, else `old`, without a word to the host: see `skipped`.

    optax's `apply_if_finite` does so for gradients, but wraps the optimiser's state, looks at no loss, and lets what is
    not finite pass after some number of updates. Shapes: is_finite [], trees alike.
    """
    return jax.tree.map(lambda kept, before: jnp.where(is_finite, kept, before), new, old)


def skipped(step: Array, opt_state: optax.OptState) -> Array:
    """Count the updates, of all `step` of them, that `keep_finite` has left out.

    The optimiser counts those that it has seen, so that nothing needs to be carried for this. Shapes: [] -> [] int32.
    """
    counts = [count for path, count in optax.tree.get_all_with_path(opt_state, "count")]
    return step - counts[0]
