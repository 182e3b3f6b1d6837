"""Sequence replay in host memory: what many environments do, to be learned from in pieces of one length.

E streams (environments that step together) are stored side by side, in blocks of consecutive steps with their own
dtypes. A sequence is L consecutive steps of one stream and may run across the end of an episode. The replay of loops
that are jitted whole is `dreamjax.replay.ring`.

Source: Hafner et al. 2023, "Experience replay", and its published code: an online queue before uniform sampling.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from dreamjax.replay.priorities import Priorities
from dreamjax.types import PyTree


class Address(NamedTuple):
    """Where sequences begin. Times count the steps of a stream from the first one ever added."""

    stream: np.ndarray  # [B] int64
    time: np.ndarray  # [B] int64


@dataclass(frozen=True)
class ReplayConfig:
    """How much is kept, and what is drawn."""

    capacity: int = 5_000_000  # steps, of all streams together
    length: int = 65  # L, steps of a sequence
    online: bool = True  # every step is first drawn once, soon, in sequences that do not overlap
    prioritized: float = 0.0  # share of the other draws that follow priorities
    recent: float = 0.0  # share of those that prefer recent steps, as one over their age
    exponent: float = 0.8  # of priorities
    largest: float = 0.5  # share of the largest priority in that of a sequence; the rest is the mean's
    block: int = 1024  # steps of every stream that are stored, saved and dropped together

    def __post_init__(self) -> None:
        if min(self.capacity, self.length, self.block) < 1:
            raise ValueError(f"capacity, length and block must be positive, got {self}")
        if min(self.prioritized, self.recent) < 0 or self.prioritized + self.recent > 1:
            raise ValueError(f"the shares prioritized and recent must be in [0, 1], together too, got {self}")


class SequenceReplay:
    """The last steps of E streams. Everything random is drawn from generators that are passed in."""

    def __init__(self, cfg: ReplayConfig, example: PyTree, streams: int) -> None:
        """Start empty, for steps like `example`: arrays or `jax.ShapeDtypeStruct`s, one step of one stream.

        Raises: ValueError if a stream's share of the capacity is shorter than a sequence.
        """
        if streams < 1 or cfg.capacity // streams < cfg.length:
            raise ValueError(
                f"{streams} streams cannot share a capacity of {cfg.capacity} steps: each needs the {cfg.length} of a "
                "sequence"
            )
        self.cfg, self.streams = cfg, streams
        leaves, self._structure = jax.tree.flatten(example)
        self.names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(example)]
        self.kinds = [(leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves]
        self.written = 0  # steps of each stream so far
        self.blocks: dict[int, list[np.ndarray]] = {}  # number -> leaves [E, block, ...]
        self.changed: set[int] = set()  # numbers of blocks that were written to; who saves them takes them out
        self.fresh: deque[tuple[int, int]] = deque()  # the online queue, (stream, time)
        self.priorities: Priorities | None = None
        if cfg.prioritized:
            self.priorities = Priorities(streams, self._kept, cfg.length, cfg.exponent, cfg.largest)
        self._harmonic = np.zeros(0)

    @property
    def _kept(self) -> int:
        return self.cfg.capacity // self.streams

    @property
    def oldest(self) -> int:
        """Time of the first step that is still there."""
        return max(0, self.written - self._kept)

    @property
    def steps(self) -> int:
        """Steps that are kept."""
        return (self.written - self.oldest) * self.streams

    def __len__(self) -> int:
        """Sequences that can be drawn."""
        return max(0, self.written - self.oldest - self.cfg.length + 1) * self.streams

    @property
    def nbytes(self) -> int:
        """Memory that is held."""
        return sum(leaf.nbytes for block in self.blocks.values() for leaf in block)

    def add(self, step: PyTree) -> None:
        """Write one step of every stream, the oldest giving way. Shapes: step [E, ...].

        Raises: ValueError if it is not like the example in structure, shape or kind of number.
        """
        leaves = self._checked(step, (self.streams,), "a step")
        number, row = divmod(self.written, self.cfg.block)
        if number not in self.blocks:
            shape = (self.streams, self.cfg.block)
            self.blocks[number] = [np.zeros((*shape, *kind), dtype) for kind, dtype in self.kinds]
        for stored, leaf in zip(self.blocks[number], leaves, strict=True):
            stored[:, row] = leaf
        self.changed.add(number)
        self.written += 1
        for gone in [old for old in self.blocks if (old + 1) * self.cfg.block <= self.oldest]:
            del self.blocks[gone]
            self.changed.discard(gone)
        begin = self.written - self.cfg.length
        if self.cfg.online and begin >= 1 and (begin - 1) % self.cfg.length == 0:  # step 0 is skipped, as published
            self.fresh.extend((stream, begin) for stream in range(self.streams))
        if self.priorities:
            self.priorities.add()

    def sample(self, rng: np.random.Generator, batch: int) -> tuple[PyTree, Address]:
        """Draw sequences. Shapes: -> steps [B, L, ...], where they begin. Raises ValueError if there is none yet."""
        if not len(self):
            raise ValueError(
                f"the replay holds {self.written} steps of each stream, a sequence takes {self.cfg.length}: add more"
            )
        address = self._choose(rng, batch)
        return self.read(address, self.cfg.length), address

    def read(self, address: Address, length: int) -> PyTree:
        """Copy consecutive steps that are still there. Shapes: -> steps [B, `length`, ...]."""
        read = [np.empty((len(address.time), length, *kind), dtype) for kind, dtype in self.kinds]
        for i, (stream, time) in enumerate(zip(*address, strict=True)):
            for number, there, here in self._parts(int(time), length):
                for out, stored in zip(read, self.blocks[number], strict=True):
                    out[i, here] = stored[stream, there]
        return jax.tree.unflatten(self._structure, read)

    def update(self, address: Address, offset: int, values: PyTree) -> None:
        """Write values over a part of what is stored, from `offset` steps behind the addresses on.

        Steps that are gone by now are left out. `values` has the structure of the example, with None for what stays.
        Shapes: values [B, T, ...].
        """
        leaves = jax.tree.leaves(values, is_leaf=lambda x: x is None)
        if len(leaves) != len(self.kinds):
            raise ValueError(f"values must have the structure {self._structure}, with None for what stays")
        length = next(len(leaf[0]) for leaf in leaves if leaf is not None)
        for i, (stream, time) in enumerate(zip(*address, strict=True)):
            for number, there, here in self._parts(int(time) + offset, length):
                if number not in self.blocks:
                    continue
                self.changed.add(number)
                for stored, leaf in zip(self.blocks[number], leaves, strict=True):
                    if leaf is not None:
                        stored[stream, there] = leaf[i, here]

    def prioritize(self, address: Address, offset: int, values: np.ndarray) -> None:
        """Give the steps from `offset` behind the addresses on their priorities. Shapes: values [B, T]."""
        if not self.priorities:
            raise ValueError("this replay draws nothing by priority: set ReplayConfig.prioritized above 0")
        self.priorities.update(address.stream, address.time + offset, values)

    def _choose(self, rng: np.random.Generator, batch: int) -> Address:
        chosen: list[tuple[int, int]] = []
        while self.fresh and len(chosen) < batch:
            stream, time = self.fresh.popleft()
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
        """Draw how many sequences came after one, with probability one over that number and one more."""
        if len(self._harmonic) < len(self):
            self._harmonic = np.cumsum(1.0 / np.arange(1, 2 * len(self) + 1))
        sums = self._harmonic[: len(self)]
        return min(int(np.searchsorted(sums, rng.random() * sums[-1], side="right")), len(self) - 1)

    def _parts(self, time: int, length: int) -> Iterator[tuple[int, slice, slice]]:
        """Yield the blocks under some consecutive steps, with the rows in each and in the sequence."""
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
