"""Measuring how far an agent's dreams can be trusted, in episodes that no training saw."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.reporting.intervals import Estimate, estimate, ratio
from dreamjax.rollout import Transition
from dreamjax.storage.progress import progress
from dreamjax.trust import open_loop, promise
from dreamjax.trust.episodes import AnyEnvironment, play, shortened
from dreamjax.trust.open_loop import Piece, dream_at
from dreamjax.types import Agent, AgentParams, Key

HORIZONS = (1, 2, 3, 5, 8, 12, 18, 27, 40, 60)  # steps after the last that was seen
FILMED = 6  # episodes
RETURN, STEPS, PROMISED = "return", "steps", "promised / paid"  # of whole episodes
GAME, BEST = "game", "best of the game"


@dataclass(frozen=True)
class TrustConfig:
    """How much is played and dreamed."""

    episodes: int = 32  # of the game
    temperatures: tuple[float, ...] = (0.5, 1.0, 1.5)
    samples: int = 4  # dreams at each temperature, of each episode and of each piece of one
    pieces: int = 4  # of an episode that are predicted open-loop, at most
    max_steps: int = 2100  # after which episodes are cut, real and dreamed

    def __post_init__(self) -> None:
        if self.episodes < 2:
            raise ValueError(f"intervals need at least two episodes, got {self.episodes}")
        if not self.temperatures or not all(0 < one < math.inf for one in self.temperatures):
            raise ValueError(f"temperatures must be some positive numbers, got {self.temperatures}")
        if len({dream_at(temperature) for temperature in self.temperatures}) < len(self.temperatures):
            raise ValueError(f"temperatures must differ in their first two decimals, got {self.temperatures}")
        if min(self.samples, self.pieces, self.max_steps) < 1:
            raise ValueError(f"samples, pieces and max_steps must be at least 1, got {self}")


DEFAULT = TrustConfig()


def beside(temperature: float) -> tuple[float, ...]:
    """Return temperatures to measure at: that of the dreams in which a policy was trained, and others beside it."""
    return (*(one for one in (0.5, 1.0) if dream_at(one) != dream_at(temperature)), temperature)


class Measured(NamedTuple):
    """A mean over episodes, with its interval."""

    quantity: str  # RETURN, STEPS, PROMISED, or what is predicted
    by: str  # GAME, BEST, "dream@1.00", or what else predicts
    ahead: int  # steps after the last that was seen; 0 for what is of whole episodes
    unit: str
    mean: float
    std: float  # of episodes
    low: float  # end of the interval of the mean
    high: float
    n: int  # episodes


class Trust(NamedTuple):
    """How far an agent's dreams can be trusted."""

    measured: list[Measured]
    films: dict[str, tuple[np.ndarray, np.ndarray]]  # of each kind of picture: [N, T, H, W, C] seen, and dreamed


def measure(
    agent: Agent,
    params: AgentParams,
    environment: AnyEnvironment,
    key: Key,
    cfg: TrustConfig = DEFAULT,
    *,
    workers: int | None = None,
) -> Trust:
    """Let an agent play and dream, and compare: `trust.promise` says how for returns, `trust.open_loop` for errors.

    `environment` is a pure one, or makes one for the host, as for `acting.evaluate`. Of the return there are the game's
    mean and best, and for each temperature the dream's mean and its ratio to the game's, left out where the game pays
    nothing or less. `std` of dreams is that of single dreams, of a ratio that of its resamples. Errors are measured at
    those of `HORIZONS` that at least two episodes reach.

    Shapes: key [], params.policy not stacked. Raises: as `acting.playing.play` does.
    """
    short = shortened(agent, cfg.max_steps)
    key_play, key_dream, key_predict = jax.random.split(key, 3)
    episodes = play(short, params, environment, key_play, cfg.episodes, workers=workers)
    found, films = errors(short, params, key_predict, episodes, cfg)
    return Trust(returns(short, params, key_dream, episodes, cfg) + found, films)


def returns(
    agent: Agent, params: AgentParams, key: Key, episodes: Sequence[Transition], cfg: TrustConfig
) -> list[Measured]:
    """Compare the returns of recorded episodes [T, ...] each with those of dreams that begin like them."""
    opening = [episode.step.observation for episode in episodes]
    first = jax.tree.map(lambda *leaves: np.stack([leaf[0] for leaf in leaves]), *opening)
    starts = jax.jit(jax.vmap(agent.model.encode, (None, 0)))(params.model, first)
    temperatures = jnp.array(cfg.temperatures, jnp.float32)
    dreams = jax.device_get(promise.dreamed(agent, params, key, starts, temperatures, cfg.samples))
    paid = np.array([episode.step.reward.sum(dtype=np.float64) for episode in episodes])
    lived = np.array([len(episode.step.reward) - 1 for episode in episodes], np.float64)
    of, best, found = (RETURN, STEPS), float(paid.max()), []
    for quantity, real in zip(of, (paid, lived), strict=True):
        found.append(_measured(quantity, GAME, quantity, estimate(real)))
    found.insert(1, Measured(RETURN, BEST, 0, RETURN, best, 0.0, best, best, len(paid)))
    for i, temperature in enumerate(cfg.temperatures):
        for quantity, values in zip(of, (dreams.total[:, i], dreams.steps[:, i]), strict=True):
            mean = estimate(values.mean(1, dtype=np.float64))
            found.append(_measured(quantity, dream_at(temperature), quantity, mean._replace(std=values.std())))
        times = ratio(dreams.total[:, i].mean(1, dtype=np.float64), paid)
        if times is not None:
            found.append(_measured(PROMISED, dream_at(temperature), "", times))
    return found


