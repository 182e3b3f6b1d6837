"""Training DreamerV3 in environments that are not written in JAX, or from a replay alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dreamjax.dreamerv3 import experience, learner
from dreamjax.dreamerv3.experience import Experience, Latent, Learned
from dreamjax.dreamerv3.learner import TrainState
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.envs.lanes import Lanes
from dreamjax.replay.sequences import Address, ReplayConfig, SequenceReplay
from dreamjax.rollout import AgentState
from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog
from dreamjax.storage.progress import progress
from dreamjax.storage.recordings import fill, open_recording
from dreamjax.storage.replays import ReplayError, ReplayFolder
from dreamjax.training.devices import device_mesh
from dreamjax.types import Step


@dataclass(frozen=True)
class HostConfig:
    """How much is collected and replayed."""

    steps: int  # actions of all environments together
    batch_size: int = 16
    batch_length: int = 64  # trained steps of a sequence; the context comes on top
    train_ratio: float = 32.0  # replayed steps per collected one, context not counted
    capacity: int = 5_000_000  # steps that are kept
    online: bool = True  # see `ReplayConfig`, as the next two
    prioritized: float = 0.0
    recent: float = 0.0
    checkpoint_every: int = 1000  # updates
    log_every: int = 100

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.batch_length, self.checkpoint_every, self.log_every) < 1:
            raise ValueError(f"every count must be positive, got {self}")
        if self.train_ratio <= 0:
            raise ValueError(f"train_ratio must be positive, got {self.train_ratio}")

    def replay(self, context: int) -> ReplayConfig:
        length = context + self.batch_length
        return ReplayConfig(self.capacity, length, self.online, self.prioritized, self.recent)


def updates_due(cfg: HostConfig, length: int, streams: int, steps: int) -> int:
    """Updates that belong to `steps` collected ones: none before the replay holds a batch of sequences, then exact.

    The first update comes with the first step at which it can, the others at the train ratio from there on.
    """
    before = -(-cfg.batch_size * cfg.batch_length // streams) + length - 1
    since = steps - before * streams
    if since < 0:
        return 0
    return 1 + int(since * Fraction(cfg.train_ratio) / (cfg.batch_size * cfg.batch_length))


def train_on_host(
    run: RunFolder, log: MetricsLog, dreamer: Dreamer, lanes: Lanes, cfg: HostConfig, seed: int
) -> TrainState:
    """Bring the agent of a run folder to `cfg.steps` collected steps, from its newest checkpoint if there is one.

    A resumed run has the agent, the replay and the counters it had; its environments begin new episodes. While the
    device updates the agent, the environments step with what the agent was before.
    """
    host = _Host(run, log, dreamer, len(lanes), cfg, seed)
    host.restore()
    if host.steps >= cfg.steps:
        return host.state
    memory = experience.start(dreamer, len(lanes))
    # Episodes of a resumed run are not those that it has already seen. Seeds far above are left to evaluation.
    step = lanes.reset(seed=int(np.random.default_rng([seed, host.steps]).integers(2**30)))
    episodes = _Episodes(log, len(lanes))
    with run.stage("train") as stage, progress(cfg.steps, "train", initial=host.steps, unit="step") as bar:
        while host.steps < cfg.steps:
            memory, latent = host.act(memory, step)
            host.learn(updates_due(cfg, host.replay.cfg.length, len(lanes), host.steps))
            action, latent = jax.device_get((memory.action, latent))
            for total in episodes.see(step, lanes.facts, host.steps):
                bar.set_postfix({"return": f"{total:.4g}", "updates": host.updates})
            host.replay.add(Experience(step, action, latent))
            step = lanes.step(action)
            bar.update(len(lanes))
            if host.updates - host.saved >= cfg.checkpoint_every:
                host.save()
                stage.tick()
        host.learn(updates_due(cfg, host.replay.cfg.length, len(lanes), host.steps))
        host.save()
        stage.tick()
    return host.state


def train_offline(
    run: RunFolder, log: MetricsLog, dreamer: Dreamer, cfg: HostConfig, seed: int, updates: int, recording: Path | None
) -> TrainState:
    """Bring the agent of a run folder to `updates` updates without any environment.

    It goes on with the replay that the folder holds. A folder with none begins with what a recording holds, which may
    be the folder of another run.

    Raises: ReplayError if there is neither, or one is damaged; ValueError if the recording is of other spaces.
    """
    saved = Checkpoints(run.path / "checkpoints").steps()
    if saved:
        streams = ReplayFolder(run.path / "replay").shape(saved[-1])["streams"]
        host = _Host(run, log, dreamer, streams, cfg, seed)
        host.restore()
    elif recording is not None:
        recorded = open_recording(recording)
        host = _Host(run, log, dreamer, recorded.streams, cfg, seed)
        fill(host.replay, recorded)
        host.save()
    else:
        raise ReplayError(f"{run.path} holds no agent with a replay to learn from: name a recording")
    with run.stage("train") as stage, progress(updates, "train", initial=host.updates, unit="update") as bar:
        while host.updates < updates:
            begun = host.updates
            host.learn(min(updates, begun + cfg.log_every))
            bar.update(host.updates - begun)
            if host.updates - host.saved >= cfg.checkpoint_every or host.updates >= updates:
                host.save()
                stage.tick()
    return host.state


class _Host:
    """Agent and replay of a run."""

    def __init__(
        self, run: RunFolder, log: MetricsLog, dreamer: Dreamer, streams: int, cfg: HostConfig, seed: int
    ) -> None:
        self._dreamer, self._cfg, self._seed, self._log = dreamer, cfg, seed, log
        key_init, self._key_act, self._key_learn = jax.random.split(jax.random.key(seed), 3)
        # The batch is split over all devices, if it can be; everything else is the same on each.
        mesh = device_mesh("batch", None if cfg.batch_size % jax.device_count() == 0 else 1)
        self._split = NamedSharding(mesh, PartitionSpec("batch"))
        whole = NamedSharding(mesh, PartitionSpec())
        self.state = jax.jit(learner.init, static_argnums=0, out_shardings=whole)(dreamer, key_init)
        self.replay = SequenceReplay(cfg.replay(dreamer.cfg.context), experience.example(dreamer), streams)
        self._checkpoints = Checkpoints(run.path / "checkpoints")
        self._replays = ReplayFolder(run.path / "replay")
        self.updates = self.saved = 0
        self._written = 0  # steps of each stream that were saved
        self._waiting: tuple[Address, Learned] | None = None

    @property
    def steps(self) -> int:
        return self.replay.written * self.replay.streams

    def act(self, memory: AgentState, step: Step) -> tuple[AgentState, Latent]:
        """Begin to act; nothing is waited for."""
        key = jax.random.fold_in(self._key_act, self.replay.written)
        return experience.act(self._dreamer, self.state.params, key, memory, step)

    def learn(self, until: int) -> None:
        """Begin the updates up to number `until`; the last of them is not waited for."""
        while self.updates < until:
            rng = np.random.default_rng([self._seed, self.updates])
            drawn, address = self.replay.sample(rng, self._cfg.batch_size)
            drawn = jax.device_put(drawn, self._split)
            self.state, learned = experience.learn(self._dreamer, self._key_learn, self.state, drawn)
            self._store()
            self._waiting = address, learned
            self.updates += 1
            if self.updates % self._cfg.log_every == 0:
                self._log.write("learn", self.updates, learned.metrics)

    def _store(self) -> None:
        """Put into the replay what the last but one update has learned. It has ended, so the device has work."""
        if self._waiting is None:
            return
        address, learned = self._waiting
        latent = jax.device_get(learned.latent)
        context = self._dreamer.cfg.context
        self.replay.update(address, context, experience.refreshed(self._dreamer, latent))
        if self.replay.priorities:
            self.replay.prioritize(address, context, np.asarray(learned.priority))
        self._waiting = None

    def save(self) -> None:
        """Write replay and agent; the agent last, because it is what a resumed run looks for."""
        self._store()
        if self.updates > self.saved or self.replay.written > self._written:
            self._replays.save(self.replay, self.updates)
            self._written = self.replay.written
        if self.updates not in self._checkpoints.steps():
            self._checkpoints.save(self.updates, self.state)
        self.saved = self.updates

    def restore(self) -> None:
        """Go on from the newest checkpoint, if there is one. Raises ReplayError if the replay of it is damaged."""
        found = self._checkpoints.restore(self.state)
        if found is None:
            return
        self.updates, self.state = found
        try:
            self._replays.restore(self.replay, self.updates)
        except ReplayError as error:
            folder = self._checkpoints.folder
            raise ReplayError(
                f"{error}. The agent of update {self.updates} is whole: copy the file back, or remove "
                f"{folder / str(self.updates)} to go on from an older one of {self._checkpoints.steps()}."
            ) from error
        self.saved, self._written = self.updates, self.replay.written


class _Episodes:
    """Sums rewards, and writes down the episodes that come to their end."""

    def __init__(self, log: MetricsLog, lanes: int) -> None:
        self._log = log
        self._total, self._length = np.zeros(lanes), np.zeros(lanes, int)

    def see(self, step: Step, facts: dict[int, dict[str, float]], steps: int) -> Iterator[float]:
        """Take in one step of every lane, before which `steps` were collected; yield the returns of what ended.

        What the environments tell about an episode, its `facts`, is written down under "info/".
        """
        self._total = np.where(step.is_first, 0.0, self._total) + step.reward
        self._length = np.where(step.is_first, 0, self._length + 1)
        for lane in np.flatnonzero(step.is_last):
            ended = {"return": self._total[lane], "length": self._length[lane]}
            ended |= {f"info/{name}": number for name, number in facts[int(lane)].items()}
            self._log.write("episode", steps + int(lane), ended)
            yield float(self._total[lane])
