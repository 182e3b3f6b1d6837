"""World Models on CarRacing: see, remember, steer, with a controller evolved on the road or inside the dream.

Paper: Ha & Schmidhuber 2018, section 3 and appendix A. Gymnasium's CarRacing-v3; a score is that of 100 fresh tracks.

    collect   random driving, streamed to disk
    vision    V, the autoencoder, learns to see
    encode    every frame becomes a latent
    memory    M, the MDN-RNN, learns what comes next; here also the reward and the end, so that it can be dreamed whole
    evolve    C by CMA-ES in the real game, as published; `full-dream` evolves it in the dream of M instead, then lets
              it drive, teaches M what was seen, and so on, as the paper's section 5 proposes
    evaluate  the mean of the distribution drives on fresh tracks

    python experiments/car_racing.py --folder runs/car --controller full          # [z, h], 867 parameters
    python experiments/car_racing.py --folder runs/car --controller full-dream    # the same, evolved in the dream
    python experiments/car_racing.py --folder runs/car --controller z             # 99 parameters, without memory
    python experiments/car_racing.py --evaluate experiments/results/car_racing --controller full-dream

Also `z-hidden`, 1,443 parameters, and `untrained-memory`. All use the V and M of the folder, trained once; result.json
holds all that were evaluated. The command started again goes on where it stopped. `--engine envpool` is faster. With
`--evaluate` a stored agent drives and is filmed. What the committed runs measured, how long they took and on which
machine: results/car_racing.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

from dreamjax import evolution
from dreamjax.acting.collect import collect, random_network_actions
from dreamjax.acting.play import returns
from dreamjax.acting.pool import FRESH, GamePool, Job, drawn_seeds, population_returns
from dreamjax.envs.car_racing import CarRacing, Engine
from dreamjax.evolution import EvolutionConfig, EvolutionState
from dreamjax.replay import episodes, latents
from dreamjax.replay.latents import Latents
from dreamjax.reporting import curves, pages
from dreamjax.reporting.films import film_temperatures
from dreamjax.reporting.pages import Section
from dreamjax.reporting.results import result_row, shown_measurement
from dreamjax.storage.agents import StoredAgent, load_agent, save_agent
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog, read_metrics
from dreamjax.training.devices import keep_freed_memory
from dreamjax.training.encode import encode
from dreamjax.training.iterative import Player, RoundsConfig, evaluation_jobs, evolve_in_rounds
from dreamjax.training.loop import train
from dreamjax.training.stages import collect_stage, search_stage, vision_stage
from dreamjax.types import Key, LatentModel, Metrics, Params, Policy
from dreamjax.worldmodels import controller, learner, model, vision
from dreamjax.worldmodels.controller import ControllerConfig
from dreamjax.worldmodels.learner import MemoryState, OptimizerConfig

WORLD = replace(
    model.CAR_RACING,
    memory=replace(model.CAR_RACING.memory, predict_done=True, predict_reward=True, predict_action=True),
)
SEE = jax.jit(partial(vision.encode, WORLD.vision))
FPS = 50
DEAREST = -1.0  # what leaving the field costs M: the game's -100 would drown every other reward
Name = Literal["full", "full-dream", "z", "z-hidden", "untrained-memory"]
Span = tuple[str, int, int]  # a stage, from one of its updates to another

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
    rounds: RoundsConfig = RoundsConfig()
    round_updates: int = 4000  # of M, after each
    # evaluate
    real_episodes: int = 100
    film_temperatures: tuple[float, ...] = (0.25, 1.0)

    def __post_init__(self) -> None:
        if self.evolution.population_size % 2 and not self.shared_tracks:
            raise ValueError("two of a population share their tracks: let it be even, or all share theirs")


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
    rounds=RoundsConfig(count=20, generations=10, episodes=32, evaluation_episodes=32, temperature=1.15),
    round_updates=1000,
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
    rounds=RoundsConfig(count=2, generations=2, dreams=1, episodes=2, evaluation_episodes=2),
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
    cfg: Config, run: RunFolder, log: MetricsLog, key: Key, span: Span, state: MemoryState, data: Latents
) -> MemoryState:
    """Train M on some data, from one update of a stage to another; M folds its number of updates into the key."""
    name, first, end = span
    data = data._replace(reward=data.reward.clip(DEAREST))
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
            jobs = evaluation_jobs(0, cfg.evaluation_tracks)
            alone = jax.tree.map(lambda leaf: leaf[None], evolution.mean(cfg.evolution, state))
            ended = games.play(*kind, (params, alone), key_evaluate, jobs)
            total = np.array([one.played.total for one in sorted(ended, key=lambda one: one.job)])
            metrics |= {"evaluation_mean": total.mean(), "evaluation_std": total.std()}
        return state, metrics

    groups = 1 if cfg.shared_tracks else cfg.evolution.population_size // 2  # as published, two share their tracks
    seeds = lambda number: drawn_seeds([cfg.seed, number], cfg.evolution.population_size, cfg.tracks, groups)  # noqa: E731
    found = evolution.init(cfg.evolution, kind.policy.init(key))
    with pool(cfg, cfg.engine, cfg.patience) as games:
        found = search_stage(run, log, f"{name}-evolve", found, generation, cfg.generations, checkpoint_every=1)
    return evolution.mean(cfg.evolution, found)


def evolve_in_dreams(
    cfg: Config, run: RunFolder, log: MetricsLog, kind: Kind, key: Key, begun: tuple[Params, MemoryState, Latents]
) -> StoredAgent:
    """Dream, drive and learn in turns; return the agent that drove best."""
    vision_params, memory_state, data = begun
    key_init, key_learn, key_rounds = jax.random.split(key, 3)

    def learn(number: int, seen: Sequence[Latents]) -> Params:
        nonlocal memory_state
        span = "full-dream-memory", (number - 1) * cfg.round_updates, number * cfg.round_updates
        memory_state = remember(cfg, run, log, key_learn, span, memory_state, latents.concatenate([data, *seen]))
        return model.WorldModelParams(vision_params, memory_state.params)

    params = model.WorldModelParams(vision_params, memory_state.params)
    begins = StoredAgent(params, kind.policy.init(key_init), data.first_frames(len(data.length)))
    driver = Player("full-dream", *kind, partial(pool, cfg, cfg.engine, cfg.patience))
    return evolve_in_rounds(cfg.rounds, cfg.evolution, run, log, key_rounds, driver, begins, learn)


def make_agent(cfg: Config, run: RunFolder, log: MetricsLog, key: Key, name: Name, kind: Kind) -> StoredAgent:
    """Train what is to drive."""
    key_see, key_init, key_learn, key_evolve = jax.random.split(key, 4)
    vision_params, data = see(cfg, run, log, key_see)
    state = learner.memory_init(WORLD.memory, cfg.memory_optimizer, key_init, cfg.streams)
    if name != "untrained-memory":
        state = remember(cfg, run, log, key_learn, ("memory", 0, cfg.memory_updates), state, data)
    params = model.WorldModelParams(vision_params, state.params)
    if name == "full-dream":
        return evolve_in_dreams(cfg, run, log, kind, key_evolve, (vision_params, state, data))
    return StoredAgent(params, evolve(cfg, run, log, name, kind, key_evolve, params), data.first_frames(100))


def score(cfg: Config, folder: Path, key: Key, name: Name, kind: Kind, agent: StoredAgent) -> np.ndarray:
    """Let the agent drive on fresh tracks, drawn by Gymnasium itself. Shapes: -> [cfg.real_episodes]."""
    alone = jax.tree.map(lambda leaf: leaf[None], agent.controller)

    def player(seeds: list[int]) -> Any:
        with pool(cfg, "gymnasium") as games:
            for ended in games.play(*kind, (agent.model, alone), key, [Job(0, seed) for seed in seeds]):
                yield ended.played

    return returns(folder / "evaluation" / f"{name}.jsonl", [FRESH + i for i in range(cfg.real_episodes)], name, player)


def film(cfg: Config, folder: Path, key: Key, name: Name, kind: Kind, agent: StoredAgent) -> list[str]:
    """Film its dreams beside the first drive that is scored, not a chosen one; return the names of the files."""
    agents = dict.fromkeys(cfg.film_temperatures, agent)
    game = partial(CarRacing, max_steps=cfg.max_steps), FRESH
    return film_temperatures(folder, name, kind, agents, key, game, cfg.max_steps, FPS)


def report(cfg: Config, run: RunFolder, name: Name, films: list[str], arguments: list[str]) -> None:
    """Put all controllers that were evaluated in one table."""
    rows = []
    for other, (_, _, published) in SEES.items():
        if run.stage_done(f"{other}-evaluate"):
            scores = run.stage_record(f"{other}-evaluate")["summary"]["returns"]
            rows.append(result_row(other, np.array(scores), "return", published))
    metrics = read_metrics(run.path / "metrics.jsonl")
    curves.learning_curves(metrics, run.path / "learning.png")
    driven = {}
    for other in SEES:
        stage = metrics.get(f"{other}-{'round' if other == 'full-dream' else 'evolve'}", {})
        if "evaluation_mean" in stage:
            driven[other] = curves.against_sum(stage, "frames", ("evaluation_mean", "evaluation_std"))
    panels = {"return on other tracks, until lost": driven}
    curves.series_with_bars(panels, "frames that C drove", run.path / "evolution.png")
    commands = [f"python experiments/car_racing.py --controller {row['name']}" for row in rows]
    command = "; ".join(" ".join([command, *arguments]) for command in commands)
    sections = [
        Section(f"{name}: dreams, and the road", "Left what it dreams, right the game.", films),
        Section("Learning and evolution", media=["evolution.png", "learning.png"]),
    ]
    pages.report(run, "car_racing", command, rows, "World Models on CarRacing", sections)


def train_agent(cfg: Config, folder: Path, name: Name, arguments: list[str]) -> None:
    """Run all stages that the folder does not hold."""
    run, kind = RunFolder(folder, cfg), kind_of(name, cfg.max_steps)
    key_make, key_evaluate, key_film = jax.random.split(jax.random.key(cfg.seed), 3)
    path = run.path / f"agent-{name}.npz"
    if not path.exists():
        with MetricsLog(run.path) as log:
            save_agent(path, make_agent(cfg, run, log, key_make, name, kind))
    agent = load_agent(path, *kind)
    with run.stage(f"{name}-evaluate"):
        scores = score(cfg, run.path, key_evaluate, name, kind, agent)
        run.finish_stage(f"{name}-evaluate", {"returns": scores.tolist()})
    with run.stage(f"{name}-film"):
        films = film(cfg, run.path, key_film, name, kind, agent)
    report(cfg, run, name, films, arguments)


def evaluate_agent(cfg: Config, stored: Path, folder: Path, name: Name) -> None:
    """Drive with a stored agent, and film it."""
    kind = kind_of(name, cfg.max_steps)
    agent = load_agent(stored / f"agent-{name}.npz", *kind)
    key_score, key_film = jax.random.split(jax.random.key(cfg.seed))
    row = result_row(name, score(cfg, folder, key_score, name, kind, agent), "return", SEES[name][2])
    print(f"{name}: {shown_measurement(row)}, {row['n']} episodes")
    for file in film(cfg, folder, key_film, name, kind, agent):
        print(f"Open {folder / file}.")


@dataclass(frozen=True)
class Arguments:
    """What to do."""

    preset: Literal["smoke", "cpu", "paper"] = "cpu"
    controller: Name = "full"
    folder: Path | None = None  # of the run; runs/car_racing/<preset>-<seed> if not given
    evaluate: Path | None = None  # folder of a stored agent that is to drive, instead of training one


def main(arguments: list[str]) -> None:
    """Read the command line; what is not in `Arguments` belongs to `Config`."""
    keep_freed_memory()
    args, rest = tyro.cli(Arguments, args=arguments, return_unknown_args=True)
    cfg = tyro.cli(Config, args=rest, default=PRESETS[args.preset])
    CarRacing(cfg.engine, max_steps=cfg.max_steps).close()  # what is missing for it is to be said now, not in hours
    runs = Path("runs") / "car_racing"
    if args.evaluate:
        evaluate_agent(cfg, args.evaluate, args.folder or runs / "evaluation", args.controller)
    else:
        folder = args.folder or runs / f"{cfg.preset}-{cfg.seed}"
        train_agent(cfg, folder, args.controller, ["--preset", args.preset, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
