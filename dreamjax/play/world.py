"""One of the two worlds of a session, the real one or the dreamed one, as it stands."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from dreamjax.play.programs import Belief
from dreamjax.rollout import AgentState
from dreamjax.types import Action


@dataclass
class World:
    """Where an episode stands, and what the model makes of it."""

    state: AgentState  # with the action that the agent would take now
    belief: Belief
    steps: int = 0
    total: float = 0.0
    reward: float = 0.0
    taken: Action = None  # after the step before
    over: str | None = None  # why its episode is over
    waited: int = 0  # ticks since then

    def told(self) -> dict[str, Any]:
        """Describe it for JSON, in which there is no NaN."""
        numbers = {name: float(getattr(self.belief, name)) for name in ("continues", "value", "surprise")}
        return {
            **{name: getattr(self, name) for name in ("steps", "total", "reward", "over")},
            **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
            "action": [float(x) for leaf in jax.tree.leaves(self.taken) for x in np.ravel(leaf)],
        }
