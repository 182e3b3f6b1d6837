"""python -m dreamjax.launch EXPERIMENT.py: run an experiment, or a sweep of it, here, as local jobs or by Slurm."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamjax.launch.jobs import Resources, run_here, submit, wait
from dreamjax.launch.sweep import experiments
from dreamjax.reporting.sweeps import aggregate

_USAGE = """python -m dreamjax.launch [options] EXPERIMENT.py [its own options]
       python -m dreamjax.launch --aggregate FOLDER"""
_END = """A sweep has a run folder for each combination, and in the end result.json, sweep.png and a table with means,
bootstrap intervals and interquartile means over the runs that differ in their seed alone. Started again, the same
command goes on with what is not finished."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, launch, and aggregate what came out; return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = next((i for i, text in enumerate(given) if text.endswith(".py")), len(given))
    parser = _parser()
    chosen = parser.parse_args(given[:cut])
    if chosen.aggregate is not None:
        return _aggregate(parser, chosen.aggregate)
    if cut == len(given):
        parser.error("name an experiment, such as experiments/dreamerv3.py")
    script = Path(given[cut])
    if not script.is_file():
        parser.error(f"there is no {script}")
    folder = chosen.folder or (Path("runs") / "sweeps" / script.stem if chosen.vary else None)
    logs = (folder or Path("runs") / script.stem) / "jobs"
    resources = _resources(parser, chosen)
    try:
        launched = experiments(script, given[cut + 1 :], chosen.vary, folder)
        if chosen.where == "here":
            if code := run_here(launched):
                return code
        else:
            jobs = submit(launched, chosen.where, resources, logs)
    except (ValueError, RuntimeError, ModuleNotFoundError, NameError) as error:  # the last for unknown --options
        parser.error(str(error))
    if chosen.where == "slurm":
        print("\n".join(f"{job.job_id}: {one.command}" for job, one in zip(jobs, launched, strict=True)))
        print(
            f"What they print is in {logs}."
            + f" At the end: python -m dreamjax.launch --aggregate {folder}" * bool(chosen.vary)
        )
        return 0
    if chosen.where == "local":
        wait(jobs)
        failed = [job for job in jobs if job.exception() is not None]
        for job in failed:
            print(f"job {job.job_id} failed: {job.paths.stderr}", file=sys.stderr)
        if failed:
            print("A job that ran out of time was queued again as often as it may be. The same command goes on.")
            return 1
    return _aggregate(parser, folder) if folder and chosen.vary else 0


def _aggregate(parser: argparse.ArgumentParser, folder: Path) -> int:
    try:
        print(aggregate(folder))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(usage=_USAGE, description=__doc__, epilog=_END)
    add: Any = parser.add_argument
    usual = Resources()
    add("--vary", nargs="+", default=[], metavar="NAME=VALUE,VALUE", help="options of the experiment, and their values")
    add("--where", choices=("here", "local", "slurm"), default="here", help="the last two need the extra slurm")
    add("--folder", type=Path, help="of the runs of a sweep, otherwise runs/sweeps/EXPERIMENT; or of the one run")
    add("--aggregate", type=Path, metavar="FOLDER", help="put the finished runs of a sweep together; launch nothing")
    add("--hours", type=float, default=usual.hours, help="limit of a job, which is then queued again (%(default)s)")
    add("--warning-s", type=int, default=usual.warning_s, help="seconds before that, to save in (%(default)s)")
    add("--again", type=int, default=usual.again, help="times that a job is queued again (%(default)s; local: 5)")
    add("--at-once", type=int, default=usual.at_once, help="jobs that run at the same time (%(default)s)")
    add("--gpus", type=int, help="of a job")
    add("--cpus", type=int, help="of a job")
    add("--memory-gb", type=float, help="of a job")
    add("--partition", help="of Slurm")
    add("--options", nargs="+", default=[], metavar="NAME=VALUE", help="others of Slurm, as submitit names them")
    return parser


def _resources(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> Resources:
    pairs = [text.partition("=") for text in chosen.options]
    if wrong := ["".join(pair) for pair in pairs if not pair[1]]:
        parser.error(f"an option of Slurm is written name=value, got {', '.join(wrong)}")
    if chosen.at_once < 1:
        parser.error("--at-once must be positive")
    if 3600 * chosen.hours <= chosen.warning_s:
        parser.error("--hours must be more than --warning-s: a job would be stopped when it begins")
    names = ("hours", "warning_s", "again", "at_once", "gpus", "cpus", "memory_gb", "partition")
    return Resources(
        **{name: getattr(chosen, name) for name in names}, options={name: value for name, _, value in pairs}
    )


if __name__ == "__main__":
    sys.exit(main())
