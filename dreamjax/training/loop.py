"""Training that survives being killed: a loop is a generator of states, and whoever reads it logs and saves."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog
from dreamjax.storage.progress import progress
from dreamjax.types import Metrics, PyTree

Loop = Callable[[PyTree, int], Iterator[tuple[PyTree, Metrics]]]  # (state, steps done) -> state, metrics of each step


def updates(
    train_step: Callable[[PyTree, Any], tuple[PyTree, Metrics]], batches: Callable[[int], Iterator[Any]]
) -> Loop:
    """Make the loop that updates a state on one batch after the other.

    `batches(step)` yields the data of update number `step`, from 0, and of those after it.
    """

    def loop(state: PyTree, begin: int) -> Iterator[tuple[PyTree, Metrics]]:
        for batch in batches(begin):
            state, metrics = train_step(state, batch)
            yield state, metrics

    return loop


def generations(step: Callable[[PyTree, int], tuple[PyTree, Metrics]]) -> Loop:
    """Make the loop that carries a search from generation to generation; `step(state, number)` does one, from 0.

    The loop raises FloatingPointError after a generation of which all individuals have failed: see `evolution.tell`.
    """

    def loop(state: PyTree, begin: int) -> Iterator[tuple[PyTree, Metrics]]:
        while True:
            state, metrics = step(state, begin)
            if "fitness_failed" in metrics and not np.isfinite(metrics["fitness_mean"]):
                raise FloatingPointError(
                    f"all {int(metrics['fitness_failed'])} individuals of generation {begin} have failed: none has a "
                    "finite fitness. Look at what they are paid, then start again; the last checkpoint is whole"
                )
            yield state, metrics
            begin += 1

    return loop


def train(
    run: RunFolder,
    log: MetricsLog,
    name: str,
    state: PyTree,
    loop: Loop,
    steps: int,
    *,
    checkpoint_every: int = 500,
    log_every: int = 50,
    show: str = "loss",
) -> PyTree:
    """Read `loop` to step number `steps`, from the newest checkpoint of stage `name` in the run folder if there is one.

    If the loop depends on nothing but the step and the state, the result is the same however often the training was
    interrupted. `show` names the metric beside the progress bar.

    Raises: ValueError if the loop ends before that, FloatingPointError if a metric is not finite.
    """
    checkpoints = Checkpoints(run.path / "checkpoints" / name)
    found = checkpoints.restore(jax.eval_shape(lambda: state))
    begin, state = found if found is not None else (0, state)
    if begin >= steps:
        run.finish_stage(name)  # it may have been killed after its last checkpoint
        return state
    with run.stage(name) as stage, progress(steps, name, initial=begin, unit="step") as bar:
        done = begin
        for now, metrics in loop(state, begin):
            done += 1
            bar.update()
            if done % log_every == 0 or done == steps:
                values = {key: float(value) for key, value in metrics.items()}
                log.write(name, done, values)
                bar.set_postfix({key: f"{values[key] + 0.0:.4g}" for key in [show] if key in values})
            if done % checkpoint_every == 0 or done == steps:
                checkpoints.save(done, now)
                stage.tick()
            if done == steps:
                return now
        raise ValueError(f"the data of stage {name!r} ended before step {done + 1} of {steps}")
