"""Meeting a stored agent: its score in test episodes, a film of one beside a dream, and the score of Crafter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from dreamjax.acting import seeds
from dreamjax.acting.evaluation import evaluate
from dreamjax.reporting.films import film_dream_and_real
from dreamjax.reporting.results import result_row, shown_measurement
from dreamjax.storage.metrics import read_episodes
from dreamjax.types import Agent, AgentParams, Key


def evaluate_and_film(
    folder: Path,
    agent: Agent,
    params: AgentParams,
    make_env: Callable[[], gymnasium.Env],
    key: Key,
    episodes: int,
    unit: str,
    *,
    steps: int,
    temperature: float = 1.0,
    name: str = "dream_and_real",
) -> None:
    """Score an agent in test episodes, and film at most `steps` of the first of them beside a dream.

    The score is printed with its `unit`; the film is `<name>.mp4` in the folder, where `evaluation.jsonl` has a note of
    every episode, so that none is played again with the same agent, environment and code.

    Shapes: key [], params.policy not stacked, params.starts [S, ...].
    Raises: as `evaluate` and `film_dream_and_real` do.
    """
    notes = folder / "evaluation.jsonl"
    row = result_row("real", evaluate(agent, params, make_env, seeds.test(episodes), key, notes=notes), unit)
    print(f"{shown_measurement(row)}, {row['n']} episodes")
    film_dream_and_real(folder / f"{name}.mp4", agent, params, make_env, key, steps, temperature)
    print(f"Open {folder / f'{name}.mp4'}")


def crafter_score(run: Path) -> dict[str, Any]:
    """Make the row of the score that Crafter is published with: of all training episodes of a run."""
    from dreamjax.envs.crafter import ACHIEVEMENTS, score

    told = read_episodes(run)
    counts = np.stack([told[f"info/achievements/{name}"][1] for name in ACHIEVEMENTS], -1)
    percent = score([dict(zip(ACHIEVEMENTS, episode, strict=True)) for episode in counts])
    return result_row(f"crafter_reward, Crafter score of {len(counts)} episodes", np.array([percent]), "%")
