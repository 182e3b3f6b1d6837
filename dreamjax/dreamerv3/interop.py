"""Parameters of the published implementation, to and from ours.

It keeps them in one flat dictionary whose names are paths, such as "dyn/dyngru/kernel". Ours are a tree of the same
names and layouts, so that only the nesting differs. The slow critic is "slowval/...", beside "val/...".
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.dreamerv3 import model
from dreamjax.dreamerv3.model import Dreamer, DreamerParams
from dreamjax.types import Params, PyTree


def flatten(params: PyTree) -> dict[str, np.ndarray]:
    """Name every array by its path."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {_name(path): np.asarray(leaf) for path, leaf in leaves}


def export_published(params: DreamerParams, slow: Params) -> dict[str, np.ndarray]:
    """Flat dictionary of all parameters and the slow critic's."""
    return flatten(params) | {f"slowval/{name}": leaf for name, leaf in flatten(slow).items()}


def import_published(dreamer: Dreamer, arrays: Mapping[str, np.ndarray]) -> tuple[DreamerParams, Params]:
    """Our parameters and the slow critic's, from a flat dictionary; further entries, as of an optimiser, are ignored.

    Raises: ValueError naming every parameter that is missing or has another shape than `dreamer` gives it.
    """
    wanted = jax.eval_shape(lambda key: model.init(dreamer, key), jax.random.key(0))
    problems: list[str] = []

    def take(prefix: str, path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = prefix + _name(path)
        if name not in arrays:
            problems.append(f"{name} is missing")
        elif arrays[name].shape != leaf.shape:
            problems.append(f"{name} has shape {list(arrays[name].shape)}, expected {list(leaf.shape)}")
        else:
            return jnp.asarray(arrays[name], leaf.dtype)
        return jnp.zeros(leaf.shape, leaf.dtype)

    params = jax.tree_util.tree_map_with_path(lambda path, leaf: take("", path, leaf), wanted)
    slow = jax.tree_util.tree_map_with_path(lambda path, leaf: take("slowval/", path, leaf), wanted.val)
    if problems:
        raise ValueError("these are not parameters of this agent:\n  " + "\n  ".join(problems))
    return params, slow


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
