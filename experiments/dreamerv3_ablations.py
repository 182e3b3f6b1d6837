"""Which parts of DreamerV3 matter: its techniques, learning signals, size and replay ratio, on four small tasks.

Paper: after Hafner et al. 2023, figure 6. There 14 large tasks, here those of `envs.normalized`: they
need memory, sight, persistence and sense of proportion, and take a few thousand steps. The agents are small, the seeds
of each learn together by `vmap`, and returns are on one scale: 0 random play, 1 the best policy.

    python experiments/dreamerv3_ablations.py --figures robustness    # figure 6a; signals, sizes, ratios are b, c and d
    python experiments/dreamerv3_ablations.py                         # those that are missing, and one page of all

The commands share a run folder, in which every pair of a switch and a task is trained once; killed, they go on within
it. `switches.png` shows the final scores by task, `ablations.png` how the agents learned, `result.json` a row for each
switch. On two cores a pair compiles for a minute or two (less before jax 0.11.1, with the flag that tests/conftest.py
sets), and its 1,440 updates of five agents take about a minute from vectors; from pixels they have not been timed.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from dreamjax.dreamerv3 import Dreamer, DreamerConfig, LoopConfig, debug, tiny
from dreamjax.envs import normalized
from dreamjax.reporting import Section, pages
from dreamjax.reporting.intervals import Band, band, chart, learning, runs_row
from dreamjax.storage import Change, MetricsLog, RunFolder
from dreamjax.training import jitted
from dreamjax.training.experiment import Options, command, exit_on_bad_input, read_command_line, run_folder

NAME, PLAIN, SCORE = "dreamerv3_ablations", "DreamerV3", "return, 0 random play, 1 the best"
Figure = Literal["robustness", "signals", "sizes", "ratios", "critic"]
TITLES: dict[Figure, str] = {
    "robustness": "Robustness techniques",
    "signals": "Learning signals",
    "sizes": "Model size",
    "ratios": "Replay ratio",
    "critic": "The critic's learning (not in the paper)",
}
MAY_CHANGE = dict.fromkeys(("figures", "tasks", "checkpoint_every"), Change())  # in a folder, of one run


def changed(agent: DreamerConfig, **parts: dict[str, Any]) -> DreamerConfig:
    """Replace fields of parts of a configuration: `changed(agent, loss={"free_nats": 0.0})`."""
    return replace(agent, **{part: replace(getattr(agent, part), **fields) for part, fields in parts.items()})


SMALL = changed(tiny(), codec={"depth": 2, "kernel": 3}, heads={"bins": 41}, behaviour={"horizon": 5})
SMALL = changed(SMALL, loss={"free_nats": 0.1})  # of so few latents, one free nat is all there is to remember


@dataclass(frozen=True)
class Config:
    """What is compared, and for how long."""

    figures: tuple[Figure, ...] = ("robustness", "signals", "sizes", "ratios")
    tasks: tuple[str, ...] = tuple(normalized.TASKS)
    seed: int = 0  # the first
    seeds: int = 5  # so many from there on learn at once
    calls: int = 60  # the curves have as many points
    per_call: int = 24  # steps of every environment between two points, in which each episode ends
    checkpoint_every: int = 5  # calls
    episodes: int = 100  # test episodes in which each trained agent is scored
    loop: LoopConfig = LoopConfig(envs=8, batch_size=8, batch_length=16, train_ratio=16.0, capacity=8192)
    agent: DreamerConfig = SMALL
    preset: str = "cpu"

    @property
    def all_seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)


TINY = LoopConfig(envs=2, batch_size=2, batch_length=4, train_ratio=4.0, capacity=200)
SMOKE = Config(
    ("signals",), ("memory",), seeds=2, calls=2, per_call=16, checkpoint_every=1, episodes=4, loop=TINY,
    agent=debug(SMALL), preset="smoke",
)  # fmt: skip
PRESETS = {"cpu": Config(), "smoke": SMOKE}


class Variant(NamedTuple):
    """An agent, and how often it replays."""

    agent: DreamerConfig
    loop: LoopConfig


def wide(agent: DreamerConfig, factor: float) -> DreamerConfig:
    """Multiply the width of all layers."""
    times = lambda part, *names: {name: int(factor * getattr(part, name)) for name in names}  # noqa: E731
    rssm, codec = times(agent.rssm, "deter", "hidden"), times(agent.codec, "depth", "units")
    return changed(agent, rssm=rssm, codec=codec, heads=times(agent.heads, "units"))


def variants(cfg: Config, figure: Figure) -> dict[str, Variant]:
    """List what a figure compares with the plain agent, by label."""
    agent, often = cfg.agent, cfg.loop.train_ratio
    match figure:
        case "robustness":
            agents = {
                "no KL balance, no free bits": changed(agent, loss={"kl_balance": False, "free_nats": 0.0}),
                "no 1% unimix": changed(agent, rssm={"unimix": 0.0}),
                "no symlog of observations": changed(agent, codec={"symlog": False}),
                "advantages normalised, not returns": changed(
                    agent, behaviour={"normalize_returns": False, "normalize_advantages": True}
                ),
                "Huber loss, no symexp two-hot": changed(agent, heads={"twohot": False, "huber": True}),
            }
        case "signals":
            agents = {
                "no gradient of reward and value": changed(agent, loss={"reward_value_gradient": False}),
                "no gradient of reconstruction": changed(agent, loss={"reconstruction_gradient": False}),
            }
        case "sizes":
            agents = {f"{factor:g} x the width": wide(agent, factor) for factor in (0.5, 2)}
        case "critic":
            agents = {
                "no slow critic": changed(agent, behaviour={"slow_regularizer": 0.0}),
                "no loss on replayed values": changed(agent, loss={"replay_value": 0.0}),
            }
        case "ratios":
            loops = {f"train ratio {f * often:g}": replace(cfg.loop, train_ratio=f * often) for f in (0.25, 0.5, 2)}
            return {PLAIN: Variant(agent, cfg.loop)} | {label: Variant(agent, one) for label, one in loops.items()}
    return {PLAIN: Variant(agent, cfg.loop)} | {label: Variant(one, cfg.loop) for label, one in agents.items()}


class Learned(NamedTuple):
    """What the agents of all seeds reached in one task, on its scale."""

    steps: np.ndarray  # [calls] of the environment
    curve: np.ndarray  # [seeds, calls] mean of the training episodes
    final: np.ndarray  # [seeds] mean of the test episodes


def learn(cfg: Config, run: RunFolder, log: MetricsLog, label: str, task: str, one: Variant) -> Learned:
    """Train and score one variant in one task, unless the folder holds what came of it."""
    name, agents = re.sub(r"\W+", "-", f"{task}-{label}"), {f"seed {seed}": (seed, one.agent) for seed in cfg.all_seeds}
    normal, (_, waits) = normalized.TASKS[task](), one.loop.rhythm
    if "scores" not in run.stage_record(name)["summary"]:
        environment, dreamer = normal.environment, Dreamer.of(one.agent, normal.environment.spec)
        how = {"calls": cfg.calls, "per_call": cfg.per_call // waits, "checkpoint_every": cfg.checkpoint_every}
        params = jitted.train_agents(run, log, name, dreamer, environment, one.loop, agents, **how)
        returns = jitted.evaluate_agents(dreamer, environment, params, agents, cfg.episodes)
        run.finish_stage(name, {"scores": normal.score(returns.mean(1)).tolist()})
    shutil.rmtree(run.path / "checkpoints" / name, ignore_errors=True)  # with its replay it is large
    steps, curves = zip(*jitted.learned(run, name, list(agents)).values(), strict=True)
    return Learned(steps[0], normal.score(np.stack(curves)), np.array(run.stage_record(name)["summary"]["scores"]))


def learn_all(cfg: Config, run: RunFolder) -> Iterator[tuple[Figure, str, dict[str, Learned]]]:
    """Train all that the figures compare, each once: figure, label, and what was reached by task."""
    found: dict[str, dict[str, Learned]] = {}
    with MetricsLog(run.path) as log:
        for figure in cfg.figures:
            for label, one in variants(cfg, figure).items():
                if label not in found:
                    found[label] = {task: learn(cfg, run, log, label, task, one) for task in cfg.tasks}
                    jax.clear_caches()  # whose programs are not needed again
                yield figure, label, found[label]


def report(cfg: Config, run: RunFolder) -> None:
    """Put together what was learned: one row for each label, over tasks and seeds, and two plots."""
    bands, rows = dict[str, dict[str, Band]](), dict[str, dict[str, Any]]()
    by_task: dict[str, dict[str, dict[str, Any]]] = {task: {} for task in cfg.tasks}
    for figure, label, tasks in learn_all(cfg, run):
        curves = np.stack([one.curve for one in tasks.values()], 1)  # [seeds, tasks, calls]
        bands.setdefault(TITLES[figure], {})[label] = band(next(iter(tasks.values())).steps, curves)
        rows[label] = runs_row(label, np.stack([one.final for one in tasks.values()], 1), SCORE)
        for task, one in tasks.items():
            by_task[task][label] = runs_row(label, one.final, SCORE)
    learning(bands, run.path / "ablations.png", SCORE, PLAIN)
    panels = {"all tasks": list(rows.values())} | {task: list(some.values()) for task, some in by_task.items()}
    chart(panels, run.path / "switches.png")
    sections = [
        Section("Learning", "Mean over tasks and seeds, of the episodes of training.", ["ablations.png"]),
        Section("What each task needs", "Test episodes after training, over seeds.", ["switches.png"]),
        *(Section(task, rows=list(some.values())) for task, some in by_task.items()),
    ]
    title = "What matters in DreamerV3"
    pages.report(run, NAME, command(NAME, cfg, PRESETS), list(rows.values()), title, sections, seeds=cfg.all_seeds)


@exit_on_bad_input()
def main() -> None:
    """Train what is missing, and report; exit at once where a part of it cannot be trained."""
    cfg, options = read_command_line(NAME, __doc__, PRESETS, Options)
    if unknown := set(cfg.tasks) - set(normalized.TASKS):
        raise ValueError(f"unknown task {', '.join(sorted(unknown))}; there are {', '.join(normalized.TASKS)}")
    longest = max(normalized.TASKS[task]().environment.spec.max_steps for task in cfg.tasks)
    waits = sorted({one.loop.rhythm[1] for figure in cfg.figures for one in variants(cfg, figure).values()})
    if cfg.per_call <= longest or any(cfg.per_call % wait for wait in waits):
        raise ValueError(f"--per-call must be more than {longest}, and a multiple of {waits}, got {cfg.per_call}")
    report(cfg, run_folder(NAME, cfg, options, may_change=MAY_CHANGE))


if __name__ == "__main__":
    main()
