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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from dreamjax.acting import seeds
from dreamjax.acting.evaluation import evaluate
from dreamjax.acting.pool import Pool
from dreamjax.envs.car_racing import CarRacing, Engine, car_racing_spec
from dreamjax.evolution import EvolutionConfig
from dreamjax.optim import AdamConfig
from dreamjax.replay import latents
from dreamjax.replay.latents import Latents
from dreamjax.reporting import curves, pages
from dreamjax.reporting.films import film_temperatures
from dreamjax.reporting.pages import Section
from dreamjax.reporting.results import result_row, shown_measurement
from dreamjax.storage.agents import load, save_agent
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog, read_metrics
from dreamjax.training import stages
from dreamjax.training.experiment import Options, command, read_command_line, run_folder
from dreamjax.training.iterative import IterativeConfig, train_iteratively
from dreamjax.training.stages import Collect, Evolve, TrainMemory, TrainVision
from dreamjax.types import Agent, AgentParams, Key, Params
from dreamjax.worldmodels import learner, model
from dreamjax.worldmodels.controller import ControllerConfig
from dreamjax.worldmodels.learner import MemoryLearner, TrainState
from dreamjax.worldmodels.model import CAR_RACING, WorldModelConfig, WorldModelParams

NAME = "car_racing"
FPS = 50
LOWEST_REWARD = -1.0  # that M learns; the game's -100 for leaving the field would drown every other reward
Name = Literal["full", "full-dream", "z", "z-hidden", "untrained-memory"]
DREAMED = replace(CAR_RACING.memory, predict_done=True, predict_reward=True, predict_action=True)
FULL = replace(CAR_RACING, memory=DREAMED)
HIDDEN = ControllerConfig(hidden=40, clipped=CAR_RACING.controller.clipped)
CONTROLLERS: dict[Name, tuple[WorldModelConfig, str | None]] = {  # and the published score
    "full": (FULL, "906 ± 21"),
    "full-dream": (FULL, None),
    "z": (replace(FULL, features="z"), "632 ± 251"),
    "z-hidden": (replace(FULL, features="z", controller=HIDDEN), "788 ± 141"),
    "untrained-memory": (FULL, None),
}


@dataclass(frozen=True)
class Config:
    """The published settings; the other presets say what they change."""

    preset: str = "paper"
    seed: int = 0
    max_steps: int = 1000  # of an episode
    collect: Collect = Collect(policy="network")
    vision: TrainVision = TrainVision(1_000_000)
    memory: TrainMemory = TrainMemory(4000, length=999, optimizer=AdamConfig(1e-3, clip=1.0))
    evolve: Evolve = Evolve()
    shared_tracks: bool = False  # by the whole population, not by two of it
    patience: int | None = None  # end an episode after so many steps without a new tile
    engine: Engine = "dreamjax"  # of the games that C learns in; the final score is of Gymnasium's own
    workers: int = 64
    envs: int = 1024  # that C learns in at once
    iterative: IterativeConfig = IterativeConfig()  # of full-dream
    iteration_updates: int = 4000  # of M, after each iteration
    real_episodes: int = 100
    film_temperatures: tuple[float, ...] = (0.25, 1.0)


PAPER = Config()
CPU = replace(
    PAPER,
    preset="cpu",
    workers=2,
    envs=128,
    collect=Collect(200, policy="network", workers=2, envs=4),
    vision=TrainVision(6000, batch=32, optimizer=AdamConfig(1e-3, 1e-5, 0.9994)),
    memory=TrainMemory(6000, streams=16, length=100, optimizer=AdamConfig(1e-3, 1e-4, 0.9996, clip=1.0)),
    evolve=Evolve(generations=60, episodes=2, evaluate_every=10, evaluation_episodes=32),
    shared_tracks=True,
    patience=100,
    iterative=IterativeConfig(20, generations=10, episodes=32, evaluation_episodes=32, temperature=1.15),
    iteration_updates=1000,
)
SMOKE = replace(
    CPU,
    preset="smoke",
    max_steps=20,
    envs=4,
    collect=replace(CPU.collect, episodes=4),
    vision=TrainVision(3, batch=8),
    memory=TrainMemory(3, streams=2, length=8),
    evolve=Evolve(EvolutionConfig(8), generations=2, episodes=1, evaluate_every=2, evaluation_episodes=2),
    iterative=IterativeConfig(2, generations=2, dream_episodes=1, episodes=2, evaluation_episodes=2),
    iteration_updates=2,
    real_episodes=2,
)
PRESETS = {config.preset: config for config in (CPU, PAPER, SMOKE)}


