"""World Models on Doom: evolve a controller inside the dream of its own world model, then let it play the real game.

Paper: Ha & Schmidhuber 2018, section 4 and appendix A. Stages, each resumable and none repeated once it is done:

    collect   random play in ViZDoom's Take Cover, streamed to disk
    vision    V, the autoencoder, learns to see
    encode    every frame becomes a latent
    memory    M, the MDN-RNN, learns what comes next
    evolve    C, one linear layer, is evolved by CMA-ES in the dream of V and M; it never meets the real game
    evaluate  the mean of the distribution plays fresh episodes of the real game
    report    plots, films, result.json and a page to open

    python experiments/doom_take_cover.py --preset cpu --folder runs/doom
    python experiments/doom_take_cover.py --evaluate experiments/results/doom_take_cover --episodes 100

The command started again goes on where it stopped. Every field of `Config` can be set: `--preset cpu --seed 1`.
What the committed run measured, how long it took and on which machine: results/doom_take_cover/result.json.
"""

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from dreamjax import evolution
from dreamjax.acting.collect import (
    Actions,
    collect,
    every_tic_random_actions,
    held_random_actions,
    wandering_random_actions,
)
from dreamjax.acting.play import play, play_actions, returns
from dreamjax.envs.vizdoom import TakeCover
from dreamjax.evolution import EvolutionConfig, EvolutionState
from dreamjax.replay import latents
from dreamjax.replay.latents import Latents
from dreamjax.reporting import curves, pages
from dreamjax.reporting.films import film_dream, film_game, write_films
from dreamjax.reporting.pages import Section
from dreamjax.reporting.results import result_row, shown_measurement
from dreamjax.storage import episodes
from dreamjax.storage.agents import StoredAgent, load_agent, save_agent
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog, read_metrics
from dreamjax.training.devices import device_mesh, keep_freed_memory
from dreamjax.training.encode import encode
from dreamjax.training.loop import train
from dreamjax.training.stages import collect_stage, search_stage, vision_stage
from dreamjax.types import Key, LatentModel, Metrics, Params, PyTree
from dreamjax.worldmodels import controller, learner, model, search, vision
from dreamjax.worldmodels.learner import OptimizerConfig
from dreamjax.worldmodels.search import Dreaming

WORLD = model.DOOM
MODEL = model.make(WORLD)
POLICY = controller.make(controller.ControllerConfig("doom", model.feature_size(WORLD)))
FPS = 35  # tics per second of the game


@dataclass(frozen=True)
class Config:
    """The published settings; the other presets say what they change."""

    preset: str = "paper"
    seed: int = 0
    skill: int = 4  # of Doom; the scenario's own
    # collect
    episodes: int = 10_000  # kept
    min_frames: int = 101  # shorter episodes are dropped
    policy: Literal["held", "wandering"] = "held"  # random play; see dreamjax.acting.collect
    workers: int = 64
    # vision
    vision_episodes: int = 10_000  # the first of those kept; V needs fewer frames than M needs endings
    vision_batch: int = 100
    vision_updates: int = 308_090  # 10 epochs of the published data
    vision_optimizer: OptimizerConfig = learner.VISION_OPTIMIZER
    # memory
    streams: int = 100
    length: int = 499  # inputs per chunk
    memory_updates: int = 24_400
    memory_optimizer: OptimizerConfig = learner.MEMORY_OPTIMIZER
    # evolve
    evolution: EvolutionConfig = EvolutionConfig(population_size=64, sigma=0.1)
    dream_episodes: int = 16  # per individual
    generations: int = 1800
    temperature: float = 1.15
    starts: int = 1000  # first frames that dreams begin with
    evaluate_every: int = 25  # generations
    evaluation_episodes: int = 1024  # dreamed, of the distribution's mean
    max_steps: int = 2100  # of an episode, dreamed or real
    # evaluate
    real_episodes: int = 100
    games: int = 16  # at once
    film_steps: int = 1050
    checkpoint_every: int = 500  # updates of V and M; evolution keeps every fifth generation


