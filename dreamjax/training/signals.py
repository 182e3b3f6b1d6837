"""Ctrl-C and SIGTERM: what is under way is saved, one line says where to go on, and no traceback follows."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(SystemExit, KeyboardInterrupt):
    """A signal has stopped this, and everything that there was to save is saved.

    Uncaught it ends the process without a traceback, with the code 128 + number of the signal: 130 or 143. Who catches
    KeyboardInterrupt, as notebooks do, catches it as well.
    """


class StopRequest:
    """Whether a signal has asked this process to stop, and which."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.where = ""  # what it stopped can go on

    def __bool__(self) -> bool:
        return self.number is not None

    def leave(self, where: str) -> None:
        """If there was a signal, raise `Stopped`; last of all is said where what it stopped can go on."""
        if self.number is not None:
            self.where = where
            raise Stopped(128 + self.number)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request, which a loop sees between steps; a second one kills.

    What these signals did before, they do again afterwards. A signal that is ignored, as that of Ctrl-C is in the
    background of a shell, stays so. In other threads than the main one, which cannot do this, there is no request.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        request.number = number
        _kill_next_time()
        # Not by `print`: the signal may have come in the middle of one.
        os.write(2, f"\n{signal.Signals(number).name}: stopping after this step; once more stops at once\n".encode())

    before = _handle(note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if request.number is not None and request.where:
            _say(request.number, request.where)


def leave_at_signals() -> None:
    """From now on let SIGINT and SIGTERM raise `Stopped`, wherever no loop takes them as a request."""

    def leave(number: int, frame: FrameType | None) -> None:
        _kill_next_time()
        _say(number, "what was done is kept, and the same command goes on")
        raise Stopped(128 + number)

    _handle(leave)


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Let `handler` see all signals that are not ignored; return what saw them before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    return {number: signal.signal(number, handler) for number in heard}


def _kill_next_time() -> None:
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _say(number: int, where: str) -> None:
    print(f"stopped by {signal.Signals(number).name}: {where}", file=sys.stderr, flush=True)
