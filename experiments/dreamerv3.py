"""DreamerV3 in environments that are not written in JAX: control, games, anything of Gymnasium.

Paper: Hafner et al. 2023. One loop: act, store, replay, and learn world model, actor and critic together, at a fixed
ratio of replayed to collected steps; one configuration for every domain.

    python experiments/dreamerv3.py --task dmc_walker_walk --size 1m
    python experiments/dreamerv3.py --task atari_pong --size 200m --processes
    python experiments/dreamerv3.py --task gym_CartPole-v1 --folder runs/cartpole
    python experiments/dreamerv3.py --task gym_CartPole-v1 --folder runs/cartpole --offline 50000
    python experiments/dreamerv3.py --task gym_CartPole-v1 --size 12m --offline 50000 --recording runs/cartpole
    python experiments/dreamerv3.py --evaluate runs/cartpole --episodes 100
    python experiments/dreamerv3.py --collect runs/cartpole runs/walker --into experiments/results/dreamerv3

The command started again goes on where it stopped, with the agent and the replay that it had. With `--offline` it
learns from the replay of the folder, or from a recording, and needs no environment. At the end of training the agent
plays fresh episodes and predicts pieces of them with closed eyes; `--evaluate` does that for any run, also while it is
under way. What the committed runs measured, how long they took and on which machine: results/dreamerv3/result.json.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium
import jax
import numpy as np
import tyro
from gymnasium.spaces import Discrete
from gymnasium.wrappers import TransformAction

from dreamjax.dreamerv3.config import DreamerConfig, Size, scaled
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.envs.gymnasium import spec_from_gymnasium
from dreamjax.envs.lanes import make_lanes, rescaled
from dreamjax.reporting import curves
from dreamjax.reporting.aggregate import gather, read_run
from dreamjax.reporting.evaluation import OBSERVED, Trained, evaluate, newest, predict, write_predictions
from dreamjax.reporting.pages import Section, write_summary
from dreamjax.reporting.results import result_row, shown_measurement, write_result
from dreamjax.storage.configs import command_line
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog, read_metrics
from dreamjax.storage.recordings import read_spec, write_spec
from dreamjax.training.devices import keep_freed_memory
from dreamjax.training.online import HostConfig, train_offline, train_on_host
from dreamjax.types import EnvSpec


@dataclass(frozen=True)
class Suite:
    """How a family of tasks is published: steps are actions, whatever each is repeated in the environment."""

    make: Callable[[str], gymnasium.Env]
    max_steps: int
    steps: int
    train_ratio: float
    envs: int
    repeat: int = 1


def control(task: str, observation: Literal["vectors", "pixels"]) -> gymnasium.Env:
    from dreamjax.envs.dmc import ControlSuite

    return ControlSuite(task, repeat=2, observation=observation)


def atari(task: str, **settings: Any) -> gymnasium.Env:
    from dreamjax.envs.atari import Atari

    return Atari(task, **settings)


def crafter(task: str) -> gymnasium.Env:
    from dreamjax.envs.crafter import Crafter

    if task != "reward":
        raise ValueError(f"the task of Crafter is crafter_reward, got {task!r}")
    return Crafter()


def doom(task: str) -> gymnasium.Env:
    from dreamjax.envs.vizdoom import TakeCover

    if task != "takecover":
        raise ValueError(f"the task of Doom is doom_takecover, got {task!r}")
    # The game knows three actions. A normal over its number in [-1, 1] could not prefer left and right to standing.
    return TransformAction(TakeCover(), (-1.0, 0.0, 1.0).__getitem__, Discrete(3))


# Both control suites as in the paper: 500k and 1M frames, with the size 12m. Atari, Atari 100k and Crafter as in the
# configuration of the published code, with the size 200m; for Atari 100k the paper writes a train ratio of 128. Doom
# and Gymnasium are not among what was published.
SUITES = {
    "dmc": Suite(partial(control, observation="vectors"), 500, 250_000, 512, 16, 2),
    "dmcpixels": Suite(partial(control, observation="pixels"), 500, 500_000, 512, 16, 2),
    "atari": Suite(atari, 27_000, 51_000_000, 32, 16, 4),
    "atari100k": Suite(
        partial(atari, size=64, grey=False, sticky=False, all_actions=False), 27_000, 110_000, 256, 1, 4
    ),
    "crafter": Suite(crafter, 10_000, 1_100_000, 512, 1),
    "doom": Suite(doom, 2100, 1_000_000, 32, 8),
    "gym": Suite(gymnasium.make, 1000, 100_000, 512, 4),
}


@dataclass(frozen=True)
class Config:
    """What is trained, and where it differs from what is published; None takes the published value of the suite."""

    task: str = "dmc_walker_walk"
    folder: Path | None = None  # of the run; otherwise named after task, size and seed
    size: Size = "12m"
    seed: int = 0
    steps: int | None = None  # actions, all environments together
    envs: int | None = None
    train_ratio: float | None = None
    processes: bool = False  # one for every environment
    agent: DreamerConfig = DreamerConfig()  # everything but the sizes, which `size` sets, unless it is "custom"
    batch_size: int = 16
    batch_length: int = 64
    capacity: int = 5_000_000
    checkpoint_every: int = 1000
    log_every: int = 100
    offline: int | None = None  # learn up to so many updates, without the environment
    recording: Path | None = None  # of another run, or by `write_recording`, for an offline run that begins


def find(task: str) -> tuple[Suite, str]:
    """The suite of a task, and its name there."""
    suite_name, _, name = task.partition("_")
    if suite_name not in SUITES:
        raise SystemExit(f"unknown suite {suite_name!r} in task {task!r}; there are {', '.join(SUITES)}")
    return SUITES[suite_name], name


def bind(cfg: Config, spec: EnvSpec) -> Dreamer:
    """The agent for an environment."""
    return Dreamer.of(scaled(cfg.agent, cfg.size), spec)


def train(cfg: Config, folder: Path) -> RunFolder:
    """Train to the end, or from where the folder stands."""
    suite, name = find(cfg.task)
    host = HostConfig(
        cfg.steps or suite.steps,
        cfg.batch_size,
        cfg.batch_length,
        cfg.train_ratio or suite.train_ratio,
        cfg.capacity,
        checkpoint_every=cfg.checkpoint_every,
        log_every=cfg.log_every,
    )
    lanes = None
    if cfg.offline is None:
        lanes = make_lanes(partial(suite.make, name), cfg.envs or suite.envs, suite.max_steps, cfg.processes)
    spec = lanes.spec if lanes else read_spec(cfg.recording or folder)
    dreamer = bind(cfg, spec)
    run = RunFolder(folder, replace(cfg, folder=None, offline=None, recording=None))  # a run may be moved, and go on
    write_spec(folder, spec)
    with MetricsLog(folder) as log:
        if lanes:
            train_on_host(run, log, dreamer, lanes, host, cfg.seed)
            lanes.close()
        else:
            train_offline(run, log, dreamer, host, cfg.seed, cfg.offline or 0, cfg.recording)
    return run


def episodes_of(cfg: Config, folder: Path) -> curves.Series:
    """Frames before the end of each training episode, and its return."""
    steps, returns = read_metrics(folder / "metrics.jsonl").get("episode", {}).get("return", ([], []))
    return np.asarray(steps) * find(cfg.task)[0].repeat, np.asarray(returns)


def crafter_score(path: Path) -> dict[str, Any]:
    """The score that Crafter is published with: of all training episodes in the metrics at `path`."""
    from dreamjax.envs.crafter import ACHIEVEMENTS, score

    told = read_metrics(path)["episode"]
    counts = np.stack([told[f"info/achievements/{name}"][1] for name in ACHIEVEMENTS], -1)
    percent = score([dict(zip(ACHIEVEMENTS, episode, strict=True)) for episode in counts])
    return result_row(f"crafter_reward, Crafter score of {len(counts)} episodes", np.array([percent]), "%")


def report(run: RunFolder, into: RunFolder, episodes: int) -> None:
    """Evaluate the newest agent of a run, and write what there is to see of it into a folder."""
    cfg: Config = run.config
    suite, name = find(cfg.task)
    rows, sections = [], []
    frames, returns = episodes_of(cfg, run.path)
    if len(returns):
        rows.append(result_row(cfg.task, returns[-5:], "return"))
        if suite is SUITES["crafter"]:
            rows.append(crafter_score(run.path / "metrics.jsonl"))
        curves.return_curves({cfg.task: {"": (frames, returns)}}, into.path / "returns.png")
        sections.append(Section("Learning", "The return of each training episode, over the frames.", ["returns.png"]))
    if episodes:
        make = lambda: rescaled(suite.make(name))  # noqa: E731
        with make() as environment:
            spec = spec_from_gymnasium(environment, suite.max_steps)
        dreamer = bind(cfg, spec)
        updates, params = newest(run.path, dreamer)
        trained, key = Trained(dreamer, params, make), jax.random.key(cfg.seed)
        scores = evaluate(trained, key, episodes, into.path / "evaluation" / f"{updates}.jsonl")
        rows.append(result_row(f"{cfg.task}, evaluated", scores, "return"))
        predictions = predict(trained, key)
        if predictions:
            text = f"The model sees {OBSERVED} steps (green); from there on it knows only the actions that were taken."
            media = write_predictions(into.path, dreamer, predictions)
            sections.append(Section("What happens, and what the model expects", text, media))
    losses = {k: v for k, v in read_metrics(run.path / "metrics.jsonl").get("learn", {}).items() if "loss" in k}
    if losses:
        curves.learning_curves({"learn": losses}, into.path / "losses.png")
        sections.append(Section("Losses", "Over the updates.", ["losses.png"]))
    if rows:
        command = " ".join(["python experiments/dreamerv3.py", *command_line(cfg, Config())])
        wall = run.stage_record("train")["seconds"]
        write_result(into.path / "result.json", "dreamerv3", cfg.size, command, [cfg.seed], wall, rows)
    for row in rows:
        print(f"{row['name']}: {shown_measurement(row)}, {row['n']} episodes")
    lead = "" if len(returns) == 0 else f"{len(returns)} episodes in {frames[-1]:,} frames."
    print(f"Open {write_summary(into, f'DreamerV3: {cfg.task}', rows, sections, lead)}")


def collect(folders: tuple[Path, ...], into: Path, variant: str) -> None:
    """Put the results of runs together."""
    configs = [RunFolder.opened(folder, Config).config for folder in folders]
    runs = [
        read_run(folder, cfg.task, cfg.size, cfg.seed, episodes_of(cfg, folder), variant)
        for folder, cfg in zip(folders, configs, strict=True)
    ]
    for row in gather(into, "dreamerv3", runs):
        print(f"{row['name']}: {shown_measurement(row)}, {row['n']} episodes")


@dataclass(frozen=True)
class Arguments:
    """What to do."""

    config: Annotated[Config, tyro.conf.arg(name="")] = Config()
    episodes: int = 10  # to evaluate the agent in, once it is trained; 0 leaves that out
    evaluate: Path | None = None  # folder of a run to evaluate and report on instead, into --folder if that is given
    collect: tuple[Path, ...] | None = None  # folders of runs, whose results are put together with those in `into`
    into: Path = Path("experiments/results/dreamerv3")  # folder for what is collected
    variant: str = ""  # what sets the collected runs apart from those of the plain settings, such as "lr 1.6e-4"


def main() -> None:
    """Read the command line."""
    keep_freed_memory()
    args = tyro.cli(Arguments, description=__doc__)
    cfg = args.config
    if args.collect is not None:
        collect(args.collect, args.into, args.variant)
    elif args.evaluate:
        run = RunFolder.opened(args.evaluate, Config)
        report(run, RunFolder(cfg.folder, run.config) if cfg.folder else run, args.episodes)
    else:
        run = train(cfg, cfg.folder or Path("runs") / f"{cfg.task}-{cfg.size}-{cfg.seed}")
        report(run, run, args.episodes if cfg.offline is None else 0)  # offline there may be no environment


if __name__ == "__main__":
    main()
