"""What a run of DreamerV3 will need, worked out before it begins, and refused if the machine does not have it.

A plan is printed, and kept in the run folder, whose page shows it.
"""

import os
import resource
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from dreamjax.dreamerv3 import experience, learner
from dreamjax.dreamerv3.loop import LoopState
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.optim import parameter_count
from dreamjax.storage.atomic import replacing
from dreamjax.training.devices import device_mesh, sharded
from dreamjax.training.online_config import OnlineConfig, updates_due
from dreamjax.training.processes import is_first
from dreamjax.types import PyTree

_CGROUPS = Path("/sys/fs/cgroup")
_FILES = 256  # that a process has open beside its replay


class Plan(NamedTuple):
    """What a run needs at most. Sizes are in bytes."""

    parameters: int  # numbers, of world model, actor and critic
    agent: int  # parameters, slow critic and optimiser
    part: int  # of the agent, on each device
    step: int  # a replayed one
    steps: int  # in the replay, when the run has collected all that it will
    replay: int  # memory of the process, or files that are mapped into it
    disk: int  # two checkpoints with their replays, and a third one while it is written; and the mapped files
    on_disk: bool  # the replay
    files: int  # that are open at once: one of each array in each block of a replay on disk


class Machine(NamedTuple):
    """What there is. In bytes."""

    memory: int  # that the process may have
    disk: int  # free, or taken by earlier checkpoints of the run
    files: int  # that a process may have open


