"""DreamerV3 in an environment written in JAX: collecting, replay and learning are one jitted program.

Paper: Hafner et al. 2023. Several seeds learn at once, by `vmap`.

    python experiments/dreamerv3_jax.py --task counter --seeds 4
    python experiments/dreamerv3_jax.py --task dodge --size 1m
    python experiments/dreamerv3_jax.py --task gymnax_CartPole-v1

The last one needs an extra: gymnax, craftax or brax. The command started again resumes where it stopped; with more
`--iterations` it trains longer. `metrics.jsonl` holds, after every call of `per_call` iterations, the environment steps
of each seed so far and, for each seed, how many episodes ended and their mean return; `result.json` what the trained
agents reach in new episodes; `agent.npz` the agent of the first seed, for `dreamjax.load`. What the committed runs
reached: results/dreamerv3_jax_*/result.json.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import rollout
from dreamjax.dreamerv3 import Dreamer, DreamerConfig, DreamerParams, LoopConfig, agent_params, loop, model, scaled
from dreamjax.dreamerv3.config import Size
from dreamjax.dreamerv3.loop import LoopState
from dreamjax.envs import brax, check_environment, craftax, gymnax, probes
from dreamjax.envs.swingup import swingup
from dreamjax.reporting import Section, curves, pages, result_row
from dreamjax.storage import MetricsLog, RunFolder, read_metrics, save_agent
from dreamjax.training.experiment import Options, command, read_command_line
from dreamjax.training.loop import train
from dreamjax.types import Array, Environment, Key, Metrics

NAME = "dreamerv3_jax"
TASKS: dict[str, Callable[[], Environment]] = {
    "counter": probes.counter,
    "remember": probes.remember,
    "catch": probes.catch,
    "dodge": partial(probes.dodge, observation="pixels"),
    "dodge_state": partial(probes.dodge, observation="state"),
    "swingup": swingup,
    "swingup_state": partial(swingup, observation="state"),
}
SUITES: dict[str, Callable[[str], Environment]] = {"gymnax": gymnax.make, "craftax": craftax.make, "brax": brax.make}


@dataclass(frozen=True)
class Config:
    """What is trained."""

    task: str = "counter"
    size: Size = "1m"
    seed: int = 0
    seeds: int = 1  # that learn at once
    iterations: int = 1000  # of collecting and learning
    loop: LoopConfig = LoopConfig()
    agent: DreamerConfig = DreamerConfig()  # everything but the sizes, which `size` sets, unless it is "custom"
    per_call: int = 10  # iterations of one call, after which there are metrics
    checkpoint_every: int = 100  # iterations; a multiple of `per_call`

    def __post_init__(self) -> None:
        if self.checkpoint_every % self.per_call or self.iterations % self.per_call:
            raise ValueError(f"checkpoint_every and iterations must be multiples of per_call, {self.per_call}")

    @property
    def preset(self) -> str:
        """What results are filed under."""
        return self.size


TINY = LoopConfig(envs=2, batch_size=2, batch_length=4, train_ratio=4.0, capacity=100)
SMOKE = Config("remember", "debug", seeds=2, iterations=6, loop=TINY, per_call=2, checkpoint_every=2)
PRESETS = {"cpu": Config(), "smoke": SMOKE}


def make(task: str) -> Environment:
    """Make the environment of a task: a probe, or what a suite knows by the name behind its own."""
    suite, _, name = task.partition("_")
    if task in TASKS:
        return TASKS[task]()
    if suite in SUITES:
        return SUITES[suite](name)
    raise SystemExit(f"unknown task {task!r}; there are {', '.join(TASKS)}, and those of {', '.join(SUITES)}")


def save(run: RunFolder, cfg: DreamerConfig, environment: Environment, params: DreamerParams) -> None:
    """Store a trained agent, with the observations that some episodes open with, where its dreams begin."""
    agent, learned = model.make(cfg, environment.spec), agent_params(params)
    _, step = jax.vmap(environment.reset)(jax.random.split(jax.random.key(run.config.seed), 64))
    starts = jax.jit(jax.vmap(agent.model.encode, (None, 0)))(learned.model, step.observation)
    save_agent(run.path / "agent.npz", cfg, agent, learned._replace(starts=starts))


def train_agents(cfg: Config, run: RunFolder, dreamer: Dreamer, environment: Environment) -> DreamerParams:
    """Train all seeds to the end, or from where the folder stands. Shapes: -> parameters [seeds, ...]."""
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(cfg.seed)))(jnp.arange(cfg.seeds))
    begin = jax.jit(jax.vmap(partial(loop.init, dreamer, environment, cfg.loop)))

    @partial(jax.jit, donate_argnums=0)
    @jax.vmap
    def advance(state: LoopState, keys: Key) -> tuple[LoopState, loop.Progress]:
        """Do some iterations. Shapes: keys [per_call] -> progress [per_call]."""
        step = lambda state, key: loop.iterate(dreamer, environment, cfg.loop, key, state)  # noqa: E731
        return jax.lax.scan(step, state, keys)

    def calls(state: LoopState, done: int) -> Iterator[tuple[LoopState, Metrics]]:
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        while True:
            numbers = 1 + done * cfg.per_call + jnp.arange(cfg.per_call)
            state, progress = advance(state, fold(keys, numbers))
            done += 1
            finished, returns = (np.asarray(x).sum(1) for x in (progress.finished, progress.returns))  # [seeds]
            metrics = {name: np.mean(x[:, -1]) for name, x in progress.metrics.items()}
            metrics |= {"steps": int(state.replay.written[0]) * cfg.loop.envs}
            metrics |= {f"episodes/{seed}": count for seed, count in enumerate(finished)}
            metrics |= {f"return/{seed}": returns[seed] / finished[seed] for seed in np.flatnonzero(finished)}
            if finished.sum():
                metrics["return"] = returns.sum() / finished.sum()
            yield state, metrics

    with MetricsLog(run.path) as log:
        state = train(
            run,
            log,
            "train",
            begin(keys),
            calls,
            cfg.iterations // cfg.per_call,
            checkpoint_every=cfg.checkpoint_every // cfg.per_call,
            log_every=1,
            show="return",
        )
    return state.learner.params


def evaluate(
    cfg: Config, dreamer: Dreamer, environment: Environment, params: DreamerParams, episodes: int
) -> np.ndarray:
    """Evaluate trained agents, whose actions are drawn as in training. Shapes: params [seeds, ...] -> [seeds, E]."""

    def play(params: DreamerParams, key: Key) -> Array:
        policy = rollout.step_policy(model.agent(dreamer), params.model)
        one = jax.tree.map(lambda leaf: leaf[None], params.policy)
        return rollout.population_returns(environment, policy, one, jax.random.split(key, episodes)).total[0]

    keys = jax.random.split(jax.random.fold_in(jax.random.key(cfg.seed), cfg.seeds), cfg.seeds)  # training has others
    return np.asarray(jax.jit(jax.vmap(play))(params, keys))


def main() -> None:
    """Train, evaluate and report."""
    cfg, options = read_command_line(NAME, __doc__, PRESETS, Options, without=("evaluate", "aggregate", "into"))
    environment, agent = make(cfg.task), scaled(cfg.agent, cfg.size)
    check_environment(environment)
    dreamer = Dreamer.of(agent, environment.spec)
    run = RunFolder(options.folder or Path("runs") / f"{cfg.task}-{cfg.size}-{cfg.seed}", cfg, ("iterations",))
    params = train_agents(cfg, run, dreamer, environment)
    save(run, agent, environment, jax.tree.map(lambda leaf: leaf[0], params))
    returns = evaluate(cfg, dreamer, environment, params, options.episodes)
    names = [f"{cfg.task}, seed {seed}" for seed in range(cfg.seeds)] if cfg.seeds > 1 else [cfg.task]
    rows = [result_row(name, scores, "return") for name, scores in zip(names, returns, strict=True)]
    curves.learning_curves(read_metrics(run.path / "metrics.jsonl"), run.path / "learning.png")
    section = Section("Learning", "Over calls of `per_call` iterations; returns in training.", ["learning.png"])
    pages.report(run, NAME, command(NAME, cfg, PRESETS), rows, f"DreamerV3: {cfg.task}", [section])


if __name__ == "__main__":
    main()
