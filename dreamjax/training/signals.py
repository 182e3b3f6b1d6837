"""Signals of people and schedulers: what is under way is saved, one line says where to go on, no traceback follows.

What ends with the exit code `AGAIN` wants to be run again: the same command goes on where it stopped.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN = os.EX_TEMPFAIL  # 75: "the user is invited to retry", says sysexits.h
# Slurm sends SIGTERM when a job's time is over or something else needs its place, and before that whatever the job has
# asked for: SIGUSR1 in most scripts, SIGUSR2 where submitit wrote them.
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
SIGNALS = (signal.SIGINT, signal.SIGTERM, *WARNINGS)


class Stopped(SystemExit, KeyboardInterrupt):
    """A signal has stopped this, and everything that there was to save is saved.

    Uncaught it ends the process without a traceback: after Ctrl-C (SIGINT), with which a person stops it, with the code
    130; after all others, which schedulers send, with `AGAIN`. Who catches KeyboardInterrupt, as notebooks do, catches
    it as well.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number if number == signal.SIGINT else AGAIN)
        self.number = number


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
            raise Stopped(self.number)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turn a signal into a request, which a loop sees between steps.

    Then Ctrl-C kills at once. The others do not, for schedulers send several of them in a row; of these the one that a
    job has asked for is noted. What signals did before, they do again afterwards. A signal that is ignored, as that of
    Ctrl-C is in the background of a shell, stays so. In other threads than the main one, which cannot do this, there is
    no request.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        # Not by `print`: the signal may have come in the middle of one.
        if request.number is None:
            _let_interrupt_kill()
            again = " again" if number == signal.SIGINT else ""
            said = f"{signal.Signals(number).name}: stopping after this step; Ctrl-C{again} stops at once"
            os.write(2, f"\n{said}\n".encode())
        if request.number is None or (request.number == signal.SIGTERM and number in WARNINGS):
            request.number = number

    before = _handle(note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if request.number is not None and request.where:
            _say(request.number, request.where)


def leave_at_signals() -> None:
    """From now on let signals raise `Stopped`, wherever no loop takes them as a request."""

    def leave(number: int, frame: FrameType | None) -> None:
        if isinstance(sys.exception(), Stopped):  # it is on its way
            return
        _let_interrupt_kill()
        _say(number, "what was done is kept, and the same command goes on")
        raise Stopped(number)

    _handle(leave)


def _handle(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Let `handler` see all signals that are not ignored; return what saw them before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    return {number: signal.signal(number, handler) for number in heard}


def _let_interrupt_kill() -> None:
    """Let the next Ctrl-C kill, unless it is ignored."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _say(number: int, where: str) -> None:
    print(f"stopped by {signal.Signals(number).name}: {where}", file=sys.stderr, flush=True)
