"""DreamerV3 in environments that are not written in JAX: control, games, anything of Gymnasium.

Paper: Hafner et al. 2023. One loop: act, store, replay, and learn world model, actor and critic together, at a fixed
ratio of replayed to collected steps; one configuration for every domain.

    python experiments/dreamerv3.py --task dmc_walker_walk --size 1m
    python experiments/dreamerv3.py --task atari_pong --size 200m --processes
    python experiments/dreamerv3.py --task gym_CartPole-v1 --folder runs/cartpole
    python experiments/dreamerv3.py --task gym_CartPole-v1 --folder runs/cartpole --offline 50000
    python experiments/dreamerv3.py --task gym_CartPole-v1 --size 12m --offline 50000 --recording runs/cartpole

The command started again goes on where it stopped, with the agent and the replay that it had. With `--offline` it
learns from the replay of the folder, or from a recording, and needs no environment. What the committed runs
measured, how long they took and on which machine: results/dreamerv3/result.json.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import tyro
from gymnasium.spaces import Discrete
from gymnasium.wrappers import TransformAction

from dreamjax.dreamerv3.config import WIDTHS, DreamerConfig, debug, sized
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.envs.lanes import make_lanes
from dreamjax.run.devices import keep_freed_memory
from dreamjax.run.folder import RunFolder
from dreamjax.run.host import HostConfig, train_offline, train_on_host
from dreamjax.run.metrics import MetricsLog, read_metrics
from dreamjax.run.recordings import read_spec, write_spec


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
    size: Literal["debug", "1m", "12m", "25m", "50m", "100m", "200m", "400m"] = "12m"
    seed: int = 0
    steps: int | None = None  # actions, all environments together
    envs: int | None = None
    train_ratio: float | None = None
    processes: bool = False  # one for every environment
    agent: DreamerConfig = DreamerConfig()  # everything but the sizes, which `size` sets
    batch_size: int = 16
    batch_length: int = 64
    capacity: int = 5_000_000
    checkpoint_every: int = 1000
    log_every: int = 100
    offline: int | None = None  # learn up to so many updates, without the environment
    recording: Path | None = None  # of another run, or by `write_recording`, for an offline run that begins


def train(cfg: Config, folder: Path) -> None:
    """Train to the end, or from where the folder stands."""
    suite_name, _, name = cfg.task.partition("_")
    if suite_name not in SUITES:
        raise SystemExit(f"unknown suite {suite_name!r} in task {cfg.task!r}; there are {', '.join(SUITES)}")
    suite = SUITES[suite_name]
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
    agent = debug(cfg.agent) if cfg.size == "debug" else sized(WIDTHS[cfg.size], cfg.agent)
    dreamer = Dreamer.of(agent, spec.observation, spec.action)
    run = RunFolder(folder, replace(cfg, folder=None, offline=None, recording=None))  # a run may be moved, and go on
    write_spec(folder, spec)
    with MetricsLog(folder) as log:
        if lanes:
            train_on_host(run, log, dreamer, lanes, host, cfg.seed)
            lanes.close()
        else:
            train_offline(run, log, dreamer, host, cfg.seed, cfg.offline or 0, cfg.recording)
    episodes = read_metrics(folder / "metrics.jsonl").get("episode")
    if episodes:
        _, returns = episodes["return"]
        print(f"{cfg.task}: the last five of {len(returns)} episodes return {np.mean(returns[-5:]):.1f} on average")


def main() -> None:
    """Read the command line."""
    keep_freed_memory()
    cfg = tyro.cli(Config, description=__doc__)
    train(cfg, cfg.folder or Path("runs") / f"{cfg.task}-{cfg.size}-{cfg.seed}")


if __name__ == "__main__":
    main()
