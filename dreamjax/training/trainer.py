"""The agent and the replay of a run: they learn together, and are saved together."""

from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dreamjax.dreamerv3 import experience, learner
from dreamjax.dreamerv3.experience import Latent, Learned
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.replay.sequences import Address, ReplayConfig, SequenceReplay
from dreamjax.rollout import AgentState
from dreamjax.storage import agents
from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog
from dreamjax.storage.recordings import write_spec
from dreamjax.storage.replays import ReplayError, ReplayFolder
from dreamjax.training.devices import splitting_mesh
from dreamjax.training.loop import finite
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


def updates_due(cfg: OnlineConfig, length: int, streams: int, steps: int) -> int:
    """Count the updates that belong to `steps` collected ones: none before the replay holds a batch, then exact.

    The first update comes with the first step at which it can, the others at the train ratio from there on.
    """
    before = -(-cfg.batch_size * cfg.batch_length // streams) + length - 1
    since = steps - before * streams
    if since < 0:
        return 0
    return 1 + int(since * Fraction(cfg.train_ratio) / (cfg.batch_size * cfg.batch_length))


class Training:
    """The agent and the replay of a run, which its folder also describes, so that others can read them."""

    def __init__(self, run: RunFolder, dreamer: Dreamer, streams: int, cfg: OnlineConfig, seed: int) -> None:
        self.dreamer, self.cfg, self.seed = dreamer, cfg, seed
        key_init, self._key_act, self._key_learn = jax.random.split(jax.random.key(seed), 3)
        # The batch is split over all devices; everything else is the same on each.
        mesh = splitting_mesh("batch", cfg.batch_size, "batch_size")
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

    @property
    def due(self) -> int:
        """Count the updates that belong to what was collected so far."""
        return updates_due(self.cfg, self.replay.cfg.length, self.replay.streams, self.steps)

    def rewind(self, log: MetricsLog) -> None:
        """Let a log forget what was written after what this goes on from."""
        log.rewind("episode", self.steps - 1)  # the episodes that end with the next steps are numbered from here on
        log.rewind("failures", self.steps)
        log.rewind("learn", self.updates)

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
        latent, skipped = jax.device_get((learned.latent, learned.metrics["skipped"]))
        if skipped:
            finite("learn", self.updates, learned.metrics)
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
