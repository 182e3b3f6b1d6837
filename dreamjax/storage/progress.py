"""Progress bars that stay readable in a log file."""

import os
import sys
import time
from collections.abc import Iterable, Sized
from typing import Any

from tqdm import tqdm

_LINE_EVERY_S = 30.0


class _Lines(tqdm):
    """Prints a line now and then, instead of redrawing one with carriage returns."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._printed = time.monotonic()
        super().__init__(*args, leave=False, **kwargs)  # else the base class ends with an empty line

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None and time.monotonic() - self._printed >= _LINE_EVERY_S:
            self._print()

    def close(self) -> None:
        if not self.disable:
            self._print()
        super().close()

    def _print(self) -> None:
        self._printed = time.monotonic()
        print(self, file=sys.stderr, flush=True)


def progress(over: Iterable[Any] | int, label: str, initial: int = 0, unit: str = "it") -> tqdm:
    """Show a tqdm bar on stderr, or, if that is no terminal, a line every 30 seconds and one at the end.

    With an iterable, loop over the result. With a number, the total, call `.update(n)` on it within a `with` block.
    `initial` counts what was done before this process resumed; an iterable then holds only what is left to do. Numbers
    to show go to `.set_postfix(loss=...)`.
    """
    iterable = None if isinstance(over, int) else over
    total = over if isinstance(over, int) else initial + len(over) if isinstance(over, Sized) else None
    # A terminal in a container may say that it has no columns: a bar would be empty.
    if sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns:
        return tqdm(iterable, desc=label, total=total, initial=initial, unit=unit, dynamic_ncols=True)
    return _Lines(iterable, desc=label, total=total, initial=initial, unit=unit, ncols=100, ascii=True)
