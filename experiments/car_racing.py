"""World Models on CarRacing: see, remember, steer, with a controller evolved on the road or inside the dream.

Paper: Ha & Schmidhuber 2018, section 3 and appendix A. Gymnasium's CarRacing-v3; a score is that of 100 fresh tracks.

    collect   random driving, streamed to disk
    vision    V, the autoencoder, learns to see
    encode    every frame becomes a latent
    memory    M, the MDN-RNN, learns what comes next; here also the reward and the end, so that it can be dreamed whole
    evolve    C by CMA-ES in the real game, as published; `full-dream` evolves it in the dream of M instead, then lets
              candidates drive, teaches M what they saw, and so on, as the paper's section 5 proposes
    evaluate  the mean of the distribution drives on fresh tracks

    python experiments/car_racing.py --folder runs/car --controller full          # [z, h], 867 parameters
    python experiments/car_racing.py --folder runs/car --controller full-dream    # the same, evolved in the dream
    python experiments/car_racing.py --folder runs/car --controller z             # 99 parameters, without memory

Also `z-hidden`, 1,443 parameters, and `untrained-memory`. All use the V and M of the folder, trained once; result.json
holds all that were evaluated. The command started again goes on where it stopped. `--engine envpool` is faster.
"""

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

from dreamjax import evolution
from dreamjax.envs.car_racing import CarRacing, Engine
from dreamjax.evolution import EvolutionConfig, EvolutionState
from dreamjax.replay import episodes, latents
from dreamjax.replay.latents import Latents
from dreamjax.run import plots, summary
from dreamjax.run.agent import StoredAgent, load_agent, save_agent
from dreamjax.run.collect import collect, random_network_actions
from dreamjax.run.devices import keep_freed_memory
from dreamjax.run.encode import encode, encode_episodes, read_latents, write_latents
from dreamjax.run.films import film_dream, film_game, write_films
from dreamjax.run.folder import RunFolder, result_row
from dreamjax.run.metrics import MetricsLog, against_sum, read_metrics
from dreamjax.run.play import returns
from dreamjax.run.pool import FRESH, GamePool, Job, drawn_seeds, population_returns
from dreamjax.run.stages import collect_stage, vision_stage
from dreamjax.run.summary import Section
from dreamjax.run.train import train
from dreamjax.types import Key, LatentModel, Metrics, Params, Policy
from dreamjax.worldmodels import controller, learner, model, search, vision
from dreamjax.worldmodels.controller import ControllerConfig
from dreamjax.worldmodels.learner import MemoryState, OptimizerConfig
from dreamjax.worldmodels.search import Dreaming

WORLD = replace(
    model.CAR_RACING,
    memory=replace(model.CAR_RACING.memory, predict_done=True, predict_reward=True, predict_action=True),
)
SEE = jax.jit(partial(vision.encode, WORLD.vision))
FPS = 50
DEAREST = -1.0  # what leaving the field costs M: the game's -100 would drown every other reward
Name = Literal["full", "full-dream", "z", "z-hidden", "untrained-memory"]

SEES: dict[Name, tuple[Literal["z", "zh"], int, str | None]] = {  # and hidden units of C, and the published score
    "full": ("zh", 0, "906 ± 21"),
    "full-dream": ("zh", 0, None),
    "z": ("z", 0, "632 ± 251"),
    "z-hidden": ("z", 40, "788 ± 141"),
    "untrained-memory": ("zh", 0, None),
}


class Kind(NamedTuple):
    """A controller, and what it sees of the world model."""

    model: LatentModel
    policy: Policy


def kind_of(name: Name, max_steps: int) -> Kind:
    """Build one, once; programs are compiled for it by identity."""
    sees, hidden, _ = SEES[name]
    world = replace(WORLD, sees=sees, max_steps=max_steps)
    settings = ControllerConfig("carracing", model.feature_size(world), hidden)
    return Kind(model.make(world), controller.make(settings))