def plan(dreamer: Dreamer, cfg: OnlineConfig, streams: int) -> Plan:
    """Work out what a run needs that collects from so many environments. Nothing is allocated."""
    state = jax.eval_shape(partial(learner.init, dreamer), jax.random.key(0))
    step, kept = _bytes(experience.example(dreamer)), -(-min(cfg.capacity, cfg.steps) // streams)
    block = cfg.replay(dreamer.cfg.context).block
    blocks = -(-kept // block) + (cfg.steps > cfg.capacity)  # a full one holds parts of two
    agent, replay = _bytes(state), blocks * block * streams * step
    files = blocks * len(jax.tree.leaves(experience.example(dreamer))) * cfg.on_disk
    parameters = parameter_count(state.params)
    disk = 3 * (agent + replay) + cfg.on_disk * replay
    part = agent
    if cfg.sharded:
        places = sharded(device_mesh("batch"), state)
        part = sum(
            int(np.prod(place.shard_shape(leaf.shape))) * leaf.dtype.itemsize
            for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(places), strict=True)
        )
    return Plan(parameters, agent, part, step, kept * streams, replay, disk, cfg.on_disk, files)


def machine(folder: Path) -> Machine:
    """Say what this machine has for a run in that folder, which exists."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    mine = [path for name in ("checkpoints", "replay") for path in (folder / name).rglob("*") if path.is_file()]
    free = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in mine)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return Machine(min([memory, *_limits()]), free, sys.maxsize if files == resource.RLIM_INFINITY else files)


def table(needs: Plan, has: Machine) -> str:
    """Show both, a line for each thing."""
    whole = f"; {shown_bytes(needs.agent)} in all" if needs.part < needs.agent else ""
    rows = [
        ("parameters", f"{needs.parameters:,}", "of world model, actor and critic"),
        ("agent", shown_bytes(needs.part), f"parameters and optimiser, on every device{whole}"),
        ("replay", shown_bytes(needs.replay), f"{needs.steps:,} steps in {'files' if needs.on_disk else 'memory'}"),
        ("memory", shown_bytes(has.memory), "of this machine, or that it lets this process have"),
        (
            "disk",
            shown_bytes(needs.disk),
            f"at most, for checkpoints with their replays; {shown_bytes(has.disk)} are free",
        ),
    ]
    return "\n".join(f"  {name:<11}{amount:>12}  {what}" for name, amount, what in rows)


def check(needs: Plan, has: Machine, folder: Path) -> None:
    """Raise ValueError if a run cannot fit; the message says what to change."""
    agent = needs.agent if jax.default_backend() == "cpu" else 0
    if not needs.on_disk and needs.replay + agent > has.memory:
        fits = int(0.8 * max(0, has.memory - agent)) // needs.step
        raise ValueError(
            f"the replay of {needs.steps:,} steps takes {shown_bytes(needs.replay)} of memory when it is full, and "
            f"this machine has {shown_bytes(has.memory)}: set capacity to {fits:,} steps or fewer, or on_disk to keep "
            "them in files"
        )
    if (room := has.files - _FILES) < needs.files:
        raise ValueError(
            f"on_disk keeps {needs.files:,} files open when the replay of {needs.steps:,} steps is full, and a process "
            f"may have {has.files:,} here: raise that limit (ulimit -Hn, or LimitNOFILE of systemd), or set capacity "
            f"to {max(0, int(0.8 * room * needs.steps / needs.files)):,} steps or fewer"
        )
    if needs.disk > has.disk:
        fits = int(0.8 * max(0, has.disk - 3 * needs.agent) / (3 + needs.on_disk)) // needs.step
        raise ValueError(
            f"the checkpoints of this run and their replays take up to {shown_bytes(needs.disk)}, and "
            f"{shown_bytes(has.disk)} are free in {folder}: make room, use another disk, or set capacity to {fits:,} "
            "steps or fewer"
        )


def check_agents(state: LoopState, capacity: int, folder: Path) -> None:
    """Raise ValueError if agents cannot fit that learn together with replays of `capacity` steps on the devices.

    `state` is that of all agents, or its shapes; the message says what to change.
    """
    has, agents, replay = machine(folder), _bytes(state.learner), _bytes(state.replay)
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    memory = has.memory if jax.default_backend() == "cpu" else sum(filter(None, limits)) if all(limits) else None
    for what, take, room in (
        ("the replays of all agents", replay, memory and memory - agents),
        ("the checkpoints of all agents with their replays", 3 * (agents + replay), has.disk),
    ):
        if room is not None and take > room:
            fits = int(0.8 * capacity * max(0, room) / take)
            raise ValueError(
                f"{what} take up to {shown_bytes(take)}, and there is room for {shown_bytes(max(0, room))}: set "
                f"capacity to {fits:,} steps or fewer, or let fewer agents learn together"
            )


def keep(folder: Path, text: str) -> None:
    """Write a plan into a run folder, for the page of the run."""
    with replacing(folder / "plan.txt") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def announce(dreamer: Dreamer, cfg: OnlineConfig, streams: int, folder: Path) -> None:
    """Print the plan of a run on stderr, or of the share of each process. Raises ValueError if it cannot fit.

    `streams` are the environments of this process.
    """
    count = jax.process_count()
    cfg = replace(cfg, steps=-(-cfg.steps // count), capacity=cfg.capacity // count)
    needs, has = plan(dreamer, cfg, streams), machine(folder)
    if is_first():
        print(f"plan of {folder}\n{table(needs, has)}", file=sys.stderr, flush=True)
        if not any((folder / "checkpoints").glob("*")):  # afterwards it is no longer a plan
            keep(folder, table(needs, has))
    check(needs, has, folder)


def learning(dreamer: Dreamer, cfg: OnlineConfig, streams: int, folder: Path, seconds: float) -> str:
    """Say how long the updates of a new run will take, and add it to its plan. `streams` are those of all processes."""
    updates = updates_due(cfg, cfg.replay(dreamer.cfg.context).length, streams, cfg.steps)
    line = f"  {'learning':<11}{duration(updates, seconds)}"
    if is_first():
        plan, _, _ = (folder / "plan.txt").read_text(encoding="utf-8").partition("  learning")  # of a run killed early
        keep(folder, plan + line)
    return line


def duration(updates: int, seconds: float) -> str:
    """Say how long so many updates take."""
    return f"{updates:,} updates of {1000 * seconds:,.0f} ms: {updates * seconds / 3600:,.1f} hours"


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def _limits() -> list[int]:
    """Memory limits of the control groups of this process, as containers and schedulers set them."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except FileNotFoundError:  # not Linux
        return []
    groups = [_CGROUPS / line.removeprefix("0::/") for line in lines if line.startswith("0::/")]
    files = [
        path / "memory.max" for group in groups for path in (group, *group.parents) if path.is_relative_to(_CGROUPS)
    ]
    texts = [file.read_text().strip() for file in files if file.exists()]
    return [int(text) for text in texts if text.isdigit()]  # it may also say "max"


def shown_bytes(count: float) -> str:
    """Format a number of bytes with three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:,.3g} TiB"
