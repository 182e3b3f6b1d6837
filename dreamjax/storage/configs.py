"""Configurations of experiments, read back from JSON and written as a command line."""

import dataclasses
import typing
from typing import Any, TypeVar

Config = TypeVar("Config")


def read_config(kind: type[Config], written: dict[str, Any]) -> Config:
    """Make a dataclass from the JSON that `RunFolder` wrote; missing fields get their defaults.

    Raises:
        ValueError: there is a field that the dataclass does not have.
    """
    kinds = typing.get_type_hints(kind)
    unknown = sorted(written.keys() - kinds.keys())
    if unknown:
        raise ValueError(
            f"{kind.__name__} has no {', '.join(unknown)}: this was written by another version of it, or by another "
            "experiment"
        )
    return kind(**{name: _read(kinds[name], value) for name, value in written.items()})


def _read(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind):
        return read_config(typing.cast(type, kind), value)
    return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def flat(written: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """List what a configuration in JSON holds by dotted names, as options are named on a command line."""
    if isinstance(written, dict) and written:
        return [pair for name, item in written.items() for pair in flat(item, f"{prefix}.{name}" if prefix else name)]
    return [(prefix, written)]


def command_line(config: Any, default: Any, prefix: str = "--") -> list[str]:
    """Return the flags that turn `default` into `config`, as tyro reads them. Both are of the same dataclass."""
    flags = []
    for field in dataclasses.fields(config):
        value, usual = getattr(config, field.name), getattr(default, field.name)
        flag = field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            flags += command_line(value, usual, f"{prefix}{flag}.")
        elif value != usual:
            match value:
                case bool():
                    flags += [prefix + flag if value else f"{prefix}no-{flag}"]
                case tuple():
                    flags += [prefix + flag, *map(str, value)]
                case _:
                    flags += [prefix + flag, str(value)]
    return flags
