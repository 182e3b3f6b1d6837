"""DreamerV3 on an environment of one's own, in one call."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from dreamjax.storage.transfer import Begin
from dreamjax.training import processes
from dreamjax.training.devices import keep_compiled_programs
from dreamjax.training.online import train_online
from dreamjax.training.online_config import OnlineConfig
from dreamjax.types import Agent, AgentParams

FREE = ("online.steps", "online.checkpoint_every", "online.log_every", "online.on_disk", "online.sharded", "workers")
MAY_CHANGE = dict.fromkeys(FREE, Change())
BEGINS = ("online.capacity", "begin.weights", "begin.take", "begin.leave")
MAY_CHANGE |= dict.fromkeys(BEGINS, Change(before=("train",)))


@dataclass(frozen=True)
class RunConfig:
    """What a run of `train` is, apart from its environment."""

    agent: DreamerConfig
    online: OnlineConfig
    envs: int
    workers: int
    max_steps: int
    seed: int
    begin: Begin = Begin()
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
    take: Sequence[str] = ("*",),
    leave: Sequence[str] = (),
    resize: int | tuple[int, int] | None = None,
    **settings: Any,
) -> tuple[Agent, AgentParams]:
    """Train DreamerV3 in an environment for `steps` actions; return the agent, as `load(folder)` does.

    The same call goes on where it stopped, and with more `steps` it trains longer. `make_env` makes an environment of
    Gymnasium; the agent acts in `envs.adapted(make_env, resize)`, which turns its actions into those an actor chooses.
    Processes that have met by `training.processes.join` train one agent together, each in its share of environments.

    Args:
      folder: of the run, with its checkpoints, replay and metrics.
      agent: sizes and settings, such as `dreamerv3.SIZES["12m"]`.
      max_steps: of an episode.
      envs: environments that step together, of all processes; each steps its own in so many `workers`, or itself.
      weights: run folder or stored agent whose world model, policy and, if it is there, critic to begin with.
      take: names or patterns of what is taken from there, such as "model/*".
      leave: of what begins anew in spite of that, for example because it has to do with other actions.
      resize: height and width of the pictures that the agent sees, where those of the environment are others.
      settings: of `training.OnlineConfig`, such as `train_ratio=512`.

    Raises: ConfigMismatch if the folder belongs to another configuration; ValueError with the list of what does not fit
        of the weights; as `VectorEnvironment`, `adapted` and `Dreamer.of` do.
    """
    keep_compiled_programs()
    folder = Path(folder)
    online = OnlineConfig(steps, **settings)
    begin = Begin(Path(weights) if weights is not None else None, tuple(take), tuple(leave))
    cfg = RunConfig(agent, online, envs, workers, max_steps, seed, begin, resize)
    own = processes.share(envs, "envs")
    make, first = partial(adapted, make_env, resize), own * jax.process_index()
    environment = VectorEnvironment(make, own, max_steps, workers, first=first)
    try:
        dreamer = Dreamer.of(agent, environment.spec)
        run = RunFolder(processes.own_folder(folder), cfg, MAY_CHANGE)
        train_online(run, dreamer, environment, online, seed, begin)
    finally:
        environment.close()
    return agents.load(folder)