RANDOM = {"held": held_random_actions, "wandering": wandering_random_actions}
PAPER = Config()
CPU = replace(
    PAPER,
    preset="cpu",
    episodes=4000,
    workers=2,
    policy="wandering",
    vision_episodes=2000,
    vision_batch=32,
    vision_updates=9000,
    vision_optimizer=OptimizerConfig(1e-3, 1e-5, 0.9996),
    streams=16,
    length=64,
    memory_updates=22_000,
    memory_optimizer=OptimizerConfig(1e-3, 1e-5, 0.99985, clip=1.0),
    dream_episodes=8,
    generations=60,
    temperature=1.5,  # at 1.15 the mean of generation 10 dreams 1,640 of the 2,100 steps there are
    evaluate_every=10,
    evaluation_episodes=256,
)
DEMO = replace(
    CPU,
    preset="demo",
    episodes=150,
    vision_updates=500,
    vision_optimizer=OptimizerConfig(1e-3, 1e-5, 0.994),
    memory_updates=800,
    memory_optimizer=OptimizerConfig(1e-3, 1e-5, 0.994, clip=1.0),
    evolution=EvolutionConfig(population_size=32, sigma=0.1),
    dream_episodes=4,
    generations=15,
    evaluate_every=5,
    evaluation_episodes=64,
    starts=100,
    real_episodes=16,
)
SMOKE = replace(
    DEMO,
    preset="smoke",
    episodes=4,
    vision_batch=8,
    vision_updates=4,
    streams=4,
    length=16,
    memory_updates=4,
    evolution=EvolutionConfig(population_size=8, sigma=0.1),
    dream_episodes=2,
    generations=2,
    evaluate_every=2,
    evaluation_episodes=4,
    max_steps=120,
    starts=4,
    real_episodes=2,
    games=2,
    film_steps=20,
    checkpoint_every=2,
)
PRESETS = {config.preset: config for config in (SMOKE, DEMO, CPU, PAPER)}


def collected(cfg: Config, run: RunFolder) -> episodes.Store:
    """Let random play fill the disk."""
    fill = partial(
        collect,
        make_env=partial(TakeCover, skill=cfg.skill),
        seed=cfg.seed,
        min_length=cfg.min_frames,
        workers=cfg.workers,
        policy=RANDOM[cfg.policy],
    )
    return collect_stage(run, cfg.episodes, fill)


def memory_stage(cfg: Config, run: RunFolder, log: MetricsLog, key: Key, data: Latents) -> Params:
    """Train M."""
    key_init, key_train = jax.random.split(key)
    state = train(
        run,
        log,
        "memory",
        learner.memory_init(WORLD.memory, cfg.memory_optimizer, key_init, cfg.streams),
        partial(learner.memory_step, WORLD.memory, cfg.memory_optimizer, key_train),
        partial(latents.chunks, data, cfg.seed, cfg.streams, cfg.length),
        cfg.memory_updates,
        checkpoint_every=cfg.checkpoint_every,
    )
    return state.params


def bounded(cfg: Config) -> LatentModel:
    """Give the world model the step limit of this run."""
    return MODEL._replace(spec=MODEL.spec._replace(max_steps=cfg.max_steps))


def evolve_stage(cfg: Config, run: RunFolder, log: MetricsLog, key: Key, params: Params, starts: PyTree) -> Params:
    """Evolve C in the dream; return the mean of the last distribution.

    Not the mean that dreamed best: means of different generations dream too much alike to be told apart by their
    dreams, and the later one has averaged out more luck.
    """

    def generation(state: EvolutionState, number: int) -> tuple[EvolutionState, Metrics]:
        key_generation, key_evaluate = jax.random.split(jax.random.fold_in(key, number))
        state, metrics = search.generation(cfg.evolution, dreaming, key_generation, state, cfg.dream_episodes, mesh)
        if (number + 1) % cfg.evaluate_every == 0 or number + 1 == cfg.generations:
            mean = evolution.mean(cfg.evolution, state)
            total = search.score(dreaming, mean, key_evaluate, cfg.evaluation_episodes)
            metrics |= {"evaluation_mean": total.mean(), "evaluation_std": total.std()}
        return state, metrics

    dreaming = Dreaming(bounded(cfg), POLICY, params, starts, cfg.temperature)
    mesh = device_mesh("population") if cfg.evolution.population_size % jax.device_count() == 0 else None
    state = evolution.init(cfg.evolution, POLICY.init(key))
    return evolution.mean(cfg.evolution, search_stage(run, log, "evolve", state, generation, cfg.generations))


