"""What another run has learned, taken over by a new one: all of it, or the leaves of some names."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import jax

from dreamjax.storage.agents import load_learned
from dreamjax.storage.leaves import describe, from_numpy, named_leaves, same_kind, shown_record, to_numpy
from dreamjax.types import PyTree


@dataclass(frozen=True)
class Begin:
    """What a new run begins with. Leaves have names such as "model/dyn/dynin0/kernel", patterns are like "policy/*"."""

    weights: Path | None = None  # run folder or stored agent; None begins from nothing
    take: tuple[str, ...] = ("*",)  # names or patterns of what is taken over
    leave: tuple[str, ...] = ()  # and of what begins anew in spite of that


def load_into(begin: Begin, own: PyTree) -> PyTree:
    """Return the parameters of a new run, `own`, with what it begins with in their place.

    `own` is a NamedTuple such as `DreamerParams`. Of its parts, those that `begin.weights` does not hold begin anew: a
    stored agent has no critic.

    Raises: ValueError that lists all that does not fit; as `load_learned` does.
    """
    if begin.weights is None:
        return own
    learned = {name: tree for name, tree in load_learned(begin.weights).items() if hasattr(own, name)}
    parts = {name: getattr(own, name) for name in learned}
    return own._replace(**transfer(parts, learned, begin.take, begin.leave, os.fspath(begin.weights)))


def transfer(own: PyTree, other: PyTree, take: Sequence[str], leave: Sequence[str], where: str) -> PyTree:
    """Return `own` with the leaves of `other`, which is `where`, that a pattern of `take` names and none of `leave`.

    A pattern is as in a shell, and * matches / too. Leaves keep the dtype and the devices of `own`.

    Raises: ValueError that lists the leaves that are missing on a side or have another shape, or names a pattern that
        matches nothing.
    """
    mine, theirs = named_leaves(own), named_leaves(other)
    every = [*mine, *(name for name in theirs if name not in mine)]
    if idle := [one for one in (*take, *leave) if not any(fnmatchcase(name, one) for name in every)]:
        raise ValueError(f"{', '.join(idle)} matches no parameter; there are {', '.join(_tops(every))}")
    chosen = [name for name in every if _matches(name, take) and not _matches(name, leave)]
    misfits = [text for name in chosen if (text := _misfit(name, mine, theirs))]
    if misfits:
        shown = "\n  ".join(misfits[:30]) + (f"\n  ... and {len(misfits) - 30} more" if len(misfits) > 30 else "")
        raise ValueError(
            f"{where} does not fit what is to begin with it:\n  {shown}\n"
            "Leave these out, by name or by pattern, and they begin anew; or train what they were made for."
        )
    taken = set(chosen)
    return jax.tree.unflatten(
        jax.tree.structure(own), [_like(theirs[name], leaf) if name in taken else leaf for name, leaf in mine.items()]
    )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _tops(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys("/".join([*name.split("/")[:2], "*"][:3]) for name in names))


def _misfit(name: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    if name not in mine:
        return f"{name}: there, not here"
    if name not in theirs:
        return f"{name}: here, not there"
    here, there = describe(mine[name]), describe(theirs[name])
    return "" if same_kind(here, there) else f"{name}: there {shown_record(there)}, here {shown_record(here)}"


def _like(new: Any, old: Any) -> Any:
    return from_numpy(to_numpy("", new).astype(describe(old)["dtype"]), old, {})
