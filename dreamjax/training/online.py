"""Training DreamerV3 while it acts in host environments, or from a replay alone."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dreamjax.acting.vector import VectorEnvironment
from dreamjax.dreamerv3 import experience, learner
from dreamjax.dreamerv3.experience import Experience, Latent, Learned
from dreamjax.dreamerv3.learner import TrainState
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.replay.sequences import Address, ReplayConfig, SequenceReplay
from dreamjax.rollout import AgentState
from dreamjax.storage import agents
from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog
from dreamjax.storage.progress import progress
from dreamjax.storage.recordings import fill, open_recording, write_spec
from dreamjax.storage.replays import ReplayError, ReplayFolder
from dreamjax.training.devices import device_mesh
from dreamjax.types import AgentParams, Metrics, PyTree, Step

STARTS = 64  # first observations that are kept, where the dreams of the trained agent may begin


@dataclass(frozen=True)
class OnlineConfig:
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


class Progress(NamedTuple):
    """What one step of all environments, or one call to learn offline, came to."""

    steps: int  # collected so far, of all environments together
    updates: int  # so far
    episodes: dict[int, Metrics]  # of the environments whose episode ended: return, length, info/<name>
    metrics: dict[int, Metrics]  # of the updates that are due to be logged, by their number
    failures: int = 0  # environments that raised, died or hung since training began or was resumed


def updates_due(cfg: OnlineConfig, length: int, streams: int, steps: int) -> int:
    """Count the updates that belong to `steps` collected ones: none before the replay holds a batch, then exact.

    The first update comes with the first step at which it can, the others at the train ratio from there on.
    """
    before = -(-cfg.batch_size * cfg.batch_length // streams) + length - 1
    since = steps - before * streams
    if since < 0:
        return 0
    return 1 + int(since * Fraction(cfg.train_ratio) / (cfg.batch_size * cfg.batch_length))


def train_online(
    run: RunFolder,
    dreamer: Dreamer,
    environment: VectorEnvironment,
    cfg: OnlineConfig,
    seed: int,
    begin: AgentParams | None = None,
) -> TrainState:
    """Bring the agent of a run folder to `cfg.steps` collected steps, from its newest checkpoint if there is one.

    A resumed run has the agent, the replay and the counters it had; its environments begin new episodes. A new run
    begins with the world model and the policy of `begin`, if they are given. `metrics.jsonl` has a line for every
    episode, `log_every` updates, and step at which environments failed, whose episodes end there as truncated.

    Raises: ValueError if the weights of `begin` do not fit; ReplayError if the replay of the run is damaged;
        FloatingPointError if a metric is not finite; as `VectorEnvironment.step` does.
    """
    training = Training(run, dreamer, len(environment), cfg, seed)
    if begin is not None:
        training.begin_with(begin)
    training.restore()
    bar = progress(cfg.steps, "train", initial=training.steps, unit="step")
    failures = 0
    with MetricsLog(run.path) as log, run.stage("train") as stage, bar:
        for now in act_and_learn(training, environment):
            for i, episode in now.episodes.items():
                log.write("episode", now.steps - len(environment) + i, episode)
                bar.set_postfix({"return": f"{episode['return']:.4g}", "updates": now.updates})
            for number, metrics in now.metrics.items():
                log.write("learn", number, metrics)
            if now.failures > failures:
                log.write("failures", now.steps, {"environments": now.failures - failures})
                failures = now.failures
            bar.update(now.steps - bar.n)
            if now.updates - training.saved >= cfg.checkpoint_every:
                training.save()
                stage.tick()
        training.save()
    return training.state


def act_and_learn(training: "Training", environment: VectorEnvironment) -> Iterator[Progress]:
    """Act in all environments and learn at the train ratio, to the configured number of steps; yield every step.

    While the device updates the agent, the environments step with what the agent was before.
    """
    cfg, envs, dreamer = training.cfg, len(environment), training.dreamer
    memory = experience.start(dreamer, envs)
    step = environment.reset(seed=(training.seed, training.steps))  # a resumed run sees other episodes than before
    total, length = np.zeros(envs), np.zeros(envs, int)
    while training.steps < cfg.steps:
        memory, latent = training.act(memory, step)
        metrics = training.learn(updates_due(cfg, training.replay.cfg.length, envs, training.steps))
        action, latent = jax.device_get((memory.action, latent))
        total, length = np.where(step.is_first, 0.0, total) + step.reward, np.where(step.is_first, 0, length + 1)
        episodes = {
            int(i): {"return": total[i], "length": length[i]}
            | {f"info/{name}": value for name, value in environment.info.get(int(i), {}).items()}
            for i in np.flatnonzero(step.is_last)
        }
        training.replay.add(Experience(step, action, latent))
        training.note(step)
        step = environment.step(action)
        yield Progress(training.steps, training.updates, episodes, metrics, environment.failures)
    metrics = training.learn(updates_due(cfg, training.replay.cfg.length, envs, training.steps))
    yield Progress(training.steps, training.updates, {}, metrics, environment.failures)


def train_offline(
    run: RunFolder, dreamer: Dreamer, cfg: OnlineConfig, seed: int, updates: int, recording: Path | None = None
) -> TrainState:
    """Bring the agent of a run folder to `updates` updates without any environment.

    It goes on with the replay that the folder holds. A folder with none begins with what a recording holds, which may
    be the folder of another run.

    Raises: ReplayError if there is neither, or one is damaged; ValueError if the recording is of other spaces.
    """
    saved = Checkpoints(run.path / "checkpoints").steps()
    if saved:
        streams = ReplayFolder(run.path / "replay").shape(saved[-1])["streams"]
        training = Training(run, dreamer, streams, cfg, seed)
        training.restore()
    elif recording is not None:
        recorded = open_recording(recording)
        training = Training(run, dreamer, recorded.streams, cfg, seed)
        fill(training.replay, recorded, training.note)
        training.save()
    else:
        raise ReplayError(f"{run.path} holds no agent with a replay to learn from: name a recording")
    bar = progress(updates, "train", initial=training.updates, unit="update")
    with MetricsLog(run.path) as log, run.stage("train") as stage, bar:
        while training.updates < updates:
            for number, metrics in training.learn(min(updates, training.updates + cfg.log_every)).items():
                log.write("learn", number, metrics)
            bar.update(training.updates - bar.n)
            if training.updates - training.saved >= cfg.checkpoint_every or training.updates >= updates:
                training.save()
                stage.tick()
    return training.state


class Training:
    """The agent and the replay of a run, which its folder also describes, so that others can read them."""

    def __init__(self, run: RunFolder, dreamer: Dreamer, streams: int, cfg: OnlineConfig, seed: int) -> None:
        self.dreamer, self.cfg, self.seed = dreamer, cfg, seed
        key_init, self._key_act, self._key_learn = jax.random.split(jax.random.key(seed), 3)
        # The batch is split over all devices, if it can be; everything else is the same on each.
        mesh = device_mesh("batch", None if cfg.batch_size % jax.device_count() == 0 else 1)
        self._split = NamedSharding(mesh, PartitionSpec("batch"))
        whole = NamedSharding(mesh, PartitionSpec())
        write_spec(run.path, dreamer.spec)
        agents.describe(run.path, dreamer.cfg, dreamer.spec)
        self.state = jax.jit(learner.init, static_argnums=0, out_shardings=whole)(dreamer, key_init)
        self.replay = SequenceReplay(cfg.replay(dreamer.cfg.context), experience.example(dreamer), streams)
        self._checkpoints = Checkpoints(run.path / "checkpoints")
        self._replays = ReplayFolder(run.path / "replay")
        self._folder = run.path
        self._starts: deque[PyTree] = deque(maxlen=STARTS)
        self.updates = self.saved = 0
        self._written = 0  # steps of each stream that were saved
        self._waiting: tuple[Address, Learned] | None = None

    def begin_with(self, params: AgentParams) -> None:
        """Take over the world model and the policy of another agent."""
        own = self.state.params._replace(model=params.model, policy=params.policy)
        if jax.tree.map(jnp.shape, own) != jax.tree.map(jnp.shape, self.state.params):
            raise ValueError("these weights are of another size or other spaces than the agent to be trained")
        place = partial(jax.tree.map, lambda new, old: jax.device_put(jnp.array(new, old.dtype), old.sharding))
        self.state = self.state._replace(params=place(own, self.state.params))

    @property
    def steps(self) -> int:
        """Count the steps collected so far, of all environments together."""
        return self.replay.written * self.replay.streams

    def note(self, step: Step) -> None:
        """Keep the observations of the steps that open an episode, the newest of them."""
        for i in np.flatnonzero(step.is_first):
            self._starts.append(jax.tree.map(lambda leaf, i=i: np.array(leaf[i]), step.observation))

    def act(self, memory: AgentState, step: Step) -> tuple[AgentState, Latent]:
        """Begin to act; nothing is waited for."""
        key = jax.random.fold_in(self._key_act, self.replay.written)
        return experience.act(self.dreamer, self.state.params, key, memory, step)

    def learn(self, until: int) -> dict[int, Metrics]:
        """Begin the updates up to number `until`, the last of which is not waited for; return metrics to be logged."""
        metrics = {}
        while self.updates < until:
            rng = np.random.default_rng([self.seed, self.updates])
            drawn, address = self.replay.sample(rng, self.cfg.batch_size)
            drawn = jax.device_put(drawn, self._split)
            self.state, learned = experience.learn(self.dreamer, self._key_learn, self.state, drawn)
            self._store()
            self._waiting = address, learned
            self.updates += 1
            if self.updates % self.cfg.log_every == 0:
                metrics[self.updates] = learned.metrics
        return metrics

    def _store(self) -> None:
        """Put into the replay what the last but one update has learned. It has ended, so the device has work."""
        if self._waiting is None:
            return
        address, learned = self._waiting
        latent = jax.device_get(learned.latent)
        context = self.dreamer.cfg.context
        self.replay.update(address, context, experience.refreshed(self.dreamer, latent))
        if self.replay.priorities:
            self.replay.prioritize(address, context, np.asarray(learned.priority))
        self._waiting = None

    def save(self) -> None:
        """Write replay and agent; the agent last, because it is what a resumed run looks for."""
        self._store()
        agents.write_starts(self._folder, self._starts)
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
        first = agents.read_starts(self._folder, self.dreamer.spec)
        if first is not None:
            count = len(jax.tree.leaves(first)[0])
            self._starts.extend(jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), first) for i in range(count))
