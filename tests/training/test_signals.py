"""Signals of people and schedulers, to this process and to jobs with workers: saved, one line, the code, and on."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog
from dreamjax.training.loop import train, updates
from dreamjax.training.signals import AGAIN, SIGNALS, Stopped, stop_request
from dreamjax.types import PyTree

LIMIT = 600.0  # seconds that any wait may take


@dataclass(frozen=True)
class Config:
    seed: int = 0


def numbers(begin: int) -> Iterator[int]:
    return iter(range(begin, 1000))


def rows(folder: Path, stage: str) -> list[int]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in lines if row["stage"] == stage]


SCRIPT = """
import signal, sys, time
import numpy as np
from dataclasses import dataclass
from pathlib import Path
from dreamjax.acting import Pool
from dreamjax.envs import probes
from dreamjax.envs.gymnasium import to_gymnasium
from dreamjax.storage import MetricsLog, RunFolder
from dreamjax.training.loop import generations, train
from dreamjax.training.signals import leave_at_signals

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have made this process ignore it
signal.signal(signal.SIGTERM, signal.SIG_DFL)
leave_at_signals()

@dataclass(frozen=True)
class Config:
    seed: int = 0

where, folder = sys.argv[1:]
with MetricsLog(folder) as log, Pool(lambda: to_gymnasium(probes.counter(max_steps=7)), 2, 2) as pool:
    def act(state, number):
        for group in range(2):
            pool.send(group, [number])
        answers = []
        while len(answers) < 2:
            answers += pool.receive()
        time.sleep(0.01)
        return state + 1, {"total": 1.0}
    if where == "stage":
        train(RunFolder(folder, Config()), log, "evolve", np.zeros(1), generations(act), 10**6, log_every=1)
    while True:
        act(0, 0)
        Path(folder, "acting").touch()
"""


@pytest.mark.parametrize("where", ["stage", "elsewhere"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_job_with_workers_ends_quietly(tmp_path: Path, where: str, number: int, code: int) -> None:
    command = [sys.executable, "-c", SCRIPT, where, str(tmp_path)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    path, begun = tmp_path / ("metrics.jsonl" if where == "stage" else "acting"), time.monotonic()
    while not (path.exists() and (where == "elsewhere" or path.stat().st_size)) and child.poll() is None:
        if time.monotonic() > begun + LIMIT:
            break
        time.sleep(0.05)
    os.killpg(child.pid, number)  # as a scheduler and a terminal do it
    try:
        _, said = child.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        raise
    assert child.returncode == code, said
    assert "Traceback" not in said and "was replaced" not in said
    last = said.splitlines()[-1]
    if where == "stage":
        (step,) = Checkpoints(tmp_path / "checkpoints" / "evolve").steps()
        told = f"evolve is saved at step {step} of 1000000; started again, it goes on from there: {tmp_path}"
        assert last == f"stopped by {signal.Signals(number).name}: {told}"
        assert rows(tmp_path, "evolve") == list(range(1, step + 1))
    else:
        assert last.startswith("stopped by SIG") and last.endswith("the same command goes on")


def test_a_stage_stops_at_a_signal_and_goes_on_in_the_same_numbers(tmp_path: Path) -> None:
    """In this process, whose handlers are as before afterwards."""

    def step(state: PyTree, batch: int) -> tuple[PyTree, dict]:
        if batch == 6 and not Checkpoints(tmp_path / "checkpoints" / "learn").steps():
            os.kill(os.getpid(), signal.SIGTERM)
        return {"w": state["w"] * 3 + batch}, {"loss": 1.0}

    def learn() -> PyTree:
        with MetricsLog(tmp_path) as log:
            return train(
                RunFolder(tmp_path, Config()), log, "learn", {"w": np.zeros(2, np.float32)}, updates(step, numbers), 10
            )

    before = [signal.getsignal(one) for one in SIGNALS]
    with pytest.raises(KeyboardInterrupt) as stopped:
        learn()
    assert isinstance(stopped.value, SystemExit) and stopped.value.code == AGAIN == 75
    assert [signal.getsignal(one) for one in SIGNALS] == before
    assert Checkpoints(tmp_path / "checkpoints" / "learn").steps() == [7]
    expected = 0
    for batch in range(10):
        expected = expected * 3 + batch
    assert learn()["w"].tolist() == [expected, expected]


@pytest.mark.parametrize(
    ("sent", "noted"),
    [
        ([signal.SIGTERM], signal.SIGTERM),
        ([signal.SIGUSR1, signal.SIGTERM], signal.SIGUSR1),  # the warning of a time limit, then the limit
        ([signal.SIGTERM, signal.SIGUSR2], signal.SIGUSR2),  # some schedulers send both at a preemption
        ([signal.SIGINT, signal.SIGTERM], signal.SIGINT),
    ],
)
def test_several_signals_in_a_row_do_not_kill(sent: list[signal.Signals], noted: signal.Signals) -> None:
    with pytest.raises(Stopped) as stopped, stop_request() as stop:
        for number in sent:
            os.kill(os.getpid(), number)
        stop.leave("it is saved")
    assert stopped.value.number == noted
    assert stopped.value.code == (130 if noted == signal.SIGINT else 75)


TWICE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from dreamjax.training.signals import stop_request
with stop_request() as stop:
    for number in map(int, sys.argv[1:]):
        os.kill(os.getpid(), number)
    print("still here", flush=True)
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_after_a_signal_kills_at_once(first: signal.Signals) -> None:
    command = [sys.executable, "-c", TWICE, str(int(first)), str(int(signal.SIGINT))]
    child = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert child.returncode == -signal.SIGINT and "still here" not in child.stdout
