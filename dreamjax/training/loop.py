"""Training that survives being killed: a loop is a generator of states, and whoever reads it logs and saves."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog
from dreamjax.storage.progress import progress
from dreamjax.training.processes import asked_to_stop, label, meet, run_folder
from dreamjax.training.signals import stop_request
from dreamjax.training.trace import tracing
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


def _like(leaf: Any) -> jax.ShapeDtypeStruct:
    """Describe a part of a state, and where it is if that was chosen, so that what is read goes there."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    like = jax.eval_shape(lambda: leaf)
    if isinstance(leaf, jax.Array) and leaf.committed:
        return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=leaf.sharding)
    return like


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
    unit: str = "step",
    is_all: bool = True,
) -> PyTree:
    """Read `loop` to step number `steps`, from the newest checkpoint of stage `name` in the run folder if there is one.

    If the loop depends on nothing but the step and the state, the result is the same however often the training was
    interrupted. A state too large to be there twice may be given as shapes (see `jax.eval_shape`), for the loop to make
    at step 0. `show` names the metric beside the progress bar, `unit` what it counts. What is saved is finite: metrics
    are looked at before. Several processes call it together, with a run folder each: see `training.processes`.

    Raises: ValueError if the loop ends before that, or the stage is beyond it already and it `is_all` of the
        stage, not a part; FloatingPointError as `finite` does, `Stopped` after a signal, when a step is saved.
    """
    checkpoints = Checkpoints(run_folder(run.path) / "checkpoints" / name)
    found = checkpoints.restore(jax.tree.map(_like, state), set_aside=True)
    begin, state = found if found is not None else (0, state)
    refuse_beyond(run, begin if is_all else 0, steps, f"{unit}s of {name}")
    meet(f"the step of stage {name!r} to go on from", begin)
    log.rewind(name, begin)
    if begin >= steps:
        run.finish_stage(name)  # it may have been killed after its last checkpoint
        return state
    bar = progress(steps, label(name), initial=begin, unit=unit, waits="compiling")
    with stop_request() as stop, tracing(run, name) as trace, run.stage(name) as stage, bar:
        done = begin
        trace.at(done, state)
        for now, metrics in loop(state, begin):
            done += 1
            trace.at(done, now)
            bar.update()
            is_logged = done % log_every == 0 or done == steps
            # Asked once, so that nothing is left unsaved by a signal that comes in between; and where other processes
            # are asked as well, not at every step, as that is to wait for it.
            stopping = (is_logged or jax.process_count() == 1) and asked_to_stop(stop)
            is_saved = done % checkpoint_every == 0 or done == steps or stopping
            values = finite(name, done, metrics) if is_logged or is_saved else {}
            if is_logged:
                log.write(name, done, values)
                bar.set_postfix({key: f"{values[key] + 0.0:.4g}" for key in [show] if key in values})
            if is_saved:
                checkpoints.save(done, now)
                stage.tick()
            if done == steps:
                return now
            if stopping:
                stop.leave(
                    f"{name} is saved at step {done} of {steps}; started again, it goes on from there: {run.path}"
                )
        raise ValueError(f"the data of stage {name!r} ended before step {done + 1} of {steps}")


def refuse_beyond(run: RunFolder, done: int, wanted: int, what: str) -> None:
    """Raise ValueError if a run has done more than is wanted of it: its result would be filed as that of less."""
    if done > wanted:
        raise ValueError(
            f"{run.path} has {done} {what} already, more than the {wanted} that were asked for: ask for as many or "
            "more, or use another folder"
        )


def finite(name: str, step: int, metrics: Metrics) -> dict[str, float]:
    """Wait for the metrics of a step, and return them as numbers, but for `skipped`.

    Raises: FloatingPointError if one of them is not finite, or `skipped` counts an update that was left out because its
        loss or gradient was not.
    """
    values = {key: float(value) for key, value in metrics.items()}
    skipped = values.pop("skipped", 0.0)
    broken = ", ".join(f"{key} = {value}" for key, value in values.items() if not math.isfinite(value))
    if skipped or broken:
        place = f"step {step} of stage {name!r}"
        what = f"{place} was not finite: {broken}" if broken else f"an update before {place} was not finite"
        raise FloatingPointError(
            f"{what}. Nothing of it was kept or saved; the checkpoint before it stays, and training goes on from there "
            "if it is started again. Look for observations and rewards that are huge, or lower the learning rate"
        )
    return values
