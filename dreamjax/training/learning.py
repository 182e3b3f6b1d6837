"""V and M learn on all devices: each takes an equal share of every batch, and all come to the same parameters.

The compiler averages the gradients. Numbers are those of one device, to rounding.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from dreamjax.replay.latents import Chunk
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog
from dreamjax.training.devices import fitting_mesh, gathered, replicated, shard, split
from dreamjax.training.loop import train, updates
from dreamjax.types import Key, Metrics, PyTree
from dreamjax.worldmodels import learner
from dreamjax.worldmodels.learner import MemoryLearner, TrainState, VisionLearner


class Learning(NamedTuple):
    """How V or M learns over a mesh."""

    begin: Callable[[TrainState], TrainState]  # puts a state where `step` wants it
    step: Callable[[Key, TrainState, PyTree], tuple[TrainState, Metrics]]  # of a whole batch, in host memory


@lru_cache(maxsize=16)
def learner_over(mesh: Mesh, learns: VisionLearner | MemoryLearner) -> Learning:
    """Return `learner.train_step` of batches that are split over a mesh; on one device it is the same function.

    Frames are split over the batch, chunks and the recurrent state of M over the streams. Several processes call it
    together, with the same state and the same batches, since all read the same recordings with the same seed; each
    copies its share to its own devices.
    """
    if mesh.size == 1:
        return Learning(lambda state: state, partial(learner.train_step, learns))
    whole: Any = replicated(mesh)
    places: Any = whole
    rows: Any = split(mesh)
    if isinstance(learns, MemoryLearner):
        places = TrainState(whole, whole, whole, split(mesh), whole)
        rows = Chunk._make([split(mesh, 1)] * (len(Chunk._fields) - 1) + [whole])  # the last field is `reset`
    compiled = jax.jit(learner.train_step, static_argnums=0, donate_argnums=2, out_shardings=(places, whole))

    def step(key: Key, state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        return compiled(learns, key, state, shard(batch, rows))

    return Learning(partial(shard, places=places), step)


def learn_on_devices(
    run: RunFolder,
    log: MetricsLog,
    name: str,
    key: Key,
    learns: VisionLearner | MemoryLearner,
    state: TrainState,
    batches: Callable[[int], Iterator[Any]],
    until: int,
    *,
    shared: tuple[int, str],
    checkpoint_every: int = 500,
    is_all: bool = True,
) -> TrainState:
    """Train V or M as stage `name` to update number `until`, on as many devices as divide a batch; see `loop.train`.

    `batches` as in `loop.updates`; `shared` is the size of a batch and the name of its setting. The result is bound to
    no device.
    """
    mesh = fitting_mesh("batch", *shared)
    begin, step = learner_over(mesh, learns)

    def loop(state: PyTree, done: int) -> Iterator[tuple[PyTree, Metrics]]:
        return updates(partial(step, key), batches)(begin(state), done)

    how: Any = {"checkpoint_every": checkpoint_every, "is_all": is_all}
    return gathered(mesh, train(run, log, name, state, loop, until, **how))