def make_env(cfg: Config, engine: Engine = "gymnasium", patience: int | None = None) -> partial[CarRacing]:
    return partial(CarRacing, engine=engine, max_steps=cfg.max_steps, patience=patience)


def open_pool(cfg: Config) -> Pool:
    """Open the environments that C learns in."""
    return Pool(make_env(cfg, cfg.engine, cfg.patience), cfg.envs, cfg.workers)


def remember(
    cfg: Config, run: RunFolder, log: MetricsLog, key: Key, data: Latents, state: TrainState | None, iteration: int = 0
) -> TrainState:
    """Train M; `iteration` counts those of full-dream."""
    memory, name, first = cfg.memory, "memory", 0
    if iteration:
        memory, name = replace(memory, updates=cfg.iteration_updates), "full-dream-memory"
        first = (iteration - 1) * cfg.iteration_updates
    data = data._replace(reward=data.reward.clip(LOWEST_REWARD))
    seed = 1000 * cfg.seed + iteration
    return stages.remember(run, log, key, memory, DREAMED, data, seed, state=state, name=name, first=first)


def evolve_in_dreams(
    cfg: Config,
    run: RunFolder,
    log: MetricsLog,
    key: Key,
    agent: Agent,
    params: AgentParams,
    begun: TrainState,
    data: Latents,
) -> AgentParams:
    """Dream, drive and learn in turns; return the agent that drove best."""
    state, (key_init, key_learn, key_iterate) = begun, jax.random.split(key, 3)

    def learn(iteration: int, seen: Sequence[Latents]) -> Params:
        nonlocal state
        state = remember(cfg, run, log, key_learn, latents.concatenate([data, *seen]), state, iteration)
        return params.model._replace(memory=state.params)

    params = params._replace(policy=agent.policy.init(key_init), starts=data.first_frames(len(data.length)))
    settings = {"open_pool": partial(open_pool, cfg), "name": "full-dream"}
    return train_iteratively(cfg.iterative, cfg.evolve.search, run, log, key_iterate, agent, params, learn, **settings)


def train(cfg: Config, run: RunFolder, key: Key, name: Name, agent: Agent) -> AgentParams:
    """Learn the world from random driving, unless the folder holds it, then evolve C."""
    key_see, key_init, key_learn, key_evolve = jax.random.split(key, 4)
    with MetricsLog(run.path) as log:
        full_length = partial(CarRacing, full_length=True, max_steps=cfg.max_steps)
        store = stages.collect(run, cfg.collect, full_length, agent.model.spec, cfg.seed)
        seen = stages.see(run, log, key_see, cfg.vision, FULL.vision, store, cfg.seed)
        data = stages.encode(run, store, FULL.vision, seen)
        if name == "untrained-memory":
            state = learner.init(MemoryLearner(DREAMED, cfg.memory.optimizer, cfg.memory.streams), key_init)
        else:
            state = remember(cfg, run, log, key_learn, data, None)
        params = AgentParams(WorldModelParams(seen, state.params), (), data.first_frames(100))
        if name == "full-dream":
            return evolve_in_dreams(cfg, run, log, key_evolve, agent, params, state, data)
        # As published, individuals i and i + N / 2 share their tracks.
        groups = 1 if cfg.shared_tracks else cfg.evolve.search.population_size // 2
        with open_pool(cfg) as pool:
            policy = stages.evolve_in_environment(
                run, log, key_evolve, cfg.evolve, agent, params, pool, groups=groups, name=f"{name}-evolve"
            )
        return params._replace(policy=policy)


