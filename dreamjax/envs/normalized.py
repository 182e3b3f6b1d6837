"""Four small tasks that need different things, and scores that can be averaged over them: 0 random play, 1 the best.

All are written in JAX, have short episodes, and pay random play and the best policy what can be worked out on paper.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dreamjax.envs import offers, probes
from dreamjax.types import Environment

_TOP, _STEPS = 9, 12  # how far `sparse` has to count, and in how many steps


class Normalized(NamedTuple):
    """An environment, and the mean returns that are 0 and 1 on its scale."""

    environment: Environment
    random: float
    best: float

    def score(self, returns: np.ndarray) -> np.ndarray:
        """Put returns on the scale; who is worse than random play is below 0. Shapes: [...] -> [...]."""
        return (np.asarray(returns) - self.random) / (self.best - self.random)


def memory() -> Normalized:
    """Make the task of naming one of four cues after it is gone. Random play is right in one of four cases."""
    return Normalized(probes.remember(cues=4, delay=2), random=1 / 4, best=1.0)


def pixels() -> Normalized:
    """Make the task of standing under a ball, from frames of 64 x 64 pixels. Who does not look gets 1/4."""
    return Normalized(probes.catch(columns=4), random=1 / 4, best=1.0)


def sparse() -> Normalized:
    """Make the task of counting to 9 in 12 steps: there is one reward, at the end, and three mistakes are forgiven.

    The deadline is a terminal end: if it only cut the episode, values would be bootstrapped there, and being late would
    cost nothing. Random play gets to the top if 9 of 12 coins show heads, which has a probability of 299/4096.
    """
    heads = sum(math.comb(_STEPS, count) for count in range(_TOP, _STEPS + 1))
    environment = probes.counter(size=_TOP + 1, max_steps=_STEPS, deadline=True)
    return Normalized(environment, random=heads / 2**_STEPS, best=1.0)


def large() -> Normalized:
    """Make the task of waiting for a good offer: rewards and observations from 1 to 10,000, see `offers.offers`."""
    random, best = offers.known_returns()
    return Normalized(offers.offers(), random, best)


TASKS: dict[str, Callable[[], Normalized]] = {"memory": memory, "pixels": pixels, "sparse": sparse, "large": large}
