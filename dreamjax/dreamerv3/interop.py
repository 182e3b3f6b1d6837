"""Parameters of the published implementation, to and from ours.

It keeps them in one flat dictionary whose names are paths, such as "dyn/dyngru/kernel". Ours are a tree of the same
names and layouts, so that only the nesting differs: enc/, dyn/, dec/, rew/ and con/ are `DreamerParams.model`, pol/ the
policy, val/ the critic, and slowval/ the slow critic.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.dreamerv3 import model
from dreamjax.dreamerv3.model import Dreamer, DreamerParams, ModelParams
from dreamjax.types import Params, PyTree


def modules(params: DreamerParams) -> dict[str, Params]:
    """Parameters of each module under its published name: "enc", "dyn", "dec", "rew", "con", "pol", "val"."""
    return params.model._asdict() | {"pol": params.policy, "val": params.value}


def flatten(params: DreamerParams) -> dict[str, np.ndarray]:
    """Name every array as the published code does, by its path."""
    return _flatten(modules(params))


def export_published(params: DreamerParams, slow: Params) -> dict[str, np.ndarray]:
    """Write all parameters, with those of the slow critic, as one flat dictionary."""
    return flatten(params) | _flatten({"slowval": slow})


def import_published(dreamer: Dreamer, arrays: Mapping[str, np.ndarray]) -> tuple[DreamerParams, Params]:
    """Read all parameters, and those of the slow critic, from a flat dictionary.

    Other entries, as of an optimiser, are ignored.

    Raises: ValueError naming every parameter that is missing or has another shape than `dreamer` gives it.
    """
    like = jax.eval_shape(lambda key: model.init(dreamer, key), jax.random.key(0))
    problems: list[str] = []

    def take(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = _name(path)
        if name not in arrays:
            problems.append(f"{name} is missing")
        elif arrays[name].shape != leaf.shape:
            problems.append(f"{name} has shape {list(arrays[name].shape)}, expected {list(leaf.shape)}")
        else:
            return jnp.asarray(arrays[name], leaf.dtype)
        return jnp.zeros(leaf.shape, leaf.dtype)

    found = jax.tree_util.tree_map_with_path(take, modules(like) | {"slowval": like.value})
    if problems:
        raise ValueError("these are not parameters of this agent:\n  " + "\n  ".join(problems))
    world = ModelParams(*(found[name] for name in ModelParams._fields))
    return DreamerParams(world, found["pol"], found["val"]), found["slowval"]


def _flatten(tree: PyTree) -> dict[str, np.ndarray]:
    return {_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
