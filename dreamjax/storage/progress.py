"""Progress: a bar on a terminal, lines that stay readable in a log file elsewhere, and where tqdm is not installed."""

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from importlib.util import find_spec
from typing import Any, Self

_LINE_EVERY_S = 30.0


class Progress:
    """What was done, how fast, and what is waited for; with as much of the interface of tqdm as we use.

    It is shown at once, and a clock ticks while nothing happens.
    """

    def __init__(
        self, over: Iterable[Any] | None, label: str, total: int | None, initial: int, unit: str, waits: str
    ) -> None:
        self.n = initial
        self._over, self._label, self._total, self._initial, self._unit = over, label, total, initial, unit
        self._numbers: dict[str, Any] = {}
        self._waits = waits  # what the next step waits for
        self._begun = self._since = self._printed = time.monotonic()
        self._bar = _bar(label, total, initial, unit)
        self._closed = threading.Event()
        if self._bar is None:
            self._print()
        threading.Thread(target=self._tick, daemon=True).start()

    def __iter__(self) -> Iterator[Any]:
        with self:
            for one in self._over or ():
                yield one
                self.update()

    def wait(self, what: str) -> None:
        """Say what the next step waits for, such as "compiling". That time does not count for the pace."""
        self._waits, self._since = what, time.monotonic()
        if self._bar is None:
            self._print()

    def update(self, n: int = 1) -> None:
        """Count what was done."""
        if self._waits:
            self._arrive()
        self.n += n
        if self._bar is not None:
            self._bar.update(n)
        elif time.monotonic() - self._printed >= _LINE_EVERY_S:
            self._print()

    def say(self, line: str) -> None:
        """Print a line, above the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def set_postfix(self, numbers: Mapping[str, Any] | None = None, **more: Any) -> None:
        """Set the numbers at the end."""
        self._numbers = {**(numbers or {}), **more}
        if self._bar is not None:
            self._bar.set_postfix(self._numbers)

    def close(self) -> None:
        """Show how far it came, and end."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._bar is not None:
            self._bar.close()
        else:
            self._print()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _arrive(self) -> None:
        """End the waiting, as if it had not been."""
        waited, what, self._waits = time.monotonic() - self._since, self._waits, ""
        self._begun += waited
        if self._bar is not None:
            self._bar.start_t += waited
            self._bar.last_print_t += waited
            self._bar.set_description(self._label, refresh=False)
        elif waited >= 1:
            self._printed = time.monotonic()
            print(f"{self._label}: {what} took {_clock(waited)}", file=sys.stderr, flush=True)

    def _tick(self) -> None:
        while not self._closed.wait(1.0):
            if self._bar is None:
                if time.monotonic() - self._printed >= _LINE_EVERY_S:
                    self._print()
            else:
                waiting = f", {self._waits} {_clock(time.monotonic() - self._since)}" if self._waits else ""
                self._bar.set_description(self._label + waiting, refresh=True)

    def _print(self) -> None:
        self._printed = time.monotonic()
        until = self._since if self._waits else self._printed
        seconds, done = until - self._begun, self.n - self._initial
        of, left = "", ""
        if self._total:
            of = f"{100 * self.n // self._total}% "
            left = f"<{_clock(seconds / done * (self._total - self.n)) if done else '?'}"
        counted = f"{self.n}/{self._total}" if self._total is not None else f"{self.n}"
        rate = f"{done / seconds:.3g} {self._unit}/s" if done and seconds else f"? {self._unit}/s"
        told = [f"{_clock(seconds)}{left}", rate, *(f"{name}={value}" for name, value in self._numbers.items())]
        waiting = f" {self._waits} {_clock(self._printed - self._since)}" if self._waits else ""
        print(f"{self._label}: {of}{counted} [{', '.join(told)}]{waiting}", file=sys.stderr, flush=True)


def progress(over: Iterable[Any] | int, label: str, initial: int = 0, unit: str = "it", waits: str = "") -> Progress:
    """Show a bar of tqdm on stderr, or lines if that is no terminal or tqdm, of the extra "experiments", is missing.

    A line comes at the beginning, every 30 seconds and at the end. With an iterable, loop over the result. With a
    number, the total, call `.update(n)` on it within a `with` block. `initial` counts what was done before this process
    resumed; an iterable then holds only what is left to do. Numbers to show go to `.set_postfix(loss=...)`. What the
    first step waits for is `waits`, such as "compiling"; what a later one does goes to `.wait`.
    """
    iterable = None if isinstance(over, int) else over
    total = over if isinstance(over, int) else initial + len(over) if isinstance(over, Sized) else None
    return Progress(iterable, label, total, initial, unit, waits)


def _bar(label: str, total: int | None, initial: int, unit: str) -> Any:
    """Make a bar of tqdm, if there is a place for one."""
    # A terminal in a container may say that it has no columns: a bar would be empty.
    if not (sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns and find_spec("tqdm")):
        return None
    from tqdm import tqdm

    return tqdm(desc=label, total=total, initial=initial, unit=unit, dynamic_ncols=True)


def _clock(seconds: float) -> str:
    """Return [hours:]minutes:seconds."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
