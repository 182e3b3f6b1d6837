"""What a person acts with: the keys, buttons and sliders of an action space, and the action that they make."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

import jax
import numpy as np

from dreamjax.dreamerv3.codec import leaves_by_name
from dreamjax.types import Action, PyTree, Space

# Keys are named as browsers do, by where they are: https://www.w3.org/TR/uievents-code/.
PAIRS = [("ArrowLeft", "ArrowRight"), ("ArrowDown", "ArrowUp"), ("KeyA", "KeyD"), ("KeyS", "KeyW")]
PAIRS += [("KeyJ", "KeyL"), ("KeyK", "KeyI")]  # for axes that go both ways
SINGLES = ("ArrowUp", "ArrowDown", "KeyW", "KeyS", "KeyI", "KeyK")  # for axes that go one way, as gas and brake do
FEW = {2: ("ArrowLeft", "ArrowRight"), 3: ("ArrowLeft", "ArrowDown", "ArrowRight")}  # choices without names
DIGITS = tuple(f"Digit{i % 10}" for i in range(1, 11))
WORDS = {"UP": "ArrowUp", "DOWN": "ArrowDown", "LEFT": "ArrowLeft", "RIGHT": "ArrowRight", "FIRE": "KeyF"}
MOST_CHOICES = 256  # that a person can pick from


class Choice(NamedTuple):
    """A discrete entry of an action."""

    name: str
    low: int  # value of the first choice
    labels: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...]  # of each choice: those that are held together; () has none
    neutral: int  # value while nothing is held


class Axis(NamedTuple):
    """A continuous entry of an action."""

    name: str
    low: float
    high: float
    neutral: float
    less: str  # key that goes to `low`; "" if there is none
    more: str  # key that goes to `high`


class Controls:
    """The controls of an action space.

    Raises: ValueError for a discrete action of more choices than a person can pick from.
    """

    def __init__(self, space: PyTree, labels: Sequence[str] = ()) -> None:
        self._space = space
        self.entries: list[Choice | Axis] = []
        pairs, singles, is_first = iter(PAIRS), ((key,) for key in SINGLES), True
        used: set[str] = set()
        for name, leaf in leaves_by_name(space, "action").items():
            lows, highs = (np.ravel(bound).tolist() for bound in (leaf.low_array, leaf.high_array))
            for i, low, high in zip(count(), lows, highs):
                entry = f"{name}[{i}]" if leaf.shape else name
                if leaf.is_discrete:
                    self.entries.append(_choice(entry, int(low), int(high - low), labels if is_first else (), is_first))
                    is_first = False
                    continue
                low, high = (bound if abs(bound) < 1e6 else side for bound, side in ((low, -1.0), (high, 1.0)))
                if low < 0 < high:
                    less, more = _unused(pairs, used) or ("", "")
                else:
                    (key,) = _unused(singles, used) or ("",)
                    less, more = ("", key) if low >= 0 else (key, "")
                self.entries.append(Axis(entry, low, high, max(low, min(0.0, high)), less, more))

    @property
    def keys(self) -> set[str]:
        """All keys that act."""
        axes = {key for entry in self.entries if isinstance(entry, Axis) for key in (entry.less, entry.more)}
        choices = {key for entry in self.entries if isinstance(entry, Choice) for keys in entry.keys for key in keys}
        return (axes | choices) - {""}

    def described(self) -> list[dict[str, Any]]:
        """Describe all entries, for the page."""
        return [entry._asdict() | {"kind": type(entry).__name__.lower()} for entry in self.entries]

    def check(self, index: int, value: float) -> None:
        """Raise ValueError unless an entry can be set to a value."""
        if not 0 <= index < len(self.entries):
            raise ValueError(f"the action has {len(self.entries)} entries, got number {index}")
        entry = self.entries[index]
        low, high = (entry.low, entry.low + len(entry.labels) - 1) if isinstance(entry, Choice) else entry[1:3]
        if not low <= value <= high:
            raise ValueError(f"{entry.name} lies in [{low}, {high}], got {value}")

    def action(self, held: Sequence[str], set_to: Mapping[int, float]) -> Action:
        """Make the action of what is held, in the order in which it was pressed, over what entries are set to."""
        values = [
            _chosen(entry, held, set_to.get(i)) if isinstance(entry, Choice) else _along(entry, held, set_to.get(i))
            for i, entry in enumerate(self.entries)
        ]
        rest = iter(values)

        def take(space: Space) -> np.ndarray:
            flat = [next(rest) for _ in range(int(np.prod(space.shape)))]
            return np.array(flat, space.dtype).reshape(space.shape)

        return jax.tree.map(take, self._space)


def _unused(keys: Iterator[tuple[str, ...]], used: set[str]) -> tuple[str, ...]:
    """Take the next keys of which none is used yet; nothing if there are none left."""
    for some in keys:
        if not used & set(some):
            used |= set(some)
            return some
    return ()


def _choice(name: str, low: int, count: int, labels: Sequence[str], has_keys: bool) -> Choice:
    if count > MOST_CHOICES:
        raise ValueError(f"{name} has {count} choices, of {MOST_CHOICES} at most that a person can pick from")
    named = tuple(labels) if len(labels) == count else tuple(map(str, range(low, low + count)))
    keys: list[tuple[str, ...]] = [()] * count
    if has_keys:
        words = [_words(label) for label in named]
        if any(words):
            keys = [tuple(WORDS[word] for word in one) for one in words]
        elif count in FEW:
            keys = [(key,) for key in FEW[count]]
        spare = iter(DIGITS)
        still = {i for i, one in enumerate(named) if one.upper() == "NOOP"}
        keys = [one or (() if i in still else tuple(filter(None, [next(spare, "")]))) for i, one in enumerate(keys)]
    neutral = next((i for i, label in enumerate(named) if label.upper() == "NOOP"), 1 if count == 3 else 0)
    return Choice(name, low, named, tuple(keys), low + neutral)


def _words(label: str) -> list[str]:
    """Take apart "UPRIGHTFIRE" or "move_up"; nothing if there is more in it than directions."""
    upper = label.upper().removeprefix("MOVE_")
    found = re.findall("|".join(WORDS), upper)
    return found if "".join(found) == upper else []


def _chosen(entry: Choice, held: Sequence[str], set_to: float | None) -> int:
    """Take the choice whose keys are all held: the one with the most, and of equals what was pressed last."""
    candidates = [
        (len(keys), max(held.index(key) for key in keys), i)
        for i, keys in enumerate(entry.keys)
        if keys and set(keys) <= set(held)
    ]
    if candidates:
        return entry.low + max(candidates)[2]
    return entry.neutral if set_to is None else int(set_to)


def _along(entry: Axis, held: Sequence[str], set_to: float | None) -> float:
    less, more = entry.less in held, entry.more in held
    if less != more:
        return entry.low if less else entry.high
    return entry.neutral if set_to is None or (less and more) else set_to
