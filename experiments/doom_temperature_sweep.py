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

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from dreamjax import dream, evolution, rollout
from dreamjax.acting.collect import every_tic_random_actions
from dreamjax.acting.play import play, play_actions, returns
from dreamjax.envs.vizdoom import TakeCover
from dreamjax.evolution import EvolutionConfig, EvolutionState
from dreamjax.reporting import curves, pages
from dreamjax.reporting.films import film_temperatures
from dreamjax.reporting.pages import Section
from dreamjax.reporting.results import result_row
from dreamjax.storage.agents import StoredAgent, load_agent
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog, read_metrics
from dreamjax.training.devices import keep_freed_memory
from dreamjax.training.stages import search_stage
from dreamjax.types import Array, Key, LatentModel, Metrics, Params, Policy, PyTree, Space
from dreamjax.worldmodels import controller, model, search
from dreamjax.worldmodels.search import Dreaming

COMMITTED = Path(__file__).parent / "results" / "doom_take_cover"
FPS = 35  # tics per second of the game
PUBLISHED = {  # temperature -> its dream, the real game
    0.10: ("2086 ± 140", "193 ± 58"),
    0.50: ("2060 ± 277", "196 ± 50"),
    1.00: ("1145 ± 690", "868 ± 511"),
    1.15: ("918 ± 546", "1092 ± 556"),
    1.30: ("732 ± 269", "753 ± 139"),
}
GLARE = (200, 170, 4)  # a fireball: at least so much red and green, in so many of the 64 x 64 pixels


@dataclass(frozen=True)
class Config:
    """Settings for two cores. The paper evolved for 1,800 generations, with 16 dreams for each individual."""

    preset: str = "cpu"
    seed: int = 0
    world: Path | None = None  # folder of the agent whose V and M dream; the committed one if not given
    temperatures: tuple[float, ...] = tuple(PUBLISHED)
    sees: tuple[Literal["zch", "z"], ...] = ("zch", "z")
    evolution: EvolutionConfig = EvolutionConfig(population_size=64, sigma=0.1)
    generations: int = 25
    dream_episodes: int = 8  # per individual
    episodes: int = 100  # to score with, dreamed and real
    skill: int = 4  # of Doom; the scenario's own
    max_steps: int = 2100
    games: int = 16  # at once
    looks: int = 16  # dreams, and games, in which fireballs are looked for
    look_steps: int = 300
    film_steps: int = 700


CPU = Config()
SMOKE = replace(
    CPU,
    preset="smoke",
    temperatures=(0.5, 1.15),
    evolution=EvolutionConfig(population_size=8, sigma=0.1),
    generations=2,
    dream_episodes=1,
    episodes=2,
    max_steps=100,
    games=2,
    looks=2,
    look_steps=20,
    film_steps=20,
)
PRESETS = {config.preset: config for config in (SMOKE, CPU)}


class Kind(NamedTuple):
    """One way to look at the world model; the parameters of V and M are the same in all."""

    label: str  # before the name of a row
    model: LatentModel
    policy: Policy


def kinds(cfg: Config) -> dict[str, Kind]:
    """Make models and policies once; programs are compiled for them by identity."""
    made: dict[str, Kind] = {}
    for sees in cfg.sees:
        world = replace(model.DOOM, sees=sees, max_steps=cfg.max_steps)
        policy = controller.make(controller.ControllerConfig("doom", model.feature_size(world)))
        made[sees] = Kind("" if sees == "zch" else f"{sees} ", model.make(world), policy)
    return made


def evolve(cfg: Config, run: RunFolder, log: MetricsLog, name: str, key: Key, dreaming: Dreaming) -> Params:
    """Evolve C in the dream of one temperature; return the mean of the last distribution."""

    def generation(state: EvolutionState, number: int) -> tuple[EvolutionState, Metrics]:
        return search.generation(cfg.evolution, dreaming, jax.random.fold_in(key, number), state, cfg.dream_episodes)

    start = evolution.init(cfg.evolution, dreaming.policy.init(key))
    return evolution.mean(cfg.evolution, search_stage(run, log, name, start, generation, cfg.generations))


def seeds(cfg: Config, count: int) -> list[int]:
    """Seeds of real episodes to score with; no training uses any."""
    return [1_000_000 * (cfg.seed + 1) + i for i in range(count)]


def burning(frames: Array) -> Array:
    """Say which frames show a fireball. Shapes: [..., H, W, 3] uint8 -> [...] bool."""
    red, green, pixels = GLARE
    return ((frames[..., 0] >= red) & (frames[..., 1] >= green)).sum((-2, -1)) >= pixels


RANDOM = rollout.random_policy(Space((), low=-1.0, high=1.0))