def score(cfg: Config, folder: Path, key: Key, name: Name, agent: Agent, params: AgentParams) -> np.ndarray:
    """Let the agent drive on fresh tracks, drawn by Gymnasium itself. Shapes: -> [cfg.real_episodes]."""
    test, notes = seeds.test(cfg.real_episodes), folder / "evaluation" / f"{name}.jsonl"
    return evaluate(agent, params, make_env(cfg), test, key, notes=notes, label=name)


def film(cfg: Config, folder: Path, key: Key, name: Name, agent: Agent, params: AgentParams) -> list[str]:
    """Film its dreams beside the first drive that is scored, not a chosen one; return the names of the files."""
    drive = make_env(cfg, "dreamjax"), seeds.TEST[0]
    by_temperature = dict.fromkeys(cfg.film_temperatures, params)
    return film_temperatures(folder, name, agent, by_temperature, key, drive, cfg.max_steps, FPS)


def report(cfg: Config, run: RunFolder, name: Name, films: list[str]) -> None:
    """Put all controllers that were evaluated in one table."""
    rows = []
    for other, (_, published) in CONTROLLERS.items():
        if run.stage_done(f"{other}-evaluate"):
            returns = run.stage_record(f"{other}-evaluate")["summary"]["returns"]
            rows.append(result_row(other, np.array(returns), "return", published))
    metrics = read_metrics(run.path / "metrics.jsonl")
    curves.learning_curves(metrics, run.path / "learning.png")
    driven = {}
    for other in CONTROLLERS:
        stage = metrics.get(f"{other}-{'iteration' if other == 'full-dream' else 'evolve'}", {})
        if "evaluation_mean" in stage:
            driven[other] = curves.against_sum(stage, "frames", ("evaluation_mean", "evaluation_std"))
    panels = {"return on other tracks, until lost": driven}
    curves.series_with_bars(panels, "frames that C drove", run.path / "evolution.png")
    commands = [f"{command(NAME, cfg, PRESETS)} --controller {row['name']}" for row in rows]
    sections = [
        Section(f"{name}: dreams, and the road", "Left what it dreams, right the game.", films),
        Section("Learning and evolution", media=["evolution.png", "learning.png"]),
    ]
    pages.report(run, NAME, "; ".join(commands), rows, "World Models on CarRacing", sections)


@dataclass(frozen=True)
class CarOptions(Options):
    """What to do with a configuration: train, unless one of the others is given."""

    controller: Name = "full"


def main() -> None:
    """Train what the folder does not hold and report, or evaluate a stored agent."""
    cfg, options = read_command_line(NAME, __doc__, PRESETS, CarOptions)
    CarRacing(cfg.engine, max_steps=cfg.max_steps).close()  # what is missing for it is to be said now, not in hours
    name: Name = options.controller
    key_make, key_evaluate, key_film = jax.random.split(jax.random.key(cfg.seed), 3)
    if options.evaluate:
        agent, params = load(options.evaluate / f"agent-{name}.npz")
        folder, cfg = options.folder or Path("runs") / NAME / "evaluation", replace(cfg, real_episodes=options.episodes)
        row = result_row(name, score(cfg, folder, key_evaluate, name, agent, params), "return", CONTROLLERS[name][1])
        print(f"{name}: {shown_measurement(row)}, {row['n']} episodes")
        for file in film(cfg, folder, key_film, name, agent, params):
            print(f"Open {folder / file}.")
        return
    run = run_folder(NAME, cfg, options)
    world, path = CONTROLLERS[name][0], run.path / f"agent-{name}.npz"
    agent = model.make(world, car_racing_spec(cfg.max_steps))
    if not path.exists():
        save_agent(path, world, agent, train(cfg, run, key_make, name, agent))
    agent, params = load(path)
    with run.stage(f"{name}-evaluate"):
        scores = score(cfg, run.path, key_evaluate, name, agent, params)
        run.finish_stage(f"{name}-evaluate", {"returns": scores.tolist()})
    with run.stage(f"{name}-film"):
        films = film(cfg, run.path, key_film, name, agent, params)
    report(cfg, run, name, films)


if __name__ == "__main__":
    main()
