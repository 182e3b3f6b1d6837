"""The host loop of a training that survives being killed."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog
from dreamjax.storage.progress import progress
from dreamjax.types import Metrics, PyTree


def train(
    run: RunFolder,
    log: MetricsLog,
    name: str,
    state: PyTree,
    update: Callable[[PyTree, Any], tuple[PyTree, Metrics]],
    batches: Callable[[int], Iterator[Any]],
    updates: int,
    *,
    checkpoint_every: int = 500,
    log_every: int = 50,
) -> PyTree:
    """Bring `state` to `updates` updates, from the newest checkpoint of stage `name` in the run folder if there is one.

    `batches(step)` yields the data of update `step` and of those after it. If it and `update` depend on nothing but the
    step and the state, the result is the same however often the training was interrupted.

    Raises: ValueError if the data end before the updates do.
    """
    checkpoints = Checkpoints(run.path / "checkpoints" / name)
    found = checkpoints.restore(jax.eval_shape(lambda: state))
    begin = 0
    if found is not None:
        begin, state = found
    if begin >= updates:
        run.finish_stage(name)  # it may have been killed after its last checkpoint
        return state
    with run.stage(name) as stage, progress(updates, name, initial=begin, unit="update") as bar:
        data = batches(begin)
        for step in range(begin, updates):
            try:
                batch = next(data)
            except StopIteration:
                raise ValueError(f"the data of stage {name!r} ended before update {step + 1} of {updates}") from None
            state, metrics = update(state, batch)
            done = step + 1
            bar.update()
            if done % log_every == 0 or done == updates:
                shown = {key: float(value) for key, value in metrics.items()}
                log.write(name, done, shown)
                first = next(iter(shown))
                bar.set_postfix({first: f"{shown[first]:.4g}"})
            if done % checkpoint_every == 0 or done == updates:
                checkpoints.save(done, state)
                stage.tick()
    return state
