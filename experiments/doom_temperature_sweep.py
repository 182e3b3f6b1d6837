"""How certain may a dream be? Controllers evolved in dreams of different temperatures, and their scores in the game.

Paper: Ha & Schmidhuber 2018, sections 4.4 and 5 (cheating the world model), table 2. All controllers share the V and M
of one trained agent, that of doom_take_cover. For every temperature, with the features that C reads in the paper ([z,
c, h]) and, as an ablation, with z alone, so that C cannot exploit the state of the memory that it is to fool:

    evolve    C by CMA-ES in dreams of that temperature
    dream     episodes of C in dreams of that temperature, and of the others
    real      test episodes of the real game
    look      how often fireballs are seen, in dreams of that temperature and in the game

    python experiments/doom_temperature_sweep.py --folder runs/temperatures

The same command resumes where it stopped; `--world` is the folder of another agent. Measured in 72 minutes on two
cores, 100 episodes of one seed (results/doom_temperature_sweep): 738 ± 472 tics in the game when evolved at temperature
0.10, 785 ± 443 at 1.15, 830 ± 553 at 1.30; the paper, after 1,800 generations instead of 25, has 193, 1092 and 753.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from dreamjax.acting import play_all, random_play, seeds
from dreamjax.envs.vizdoom import TakeCover, take_cover_spec
from dreamjax.evolution import EvolutionConfig
from dreamjax.reporting import Section, curves, film_dream, film_dream_and_real, pages, published_at, result_row
from dreamjax.storage import Change, MetricsLog, RunFolder, load, read_metrics
from dreamjax.storage.identity import fingerprint, pin
from dreamjax.training import stages
from dreamjax.training.experiment import Options, command, exit_on_bad_input, read_command_line, run_folder
from dreamjax.training.stages import Evolve
from dreamjax.types import Agent, AgentParams, Key
from dreamjax.worldmodels import DOOM, model, search

NAME = "doom_temperature_sweep"
COMMITTED = Path(__file__).parent / "results" / "doom_take_cover"
UNIT = "tics survived"  # 35 a second
PUBLISHED = {  # temperature -> its dream, the real game
    0.10: ("2086 ± 140", "193 ± 58"),
    0.50: ("2060 ± 277", "196 ± 50"),
    1.00: ("1145 ± 690", "868 ± 511"),
    1.15: ("918 ± 546", "1092 ± 556"),
    1.30: ("732 ± 269", "753 ± 139"),
}
FIREBALL = (200, 170, 4)  # a frame shows one if 4 of its 64 x 64 pixels have at least so much red and green
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
    episodes: int = 100  # test episodes in which controllers are scored, and as many dreamed ones
    skill: int = 4  # of Doom; the scenario's own
    max_steps: int = 2100
    looks: int = 16  # dreams, and real episodes, in which fireballs are looked for
    look_steps: int = 300
    film_steps: int = 700


CPU = Config()
SMOKE = replace(
    CPU,
    preset="smoke",
    temperatures=(0.5, 1.15),
    evolve=Evolve(EvolutionConfig(8), generations=2, episodes=1, evaluate_every=2, evaluation_episodes=2),
    episodes=2,
    max_steps=100,
    looks=2,
    look_steps=20,
    film_steps=20,
)
PRESETS = {config.preset: config for config in (CPU, SMOKE)}


def make_env(cfg: Config) -> partial[TakeCover]:
    return partial(TakeCover, skill=cfg.skill, max_steps=cfg.max_steps)


def share_with_fireball(frames: np.ndarray) -> float:
    """Return the share of frames that show a fireball. Shapes: uint8 [T, H, W, 3]."""
    red, green, pixels = FIREBALL
    return float((((frames[..., 0] >= red) & (frames[..., 1] >= green)).sum((-2, -1)) >= pixels).mean())


def look(cfg: Config, run: RunFolder, key: Key, agent: Agent, params: AgentParams) -> dict[str, list[float]]:
    """Look for fireballs in dreams of every temperature and in the game, both of a random policy."""
    key_dream, key_real = jax.random.split(key)
    keys, steps = jax.random.split(key_dream, cfg.looks), cfg.look_steps
    random = random_play.random_agent(agent.model.spec._replace(max_steps=steps))

    def measure() -> dict[str, list[float]]:
        shares = {}
        for t in cfg.temperatures:
            films = [film_dream(Agent(agent.model, random.policy), params, one, steps, t) for one in keys]
            # The frame with which a dream ends does not count.
            shares[f"@{t:.2f}"] = [share_with_fireball(one[: len(one) - (len(one) < steps)]) for one in films]
        test = seeds.test(cfg.looks)
        played = play_all(random, random_play.PARAMS, make_env(cfg), test, key_real, record=True)
        real = [one.recorded.step.observation for one in played if one.recorded]
        return shares | {" in the game": [share_with_fireball(one) for one in real]}

    return stages.once(run, "look", fingerprint(cfg, agent.model, random.policy, params, key, FIREBALL), measure)


def evolve(
    cfg: Config, run: RunFolder, key: Key, features: Features, agent: Agent, world: AgentParams
) -> dict[float, AgentParams]:
    """Evolve a controller in dreams of each temperature, all with the same random numbers."""
    evolved = {}
    with MetricsLog(run.path) as log:
        for t in cfg.temperatures:
            settings, name = replace(cfg.evolve, temperature=t), f"{features}-{100 * t:.0f}"
            policy = stages.evolve_in_dreams(run, log, key, settings, agent, world, name)
            evolved[t] = world._replace(policy=policy)
    return evolved


def score(
    cfg: Config, run: RunFolder, key: Key, features: Features, agent: Agent, evolved: dict[float, AgentParams]
) -> tuple[np.ndarray, np.ndarray]:
    """Score T controllers in dreams of all T temperatures and in the real game. Shapes: -> [T, T, N], [T, N]."""
    key_dream, real = jax.random.fold_in(key, 1), []
    every = partial(search.score, agent, key=key_dream, episodes=cfg.episodes)
    measure = lambda: {t: [every(one, temperature=t).tolist() for one in evolved.values()] for t in cfg.temperatures}  # noqa: E731
    dreamed = stages.once(run, f"dream-{features}", fingerprint(cfg, agent, evolved, key_dream), measure)
    for t, params in evolved.items():
        name = f"{features}-{100 * t:.0f}"
        real.append(stages.evaluate(run, key, name, agent, params, make_env(cfg), cfg.episodes))
    return np.array(list(dreamed.values())).swapaxes(0, 1), np.array(real)


def report(cfg: Config, run: RunFolder, scores: dict[Features, Any], rows: list[dict], films: list[str]) -> None:
    """Draw scores by temperature beside the published ones, and who survives in whose dream; summarise."""
    at, names = np.array(cfg.temperatures), [f"{t:.2f}" for t in cfg.temperatures]
    known = np.array([[text.split(" ± ") for text in pair] for pair in PUBLISHED.values()], float)
    dream, game = ({"published": (np.array(list(PUBLISHED)), *known[:, i].T)} for i in range(2))
    for features, (dreamed, real) in scores.items():
        own = dreamed[np.arange(len(at)), np.arange(len(at))]
        for panel, returns in ((dream, own), (game, real)):
            panel[f"C reads {', '.join(features)}"] = (at, returns.mean(1), returns.std(1))
        table, path = np.concatenate([dreamed.mean(2), real.mean(1)[:, None]], 1), run.path / f"cross-{features}.png"
        curves.cross_table(table, names, [*names, "real"], ("evolved at", "survives at"), path)
    panels = {f"in the dream: {UNIT}": dream, f"in the real game: {UNIT}": game}
    curves.series_with_bars(panels, "temperature", run.path / "temperatures.png")
    metrics = read_metrics(run.path / "metrics.jsonl").items()
    fitness = {name: {"fitness_mean": stage["fitness_mean"]} for name, stage in metrics}
    curves.learning_curves(fitness, run.path / "evolution.png")
    sections = [
        Section("Scores by temperature", "Published scores beside measured ones.", ["temperatures.png"]),
        Section("Evolved at one temperature, dreaming at another", media=[f"cross-{name}.png" for name in scores]),
        Section("From the coldest dream to the warmest", "A dream on the left, the real game on the right.", films),
        Section("Evolution", media=["evolution.png"]),
    ]
    pages.report(run, NAME, command(NAME, cfg, PRESETS), rows, "World Models: how certain may a dream be?", sections)


@exit_on_bad_input()
def main() -> None:
    """Do whatever the folder does not hold."""
    cfg, options = read_command_line(NAME, __doc__, PRESETS, Options)
    changes = {"episodes": Change(), "film_steps": Change(), "evolve.generations": Change(("dream-zch", "dream-z"))}
    run = run_folder(NAME, cfg, options, may_change=changes)
    key_evolve, key_score, key_look = jax.random.split(jax.random.key(cfg.seed), 3)
    _, stored = load(cfg.world or COMMITTED)
    pin(run.path, "world", fingerprint(stored.model, stored.starts, code=False))
    scores, rows, films = {}, [], []
    for features in cfg.features:
        agent = model.make(replace(DOOM, features=features), take_cover_spec(cfg.max_steps))
        evolved = evolve(cfg, run, key_evolve, features, agent, stored)
        dreamed, real = scores[features] = score(cfg, run, key_score, features, agent, evolved)
        for i, t in enumerate(cfg.temperatures):
            name, known = ("", PUBLISHED.get(t, (None, None))) if features == "zch" else (f"{features} ", (None, None))
            beside = [published_at(one, {"after {:,} generations": (cfg.evolve.generations, 1800)}) for one in known]
            rows.append(result_row(f"{name}dream@{t:.2f}", dreamed[i, i], UNIT, beside[0]))
            rows.append(result_row(f"{name}real@{t:.2f}", real[i], UNIT, beside[1]))
            if features == cfg.features[0]:
                films.append(f"evolved-at-{t:.2f}.mp4")
                film = run.path / films[-1], agent, evolved[t], make_env(cfg), key_score
                film_dream_and_real(*film, cfg.film_steps, t)
    random = random_play.random_agent(agent.model.spec), random_play.PARAMS
    unguided = stages.evaluate(run, key_score, "random", *random, make_env(cfg), cfg.episodes)
    rows.append(result_row("random", unguided, UNIT, "210 ± 108"))
    for where, shares in look(cfg, run, key_look, agent, stored).items():
        rows.append(result_row(f"fireballs{where}", 100 * np.array(shares), "% of frames"))
    report(cfg, run, scores, rows, films)


if __name__ == "__main__":
    main()
