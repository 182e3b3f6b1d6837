"""Experiments as processes here, or as jobs of submitit: on this machine, or by Slurm."""

import os
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dreamjax._extras import extra
from dreamjax.training.signals import WARNINGS, Stopped, StopRequest, stop_request

if TYPE_CHECKING:
    import submitit

_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Experiment:
    """The command line of an experiment, which submitit can run as a job."""

    script: Path
    arguments: Sequence[str]
    visible_gpus: str | None = None  # on this machine: what CUDA_VISIBLE_DEVICES says, which submitit empties

    @property
    def command(self) -> str:
        """The command as it is typed."""
        return shlex.join(["python", str(self.script), *self.arguments])

    def __call__(self) -> None:
        """Run the experiment in this process, which is a job of submitit.

        Where a warning of the scheduler has stopped it, submitit queues the job again. SIGTERM alone does not: it is
        also what a cancelled job gets.

        Raises: RuntimeError if the experiment gave up, with what it said; `Stopped` after other signals.
        """
        if os.environ.get("SUBMITIT_EXECUTOR") == "local":  # which gives jobs the GPUs that they ask for, and none
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            if self.visible_gpus is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = self.visible_gpus
        queue_again = [handler for handler in map(signal.getsignal, WARNINGS) if callable(handler)]
        sys.argv = [str(self.script), *self.arguments]
        try:
            runpy.run_path(str(self.script), run_name="__main__")
        except Stopped as stopped:
            if stopped.number in WARNINGS:
                for handler in queue_again:  # which leaves as its scheduler expects it
                    handler(stopped.number, None)
            raise
        except SystemExit as error:
            if error.code:
                raise RuntimeError(f"{self.command} gave up: {error.code}") from None

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """Say to submitit what to queue again: the same, which goes on where it stopped."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


@dataclass(frozen=True)
class Resources:
    """What a job asks its scheduler for. On this machine only the times are looked at."""

    hours: float = 24.0  # after which a job is stopped and queued again
    warning_s: int = 120  # seconds before that, in which a job is to save: at least as long as a step and a checkpoint
    again: int = 100  # times that a job is queued again; on this machine 5 at most
    at_once: int = 1  # jobs of a sweep
    gpus: int | None = None
    cpus: int | None = None
    memory_gb: float | None = None
    partition: str | None = None
    options: dict[str, Any] = field(default_factory=dict)  # others of submitit for Slurm, such as account or constraint


def run_here(experiments: Sequence[Experiment]) -> int:
    """Run experiments one after the other; return the exit code of the first that is not 0, or 0.

    Signals are passed on, and end it. Raises: `Stopped`.
    """
    with stop_request() as stop:
        for one in experiments:
            print(one.command, flush=True)
            child = subprocess.Popen([sys.executable, one.script, *one.arguments])
            told = False
            while child.poll() is None:
                if stop.number is not None and not told:
                    told = True
                    if stop.number != signal.SIGINT:  # which a terminal sends to both
                        child.send_signal(stop.number)
                time.sleep(_LOOK_EVERY_S)
            stop.leave("started again, the same command goes on from there")
            if child.returncode:
                return child.returncode if child.returncode > 0 else 128 - child.returncode  # as shells say it
    return 0


def submit(
    experiments: Sequence[Experiment],
    where: Literal["local", "slurm"],
    resources: Resources,
    logs: str | os.PathLike[str],
) -> "list[submitit.Job[None]]":
    """Hand experiments to Slurm, or to processes of this machine that are limited in time like jobs.

    What they print goes to a folder for each job in `logs`. Slurm gets all at once, as one array, and runs as many at a
    time as `resources.at_once` says. On this machine this returns when the last ones have begun.

    Raises: ModuleNotFoundError if submitit is not installed, RuntimeError if there is no Slurm here.
    """
    with extra("slurm", "a launcher"):
        import submitit
    folder = Path(logs).absolute() / "%j"
    if where == "local":
        executor: Any = submitit.LocalExecutor(folder, max_num_timeout=resources.again)
        executor.update_parameters(timeout_min=60 * resources.hours, signal_delay_s=resources.warning_s)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return _in_turn(executor.submit, [replace(one, visible_gpus=visible) for one in experiments], resources.at_once)
    executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=resources.again)
    executor.update_parameters(
        name=experiments[0].script.stem,
        timeout_min=round(60 * resources.hours),
        gpus_per_node=resources.gpus,
        cpus_per_task=resources.cpus,
        mem_gb=resources.memory_gb,
        slurm_partition=resources.partition,
        slurm_signal_delay_s=resources.warning_s,
        slurm_array_parallelism=resources.at_once,
        **{f"slurm_{name}": value for name, value in resources.options.items()},
    )
    with executor.batch():
        return [executor.submit(one) for one in experiments]


def wait(jobs: "Sequence[submitit.Job[None]]") -> None:
    """Wait until jobs of this machine have ended. Signals are passed on, and end it. Raises: `Stopped`."""
    with stop_request() as stop:
        while not stop and not all(job.done() for job in jobs):
            time.sleep(_LOOK_EVERY_S)
        _leave(stop, jobs)


def _in_turn(
    begin: Callable[[Experiment], "submitit.Job[None]"], experiments: Sequence[Experiment], at_once: int
) -> "list[submitit.Job[None]]":
    """Begin as many as may run at once, and another one whenever one has ended. Signals are as for `wait`."""
    left = deque(experiments)
    jobs: list[submitit.Job[None]] = []
    with stop_request() as stop:
        while left and not stop:
            while left and sum(not job.done() for job in jobs) < at_once:
                print(left[0].command, flush=True)
                # A terminal sends Ctrl-C to all of its processes, and submitit would end what is to save first.
                heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
                try:
                    jobs.append(begin(left.popleft()))
                finally:
                    signal.signal(signal.SIGINT, heard)
            if left:
                time.sleep(_LOOK_EVERY_S)
        _leave(stop, jobs)
    return jobs


def _leave(stop: StopRequest, jobs: "Sequence[submitit.Job[Any]]") -> None:
    """After a signal, let jobs of this machine save and stop, then leave."""
    while stop and (running := [job for job in jobs if not job.done()]):
        for job in running:
            job._process.send_signal(signal.SIGTERM)  # type: ignore[attr-defined]  # again, if it was still starting
        time.sleep(10 * _LOOK_EVERY_S)
    stop.leave("started again, the same command goes on from there")