@dataclass(frozen=True)
class Config:
    """The published settings; the other presets say what they change."""

    preset: str = "paper"
    seed: int = 0
    max_steps: int = 1000  # of an episode
    workers: int = 64
    # collect
    episodes: int = 10_000
    # vision
    vision_batch: int = 100
    vision_updates: int = 1_000_000
    vision_optimizer: OptimizerConfig = learner.VISION_OPTIMIZER
    # memory
    streams: int = 100
    length: int = 999  # inputs per chunk
    memory_updates: int = 4000
    memory_optimizer: OptimizerConfig = OptimizerConfig(1e-3, clip=1.0)
    # evolve
    evolution: EvolutionConfig = EvolutionConfig(population_size=64, sigma=0.1)
    generations: int = 1800
    tracks: int = 16  # per individual
    shared_tracks: bool = False  # by the whole population, not by two of it
    patience: int | None = None  # end an episode after so many steps without a new tile
    engine: Engine = "dreamjax"  # of the games that C learns in; the final score is of Gymnasium's own
    lanes: int = 8  # games that a worker steps before it hands their frames over
    evaluate_every: int = 25  # generations
    evaluation_tracks: int = 1024  # of the mean of the distribution
    # full-dream
    rounds: int = 10
    round_generations: int = 100
    dreams: int = 16  # per individual
    temperature: float = 1.0
    round_episodes: int = 256  # driven between dreams, by candidates of the last generation
    round_updates: int = 4000  # of M
    # evaluate
    real_episodes: int = 100
    film_temperatures: tuple[float, ...] = (0.25, 1.0)


PAPER = Config()
CPU = replace(
    PAPER,
    preset="cpu",
    workers=2,
    episodes=200,
    vision_batch=32,
    vision_updates=6000,
    vision_optimizer=OptimizerConfig(1e-3, 1e-5, 0.9994),
    streams=16,
    length=100,
    memory_updates=6000,
    memory_optimizer=OptimizerConfig(1e-3, 1e-4, 0.9996, clip=1.0),
    generations=60,
    tracks=2,
    shared_tracks=True,
    patience=100,
    lanes=32,
    evaluate_every=10,
    evaluation_tracks=32,
    rounds=20,
    round_generations=10,
    round_episodes=32,
    round_updates=1000,
    temperature=1.15,
)
SMOKE = replace(
    CPU,
    preset="smoke",
    max_steps=20,
    episodes=4,
    vision_batch=8,
    vision_updates=3,
    streams=2,
    length=8,
    memory_updates=3,
    evolution=EvolutionConfig(population_size=8, sigma=0.1),
    generations=2,
    tracks=1,
    lanes=2,
    evaluate_every=2,
    evaluation_tracks=2,
    rounds=2,
    round_generations=2,
    dreams=1,
    round_episodes=2,
    round_updates=2,
    real_episodes=2,
)
PRESETS = {config.preset: config for config in (SMOKE, CPU, PAPER)}


def pool(cfg: Config, engine: Engine, patience: int | None = None) -> GamePool:
    """Open the games."""
    make = partial(CarRacing, engine=engine, max_steps=cfg.max_steps, patience=patience)
    return GamePool(make, model.make(WORLD).spec.observation, cfg.workers, cfg.lanes)


def see(cfg: Config, run: RunFolder, log: MetricsLog, key: Key) -> tuple[Params, Latents]:
    """Collect random driving, train V, and let it see everything."""
    make = partial(CarRacing, full_length=True, max_steps=cfg.max_steps)
    fill = partial(collect, make_env=make, seed=cfg.seed, policy=random_network_actions, workers=cfg.workers)
    store = collect_stage(run, cfg.episodes, partial(fill, min_length=1, max_steps=cfg.max_steps))
    frames = partial(episodes.frame_batches, store, cfg.seed, cfg.vision_batch)
    params = vision_stage(run, log, key, (WORLD.vision, cfg.vision_optimizer), frames, cfg.vision_updates)
    return params, encode(run, store, partial(SEE, params))


