"""What all experiment files share: one command line, where a run keeps its folder, and how bad input is refused."""

import difflib
import itertools
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import gymnasium
import jax

from dreamjax._extras import extra
from dreamjax.acting import cluster
from dreamjax.storage import trackers
from dreamjax.storage.agents import load
from dreamjax.storage.atomic import jsonable
from dreamjax.storage.configs import command_line, flat
from dreamjax.storage.folder import Change, ConfigMismatch, FolderInUse, RunFolder
from dreamjax.storage.leaves import CheckpointError
from dreamjax.storage.replays import ReplayError
from dreamjax.training import processes
from dreamjax.training.devices import keep_compiled_programs, keep_freed_memory
from dreamjax.training.signals import leave_at_signals
from dreamjax.types import Agent, AgentParams

Config = TypeVar("Config")
Chosen = TypeVar("Chosen", bound="Options")

# What says by itself what is wrong with a folder or an installation, and what to do about it.
_ALWAYS_INPUT = (ConfigMismatch, FolderInUse, CheckpointError, ReplayError, ModuleNotFoundError)
# What refuses arguments and files. The same kinds, raised by a stage or after it, are faults of the program.
_INPUT_AT_FIRST = (ValueError, RuntimeError, ImportError, OSError, gymnasium.error.Error)
_FAULTS = (jax.errors.JaxRuntimeError, NotImplementedError, RecursionError)  # though they are RuntimeErrors


@contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """Exit with one message, and no traceback, where what the user asked for is refused; decorates every `main`.

    Refusals are the errors with which the library and environments reject arguments and files before the first stage of
    a run begins, and whenever they come, those of folders, checkpoints, replays and packages that cannot be used. All
    other errors keep their traceback; in Python's development mode (`python -X dev`) refusals have one too.

    Raises: SystemExit, with the message of the error, so that the exit code is 1.
    """
    begun = RunFolder.stages_begun
    try:
        yield
    except (*_ALWAYS_INPUT, *_INPUT_AT_FIRST) as error:
        is_input = RunFolder.stages_begun == begun and not isinstance(error, _FAULTS)
        if sys.flags.dev_mode or not (is_input or isinstance(error, _ALWAYS_INPUT)):
            raise
        raise SystemExit(str(error) or repr(error)) from None


@dataclass(frozen=True)
class Options:
    """What to do with a configuration: train, or go on with what the folder holds."""

    folder: Path | None = None  # of the run; otherwise one in runs/, named after the experiment or its task
    track: tuple[trackers.Name, ...] | None = None  # where its metrics go as well; as before if not given
    profile: tuple[int, int] | None = None  # first and last update, of each stage, that jax's profiler looks at
    ray: str | None = None  # address of a Ray cluster where host environments run: "auto", "local", or host:port


@dataclass(frozen=True)
class Evaluating(Options):
    """Train, or evaluate what was trained."""

    evaluate: Path | None = None  # evaluate the agent in this folder, instead of training one


@dataclass(frozen=True)
class Distributing(Options):
    """Train in this process, or together with others that were started with the same command."""

    distributed: bool = False  # together with others: see dreamjax/training/processes.py for how they meet


@dataclass(frozen=True)
class Aggregating(Options):
    """Train, or put results together."""

    aggregate: tuple[Path, ...] = ()  # folders of finished runs, whose results are put together
    into: Path | None = None  # folder for what is aggregated; otherwise results/<experiment> beside the file


