"""DreamerV3 on an environment of one's own, in one call."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import jax

from dreamjax.acting.vector import VectorEnvironment
from dreamjax.dreamerv3.config import SIZES, DreamerConfig
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.envs.adaptation import adapted
from dreamjax.storage import agents
from dreamjax.storage.folder import Change, RunFolder
from dreamjax.training import processes
from dreamjax.training.devices import keep_compiled_programs
from dreamjax.training.online import OnlineConfig, train_online
from dreamjax.types import Agent, AgentParams

MAY_CHANGE = dict.fromkeys(("online.steps", "online.checkpoint_every", "online.log_every", "workers"), Change())
MAY_CHANGE["online.sharded"] = Change()
MAY_CHANGE["online.capacity"] = Change(before=("train",))


@dataclass(frozen=True)
class RunConfig:
    """What a run of `train` is, apart from its environment."""

    agent: DreamerConfig
    online: OnlineConfig
    envs: int
    workers: int
    max_steps: int
    seed: int
    weights: str | None = field(default=None)  # folder or file that it began with
    resize: int | tuple[int, int] | None = None


def train(
    make_env: Callable[[], gymnasium.Env],
    folder: str | os.PathLike[str],
    steps: int,
    agent: DreamerConfig = SIZES["1m"],
    *,
    max_steps: int = 1000,
    envs: int = 4,
    workers: int = 0,
    seed: int = 0,
    weights: str | os.PathLike[str] | None = None,
    resize: int | tuple[int, int] | None = None,
    **settings: Any,
) -> tuple[Agent, AgentParams]:
    """Train DreamerV3 in an environment for `steps` actions; return the agent, as `load(folder)` does.

    The same call goes on where it stopped, and with more `steps` it trains longer. `make_env` makes an environment of
    Gymnasium; the agent acts in `envs.adapted(make_env, resize)`, which brings its actions to what an actor chooses.
    Processes that have met by `training.processes.join` train one agent together, each in its share of environments.

    Args:
      folder: of the run, with its checkpoints, replay and metrics.
      agent: sizes and settings, such as `dreamerv3.SIZES["12m"]`.
      max_steps: of an episode.
      envs: environments that step together, of all processes; each steps its own in so many `workers`, or itself.
      weights: run folder or stored agent whose world model and policy to begin with; the critic begins anew.
      resize: height and width of the pictures that the agent sees, where those of the environment are others.
      settings: of `training.OnlineConfig`, such as `train_ratio=512`.

    Raises: ConfigMismatch if the folder belongs to another configuration; as `VectorEnvironment`, `adapted` and
        `Dreamer.of` do.
    """
    keep_compiled_programs()
    folder = Path(folder)
    online = OnlineConfig(steps, **settings)
    begun = os.fspath(weights) if weights is not None else None
    cfg = RunConfig(agent, online, envs, workers, max_steps, seed, begun, resize)
    own = processes.share(envs, "envs")
    make, first = partial(adapted, make_env, resize), own * jax.process_index()
    environment = VectorEnvironment(make, own, max_steps, workers, first=first)
    try:
        dreamer = Dreamer.of(agent, environment.spec)
        run = RunFolder(processes.own_folder(folder), cfg, MAY_CHANGE)
        begin = agents.load(weights)[1] if weights is not None else None
        train_online(run, dreamer, environment, online, seed, begin)
    finally:
        environment.close()
    return agents.load(folder)
