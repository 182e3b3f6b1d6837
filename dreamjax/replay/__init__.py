"""Experience to learn from: sequences in host memory or in a ring on the device, and encoded episodes."""

from typing import TYPE_CHECKING

from dreamjax._exports import exports

if TYPE_CHECKING:
    from dreamjax.replay import latents as latents, priorities as priorities, ring as ring, sequences as sequences
    from dreamjax.replay.latents import (
        Chunk as Chunk,
        Latents as Latents,
        Recorded as Recorded,
        chunks as chunks,
        end_to_end as end_to_end,
    )
    from dreamjax.replay.ring import Ring as Ring
    from dreamjax.replay.sequences import ReplayConfig as ReplayConfig, SequenceReplay as SequenceReplay

__getattr__, __dir__, __all__ = exports(__name__, __file__)