@exit_on_bad_input()
def read_command_line(
    experiment: str,
    description: str | None,
    presets: Mapping[str, Config],
    options: type[Chosen],
    arguments: Sequence[str] | None = None,
) -> tuple[Config, Chosen]:
    """Read `--preset NAME`, every field of its configuration, and the options; `--help` lists them all.

    The first preset is the default. `options` is `Options`, or a dataclass derived from it. Exits, as command lines do,
    where something is wrong or help was asked for.
    """
    with extra("experiments", "this command"):
        import tyro
    keep_freed_memory()
    keep_compiled_programs()
    leave_at_signals()
    given = list(sys.argv[1:] if arguments is None else arguments)
    names = [value for flag, value in itertools.pairwise(given) if flag == "--preset"]
    name = names[-1] if names else next(iter(presets))
    if name not in presets:
        raise ValueError(f"{experiment}.py has no preset {name!r}: use one of {', '.join(presets)}")
    inline: Any = lambda kind: Annotated[kind, tyro.conf.arg(name="")]  # noqa: E731
    config = presets[name]
    parts = [("config", inline(type(config)), config), ("options", inline(options), options())]
    if "preset" not in vars(config):  # it may be derived from other fields
        parts.append(("preset", str, name))
    known = {"help", "preset", *(name for part in (config, options()) for name, _ in flat(jsonable(part)))}
    _check_spelling(experiment, given, {name.replace("_", "-") for name in known})
    both = make_dataclass("Arguments", parts)
    parsed: Any = tyro.cli(both, args=given, description=description, prog=f"{experiment}.py")
    if getattr(parsed.config, "seed", 0) < 0:
        raise ValueError(f"--seed must be 0 or more, got {parsed.config.seed}")
    if parsed.options.ray is not None:
        cluster.connect(parsed.options.ray)
    if isinstance(parsed.options, Distributing) and parsed.options.distributed:
        processes.join()
    return parsed.config, parsed.options


def _check_spelling(experiment: str, given: Sequence[str], known: Collection[str]) -> None:
    """Raise ValueError where an option is unknown and resembles others, as `lr` does `learning-rate`."""
    for flag in (text.partition("=")[0] for text in given if text.startswith("--")):
        name = flag[2:].replace("_", "-")
        path, _, last = name.rpartition(".")
        if name in known or f"{path}.{last.removeprefix('no-')}".lstrip(".") in known:
            continue
        ends: dict[str, list[str]] = {}
        for one in sorted(known):
            ends.setdefault(one.rpartition(".")[2], []).append(one)
        alike = difflib.get_close_matches(last, ends, cutoff=0.7)
        meant = [
            one
            for end in ends
            if end in alike or last == "".join(word[0] for word in end.split("-"))
            for one in ends[end]
        ]
        within = [one for one in meant if one.startswith(f"{path}.")]
        if meant:
            raise ValueError(f"{experiment}.py has no {flag}: did you mean --{', --'.join(within or meant)}?")


def run_folder(
    experiment: str, cfg: Any, options: Options, variant: str = "", *, may_change: Mapping[str, Change]
) -> RunFolder:
    """Open the folder of a run: the one that was asked for, or one named after preset and seed.

    A run may go on with other values of the fields in `may_change`: see `RunFolder`. Exits as `open_folder` does.
    """
    default = Path("runs") / experiment / "-".join(filter(None, [cfg.preset, str(cfg.seed), variant]))
    return open_folder(options.folder or default, cfg, options, may_change=may_change)


@exit_on_bad_input()
def open_folder(path: Path, cfg: Any, options: Options, *, may_change: Mapping[str, Change]) -> RunFolder:
    """Open a run folder, whose training is tracked and profiled as the options say.

    Exits, with what is wrong, if it belongs to another configuration or another process. Of processes that train
    together, each opens a folder of its own within it.
    """
    if options.profile is not None and not 1 <= options.profile[0] <= options.profile[1]:
        raise ValueError(f"--profile needs the first and the last update, counted from 1, got {options.profile}")
    run = RunFolder(processes.own_folder(path), cfg, may_change)
    run.profile = options.profile
    if options.track is not None:
        trackers.track(run.path, options.track)
    return run


def evaluation_folder(experiment: str, options: Options) -> Path:
    """Return where the films of an evaluated agent go: the folder that was asked for, or one of the experiment's."""
    return options.folder or Path("runs") / experiment / "evaluation"


@exit_on_bad_input()
def stored_agent(path: Path, make: str) -> tuple[Agent, AgentParams]:
    """Load the agent that is to be evaluated. Exits where there is none, with the command that makes it."""
    try:
        return load(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}\nThis command trains it: {make}") from None


def command(experiment: str, cfg: Any, presets: Mapping[str, Any]) -> str:
    """Return the command that makes this configuration, from its preset or the first, quoted for a shell."""
    named = ["--preset", cfg.preset] if cfg.preset in presets else []
    flags = command_line(cfg, presets[cfg.preset] if named else next(iter(presets.values())))
    return shlex.join(["python", f"experiments/{experiment}.py", *named, *flags])
