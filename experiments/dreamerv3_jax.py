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

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import tyro

from dreamjax import rollout
from dreamjax.dreamerv3 import loop, model
from dreamjax.dreamerv3.config import DreamerConfig, Size, scaled
from dreamjax.dreamerv3.loop import LoopConfig, LoopState
from dreamjax.dreamerv3.model import Dreamer, DreamerParams
from dreamjax.envs import brax, craftax, gymnax, probes
from dreamjax.envs.swingup import swingup
from dreamjax.reporting.results import result_row, shown_measurement, write_result
from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.storage.configs import command_line
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog
from dreamjax.storage.progress import progress
from dreamjax.training.devices import keep_freed_memory
from dreamjax.types import Array, Environment, Key

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
    folder: Path | None = None  # of the run; otherwise named after task, size and seed
    size: Size = "1m"
    seed: int = 0
    seeds: int = 1  # that learn at once
    iterations: int = 1000  # rounds of collecting and learning
    loop: LoopConfig = LoopConfig()
    agent: DreamerConfig = DreamerConfig()  # everything but the sizes, which `size` sets, unless it is "custom"
    at_once: int = 10  # iterations of one call, after which there is news
    checkpoint_every: int = 100  # iterations; a multiple of `at_once`
    episodes: int = 100  # fresh ones, to evaluate every seed in


def make(task: str) -> Environment:
    """Make the environment of a task: a probe, or what a suite knows by the name behind its own."""
    suite, _, name = task.partition("_")
    if task in TASKS:
        return TASKS[task]()
    if suite in SUITES:
        return SUITES[suite](name)
    raise SystemExit(f"unknown task {task!r}; there are {', '.join(TASKS)}, and those of {', '.join(SUITES)}")


def train(cfg: Config, folder: Path) -> None:
    """Train to the end, or from where the folder stands."""
    if cfg.checkpoint_every % cfg.at_once or cfg.iterations % cfg.at_once:
        raise SystemExit(f"checkpoint_every and iterations must be multiples of at_once, {cfg.at_once}")
    environment = make(cfg.task)
    dreamer = Dreamer.of(scaled(cfg.agent, cfg.size), environment.spec)
    run = RunFolder(folder, replace(cfg, folder=None))  # a run may be moved

    def iterations(state: LoopState, keys: jax.Array) -> tuple[LoopState, loop.Progress]:
        def body(state: LoopState, key: jax.Array) -> tuple[LoopState, loop.Progress]:
            return loop.iterate(dreamer, environment, cfg.loop, key, state)

        return jax.lax.scan(body, state, keys)

    def keys_of(seed: jax.Array, first: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(cfg.seed), seed)
        return jax.vmap(partial(jax.random.fold_in, key))(first + np.arange(cfg.at_once))

    seeds = np.arange(cfg.seeds)
    begin = jax.vmap(
        lambda seed: loop.init(dreamer, environment, cfg.loop, jax.random.fold_in(jax.random.key(cfg.seed), seed))
    )
    advance = jax.jit(
        lambda state, first: jax.vmap(iterations)(state, jax.vmap(keys_of, (0, None))(seeds, first)), donate_argnums=0
    )
    checkpoints = Checkpoints(folder / "checkpoints")
    found = checkpoints.restore(jax.eval_shape(begin, seeds))
    done, state = found or (0, jax.jit(begin)(seeds))
    with MetricsLog(folder) as log, run.stage("train") as stage, progress(cfg.iterations, "train", initial=done) as bar:
        while done < cfg.iterations:
            state, out = advance(state, np.int32(done + 1))
            done += cfg.at_once
            finished, returns = (np.asarray(x).sum(1) for x in (out.finished, out.returns))  # [seeds]
            shown = {"steps": int(state.replay.written[0]) * cfg.loop.envs}
            shown |= {f"episodes/{seed}": count for seed, count in enumerate(finished)}
            shown |= {f"return/{seed}": returns[seed] / finished[seed] for seed in np.flatnonzero(finished)}
            log.write("learn", done, {name: np.mean(x[:, -1]) for name, x in out.metrics.items()} | shown)
            bar.update(cfg.at_once)
            if finished.sum():
                bar.set_postfix({"return": f"{returns.sum() / finished.sum():.4g}"})
            if done % cfg.checkpoint_every == 0 or done == cfg.iterations:
                checkpoints.save(done, state)
                stage.tick()
    report(run, dreamer, environment, state.learner.params)


def report(run: RunFolder, dreamer: Dreamer, environment: Environment, params: DreamerParams) -> None:
    """Evaluate the trained agents, whose actions are drawn as in training. Shapes: params [seeds, ...]."""
    cfg: Config = run.config

    def play(params: DreamerParams, key: Key) -> Array:
        actor = rollout.step_policy(model.agent(dreamer), params.model)
        keys = jax.random.split(key, cfg.episodes)
        return rollout.population_returns(
            environment, actor, jax.tree.map(lambda x: x[None], params.policy), keys
        ).total[0]

    keys = jax.random.split(jax.random.fold_in(jax.random.key(cfg.seed), cfg.seeds), cfg.seeds)  # training has others
    returns = np.asarray(jax.jit(jax.vmap(play))(params, keys))
    names = [f"{cfg.task}, seed {seed}" for seed in range(cfg.seeds)] if cfg.seeds > 1 else [cfg.task]
    rows = [result_row(name, scores, "return") for name, scores in zip(names, returns, strict=True)]
    command = " ".join(["python experiments/dreamerv3_jax.py", *command_line(replace(cfg, folder=None), Config())])
    wall = run.stage_record("train")["seconds"]
    write_result(run.path / "result.json", "dreamerv3_jax", cfg.size, command, [cfg.seed], wall, rows)
    for row in rows:
        print(f"{row['name']}: {shown_measurement(row)}, {row['n']} episodes")


def main() -> None:
    """Read the command line."""
    keep_freed_memory()
    cfg = tyro.cli(Config, description=__doc__)
    train(cfg, cfg.folder or Path("runs") / f"{cfg.task}-{cfg.size}-{cfg.seed}")


if __name__ == "__main__":
    main()
