"""Progress: a redrawn bar on a terminal, whole lines at a modest rate elsewhere."""

import os
import pty
import subprocess
import sys
import termios
import time

import pytest

from dreamjax.storage import progress as module
from dreamjax.storage.progress import progress


def test_a_short_loop_writes_two_lines_to_a_log(capsys):
    assert list(progress(range(5), "vision")) == [0, 1, 2, 3, 4]
    first, line = capsys.readouterr().err.splitlines()
    assert first.startswith("vision: 0% 0/5 [")
    assert line.startswith("vision: 100%") and " 5/5 [" in line and "\r" not in line


def test_updates_are_throttled_and_the_last_numbers_are_shown(capsys):
    with progress(100, "memory", initial=40, unit="step") as bar:
        for loss in range(60):
            bar.update(1)
            bar.set_postfix(loss=loss)
    first, line = capsys.readouterr().err.splitlines()
    assert " 40/100 [" in first
    assert " 100/100 [" in line and "loss=59" in line and "step" in line


def test_a_long_loop_writes_lines_on_the_way(capsys, monkeypatch):
    monkeypatch.setattr(module, "_LINE_EVERY_S", 0.0)
    with progress(3, "memory") as bar:
        for _ in range(3):
            bar.update(1)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 4 and all(line.startswith("memory: ") for line in lines)
    assert " 3/3 [" in lines[-1]


def test_a_loop_that_stops_early_says_how_far_it_came(capsys):
    with pytest.raises(RuntimeError):
        for index in progress(range(10), "vision", initial=10):
            if index == 4:
                raise RuntimeError
    assert " 14/20 [" in capsys.readouterr().err


@pytest.mark.parametrize(("columns", "is_redrawn"), [(80, True), (0, False)])
def test_a_terminal_gets_a_bar_if_it_has_a_width(columns, is_redrawn):
    main, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, columns))
    code = "from dreamjax.storage.progress import progress\nfor _ in progress(range(3), 'vision'): pass"
    subprocess.run([sys.executable, "-c", code], stderr=terminal, check=True)
    os.close(terminal)
    shown = os.read(main, 10_000).decode()
    os.close(main)
    assert "vision: 100%" in shown and "3/3" in shown
    assert ("vision:   0%" in shown) == is_redrawn


def test_what_is_waited_for_is_said_and_does_not_count_for_the_pace(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with progress(30, "train", unit="step", waits="compiling") as bar:
        clock[0] += 84.0
        for _ in range(10):
            clock[0] += 1.0
            bar.update()
    waits, took, ends = capsys.readouterr().err.splitlines()
    assert waits == "train: 0% 0/30 [00:00<?, ? step/s] compiling 00:00"
    assert took == "train: compiling took 01:25"
    assert ends == "train: 33% 10/30 [00:09<00:18, 1.11 step/s]"


def test_a_bar_says_what_it_waits_for_with_a_clock():
    main, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    code = """
import sys, threading
from dreamjax.storage.progress import progress
with progress(3, "train") as bar:
    bar.wait("compiling")
    sys.stdin.read(1)  # a long step, during which only the clock of the bar goes on
    bar.update(3)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stderr=terminal, stdin=subprocess.PIPE)
    os.close(terminal)
    shown, give_up = "", time.monotonic() + 60
    while "compiling 00:0" not in shown and time.monotonic() < give_up:
        shown += os.read(main, 10_000).decode()
    child.communicate(b"x", timeout=60)
    assert "train, compiling 00:0" in shown and child.returncode == 0
    assert "3/3" in os.read(main, 10_000).decode()
    os.close(main)
