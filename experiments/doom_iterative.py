"""Doom once more: what a memory of random play cannot know, it learns from the agent that was evolved in its dreams.

Paper: Ha & Schmidhuber 2018, section 5 (iterative training procedure), which left this for the future. Begins with the
agent of doom_take_cover, whose M saw random play only; such play is over long before many fireballs are in the air at
once. C is evolved in dreams alone here too: of the real game only M hears. V stays as it is.

    collect   random play, which M is to go on seeing
    encode    every frame becomes a latent
    rounds    C by CMA-ES in the dream; it plays; M learns from that; and so on
    evaluate  fresh episodes of the real game, with the agent that this began with and with the one that it ended with

    python experiments/doom_iterative.py --folder runs/rounds
    python experiments/doom_iterative.py --preset smoke --folder runs/smoke

The command started again goes on where it stopped. Every field of `Config` can be set; `--world` is the folder of
another agent. What the committed run measured: results/doom_iterative.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from dreamjax.acting.collect import collect, wandering_random_actions
from dreamjax.acting.play import play, returns
from dreamjax.acting.pool import FRESH, GamePool
from dreamjax.envs.vizdoom import TakeCover
from dreamjax.evolution import EvolutionConfig
from dreamjax.replay import latents
from dreamjax.replay.latents import Latents
from dreamjax.reporting import curves, pages
from dreamjax.reporting.films import film_temperatures
from dreamjax.reporting.pages import Section
from dreamjax.reporting.results import result_row
from dreamjax.storage.agents import StoredAgent, load_agent, save_agent
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog, read_metrics
from dreamjax.training.devices import keep_freed_memory
from dreamjax.training.encode import encode
from dreamjax.training.iterative import Player, RoundsConfig, evolve_in_rounds
from dreamjax.training.loop import train
from dreamjax.training.stages import collect_stage
from dreamjax.types import Key, Params
from dreamjax.worldmodels import controller, learner, model, search
from dreamjax.worldmodels.learner import OptimizerConfig
from dreamjax.worldmodels.search import Dreaming

COMMITTED = Path(__file__).parent / "results" / "doom_take_cover"
FPS = 35  # tics per second of the game
WORLD = model.DOOM
POLICY = controller.make(controller.ControllerConfig("doom"))


@dataclass(frozen=True)
class Config:
    """Settings for two cores."""

    preset: str = "cpu"
    seed: int = 0
    world: Path | None = None  # folder of the agent to begin with; the committed one if not given
    skill: int = 4  # of Doom; the scenario's own
    max_steps: int = 2100
    workers: int = 2
    lanes: int = 4  # games that a worker steps before it hands their frames over
    # collect
    episodes: int = 1000
    min_frames: int = 101  # shorter episodes are dropped
    # M, in every round
    streams: int = 16
    length: int = 64  # inputs per chunk
    memory_optimizer: OptimizerConfig = OptimizerConfig(2e-4, clip=1.0)
    round_updates: int = 1500
    # C
    evolution: EvolutionConfig = EvolutionConfig(population_size=64, sigma=0.1)
    rounds: RoundsConfig = RoundsConfig(
        count=10, generations=10, dreams=8, temperature=1.5, episodes=32, evaluation_episodes=64
    )
    # evaluate
    real_episodes: int = 100
    games: int = 16  # at once
    film_steps: int = 1050


CPU = Config()
SMOKE = replace(
    CPU,
    preset="smoke",
    max_steps=120,
    lanes=2,
    episodes=4,
    streams=4,
    length=16,
    round_updates=2,
    evolution=EvolutionConfig(population_size=8, sigma=0.1),
    rounds=RoundsConfig(count=2, generations=2, dreams=1, episodes=2, evaluation_episodes=2),
    real_episodes=2,
    games=2,
    film_steps=20,
)
PRESETS = {config.preset: config for config in (SMOKE, CPU)}


def see(cfg: Config, run: RunFolder, player: Player, params: Params) -> Latents:
    """Collect random play, and let V see it."""
    make = partial(TakeCover, skill=cfg.skill, max_steps=cfg.max_steps)
    fill = partial(collect, make_env=make, seed=cfg.seed, policy=wandering_random_actions, workers=cfg.workers)
    store = collect_stage(run, cfg.episodes, partial(fill, min_length=cfg.min_frames))
    return encode(run, store, partial(jax.jit(player.model.encode), params))


def iterate(cfg: Config, run: RunFolder, log: MetricsLog, key: Key, player: Player, begun: StoredAgent) -> StoredAgent:
    """Dream, play and learn in turns; return the agent that played best."""
    data = see(cfg, run, player, begun.model)
    key_learn, key_init, key_rounds = jax.random.split(key, 3)
    state = learner.memory_init(WORLD.memory, cfg.memory_optimizer, key_init, cfg.streams)
    vision_params, memory_params = begun.model
    state = state._replace(params=jax.tree.map(jnp.array, memory_params))  # a copy, which training gives up

    def learn(number: int, seen: Sequence[Latents]) -> Params:
        nonlocal state
        first, end = (number - 1) * cfg.round_updates, number * cfg.round_updates
        known = latents.concatenate([data, *seen])
        update = partial(learner.memory_step, WORLD.memory, cfg.memory_optimizer, key_learn)
        chunks = lambda step: latents.chunks(known, 1000 * cfg.seed + number, cfg.streams, cfg.length, step - first)  # noqa: E731
        state = train(run, log, "memory", state, update, chunks, end)
        return model.WorldModelParams(vision_params, state.params)

    return evolve_in_rounds(cfg.rounds, cfg.evolution, run, log, key_rounds, player, begun, learn)


def evaluate(cfg: Config, run: RunFolder, key: Key, player: Player, agents: dict[str, StoredAgent]) -> list[Any]:
    """Score agents in the real game, all in the same fresh episodes, and in their own dreams."""
    make = partial(TakeCover, skill=cfg.skill, max_steps=cfg.max_steps)
    key_real, key_dream = jax.random.split(key)
    rows = []
    for name, agent in agents.items():
        with run.stage(f"evaluate-{name}"):
            params = agent.model, agent.controller
            plays = partial(play, make, player.model, player.policy, params, key_real, games=cfg.games)
            seeds = [FRESH + i for i in range(cfg.real_episodes)]
            real = returns(run.path / "evaluation" / f"{name}.jsonl", seeds, name, plays)
            dreaming = Dreaming(player.model, player.policy, agent.model, agent.starts, cfg.rounds.temperature)
            dreamed = search.score(dreaming, agent.controller, key_dream, cfg.real_episodes)
        published = ("1092 ± 556", "918 ± 546") if name == "iterated" else (None, None)
        rows.append(result_row(f"real, {name}", real, "tics survived", published[0]))
        rows.append(result_row(f"dream, {name}", np.asarray(dreamed), "tics survived", published[1]))
    return rows


def report(cfg: Config, run: RunFolder, rows: list[Any], films: list[str], arguments: list[str]) -> None:
    """Draw and summarise."""
    metrics = read_metrics(run.path / "metrics.jsonl")
    played = curves.against_sum(metrics["iterated-round"], "frames", ("evaluation_mean", "evaluation_std"))
    error = played[2] / np.sqrt(cfg.rounds.evaluation_episodes)
    panels = {"tics survived, and standard error": {"the real game": (*played[:2], error)}}
    curves.series_with_bars(panels, "tics that M heard of, besides random play", run.path / "rounds.png")
    curves.learning_curves({"memory": metrics["memory"]}, run.path / "learning.png")
    sections = [
        Section("A dream, and the real game", "Left what it dreams, right the game.", films),
        Section("Round by round", media=["rounds.png"]),
        Section("M learns", media=["learning.png"]),
    ]
    command = " ".join(["python experiments/doom_iterative.py", *arguments])
    pages.report(run, "doom_iterative", command, rows, "World Models on Doom, in rounds", sections)


def train_agent(cfg: Config, run: RunFolder, arguments: list[str]) -> None:
    """Run all stages that the folder does not hold."""
    world = model.make(replace(WORLD, max_steps=cfg.max_steps))
    make = partial(TakeCover, skill=cfg.skill, max_steps=cfg.max_steps)
    games = partial(GamePool, make, world.spec.observation, cfg.workers, cfg.lanes)
    player = Player("iterated", world, POLICY, games)
    begun = load_agent((cfg.world or COMMITTED) / "agent.npz", world, POLICY)
    key_rounds, key_evaluate, key_film = jax.random.split(jax.random.key(cfg.seed), 3)
    with MetricsLog(run.path) as log:
        agent = iterate(cfg, run, log, key_rounds, player, begun)
    if not (run.path / "agent.npz").exists():
        save_agent(run.path / "agent.npz", agent)
    rows = evaluate(cfg, run, key_evaluate, player, {"begun": begun, "iterated": agent})
    with run.stage("film"):
        agents = {cfg.rounds.temperature: agent}
        game = make, FRESH  # the first that is scored, not a chosen one
        films = film_temperatures(run.path, "iterated", (world, POLICY), agents, key_film, game, cfg.film_steps, FPS)
    report(cfg, run, rows, films, arguments)


@dataclass(frozen=True)
class Arguments:
    """What to do."""

    preset: Literal["smoke", "cpu"] = "cpu"
    folder: Path | None = None  # of the run; runs/doom_iterative/<preset>-<seed> if not given


def main(arguments: list[str]) -> None:
    """Read the command line; what is not in `Arguments` belongs to `Config`."""
    keep_freed_memory()
    args, rest = tyro.cli(Arguments, args=arguments, return_unknown_args=True)
    cfg = tyro.cli(Config, args=rest, default=PRESETS[args.preset])
    folder = args.folder or Path("runs") / "doom_iterative" / f"{cfg.preset}-{cfg.seed}"
    train_agent(cfg, RunFolder(folder, cfg), ["--preset", args.preset, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
