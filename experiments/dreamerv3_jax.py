"""DreamerV3 in an environment written in JAX: collecting, replay and learning are one jitted program.

Paper: Hafner et al. 2023. Several seeds learn at once, by `vmap`.

    python experiments/dreamerv3_jax.py --task counter --seeds 4
    python experiments/dreamerv3_jax.py --task dodge --size 1m
    python experiments/dreamerv3_jax.py --task gymnax_CartPole-v1

The last one needs an extra: gymnax, craftax or brax. The command started again goes on where it stopped. In
`metrics.jsonl` are, by iteration, the environment steps of each seed so far and, for each seed, how many episodes
ended and their mean return; in `result.json` what the trained agents reach in fresh episodes. What the committed runs
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
from dreamjax.dreamerv3 import loop, model
from dreamjax.dreamerv3.config import DreamerConfig, Size, scaled
from dreamjax.dreamerv3.loop import LoopConfig, LoopState
from dreamjax.dreamerv3.model import Dreamer, DreamerParams
from dreamjax.envs import brax, craftax, gymnax, probes
from dreamjax.envs.swingup import swingup
from dreamjax.reporting.results import result_row, shown_measurement, write_result
from dreamjax.storage.configs import command_line
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog
from dreamjax.training.experiment import Options, read_command_line
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
    per_call: int = 10  # iterations of one call, after which there is news
    checkpoint_every: int = 100  # iterations; a multiple of `per_call`

    def __post_init__(self) -> None:
        if self.checkpoint_every % self.per_call or self.iterations % self.per_call:
            raise ValueError(f"checkpoint_every and iterations must be multiples of per_call, {self.per_call}")


PRESETS = {"published": Config()}


def make(task: str) -> Environment:
    """Make the environment of a task: a probe, or what a suite knows by the name behind its own."""
    suite, _, name = task.partition("_")
    if task in TASKS:
        return TASKS[task]()
    if suite in SUITES:
        return SUITES[suite](name)
    raise SystemExit(f"unknown task {task!r}; there are {', '.join(TASKS)}, and those of {', '.join(SUITES)}")


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
    cfg, options = read_command_line(NAME, __doc__, PRESETS, Options)
    environment = make(cfg.task)
    dreamer = Dreamer.of(scaled(cfg.agent, cfg.size), environment.spec)
    run = RunFolder(options.folder or Path("runs") / f"{cfg.task}-{cfg.size}-{cfg.seed}", cfg, ("iterations",))
    params = train_agents(cfg, run, dreamer, environment)
    returns = evaluate(cfg, dreamer, environment, params, options.episodes)
    names = [f"{cfg.task}, seed {seed}" for seed in range(cfg.seeds)] if cfg.seeds > 1 else [cfg.task]
    rows = [result_row(name, scores, "return") for name, scores in zip(names, returns, strict=True)]
    command = " ".join([f"python experiments/{NAME}.py", *command_line(cfg, Config())])
    wall = run.stage_record("train")["seconds"]
    write_result(run.path / "result.json", NAME, cfg.size, command, [cfg.seed], wall, rows, origin=run.origin)
    for row in rows:
        print(f"{row['name']}: {shown_measurement(row)}, {row['n']} episodes")


if __name__ == "__main__":
    main()
