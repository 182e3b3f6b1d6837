"""Agents in host environments: one pool of workers for collecting, evaluating, populations and training."""

from typing import TYPE_CHECKING

from dreamjax._exports import exports

if TYPE_CHECKING:
    from dreamjax.acting import (
        cluster as cluster,
        collection as collection,
        evaluation as evaluation,
        playing as playing,
        pool as pool,
        random_play as random_play,
        seeds as seeds,
        vector as vector,
        worker as worker,
    )
    from dreamjax.acting.collection import CollectConfig as CollectConfig, collect as collect
    from dreamjax.acting.evaluation import evaluate as evaluate, play_all as play_all, record_episode as record_episode
    from dreamjax.acting.playing import (
        Played as Played,
        Request as Request,
        evaluate_population as evaluate_population,
        play as play,
    )
    from dreamjax.acting.pool import Pool as Pool
    from dreamjax.acting.random_play import random_agent as random_agent
    from dreamjax.acting.vector import VectorEnvironment as VectorEnvironment

__getattr__, __dir__, __all__ = exports(__name__, __file__)
