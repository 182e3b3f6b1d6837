"""Progress: a bar on a terminal, lines that stay readable in a log file elsewhere, and where tqdm is not installed."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from importlib.util import find_spec
from typing import Any, Self

_LINE_EVERY_S = 30.0


class Lines:
    """A line on stderr every 30 seconds and one at the end, with as much of the interface of tqdm as we use."""

    def __init__(
        self, iterable: Iterable[Any] | None, desc: str, total: int | None = None, initial: int = 0, unit: str = "it"
    ) -> None:
        self.n = initial
        self._over, self._label, self._total, self._initial, self._unit = iterable, desc, total, initial, unit
        self._numbers: dict[str, Any] = {}
        self._begun = self._printed = time.monotonic()
        self._closed = False

    def __iter__(self) -> Iterator[Any]:
        with self:
            for one in self._over or ():
                yield one
                self.update()

    def update(self, n: int = 1) -> None:
        """Count what was done."""
        self.n += n
        if time.monotonic() - self._printed >= _LINE_EVERY_S:
            self._print()

    def set_postfix(self, numbers: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Set the numbers at the end of the line."""
        self._numbers = {**(numbers or {}), **more}

    def close(self) -> None:
        """Print the last line."""
        if not self._closed:
            self._closed = True
            self._print()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _print(self) -> None:
        self._printed = time.monotonic()
        seconds, done = self._printed - self._begun, self.n - self._initial
        of, left = "", ""
        if self._total:
            of = f"{100 * self.n // self._total}% "
            left = f"<{_clock(seconds / done * (self._total - self.n)) if done else '?'}"
        counted = f"{self.n}/{self._total}" if self._total is not None else f"{self.n}"
        rate = f"{done / seconds:.3g} {self._unit}/s" if done and seconds else f"? {self._unit}/s"
        told = [f"{_clock(seconds)}{left}", rate, *(f"{name}={value}" for name, value in self._numbers.items())]
        print(f"{self._label}: {of}{counted} [{', '.join(told)}]", file=sys.stderr, flush=True)


def progress(over: Iterable[Any] | int, label: str, initial: int = 0, unit: str = "it") -> Any:
    """Show a bar of tqdm on stderr, or `Lines` if that is no terminal or tqdm, of the extra "experiments", is missing.

    With an iterable, loop over the result. With a number, the total, call `.update(n)` on it within a `with` block.
    `initial` counts what was done before this process resumed; an iterable then holds only what is left to do. Numbers
    to show go to `.set_postfix(loss=...)`.
    """
    iterable = None if isinstance(over, int) else over
    total = over if isinstance(over, int) else initial + len(over) if isinstance(over, Sized) else None
    # A terminal in a container may say that it has no columns: a bar would be empty.
    if sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns and find_spec("tqdm"):
        from tqdm import tqdm

        return tqdm(iterable, desc=label, total=total, initial=initial, unit=unit, dynamic_ncols=True)
    return Lines(iterable, label, total, initial, unit)


def _clock(seconds: float) -> str:
    """Return [hours:]minutes:seconds."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
