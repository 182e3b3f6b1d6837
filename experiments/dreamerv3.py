"""DreamerV3 in environments that are not written in JAX: control, games, anything of Gymnasium.

Paper: Hafner et al. 2023. One loop: act, store, replay, and learn world model, actor and critic together, at a fixed
ratio of replayed to collected steps; one configuration for every domain.

    python experiments/dreamerv3.py --task dmc_walker_walk --size 1m --steps 25000
    python experiments/dreamerv3.py --task dmc1_walker_walk --size 1m
    python experiments/dreamerv3.py --task atari_pong --size 200m --workers 16
    python experiments/dreamerv3.py --task gym_CartPole-v1 --folder runs/cartpole
    python experiments/dreamerv3.py --task gym_CartPole-v1 --folder runs/cartpole --offline 50000
    python experiments/dreamerv3.py --task gym_Acrobot-v1 --begin.weights runs/cartpole --begin.take "model/rew/*"
    python experiments/dreamerv3.py --task atari_pong --size 200m --distributed
    python experiments/dreamerv3.py --evaluate runs/cartpole --episodes 100
    python experiments/dreamerv3.py --aggregate runs/cartpole runs/walker

The command started again resumes where it stopped, with the agent and the replay that it had; with more `--steps` it
trains longer. With `--offline` it learns from the replay of the folder, or from a recording, and needs no environment.
With `--distributed` several processes, each started so, share the environments and the batch: README.md says how. At
the end of training the agent is evaluated, filmed, and its dreams measured; `--evaluate` does that for any run, also
while it is under way. Without `--steps` a task has the published number of them, ten times that of the committed runs.
"""

from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from dreamjax.acting import seeds
from dreamjax.acting.evaluation import evaluate
from dreamjax.acting.vector import VectorEnvironment
from dreamjax.dreamerv3.config import DreamerConfig, Size, scaled
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.envs import suites
from dreamjax.reporting import Section, curves, pages, result_row, show_rows
from dreamjax.reporting.aggregate import aggregate_runs, episode_returns, published_scores, read_run
from dreamjax.reporting.evaluation import crafter_score
from dreamjax.reporting.films import film_section
from dreamjax.storage import Begin, Change, RunFolder, load, read_metrics
from dreamjax.storage.atomic import read_json
from dreamjax.storage.recordings import read_spec
from dreamjax.training import OnlineConfig, experiment, processes, train_offline, train_online
from dreamjax.training.experiment import Aggregating, Distributing, Evaluating, command, open_folder
from dreamjax.trust import TrustConfig, trust_section

NAME, RESULTS = "dreamerv3", Path(__file__).parent / "results" / "dreamerv3"
# What a run may go on with: how long it trains, and how it goes about it.
MAY_CHANGE = dict.fromkeys(("steps", "workers", "on_disk", "sharded", "checkpoint_every", "log_every"), Change())
MAY_CHANGE |= dict.fromkeys(("capacity", "begin.weights", "begin.take", "begin.leave"), Change(before=("train",)))


