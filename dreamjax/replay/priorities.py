"""Sampling sequences by the priority of their steps.

Source: Schaul et al. 2016, and the published code of Hafner et al. 2023: a new step has infinite priority, and the
steps of a sampled sequence have none until they are given a new one.
"""

import numpy as np

_AT_ONCE = 2**16  # sequences that are weighed at once, for which the priorities of their steps are copied


class SumTree:
    """N weights, of which one can be changed, or sampled in proportion to its size, in O(log N)."""

    def __init__(self, size: int) -> None:
        """Start with all weights zero."""
        self._leaves = 1 << max(0, size - 1).bit_length()
        self._sums = np.zeros(2 * self._leaves)  # node i has the children 2i and 2i+1; the root is node 1

    @property
    def total(self) -> float:
        return float(self._sums[1])

    def set(self, index: np.ndarray, weight: np.ndarray) -> None:
        """Set weights. Shapes: index [K], all different, weight [K]."""
        nodes = index + self._leaves
        self._sums[nodes] = weight
        while nodes[0] > 1:
            nodes = np.unique(nodes >> 1)
            self._sums[nodes] = self._sums[2 * nodes] + self._sums[2 * nodes + 1]

    def sample(self, rng: np.random.Generator) -> int:
        """Sample an index. The total must not be zero."""
        node, left = 1, rng.random() * self.total
        while node < self._leaves:
            node *= 2
            # Rounding may exceed what is on the right: an index of weight zero is never sampled.
            if left >= self._sums[node] and self._sums[node + 1] > 0:
                left -= self._sums[node]
                node += 1
        return node - self._leaves


class Priorities:
    """Priorities of the kept steps of E streams, and of the sequences of L steps that begin at them.

    The priority of a sequence is a weighted mean of the largest and the average priority of its steps. Sequences of
    infinite priority are sampled before all others, uniformly.
    """

    def __init__(self, streams: int, kept: int, length: int, exponent: float, largest: float) -> None:
        """Start without steps. The last `kept` steps of each stream have priorities."""
        self._length, self._exponent, self._largest = length, exponent, largest
        self._written = 0
        self.steps = np.zeros((streams, kept))  # by time modulo `kept`
        self._finite, self._infinite = SumTree(streams * kept), SumTree(streams * kept)

    def add(self) -> None:
        """Append a step to every stream."""
        streams, kept = self.steps.shape
        slot, self._written = self._written % kept, self._written + 1
        self.steps[:, slot] = np.inf
        # The sequence that began at the overwritten step is gone; and one more sequence is complete.
        every = np.arange(streams)
        for tree in (self._finite, self._infinite):
            tree.set(every * kept + slot, np.zeros(streams))
        self._weigh(every, np.full(streams, self._written - self._length))

    def update(self, stream: np.ndarray, time: np.ndarray, values: np.ndarray) -> None:
        """Set the priorities of steps from `time` on; those no longer kept are skipped. Shapes: [B], [B], [B, T]."""
        if not (values >= 0).all():
            raise ValueError("priorities must be numbers, not negative")
        kept, size = self.steps.shape[1], values.shape[1]
        for one, begin, row in zip(stream, time, values, strict=True):
            times = np.arange(begin, begin + size)
            there = times >= self._written - kept
            self.steps[one, times[there] % kept] = row[there]
        begins = (time[:, None] + np.arange(1 - self._length, size)).ravel()
        self._weigh(np.repeat(stream, self._length - 1 + size), begins)

    def sample(self, rng: np.random.Generator) -> tuple[int, int]:
        """Sample stream and time of a sequence, and set the priorities of its steps to zero."""
        streams, kept = self.steps.shape
        tree = self._infinite if self._infinite.total else self._finite
        oldest = max(0, self._written - kept)
        if tree.total:
            stream, slot = divmod(tree.sample(rng), kept)
            time = oldest + (slot - oldest) % kept
        else:
            stream = int(rng.integers(streams))
            time = int(rng.integers(oldest, self._written - self._length + 1))
        self.update(np.array([stream]), np.array([time]), np.zeros((1, self._length)))
        return stream, time

    def restore(self, steps: np.ndarray, written: int) -> None:
        """Replace all priorities by `steps`, those of an instance that had seen `written` steps of each stream."""
        streams, kept = self.steps.shape
        self._written, self.steps = written, steps
        self._finite, self._infinite = SumTree(streams * kept), SumTree(streams * kept)
        times = np.arange(max(0, written - kept), written)
        for stream in range(streams):
            for begin in range(0, len(times), _AT_ONCE):
                some = times[begin : begin + _AT_ONCE]
                self._weigh(np.full(len(some), stream), some)

    def _weigh(self, stream: np.ndarray, time: np.ndarray) -> None:
        """Update the weights of the complete sequences that begin at these times. Shapes: [K], [K]."""
        kept = self.steps.shape[1]
        complete = (time >= max(0, self._written - kept)) & (time <= self._written - self._length)
        stream, time = stream[complete], time[complete]
        if not len(time):
            return
        inside = self.steps[stream[:, None], (time[:, None] + np.arange(self._length)) % kept] ** self._exponent
        weight = self._largest * inside.max(1) + (1 - self._largest) * inside.mean(1)
        index, first = np.unique(stream * kept + time % kept, return_index=True)
        weight = weight[first]
        self._finite.set(index, np.where(np.isinf(weight), 0.0, weight))
        self._infinite.set(index, np.isinf(weight).astype(float))
