"""Doom once more: what a memory of random play cannot know, it learns from the agent that was evolved in its dreams.

Paper: Ha & Schmidhuber 2018, section 5 (iterative training procedure), which left this for the future. Begins with the
agent of doom_take_cover, whose M saw random play only; such play is over long before many fireballs are in the air at
once. C is evolved in dreams alone here too: only M learns from the real game. V stays as it is.

    collect   random play, which M is to go on seeing
    encode    every frame becomes a latent
    iterate   C by CMA-ES in the dream; it plays; M learns from that; and so on
    evaluate  fresh episodes of the real game, with the agent that this began with and with the one that it ended with

    python experiments/doom_iterative.py --folder runs/iterative
    python experiments/doom_iterative.py --preset smoke --folder runs/smoke

The command started again goes on where it stopped. Every field of `Config` can be set; `--begin` is the folder of
another agent. What the committed run measured: results/doom_iterative.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.acting import seeds
from dreamjax.acting.evaluation import evaluate
from dreamjax.acting.pool import Pool
from dreamjax.envs.vizdoom import TakeCover, take_cover_spec
from dreamjax.evolution import EvolutionConfig
from dreamjax.optim import AdamConfig
from dreamjax.replay import latents
from dreamjax.replay.latents import Latents
from dreamjax.reporting import curves, pages
from dreamjax.reporting.films import film_temperatures
from dreamjax.reporting.pages import Section
from dreamjax.reporting.results import result_row
from dreamjax.storage.agents import load, save_agent
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog, read_metrics
from dreamjax.training import stages
from dreamjax.training.experiment import command, read_command_line, run_folder
from dreamjax.training.iterative import IterativeConfig, train_iteratively
from dreamjax.training.stages import Collect, TrainMemory
from dreamjax.types import Agent, AgentParams, Key, Params
from dreamjax.worldmodels import learner, model, search
from dreamjax.worldmodels.learner import MemoryLearner
from dreamjax.worldmodels.model import DOOM

NAME = "doom_iterative"
COMMITTED = Path(__file__).parent / "results" / "doom_take_cover"
FPS = 35  # tics per second of the game


@dataclass(frozen=True)
class Config:
    """Settings for two cores."""

    preset: str = "cpu"
    seed: int = 0
    begin: Path | None = None  # folder of the agent to begin with; the committed one if not given
    skill: int = 4  # of Doom; the scenario's own
    max_steps: int = 2100
    workers: int = 2
    envs: int = 16  # at once
    collect: Collect = Collect(1000, min_steps=101, policy="wandering", workers=2, envs=16)
    memory: TrainMemory = TrainMemory(
        1500, streams=16, length=64, optimizer=AdamConfig(2e-4, clip=1.0)
    )  # per iteration
    evolution: EvolutionConfig = EvolutionConfig(population_size=64, sigma=0.1)
    iterative: IterativeConfig = IterativeConfig(
        10, generations=10, dream_episodes=8, temperature=1.5, episodes=32, evaluation_episodes=64
    )
    real_episodes: int = 100
    film_steps: int = 1050


CPU = Config()
SMOKE = replace(
    CPU,
    preset="smoke",
    max_steps=120,
    envs=4,
    collect=replace(CPU.collect, episodes=4, envs=4),
    memory=TrainMemory(2, streams=4, length=16, optimizer=CPU.memory.optimizer),
    evolution=EvolutionConfig(population_size=8, sigma=0.1),
    iterative=IterativeConfig(2, generations=2, dream_episodes=1, episodes=2, evaluation_episodes=2),
    real_episodes=2,
    film_steps=20,
)
PRESETS = {config.preset: config for config in (CPU, SMOKE)}


def make_env(cfg: Config) -> partial[TakeCover]:
    return partial(TakeCover, skill=cfg.skill, max_steps=cfg.max_steps)


def iterate(cfg: Config, run: RunFolder, log: MetricsLog, key: Key, agent: Agent, begun: AgentParams) -> AgentParams:
    """Dream, play and learn in turns; return the agent that played best."""
    store = stages.collect(run, cfg.collect, make_env(cfg), agent.model.spec, cfg.seed)
    data = stages.encode(run, store, DOOM.vision, begun.model.vision)
    key_learn, key_init, key_iterate = jax.random.split(key, 3)
    state = learner.init(MemoryLearner(DOOM.memory, cfg.memory.optimizer, cfg.memory.streams), key_init)
    state = state._replace(params=jax.tree.map(jnp.array, begun.model.memory))  # a copy, which training gives up

    def learn(iteration: int, seen: Sequence[Latents]) -> Params:
        nonlocal state
        known, first = latents.concatenate([data, *seen]), (iteration - 1) * cfg.memory.updates
        seed = 1000 * cfg.seed + iteration
        state = stages.remember(run, log, key_learn, cfg.memory, DOOM.memory, known, seed, state=state, first=first)
        return begun.model._replace(memory=state.params)

    open_pool = partial(Pool, make_env(cfg), cfg.envs, cfg.workers)
    settings = {"open_pool": open_pool, "name": "iterated"}
    return train_iteratively(cfg.iterative, cfg.evolution, run, log, key_iterate, agent, begun, learn, **settings)


def score(cfg: Config, run: RunFolder, key: Key, agent: Agent, contenders: dict[str, AgentParams]) -> list[dict]:
    """Score agents in the real game, all in the same fresh episodes, and in their own dreams."""
    key_real, key_dream = jax.random.split(key)
    rows = []
    for name, params in contenders.items():
        with run.stage(f"evaluate-{name}"):
            notes = run.path / "evaluation" / f"{name}.jsonl"
            test = seeds.test(cfg.real_episodes)
            real = evaluate(agent, params, make_env(cfg), test, key_real, notes=notes, envs=cfg.envs, label=name)
            dreamed = search.score(agent, params, key_dream, cfg.real_episodes, cfg.iterative.temperature)
        published = ("1092 ± 556", "918 ± 546") if name == "iterated" else (None, None)
        rows.append(result_row(f"real, {name}", real, "tics survived", published[0]))
        rows.append(result_row(f"dream, {name}", np.asarray(dreamed), "tics survived", published[1]))
    return rows


def report(cfg: Config, run: RunFolder, rows: list[dict], films: list[str]) -> None:
    """Draw and summarise."""
    metrics = read_metrics(run.path / "metrics.jsonl")
    played = curves.against_sum(metrics["iterated-iteration"], "frames", ("evaluation_mean", "evaluation_std"))
    error = played[2] / np.sqrt(cfg.iterative.evaluation_episodes)
    panels = {"tics survived, and standard error": {"the real game": (*played[:2], error)}}
    curves.series_with_bars(panels, "tics that M learned from, besides random play", run.path / "iterations.png")
    curves.learning_curves({"memory": metrics["memory"]}, run.path / "learning.png")
    sections = [
        Section("A dream, and the real game", "Left what it dreams, right the game.", films),
        Section("Iteration by iteration", media=["iterations.png"]),
        Section("M learns", media=["learning.png"]),
    ]
    pages.report(run, NAME, command(NAME, cfg, PRESETS), rows, "World Models on Doom, iteratively", sections)


def main() -> None:
    """Do whatever the folder does not hold."""
    cfg, options = read_command_line(NAME, __doc__, PRESETS)
    run = run_folder(NAME, cfg, options)
    agent = model.make(DOOM, take_cover_spec(cfg.max_steps))
    _, begun = load(cfg.begin or COMMITTED)
    key_iterate, key_evaluate, key_film = jax.random.split(jax.random.key(cfg.seed), 3)
    if not (run.path / "agent.npz").exists():
        with MetricsLog(run.path) as log:
            save_agent(run.path / "agent.npz", DOOM, agent, iterate(cfg, run, log, key_iterate, agent, begun))
    _, iterated = load(run.path)
    rows = score(cfg, run, key_evaluate, agent, {"begun": begun, "iterated": iterated})
    with run.stage("film"):
        by_temperature = {cfg.iterative.temperature: iterated}
        real = make_env(cfg), seeds.TEST[0]  # the first that is scored, not a chosen one
        films = film_temperatures(run.path, "iterated", agent, by_temperature, key_film, real, cfg.film_steps, FPS)
    report(cfg, run, rows, films)


if __name__ == "__main__":
    main()