@dataclass(frozen=True)
class Config:
    """What is trained; None takes the published value of the suite."""

    task: str = "dmc_walker_walk"
    size: Size = "12m"
    seed: int = 0
    steps: int | None = None  # actions, all environments together
    envs: int | None = None
    train_ratio: float | None = None
    resize: int | None = None  # height and width of the pictures that the agent sees; None leaves them as they are
    workers: int = 0  # processes that step the environments; 0 steps them in this one
    agent: DreamerConfig = DreamerConfig()  # everything but the sizes, which `size` sets, unless it is "custom"
    begin: Begin = Begin()  # with what another run has learned
    batch_size: int = 16
    batch_length: int = 64
    capacity: int = 5_000_000
    on_disk: bool = False  # keep the replay in files of the run folder, where memory does not hold it
    checkpoint_every: int = 1000
    log_every: int = 100
    sharded: bool = False  # split parameters and optimiser over the devices, for sizes that one cannot hold

    def __post_init__(self) -> None:
        for name in ("steps", "envs", "train_ratio"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, or left out for that of the suite, got {value}")

    @property
    def preset(self) -> str:
        """What results are filed under."""
        return self.size


@dataclass(frozen=True)
class DreamerOptions(Evaluating, Aggregating, Distributing):
    """What to do: train, unless one of the others is given."""

    episodes: int = 10  # test episodes in which the trained agent is scored; 0 leaves that out
    offline: int | None = None  # learn up to so many updates, without the environment
    recording: Path | None = None  # of another run, or by `write_recording`, for an offline run that begins

    def __post_init__(self) -> None:
        if (self.offline is None and self.recording) or (self.offline is not None and self.offline < 1):
            raise ValueError("--offline wants 1 update or more, and --recording is what --offline begins with")


_TINY = Config("gym_CartPole-v1", "debug", steps=400, envs=2, train_ratio=16.0, batch_size=4, batch_length=8)
PRESETS = {
    "paper": Config(),
    "cpu": Config("gym_CartPole-v1", "1m", steps=20_000),
    "smoke": replace(_TINY, checkpoint_every=20, log_every=10),
}


def train(cfg: Config, folder: Path, options: DreamerOptions) -> RunFolder:
    """Train to the end, or from where the folder stands."""
    suite, make_env = suites.task(cfg.task, resize=cfg.resize)
    online = OnlineConfig(
        cfg.steps or suite.steps,
        cfg.batch_size,
        cfg.batch_length,
        cfg.train_ratio or suite.train_ratio,
        cfg.capacity,
        cfg.on_disk,
        checkpoint_every=cfg.checkpoint_every,
        log_every=cfg.log_every,
        sharded=cfg.sharded,
    )
    agent = scaled(cfg.agent, cfg.size)
    if options.offline is not None:
        recorded = options.recording or folder
        if (path := recorded / "config.json").exists() and (task := read_json(path).get("task", cfg.task)) != cfg.task:
            raise ValueError(f"{recorded} is a recording of {task}, not of {cfg.task}: name it with --task")
        dreamer = Dreamer.of(agent, read_spec(recorded))
        run = open_folder(folder, cfg, options, may_change=MAY_CHANGE)
        train_offline(run, dreamer, online, cfg.seed, options.offline, options.recording, begin=cfg.begin)
        return run
    envs = processes.share(cfg.envs or suite.envs, "envs")
    first = envs * jax.process_index()
    with closing(VectorEnvironment(make_env, envs, suite.max_steps, cfg.workers, first=first)) as environment:
        dreamer = Dreamer.of(agent, environment.spec)
        run = open_folder(folder, cfg, options, may_change=MAY_CHANGE)
        train_online(run, dreamer, environment, online, cfg.seed, cfg.begin)
        return run


def report(run: RunFolder, into: RunFolder, episodes: int) -> None:
    """Evaluate the newest agent of a run, and write what there is to see of it into a folder."""
    cfg: Config = run.config
    suite, make_env = suites.task(cfg.task, resize=cfg.resize)
    rows, sections, lead = [], [], ""
    frames, returns = episode_returns(run.path, suite.repeat)
    if len(returns):
        rows.append(result_row(cfg.task, returns[-5:], "return"))
        if cfg.task == "crafter_reward":
            rows.append(crafter_score(run.path))
        beside = published_scores(RESULTS) if cfg.size == "1m" else {}
        curves.return_curves({cfg.task: {"this run": (frames, returns)}}, into.path / "returns.png", beside)
        lead = f"{len(returns)} training episodes in {frames[-1]:,} frames."
        sections.append(Section("Learning", "The return of each training episode, over the frames.", ["returns.png"]))
    if episodes:
        (agent, params), key = load(run.path), jax.random.key(cfg.seed)
        notes = into.path / "evaluation.jsonl"
        scores = evaluate(agent, params, make_env, seeds.test(episodes), key, envs=8, notes=notes)
        rows.append(result_row(f"{cfg.task}, evaluated", scores, "return"))
        lead += f" A return of {scores.mean():,.4g} in {episodes} test episodes."
        watched = suites.task(cfg.task, resize=cfg.resize, render_mode="rgb_array").make_env
        sections[:0] = film_section(into.path, agent, params, watched, cfg.seed)
        looks = TrustConfig(max(2, min(episodes, 32)), max_steps=1000)
        sections.append(trust_section(into, agent, params, make_env, key, looks))
    losses = read_metrics(run.path / "metrics.jsonl").get("learn", {})
    if losses := {name: series for name, series in losses.items() if "loss" in name}:
        curves.learning_curves({"learn": losses}, into.path / "losses.png")
        sections.append(Section("Losses", "Over the updates.", ["losses.png"]))
    made = command(NAME, cfg, PRESETS) + f" --episodes {episodes}" * (episodes != DreamerOptions.episodes)
    if (run.path / "offline.json").exists():  # what was collected, if anything, and what was learned without
        flags = [f"--{name} {value}" for name, value in run.read_json("offline.json").items()]
        made = f"{made}; " * bool(len(returns)) + " ".join([made, *flags])
    pages.report(run, NAME, made, rows, f"DreamerV3: {cfg.task}", sections, lead, into)


def aggregate(options: DreamerOptions) -> None:
    """Put the results of runs together."""
    runs = []
    for folder in options.aggregate:
        cfg: Config = RunFolder.opened(folder, Config).config
        runs.append(read_run(folder, cfg.task, episode_returns(folder, suites.task(cfg.task).suite.repeat)))
    show_rows(aggregate_runs(options.into or RESULTS, NAME, runs))


@experiment.exit_on_bad_input()
def main() -> None:
    """Train and report, report on a run, or aggregate runs."""
    cfg, options = experiment.read_command_line(NAME, __doc__, PRESETS, DreamerOptions)
    if options.aggregate:
        aggregate(options)
    elif options.evaluate:
        run = RunFolder.opened(options.evaluate, Config)
        report(run, RunFolder(options.folder, run.config) if options.folder else run, options.episodes)
    else:
        if options.offline is None:
            suites.task(cfg.task).make_env().close()  # what is misspelled or missing is said at once
        run = train(cfg, options.folder or Path("runs") / f"{cfg.task}-{cfg.size}-{cfg.seed}", options)
        if processes.leave():  # the first one reports
            report(run, run, options.episodes if options.offline is None else 0)  # offline there may be no environment


if __name__ == "__main__":
    main()
