"""Stages that the experiments of *World Models* have in common: resumable, and done once."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np

from dreamjax.evolution import EvolutionState
from dreamjax.storage import episodes
from dreamjax.storage.episodes import Store
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog
from dreamjax.storage.progress import progress
from dreamjax.training.loop import train
from dreamjax.types import Key, Metrics, Params
from dreamjax.worldmodels import learner
from dreamjax.worldmodels.learner import OptimizerConfig
from dreamjax.worldmodels.vision import VisionConfig


def collect_stage(run: RunFolder, count: int, fill: Callable[..., Store]) -> Store:
    """Let `fill` bring `count` episodes into `episodes/` of the run folder, unless that is done; open them.

    `fill(folder, episodes=count, progress=...)` is a partial of `run.collect.collect`.
    """
    folder = run.path / "episodes"
    if run.stage_done("collect"):
        return episodes.open_store(folder).head(count)  # a killed collection may have left more
    with run.stage("collect") as stage, progress(count, "collect", unit="episode") as bar:

        def report(kept: int, made: int) -> None:
            bar.update(kept - bar.n)
            if made % 100 == 0:
                stage.tick()

        store = fill(folder, episodes=count, progress=report)
        run.finish_stage("collect", {"episodes": len(store), "frames": store.frames})
    return store


def vision_stage(
    run: RunFolder,
    log: MetricsLog,
    key: Key,
    model: tuple[VisionConfig, OptimizerConfig],
    batches: Callable[[int], Iterator[np.ndarray]],
    updates: int,
    checkpoint_every: int = 500,
) -> Params:
    """Train V; `batches(step)` yields the frames of update `step` and of those after it."""
    key_init, key_train = jax.random.split(key)
    state = learner.vision_init(*model, key_init)
    update = partial(learner.vision_step, *model, key_train)
    return train(run, log, "vision", state, update, batches, updates, checkpoint_every=checkpoint_every).params


def search_stage(
    run: RunFolder,
    log: MetricsLog,
    name: str,
    state: EvolutionState,
    generation: Callable[[EvolutionState, int], tuple[EvolutionState, Metrics]],
    generations: int,
    checkpoint_every: int = 5,
) -> EvolutionState:
    """Bring a search to `generations`; `generation(state, number)` does the one of that number, from 0."""
    numbers = lambda first: iter(range(first, generations))  # noqa: E731
    settings = {"checkpoint_every": checkpoint_every, "log_every": 1}
    return train(run, log, name, state, generation, numbers, generations, **settings)