@partial(jax.jit, static_argnames=("world", "steps"))
def fireballs_dreamed(
    world: LatentModel, params: Params, starts: PyTree, keys: Key, temperature: Array | float, steps: int
) -> Array:
    """Share of frames with a fireball, until the dream ends, in dreams of random play. Shapes: keys [N] -> [N]."""

    def look(key: Key) -> Array:
        key_reset, key_imagine = jax.random.split(key)
        begin, _ = dream.environment(world, params, starts, temperature).reset(key_reset)
        dreamed = dream.imagine(world, RANDOM, (params, ()), key_imagine, begin.latent, steps, temperature)
        seen = burning(jax.lax.map(partial(world.decode, params), dreamed.states))
        # What M makes of the time after the end, of which it was taught nothing, does not count.
        lives = jnp.cumprod(jax.vmap(partial(world.outcome, params))(dreamed.states).continues >= 0.5)
        return (seen * lives).sum() / lives.sum()

    return jax.lax.map(look, keys)


def fireballs_in_game(cfg: Config, kind: Kind, params: Params, key: Key) -> np.ndarray:
    """Share of frames with a fireball, in episodes of random play. Shapes: -> [cfg.looks]."""
    chosen = seeds(cfg, cfg.looks)
    make = partial(TakeCover, skill=cfg.skill, max_steps=cfg.look_steps)
    played = play(make, kind.model, RANDOM, (params, ()), key, chosen, games=cfg.games, film=chosen)
    films = [episode.recorded.step.observation for episode in played if episode.recorded]
    return np.array([np.asarray(burning(film)).mean() for film in films])


def measure(cfg: Config, run: RunFolder, kind: Kind, key: Key, agents: dict[float, StoredAgent]) -> dict[str, Any]:
    """Score all controllers of a kind, in the dream of every temperature and in the real game."""
    stage = f"measure-{''.join(kind.label.split()) or 'full'}"
    if run.stage_done(stage):
        return run.stage_record(stage)["summary"]
    key_dream, key_real = jax.random.split(key)
    make = partial(TakeCover, skill=cfg.skill, max_steps=cfg.max_steps)
    dreamed, real = [], []
    with run.stage(stage):
        for trained, agent in agents.items():
            own = Dreaming(kind.model, kind.policy, agent.model, agent.starts)
            dreams = [own._replace(temperature=t) for t in cfg.temperatures]
            dreamed.append([np.asarray(search.score(d, agent.controller, key_dream, cfg.episodes)) for d in dreams])
            name = f"{kind.label}real@{trained:.2f}"
            player = partial(
                play, make, kind.model, kind.policy, (agent.model, agent.controller), key_real, games=cfg.games
            )
            path = run.path / "evaluation" / f"{name.replace(' ', '-')}.jsonl"
            real.append(returns(path, seeds(cfg, cfg.episodes), name, player))
        scores = {"dreamed": np.array(dreamed).tolist(), "real": np.array(real).tolist()}
        run.finish_stage(stage, scores)
    return scores


def look(cfg: Config, run: RunFolder, kind: Kind, key: Key, agent: StoredAgent) -> dict[str, Any]:
    """Look for fireballs, in dreams of every temperature and in the game."""
    if not run.stage_done("look"):
        key_dream, key_game = jax.random.split(key)
        keys = jax.random.split(key_dream, cfg.looks)
        with run.stage("look"):
            looked = partial(fireballs_dreamed, kind.model, agent.model, agent.starts, keys, steps=cfg.look_steps)
            seen = [np.asarray(looked(temperature)) for temperature in cfg.temperatures]
            game = fireballs_in_game(cfg, kind, agent.model, key_game)
            run.finish_stage("look", {"dreamed": np.array(seen).tolist(), "game": game.tolist()})
    return run.stage_record("look")["summary"]


def score_random(cfg: Config, run: RunFolder) -> np.ndarray:
    """Play at random."""
    make = partial(TakeCover, skill=cfg.skill, max_steps=cfg.max_steps)
    actions = lambda seed: every_tic_random_actions(np.random.default_rng([cfg.seed, seed]), cfg.max_steps)  # noqa: E731
    path = run.path / "evaluation" / "random.jsonl"
    with run.stage("random"):
        return returns(path, seeds(cfg, cfg.episodes), "random", partial(play_actions, make, actions))


def result_rows(
    cfg: Config, measured: dict[str, dict[str, Any]], looked: dict[str, Any], random: np.ndarray
) -> list[dict[str, Any]]:
    """All that is known of each temperature."""
    rows = []
    for label, scores in measured.items():
        for i, temperature in enumerate(cfg.temperatures):
            published = PUBLISHED.get(temperature, (None, None)) if not label else (None, None)
            for name, values, known in zip(
                ("dream", "real"), (scores["dreamed"][i][i], scores["real"][i]), published, strict=True
            ):
                rows.append(result_row(f"{label}{name}@{temperature:.2f}", np.array(values), "tics survived", known))
    rows.append(result_row("random", random, "tics survived", "210 ± 108"))
    for temperature, shares in zip(cfg.temperatures, looked["dreamed"], strict=True):
        rows.append(result_row(f"fireballs@{temperature:.2f}", 100 * np.array(shares), "% of frames"))
    rows.append(result_row("fireballs in the game", 100 * np.array(looked["game"]), "% of frames"))
    return rows


