"""How plans are searched for: random shooting, the cross-entropy method, iCEM and MPPI are settings of one search.

Source: Rubinstein 1999 (cross-entropy method), as in Chua et al. 2018 (PETS); Pinneri et al. 2020 (iCEM); Williams et
al. 2017 (MPPI), as in Hansen et al. 2022 (TD-MPC), who add a policy and a value.
"""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PlanConfig:
    """How plans are searched for; `random_shooting`, `cem`, `icem` and `mppi` are these methods.

    Raises: ValueError if the numbers do not allow a search.
    """

    horizon: int = 15  # steps that a plan looks ahead
    candidates: int = 128  # plans that are imagined in each iteration
    iterations: int = 4
    elites: int = 16  # best plans, from which the next distribution is made
    sharpness: float = 0.0  # elites count by exp(sharpness x return); 0: all alike
    momentum: float = 0.1  # share of a distribution that is kept in the next
    spread: float = 0.5  # of the first distribution: standard deviation, as a share of the range of the action
    least_spread: float = 0.02  # to which it narrows; of a discrete action, the share that is drawn evenly
    exponent: float = 0.0  # of the noise, whose spectrum is f^-exponent: 0 is white; above, actions last longer
    held: int = 1  # steps for which the noise lasts, and so the actions that are drawn, where one alone hardly matters
    kept: int = 0  # elites that compete again, in the next iteration and at the next step, and with them the mean
    from_prior: int = 0  # candidates that a policy chooses
    takes_best: bool = False  # act as the best plan of the last iteration says, instead of the mean of what it made
    is_uniform: bool = False  # draw evenly from all actions, whatever was found before
    dreams: int = 1  # in which each plan is tried, all plans with the same luck
    discount: float = 1.0  # that of the value, if there is one: of DreamerV3's critic, `cfg.behaviour.discount`
    temperature: float = 1.0  # of the dreams

    def __post_init__(self) -> None:
        counts = min(self.horizon, self.iterations, self.elites, self.held, self.dreams) >= 1
        ordered = 0 <= self.kept <= self.elites <= self.candidates and min(self.from_prior, self.drawn) >= 0
        shares = all(0 <= share <= 1 for share in (self.momentum, self.least_spread, self.discount))
        floats = (self.sharpness, self.momentum, self.spread, self.least_spread, self.exponent, self.temperature)
        scales = min(self.spread, self.sharpness) >= 0 < self.temperature and all(map(math.isfinite, floats))
        if not (counts and ordered and shares and scales):
            raise ValueError(
                "a planner needs a horizon, iterations, elites, held and dreams of 1 or more, 0 <= kept <= elites <= "
                "candidates, at least from_prior + kept + 1 (the mean) candidates where any are kept, momentum, "
                "least_spread and discount in [0, 1], spread and sharpness of 0 or more, a temperature above 0, all "
                f"finite, got {self}"
            )

    @property
    def drawn(self) -> int:
        """Number of candidates that are drawn from the distribution."""
        return self.candidates - self.from_prior - self.kept - (self.kept > 0)


def random_shooting(horizon: int = 15, candidates: int = 512, **others: Any) -> PlanConfig:
    """Draw plans evenly, and act as the best says."""
    return PlanConfig(horizon, candidates, 1, 1, **({"takes_best": True, "is_uniform": True} | others))


def cem(horizon: int = 15, candidates: int = 128, iterations: int = 4, elites: int = 16, **others: Any) -> PlanConfig:
    """Cross-entropy method: draw again around the elites, which all count alike."""
    return PlanConfig(horizon, candidates, iterations, elites, **others)


def icem(horizon: int = 15, candidates: int = 128, iterations: int = 3, elites: int = 12, **others: Any) -> PlanConfig:
    """Improved cross-entropy method: noise that lasts, elites that compete again, and the best plan that acts.

    The number of candidates does not shrink from iteration to iteration, unlike the published one.
    """
    settings = {"exponent": 2.0, "kept": max(1, elites // 3), "takes_best": True} | others
    return PlanConfig(horizon, candidates, iterations, elites, **settings)


def mppi(horizon: int = 15, candidates: int = 128, iterations: int = 4, elites: int = 32, **others: Any) -> PlanConfig:
    """Model predictive path integral control: elites count by the exponential of their return."""
    return PlanConfig(horizon, candidates, iterations, elites, **({"sharpness": 0.5} | others))
