"""Runs told apart by every difference of their configurations, and named by it."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dreamjax.storage.atomic import read_json
from dreamjax.storage.configs import flat

Settings = dict[str, Any]  # a configuration as it stands in a run folder, by dotted names


def read_settings(folder: Path) -> Settings:
    """Read the configuration of a run. Raises FileNotFoundError if there is none."""
    return dict(flat(read_json(folder / "config.json")))


def labels(settings: Sequence[Settings], but: str = "") -> list[str]:
    """Say of each of several configurations how it differs from the others; the seed comes last.

    A setting that some lack, because an older version wrote them, is compared among the others only.
    """
    names = unique(name for one in settings for name in one if name != but)
    values = {name: {json.dumps(one[name]) for one in settings if name in one} for name in names}
    differing = sorted((name for name in names if len(values[name]) > 1), key=lambda name: name == "seed")
    short = [name.rpartition(".")[2] for name in differing]
    shown = [last if short.count(last) == 1 else name for name, last in zip(differing, short, strict=True)]
    called = dict(zip(differing, shown, strict=True))
    return [
        ", ".join(filter(None, (_shown(called[name], one[name]) for name in differing if name in one)))
        for one in settings
    ]


def _shown(name: str, value: Any) -> str:
    if name in ("size", "variant"):  # which speak for themselves; no variant is the plain one
        return value
    match value:
        case None:
            text = "default"
        case float():
            text = f"{value:g}" if float(f"{value:g}") == value else f"{value!r}"
        case _:
            text = value if isinstance(value, str) else json.dumps(value)
    return f"{name} {text}"


def without_seed(settings: Settings) -> str:
    """Return what identifies a configuration but for its seed."""
    return json.dumps({name: value for name, value in settings.items() if name != "seed"}, sort_keys=True)


def seed_groups(settings: Sequence[Settings]) -> list[tuple[str, list[int]]]:
    """Group configurations that differ in their seed alone; return how each group differs, and its members."""
    called, groups = labels(settings, but="seed"), dict[str, list[int]]()
    for number, one in enumerate(settings):
        groups.setdefault(without_seed(one), []).append(number)
    return [(called[some[0]], some) for some in groups.values()]


def unique(texts: Iterable[str]) -> list[str]:
    """Return each text once, in order."""
    return list(dict.fromkeys(texts))
