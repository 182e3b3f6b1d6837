"""What all experiment files share: one command line, and where a run keeps its folder."""

import itertools
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from dreamjax._extras import extra
from dreamjax.storage.agents import load
from dreamjax.storage.configs import command_line
from dreamjax.storage.folder import RunFolder
from dreamjax.training.devices import keep_freed_memory
from dreamjax.types import Agent, AgentParams

Config = TypeVar("Config")
Chosen = TypeVar("Chosen", bound="Options")


@dataclass(frozen=True)
class Options:
    """What to do with a configuration: train, unless one of the others is given."""

    folder: Path | None = None  # of the run; otherwise runs/<experiment>/<preset>-<seed>
    evaluate: Path | None = None  # evaluate and film the agent in this folder, instead of training one
    episodes: int = 100  # to evaluate it in
    aggregate: tuple[Path, ...] = ()  # folders of finished runs, whose results are put together
    into: Path | None = None  # folder for what is aggregated; otherwise experiments/results/<experiment>


def read_command_line(
    experiment: str,
    description: str | None,
    presets: Mapping[str, Config],
    options: type[Chosen],
    arguments: Sequence[str] | None = None,
    *,
    without: Collection[str] = (),
) -> tuple[Config, Chosen]:
    """Read `--preset NAME`, every field of its configuration, and the options; `--help` lists them all.

    The first preset is the default. `options` is `Options`, or a dataclass derived from it; those named in `without`
    are not offered. Exits, as command lines do, where something is wrong or help was asked for.
    """
    try:
        with extra("experiments", "this command"):
            import tyro
    except ModuleNotFoundError as error:
        raise SystemExit(str(error)) from None
    keep_freed_memory()
    given = list(sys.argv[1:] if arguments is None else arguments)
    names = [value for flag, value in itertools.pairwise(given) if flag == "--preset"]
    name = names[-1] if names else next(iter(presets))
    if name not in presets:
        raise SystemExit(f"{experiment}.py has no preset {name!r}: use one of {', '.join(presets)}")
    flat: Any = lambda kind: Annotated[kind, tyro.conf.arg(name="")]  # noqa: E731
    config = presets[name]
    kinds = get_type_hints(options, include_extras=True)
    hidden: list[Any] = [(one, Annotated[kinds[one], tyro.conf.Suppress], getattr(options(), one)) for one in without]
    options = make_dataclass(options.__name__, hidden, bases=(options,), frozen=True)
    parts = [("config", flat(type(config)), config), ("options", flat(options), options())]
    if "preset" not in vars(config):  # it may be derived from other fields
        parts.append(("preset", str, name))
    both = make_dataclass("Arguments", parts)
    parsed: Any = tyro.cli(both, args=given, description=description, prog=f"{experiment}.py")
    return parsed.config, parsed.options


def run_folder(experiment: str, cfg: Any, options: Options, variant: str = "") -> RunFolder:
    """Open the folder of a run: the one that was asked for, or one named after preset and seed."""
    default = Path("runs") / experiment / "-".join(filter(None, [cfg.preset, str(cfg.seed), variant]))
    return RunFolder(options.folder or default, cfg)


def evaluation_folder(experiment: str, options: Options) -> Path:
    """Return where the films of an evaluated agent go: the folder that was asked for, or one of the experiment's."""
    return options.folder or Path("runs") / experiment / "evaluation"


def stored_agent(path: Path, make: str) -> tuple[Agent, AgentParams]:
    """Load the agent that is to be evaluated. Exits where there is none, with the command that makes it."""
    try:
        return load(path)
    except FileNotFoundError as error:
        raise SystemExit(f"{error}\nThis command trains it: {make}") from None


def command(experiment: str, cfg: Any, presets: Mapping[str, Any]) -> str:
    """Return the command that makes this configuration: from its own preset, if it names one, or from the first."""
    named = [f"--preset {cfg.preset}"] if cfg.preset in presets else []
    flags = command_line(cfg, presets[cfg.preset] if named else next(iter(presets.values())))
    return " ".join([f"python experiments/{experiment}.py", *named, *flags])
