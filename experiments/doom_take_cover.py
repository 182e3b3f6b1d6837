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

import json
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from dreamjax import dream, evolution, rollout
from dreamjax.envs.vizdoom import TakeCover
from dreamjax.evolution import EvolutionConfig, EvolutionState
from dreamjax.replay import episodes, latents
from dreamjax.replay.latents import Latents
from dreamjax.run import plots, videos
from dreamjax.run.atomic import replacing
from dreamjax.run.checkpoints import load_weights, save_weights
from dreamjax.run.collect import Actions, collect, every_tic_random_actions, held_random_actions, record
from dreamjax.run.devices import population_mesh
from dreamjax.run.folder import RunFolder, write_result
from dreamjax.run.metrics import MetricsLog, read_metrics
from dreamjax.run.play import play
from dreamjax.run.progress import progress
from dreamjax.run.summary import Section, write_summary
from dreamjax.run.train import train
from dreamjax.types import Key, Metrics, Params, PyTree
from dreamjax.worldmodels import controller, learner, model, vision
from dreamjax.worldmodels.learner import OptimizerConfig

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
    workers: int = 64
    # vision
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


PAPER = Config()
CPU = replace(
    PAPER,
    preset="cpu",
    episodes=2000,
    workers=2,
    vision_batch=32,
    vision_updates=6000,
    vision_optimizer=OptimizerConfig(1e-3, 1e-5, 0.9993),
    streams=32,
    length=64,
    memory_updates=4000,
    memory_optimizer=OptimizerConfig(1e-3, 1e-5, 0.999, clip=1.0),
    dream_episodes=8,
    generations=150,
    evaluate_every=10,
    evaluation_episodes=256,
)
DEMO = replace(
    CPU,
    preset="demo",
    episodes=150,
    vision_updates=600,
    vision_optimizer=OptimizerConfig(1e-3, 1e-5, 0.993),
    memory_updates=600,
    memory_optimizer=OptimizerConfig(1e-3, 1e-5, 0.993, clip=1.0),
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
)
PRESETS = {config.preset: config for config in (SMOKE, DEMO, CPU, PAPER)}


def collect_stage(cfg: Config, run: RunFolder) -> episodes.Store:
    """Let random play fill the disk."""
    folder = run.path / "episodes"
    if run.stage_done("collect"):
        return episodes.open_store(folder)
    make = partial(TakeCover, skill=cfg.skill)
    with run.stage("collect") as stage, progress(cfg.episodes, "collect", unit="episode") as bar:

        def report(kept: int, made: int) -> None:
            bar.update(kept - bar.n)
            if made % 100 == 0:
                stage.tick()

        store = collect(
            folder, make, cfg.episodes, cfg.seed, min_length=cfg.min_frames, workers=cfg.workers, progress=report
        )
        run.finish_stage("collect", {"episodes": len(store), "frames": store.frames})
    return store


def vision_stage(cfg: Config, run: RunFolder, log: MetricsLog, key: Key, store: episodes.Store) -> Params:
    """Train V."""
    key_init, key_train = jax.random.split(key)
    state = train(
        run,
        log,
        "vision",
        learner.vision_init(WORLD.vision, cfg.vision_optimizer, key_init),
        partial(learner.vision_step, WORLD.vision, cfg.vision_optimizer, key_train),
        partial(episodes.frame_batches, store, cfg.seed, cfg.vision_batch),
        cfg.vision_updates,
    )
    return state.params


def encode_stage(cfg: Config, run: RunFolder, store: episodes.Store, params: Params) -> Latents:
    """Turn every frame into V's posterior, some episodes to a file."""
    batch, group = 256, 50
    encode = jax.jit(partial(vision.encode, WORLD.vision))

    def posterior(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        padded = np.concatenate([frames, np.zeros((-len(frames) % batch, *frames.shape[1:]), np.uint8)])
        parts = [encode(params, padded[i : i + batch]) for i in range(0, len(padded), batch)]
        mean, log_variance = (np.concatenate(part)[: len(frames)] for part in zip(*parts, strict=True))
        return mean.astype(np.float16), log_variance.astype(np.float16)

    folder = run.path / "latents"
    paths = [folder / f"{first:06}.npz" for first in range(0, len(store), group)]
    missing = [(i, path) for i, path in enumerate(paths) if not path.exists()]
    if missing:
        with run.stage("encode") as stage:
            for i, path in progress(missing, "encode", initial=len(paths) - len(missing), unit="file"):
                read = [episodes.read(path) for path in store.paths[i * group : (i + 1) * group]]
                mean, log_variance = posterior(np.concatenate([episode.observation for episode in read]))
                action = np.concatenate([episode.action for episode in read])
                length = np.array([len(episode.action) for episode in read])
                with replacing(path) as temporary:
                    np.savez(temporary, allow_pickle=False, **Latents(mean, log_variance, action, length)._asdict())
                stage.tick()
    parts = []
    for path in paths:
        with np.load(path) as arrays:
            parts.append(Latents(**arrays))
    return latents.concatenate(parts)


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
    )
    return state.params


