"""What the stages of *World Models* will need, worked out and timed before they begin; refused where it cannot fit."""

import sys
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dreamjax.optim import parameter_count
from dreamjax.replay.latents import Chunk
from dreamjax.storage.folder import RunFolder
from dreamjax.training.devices import fitting_mesh, splitting_mesh
from dreamjax.training.learning import learner_over
from dreamjax.training.plan import Machine, duration, keep, machine, shown_bytes
from dreamjax.training.stages import Collect, Evolve, TrainMemory, TrainVision
from dreamjax.types import Agent, PyTree
from dreamjax.worldmodels import learner
from dreamjax.worldmodels.learner import MemoryLearner, VisionLearner
from dreamjax.worldmodels.model import WorldModelConfig

_POOLS, _POOL_EPISODES = 2, 64  # of frames, that V's training has in memory: see `storage.episodes.frame_batches`


class StagePlan(NamedTuple):
    """What a run of the stages needs. Sizes are in bytes.

    How long episodes are is known once they are collected. Before, no episode is longer than its limit, and most are a
    good deal shorter, so that only what the shortest need can be refused.
    """

    parameters: dict[str, int]  # numbers, of V, M and C
    frames: tuple[int, int]  # collected at least and at most
    frame: int  # size of one
    memory: tuple[int, int]  # of all frames encoded, twice while they are put together, or of those that V learns from
    dreamed: int  # steps that evolution imagines at most


def plan(
    collect: Collect, evolve: Evolve, world: WorldModelConfig, agent: Agent, collected: int | None = None
) -> StagePlan:
    """Work out what the stages need, `collected` being the number of frames if it is known. Nothing is allocated."""
    spec = agent.model.spec
    model, policy = (jax.eval_shape(part.init, jax.random.key(0)) for part in (agent.model, agent.policy))
    counted = {"V": model.vision, "M": model.memory, "C": policy}
    frame = sum(int(np.prod(one.shape)) * one.dtype.itemsize for one in jax.tree.leaves(spec.observation))
    bounds = [
        collect.episodes * (1 + steps) if collected is None else collected
        for steps in (collect.min_steps, spec.max_steps)
    ]
    encoded = 2 * 2 * world.vision.latent_size + 2 * world.memory.action_size + 5  # float16 twice, action, reward, flag
    pooled = _POOLS * min(1.0, _POOL_EPISODES / collect.episodes)
    memory = [int(frames * max(2 * encoded, pooled * frame)) for frames in bounds]
    episodes = evolve.search.population_size * evolve.episodes * evolve.generations
    return StagePlan(
        {name: parameter_count(params) for name, params in counted.items()},
        (bounds[0], bounds[1]),
        frame,
        (memory[0], memory[1]),
        episodes * spec.max_steps,
    )


def check(needs: StagePlan, has: Machine, collect: Collect) -> None:
    """Raise ValueError if a run cannot fit; the message names what to change."""
    least, _ = needs.memory
    if least > has.memory:
        fits = int(0.8 * collect.episodes * has.memory / least)
        raise ValueError(
            f"the {needs.frames[0]:,} frames of {collect.episodes:,} episodes take {shown_bytes(least)} of memory, and "
            f"this machine has {shown_bytes(has.memory)}: set collect.episodes to {fits:,} or fewer, in a new folder"
        )


def seconds_per_update(learns: VisionLearner | MemoryLearner, batch: PyTree, mesh: Mesh) -> float:
    """Time one update of V or M, once it is compiled; training finds the same program compiled. Shapes: its batch."""
    place, train_step = learner_over(mesh, learns)
    state = place(learner.init(learns, jax.random.key(0)))
    step: Any = partial(train_step, jax.random.key(1))
    state, _ = jax.block_until_ready(step(state, batch))
    begun = time.monotonic()
    jax.block_until_ready(step(state, batch))
    return time.monotonic() - begun


def announce(
    run: RunFolder,
    collect: Collect,
    vision: TrainVision,
    memory: TrainMemory,
    evolve: Evolve,
    world: WorldModelConfig,
    agent: Agent,
    in_dreams: bool = True,
) -> None:
    """Print the plan of a run on stderr, with the time that V and M will take, unless they are done.

    Raises: ValueError if it cannot fit, or the devices do not divide the population that evolves `in_dreams`.
    """
    if in_dreams:
        splitting_mesh("population", evolve.search.population_size, "evolve.search.population_size")
    collected = run.stage_record("collect")["summary"].get("frames")
    needs, has = plan(collect, evolve, world, agent, collected), machine(run.path)
    counted = ", ".join(f"{name} {count:,}" for name, count in needs.parameters.items())
    least, most = needs.frames
    bound = "" if least == most else "up to "
    rows = [
        ("parameters", counted),
        ("collect", f"{bound}{most:,} frames, {shown_bytes(most * needs.frame)} before compression"),
        ("memory", f"{bound}{shown_bytes(needs.memory[1])}; this machine has {shown_bytes(has.memory)}"),
        ("disk", f"{shown_bytes(has.disk)} are free"),
    ]
    print(f"plan of {run.path}", file=sys.stderr)
    told: list[str] = []

    def tell(row: tuple[str, str]) -> None:
        told.append(_line(row))
        print(told[-1], file=sys.stderr, flush=True)

    for row in rows:
        tell(row)
    check(needs, has, collect)
    frames = np.zeros((vision.batch, *agent.model.spec.observation.shape), np.uint8)
    learn_vision = VisionLearner(world.vision, vision.optimizer)
    learn_memory = MemoryLearner(world.memory, memory.optimizer, memory.streams)
    timed: list[tuple[str, Any, PyTree, int, tuple[int, str]]] = [
        ("vision", learn_vision, frames, vision.updates, (vision.batch, "vision.batch")),
        ("memory", learn_memory, _chunk(world, memory), memory.updates, (memory.streams, "memory.streams")),
    ]
    for name, learns, batch, updates, shared in timed:
        if not run.stage_done(name):
            mesh = fitting_mesh("batch", *shared)
            part = f" on {mesh.size} of {jax.device_count()} devices" if mesh.size < jax.device_count() else ""
            tell((name, duration(updates, seconds_per_update(learns, batch, mesh)) + part))
    tell(("evolve", f"up to {needs.dreamed:,} steps of dreams"))
    if not run.stage_done("vision"):  # afterwards it is no longer a plan
        keep(run.path, "\n".join(told))


def _chunk(world: WorldModelConfig, memory: TrainMemory) -> Chunk:
    """A chunk of nothing, of the shapes that M learns from."""
    lead = memory.length + 1, memory.streams
    latent: Any = np.zeros((*lead, world.memory.latent_size), np.float16)
    action: Any = np.zeros(lead if world.memory.action_size == 1 else (*lead, world.memory.action_size), np.float16)
    flag: Any = np.zeros(lead, bool)
    reward: Any = np.zeros(lead, np.float32)
    reset: Any = np.array(True)
    return Chunk(latent, latent, action, reward, flag, flag, flag, reset)


def _line(row: tuple[str, str]) -> str:
    return f"  {row[0]:<11}{row[1]}"