def first_seed(cfg: Config) -> int:
    """Seed of the first real episode to be scored; no training uses any from here on."""
    return 1_000_000 * (cfg.seed + 1)


def score(
    cfg: Config, agent: StoredAgent, count: int, folder: Path, random: dict[str, Actions] | None = None
) -> dict[str, np.ndarray]:
    """Tics survived in `count` episodes of the real game that no training saw: by the agent, and by random play."""
    seeds = [first_seed(cfg) + i for i in range(count)]
    make = partial(TakeCover, skill=cfg.skill, max_steps=cfg.max_steps)
    params = (agent.model, agent.controller)
    agent_plays = partial(play, make, MODEL, POLICY, params, jax.random.key(cfg.seed), games=cfg.games)
    scores = {"real": returns(folder / "real.jsonl", seeds, "real game", agent_plays)}
    for name, policy in (random or {}).items():

        def actions(seed: int, policy: Actions = policy) -> np.ndarray:
            return policy(np.random.default_rng([cfg.seed, seed]), cfg.max_steps)

        scores[name] = returns(folder / f"{name}.jsonl", seeds, name, partial(play_actions, make, actions))
    return scores


def evaluate_stage(cfg: Config, run: RunFolder, agent: StoredAgent) -> list[dict[str, Any]]:
    """Score the agent in the real game and in its dream, and random play beside it."""
    with run.stage("evaluate"):
        random = {"random_held": held_random_actions, "random_every_tic": every_tic_random_actions}
        scores = score(cfg, agent, cfg.real_episodes, run.path / "evaluation", random)
        dreaming = Dreaming(bounded(cfg), POLICY, agent.model, agent.starts, cfg.temperature)
        key = jax.random.fold_in(jax.random.key(cfg.seed), 7)
        scores["dream"] = np.asarray(search.score(dreaming, agent.controller, key, max(cfg.real_episodes, 100)))
    published = {"real": "1092 ± 556", "dream": "918 ± 546", "random_every_tic": "210 ± 108"}
    order = ("real", "dream", "random_held", "random_every_tic")
    return [result_row(name, scores[name], "tics survived", published.get(name)) for name in order]


def films(cfg: Config, agent: StoredAgent, folder: Path) -> None:
    """Film a dream beside the first evaluated episode of the real game, which is not a chosen one."""
    key = jax.random.key(cfg.seed)
    make = partial(TakeCover, skill=cfg.skill, max_steps=cfg.max_steps)
    real = film_game(make, MODEL, POLICY, agent, key, first_seed(cfg))
    dreamed = film_dream(MODEL, POLICY, agent, key, cfg.film_steps, cfg.temperature)
    write_films(folder, dreamed, real[: cfg.film_steps], FPS)