@partial(jax.jit, static_argnames="max_steps")
def dream_returns(
    params: Params, starts: PyTree, population: Params, keys: Key, temperature: float, max_steps: int
) -> rollout.Returns:
    """Let every controller of a population dream: all episodes, all steps, in one call, split over the devices."""
    bounded = MODEL._replace(spec=MODEL.spec._replace(max_steps=max_steps))

    def returns(params: Params, starts: PyTree, population: Params, keys: Key) -> rollout.Returns:
        environment = dream.environment(bounded, params, starts, temperature)
        return rollout.population_returns(environment, rollout.reactive(POLICY), population, keys)

    count = jax.tree.leaves(population)[0].shape[0]
    if count % jax.device_count():
        return returns(params, starts, population, keys)
    P = jax.sharding.PartitionSpec
    split = jax.shard_map(
        returns,
        mesh=population_mesh(),
        in_specs=(P(), P(), P("population"), P()),
        out_specs=P("population"),
        check_vma=False,
    )
    return split(params, starts, population, keys)


Search = tuple[EvolutionState, Params, jax.Array]  # the search, the best mean so far, what it dreamed


def evolve_stage(cfg: Config, run: RunFolder, log: MetricsLog, key: Key, params: Params, starts: PyTree) -> Params:
    """Evolve C in the dream; return the mean that dreamed best."""

    def generation(state: Search, number: int) -> tuple[Search, Metrics]:
        search, best, best_score = state
        key_ask, key_dream, key_evaluate = jax.random.split(jax.random.fold_in(key, number), 3)
        search, population = evolution.ask(cfg.evolution, key_ask, search)
        keys = jax.random.split(key_dream, cfg.dream_episodes)
        returns = dream_returns(params, starts, population, keys, cfg.temperature, cfg.max_steps)
        search, metrics = evolution.tell(cfg.evolution, search, population, returns.total.mean(1))
        if (number + 1) % cfg.evaluate_every == 0 or number + 1 == cfg.generations:
            mean = evolution.mean(cfg.evolution, search)
            keys = jax.random.split(key_evaluate, cfg.evaluation_episodes)
            alone = jax.tree.map(lambda leaf: leaf[None], mean)
            dreamed = dream_returns(params, starts, alone, keys, cfg.temperature, cfg.max_steps).total[0]
            metrics |= {"evaluation_mean": dreamed.mean(), "evaluation_std": dreamed.std()}
            if dreamed.mean() > best_score:
                best, best_score = mean, dreamed.mean()
        return (search, best, best_score), metrics

    zero = POLICY.init(key)
    state = (evolution.init(cfg.evolution, zero), zero, jnp.float32(-jnp.inf))
    numbers = lambda first: iter(range(first, cfg.generations))  # noqa: E731 - a stream of generation numbers
    state = train(run, log, "evolve", state, generation, numbers, cfg.generations, checkpoint_every=5, log_every=1)
    return state[1]


def play_real(cfg: Config, agent: PyTree, path: Path, count: int) -> np.ndarray:
    """Play `count` episodes of the real game that no training saw; note each in `path` as it ends. Returns tics survived."""
    seeds = [1_000_000 * (cfg.seed + 1) + i for i in range(count)]
    tics = {row["seed"]: row["tics"] for row in read_lines(path)}
    missing = [seed for seed in seeds if seed not in tics]
    make = partial(TakeCover, skill=cfg.skill, max_steps=cfg.max_steps)
    params = (agent["model"], agent["controller"])
    with progress(count, "real game", initial=count - len(missing), unit="episode") as bar, path.open("a") as file:
        for played in play(make, MODEL, POLICY, params, jax.random.key(cfg.seed), missing, games=cfg.games):
            file.write(json.dumps({"seed": played.seed, "tics": played.steps}) + "\n")
            file.flush()
            tics[played.seed] = played.steps
            bar.update()
            bar.set_postfix(tics=f"{np.mean([tics[seed] for seed in seeds if seed in tics]):.0f}")
    return np.array([tics[seed] for seed in seeds])


