"""Loops that run for hours: stages of World Models, iterative training, online and offline DreamerV3."""

from typing import TYPE_CHECKING

from dreamjax._exports import exports

if TYPE_CHECKING:
    from dreamjax.training import (
        devices as devices,
        dreamer as dreamer,
        encode as encode,
        experiment as experiment,
        iterative as iterative,
        loop as loop,
        online as online,
        recorded as recorded,
        stages as stages,
    )
    from dreamjax.training.dreamer import train as train
    from dreamjax.training.iterative import (
        IterativeConfig as IterativeConfig,
        learn_memory as learn_memory,
        train_iteratively as train_iteratively,
    )
    from dreamjax.training.online import (
        OnlineConfig as OnlineConfig,
        train_offline as train_offline,
        train_online as train_online,
    )

__getattr__, __dir__, __all__ = exports(__name__, __file__)
