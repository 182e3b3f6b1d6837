"""Jobs of submitit on this machine: when they are warned they save, are queued again, and end in the same numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import submitit

from dreamjax.launch.__main__ import main
from dreamjax.launch.jobs import Experiment, Resources, run_here, submit

REPO = Path(__file__).resolve().parents[2]
LIMIT = 600.0  # seconds that any wait may take
SLOW = """
import os, signal, sys, time
from dataclasses import dataclass
from pathlib import Path
import numpy as np
from dreamjax.reporting import result_row, write_result
from dreamjax.storage import MetricsLog, RunFolder
from dreamjax.training.experiment import Options, open_folder, read_command_line
from dreamjax.training.loop import generations, train

@dataclass(frozen=True)
class Config:
    seed: int = 0
    rate: float = 1.0
    steps: int = 30
    fails: bool = False

cfg, options = read_command_line("slow", None, {"smoke": Config()}, Options)
if cfg.fails:
    raise SystemExit("it cannot be done")
run = open_folder(options.folder, cfg, options, may_change={})

def step(state, number):
    Path(run.path, f"process-{os.getpid()}").touch()
    waits = len(list(run.path.glob("process-*"))) == 1 and number == 10
    while waits and not (run.path / "go on").exists():
        time.sleep(0.05)
    return state * 3 % 1001 + number, {"total": float(number)}

with MetricsLog(run.path) as log:
    often = {"log_every": 1, "checkpoint_every": 1000}
    state = train(run, log, "count", np.ones(1, np.float32), generations(step), cfg.steps, **often)
rows = [result_row("score", state * cfg.rate, "points")]
write_result(run.path / "result.json", "slow", "smoke", "slow", [cfg.seed], 1.0, rows, origin=("a", "b"))
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment of 30 steps, whose first process waits at step 10 until it may go on."""
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    path = tmp_path / "slow.py"
    path.write_text(SLOW)
    return path


def working(folder: Path) -> int:
    """Wait until the experiment is at work in its folder; return its process."""
    begun = time.monotonic()
    while not (found := list(folder.glob("process-*"))):
        assert time.monotonic() < begun + LIMIT, f"nothing works in {folder}"
        time.sleep(0.05)
    return int(found[0].name.removeprefix("process-"))


def wait_until_warned(path: Path, times: int = 1) -> None:
    """Wait until so many processes have said, in a file, that a signal has come."""
    begun = time.monotonic()
    while not path.exists() or path.read_text().count("stopping after this step") < times:
        assert time.monotonic() < begun + LIMIT, f"no signal is mentioned in {path}"
        time.sleep(0.05)


def score(folder: Path) -> float:
    return json.loads((folder / "result.json").read_text())["rows"][0]["mean"]


def expected(steps: int = 30) -> float:
    state = 1
    for number in range(steps):
        state = state * 3 % 1001 + number
    return state


def test_a_job_that_is_warned_is_queued_again_and_ends_in_the_same_numbers(script: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (job,) = submit([Experiment(script, ["--folder", str(folder)])], "local", Resources(), tmp_path / "jobs")
    os.kill(working(folder), signal.SIGUSR2)  # as Slurm does before the time is over
    wait_until_warned(job.paths.stderr)
    (folder / "go on").touch()
    job.wait()
    assert job.exception() is None, job.stderr()
    assert score(folder) == expected()
    assert len(list(folder.glob("process-*"))) == 2, "it was not started again"
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 31))  # each once
    assert "stopped by SIG" in job.stderr() and "started again, it goes on from there" in job.stderr()


@pytest.mark.slow
def test_a_job_whose_time_is_over_is_queued_again(script: Path, tmp_path: Path) -> None:
    """By the clock: it stands at step 10 until it is warned."""
    folder = tmp_path / "run"
    short = Resources(hours=60 / 3600, warning_s=20)
    (job,) = submit([Experiment(script, ["--folder", str(folder)])], "local", short, tmp_path / "jobs")
    wait_until_warned(job.paths.stderr)
    (folder / "go on").touch()
    job.wait()
    assert job.exception() is None, job.stderr()
    assert score(folder) == expected() and len(list(folder.glob("process-*"))) == 2


def test_a_job_that_gives_up_says_why(script: Path, tmp_path: Path) -> None:
    (job,) = submit([Experiment(script, ["--fails"])], "local", Resources(), tmp_path / "jobs")
    error = job.exception()
    assert isinstance(error, submitit.core.utils.FailedJobError) and "gave up: it cannot be done" in str(error)


def test_a_sweep_here_is_aggregated(script: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "sweep"
    assert main(["--vary", "rate=1,2", "--folder", str(folder), str(script), "--steps", "5"]) == 0
    told = capsys.readouterr().out
    assert f"| score, rate 1 | {expected(5):.1f}" in told and "sweep.png" in told
    rows = json.loads((folder / "result.json").read_text())["rows"]
    assert [(row["name"], row["mean"]) for row in rows] == [
        ("score, rate 1", expected(5)),
        ("score, rate 2", 2 * expected(5)),
    ]


def test_a_sweep_of_local_jobs_names_what_failed(script: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = tmp_path / "sweep"
    resources = ["--where", "local", "--at-once", "2", "--folder", str(folder)]
    assert main([*resources, "--vary", "fails=true,false", str(script), "--steps", "3"]) == 1
    assert (folder / "fails=false" / "result.json").exists()
    told = capfd.readouterr().err
    assert "failed" in told and str(folder / "jobs") in told


HERE = """
import sys
from pathlib import Path
from dreamjax.launch.jobs import Experiment, run_here
sys.exit(run_here([Experiment(Path(sys.argv[1]), ["--folder", name]) for name in sys.argv[2:]]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_launcher_reaches_the_experiment(script: Path, tmp_path: Path, number: int) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    told = tmp_path / "told"
    with open(told, "w") as file:
        child = subprocess.Popen([sys.executable, "-c", HERE, str(script), str(first), str(second)], stderr=file)
    working(first)
    child.send_signal(number)
    wait_until_warned(told, 2)  # it is passed on
    (first / "go on").touch()
    assert child.wait(LIMIT) == os.EX_TEMPFAIL, told.read_text()
    assert "count is saved at step" in told.read_text() and not second.exists()


def test_ctrl_c_lets_local_jobs_save(script: Path, tmp_path: Path) -> None:
    """A terminal sends it to the launcher, to submitit, and to the experiment."""
    folder, told = tmp_path / "sweep", tmp_path / "told"
    sweep = ["--vary", "rate=1", "--folder", str(folder), str(script)]
    command = [sys.executable, "-m", "dreamjax.launch", "--where", "local", *sweep]
    with open(told, "w") as file:
        child = subprocess.Popen(command, stderr=file, start_new_session=True, cwd=REPO)
    working(folder / "rate=1")
    os.killpg(child.pid, signal.SIGINT)
    (errors,) = (folder / "jobs").glob("*/*_log.err")
    wait_until_warned(errors)
    (folder / "rate=1" / "go on").touch()
    assert child.wait(LIMIT) == 128 + signal.SIGINT, told.read_text()
    assert "count is saved at step" in errors.read_text() and "Traceback" not in told.read_text()
    assert not (folder / "rate=1" / "result.json").exists()
    assert main(["--where", "local", *sweep]) == 0
    assert score(folder / "rate=1") == expected()


def test_the_first_experiment_that_fails_ends_a_sweep_here(script: Path, tmp_path: Path) -> None:
    assert run_here([Experiment(script, ["--fails"]), Experiment(script, ["--folder", str(tmp_path / "run")])]) == 1
    assert not (tmp_path / "run").exists()
