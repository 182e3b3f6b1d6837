"""World models in JAX, as pure functions: World Models (Ha & Schmidhuber 2018), DreamerV3 (Hafner et al. 2023).

Everything goes round one loop::

    env --act, rollout--> steps --> replay --> world-model loss --> params
     ^                                                                |
     +--- policy <--- evolution.tell <--- returns <--- dream(model, policy)

`types` holds the contracts that the rest is written against. `rollout` acts in an environment, `dream` in a
world model, which is itself an environment; `worldmodels` and `dreamerv3` each build a `LatentModel` and a `Policy` for
them. `nets`, `distributions`, `returns` and `optim` are the mathematics, `replay` the data, `evolution` CMA-ES over the
parameters of any policy, `envs` the games. The rest touches disk and screen: `storage`,
`acting`, `training`, `reporting`.

Modules are imported when they are first used: `import dreamjax` alone does not start JAX.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamjax.storage.agents import load as load

__version__ = "0.1.0"

__all__ = [
    "acting",
    "distributions",
    "dream",
    "dreamerv3",
    "envs",
    "evolution",
    "load",
    "nets",
    "optim",
    "replay",
    "reporting",
    "returns",
    "rollout",
    "storage",
    "training",
    "types",
    "worldmodels",
]


def __getattr__(name: str) -> Any:
    """Import a name of the list above. Raises AttributeError for any other."""
    if name not in __all__:
        raise AttributeError(f"dreamjax has no {name!r}; it has {', '.join(__all__)}")
    if name == "load":
        return import_module("dreamjax.storage.agents").load
    return import_module(f"dreamjax.{name}")
