"""Several values of the traced settings at once, for `vmap`. Source of the settings: Hafner et al. 2023, table 4."""

import itertools
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from dreamjax.dreamerv3.config import DreamerConfig
from dreamjax.dreamerv3.learner import Hyper


@dataclass(frozen=True)
class Sweep:
    """Values of which all combinations learn at once; where there are none, that of the configuration."""

    learning_rate: tuple[float, ...] = ()
    entropy: tuple[float, ...] = ()
    discount_horizon: tuple[float, ...] = ()

    def combinations(self, cfg: DreamerConfig) -> dict[str, DreamerConfig]:
        """Make a configuration of each combination, by what is swept in it: "learning_rate 0.001, entropy 0.03".

        Raises: ValueError if a value is there twice, or as `DreamerConfig` does.
        """
        swept = {name: values for name, values in vars(self).items() if values}
        if any(len(set(values)) < len(values) for values in swept.values()):
            raise ValueError(f"every value may be swept once, got {self}")
        found = {}
        for chosen in itertools.product(*swept.values()):
            values = dict(zip(swept, chosen, strict=True))
            label = ", ".join(f"{name} {value:g}" for name, value in values.items())
            rate = {name: values.pop(name) for name in ["learning_rate"] if name in values}
            optimizer, behaviour = replace(cfg.optimizer, **rate), replace(cfg.behaviour, **values)
            found[label] = replace(cfg, optimizer=optimizer, behaviour=behaviour)
        return found


def stacked(configs: list[DreamerConfig]) -> Hyper:
    """Stack the traced settings of configurations, one beside the other. Shapes: -> [N]."""
    return jax.tree.map(lambda *values: jnp.stack(values), *map(Hyper.of, configs))
