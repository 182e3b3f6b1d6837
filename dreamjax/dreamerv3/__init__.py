"""DreamerV3 (Hafner et al. 2023): an RSSM, and actor and critic that learn in its imagination."""

from typing import TYPE_CHECKING

from dreamjax._exports import exports

if TYPE_CHECKING:
    from dreamjax.dreamerv3 import (
        actor_critic as actor_critic,
        codec as codec,
        config as config,
        experience as experience,
        heads as heads,
        imagination as imagination,
        interop as interop,
        learner as learner,
        loop as loop,
        model as model,
        rssm as rssm,
        sweep as sweep,
    )
    from dreamjax.dreamerv3.config import (
        SIZES as SIZES,
        DreamerConfig as DreamerConfig,
        debug as debug,
        scaled as scaled,
        sized as sized,
        tiny as tiny,
    )
    from dreamjax.dreamerv3.learner import (
        Batch as Batch,
        Hyper as Hyper,
        TrainState as TrainState,
        init as init,
        train_step as train_step,
    )
    from dreamjax.dreamerv3.loop import LoopConfig as LoopConfig
    from dreamjax.dreamerv3.model import (
        Dreamer as Dreamer,
        DreamerParams as DreamerParams,
        ModelParams as ModelParams,
        agent as agent,
        agent_params as agent_params,
        make as make,
    )
    from dreamjax.dreamerv3.sweep import Sweep as Sweep

__getattr__, __dir__, __all__ = exports(__name__, __file__)
