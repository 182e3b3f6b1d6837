"""The stages of *World Models*: collect, train V, encode, train M, evolve, evaluate. Each is resumable, and done once.

Source: Ha & Schmidhuber 2018, appendix A; every default is the published one of Doom.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium
import jax
import numpy as np

from dreamjax import evolution
from dreamjax.acting import evaluation, random_play, seeds
from dreamjax.acting.collection import CollectConfig, collect as fill
from dreamjax.acting.playing import Request, evaluate_population, play
from dreamjax.acting.pool import Pool
from dreamjax.evolution import EvolutionConfig, EvolutionState
from dreamjax.optim import AdamConfig
from dreamjax.replay import latents
from dreamjax.replay.latents import Latents
from dreamjax.rollout import population_of_one
from dreamjax.storage import episodes
from dreamjax.storage.episodes import Store
from dreamjax.storage.folder import Change, RunFolder
from dreamjax.storage.identity import fingerprint
from dreamjax.storage.metrics import MetricsLog
from dreamjax.storage.progress import progress
from dreamjax.training import encode as encoding
from dreamjax.training.devices import gathered, splitting_mesh
from dreamjax.training.learning import learn_on_devices
from dreamjax.training.loop import generations, train
from dreamjax.types import Agent, AgentParams, EnvSpec, Key, Metrics, Params
from dreamjax.worldmodels import learner, search, vision as vision_module
from dreamjax.worldmodels.learner import MEMORY_OPTIMIZER, VISION_OPTIMIZER, MemoryLearner, TrainState, VisionLearner
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.vision import VisionConfig


@dataclass(frozen=True)
class Collect:
    """A random policy acts, and is recorded."""

    episodes: int = 10_000  # that are kept
    min_steps: int = 1  # of an episode that is kept
    policy: str = "held"  # see `acting.random_play`
    workers: int = 64
    envs: int = 128  # at once


@dataclass(frozen=True)
class TrainVision:
    """V learns to see."""

    updates: int = 308_090  # 10 epochs of the published data
    batch: int = 100  # frames
    episodes: int | None = None  # the first of those collected; all if not given
    optimizer: AdamConfig = field(default_factory=lambda: VISION_OPTIMIZER)


@dataclass(frozen=True)
class TrainMemory:
    """M learns what comes next."""

    updates: int = 24_400
    streams: int = 100  # parallel ones of a batch
    length: int = 499  # inputs per chunk
    optimizer: AdamConfig = field(default_factory=lambda: MEMORY_OPTIMIZER)
    lowest_reward: float | None = None  # that M learns to predict; lower ones are clipped to it


@dataclass(frozen=True)
class Evolve:
    """C is evolved by CMA-ES."""

    search: EvolutionConfig = EvolutionConfig(population_size=64, sigma=0.1)
    generations: int = 1800
    episodes: int = 16  # per individual
    temperature: float = 1.15  # of dreams
    evaluate_every: int = 25  # generations
    evaluation_episodes: int = 1024  # of the mean of the distribution


def may_change(evolve: Sequence[str], *others: str) -> dict[str, Change]:
    """Say what a run of these stages may go on with, for `RunFolder`: `others`, and how long the stages train.

    How long may change until a later stage has made use of what was learned. C evolves in stages named `evolve`.
    """
    after, evolve = ("vision", "encode", "memory", *evolve), tuple(evolve)
    return {
        "collect.episodes": Change(("collect",), after),
        "vision.updates": Change(("vision",), after[1:]),
        "memory.updates": Change(("memory",), evolve),
        **dict.fromkeys(("evolve.generations", "evolve.evaluate_every", "evolve.evaluation_episodes"), Change(evolve)),
        **dict.fromkeys(("collect.workers", "collect.envs", *others), Change()),
    }


def collect(run: RunFolder, cfg: Collect, make_env: Callable[[], gymnasium.Env], spec: EnvSpec, seed: int) -> Store:
    """Record a random policy in `episodes/` of the run folder, unless that is done; open the episodes."""
    folder = run.path / "episodes"
    if run.stage_done("collect"):
        return episodes.open_store(folder).head(cfg.episodes)  # a killed collection may have left more
    agent = random_play.random_agent(spec, cfg.policy)
    kept = CollectConfig(cfg.episodes, seed, cfg.min_steps, cfg.policy)
    with run.stage("collect") as stage, progress(cfg.episodes, "collect", unit="episode") as bar:

        def report(count: int, made: int) -> None:
            bar.update(count - bar.n)
            if made % 100 == 0:
                stage.tick()

        with Pool(make_env, min(cfg.envs, cfg.episodes), cfg.workers) as pool:
            store = fill(kept, folder, pool, agent, random_play.PARAMS, progress=report)
        run.finish_stage("collect", {"episodes": len(store), "frames": store.frames})
    return store


def train_vision(
    run: RunFolder,
    log: MetricsLog,
    key: Key,
    cfg: TrainVision,
    vision: VisionConfig,
    store: Store,
    seed: int,
    checkpoint_every: int = 500,
) -> Params:
    """Train V on the frames of a store; return its parameters. As many devices share a batch as divide it."""
    seen = store.head(min(cfg.episodes or len(store), len(store)))
    key_init, key_train = jax.random.split(key)
    learns = VisionLearner(vision, cfg.optimizer)
    batches = partial(episodes.frame_batches, seen, seed, cfg.batch)
    how: Any = {"shared": (cfg.batch, "vision.batch"), "checkpoint_every": checkpoint_every}
    begin = _begin(learns, key_init)
    return learn_on_devices(run, log, "vision", key_train, learns, begin, batches, cfg.updates, **how).params


def encode(run: RunFolder, store: Store, vision: VisionConfig, params: Params) -> Latents:
    """Encode every frame of a store with V, but for those that an earlier call has encoded with the same V."""
    return encoding.encode(run, store, partial(_posterior, vision, params), fingerprint(vision, params))


def train_memory(
    run: RunFolder,
    log: MetricsLog,
    key: Key,
    cfg: TrainMemory,
    memory: MemoryConfig,
    data: Latents,
    seed: int,
    *,
    state: TrainState | None = None,
    name: str = "memory",
    first: int = 0,
    checkpoint_every: int = 500,
) -> TrainState:
    """Train M for `cfg.updates` updates of stage `name`, from number `first` on, beginning with `state` if given.

    As many devices share the streams as divide them. What begins with a `state` may be one part of several; otherwise
    a stage that has more updates already is refused, with a ValueError.
    """
    key_init, key_train = jax.random.split(key)
    learns = MemoryLearner(memory, cfg.optimizer, cfg.streams)
    if is_all := state is None:
        state = _begin(learns, key_init)
    if cfg.lowest_reward is not None:
        data = data._replace(reward=data.reward.clip(cfg.lowest_reward))

    def chunks(step: int) -> Iterator[Any]:
        return latents.chunks(data, seed, cfg.streams, cfg.length, step - first)

    how: Any = {"shared": (cfg.streams, "memory.streams"), "checkpoint_every": checkpoint_every, "is_all": is_all}
    return learn_on_devices(run, log, name, key_train, learns, state, chunks, first + cfg.updates, **how)


def evolve_in_dreams(
    run: RunFolder,
    log: MetricsLog,
    key: Key,
    cfg: Evolve,
    agent: Agent,
    params: AgentParams,
    name: str = "evolve",
    checkpoint_every: int = 5,
) -> Params:
    """Evolve C in the dreams of `params.model` that begin at `params.starts`; return the mean of the last distribution.

    Not the mean that scored best in dreams: those of different generations differ by less than the noise of their
    scores, and a later one has averaged over more of it.

    Raises: ValueError if the devices do not divide the population.
    """
    mesh = splitting_mesh("population", cfg.search.population_size, "population_size")

    def generation(state: EvolutionState, number: int) -> tuple[EvolutionState, Metrics]:
        key_generation, key_evaluate = jax.random.split(jax.random.fold_in(key, number))
        state, metrics = search.generation(
            cfg.search, agent, params, key_generation, state, cfg.episodes, cfg.temperature, mesh
        )
        if (number + 1) % cfg.evaluate_every == 0 or number + 1 == cfg.generations:
            mean = params._replace(policy=state.mean)
            total = search.score(agent, mean, key_evaluate, cfg.evaluation_episodes, cfg.temperature)
            metrics |= {"evaluation_mean": total.mean(), "evaluation_std": total.std()}
        return state, metrics

    return gathered(mesh, _evolve(run, log, name, cfg, agent.policy.init(key), generation, checkpoint_every))


def evolve_in_environment(
    run: RunFolder,
    log: MetricsLog,
    key: Key,
    cfg: Evolve,
    agent: Agent,
    params: AgentParams,
    pool: Pool,
    *,
    groups: int = 1,
    name: str = "evolve",
) -> Params:
    """Evolve C in the real environment; return the mean of the last distribution.

    The episodes of a generation are drawn anew, and shared within each of so many groups of the population. The mean
    is evaluated in validation episodes. The metric `frames` counts the steps of a generation.
    """
    entropy = int(jax.random.bits(key, dtype="uint32"))

    def generation(state: EvolutionState, number: int) -> tuple[EvolutionState, Metrics]:
        key_ask, key_play, key_evaluate = jax.random.split(jax.random.fold_in(key, number), 3)
        state, population = evolution.ask(cfg.search, key_ask, state)
        drawn = seeds.generation((entropy, number), cfg.search.population_size, cfg.episodes, groups)
        played = evaluate_population(pool, agent, params._replace(policy=population), key_play, drawn)
        state, metrics = evolution.tell(cfg.search, state, population, played.total.mean(1))
        metrics["frames"] = played.steps.sum()
        if (number + 1) % cfg.evaluate_every == 0 or number + 1 == cfg.generations:
            alone = params._replace(policy=population_of_one(state.mean))
            requests = map(Request, seeds.validation(cfg.evaluation_episodes))
            total = np.array([one.total for one in play(pool, agent, alone, key_evaluate, requests)])
            metrics |= {"evaluation_mean": total.mean(), "evaluation_std": total.std()}
        return state, metrics

    return _evolve(run, log, name, cfg, agent.policy.init(key), generation, 1)


def evaluate(
    run: RunFolder,
    key: Key,
    name: str,
    agent: Agent,
    params: AgentParams,
    make_env: Callable[[], gymnasium.Env],
    episodes: int,
) -> np.ndarray:
    """Score an agent in test episodes; return the sums of their rewards. Shapes: -> [episodes].

    Each episode is noted in `evaluation/<name>.jsonl` of the run folder when it ends, and played again if agent,
    environment or code have changed. The record of the stage `evaluate-<name>` holds their mean, their standard
    deviation and their number.
    """
    notes = run.path / "evaluation" / f"{name}.jsonl"
    with run.stage(f"evaluate-{name}"):
        returns = evaluation.evaluate(agent, params, make_env, seeds.test(episodes), key, notes=notes, label=name)
        scored = {"mean": float(returns.mean()), "std": float(returns.std()), "n": episodes}
        run.finish_stage(f"evaluate-{name}", scored)
    return returns


def once(run: RunFolder, name: str, of: str, measure: Callable[[], dict[Any, Any]]) -> dict[str, Any]:
    """Return what was measured in a stage, which is done unless it was done before, of the same fingerprint.

    Without a fingerprint, "", it is done again.
    """
    record = run.stage_record(name)
    if not of or not record["done"] or record.get("of") != of:
        with run.stage(name):
            run.write_json(f"stages/{name}.json", run.stage_record(name) | {"of": of})  # not done yet
            run.finish_stage(name, measure())
    return run.stage_record(name)["summary"]


_posterior = jax.jit(vision_module.encode, static_argnums=0)
# It runs once, in milliseconds, and compiles in an eighth of the time when that is not optimised.
_begin = jax.jit(learner.init, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})


def _evolve(
    run: RunFolder,
    log: MetricsLog,
    name: str,
    cfg: Evolve,
    mean: Params,
    generation: Callable[[EvolutionState, int], tuple[EvolutionState, Metrics]],
    checkpoint_every: int,
) -> Params:
    begin = evolution.init(cfg.search, mean)
    settings: dict[str, Any] = {"checkpoint_every": checkpoint_every, "log_every": 1, "show": "fitness_mean"}
    return train(run, log, name, begin, generations(generation), cfg.generations, **settings).mean