def play_random(cfg: Config, policy: Actions, path: Path, count: int) -> np.ndarray:
    """Play `count` episodes at random, with the seeds of `play_real`. Returns tics survived."""
    tics = {row["seed"]: row["tics"] for row in read_lines(path)}
    env = TakeCover(skill=cfg.skill, max_steps=cfg.max_steps)
    seeds = [1_000_000 * (cfg.seed + 1) + i for i in range(count)]
    with path.open("a") as file:
        for seed in progress([seed for seed in seeds if seed not in tics], policy.__name__, unit="episode"):
            actions = policy(np.random.default_rng([cfg.seed, seed]), cfg.max_steps)
            tics[seed] = len(record(env, actions, seed).action)
            file.write(json.dumps({"seed": seed, "tics": tics[seed]}) + "\n")
            file.flush()
    env.close()
    return np.array([tics[seed] for seed in seeds])


def read_lines(path: Path) -> list[dict[str, int]]:
    """Read JSON lines, but for one that a kill cut off."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def row(name: str, tics: np.ndarray, published: str | None = None) -> dict[str, Any]:
    """Make a row of result.json."""
    std = float(tics.std())
    return {
        "name": name,
        "mean": float(tics.mean()),
        "std": std,
        "n": len(tics),
        "unit": "tics survived",
        "published": published,
    }


def evaluate_stage(cfg: Config, run: RunFolder, agent: PyTree) -> list[dict[str, Any]]:
    """Score the agent in the real game and in its dream, and random play beside it."""
    with run.stage("evaluate"):
        (run.path / "evaluation").mkdir(exist_ok=True)
        files = {name: run.path / "evaluation" / f"{name}.jsonl" for name in ("real", "random_held", "random_every_tic")}
        real = play_real(cfg, agent, files["real"], cfg.real_episodes)
        held = play_random(cfg, held_random_actions, files["random_held"], cfg.real_episodes)
        every_tic = play_random(cfg, every_tic_random_actions, files["random_every_tic"], cfg.real_episodes)
        alone = jax.tree.map(lambda leaf: leaf[None], agent["controller"])
        keys = jax.random.split(jax.random.fold_in(jax.random.key(cfg.seed), 7), max(cfg.real_episodes, 100))
        dreamed = dream_returns(agent["model"], agent["starts"], alone, keys, cfg.temperature, cfg.max_steps)
        return [
            row("real", real, "1092 ± 556"),
            row("dream", np.asarray(dreamed.total[0]), "918 ± 546"),
            row("random_held", held),
            row("random_every_tic", every_tic, "210 ± 108"),
        ]


def film_dream(agent: PyTree, steps: int, temperature: float, key: Key) -> np.ndarray:
    """Frames of one dreamed episode, at most `steps` of them: uint8 [T, 64, 64, 3]."""
    params = agent["model"]
    environment = dream.environment(MODEL, params, agent["starts"], temperature)
    unrolled = jax.jit(partial(rollout.unroll, environment, rollout.reactive(POLICY)), static_argnums=2)
    _, path = unrolled(agent["controller"], key, steps)
    over = np.flatnonzero(path.step.is_last)
    features = path.step.observation[: over[0] + 1 if len(over) else steps]
    decode = jax.jit(partial(vision.decode, WORLD.vision))
    return np.asarray(decode(params.vision, features[:, : WORLD.vision.latent_size]))


def film_real(cfg: Config, agent: PyTree, seed: int) -> np.ndarray:
    """Frames of one real episode: uint8 [T, 64, 64, 3]."""
    make = partial(TakeCover, skill=cfg.skill, max_steps=cfg.max_steps)
    params = (agent["model"], agent["controller"])
    (played,) = play(make, MODEL, POLICY, params, jax.random.key(cfg.seed), [seed], games=1, film=[seed])
    assert played.frames is not None
    return played.frames


def films(cfg: Config, agent: PyTree, folder: Path) -> None:
    """Film a dream beside the real game: the first evaluated episode, not a chosen one."""
    dreamed = film_dream(agent, cfg.film_steps, cfg.temperature, jax.random.key(cfg.seed))
    real = film_real(cfg, agent, 1_000_000 * (cfg.seed + 1))[: cfg.film_steps]
    videos.write_video(
        folder / "dream_and_real.mp4",
        videos.side_by_side([videos.upscale(dreamed, 5), videos.upscale(real, 5)], ["its dream", "the real game"]),
        FPS,
    )
    count = 8
    pick = lambda film: film[np.linspace(0, len(film) - 1, count).astype(int)]  # noqa: E731
    sheet = videos.contact_sheet(videos.upscale(np.concatenate([pick(dreamed), pick(real)]), 2), count)
    videos.write_image(folder / "dream_and_real.png", sheet)


def report_stage(cfg: Config, run: RunFolder, store: episodes.Store, agent: PyTree, rows: list[dict[str, Any]]) -> None:
    """Draw, film and summarise."""
    metrics = read_metrics(run.path / "metrics.jsonl")
    plots.learning_curves({name: metrics[name] for name in ("vision", "memory")}, run.path / "learning.png")
    evolve = metrics["evolve"]
    at, means = evolve["evaluation_mean"]
    plots.fitness_curve(
        run.path / "fitness.png",
        *evolve["fitness_mean"],
        evolve["fitness_min"][1],
        evolve["fitness_max"][1],
        evaluations=(at, means, evolve["evaluation_std"][1]),
        label="tics survived in the dream",
    )
    frames = episodes.read(store.paths[0]).observation
    frames = frames[np.linspace(0, len(frames) - 1, 10).astype(int)]
    mean, _ = vision.encode(WORLD.vision, agent["model"].vision, jnp.asarray(frames))
    plots.reconstruction_sheet(
        frames, np.asarray(vision.decode(WORLD.vision, agent["model"].vision, mean)), run.path / "reconstructions.png"
    )
    films(cfg, agent, run.path)
    command = f"python experiments/doom_take_cover.py --preset {cfg.preset}"
    wall = sum(record["seconds"] for record in run.stage_records())
    write_result(run.path / "result.json", "doom_take_cover", cfg.preset, command, [cfg.seed], wall, rows)
    write_summary(
        run,
        "World Models on Doom: Take Cover",
        rows,
        [
            Section("A dream, and the real game", "The agent never met the real game.", ["dream_and_real.mp4"]),
            Section("Evolution inside the dream", "", ["fitness.png"]),
            Section("V sees", "Above what the game shows, below what V makes of it.", ["reconstructions.png"]),
            Section("V and M learn", "", ["learning.png"]),
        ],
        lead=f"Survived {rows[0]['mean']:.0f} ± {rows[0]['std']:.0f} tics in the real game; random play {rows[2]['mean']:.0f}.",
    )


def train_agent(cfg: Config, folder: Path) -> None:
    """Run all stages."""
    run = RunFolder(folder, cfg)
    key_vision, key_memory, key_evolve = jax.random.split(jax.random.key(cfg.seed), 3)
    with MetricsLog(folder) as log:
        store = collect_stage(cfg, run)
        vision_params = vision_stage(cfg, run, log, key_vision, store)
        data = encode_stage(cfg, run, store, vision_params)
        memory_params = memory_stage(cfg, run, log, key_memory, data)
        params = model.WorldModelParams(vision_params, memory_params)
        starts = data.first_frames(cfg.starts)
        best = evolve_stage(cfg, run, log, key_evolve, params, starts)
    if not (folder / "agent.npz").exists():
        save_weights(folder / "agent.npz", {"model": params, "controller": best, "starts": starts}, np.float16)
    agent = load_agent(folder, cfg)
    rows = evaluate_stage(cfg, run, agent)
    report_stage(cfg, run, store, agent, rows)
    print_rows(rows)
    print(f"Open {folder / 'summary.html'} and {folder / 'dream_and_real.mp4'}.")


def load_agent(folder: Path, cfg: Config) -> PyTree:
    """Read the agent of a run folder or of experiments/results."""
    shape = (min(cfg.starts, cfg.episodes), WORLD.vision.latent_size)
    starts = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for _ in range(2))
    params = jax.eval_shape(MODEL.init, jax.random.key(0))
    policy = jax.eval_shape(POLICY.init, jax.random.key(0))
    return load_weights(folder / "agent.npz", {"model": params, "controller": policy, "starts": starts})


def print_rows(rows: list[dict[str, Any]]) -> None:
    """Show the scores."""
    for line in rows:
        print(f"{line['name']:>18}  {line['mean']:7.1f} ± {line['std']:.1f} {line['unit']}, {line['n']} episodes")


def evaluate_agent(cfg: Config, folder: Path, count: int, out: Path) -> None:
    """Play the real game with a stored agent, and film it."""
    out.mkdir(parents=True, exist_ok=True)
    agent = load_agent(folder, cfg)
    print_rows([row("real", play_real(cfg, agent, out / f"{cfg.seed}.jsonl", count), "1092 ± 556")])
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
    args, rest = tyro.cli(Arguments, args=arguments, return_unknown_args=True)
    cfg = tyro.cli(Config, args=rest, default=PRESETS[args.preset])
    folder = args.folder or Path("runs") / "doom_take_cover" / args.preset
    if args.evaluate:
        evaluate_agent(cfg, args.evaluate, args.episodes, args.folder or Path("runs") / "doom_take_cover" / "evaluation")
    else:
        train_agent(cfg, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