def report_stage(
    cfg: Config, run: RunFolder, store: episodes.Store, agent: StoredAgent, rows: list[dict[str, Any]]
) -> None:
    """Draw, film and summarise."""
    metrics = read_metrics(run.path / "metrics.jsonl")
    curves.learning_curves({name: metrics[name] for name in ("vision", "memory")}, run.path / "learning.png")
    evolve = metrics["evolve"]
    at, means = evolve["evaluation_mean"]
    curves.fitness_curve(
        run.path / "fitness.png",
        *evolve["fitness_mean"],
        evolve["fitness_min"][1],
        evolve["fitness_max"][1],
        evaluations=(at, means, evolve["evaluation_std"][1]),
        label="tics survived in the dream",
    )
    frames = episodes.read(store.paths[0]).observation
    frames = frames[np.linspace(0, len(frames) - 1, 10).astype(int)]
    mean, _ = vision.encode(WORLD.vision, agent.model.vision, jnp.asarray(frames))
    curves.reconstruction_sheet(
        frames, np.asarray(vision.decode(WORLD.vision, agent.model.vision, mean)), run.path / "reconstructions.png"
    )
    films(cfg, agent, run.path)
    command = " ".join(["python experiments/doom_take_cover.py", *run.read_json("arguments.json")])
    pages.report(
        run,
        "doom_take_cover",
        command,
        rows,
        "World Models on Doom: Take Cover",
        [
            Section("A dream, and the real game", "The agent never met the real game.", ["dream_and_real.mp4"]),
            Section("Evolution inside the dream", media=["fitness.png"]),
            Section("V sees", "Above what the game shows, below what V makes of it.", ["reconstructions.png"]),
            Section("V and M learn", media=["learning.png"]),
        ],
        lead=f"The agent survives {rows[0]['mean']:.0f} tics in the real game, random play {rows[2]['mean']:.0f}.",
    )


def train_agent(cfg: Config, folder: Path, arguments: list[str]) -> None:
    """Run all stages."""
    run = RunFolder(folder, cfg)
    run.write_json("arguments.json", arguments)
    key_vision, key_memory, key_evolve = jax.random.split(jax.random.key(cfg.seed), 3)
    with MetricsLog(folder) as log:
        store = collected(cfg, run)
        seen = store.head(min(cfg.vision_episodes, len(store)))
        frames = partial(episodes.frame_batches, seen, cfg.seed, cfg.vision_batch)
        sees = (WORLD.vision, cfg.vision_optimizer)
        vision_params = vision_stage(run, log, key_vision, sees, frames, cfg.vision_updates, cfg.checkpoint_every)
        posterior = partial(jax.jit(vision.encode, static_argnums=0), WORLD.vision, vision_params)
        data = encode(run, store, posterior)
        memory_params = memory_stage(cfg, run, log, key_memory, data)
        params = model.WorldModelParams(vision_params, memory_params)
        starts = data.first_frames(cfg.starts)
        controller_params = evolve_stage(cfg, run, log, key_evolve, params, starts)
    if not (folder / "agent.npz").exists():
        save_agent(folder / "agent.npz", StoredAgent(params, controller_params, starts))
    agent = load_agent(folder / "agent.npz", MODEL, POLICY)
    report_stage(cfg, run, store, agent, evaluate_stage(cfg, run, agent))


def evaluate_agent(cfg: Config, folder: Path, count: int, out: Path) -> None:
    """Play the real game with a stored agent, and film it."""
    out.mkdir(parents=True, exist_ok=True)
    agent = load_agent(folder / "agent.npz", MODEL, POLICY)
    scores = score(cfg, agent, count, out)
    row = result_row("real", scores["real"], "tics survived", "1092 ± 556")
    print(f"{row['name']}: {shown_measurement(row)}, {row['n']} episodes")
    films(cfg, agent, out)
    print(f"Open {out / 'dream_and_real.mp4'}.")


@dataclass(frozen=True)
class Arguments:
    """What to do."""

    preset: Literal["smoke", "demo", "cpu", "paper"] = "cpu"
    folder: Path | None = None  # of the run; runs/doom_take_cover/<preset> if not given
    evaluate: Path | None = None  # folder of a stored agent to play the real game with, instead of training one
    episodes: int = 100  # to play with --evaluate


def main(arguments: list[str]) -> None:
    """Read the command line; what is not in `Arguments` belongs to `Config`."""
    keep_freed_memory()
    args, rest = tyro.cli(Arguments, args=arguments, return_unknown_args=True)
    cfg = tyro.cli(Config, args=rest, default=PRESETS[args.preset])
    folder = args.folder or Path("runs") / "doom_take_cover" / args.preset
    if args.evaluate:
        evaluate_agent(
            cfg, args.evaluate, args.episodes, args.folder or Path("runs") / "doom_take_cover" / "evaluation"
        )
    else:
        train_agent(cfg, folder, ["--preset", args.preset, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
