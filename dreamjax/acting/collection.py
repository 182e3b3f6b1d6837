"""Recording episodes, by an agent or at random, to files.

Attempt number i depends on (seed, i) alone and is stored under its number, so a collection that was stopped anywhere
and started again ends with the files it would have had. Numbers of discarded attempts are missing from the folder.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dreamjax.acting import seeds
from dreamjax.acting.playing import Played, Request, play
from dreamjax.acting.pool import Pool
from dreamjax.rollout import population_of_one
from dreamjax.storage import episodes as store
from dreamjax.storage.atomic import read_json, write_json
from dreamjax.storage.episodes import Episode, Store
from dreamjax.storage.identity import describe, fingerprint
from dreamjax.types import Agent, AgentParams

Settings = dict[str, int | str]
NOTES = "collect.json"  # settings, attempts that were too short, and the most episodes that were ever asked for


@dataclass(frozen=True)
class CollectConfig:
    """Which episodes are kept."""

    episodes: int
    seed: int = 0
    min_steps: int = 1  # of an episode that is kept
    name: str = "random"  # of who acts; a folder is filled by one

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.min_steps < 1:
            raise ValueError(f"need episodes >= 1 and min_steps >= 1, got {self.episodes} and {self.min_steps}")


def collect(
    cfg: CollectConfig,
    folder: str | os.PathLike[str],
    pool: Pool,
    agent: Agent,
    params: AgentParams,
    progress: Callable[[int, int], None] | None = None,
) -> Store:
    """Fill `folder` with the first `cfg.episodes` attempts that last long enough, and open these.

    What the folder holds already is kept, so this also continues a collection that was stopped, or makes one larger;
    asking for fewer episodes than there are opens the first of them and deletes none. `params.policy` is not stacked.
    `progress` is called with (episodes kept, attempts made) whenever an attempt ends.

    Raises: ValueError if the folder was filled with other settings, by another agent or in another environment; OSError
        if the disk is full; RuntimeError if an episode keeps failing. After any of these, the same call continues where
        it stopped.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings: Settings = {
        "seed": cfg.seed,
        "min_steps": cfg.min_steps,
        "max_steps": agent.model.spec.max_steps,
        "by": cfg.name,
        "agent": fingerprint(agent, params.model, params.policy, code=False),
        "environment": describe(pool.make_env, code=False),
    }
    short, asked = _continue(folder, settings, cfg.episodes)
    for unfinished in folder.glob(".episode_*"):  # of a process that was killed while writing
        unfinished.unlink()
    kept = {int(path.stem.removeprefix("episode_")) for path in folder.glob("episode_*.npz")}
    if kept:
        store.open_store(folder)  # refuses episodes of an older version before anything is played
    numbers: list[int] = []  # of the attempts, in the order in which they were requested

    def requests() -> Iterator[Request]:
        for number in _missing(kept, short, cfg.episodes):
            numbers.append(number)
            yield Request(seeds.collecting(cfg.seed, number))

    one = AgentParams(params.model, population_of_one(params.policy))
    key = jax.random.key(cfg.seed)
    for made, played in enumerate(play(pool, agent, one, key, requests(), record=True, rounded=True), start=1):
        number = numbers[played.request]
        if played.steps >= cfg.min_steps:
            store.write(folder, number, to_episode(played))
            kept.add(number)
        else:
            short.add(number)
            _note(folder, settings, short, asked)
        if progress:
            progress(min(len(kept), cfg.episodes), made)
    for surplus in sorted(kept)[asked:]:  # that were under way when the last one came in
        store.episode_path(folder, surplus).unlink()
    return store.open_store(folder).head(cfg.episodes)


def to_episode(played: Played) -> Episode:
    """Make an episode to be stored of one that was recorded with rounded actions, of a single array."""
    assert played.recorded is not None  # it was asked for
    step, action = played.recorded
    action = np.asarray(action, np.float16)
    return Episode(step.observation, action, np.asarray(step.reward, np.float32), played.terminated, played.seed)


def _missing(kept: set[int], short: set[int], episodes: int) -> Iterator[int]:
    """Yield the missing attempts in order, as long as too few with smaller numbers are known to be kept.

    What becomes known of those that were yielded is added to the sets meanwhile.
    """
    stored = frozenset(kept)
    passed = 0  # of those, with smaller numbers; all others that are kept have been yielded, and so have they
    for number in itertools.count():
        if passed + len(kept) - len(stored) >= episodes:
            return
        if number in stored:
            passed += 1
        elif number not in short:
            yield number


def _continue(folder: Path, settings: Settings, episodes: int) -> tuple[set[int], int]:
    """Return the attempts that earlier calls found too short, and the most episodes that any call asked for.

    Raises: ValueError for a collection that was begun with other settings.
    """
    path = folder / NOTES
    begun: dict[str, Any] = {"settings": settings, "short": [], "asked": 0}
    if path.exists():
        begun = read_json(path)
    if begun["settings"] != settings:
        both = [(name, begun["settings"].get(name), now) for name, now in settings.items()]
        differing = ", ".join(f"{name} {before}, not {now}" for name, before, now in both if before != now)
        raise ValueError(f"{folder} was collected with {differing}; use the same settings or another folder")
    short, asked = set(begun["short"]), max(begun["asked"], episodes)
    _note(folder, settings, short, asked)
    return short, asked


def _note(folder: Path, settings: Settings, short: set[int], asked: int) -> None:
    write_json(folder / NOTES, {"settings": settings, "short": sorted(short), "asked": asked})