def remember(
    cfg: Config, run: RunFolder, log: MetricsLog, stage: tuple[str, int, int], state: MemoryState, data: Latents
) -> MemoryState:
    """Train M on some data, from one update of a stage to another."""
    name, first, end = stage
    data = data._replace(reward=data.reward.clip(DEAREST))
    key = jax.random.fold_in(jax.random.key(cfg.seed), 1)  # always the same: M folds in its own number of updates
    update = partial(learner.memory_step, WORLD.memory, cfg.memory_optimizer, key)
    chunks = lambda step: latents.chunks(data, 1000 * cfg.seed + first, cfg.streams, cfg.length, step - first)  # noqa: E731
    return train(run, log, name, state, update, chunks, end)


def evolve(cfg: Config, run: RunFolder, log: MetricsLog, name: Name, kind: Kind, key: Key, params: Params) -> Params:
    """Evolve C in the real game; return the mean of the last distribution."""

    def generation(state: EvolutionState, number: int) -> tuple[EvolutionState, Metrics]:
        key_ask, key_play, key_evaluate = jax.random.split(jax.random.fold_in(key, number), 3)
        state, population = evolution.ask(cfg.evolution, key_ask, state)
        played = population_returns(games, *kind, (params, population), key_play, seeds(number))
        state, metrics = evolution.tell(cfg.evolution, state, population, played.total.mean(1))
        metrics["frames"] = played.steps.sum()
        if (number + 1) % cfg.evaluate_every == 0:
            metrics |= drive(cfg, games, kind, key_evaluate, params, evolution.mean(cfg.evolution, state))
        return state, metrics

    groups = 1 if cfg.shared_tracks else cfg.evolution.population_size // 2  # as published, two share their tracks
    seeds = lambda number: drawn_seeds([cfg.seed, number], cfg.evolution.population_size, cfg.tracks, groups)  # noqa: E731
    found = evolution.init(cfg.evolution, kind.policy.init(key))
    numbers = lambda first: iter(range(first, cfg.generations))  # noqa: E731
    settings = {"checkpoint_every": 1, "log_every": 1}
    with pool(cfg, cfg.engine, cfg.patience) as games:
        found = train(run, log, f"{name}-evolve", found, generation, numbers, cfg.generations, **settings)
    return evolution.mean(cfg.evolution, found)


def drive(cfg: Config, games: GamePool, kind: Kind, key: Key, params: Params, mean: Params) -> Metrics:
    """Let the mean of the distribution drive on some tracks that are not those of the final score."""
    alone = jax.tree.map(lambda leaf: leaf[None], mean)
    seeds = FRESH // 2 + np.arange(cfg.evaluation_tracks)
    total = population_returns(games, *kind, (params, alone), key, seeds[None]).total
    return {"evaluation_mean": total.mean(), "evaluation_std": total.std()}


def dream_generation(
    cfg: Config, kind: Kind, world: tuple[Params, Any], key: Key, found: EvolutionState, count: int
) -> tuple[EvolutionState, Metrics]:
    """Do generation `count` of all rounds, in the dream of `world`; every round begins anew around what was found."""
    if count % cfg.round_generations == 0:
        found = evolution.init(cfg.evolution, evolution.mean(cfg.evolution, found))
    dreaming = Dreaming(kind.model, kind.policy, *world, cfg.temperature)
    return search.generation(cfg.evolution, dreaming, jax.random.fold_in(key, count), found, cfg.dreams)


