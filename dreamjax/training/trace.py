"""A profile of chosen updates, by jax's profiler: what the devices and the host do, microsecond by microsecond."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from dreamjax.storage.folder import RunFolder
from dreamjax.types import PyTree


class Trace:
    """The profile of a stage, which begins and ends between updates."""

    def __init__(self, run: RunFolder, stage: str) -> None:
        self._folder, self._updates, self._is_on = run.path / "profile" / stage, run.profile, False

    def at(self, done: int, state: PyTree, next_call: int = 1) -> None:
        """Begin or end the profile, if it is time after `done` updates; `state` is what the last one returned.

        The next call makes up to `next_call` updates; if these are several, the profile may cover more than were named.
        """
        if self._updates is None:
            return
        first, last = self._updates
        if self._is_on and done >= last:
            jax.block_until_ready(state)
            self.end()
        elif not self._is_on and first - next_call <= done < last:
            jax.block_until_ready(state)  # earlier updates are not in it
            jax.profiler.start_trace(self._folder)
            self._is_on = True

    def end(self) -> None:
        """Write what there is, if a profile is under way."""
        if self._is_on:
            self._updates, self._is_on = None, False
            jax.profiler.stop_trace()


@contextmanager
def tracing(run: RunFolder, stage: str) -> Iterator[Trace]:
    """Profile the updates of a stage that `run.profile` names, into `profile/<stage>/` of the run folder.

    TensorBoard, with its plugin `xprof`, and https://ui.perfetto.dev show it. If training stops or
    fails meanwhile, what was profiled so far is written.
    """
    trace = Trace(run, stage)
    try:
        yield trace
    finally:
        trace.end()
