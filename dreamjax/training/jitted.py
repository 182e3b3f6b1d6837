"""The jitted loop of DreamerV3 on all devices: for several agents at once, such as seeds and the values of a sweep.

Where the devices divide the agents, each device brings up its own, and nothing is exchanged. Otherwise they share the
environments, the replay and the batches of every agent, and the compiler averages the gradients. Either way the numbers
are those of one device, to rounding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec

from dreamjax.dreamerv3 import loop
from dreamjax.dreamerv3.learner import Hyper
from dreamjax.dreamerv3.loop import LoopConfig, LoopState, Progress
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.replay.ring import Ring
from dreamjax.training.devices import device_mesh, gathered, replicated, split, spread
from dreamjax.types import Environment, Key, PyTree


class JittedLoop(NamedTuple):
    """The loop for A agents."""

    begin: Callable[[Key, Hyper], LoopState]  # of keys [A] and settings [A] -> [A, ...], see `loop.init`
    place: Callable[[LoopState], LoopState]  # puts a state that was read from a file where `advance` wants it
    advance: Callable[[LoopState, Key], tuple[LoopState, Progress]]  # by keys [A, n] -> [A, ...] and progress [A, n]
    gather: Callable[[PyTree], PyTree]  # makes a part of a state whole, and free to be used on any device


def jitted_loop(dreamer: Dreamer, environment: Environment, cfg: LoopConfig, agents: int) -> JittedLoop:
    """Make the loop in which so many agents collect and learn at once, over all devices of this process.

    `advance` gives up the state that it is given.

    Raises: ValueError if the devices divide neither the agents nor the environments and sequences of each; or if there
        are several processes.
    """
    if jax.process_count() > 1:
        raise ValueError("the jitted loop learns in one process: start it without the others")
    mesh = device_mesh("devices")
    own = agents % mesh.size == 0  # each device has agents of its own
    if not own and (cfg.envs % mesh.size or cfg.batch_size % mesh.size):
        raise ValueError(
            f"{agents} agents cannot be shared equally by the {mesh.size} devices that jax sees, nor can envs = "
            f"{cfg.envs} and batch_size = {cfg.batch_size} of each: use a multiple of {mesh.size} of the agents or of "
            "both, or let it see fewer (CUDA_VISIBLE_DEVICES=0 for one GPU)"
        )
    begin = jax.vmap(partial(loop.init, dreamer, environment, cfg))
    shared = None if own else mesh

    @jax.vmap
    def advance(state: LoopState, keys: Key) -> tuple[LoopState, Progress]:
        step = lambda state, key: loop.iterate(dreamer, environment, cfg, key, state, shared)  # noqa: E731
        return jax.lax.scan(step, state, keys)

    gather = partial(gathered, mesh)
    if mesh.size == 1:
        return JittedLoop(jax.jit(begin), lambda state: state, jax.jit(advance, donate_argnums=0), gather)
    if own:
        each = PartitionSpec(*mesh.axis_names)
        # What is learned has no axis of devices inside, which the check of varying axes would ask for.
        apart: Any = partial(jax.shard_map, mesh=mesh, in_specs=each, out_specs=each, check_vma=False)
        places: Any = split(mesh)
        return JittedLoop(
            jax.jit(apart(begin)),
            partial(spread, places=places),
            jax.jit(apart(advance), donate_argnums=0),
            gather,
        )
    places = _shared_places(mesh)
    return JittedLoop(
        jax.jit(begin, out_shardings=places),
        partial(spread, places=places),
        jax.jit(advance, donate_argnums=0, out_shardings=(places, replicated(mesh))),
        gather,
    )


def _shared_places(mesh: Mesh) -> Any:
    """Where every device has what each agent has learned, and the environments that are its own with their replay."""
    whole: Any = replicated(mesh)
    rows: Any = split(mesh, 1)
    return LoopState(whole, rows, rows, rows, Ring(rows, whole), rows)