def drive_and_look(
    cfg: Config,
    run: RunFolder,
    log: MetricsLog,
    kind: Kind,
    key: Key,
    found: tuple[Params, EvolutionState],
    number: int,
) -> Latents:
    """Let candidates of the last generation of a round drive; return what V makes of what they saw."""
    params, state = found
    path, stage = run.path / "full-dream" / f"{number:02}.npz", f"full-dream-round-{number:02}"
    if not run.stage_done(stage):
        key_ask, key_play, key_drive = jax.random.split(key, 3)
        with run.stage(stage), pool(cfg, cfg.engine, cfg.patience) as games:
            _, population = evolution.ask(cfg.evolution, key_ask, state)
            seeds = np.random.default_rng([cfg.seed, FRESH, number]).integers(FRESH, size=cfg.round_episodes)
            jobs = [Job(i % cfg.evolution.population_size, int(seed)) for i, seed in enumerate(seeds)]
            played = sorted(
                games.play(*kind, (params, population), key_play, jobs, record=True), key=lambda ended: ended.job
            )
            driven = drive(cfg, games, kind, key_drive, params, evolution.mean(cfg.evolution, state))
            seen = encode_episodes([ended.episode for ended in played if ended.episode], partial(SEE, params.vision))
            write_latents(path, seen)
        totals = [ended.played.total for ended in played]
        log.write("full-dream-round", number, {"candidates": np.mean(totals), "frames": len(seen.mean), **driven})
        run.finish_stage(stage, {name: float(value) for name, value in driven.items()})
    return read_latents(path)


def evolve_in_dream(
    cfg: Config, run: RunFolder, log: MetricsLog, kind: Kind, key: Key, begun: tuple[Params, MemoryState, Latents]
) -> tuple[Params, Params]:
    """Dream, drive and learn in turns; return the last V and M, and the mean of the last distribution."""
    vision_params, memory_state, data = begun
    starts = data.first_frames(len(data.length))
    found = evolution.init(cfg.evolution, kind.policy.init(key))
    for number in range(1, cfg.rounds + 1):
        key_evolve, key_drive = jax.random.split(jax.random.fold_in(key, number))
        if number > 1:
            first, end = ((number - i) * cfg.round_updates for i in (2, 1))
            stage = ("full-dream-memory", first, end)
            memory_state = remember(cfg, run, log, stage, memory_state, data)
        params = model.WorldModelParams(vision_params, memory_state.params)
        generation = partial(dream_generation, cfg, kind, (params, starts), key_evolve)
        end = number * cfg.round_generations
        numbers = lambda first, end=end: iter(range(first, end))  # noqa: E731
        found = train(run, log, "full-dream-evolve", found, generation, numbers, end, checkpoint_every=5, log_every=1)
        seen = drive_and_look(cfg, run, log, kind, key_drive, (params, found), number)
        data = latents.concatenate([data, seen])
    return params, evolution.mean(cfg.evolution, found)


def make_agent(cfg: Config, run: RunFolder, log: MetricsLog, name: Name, kind: Kind) -> StoredAgent:
    """Train what is to drive."""
    key_see, key_init, key_evolve = jax.random.split(jax.random.key(cfg.seed), 3)
    vision_params, data = see(cfg, run, log, key_see)
    state = learner.memory_init(WORLD.memory, cfg.memory_optimizer, key_init, cfg.streams)
    if name != "untrained-memory":
        state = remember(cfg, run, log, ("memory", 0, cfg.memory_updates), state, data)
    params = model.WorldModelParams(vision_params, state.params)
    if name == "full-dream":
        params, mean = evolve_in_dream(cfg, run, log, kind, key_evolve, (vision_params, state, data))
    else:
        mean = evolve(cfg, run, log, name, kind, key_evolve, params)
    return StoredAgent(params, mean, data.first_frames(100))


