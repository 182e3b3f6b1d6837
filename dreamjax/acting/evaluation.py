"""Evaluating an agent: whole episodes of seeds that no training saw, each played once and noted when it ends."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np

from dreamjax import checks
from dreamjax.acting.playing import Played, Request, play
from dreamjax.acting.pool import Pool
from dreamjax.envs.adaptation import adapted
from dreamjax.envs.gymnasium import is_adapted
from dreamjax.rollout import population_of_one
from dreamjax.storage.atomic import replacing
from dreamjax.storage.identity import fingerprint
from dreamjax.storage.progress import progress
from dreamjax.types import Agent, AgentParams, Key


@checks.arguments
def evaluate(
    agent: Agent,
    params: AgentParams,
    make_env: Callable[[], gymnasium.Env],
    seeds: Sequence[int],
    key: Key,
    *,
    envs: int = 16,
    workers: int | None = None,
    notes: str | os.PathLike[str] | None = None,
    label: str = "evaluate",
) -> np.ndarray:
    """Play one episode per seed; return the sums of their rewards. Shapes: -> float64 [len(seeds)].

    With `notes`, a file of JSON lines, every episode is noted there when it ends, and what the file holds is not played
    again if it is of the same agent, parameters, key, environment and code. `envs` environments are played at once, by
    as many `workers` as there are cores if not given; 0 plays in this process.

    Raises: as `acting.playing.play` does; with notes, as `storage.identity.describe` does, if agent or environment are
        not made of functions, classes and plain values.
    """
    seeds = [int(seed) for seed in seeds]  # also those of an array
    of = fingerprint(agent, params.model, params.policy, key, make_env) if notes else ""
    totals = _noted(Path(notes), of) if notes else {}
    missing = [seed for seed in seeds if seed not in totals]
    with progress(len(seeds), label, initial=len(seeds) - len(missing), unit="episode") as bar:
        for played in play_all(agent, params, make_env, missing, key, envs=envs, workers=workers):
            totals[played.seed] = played.total
            if notes:
                row = {"seed": played.seed, "return": played.total, "steps": played.steps}
                with Path(notes).open("a") as file:
                    file.write(json.dumps(row | {"terminal": played.terminated, "of": of}) + "\n")
            bar.update()
            known = [totals[seed] for seed in seeds if seed in totals]
            bar.set_postfix(mean=f"{np.mean(known) + 0.0:.4g}")  # never -0
    return np.array([totals[seed] for seed in seeds])


def play_all(
    agent: Agent,
    params: AgentParams,
    make_env: Callable[[], gymnasium.Env],
    seeds: Sequence[int],
    key: Key,
    *,
    envs: int = 16,
    workers: int | None = None,
    record: bool = False,
) -> Iterator[Played]:
    """Play one episode per seed with one agent, in environments made for it; yield each that ends.

    An agent with the kind of actions that `envs.adapted` makes acts in adapted environments, as in its training.
    `params.policy` is not stacked. What is recorded has shapes [steps + 1, ...], as in `Played`.
    """
    if not len(seeds):
        return
    envs = min(envs, len(seeds))
    workers = (os.cpu_count() or 1) * (envs > 1) if workers is None else workers
    one = AgentParams(params.model, population_of_one(params.policy))
    if is_adapted(agent.model.spec):
        make_env = partial(adapted, make_env)
    with Pool(make_env, envs, workers) as pool:
        yield from play(pool, agent, one, key, (Request(int(seed)) for seed in seeds), record=record)


def record_episode(
    agent: Agent, params: AgentParams, make_env: Callable[[], gymnasium.Env], seed: int, key: Key
) -> Played:
    """Play and record the episode of one seed in this process, as `evaluate` plays it with the same key.

    Shapes: what is recorded is [steps + 1, ...], as in `Played`.
    """
    (played,) = play_all(agent, params, make_env, [seed], key, envs=1, workers=0, record=True)
    return played


def _noted(path: Path, of: str) -> dict[int, float]:
    """Read the returns by seed that were noted of one fingerprint, without a line that a kill cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    with replacing(path) as temporary:
        temporary.write_text("".join(whole))
    rows = [json.loads(line) for line in whole]
    return {row["seed"]: row["return"] for row in rows if row.get("of") == of}
