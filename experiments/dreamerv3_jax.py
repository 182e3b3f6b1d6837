"""DreamerV3 with its replay on the device: several seeds, and values of what is traced, learn at once, by `vmap`.

Paper: Hafner et al. 2023. In an environment written in JAX, collecting is a part of the one jitted program; those of
`dreamerv3.py` step on the host meanwhile, so many for each agent.

    python experiments/dreamerv3_jax.py --task counter --seeds 4
    python experiments/dreamerv3_jax.py --task counter --seeds 4 --sweep.learning-rate 1e-4 4e-4 1e-3
    python experiments/dreamerv3_jax.py --task gymnax_CartPole-v1
    python experiments/dreamerv3_jax.py --task dmc1_walker_walk --seeds 5 --loop.train-ratio 1024 --workers 8
    python experiments/dreamerv3_jax.py --aggregate runs/one_task runs/another --into results   # one result of both

gymnax_CartPole-v1 needs an extra: gymnax, craftax or brax. The command started again resumes where it stopped, on the
host in new episodes; with more `--iterations` it trains longer. `metrics.jsonl` holds, after every call of `per_call`
iterations, the environment steps of each agent so far, how many episodes ended and their mean return; `result.json`
what the trained agents reach in test episodes, each and on average; `agent.npz` the first agent, for `dreamjax.load`.
What the committed runs reached, and how long they took: results/dreamerv3_jax_*/result.json.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from dreamjax.acting.vector import VectorEnvironment
from dreamjax.dreamerv3 import Dreamer, DreamerConfig, DreamerParams, LoopConfig, Sweep, agent_params, loop, model
from dreamjax.dreamerv3.config import Size, scaled
from dreamjax.envs import check_environment, naming, suites
from dreamjax.reporting import Section, curves, pages, result_row, show_rows
from dreamjax.reporting.aggregate import aggregate_tasks
from dreamjax.reporting.intervals import Band, band_of_runs, chart, learning, runs_row
from dreamjax.storage import Change, MetricsLog, RunFolder, load, read_metrics, save_agent
from dreamjax.storage.progress import progress
from dreamjax.training import jitted as jitted_training
from dreamjax.training.experiment import Aggregating, command, exit_on_bad_input, open_folder, read_command_line
from dreamjax.trust import TrustConfig, trust_section
from dreamjax.types import Environment, EnvSpec, PyTree

NAME = "dreamerv3_jax"
# In a folder, of one run.
MAY_CHANGE = dict.fromkeys(("iterations", "episodes", "checkpoint_every", "workers"), Change())


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
    sweep: Sweep = Sweep()  # all combinations learn at once, with each seed
    workers: int = 0  # processes that step environments of the host; 0 steps them in this one
    per_call: int = 10  # iterations of one call, after which there are metrics
    checkpoint_every: int = 100  # iterations; a multiple of `per_call`
    episodes: int = 100  # test episodes in which each trained agent is scored

    def __post_init__(self) -> None:
        if min(self.seeds, self.per_call, self.checkpoint_every, self.iterations) < 1 or self.seed < 0:
            raise ValueError("seeds, per_call, checkpoint_every and iterations must be positive, and seed 0 or more")
        if self.checkpoint_every % self.per_call or self.iterations % self.per_call:
            raise ValueError(f"checkpoint_every and iterations must be multiples of per_call, {self.per_call}")

    @property
    def preset(self) -> str:
        """What results are filed under."""
        return self.size

    @property
    def all_seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    @property
    def agents(self) -> dict[str, tuple[int, DreamerConfig]]:
        """Seed and settings of every agent, by names such as "learning_rate 0.001, seed 0"."""
        combinations = self.sweep.combinations(scaled(self.agent, self.size)).items()
        named = {label: f"{label}, seed" if label else "seed" for label, _ in combinations}
        return {f"{named[label]} {seed}": (seed, one) for label, one in combinations for seed in self.all_seeds}


TINY = LoopConfig(envs=2, batch_size=2, batch_length=4, train_ratio=4.0, capacity=100)
SMOKE = Config("remember", "debug", seeds=2, iterations=6, loop=TINY, per_call=2, checkpoint_every=2)
PRESETS = {"cpu": Config(), "smoke": SMOKE}


@contextmanager
def opened(cfg: Config) -> Iterator[Environment | VectorEnvironment]:
    """Make the environment, or where it is one of the host so many of it that each agent has `cfg.loop.envs`."""
    environment = naming.find(cfg.task)
    if isinstance(environment, Environment):
        if cfg.workers:
            raise ValueError(
                f"--workers step environments of the host, and {cfg.task!r} is written in JAX: leave it out"
            )
        with progress(1, "check", unit="environment", waits="compiling") as bar:  # minutes, for Craftax
            check_environment(environment)
            bar.update()
        yield environment
        return
    if cfg.task.partition("_")[0] not in suites.SUITES:
        known = ", ".join(f"{suite}_..." for suite in suites.SUITES)
        raise ValueError(f"{cfg.task!r} has no settings for DreamerV3; of environments of the host, there are {known}")
    suite, count = suites.task(cfg.task).suite, len(cfg.agents) * cfg.loop.envs
    with closing(VectorEnvironment(environment, count, suite.max_steps, cfg.workers)) as environments:
        ours = f"--loop.train-ratio {cfg.loop.train_ratio:g} --loop.envs {cfg.loop.envs}"
        if ours != (usual := f"--loop.train-ratio {suite.train_ratio:g} --loop.envs {suite.envs}"):
            print(f"dreamerv3.py learns {cfg.task} as with {usual}; this run has {ours}")
        yield environments


def begins(cfg: Config, environment: Environment | VectorEnvironment) -> PyTree:
    """Return the observations that some episodes open with. Shapes: -> [S, ...]."""
    if isinstance(environment, VectorEnvironment):
        return environment.reset((cfg.seed, cfg.iterations)).observation
    return jax.vmap(environment.reset)(jax.random.split(jax.random.key(cfg.seed), 64))[1].observation


def save(run: RunFolder, spec: EnvSpec, params: DreamerParams, observations: PyTree) -> None:
    """Store the first agent, with what some episodes open with, where its dreams begin."""
    _, cfg = next(iter(run.config.agents.values()))
    first, agent = jax.tree.map(lambda leaf: leaf[0], params), model.make(cfg, spec)
    starts = jax.jit(jax.vmap(agent.model.encode, (None, 0)))(first.model, observations)
    save_agent(run.path / "agent.npz", cfg, agent, agent_params(first, starts), value=first.value, task=run.config.task)


def train(cfg: Config, run: RunFolder, dreamer: Dreamer, environment: Environment | VectorEnvironment) -> DreamerParams:
    """Train all agents to the end, or from where the folder stands. Shapes: -> parameters [agents, ...]."""
    calls, checkpoint_every = cfg.iterations // cfg.per_call, cfg.checkpoint_every // cfg.per_call
    how = {"calls": calls, "per_call": cfg.per_call, "checkpoint_every": checkpoint_every}
    with MetricsLog(run.path) as log:
        return jitted_training.train_agents(run, log, "train", dreamer, environment, cfg.loop, cfg.agents, **how)


def bands(run: RunFolder) -> dict[str, Band]:
    """Average over seeds how the agents of a run learned, by their settings; nothing if one ended no episode."""
    cfg = run.config
    learned = jitted_training.learned(run, "train", list(cfg.agents))
    if cfg.seeds < 2 or len(learned) < len(cfg.agents):
        return {}
    alike = zip(cfg.sweep.combinations(cfg.agent), np.array(list(cfg.agents)).reshape(-1, cfg.seeds), strict=True)
    return {one or "mean": band_of_runs([learned[name] for name in names]) for one, names in alike}


def report(cfg: Config, run: RunFolder, returns: np.ndarray) -> None:
    """Put the scores of all agents and their means in one result, and draw how each learned. Shapes: [agents, E]."""
    names = [f"{cfg.task}, {name}" for name in cfg.agents] if len(returns) > 1 else [cfg.task]
    rows = [result_row(name, scores, "return") for name, scores in zip(names, returns, strict=True)]
    scores = dict(zip(cfg.sweep.combinations(cfg.agent), returns.mean(1).reshape(-1, cfg.seeds), strict=True))
    if cfg.seeds > 1:
        mean = f"mean of {cfg.seeds} seeds"
        rows += [runs_row(", ".join(filter(None, [cfg.task, one, mean])), scores[one], "return") for one in scores]
    told = read_metrics(run.path / "metrics.jsonl")["train"]
    learned = jitted_training.learned(run, "train", list(cfg.agents))
    losses = {name: series for name, series in told.items() if "/" not in name and name not in ("steps", "return")}
    curves.learning_curves({"train": losses}, run.path / "losses.png")
    sections = [Section("Losses", "Over calls of `per_call` iterations, averaged over agents.", ["losses.png"])]
    if len(scores) > 1:
        chart({f"{cfg.task}: return": [runs_row(one, scores[one], "return") for one in scores]}, run.path / "sweep.png")
        sections.insert(0, Section("The sweep", "Over seeds, of which each counts once.", ["sweep.png"]))
    if learned:
        curves.return_curves({cfg.task: learned}, run.path / "returns.png")
        text = "Mean return of the episodes between two calls, over the environment's steps, of each agent."
        sections.insert(0, Section("Learning", text, ["returns.png"]))
    if averaged := bands(run):
        learning({cfg.task: averaged}, run.path / "seeds.png", "return", "mean")
        sections.insert(0, Section("Over seeds", "Mean and its 95 % interval.", ["seeds.png"]))
    looks = TrustConfig(max(2, min(cfg.episodes, 32)), max_steps=1000)
    sections.append(trust_section(run, *load(run.path), naming.find(cfg.task), jax.random.key(cfg.seed), looks))
    pages.report(run, NAME, command(NAME, cfg, PRESETS), rows, f"DreamerV3: {cfg.task}", sections, seeds=cfg.all_seeds)


@exit_on_bad_input()
def main() -> None:
    """Train, evaluate and report, or put finished runs together."""
    cfg, options = read_command_line(NAME, __doc__, PRESETS, Aggregating)
    if options.aggregate:
        if options.into is None:
            raise ValueError("name a folder for the result: --into")
        runs = (RunFolder.opened(folder, Config) for folder in options.aggregate)
        tasks = [(run.config.task, run.path / "result.json", bands(run)) for run in runs]
        return show_rows(aggregate_tasks(options.into, NAME, tasks))
    with opened(cfg) as environment:
        dreamer = Dreamer.of(scaled(cfg.agent, cfg.size), environment.spec)
        loop.prefill(dreamer, cfg.loop)  # what is refused leaves no folder
        folder = options.folder or Path("runs") / f"{NAME}-{cfg.task}-{cfg.size}-{cfg.seed}"
        run = open_folder(folder, cfg, options, may_change=MAY_CHANGE)
        params = train(cfg, run, dreamer, environment)
        save(run, environment.spec, params, begins(cfg, environment))
    tested = dreamer, naming.find(cfg.task), params, cfg.agents, cfg.episodes
    notes = run.path / "evaluation.jsonl"
    report(cfg, run, jitted_training.evaluate_agents(*tested, workers=cfg.workers, notes=notes))


if __name__ == "__main__":
    main()
