"""World Models on CarRacing: see, remember, steer, with a controller evolved in the real game or in dreams.

Paper: Ha & Schmidhuber 2018, section 3 and appendix A. Gymnasium's CarRacing-v3; a score is that of 100 test tracks.

    collect   a random network drives, recorded to disk
    vision    V, the autoencoder, learns to see
    encode    every frame becomes a latent
    memory    M, the MDN-RNN, learns what comes next; here also reward and end, so that whole episodes can be dreamed
    evolve    C by CMA-ES in the real game, as published; `full-dream` evolves it in dreams of M instead, then lets it
              drive, trains M on what was seen, and repeats, as the paper's section 5 proposes
    evaluate  the mean of the distribution drives on test tracks

    python experiments/car_racing.py --folder runs/car --controller full          # [z, h], 867 parameters
    python experiments/car_racing.py --folder runs/car --controller full-dream    # the same, evolved in dreams
    python experiments/car_racing.py --folder runs/car --controller z             # 99 parameters, without memory
    python experiments/car_racing.py --evaluate experiments/results/car_racing --controller full-dream

Also `z-hidden`, 1,443 parameters, and `untrained-memory`. All share what the folder holds, and result.json has all that
were evaluated there. The same command resumes where it stopped. Measured, in 4.6 hours: results/car_racing.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax

from dreamjax.acting import Pool
from dreamjax.envs.car_racing import CarRacing, Engine, car_racing_spec
from dreamjax.evolution import EvolutionConfig
from dreamjax.optim import AdamConfig
from dreamjax.reporting import Section, curves, evaluate_and_film, film_dream_and_real, pages, published_at, result_row
from dreamjax.storage import MetricsLog, RunFolder, load, read_metrics, save_agent
from dreamjax.training import IterativeConfig, experiment, iterative, stage_plan, stages
from dreamjax.training.experiment import Evaluating, command, read_command_line, run_folder
from dreamjax.training.stages import Collect, Evolve, TrainMemory, TrainVision
from dreamjax.trust import TrustConfig, trust_section
from dreamjax.types import Agent, AgentParams, Key
from dreamjax.worldmodels import CAR_RACING, ControllerConfig, WorldModelConfig, WorldModelParams, memory, model

NAME, AGENT = "car_racing", "agent-{}.npz"
LOWEST_REWARD = -1.0  # that M learns to predict; the -100 for leaving the field would drown all others
Name = Literal["full", "full-dream", "z", "z-hidden", "untrained-memory"]
DREAMED = replace(CAR_RACING.memory, predict_done=True, predict_reward=True, predict_action=True)
FULL = replace(CAR_RACING, memory=DREAMED)
CONTROLLERS: dict[Name, tuple[WorldModelConfig, str | None]] = {  # and the published score
    "full": (FULL, "906 ± 21"),
    "full-dream": (FULL, None),
    "z": (replace(FULL, features="z"), "632 ± 251"),
    "z-hidden": (replace(FULL, features="z", controller=ControllerConfig(40, clipped=(2,))), "788 ± 141"),
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
    memory: TrainMemory = TrainMemory(4000, 100, 999, AdamConfig(1e-3, clip=1.0), LOWEST_REWARD)
    evolve: Evolve = Evolve()
    shared_tracks: bool = False  # by the whole population; otherwise by individuals i and i + N / 2, as published
    patience: int | None = None  # end an episode after so many steps without a new tile
    engine: Engine = "dreamjax"  # that C learns in; scores are measured in Gymnasium's own
    workers: int = 64
    envs: int = 1024  # in which C learns, at once
    iterative: IterativeConfig = IterativeConfig()  # of full-dream
    iteration_updates: int = 4000  # of M, after each iteration
    episodes: int = 100  # test episodes in which an agent is scored
    film_temperatures: tuple[float, ...] = (0.25, 1.0)


PAPER = Config()
CPU = replace(
    PAPER,
    preset="cpu",
    workers=2,
    envs=128,
    collect=Collect(200, policy="network", workers=2, envs=4),
    vision=TrainVision(6000, batch=32, optimizer=AdamConfig(1e-3, 1e-5, 0.9994)),
    memory=TrainMemory(6000, 16, 100, AdamConfig(1e-3, 1e-4, 0.9996, clip=1.0), LOWEST_REWARD),
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
    memory=TrainMemory(3, 2, 8, lowest_reward=LOWEST_REWARD),
    evolve=Evolve(EvolutionConfig(8), generations=2, episodes=1, evaluate_every=2, evaluation_episodes=2),
    iterative=IterativeConfig(2, generations=2, dream_episodes=1, episodes=2, evaluation_episodes=2),
    iteration_updates=2,
    episodes=2,
)
PRESETS = {config.preset: config for config in (CPU, PAPER, SMOKE)}
EVOLVES = [f"{name}-evolve" for name in CONTROLLERS if name != "full-dream"]
MAY_CHANGE = stages.may_change(EVOLVES, "episodes", "workers", "film_temperatures", "iterative.iterations")


def make_env(cfg: Config) -> partial[CarRacing]:
    return partial(CarRacing, engine="gymnasium", max_steps=cfg.max_steps)


def train(cfg: Config, run: RunFolder, key: Key, name: Name, agent: Agent) -> AgentParams:
    """Learn the world from what random networks see, unless the folder holds it, then evolve C."""
    key_see, key_init, key_remember, key_evolve = jax.random.split(key, 4)
    stage_plan.announce(run, cfg.collect, cfg.vision, cfg.memory, cfg.evolve, FULL, agent, name == "full-dream")
    full_length = partial(CarRacing, full_length=True, max_steps=cfg.max_steps)
    game = partial(CarRacing, engine=cfg.engine, max_steps=cfg.max_steps, patience=cfg.patience)
    with MetricsLog(run.path) as log:
        store = stages.collect(run, cfg.collect, full_length, agent.model.spec, cfg.seed)
        v = stages.train_vision(run, log, key_see, cfg.vision, FULL.vision, store, cfg.seed)
        data = stages.encode(run, store, FULL.vision, v)
        trained = None
        if name != "untrained-memory":
            trained = stages.train_memory(run, log, key_remember, cfg.memory, DREAMED, data, 1000 * cfg.seed)
        m = trained.params if trained else memory.init(DREAMED, key_init)
        params = AgentParams(WorldModelParams(v, m), policy=(), starts=data.first_frames(100))
        if name == "full-dream":  # dream, drive and learn in turns
            key_init, key_learn, key_iterate = jax.random.split(key_evolve, 3)
            begun = params._replace(policy=agent.policy.init(key_init), starts=data.first_frames(len(data.length)))
            learning = run, log, key_learn, replace(cfg.memory, updates=cfg.iteration_updates), FULL, params.model, data
            learn = iterative.learn_memory(*learning, seed=cfg.seed, state=trained, name=f"{name}-memory")
            dreaming = cfg.iterative, cfg.evolve.search, run, log, key_iterate, agent, begun, learn
            open_pool = partial(Pool, game, cfg.envs, cfg.workers)
            return iterative.train_iteratively(*dreaming, open_pool=open_pool, name=name)
        groups = 1 if cfg.shared_tracks else cfg.evolve.search.population_size // 2
        evolve = partial(stages.evolve_in_environment, groups=groups, name=f"{name}-evolve")
        with Pool(game, cfg.envs, cfg.workers) as pool:
            return params._replace(policy=evolve(run, log, key_evolve, cfg.evolve, agent, params, pool))


def report(cfg: Config, run: RunFolder, key: Key, name: Name, films: list[str]) -> None:
    """Put all controllers of the folder in one result, and show what this one dreams."""
    rows, metrics, driven = [], read_metrics(run.path / "metrics.jsonl"), dict[str, Any]()
    learned_from = {"after {:,} generations": (cfg.evolve.generations, 1800)}
    learned_from["from {:,} random episodes"] = (cfg.collect.episodes, 10_000)
    for other, (_, published) in CONTROLLERS.items():
        if (path := run.path / AGENT.format(other)).exists():  # whose episodes are noted, and not driven again
            returns = stages.evaluate(run, key, other, *load(path), make_env(cfg), cfg.episodes)
            rows.append(result_row(other, returns, "return", published_at(published, learned_from)))
        stage = metrics.get(f"{other}-{'iteration' if other == 'full-dream' else 'evolve'}", {})
        if "evaluation_mean" in stage:
            driven[other] = curves.against_sum(stage, "frames", ("evaluation_mean", "evaluation_std"))
    learned = {stage: metrics[stage] for stage in metrics if stage.endswith(("vision", "memory"))}
    curves.learning_curves(learned, run.path / "learning.png")
    curves.series_with_bars({"return on validation tracks": driven}, "frames that C drove", run.path / "evolution.png")
    looks, who = TrustConfig(max(2, min(cfg.episodes, 32))), load(run.path / AGENT.format(name))
    filmed = Section(f"{name}: dreams, and the road", "A dream on the left, the real game on the right.", films)
    trusted = trust_section(run, *who, make_env(cfg), key, looks)
    drawn = Section("Learning and evolution", media=["evolution.png", "learning.png"])
    commands = "; ".join(f"{command(NAME, cfg, PRESETS)} --controller {row['name']}" for row in rows)
    pages.report(run, NAME, commands, rows, "World Models on CarRacing", [filmed, trusted, drawn])


@dataclass(frozen=True)
class CarOptions(Evaluating):
    """And which controller to train or evaluate."""

    controller: Name = "full"


@experiment.exit_on_bad_input()
def main() -> None:
    """Train what the folder does not hold and report, or evaluate a stored agent."""
    cfg, options = read_command_line(NAME, __doc__, PRESETS, CarOptions)
    CarRacing(cfg.engine, max_steps=cfg.max_steps).close()  # report what is missing now, not in hours
    name, world = options.controller, CONTROLLERS[options.controller][0]
    key_make, key_evaluate = jax.random.split(jax.random.key(cfg.seed))
    if options.evaluate:
        make = f"python experiments/{NAME}.py --controller {name} --folder {options.evaluate}"
        agent, params = experiment.stored_agent(options.evaluate / AGENT.format(name), make)
        who = experiment.evaluation_folder(NAME, options), agent, params, make_env(cfg), key_evaluate
        evaluate_and_film(*who, cfg.episodes, "return", steps=cfg.max_steps, name=name)
        return
    run = run_folder(NAME, cfg, options, may_change=MAY_CHANGE)
    path, end = run.path / AGENT.format(name), cfg.iterative.iterations
    iterated = iterative.iterations_done(run, f"{name}-iteration", end) == end
    if not (path.exists() and (iterated if name == "full-dream" else run.stage_done(f"{name}-evolve"))):
        agent = model.make(world, car_racing_spec(cfg.max_steps))
        save_agent(path, world, agent, train(cfg, run, key_make, name, agent), task=NAME)
    agent, params = load(path)
    films = {t: f"{name}-at-{t:.2f}.mp4" for t in cfg.film_temperatures}
    for t, film in films.items():
        film_dream_and_real(run.path / film, agent, params, make_env(cfg), key_evaluate, cfg.max_steps, t)
    report(cfg, run, key_evaluate, name, list(films.values()))


if __name__ == "__main__":
    main()
