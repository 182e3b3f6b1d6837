"""The agent and the replay of a run: they learn together, and are saved together."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dreamjax.dreamerv3 import experience, learner
from dreamjax.dreamerv3.experience import Latent, Learned
from dreamjax.dreamerv3.learner import TrainState
from dreamjax.dreamerv3.model import Dreamer, DreamerParams
from dreamjax.replay.sequences import Address, SequenceReplay
from dreamjax.rollout import AgentState
from dreamjax.storage import agents
from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.storage.folder import RunFolder, folder_of
from dreamjax.storage.metrics import MetricsLog
from dreamjax.storage.recordings import LATENT, write_spec
from dreamjax.storage.replays import ReplayError, ReplayFolder, mapped, read_share
from dreamjax.storage.transfer import Begin, load_into
from dreamjax.training.devices import (
    from_process_local,
    local_replica,
    own_part,
    replicated,
    sharded,
    split,
    splitting_mesh,
)
from dreamjax.training.loop import finite
from dreamjax.training.online_config import OnlineConfig, updates_due
from dreamjax.training.processes import meet, run_folder
from dreamjax.types import PyTree, Step

STARTS = 64  # first observations that are kept, where the dreams of the trained agent may begin


def learning(mesh: Mesh, places: PyTree) -> Callable[..., tuple[TrainState, Learned]]:
    """Return `experience.learn_several` of batches that are split over a mesh; `places` are the shardings of the state.

    What is learned about each sequence of a batch stays on its device. On one device it is the same function.
    """
    if mesh.size == 1:
        return experience.learn_several
    rows: Any = split(mesh, 1)
    out = (places, Learned(rows, rows, replicated(mesh)))  # type: ignore[arg-type]
    return jax.jit(experience.learn_several, static_argnums=0, donate_argnums=2, out_shardings=out)


class Late(NamedTuple):
    """What an update has learned, but the replay does not hold yet. With several, every array has a leading axis."""

    number: int  # of the update, from 0
    address: Address  # [B]
    latent: Latent  # [B, T, ...]
    priority: np.ndarray  # [B, T] float32


class Training:
    """The agent and the replay of a run, which its folder also describes, so that others can read them.

    Updates are begun up to K in a call, and up to two calls ahead of the device, which never waits for the host. So an
    update cannot read what the one before it has learned: update u is drawn from a replay that holds the latent states
    and priorities of the updates up to u - 2K. This does not depend on how the updates are divided among calls, and
    what is not in the replay yet is saved beside it. So the run is the same however often it was interrupted. Several
    processes train one agent, each with so many `streams` of its own, from which it draws its share of batches.
    """

    def __init__(
        self, run: RunFolder, dreamer: Dreamer, streams: int, cfg: OnlineConfig, seed: int, at_once: int
    ) -> None:
        if at_once < 1:
            raise ValueError(f"at_once must be positive, got {at_once}")
        self.dreamer, self.cfg, self.seed, self.at_once = dreamer, cfg, seed, at_once
        self._key_init, self._key_act, self._key_learn = jax.random.split(jax.random.key(seed), 3)
        # The batch is split over all devices; everything else is the same on each, or split as well to save memory.
        self._mesh = splitting_mesh("batch", cfg.batch_size, "batch_size")
        self._whole: Any = replicated(self._mesh)
        write_spec(run.path, dreamer.spec)
        agents.describe(run.path, dreamer.cfg, dreamer.spec)
        like = jax.eval_shape(partial(learner.init, dreamer), self._key_init)
        self._places: Any = sharded(self._mesh, like) if cfg.sharded else self._whole  # of the state
        self._new = jax.jit(learner.init, static_argnums=0, out_shardings=self._places)
        self.state = self._new(dreamer, self._key_init)
        self._learn = learning(self._mesh, self._places)
        self._gather = jax.jit(lambda params: params, out_shardings=self._whole)
        self._acting: DreamerParams | None = None  # parameters near the environments, until the next update
        self._processes, self._process = jax.process_count(), jax.process_index()
        kept = replace(cfg, capacity=cfg.capacity // self._processes).replay(dreamer.cfg.context)
        allocate = mapped(run.path / "replay") if cfg.on_disk else None
        self.replay = SequenceReplay(kept, experience.example(dreamer), streams, allocate)
        self._checkpoints = Checkpoints(run_folder(run.path) / "checkpoints")
        self._replays = ReplayFolder(run.path / "replay", apart=LATENT)
        self._folder = run.path
        self._starts: deque[PyTree] = deque(maxlen=STARTS)
        self.updates = self.saved = self._written = 0  # the last: steps of each stream that were saved
        self._kept: int | None = None  # update of the newest checkpoint
        self._begun: deque[tuple[list[Address], Learned]] = deque()  # calls under way; the last ends at `updates`
        self._late: deque[Late] = deque()

    def probe(self) -> float:
        """Compile the update and time it, in seconds; the agent begins anew. Raises RuntimeError once there is one."""
        if self.updates or self._kept is not None:
            raise RuntimeError("what the agent has learned would be lost: probe before it learns or is restored")
        shape = self.at_once, self.cfg.batch_size // self._processes, self.replay.cfg.length
        empty = jax.tree.map(lambda x: np.zeros((*shape, *x.shape), x.dtype), experience.example(self.dreamer))
        batches = jax.block_until_ready(from_process_local(empty, split(self._mesh, 1)))
        begun = 0.0
        for _ in range(2):  # the first compiles
            begun = time.monotonic()
            self.state, learned = self._learn(self.dreamer, self._key_learn, self.state, batches, np.int32(1))
            jax.block_until_ready((self.state, learned))
        seconds = time.monotonic() - begun
        del self.state, learned, batches  # two agents may be more than a device holds
        self.state = self._new(self.dreamer, self._key_init)
        return seconds

    def begin_with(self, begin: Begin) -> None:
        """Take over what another agent has learned, if anything is named. Raises: as `transfer.load_into` does."""
        params = load_into(begin, self.state.params)  # the slow critic is a copy, as the state is donated
        self.state = self.state._replace(params=params, slow=jax.tree.map(jnp.array, params.value))

    @property
    def streams(self) -> int:
        """Count the environments, of all processes together."""
        return self.replay.streams * self._processes

    @property
    def steps(self) -> int:
        """Count the steps collected so far, of all environments together."""
        return self.replay.written * self.streams

    @property
    def due(self) -> int:
        """Count the updates that belong to what was collected so far."""
        return updates_due(self.cfg, self.replay.cfg.length, self.streams, self.steps)

    def rewind(self, log: MetricsLog) -> None:
        """Let a log forget what was written after what this goes on from."""
        self._rewind_steps(log)
        log.rewind("learn", self.updates)
        if self._process == 0:  # there may have been more processes than now
            for folder in takewhile(Path.exists, (folder_of(self._folder, i) for i in count(self._processes))):
                with MetricsLog(folder) as former:
                    self._rewind_steps(former)

    def _rewind_steps(self, log: MetricsLog) -> None:
        log.rewind("episode", self.steps - 1)  # the episodes that end with the next steps are numbered from here on
        log.rewind("failures", self.steps)

    def note(self, step: Step) -> None:
        """Keep the observations of the steps that open an episode, the newest of them."""
        for i in np.flatnonzero(step.is_first):
            self._starts.append(jax.tree.map(lambda leaf, i=i: np.array(leaf[i]), step.observation))

    def act(self, memory: AgentState, step: Step) -> tuple[AgentState, Latent]:
        """Begin to act; nothing is waited for."""
        key = jax.random.fold_in(jax.random.fold_in(self._key_act, self.replay.written), self._process)
        if self._acting is None:
            gathered = self._gather(self.state.params) if self.cfg.sharded else self.state.params
            self._acting = local_replica(gathered) if self._mesh.size > 1 else gathered
        return experience.act(self.dreamer, self._acting, key, memory, step)

    def learn(self, until: int) -> dict[int, dict[str, float]]:
        """Begin the updates up to number `until`; the last two calls are not waited for.

        Return the metrics that are due to be logged, by the number of their update: of calls that have ended.

        Raises: FloatingPointError as `finite` does.
        """
        metrics: dict[int, dict[str, float]] = {}
        while self.updates < until:
            while len(self._begun) > 1:
                metrics |= self._end()
            numbers = range(self.updates, min(until, self.updates + self.at_once))
            drawn, addresses = zip(*map(self._draw, numbers), strict=True)
            drawn += drawn[:1] * (self.at_once - len(numbers))  # one program, whatever the count
            batches = from_process_local(jax.tree.map(lambda *leaves: np.stack(leaves), *drawn), split(self._mesh, 1))
            count = np.int32(len(numbers))
            self._acting = None  # the update takes their place
            self.state, learned = self._learn(self.dreamer, self._key_learn, self.state, batches, count)
            self._begun.append((list(addresses), learned))
            self.updates = numbers.stop
        return metrics

    def wait(self) -> dict[int, dict[str, float]]:
        """Wait for all updates that were begun; metrics and errors are as those of `learn`."""
        metrics: dict[int, dict[str, float]] = {}
        while self._begun:
            metrics |= self._end()
        return metrics

    def _draw(self, number: int) -> tuple[PyTree, Address]:
        """Draw the batch of an update, when the replay holds what it should."""
        while self._late and self._late[0].number <= number - 2 * self.at_once:
            self._take_in(self._late.popleft())
        own = self.cfg.batch_size // self._processes
        return self.replay.sample(np.random.default_rng([self.seed, number, self._process]), own)

    def _take_in(self, late: Late) -> None:
        context = self.dreamer.cfg.context
        self.replay.update(late.address, context, experience.refreshed(self.dreamer, late.latent))
        if self.replay.priorities:
            self.replay.prioritize(late.address, context, late.priority)

    def _end(self) -> dict[int, dict[str, float]]:
        """Wait for the oldest call, and look at every update of it."""
        first = self.updates - sum(len(addresses) for addresses, _ in self._begun)
        addresses, learned = self._begun.popleft()
        learned = own_part(learned)
        metrics: dict[int, dict[str, float]] = {}
        for i, address in enumerate(addresses):
            latent, priority, values = jax.tree.map(lambda x, i=i: x[i], learned)
            self._late.append(Late(first + i, address, latent, priority))
            number = first + i + 1
            if number % self.cfg.log_every == 0 or values["skipped"]:
                finished = finite("learn", number, values)
                if self._process == 0:  # it is the same in all
                    metrics[number] = finished
        return metrics

    def save(self) -> None:
        """Write replay and agent; the agent last, because it is what a resumed run looks for. `wait` comes first."""
        if self._begun:
            raise RuntimeError("updates are under way: wait for them before they are saved")
        agents.write_starts(self._folder, self._starts)
        if self.updates > self.saved or self.replay.written > self._written:
            late: Any = [np.stack(leaves) for leaves in zip(*map(jax.tree.leaves, self._late), strict=True)]
            self._replays.save(self.replay, self.updates, late, self._processes)
            self._written = self.replay.written
        meet("the update to be saved", self.updates)  # when every replay is written
        if self._kept != self.updates:
            self._checkpoints.save(self.updates, self.state)
        self.saved = self._kept = self.updates

    def restore(self) -> bool:
        """Go on from the newest checkpoint; False if there is none. Raises ReplayError if its replay is damaged."""
        found = self._checkpoints.restore(self.state, set_aside=True)
        meet("the checkpoint to go on from", -1 if found is None else found[0])
        if found is None:
            return False
        self.updates, self.state = found
        self._kept, self._acting = self.updates, None
        try:
            self._restore_replay()
        except ReplayError as error:
            folder = self._checkpoints.folder
            raise ReplayError(
                f"{error}. The agent of update {self.updates} is whole: copy the file back, or remove "
                f"{folder / str(self.updates)} to go on from an older one of {self._checkpoints.steps()}."
            ) from error
        meet("the steps in their replays", self.replay.written)
        self.saved, self._written = self.updates, self.replay.written
        first = agents.read_starts(self._folder, self.dreamer.spec)
        if first is not None:
            count = len(jax.tree.leaves(first)[0])
            self._starts.extend(jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), first) for i in range(count))
        return True

    def _restore_replay(self) -> None:
        """Take back the replay of this process, or its share of those of more or fewer processes than now."""
        run = run_folder(self._folder)
        saved = ReplayFolder(run / "replay")
        streams = saved.shape(self.updates)["streams"]
        former = saved.parts(self.updates) or self.streams // streams
        if former * streams != self.streams:
            raise ValueError(
                f"the replay in {run} is of {former * streams} environments, and this run has {self.streams}: use as "
                "many, or another folder"
            )
        if former == self._processes:
            for leaves in zip(*self._replays.restore(self.replay, self.updates), strict=True):
                number, stream, time, *latent, priority = leaves
                self._late.append(Late(int(number), Address(stream, time), Latent(*latent), priority))
            return
        parts = [ReplayFolder(folder_of(run, number) / "replay") for number in range(former)]
        first = self.replay.streams * self._process
        # What is late is brought in at once: the processes that had drawn it together are no more.
        for part, late in enumerate(read_share(parts, self.replay, self.updates, first)):
            for _, stream, time, *latent, priority in zip(*late, strict=True):
                stream = stream + self.streams // former * part - first
                mine = (stream >= 0) & (stream < self.replay.streams)
                if mine.any():
                    address, own = Address(stream[mine], time[mine]), Latent(*(x[mine] for x in latent))
                    self._take_in(Late(0, address, own, priority[mine]))
