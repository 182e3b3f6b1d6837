"""Iterative training: C evolves in dreams, then acts; M learns from what was seen, and dreams better.

Source: Ha & Schmidhuber 2018, section 5, with V as it is.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import evolution
from dreamjax.acting import seeds
from dreamjax.acting.collection import to_episode
from dreamjax.acting.playing import Request, play
from dreamjax.acting.pool import Pool
from dreamjax.evolution import EvolutionConfig, EvolutionState
from dreamjax.replay import latents
from dreamjax.replay.latents import Latents
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog
from dreamjax.storage.progress import progress
from dreamjax.storage.weights import load_weights, save_weights
from dreamjax.training.devices import gathered, splitting_mesh
from dreamjax.training.encode import encode_episodes, read_latents, write_latents
from dreamjax.training.loop import generations, refuse_beyond, train
from dreamjax.training.stages import TrainMemory, train_memory
from dreamjax.types import Agent, AgentParams, Key, Metrics, Params
from dreamjax.worldmodels import learner, search
from dreamjax.worldmodels.learner import MemoryLearner, TrainState
from dreamjax.worldmodels.model import WorldModelConfig, WorldModelParams

Learn = Callable[[int, Sequence[Latents]], Params]  # see `train_iteratively`


@dataclass(frozen=True)
class IterativeConfig:
    """How many iterations, and what each of them holds."""

    iterations: int = 10
    generations: int = 100  # in dreams
    dream_episodes: int = 16  # per individual
    temperature: float = 1.0
    episodes: int = 256  # in which individuals of the last generation act
    evaluation_episodes: int = 1024  # in which the mean of the distribution acts, always the same

    def __post_init__(self) -> None:
        counts = self.iterations, self.generations, self.dream_episodes, self.episodes, self.evaluation_episodes
        if min(counts) < 1:
            raise ValueError(f"an iteration needs at least one of each, got {self}")


def train_iteratively(
    cfg: IterativeConfig,
    evolves: EvolutionConfig,
    run: RunFolder,
    log: MetricsLog,
    key: Key,
    agent: Agent,
    params: AgentParams,
    learn: Learn,
    *,
    open_pool: Callable[[], Pool],
    name: str,
) -> AgentParams:
    """Bring an agent through all iterations; return the parameters of the mean that scored best in any of them.

    Every iteration starts a new search around the best controller so far. Then its mean, and individuals of its last
    generation, which fail in many ways, act in the real environment. Keeping the best mean guards against controllers
    that exploit errors of the dream. `learn(n, seen)` trains M further after iteration n, on what the iterations 1 to n
    saw, and returns the parameters of the world model. `open_pool` opens the environments to act in between dreams,
    `name` names the stages and a folder. Killed at any moment, it resumes where it was.

    Devices share the population of a search.

    Shapes: key [], params.policy not stacked, params.starts [S, ...].
    Raises: ValueError if the devices do not divide the population, or the run has done more iterations already.
    """
    iterations_done(run, f"{name}-iteration", cfg.iterations)
    best = params
    state = evolution.init(evolves, params.policy)
    seen: list[Latents] = []
    for number in range(1, cfg.iterations + 1):
        key_dream, key_ask, key_play = jax.random.split(jax.random.fold_in(key, number), 3)
        if seen:
            params = params._replace(model=learn(number - 1, seen))
        begin = params._replace(policy=best.policy)
        searching = cfg, evolves, run, log, key_dream, agent, begin, state
        state = evolve_again(*searching, number=number, name=f"{name}-evolve")
        params = params._replace(policy=state.mean)
        _, population = evolution.ask(evolves, key_ask, state)
        seen.append(_act(cfg, run, log, key_play, agent, params, population, number, open_pool=open_pool, name=name))
        best = load_weights(run.path / name / "best.npz", params)
    return best


def iterations_done(run: RunFolder, name: str, wanted: int) -> int:
    """Count the iterations that a run has done, which are stages `<name>-01` and so on.

    Raises: ValueError if they are more than wanted.
    """
    done = sum(one["done"] and re.fullmatch(rf"{name}-\d+", one["name"]) is not None for one in run.stage_records())
    refuse_beyond(run, done, wanted, "iterations")
    return done


def learn_memory(
    run: RunFolder,
    log: MetricsLog,
    key: Key,
    cfg: TrainMemory,
    world: WorldModelConfig,
    params: WorldModelParams,
    data: Latents,
    *,
    seed: int,
    state: TrainState | None = None,
    name: str = "memory",
) -> Learn:
    """Return the `learn` of `train_iteratively` that trains M further, `cfg.updates` updates after each iteration.

    M learns from `data` and from all that the iterations saw, beginning with `state`, or with `params.memory` and a new
    optimizer if there is none. V stays as it is. `name` is that of the stage.

    Shapes: key [], data of any number of steps and episodes [N, ...].
    """
    if state is None:
        state = learner.init(MemoryLearner(world.memory, cfg.optimizer, cfg.streams), jax.random.fold_in(key, 0))
        state = state._replace(params=params.memory)
    state = jax.tree.map(jnp.array, state)  # a copy, which training gives up

    def learn(iteration: int, seen: Sequence[Latents]) -> WorldModelParams:
        nonlocal state
        known, first = latents.concatenate([data, *seen]), (iteration - 1) * cfg.updates
        order, key_learn = 1000 * seed + iteration, jax.random.fold_in(key, iteration)
        state = train_memory(run, log, key_learn, cfg, world.memory, known, order, state=state, name=name, first=first)
        return params._replace(memory=state.params)

    return learn


def evolve_again(
    cfg: IterativeConfig,
    evolves: EvolutionConfig,
    run: RunFolder,
    log: MetricsLog,
    key: Key,
    agent: Agent,
    params: AgentParams,
    state: EvolutionState,
    *,
    number: int,
    name: str,
) -> EvolutionState:
    """Search anew around `params.policy`, in dreams: the generations of iteration `number`, from 1, of stage `name`.

    `state` is that of the iteration before. Devices share the population.

    Raises: ValueError if the devices do not divide it.
    """
    mesh = splitting_mesh("population", evolves.population_size, "evolution.population_size")

    def generation(state: EvolutionState, count: int) -> tuple[EvolutionState, Metrics]:
        if count % cfg.generations == 0:
            state = evolution.init(evolves, params.policy)
        key_count = jax.random.fold_in(key, count)
        return search.generation(evolves, agent, params, key_count, state, cfg.dream_episodes, cfg.temperature, mesh)

    settings: dict[str, Any] = {"checkpoint_every": 5, "log_every": 1, "show": "fitness_mean", "is_all": False}
    return gathered(mesh, train(run, log, name, state, generations(generation), number * cfg.generations, **settings))


def _act(
    cfg: IterativeConfig,
    run: RunFolder,
    log: MetricsLog,
    key: Key,
    agent: Agent,
    params: AgentParams,
    population: Params,
    number: int,
    *,
    open_pool: Callable[[], Pool],
    name: str,
) -> Latents:
    """Let what an iteration evolved act, unless that is done; keep the mean if it is the best; return what was seen."""
    path, stage = run.path / name / f"{number:02}.npz", f"{name}-iteration-{number:02}"
    if not run.stage_done(stage):
        size = len(jax.tree.leaves(population)[0])
        key_seeds, key_play = jax.random.split(key)
        entropy = int(jax.random.bits(key_seeds, dtype="uint32"))
        requests = [Request(seeds.training(entropy, i), i % size) for i in range(cfg.episodes)]
        requests += [Request(seed, size) for seed in seeds.validation(cfg.evaluation_episodes)]
        everyone = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), population, params.policy)
        posterior = partial(jax.jit(agent.model.encode), params.model)
        seen, totals = {}, np.zeros(len(requests))
        with run.stage(stage), open_pool() as pool, progress(len(requests), stage, unit="episode") as bar:
            acting = params._replace(policy=everyone)
            for played in play(pool, agent, acting, key_play, requests, record=True, rounded=True):
                seen[played.request] = encode_episodes([to_episode(played)], posterior)
                totals[played.request] = played.total
                bar.update()
            write_latents(path, latents.concatenate([seen[i] for i in range(len(requests))]))
            individuals, means = np.split(totals, [cfg.episodes])
            stages = [f"{name}-iteration-{i:02}" for i in range(1, number)]
            before = [run.stage_record(one)["summary"]["evaluation_mean"] for one in stages]
            if means.mean() > max(before, default=-np.inf):
                save_weights(run.path / name / "best.npz", params, np.float16)
            scores = {
                "individuals": individuals.mean(),
                "evaluation_mean": means.mean(),
                "evaluation_std": means.std(),
            }
            log.write(f"{name}-iteration", number, scores | {"frames": sum(len(one.mean) for one in seen.values())})
            run.finish_stage(stage, scores)
    return read_latents(path)
