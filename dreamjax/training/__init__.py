"""Loops that run for hours: stages of World Models, iterative training, online and offline DreamerV3."""

from typing import TYPE_CHECKING

from dreamjax._exports import exports

if TYPE_CHECKING:
    from dreamjax.training import (
        devices as devices,
        dreamer as dreamer,
        encode as encode,
        experiment as experiment,
        hosted as hosted,
        iterative as iterative,
        jitted as jitted,
        learning as learning,
        loop as loop,
        online as online,
        online_config as online_config,
        plan as plan,
        processes as processes,
        recorded as recorded,
        signals as signals,
        stage_plan as stage_plan,
        stages as stages,
        trace as trace,
        trainer as trainer,
    )
    from dreamjax.training.dreamer import train as train
    from dreamjax.training.iterative import (
        IterativeConfig as IterativeConfig,
        learn_memory as learn_memory,
        train_iteratively as train_iteratively,
    )
    from dreamjax.training.online import train_offline as train_offline, train_online as train_online
    from dreamjax.training.online_config import OnlineConfig as OnlineConfig

__getattr__, __dir__, __all__ = exports(__name__, __file__)