def errors(
    agent: Agent, params: AgentParams, key: Key, episodes: Sequence[Transition], cfg: TrustConfig
) -> tuple[list[Measured], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Measure errors of open-loop predictions in recorded episodes [T, ...] each, as `trust.open_loop` defines them.

    Also returned are films of a piece of each of the first `FILMED` episodes that are long enough.
    """
    ends = sorted(len(episode.step.is_first) - 1 for episode in episodes)
    steps = [ahead for ahead in HORIZONS if ahead <= ends[-2]]  # as long as two episodes
    pieces: list[Piece] = []
    found: list[dict[str, dict[str, np.ndarray]]] = []
    films: list[dict[str, tuple[np.ndarray, np.ndarray]]] = []
    with progress(len(episodes), "predict", unit="episode", waits="compiling") as bar:
        for number, episode in enumerate(episodes):
            key_filter, key_cut, key_compare, key_picture = jax.random.split(jax.random.fold_in(key, number), 4)
            draw = float(jax.random.uniform(key_cut))
            states = open_loop.filtered(agent, params, key_filter, episode)
            piece = open_loop.cut(agent, params, episode, states, steps, cfg.pieces, draw)
            found.append(open_loop.compare(agent, params, key_compare, piece, cfg.temperatures, steps, cfg.samples))
            if len(films) < FILMED and (film := open_loop.pictured(agent, params, key_picture, episode, piece)):
                films.append(film)
            pieces.append(piece)
            bar.update()
    for one, apart in zip(found, open_loop.between(agent, pieces, cfg.samples), strict=True):
        for quantity, values in apart.items():
            one[quantity][open_loop.OTHER] = values
    of_all = [_quantity(quantity, steps, [one[quantity] for one in found]) for quantity in found[0]]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *films) if films else {}
    return [one for of_one in of_all for one in of_one], stacked


def _quantity(quantity: str, steps: Sequence[int], found: Sequence[dict[str, np.ndarray]]) -> list[Measured]:
    """Estimate one quantity from its errors [N] in each episode, by what predicted."""
    scale, unit = 1.0, {"reward": "reward", "goes on": "of cases"}.get(quantity, "")
    if not unit:
        level = float(np.nanmean([one[open_loop.OTHER] for one in found]))
        scale, unit = (level, "of the distance to another episode") if level else (1.0, "between equal episodes")
    rows = []
    for label in found[0]:
        means = estimate(np.stack([one[label] for one in found]) / scale)
        for i, ahead in enumerate(steps):
            if means.n[i] >= 2:
                rows.append(_measured(quantity, label, unit, Estimate(*(part[i] for part in means)), ahead))
    return rows


def _measured(quantity: str, by: str, unit: str, found: Estimate, ahead: int = 0) -> Measured:
    mean, std, low, high = (float(value) for value in found[:4])
    return Measured(quantity, by, ahead, unit, mean, std, low, high, int(found.n))


def rows(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Make rows of a result, with intervals."""
    return [
        {
            "name": ", ".join([one.quantity, one.by, *[f"{one.ahead} ahead"] * (one.ahead > 0)]),
            **{"mean": one.mean, "std": one.std, "n": one.n, "unit": one.unit, "published": None},
            "interval": [one.low, one.high],
        }
        for one in measured
    ]


def few(measured: Sequence[Measured]) -> list[Measured]:
    """Select what a person reads first: returns, and errors of the dream nearest to temperature 1, near and far."""
    dreams = {one.by for one in measured if one.by.startswith("dream@")}
    nearest = min(sorted(dreams), key=lambda by: abs(temperature(by) - 1))
    ahead = sorted({one.ahead for one in measured if one.ahead})
    shown = {ahead[0], ahead[len(ahead) // 2], ahead[-1]}
    whole = [one for one in measured if one.quantity in (RETURN, PROMISED)]
    return whole + [one for one in measured if one.by == nearest and one.ahead in shown]


def temperature(by: str) -> float:
    """Read the temperature in the name of a dream."""
    return float(by.partition("@")[2])


def warning(measured: Sequence[Measured]) -> str:
    """Say at which temperatures the dream overpromises, as `promise.overpromises` has it; nothing if it does not."""
    of_return = {one.by: one for one in measured if one.quantity == RETURN}
    best = of_return[BEST]
    dreams = {temperature(by): one.mean for by, one in of_return.items() if by.startswith("dream@")}
    found = promise.overpromises(np.array([best.mean]), dreams)
    if not found:
        return ""
    at = ", ".join(f"{dreams[one]:,.4g} at temperature {one:g}" for one in found)
    return (
        f"Warning: the dream promises more than the game ever paid. The policy earns {at}, on average, and the best of "
        f"{best.n} real episodes was {best.mean:,.4g}. It may exploit errors of the dream."
    )
