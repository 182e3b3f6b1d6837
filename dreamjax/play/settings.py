"""What a person can set while a game goes on, and what of it is refused."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dreamjax.play.controls import Controls

View = Literal["both", "real", "dream"]
Actor = Literal["person", "agent"]
TEMPERATURES, SPEEDS = (0.05, 3.0), (0.1, 8.0)
ORDERS = ("reset", "step", "enter", "record")
CHOICES: dict[str, tuple[Any, ...]] = {
    "view": ("both", "real", "dream"),
    "actor": ("person", "agent"),
    "paused": (False, True),
}


@dataclass(frozen=True)
class Settings:
    """What a person has set. The newest counts at the next tick, whatever was set in between."""

    view: View
    actor: Actor = "agent"
    temperature: float = 1.0
    speed: float = 1.0  # of the environment's own rate
    paused: bool = False
    held: tuple[str, ...] = ()  # keys, in the order in which they were pressed
    entries: Mapping[int, float] = field(default_factory=dict)  # what entries of the action are set to, by number
    at: float = 0.0  # when the newest was sent, by the clock of who sent it


def checked(wanted: Mapping[str, Any], controls: Controls, views: tuple[View, ...]) -> dict[str, Any]:
    """Check new values of some fields, as they come in JSON, and return them. Raises ValueError for what is not one."""
    return {name: _checked(name, value, controls, views) for name, value in wanted.items()}


def number(name: str, value: Any, bounds: tuple[float, float] = (-math.inf, math.inf)) -> float:
    """Return a number. Raises ValueError for anything else, or outside of its bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not bounds[0] <= value <= bounds[1]:
        raise ValueError(f"{name} is a number from {bounds[0]} to {bounds[1]}, got {value!r}")
    return float(value)


def episode_number(value: Any) -> int:
    """Return the number of an episode. Raises ValueError for anything else."""
    if type(value) is not int or not 0 <= value < 2**30:
        raise ValueError(f"episodes are numbered from 0 to 2^30 - 1, got {value!r}")
    return value


def _checked(name: str, value: Any, controls: Controls, views: tuple[View, ...]) -> Any:
    match name:
        case "view" | "actor" | "paused":
            allowed = views if name == "view" else CHOICES[name]
            if type(value) not in (str, bool) or value not in allowed:
                raise ValueError(f"{name} is one of {allowed}, got {value!r}")
            return value
        case "temperature" | "speed":
            return number(name, value, TEMPERATURES if name == "temperature" else SPEEDS)
        case "held":
            if not isinstance(value, list) or not all(isinstance(key, str) and key in controls.keys for key in value):
                raise ValueError(f"held is a list of {sorted(controls.keys)}, got {value!r}")
            return tuple(dict.fromkeys(value))
        case "entries":
            if not isinstance(value, dict) or not all(isinstance(key, str) and key.isdecimal() for key in value):
                raise ValueError(f"entries are numbers by the number of an entry, got {value!r}")
            entries = {int(key): number("an entry", one) for key, one in value.items()}
            for index, one in entries.items():
                controls.check(index, one)
            return entries
    raise ValueError(f"there is no setting {name!r}")