def evaluate(cfg: Config, run: RunFolder, name: Name, kind: Kind, agent: StoredAgent) -> None:
    """Score the agent on fresh tracks, drawn by Gymnasium itself."""
    alone = jax.tree.map(lambda leaf: leaf[None], agent.controller)
    key = jax.random.key(cfg.seed)

    def player(seeds: list[int]) -> Any:
        with pool(cfg, "gymnasium") as games:
            for ended in games.play(*kind, (agent.model, alone), key, [Job(0, seed) for seed in seeds]):
                yield ended.played

    with run.stage(f"{name}-evaluate"):
        seeds = [FRESH + i for i in range(cfg.real_episodes)]
        total = returns(run.path / "evaluation" / f"{name}.jsonl", seeds, name, player)
    run.finish_stage(f"{name}-evaluate", {"returns": total.tolist()})


def film(cfg: Config, run: RunFolder, name: Name, kind: Kind, agent: StoredAgent) -> list[str]:
    """Film dreams of some temperatures, each beside the first fresh track; return the names of the films."""
    key, files = jax.random.key(cfg.seed), []
    for temperature in cfg.film_temperatures:
        folder = f"{name}-at-{temperature:.2f}"
        files.append(f"{folder}/dream_and_real.mp4")
        if not (run.path / files[-1]).exists():
            dreamed = film_dream(kind.model, kind.policy, agent, key, cfg.max_steps, temperature)
            real = film_game(partial(CarRacing, max_steps=cfg.max_steps), kind.model, kind.policy, agent, key, FRESH)
            write_films(run.path / folder, dreamed, real, FPS)
    return files


def report(cfg: Config, run: RunFolder, name: Name, films: list[str], arguments: list[str]) -> None:
    """Put all controllers that were evaluated in one table."""
    rows = []
    for other, (_, _, published) in SEES.items():
        if run.stage_done(f"{other}-evaluate"):
            scores = run.stage_record(f"{other}-evaluate")["summary"]["returns"]
            rows.append(result_row(other, np.array(scores), "return", published))
    metrics = read_metrics(run.path / "metrics.jsonl")
    plots.learning_curves(metrics, run.path / "learning.png")
    driven = {}
    for other in SEES:
        stage = metrics.get(f"{other}-{'round' if other == 'full-dream' else 'evolve'}", {})
        if "evaluation_mean" in stage:
            driven[other] = against_sum(stage, "frames", ("evaluation_mean", "evaluation_std"))
    plots.series_with_bars({"return of the mean": driven}, "frames that C drove", run.path / "evolution.png")
    commands = [f"python experiments/car_racing.py --controller {row['name']}" for row in rows]
    command = "; ".join(" ".join([command, *arguments]) for command in commands)
    sections = [
        Section(f"{name}: dreams, and the road", "Left what it dreams, right the game.", films),
        Section("Learning and evolution", media=["evolution.png", "learning.png"]),
    ]
    summary.report(run, "car_racing", command, rows, "World Models on CarRacing", sections)


@dataclass(frozen=True)
class Arguments:
    """What to do."""

    preset: Literal["smoke", "cpu", "paper"] = "cpu"
    controller: Name = "full"
    folder: Path | None = None  # of the run; runs/car_racing/<preset>-<seed> if not given


def main(arguments: list[str]) -> None:
    """Read the command line; what is not in `Arguments` belongs to `Config`."""
    keep_freed_memory()
    args, rest = tyro.cli(Arguments, args=arguments, return_unknown_args=True)
    cfg = tyro.cli(Config, args=rest, default=PRESETS[args.preset])
    run = RunFolder(args.folder or Path("runs") / "car_racing" / f"{cfg.preset}-{cfg.seed}", cfg)
    name, kind = args.controller, kind_of(args.controller, cfg.max_steps)
    path = run.path / f"agent-{name}.npz"
    if not path.exists():
        with MetricsLog(run.path) as log:
            save_agent(path, make_agent(cfg, run, log, name, kind))
    agent = load_agent(path, kind.model, kind.policy)
    evaluate(cfg, run, name, kind, agent)
    report(cfg, run, name, film(cfg, run, name, kind, agent), ["--preset", args.preset, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
