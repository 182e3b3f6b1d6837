"""The claim of World Models, in minutes: evolve a controller in the dream of a world model, then play the real game.

Paper: Ha & Schmidhuber 2018, section 4. V and M are those of a stored agent of Doom's Take Cover, by default the one
that this library comes with, which learned them from random play (`doom_take_cover.py`). Its controller is not used: a
new one begins at zero.

    evolve    C, one linear layer, is evolved by CMA-ES in dreams of V and M; it never meets the real game
    evaluate  the new C, the stored one and random play, in the same test episodes of the real game
    report    films, a plot, result.json and a page to open

    python experiments/doom_dream.py                              # what `make demo` does
    python experiments/doom_dream.py --world runs/doom            # in the dream of your own agent
    python experiments/doom_dream.py --evolve.temperature 1.0     # in a dream that is easier to cheat

The same command resumes where it stopped. `python -m dreamjax.play` with its folder lets you play in the new dream.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from dreamjax.acting import random_play
from dreamjax.envs.vizdoom import TakeCover
from dreamjax.evolution import EvolutionConfig
from dreamjax.reporting import Section, curves, film_dream_and_real, pages, result_row
from dreamjax.storage import MetricsLog, RunFolder, load, read_metrics, save_agent
from dreamjax.storage.agents import read_stored
from dreamjax.storage.identity import fingerprint, pin
from dreamjax.training import stages
from dreamjax.training.experiment import (
    Options,
    command,
    exit_on_bad_input,
    read_command_line,
    run_folder,
    stored_agent,
)
from dreamjax.training.stages import Evolve
from dreamjax.types import Agent, AgentParams
from dreamjax.worldmodels import search

NAME = "doom_dream"
UNIT = "tics survived"  # 35 a second
COMMITTED = Path(__file__).parent / "results" / "doom_take_cover"


@dataclass(frozen=True)
class Config:
    """Settings for two cores."""

    preset: str = "demo"
    seed: int = 0
    world: Path | None = None  # the agent in whose dream C evolves, a file or folder; otherwise the committed one
    evolve: Evolve = Evolve(EvolutionConfig(64), 12, 8, 1.5, evaluate_every=4, evaluation_episodes=128)
    episodes: int = 32  # test episodes of the real game, for each contender
    dream_steps: int = 1050  # of a dream that C evolves in: half of the game's limit, for half of the time
    dreams: int = 128  # that are scored, as long as the game
    film_steps: int = 1050
    max_steps: int = 2100  # of an episode of the real game


DEMO = Config()
SMOKE = replace(
    DEMO,
    preset="smoke",
    evolve=Evolve(EvolutionConfig(8), 2, 2, 1.5, evaluate_every=2, evaluation_episodes=4),
    episodes=1,
    dream_steps=40,
    dreams=2,
    film_steps=12,
    max_steps=40,
)
PRESETS = {config.preset: config for config in (DEMO, SMOKE)}


def make_env(cfg: Config) -> partial[TakeCover]:
    return partial(TakeCover, max_steps=cfg.max_steps)


def score(cfg: Config, run: RunFolder, agent: Agent, params: AgentParams, stored: AgentParams) -> list[dict]:
    """Score the new controller, the stored one and random play in the real game, and the new one in its dreams."""
    key_real, key_dream = jax.random.split(jax.random.key(cfg.seed))
    random = random_play.random_agent(agent.model.spec, "held"), random_play.PARAMS
    contenders = {"new": (agent, params), "stored": (agent, stored), "random": random}
    rows = [
        result_row(f"{name}, real", stages.evaluate(run, key_real, name, *contender, make_env(cfg), cfg.episodes), UNIT)
        for name, contender in contenders.items()
    ]
    dreamed = search.score(agent, params, key_dream, cfg.dreams, cfg.evolve.temperature)
    return [*rows, result_row("new, dream", np.asarray(dreamed), UNIT)]


def report(cfg: Config, run: RunFolder, agent: Agent, params: AgentParams, stored: AgentParams) -> None:
    """Score, draw, film and summarise."""
    rows = score(cfg, run, agent, params, stored)
    curves.fitness_curve(read_metrics(run.path / "metrics.jsonl")["evolve"], run.path / "fitness.png", f"dream: {UNIT}")
    random = random_play.random_agent(agent.model.spec, "held"), random_play.PARAMS
    settings = make_env(cfg), jax.random.key(cfg.seed), cfg.film_steps, cfg.evolve.temperature
    film_dream_and_real(run.path / "stored.mp4", agent, stored, *settings)
    film_dream_and_real(run.path / "new.mp4", agent, params, *settings, beside={"random play": random})
    new, old, by_chance = (row["mean"] for row in rows[:3])
    minutes = run.stage_record("evolve")["seconds"] / 60
    sections = [
        Section(
            "The agent that the world model came with",
            f"Left one of its dreams, right the real game, where it survives {old:.0f} tics on average.",
            ["stored.mp4"],
        ),
        Section(
            "The agent that evolved just now",
            f"Left one of its dreams; in the middle the real game, where it survives {new:.0f} tics on average, and it "
            f"had never met the game before; right the same episode played at random, {by_chance:.0f} tics.",
            ["new.mp4"],
        ),
        Section(
            "Evolution inside the dream",
            f"{cfg.evolve.generations} generations of {cfg.evolve.search.population_size} controllers, "
            f"{cfg.evolve.episodes} dreams each, in {minutes:.1f} minutes.",
            ["fitness.png"],
        ),
    ]
    lead = (
        f"A linear controller, evolved in {minutes:.1f} minutes inside the dream of a world model, survives {new:.0f} "
        f"tics in the real game, {new / by_chance:.1f} times as long as random play."
    )
    title = "Evolved in a dream, played for real: Doom's Take Cover"
    pages.report(run, NAME, command(NAME, cfg, PRESETS), rows, title, sections, lead=lead)
    print(lead)


@exit_on_bad_input()
def main() -> None:
    """Evolve a controller, unless that is done, and let it play."""
    cfg, options = read_command_line(NAME, __doc__, PRESETS, Options)
    may_change = stages.may_change(["evolve"], "episodes", "dreams", "film_steps")
    run = run_folder(NAME, cfg, options, may_change=may_change)
    world = cfg.world or COMMITTED
    agent, stored = stored_agent(world, "python experiments/doom_take_cover.py --preset cpu")
    pin(run.path, "model", fingerprint(stored.model, stored.starts, code=False))
    if not (run.stage_done("evolve") and (run.path / "agent.npz").exists()):
        spec, key = agent.model.spec._replace(max_steps=cfg.dream_steps), jax.random.key(cfg.seed)
        short = Agent(agent.model._replace(spec=spec), agent.policy)
        with MetricsLog(run.path) as log:
            evolved = stages.evolve_in_dreams(run, log, key, cfg.evolve, short, stored)
        made = read_stored(world).config, agent, stored._replace(policy=evolved)
        save_agent(run.path / "agent.npz", *made, task="take_cover")
    report(cfg, run, agent, load(run.path)[1], stored)


if __name__ == "__main__":
    main()
