"""Sequence replay on the host: sequences of a fixed length from the steps of many environments.

The steps of E streams (environments that step together) are stored side by side in blocks of consecutive steps, each
leaf in its own dtype, in memory unless told otherwise. A sequence is L consecutive steps of one stream and may cross
the end of an episode. Loops that are jitted whole use `dreamjax.replay.ring`.

Source: Hafner et al. 2023, "Experience replay", and its published code: an online queue before uniform sampling.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from dreamjax.replay.priorities import Priorities
from dreamjax.types import PyTree

Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]


class Address(NamedTuple):
    """Where sequences begin. Times count the steps of a stream from the first one ever added."""

    stream: np.ndarray  # [B] int64
    time: np.ndarray  # [B] int64


@dataclass(frozen=True)
class ReplayConfig:
    """How much is kept, and how sequences are sampled."""

    capacity: int = 5_000_000  # steps, of all streams together
    length: int = 65  # L, steps of a sequence
    online: bool = True  # new steps are first sampled once each, in sequences that do not overlap
    prioritized: float = 0.0  # share of the other samples that follow priorities
    recent: float = 0.0  # share of them that prefer recent steps, in proportion to one over their age
    exponent: float = 0.8  # of priorities
    largest: float = 0.5  # weight of the largest priority in that of a sequence; the mean has the rest
    block: int = 1024  # steps of every stream that are allocated, saved and dropped together

    def __post_init__(self) -> None:
        if min(self.capacity, self.length, self.block) < 1:
            raise ValueError(f"capacity, length and block must be positive, got {self}")
        if min(self.prioritized, self.recent) < 0 or self.prioritized + self.recent > 1:
            raise ValueError(f"the shares prioritized and recent, and their sum, must be in [0, 1], got {self}")


class ReplayState(NamedTuple):
    """Everything that a `SequenceReplay` holds."""

    written: int  # steps of each stream so far
    online: list[tuple[int, int]]  # stream and time of the sequences in the online queue, next one first
    blocks: Mapping[int, list[np.ndarray]]  # number -> leaves [E, block, ...]
    priorities: np.ndarray | None  # [E, N] of the steps that are kept, by time modulo N


class SequenceReplay:
    """The last steps of E streams. All randomness comes from the generators that are passed in."""

    def __init__(self, cfg: ReplayConfig, example: PyTree, streams: int, allocate: Allocate | None = None) -> None:
        """Start empty, for steps like `example`: arrays or `jax.ShapeDtypeStruct`s, one step of one stream.

        `allocate(shape, dtype)` makes an array of zeros to keep steps in, which may be a file that is mapped into
        memory; None keeps them in memory.

        Raises: ValueError if a stream's share of the capacity is shorter than a sequence.
        """
        if streams < 1 or cfg.capacity // streams < cfg.length:
            raise ValueError(
                f"{streams} streams cannot share a capacity of {cfg.capacity} steps: each needs the {cfg.length} of a "
                "sequence"
            )
        self.cfg, self.example, self.streams = cfg, example, streams
        leaves, self._structure = jax.tree.flatten(example)
        self.names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(example)]
        self.kinds = [(leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves]
        self.written = 0  # steps of each stream so far
        self.versions: dict[int, list[int]] = {}  # of the leaves of each block; one grows when its leaf is written to
        self.priorities: Priorities | None = None
        self._blocks: dict[int, list[np.ndarray]] = {}  # number -> leaves [E, block, ...]
        self._allocate = allocate
        self._writes = 0
        self._online: deque[tuple[int, int]] = deque()  # (stream, time)
        if cfg.prioritized:
            self.priorities = Priorities(streams, self._kept, cfg.length, cfg.exponent, cfg.largest)
        self._harmonic = np.zeros(0)

    @property
    def _kept(self) -> int:
        return self.cfg.capacity // self.streams

    @property
    def oldest(self) -> int:
        """Time of the first step that is still kept."""
        return max(0, self.written - self._kept)

    @property
    def steps(self) -> int:
        """Number of steps that are kept, of all streams together."""
        return (self.written - self.oldest) * self.streams

    def __len__(self) -> int:
        """Number of different sequences that can be sampled."""
        return max(0, self.written - self.oldest - self.cfg.length + 1) * self.streams

    @property
    def nbytes(self) -> int:
        """Bytes in use, in memory or where `allocate` keeps them."""
        return sum(leaf.nbytes for block in self._blocks.values() for leaf in block)

    @property
    def layout(self) -> dict[str, Any]:
        """Streams, block size, capacity and the arrays of a step, as JSON has them: equal if states are compatible."""
        steps = {name: [list(shape), dtype.name] for name, (shape, dtype) in zip(self.names, self.kinds, strict=True)}
        return {"streams": self.streams, "block": self.cfg.block, "capacity": self.cfg.capacity, "steps": steps}

    def state(self) -> ReplayState:
        """Return what this replay holds. The arrays are not copied: they change with the replay."""
        priorities = self.priorities.steps if self.priorities else None
        return ReplayState(self.written, list(self._online), dict(self._blocks), priorities)

    def restore(self, state: ReplayState) -> None:
        """Replace the contents by the `state` of a replay of the same layout.

        The arrays are taken over, or copied one block after the other to where this replay keeps its own.

        Raises: ValueError if an array of the state has another shape or dtype, or if priorities are missing.
        """
        kinds = [((self.streams, self.cfg.block, *shape), dtype) for shape, dtype in self.kinds]
        blocks: dict[int, list[np.ndarray]] = {}
        for number, leaves in state.blocks.items():
            found = [(leaf.shape, leaf.dtype) for leaf in leaves]
            if found != kinds:
                raise ValueError(f"block {number} of the state holds {found}, this replay {kinds}")
            blocks[number] = leaves
            if self._allocate is not None:
                blocks[number] = [self._allocate(*kind) for kind in kinds]
                for kept, leaf in zip(blocks[number], leaves, strict=True):
                    kept[:] = leaf
        if self.priorities:
            if state.priorities is None:
                raise ValueError("the state has no priorities: set ReplayConfig.prioritized to 0")
            self.priorities.restore(state.priorities, state.written)
        self.written, self._blocks, self._online = state.written, blocks, deque(state.online)
        self.versions = {}
        for number in self._blocks:
            self._mark(number)

    def add(self, step: PyTree) -> None:
        """Append one step of every stream, dropping the oldest if full. Shapes: step [E, ...].

        Raises: ValueError if it differs from the example in structure, shape or kind of number.
        """
        leaves = self._checked(step, (self.streams,), "a step")
        number, row = divmod(self.written, self.cfg.block)
        if number not in self._blocks:
            allocate, shape = self._allocate or np.zeros, (self.streams, self.cfg.block)
            self._blocks[number] = [allocate((*shape, *kind), dtype) for kind, dtype in self.kinds]
        for stored, leaf in zip(self._blocks[number], leaves, strict=True):
            stored[:, row] = leaf
        self._mark(number)
        self.written += 1
        gone = self.oldest // self.cfg.block - 1  # the only one of which a step less may have been the last
        if gone in self._blocks:
            del self._blocks[gone]
            del self.versions[gone]
        begin = self.written - self.cfg.length
        if self.cfg.online and begin >= 1 and (begin - 1) % self.cfg.length == 0:  # step 0 is skipped, as published
            self._online.extend((stream, begin) for stream in range(self.streams))
        if self.priorities:
            self.priorities.add()

    def sample(self, rng: np.random.Generator, batch: int) -> tuple[PyTree, Address]:
        """Sample sequences. Shapes: -> steps [B, L, ...], where they begin. Raises ValueError if there is none yet."""
        if not len(self):
            raise ValueError(
                f"the replay holds {self.written} steps of each stream, a sequence has {self.cfg.length}: add more"
            )
        address = self._choose(rng, batch)
        return self.read(address, self.cfg.length), address

    def read(self, address: Address, length: int) -> PyTree:
        """Copy consecutive steps, which must still be kept. Shapes: -> steps [B, `length`, ...]."""
        read = [np.empty((len(address.time), length, *kind), dtype) for kind, dtype in self.kinds]
        for i, (stream, time) in enumerate(zip(*address, strict=True)):
            for number, there, here in self._parts(int(time), length):
                for out, stored in zip(read, self._blocks[number], strict=True):
                    out[i, here] = stored[stream, there]
        return jax.tree.unflatten(self._structure, read)

    def update(self, address: Address, offset: int, values: PyTree) -> None:
        """Overwrite some leaves of stored steps, beginning `offset` steps after the addresses.

        Steps of a block that was dropped are skipped. `values` has the structure of the example, with None for leaves
        that stay as they are. Shapes: values [B, T, ...].
        """
        leaves = jax.tree.leaves(values, is_leaf=lambda x: x is None)
        if len(leaves) != len(self.kinds):
            raise ValueError(f"values must have the structure {self._structure}, with None for what stays")
        length = next(len(leaf[0]) for leaf in leaves if leaf is not None)
        for i, (stream, time) in enumerate(zip(*address, strict=True)):
            for number, there, here in self._parts(int(time) + offset, length):
                if number not in self._blocks:
                    continue
                self._mark(number, [leaf is not None for leaf in leaves])
                for stored, leaf in zip(self._blocks[number], leaves, strict=True):
                    if leaf is not None:
                        stored[stream, there] = leaf[i, here]

    def prioritize(self, address: Address, offset: int, values: np.ndarray) -> None:
        """Set the priorities of steps, beginning `offset` steps after the addresses. Shapes: values [B, T]."""
        if not self.priorities:
            raise ValueError("this replay has no priorities: set ReplayConfig.prioritized above 0")
        self.priorities.update(address.stream, address.time + offset, values)

    def _mark(self, number: int, written: Sequence[bool] | None = None) -> None:
        """Note that leaves of a block were written to; None means all of them."""
        self._writes += 1
        before = self.versions.get(number, [0] * len(self.kinds))
        which = written or [True] * len(self.kinds)
        self.versions[number] = [self._writes if new else old for new, old in zip(which, before, strict=True)]

    def _choose(self, rng: np.random.Generator, batch: int) -> Address:
        chosen: list[tuple[int, int]] = []
        while self._online and len(chosen) < batch:
            stream, time = self._online.popleft()
            if time >= self.oldest:
                chosen.append((stream, time))
        kinds = rng.random(batch - len(chosen))
        newest = self.written - self.cfg.length
        for kind in kinds:
            if self.priorities and kind < self.cfg.prioritized:
                chosen.append(self.priorities.sample(rng))
            elif kind < self.cfg.prioritized + self.cfg.recent:
                age = self._recent(rng)
                chosen.append((age % self.streams, newest - age // self.streams))
            else:
                chosen.append((int(rng.integers(self.streams)), int(rng.integers(self.oldest, newest + 1))))
        stream, time = np.array(chosen, np.int64).T
        return Address(stream, time)

    def _recent(self, rng: np.random.Generator) -> int:
        """Sample an age in sequences, from 0 on, with a probability in proportion to 1 / (1 + age)."""
        if len(self._harmonic) < len(self):
            self._harmonic = np.cumsum(1.0 / np.arange(1, 2 * len(self) + 1))
        sums = self._harmonic[: len(self)]
        return min(int(np.searchsorted(sums, rng.random() * sums[-1], side="right")), len(self) - 1)

    def _parts(self, time: int, length: int) -> Iterator[tuple[int, slice, slice]]:
        """Yield the blocks that hold some consecutive steps, with the rows in each block and in the sequence."""
        done = 0
        while done < length:
            number, row = divmod(time + done, self.cfg.block)
            size = min(length - done, self.cfg.block - row)
            yield number, slice(row, row + size), slice(done, done + size)
            done += size

    def _checked(self, tree: PyTree, lead: tuple[int, ...], what: str) -> list[np.ndarray]:
        structure: Any = jax.tree.structure(tree)
        if structure != self._structure:
            raise ValueError(f"{what} must have the structure {self._structure}, got {structure}")
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
        for name, leaf, (shape, dtype) in zip(self.names, leaves, self.kinds, strict=True):
            if leaf.shape != (*lead, *shape) or not np.can_cast(leaf.dtype, dtype, "same_kind"):
                raise ValueError(
                    f"{what}{name} must be {dtype} of shape {(*lead, *shape)}, got {leaf.dtype} of {leaf.shape}"
                )
        return leaves
