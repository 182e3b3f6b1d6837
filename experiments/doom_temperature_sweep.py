"""How certain may a dream be? Controllers evolved in dreams of different temperatures, and what they are worth outside.

Paper: Ha & Schmidhuber 2018, sections 4.4 and 5 (cheating the world model), table 2. All controllers share the V and M
of one trained agent, that of doom_take_cover. For every temperature, with what the paper gave C to read ([z, c, h])
and, as an ablation, with z alone, so that C cannot look into the memory that it could fool:

    evolve    C by CMA-ES in the dream of that temperature
    dream     episodes of C in its own dream, and in those of the other temperatures
    real      fresh episodes of the real game
    look      how often fireballs are seen, in dreams of that temperature and in the game

    python experiments/doom_temperature_sweep.py --folder runs/temperatures
    python experiments/doom_temperature_sweep.py --preset smoke --folder runs/smoke

The command started again goes on where it stopped. Every field of `Config` can be set; `--world` is the folder of
another agent. What the committed run measured: results/doom_temperature_sweep.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import dream
from dreamjax.acting import random_play, seeds
from dreamjax.acting.evaluation import evaluate, play_all
from dreamjax.envs.vizdoom import TakeCover, take_cover_spec
from dreamjax.evolution import EvolutionConfig
from dreamjax.reporting import curves, pages
from dreamjax.reporting.films import film_temperatures
from dreamjax.reporting.pages import Section
from dreamjax.reporting.results import result_row
from dreamjax.storage.agents import load
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog, read_metrics
from dreamjax.training import stages
from dreamjax.training.experiment import command, read_command_line, run_folder
from dreamjax.training.stages import Evolve
from dreamjax.types import Agent, AgentParams, Array, Key
from dreamjax.worldmodels import model, search
from dreamjax.worldmodels.model import DOOM

NAME = "doom_temperature_sweep"
COMMITTED = Path(__file__).parent / "results" / "doom_take_cover"
FPS = 35  # tics per second of the game
PUBLISHED = {  # temperature -> its dream, the real game
    0.10: ("2086 ± 140", "193 ± 58"),
    0.50: ("2060 ± 277", "196 ± 50"),
    1.00: ("1145 ± 690", "868 ± 511"),
    1.15: ("918 ± 546", "1092 ± 556"),
    1.30: ("732 ± 269", "753 ± 139"),
}
FIREBALL = (200, 170, 4)  # at least so much red and green, in so many of the 64 x 64 pixels
Features = Literal["zch", "z"]  # that C reads


@dataclass(frozen=True)
class Config:
    """Settings for two cores. The paper evolved for 1,800 generations, with 16 dreams for each individual."""

    preset: str = "cpu"
    seed: int = 0
    world: Path | None = None  # folder of the agent whose V and M dream; the committed one if not given
    temperatures: tuple[float, ...] = tuple(PUBLISHED)
    features: tuple[Features, ...] = ("zch", "z")
    evolve: Evolve = Evolve(generations=25, episodes=8, evaluate_every=25, evaluation_episodes=100)
    real_episodes: int = 100  # to score with, and as many dreamed ones
    skill: int = 4  # of Doom; the scenario's own
    max_steps: int = 2100
    looks: int = 16  # dreams, and games, in which fireballs are looked for
    look_steps: int = 300
    film_steps: int = 700


CPU = Config()
SMOKE = replace(
    CPU,
    preset="smoke",
    temperatures=(0.5, 1.15),
    evolve=Evolve(EvolutionConfig(8), generations=2, episodes=1, evaluate_every=2, evaluation_episodes=2),
    real_episodes=2,
    max_steps=100,
    looks=2,
    look_steps=20,
    film_steps=20,
)
PRESETS = {config.preset: config for config in (CPU, SMOKE)}


def make_env(cfg: Config) -> partial[TakeCover]:
    return partial(TakeCover, skill=cfg.skill, max_steps=cfg.max_steps)


def shows_fireball(frames: Array) -> Array:
    """Say which frames show a fireball. Shapes: uint8 [..., H, W, 3] -> bool [...]."""
    red, green, pixels = FIREBALL
    return ((frames[..., 0] >= red) & (frames[..., 1] >= green)).sum((-2, -1)) >= pixels


@partial(jax.jit, static_argnames=("agent", "steps"))
def fireballs_dreamed(agent: Agent, params: AgentParams, keys: Key, temperature: Array | float, steps: int) -> Array:
    """Share of frames with a fireball, until the dream ends, in dreams of random play. Shapes: keys [N] -> [N]."""
    acting_at_random = Agent(agent.model, random_play.random_agent(agent.model.spec).policy)

    def look(key: Key) -> Array:
        key_reset, key_imagine = jax.random.split(key)
        begin, _ = dream.environment(agent.model, params.model, params.starts, temperature).reset(key_reset)
        blind = AgentParams(params.model, ())
        dreamed = dream.imagine(acting_at_random, blind, key_imagine, begin.latent, steps, temperature)
        seen = shows_fireball(jax.lax.map(partial(agent.model.decode, params.model), dreamed.states))
        # What M makes of the time after the end, of which it was taught nothing, does not count.
        lives = jnp.cumprod(jax.vmap(partial(agent.model.outcome, params.model))(dreamed.states).continues >= 0.5)
        return (seen * lives).sum() / lives.sum()

    return jax.lax.map(look, keys)


def look(cfg: Config, run: RunFolder, key: Key, agent: Agent, params: AgentParams) -> dict[str, Any]:
    """Look for fireballs in dreams of every temperature and in the game, both of random play."""
    if not run.stage_done("look"):
        key_dream, key_play = jax.random.split(key)
        keys = jax.random.split(key_dream, cfg.looks)
        with run.stage("look"):
            shares = [fireballs_dreamed(agent, params, keys, t, cfg.look_steps) for t in cfg.temperatures]
            spec = agent.model.spec._replace(max_steps=cfg.look_steps)
            actor = random_play.random_agent(spec), random_play.PARAMS
            played = play_all(*actor, make_env(cfg), seeds.test(cfg.looks), key_play, record=True)
            real = [shows_fireball(one.recorded.step.observation).mean() for one in played if one.recorded]
            run.finish_stage("look", {"dreamed": np.array(shares).tolist(), "real": np.array(real).tolist()})
    return run.stage_record("look")["summary"]


def score(
    cfg: Config, run: RunFolder, key: Key, features: Features, agent: Agent, evolved: dict[float, AgentParams]
) -> dict[str, Any]:
    """Score all controllers of a kind, in the dream of every temperature and in the real game."""
    if not run.stage_done(f"score-{features}"):
        key_dream, key_real = jax.random.split(key)
        test, dreamed, real = seeds.test(cfg.real_episodes), [], []
        with run.stage(f"score-{features}"):
            for trained, params in evolved.items():
                dreams = [search.score(agent, params, key_dream, cfg.real_episodes, t) for t in cfg.temperatures]
                dreamed.append(np.array(dreams))
                name = f"{features}-real@{trained:.2f}"
                notes = run.path / "evaluation" / f"{name}.jsonl"
                real.append(evaluate(agent, params, make_env(cfg), test, key_real, notes=notes, label=name))
            run.finish_stage(
                f"score-{features}", {"dreamed": np.array(dreamed).tolist(), "real": np.array(real).tolist()}
            )
    return run.stage_record(f"score-{features}")["summary"]


def score_random(cfg: Config, run: RunFolder, key: Key, agent: Agent) -> np.ndarray:
    """Play at random."""
    actor = random_play.random_agent(agent.model.spec), random_play.PARAMS
    notes = run.path / "evaluation" / "random.jsonl"
    with run.stage("random"):
        return evaluate(*actor, make_env(cfg), seeds.test(cfg.real_episodes), key, notes=notes, label="random")


def result_rows(cfg: Config, scores: dict[Features, Any], looked: dict[str, Any], random: np.ndarray) -> list[dict]:
    """All that is known of each temperature."""
    rows = []
    for features, of in scores.items():
        label = "" if features == "zch" else f"{features} "
        for i, temperature in enumerate(cfg.temperatures):
            published = PUBLISHED.get(temperature, (None, None)) if not label else (None, None)
            values = of["dreamed"][i][i], of["real"][i]
            for name, scored, known in zip(("dream", "real"), values, published, strict=True):
                rows.append(result_row(f"{label}{name}@{temperature:.2f}", np.array(scored), "tics survived", known))
    rows.append(result_row("random", random, "tics survived", "210 ± 108"))
    for temperature, shares in zip(cfg.temperatures, looked["dreamed"], strict=True):
        rows.append(result_row(f"fireballs@{temperature:.2f}", 100 * np.array(shares), "% of frames"))
    return [*rows, result_row("fireballs in the game", 100 * np.array(looked["real"]), "% of frames")]


def draw(cfg: Config, run: RunFolder, scores: dict[Features, Any]) -> list[str]:
    """Draw scores by temperature beside the published ones, and the cross tables; return the names of the files."""
    at, names = np.array(cfg.temperatures), [f"{temperature:.2f}" for temperature in cfg.temperatures]
    published = np.array([[[float(x) for x in text.split(" ± ")] for text in pair] for pair in PUBLISHED.values()])
    panels = {
        f"{name}: tics survived": {"published": (np.array(list(PUBLISHED)), *published[:, i].T)}
        for i, name in enumerate(("dream", "real"))
    }
    files = ["temperatures.png"]
    for features, of in scores.items():
        dreamed, real = np.array(of["dreamed"]), np.array(of["real"])
        own = dreamed[np.arange(len(at)), np.arange(len(at))]
        shown = f"C sees {', '.join(features)}"
        panels["dream: tics survived"][shown] = (at, own.mean(1), own.std(1))
        panels["real: tics survived"][shown] = (at, real.mean(1), real.std(1))
        files.append(f"cross-{features}.png")
        table = np.concatenate([dreamed.mean(2), real.mean(1)[:, None]], 1)
        curves.cross_table(table, names, [*names, "real"], ("evolved at", "survives at"), run.path / files[-1])
    curves.series_with_bars(panels, "temperature", run.path / "temperatures.png")
    metrics = read_metrics(run.path / "metrics.jsonl")
    fitness = {name: {"fitness_mean": stage["fitness_mean"]} for name, stage in metrics.items()}
    curves.learning_curves(fitness, run.path / "evolution.png")
    return files


def main() -> None:
    """Do whatever the folder does not hold."""
    cfg, options = read_command_line(NAME, __doc__, PRESETS)
    run = run_folder(NAME, cfg, options)
    key_evolve, key_score, key_look, key_film = jax.random.split(jax.random.key(cfg.seed), 4)
    _, stored = load(cfg.world or COMMITTED)
    agents = {f: model.make(replace(DOOM, features=f), take_cover_spec(cfg.max_steps)) for f in cfg.features}
    evolved: dict[Features, dict[float, AgentParams]] = {features: {} for features in agents}
    with MetricsLog(run.path) as log:
        for features, agent in agents.items():
            for temperature in cfg.temperatures:  # all with the same luck
                evolve, name = replace(cfg.evolve, temperature=temperature), f"{features}-{round(100 * temperature)}"
                policy = stages.evolve_in_dreams(run, log, key_evolve, evolve, agent, stored, name)
                evolved[features][temperature] = stored._replace(policy=policy)
    scores = {f: score(cfg, run, key_score, f, agent, evolved[f]) for f, agent in agents.items()}
    first, agent = next(iter(agents.items()))
    looked = look(cfg, run, key_look, agent, stored)
    with run.stage("film"):
        real = make_env(cfg), seeds.TEST[0]
        films = film_temperatures(run.path, "evolved", agent, evolved[first], key_film, real, cfg.film_steps, FPS)
    rows = result_rows(cfg, scores, looked, score_random(cfg, run, jax.random.fold_in(key_score, 1), agent))
    pictures = draw(cfg, run, scores)
    sections = [
        Section("Scores by temperature", "Published scores beside measured ones.", pictures[:1]),
        Section("Evolved at one temperature, dreaming at another", media=pictures[1:]),
        Section("From the coldest dream to the warmest", "Left its dream, right the real game.", films),
        Section("Evolution", media=["evolution.png"]),
    ]
    pages.report(run, NAME, command(NAME, cfg, PRESETS), rows, "World Models: how certain may a dream be?", sections)


if __name__ == "__main__":
    main()
