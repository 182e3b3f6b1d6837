"""DreamerV3 in an environment written in JAX: collecting, replay and learning are one jitted program.

Paper: Hafner et al. 2023. Several seeds learn at once, by `vmap`.

    python experiments/dreamerv3_jax.py --task counter --seeds 4
    python experiments/dreamerv3_jax.py --task dodge --size 1m
    python experiments/dreamerv3_jax.py --task gymnax_CartPole-v1

The last one needs an extra: gymnax, craftax or brax. The command started again resumes where it stopped; with more
`--iterations` it trains longer. `metrics.jsonl` holds, after every call of `per_call` iterations, the environment steps
of each seed so far and, for each seed, how many episodes ended and their mean return; `result.json` what the trained
agents reach in test episodes, each and on average; `agent.npz` the agent of the first seed, for `dreamjax.load`. What
the committed runs reached, and how long they took: results/dreamerv3_jax_*/result.json.
"""

from collections.abc import Iterator
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
from dreamjax.envs import check_environment, named
from dreamjax.reporting import Section, curves, pages, result_row
from dreamjax.storage import Change, MetricsLog, RunFolder, read_metrics, save_agent
from dreamjax.training.experiment import Options, command, open_folder, read_command_line
from dreamjax.training.loop import train
from dreamjax.types import Array, Environment, Key, Metrics

NAME = "dreamerv3_jax"
MAY_CHANGE = dict.fromkeys(("iterations", "episodes", "checkpoint_every"), Change())  # in a folder, of one run


@dataclass(frozen=True)
class Config:
    """What is trained."""

    task: str = "counter"
    size: Size = "1m"
    seed: int = 0  # the first
    seeds: int = 1  # so many from there on learn at once
    iterations: int = 1000  # of collecting and learning
    loop: LoopConfig = LoopConfig()
    agent: DreamerConfig = DreamerConfig()  # everything but the sizes, which `size` sets, unless it is "custom"
    per_call: int = 10  # iterations of one call, after which there are metrics
    checkpoint_every: int = 100  # iterations; a multiple of `per_call`
    episodes: int = 100  # test episodes in which each trained agent is scored

    def __post_init__(self) -> None:
        if self.checkpoint_every % self.per_call or self.iterations % self.per_call:
            raise ValueError(f"checkpoint_every and iterations must be multiples of per_call, {self.per_call}")

    @property
    def preset(self) -> str:
        """What results are filed under."""
        return self.size

    @property
    def all_seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)


TINY = LoopConfig(envs=2, batch_size=2, batch_length=4, train_ratio=4.0, capacity=100)
SMOKE = Config("remember", "debug", seeds=2, iterations=6, loop=TINY, per_call=2, checkpoint_every=2)
PRESETS = {"cpu": Config(), "smoke": SMOKE}


def save(run: RunFolder, cfg: DreamerConfig, environment: Environment, params: DreamerParams) -> None:
    """Store a trained agent, with the observations that some episodes open with, where its dreams begin."""
    agent, learned = model.make(cfg, environment.spec), agent_params(params)
    _, step = jax.vmap(environment.reset)(jax.random.split(jax.random.key(run.config.seed), 64))
    starts = jax.jit(jax.vmap(agent.model.encode, (None, 0)))(learned.model, step.observation)
    save_agent(run.path / "agent.npz", cfg, agent, learned._replace(starts=starts), task=run.config.task)


def train_agents(cfg: Config, run: RunFolder, dreamer: Dreamer, environment: Environment) -> DreamerParams:
    """Train all seeds to the end, or from where the folder stands. Shapes: -> parameters [seeds, ...]."""
    keys = jax.vmap(jax.random.key)(jnp.array(cfg.all_seeds))
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
            metrics |= {f"episodes/{cfg.seed + i}": count for i, count in enumerate(finished)}
            metrics |= {f"return/{cfg.seed + i}": returns[i] / finished[i] for i in np.flatnonzero(finished)}
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


def evaluate(cfg: Config, dreamer: Dreamer, environment: Environment, params: DreamerParams) -> np.ndarray:
    """Evaluate trained agents, whose actions are drawn as in training. Shapes: params [seeds, ...] -> [seeds, E]."""

    def play(params: DreamerParams, key: Key) -> Array:
        policy = rollout.step_policy(model.agent(dreamer), params.model)
        one = jax.tree.map(lambda leaf: leaf[None], params.policy)
        return rollout.population_returns(environment, policy, one, jax.random.split(key, cfg.episodes)).total[0]

    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 0))(jnp.array(cfg.all_seeds))
    return np.asarray(jax.jit(jax.vmap(play))(params, keys))  # training folds in numbers from 1 on


def report(cfg: Config, run: RunFolder, returns: np.ndarray) -> None:
    """Put the scores of all seeds and their mean in one result, and draw how each learned. Shapes: [seeds, E]."""
    names = [f"{cfg.task}, seed {seed}" for seed in cfg.all_seeds] if cfg.seeds > 1 else [cfg.task]
    rows = [result_row(name, scores, "return") for name, scores in zip(names, returns, strict=True)]
    if cfg.seeds > 1:
        rows.append(result_row(f"{cfg.task}, mean of {cfg.seeds} seeds", returns.mean(1), "return, over runs"))
    told = read_metrics(run.path / "metrics.jsonl")["train"]
    steps = dict(zip(*told["steps"], strict=True))
    learned = {
        f"seed {seed}": (np.array([steps[call] for call in told[name][0]]), told[name][1])
        for seed in cfg.all_seeds
        if (name := f"return/{seed}") in told
    }
    losses = {name: series for name, series in told.items() if "/" not in name and name not in ("steps", "return")}
    curves.learning_curves({"train": losses}, run.path / "losses.png")
    sections = [Section("Losses", "Over calls of `per_call` iterations, averaged over seeds.", ["losses.png"])]
    if learned:
        curves.return_curves({cfg.task: learned}, run.path / "returns.png")
        text = "Mean return of the episodes between two calls, over the environment's steps, of each seed."
        sections.insert(0, Section("Learning", text, ["returns.png"]))
    title = f"DreamerV3: {cfg.task}"
    pages.report(run, NAME, command(NAME, cfg, PRESETS), rows, title, sections, seeds=cfg.all_seeds)


def main() -> None:
    """Train, evaluate and report."""
    cfg, options = read_command_line(NAME, __doc__, PRESETS, Options)
    try:
        environment, agent = named.make(cfg.task), scaled(cfg.agent, cfg.size)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    check_environment(environment)
    dreamer = Dreamer.of(agent, environment.spec)
    run = open_folder(options.folder or Path("runs") / f"{cfg.task}-{cfg.size}-{cfg.seed}", cfg, MAY_CHANGE)
    params = train_agents(cfg, run, dreamer, environment)
    save(run, agent, environment, jax.tree.map(lambda leaf: leaf[0], params))
    report(cfg, run, evaluate(cfg, dreamer, environment, params))


if __name__ == "__main__":
    main()