def draw(cfg: Config, run: RunFolder, measured: dict[str, dict[str, Any]]) -> list[str]:
    """Draw scores by temperature beside the published ones, and the cross tables; return the names of the files."""
    at = np.array(cfg.temperatures)
    panels: dict[str, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    published = np.array([[[float(x) for x in text.split(" ± ")] for text in pair] for pair in PUBLISHED.values()])
    for i, name in enumerate(("dream", "real")):
        panels[f"{name}: tics survived"] = {"published": (np.array(list(PUBLISHED)), *published[:, i].T)}
    files = ["temperatures.png"]
    for label, scores in measured.items():
        dreamed, real = np.array(scores["dreamed"]), np.array(scores["real"])
        own = dreamed[np.arange(len(at)), np.arange(len(at))]
        shown = f"C sees {label}alone" if label else "C sees z, c, h"
        panels["dream: tics survived"][shown] = (at, own.mean(1), own.std(1))
        panels["real: tics survived"][shown] = (at, real.mean(1), real.std(1))
        files.append(f"cross-{label.strip() or 'zch'}.png")
        names = [f"{temperature:.2f}" for temperature in cfg.temperatures]
        table = np.concatenate([dreamed.mean(2), real.mean(1)[:, None]], 1)
        curves.cross_table(table, names, [*names, "real"], ("evolved at", "survives at"), run.path / files[-1])
    curves.series_with_bars(panels, "temperature", run.path / "temperatures.png")
    return files


def report(
    run: RunFolder, rows: list[dict[str, Any]], pictures: list[str], films: list[str], arguments: list[str]
) -> None:
    """Write the result and the page."""
    command = " ".join(["python experiments/doom_temperature_sweep.py", *arguments])
    metrics = read_metrics(run.path / "metrics.jsonl")
    fitness = {name: {"fitness_mean": stage["fitness_mean"]} for name, stage in metrics.items()}
    curves.learning_curves(fitness, run.path / "evolution.png")
    sections = [
        Section("Scores by temperature", "Published scores beside measured ones.", pictures[:1]),
        Section("Evolved at one temperature, dreaming at another", media=pictures[1:]),
        Section("From the coldest dream to the warmest", "Left its dream, right the real game.", films),
        Section("Evolution", media=["evolution.png"]),
    ]
    pages.report(run, "doom_temperature_sweep", command, rows, "World Models: how certain may a dream be?", sections)


def sweep(cfg: Config, run: RunFolder, arguments: list[str]) -> None:
    """Do everything that is not done."""
    key_evolve, key_measure, key_look, key_film = jax.random.split(jax.random.key(cfg.seed), 4)
    made = kinds(cfg)
    full = next(iter(made.values()))
    doom = model.make(model.DOOM), controller.make(controller.ControllerConfig())
    stored = load_agent((cfg.world or COMMITTED) / "agent.npz", *doom)
    measured, filmed = {}, None
    with MetricsLog(run.path) as log:
        for sees, kind in made.items():
            agents = {}
            for temperature in cfg.temperatures:  # all with the same luck
                dreaming = Dreaming(kind.model, kind.policy, stored.model, stored.starts, temperature)
                name = f"{sees}-{round(100 * temperature)}"
                agents[temperature] = stored._replace(controller=evolve(cfg, run, log, name, key_evolve, dreaming))
            measured[kind.label] = measure(cfg, run, kind, key_measure, agents)
            filmed = filmed or agents
    looked = look(cfg, run, full, key_look, stored)
    with run.stage("film"):
        game = partial(TakeCover, skill=cfg.skill, max_steps=cfg.film_steps), seeds(cfg, 1)[0]
        acting = full.model, full.policy
        films = film_temperatures(run.path, "evolved", acting, filmed or {}, key_film, game, cfg.film_steps, FPS)
    rows = result_rows(cfg, measured, looked, score_random(cfg, run))
    report(run, rows, draw(cfg, run, measured), films, arguments)


@dataclass(frozen=True)
class Arguments:
    """What to do."""

    preset: Literal["smoke", "cpu"] = "cpu"
    folder: Path | None = None  # of the run; runs/temperatures/<preset>-<seed> if not given


def main(arguments: list[str]) -> None:
    """Read the command line; what is not in `Arguments` belongs to `Config`."""
    keep_freed_memory()
    args, rest = tyro.cli(Arguments, args=arguments, return_unknown_args=True)
    cfg = tyro.cli(Config, args=rest, default=PRESETS[args.preset])
    folder = args.folder or Path("runs") / "temperatures" / f"{cfg.preset}-{cfg.seed}"
    sweep(cfg, RunFolder(folder, cfg), ["--preset", args.preset, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
