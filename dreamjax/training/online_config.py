"""How much a run of DreamerV3 collects, keeps and learns."""

import math
from dataclasses import dataclass
from fractions import Fraction

from dreamjax.replay.sequences import ReplayConfig

AT_ONCE = 8  # updates in one call: what it costs the host is shared by them, and a signal waits for two calls


@dataclass(frozen=True)
class OnlineConfig:
    """How much is collected and replayed."""

    steps: int  # actions of all environments together
    batch_size: int = 16
    batch_length: int = 64  # trained steps of a sequence; the context comes on top
    train_ratio: float = 32.0  # replayed steps per collected one, context not counted
    capacity: int = 5_000_000  # steps that are kept
    on_disk: bool = False  # keep them in files, where memory does not hold them
    online: bool = True  # see `ReplayConfig`, as the next two
    prioritized: float = 0.0
    recent: float = 0.0
    checkpoint_every: int = 1000  # updates
    log_every: int = 100
    sharded: bool = False  # split what is trained over the devices, where it is large; otherwise each has all of it

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.batch_length, self.checkpoint_every, self.log_every) < 1:
            raise ValueError(f"every count must be positive, got {self}")
        if self.train_ratio <= 0:
            raise ValueError(f"train_ratio must be positive, got {self.train_ratio}")

    def replay(self, context: int) -> ReplayConfig:
        length = context + self.batch_length
        return ReplayConfig(self.capacity, length, self.online, self.prioritized, self.recent)


def updates_due(cfg: OnlineConfig, length: int, streams: int, steps: int) -> int:
    """Count the updates that are due after `steps` collected steps: none before the replay holds a batch.

    The first update comes as soon as it does, the others at exactly the train ratio from there on.
    """
    before = -(-cfg.batch_size * cfg.batch_length // streams) + length - 1
    since = steps - before * streams
    if since < 0:
        return 0
    return 1 + int(since * Fraction(cfg.train_ratio) / (cfg.batch_size * cfg.batch_length))


def updates_at_once(cfg: OnlineConfig, streams: int, most: int) -> int:
    """Return how many updates one call may make: as a step of all environments asks for, but at most `most`."""
    return min(most, math.ceil(Fraction(cfg.train_ratio) * streams / (cfg.batch_size * cfg.batch_length)))
