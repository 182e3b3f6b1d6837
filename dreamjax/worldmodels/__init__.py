"""World Models (Ha & Schmidhuber 2018): V sees, M remembers and predicts, C acts."""

from typing import TYPE_CHECKING

from dreamjax._exports import exports

if TYPE_CHECKING:
    from dreamjax.worldmodels import (
        controller as controller,
        curiosity as curiosity,
        interop as interop,
        learner as learner,
        memory as memory,
        model as model,
        search as search,
        vision as vision,
    )
    from dreamjax.worldmodels.controller import ControllerConfig as ControllerConfig
    from dreamjax.worldmodels.learner import (
        MemoryLearner as MemoryLearner,
        TrainState as TrainState,
        VisionLearner as VisionLearner,
        init as init,
        train_step as train_step,
    )
    from dreamjax.worldmodels.memory import MemoryConfig as MemoryConfig
    from dreamjax.worldmodels.model import (
        CAR_RACING as CAR_RACING,
        DOOM as DOOM,
        WorldModelConfig as WorldModelConfig,
        WorldModelParams as WorldModelParams,
        make as make,
    )
    from dreamjax.worldmodels.search import generation as generation, score as score
    from dreamjax.worldmodels.vision import VisionConfig as VisionConfig

__getattr__, __dir__, __all__ = exports(__name__, __file__)
