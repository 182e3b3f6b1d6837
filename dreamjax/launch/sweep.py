"""A sweep: an experiment with every combination of some values, each in a run folder of its own."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dreamjax.launch.jobs import Experiment


class Variant(NamedTuple):
    """One combination."""

    name: str  # such as learning-rate=4e-5,seed=0
    flags: list[str]  # that set it on a command line


def variants(settings: Sequence[str]) -> list[Variant]:
    """List all combinations of settings such as "seed=0,1,2" and "agent.optimizer.learning-rate=4e-5,1.6e-4".

    What has several values itself has spaces between them: "temperatures=0.1 0.5,1.0 1.3" are two of two. Switches are
    true or false. Without settings there is one variant, without a name.

    Raises: ValueError for what is not a name and values, names something twice, or has two values of one folder name.
    """
    fields: dict[str, list[str]] = {}
    for text in settings:
        name, equals, values = text.partition("=")
        name = name.strip().removeprefix("--").replace("_", "-")
        listed = [value.strip() for value in values.split(",")]
        if not (equals and name and all(listed)):
            raise ValueError(f"what varies is written name=value,value, got {text!r}")
        if name in fields or len(set(listed)) < len(listed):
            raise ValueError(f"{text!r} names something twice")
        fields[name] = listed
    short = [name.rpartition(".")[2] for name in fields]
    labels = [last if short.count(last) == 1 else name for name, last in zip(fields, short, strict=True)]
    found = [
        Variant(
            ",".join(f"{label}={_in_a_path(value)}" for label, value in zip(labels, chosen, strict=True)),
            [part for name, value in zip(fields, chosen, strict=True) for part in _flags(name, value)],
        )
        for chosen in itertools.product(*fields.values())
    ]
    names = [one.name for one in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"several combinations would have the folder {', '.join(sorted(twice))}: sweep them one by one"
        )
    return found


def experiments(
    script: Path, arguments: Sequence[str], settings: Sequence[str], folder: Path | None
) -> list[Experiment]:
    """Make an experiment of every combination, whose run folders are in `folder`.

    Without settings that folder is the run's own; None leaves it to the experiment.

    Raises: ValueError as `variants` does, or if the arguments set the folder or what varies themselves.
    """
    if folder is None:
        if settings:
            raise ValueError("a sweep needs a folder for its runs")
        return [Experiment(script, list(arguments))]
    found = variants(settings)
    given = {text.partition("=")[0].replace("_", "-") for text in arguments if text.startswith("--")}
    taken = given & {"--folder", *(flag for one in found for flag in one.flags if flag.startswith("--"))}
    if taken:
        raise ValueError(f"{', '.join(sorted(taken))} is set by the launcher: leave it out behind {script.name}")
    return [Experiment(script, [*arguments, *one.flags, "--folder", str(folder / one.name)]) for one in found]


def _flags(name: str, value: str) -> list[str]:
    if value.lower() in ("true", "false"):
        path, _, last = name.rpartition(".")
        return [f"--{f'{path}.' if path else ''}{'' if value.lower() == 'true' else 'no-'}{last}"]
    return [f"--{name}", *value.split()]


def _in_a_path(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", value)
