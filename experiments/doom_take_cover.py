"""World Models on Doom: evolve a controller inside the dream of its own world model, then test it in the real game.

Paper: Ha & Schmidhuber 2018, section 4 and appendix A. Stages, each resumable and none repeated once it is done:

    collect   a random policy acts in ViZDoom's Take Cover, recorded to disk
    vision    V, the autoencoder, learns to see
    encode    every frame becomes a latent
    memory    M, the MDN-RNN, learns what comes next
    evolve    C, one linear layer, is evolved by CMA-ES in dreams of V and M; it never meets the real game
    evaluate  the mean of the distribution acts in test episodes of the real game, and in dreams
    report    plots, films, result.json and a page to open

    python experiments/doom_take_cover.py --preset cpu --folder runs/doom
    python experiments/doom_take_cover.py --evaluate experiments/results/doom_take_cover --episodes 100

The same command resumes where it stopped. Every field of `Config` can be set: `--preset cpu --seed 1`. Measured with
`cpu` in 2.5 hours on two cores (results/doom_take_cover): 783 ± 488 tics over 100 episodes of one seed, a random policy
188 ± 85; the paper has 1092 ± 556, at temperature 1.15 and after thirty times as many generations, and 210 ± 108.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np

from dreamjax.acting import random_play
from dreamjax.envs.vizdoom import TakeCover, take_cover_spec
from dreamjax.evolution import EvolutionConfig
from dreamjax.optim import AdamConfig
from dreamjax.reporting import Section, curves, evaluate_and_film, film_dream_and_real, pages, published_at, result_row
from dreamjax.storage import MetricsLog, RunFolder, episodes, load, read_metrics, save_agent
from dreamjax.training import stage_plan, stages
from dreamjax.training.experiment import (
    Evaluating,
    command,
    evaluation_folder,
    exit_on_bad_input,
    read_command_line,
    run_folder,
    stored_agent,
)
from dreamjax.training.stages import Collect, Evolve, TrainMemory, TrainVision
from dreamjax.trust import TrustConfig, beside, promise, trust_section
from dreamjax.types import Agent, AgentParams
from dreamjax.worldmodels import DOOM, WorldModelParams, model, search, vision

NAME = "doom_take_cover"
UNIT = "tics survived"  # 35 a second
MAY_CHANGE = stages.may_change(["evolve"], "episodes", "film_steps", "checkpoint_every")  # in a folder, of one run


@dataclass(frozen=True)
class Config:
    """The published settings; the other presets say what they change."""

    preset: str = "paper"
    seed: int = 0
    skill: int = 4  # of Doom; the scenario's own
    max_steps: int = 2100  # of an episode, dreamed or real
    collect: Collect = Collect(min_steps=101)
    vision: TrainVision = TrainVision()
    memory: TrainMemory = TrainMemory()
    evolve: Evolve = Evolve()
    starts: int = 1000  # first frames that dreams begin with
    episodes: int = 100  # test episodes in which the agent is scored
    film_steps: int = 1050
    checkpoint_every: int = 500  # updates of V and M; evolution keeps every fifth generation


PAPER = Config()
CPU = replace(
    PAPER,
    preset="cpu",
    collect=Collect(4000, min_steps=101, policy="wandering", workers=2, envs=16),
    vision=TrainVision(9000, batch=32, episodes=2000, optimizer=AdamConfig(1e-3, 1e-5, 0.9996)),
    memory=TrainMemory(22_000, streams=16, length=64, optimizer=AdamConfig(1e-3, 1e-5, 0.99985, clip=1.0)),
    # At temperature 1.15 the mean of generation 10 dreams 1,640 of the 2,100 steps there are.
    evolve=Evolve(generations=60, episodes=8, temperature=1.5, evaluate_every=10, evaluation_episodes=256),
)
SMOKE = replace(
    CPU,
    preset="smoke",
    max_steps=120,
    collect=replace(CPU.collect, episodes=4, envs=4),
    vision=TrainVision(4, batch=8),
    memory=TrainMemory(4, streams=4, length=16),
    evolve=Evolve(EvolutionConfig(8), 2, 2, CPU.evolve.temperature, evaluate_every=2, evaluation_episodes=4),
    starts=4,
    episodes=2,
    film_steps=20,
    checkpoint_every=2,
)
PRESETS = {config.preset: config for config in (CPU, PAPER, SMOKE)}


def make_env(cfg: Config) -> partial[TakeCover]:
    return partial(TakeCover, skill=cfg.skill, max_steps=cfg.max_steps)


def train(cfg: Config, run: RunFolder, agent: Agent) -> AgentParams:
    """Learn the world from what a random policy sees, then evolve C in dreams of it."""
    key_vision, key_memory, key_evolve = jax.random.split(jax.random.key(cfg.seed), 3)
    stage_plan.announce(run, cfg.collect, cfg.vision, cfg.memory, cfg.evolve, DOOM, agent)
    every = cfg.checkpoint_every
    with MetricsLog(run.path) as log:
        store = stages.collect(run, cfg.collect, make_env(cfg), agent.model.spec, cfg.seed)
        v = stages.train_vision(run, log, key_vision, cfg.vision, DOOM.vision, store, cfg.seed, every)
        data = stages.encode(run, store, DOOM.vision, v)
        m = stages.train_memory(run, log, key_memory, cfg.memory, DOOM.memory, data, cfg.seed, checkpoint_every=every)
        world = AgentParams(WorldModelParams(v, m.params), policy=(), starts=data.first_frames(cfg.starts))
        return world._replace(policy=stages.evolve_in_dreams(run, log, key_evolve, cfg.evolve, agent, world))


def score(cfg: Config, run: RunFolder, agent: Agent, params: AgentParams) -> list[dict]:
    """Score the agent in the real game and in its dreams, and two random policies beside it."""
    key, spec = jax.random.key(cfg.seed), agent.model.spec
    contenders = {
        "real": (agent, params),
        "random_held": (random_play.random_agent(spec, "held"), random_play.PARAMS),
        "random_every_tic": (random_play.random_agent(spec), random_play.PARAMS),
    }
    returns = {
        name: stages.evaluate(run, key, name, *contender, make_env(cfg), cfg.episodes)
        for name, contender in contenders.items()
    }
    key_dream = jax.random.fold_in(key, 7)
    dreamed = search.score(agent, params, key_dream, max(cfg.episodes, 100), cfg.evolve.temperature)
    settings = {
        "at temperature {}": (cfg.evolve.temperature, 1.15),
        "after {:,} generations": (cfg.evolve.generations, 1800),
        "from {:,} random episodes": (cfg.collect.episodes, 10_000),
    }
    return [
        result_row("real", returns["real"], UNIT, published_at("1092 ± 556", settings)),
        result_row("dream", np.asarray(dreamed), UNIT, published_at("918 ± 546", settings)),
        result_row("random_held", returns["random_held"], UNIT),
        result_row("random_every_tic", returns["random_every_tic"], UNIT, "210 ± 108"),
    ]


def report(cfg: Config, run: RunFolder, agent: Agent, params: AgentParams) -> None:
    """Score, draw, film and summarise."""
    rows = score(cfg, run, agent, params)
    metrics = read_metrics(run.path / "metrics.jsonl")
    curves.learning_curves({name: metrics[name] for name in ("vision", "memory")}, run.path / "learning.png")
    curves.fitness_curve(metrics["evolve"], run.path / "fitness.png", "tics survived in the dream")
    frames = episodes.read(episodes.open_store(run.path / "episodes").paths[0]).observation
    frames = frames[np.linspace(0, len(frames) - 1, 10).astype(int)]
    encode, decode = (jax.jit(part, static_argnums=0) for part in (vision.encode, vision.decode))
    mean, _ = encode(DOOM.vision, params.model.vision, frames)
    decoded = np.asarray(decode(DOOM.vision, params.model.vision, mean))
    curves.reconstruction_sheet(frames, decoded, run.path / "reconstructions.png")
    film = run.path / "dream_and_real.mp4", agent, params, make_env(cfg), jax.random.key(cfg.seed)
    film_dream_and_real(*film, cfg.film_steps, cfg.evolve.temperature)
    looks = TrustConfig(max(2, min(cfg.episodes, 32)), temperatures=beside(cfg.evolve.temperature))
    learned = promise.along_training(metrics, "evolve")
    sections = [
        Section("A dream, and the real game", "The agent never met the real game in training.", ["dream_and_real.mp4"]),
        trust_section(run, agent, params, make_env(cfg), jax.random.key(cfg.seed), looks, learned),
        Section("Evolution inside the dream", media=["fitness.png"]),
        Section("V sees", "Each frame of the game above its reconstruction.", ["reconstructions.png"]),
        Section("V and M learn", media=["learning.png"]),
    ]
    lead = f"The agent survives {rows[0]['mean']:.0f} tics in the real game, a random policy {rows[2]['mean']:.0f}."
    pages.report(run, NAME, command(NAME, cfg, PRESETS), rows, "World Models on Doom: Take Cover", sections, lead=lead)


@exit_on_bad_input()
def main() -> None:
    """Train an agent, or evaluate a stored one."""
    cfg, options = read_command_line(NAME, __doc__, PRESETS, Evaluating)
    if options.evaluate:
        agent, params = stored_agent(options.evaluate, f"python experiments/{NAME}.py --folder {options.evaluate}")
        who = evaluation_folder(NAME, options), agent, params, make_env(cfg), jax.random.key(cfg.seed)
        t = cfg.evolve.temperature
        evaluate_and_film(*who, cfg.episodes, UNIT, steps=cfg.film_steps, temperature=t)
        return
    run = run_folder(NAME, cfg, options, may_change=MAY_CHANGE)
    if not (run.stage_done("evolve") and (run.path / "agent.npz").exists()):
        agent = model.make(DOOM, take_cover_spec(cfg.max_steps))
        save_agent(run.path / "agent.npz", DOOM, agent, train(cfg, run, agent), task="take_cover")
    report(cfg, run, *load(run.path))


if __name__ == "__main__":
    main()
