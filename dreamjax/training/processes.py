"""Several processes, on one machine or many, that train together: how they meet, what is whose, and how they end.

All of them run the same program. What is trained is one, spread over the devices of all: see `training.devices`. What
is collected is each one's own: environments, seeds, replay, and the log of its episodes, in a folder of its own within
that of the run. The first process alone writes checkpoints, and goes on alone when training is done. The folder is one
that all of them see.
"""

import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from dreamjax.storage.folder import folder_of
from dreamjax.training.devices import device_mesh, from_process_local, replicated, split
from dreamjax.training.signals import StopRequest

# What they are found by where JAX does not find them by itself: it reads the first of these, and none of the others.
ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
SILENT_S = 15  # a process that has not been heard of for so long is dead, and the others end
LEAVING_S = 30  # the last one may come so much later to the end than the first, which may be there for its error


def join() -> None:
    """Meet the other processes. Nothing may have used JAX before.

    JAX knows its place in a job of SLURM, Open MPI or Kubernetes, and on TPU pods. Elsewhere the environment says it:
    `JAX_COORDINATOR_ADDRESS`, host:port of the first process, on a port that is free there; `JAX_NUM_PROCESSES`; and
    `JAX_PROCESS_ID`, from 0 on. From then on the processes live and die together: where one is killed, hangs or raises,
    JAX ends the others within half a minute, and says which it was.

    Raises: SystemExit, with what to do, where neither is known.
    """
    # It would handle SIGTERM in place of `training.signals`.
    jax.config.update("jax_enable_preemption_service", False)
    count, number = (int(os.environ[name]) if name in os.environ else None for name in (COUNT, NUMBER))
    try:
        jax.distributed.initialize(
            num_processes=count,
            process_id=number,
            heartbeat_timeout_seconds=SILENT_S,
            shutdown_timeout_seconds=LEAVING_S,
        )
    except ValueError as error:
        raise SystemExit(
            f"the other processes are not known ({error}): start this in a job of SLURM, Open MPI or Kubernetes, or "
            f"set {ADDRESS} to host:port of the first process, {COUNT} to how many there are, and {NUMBER} to which of "
            "them this is, from 0 on"
        ) from None
    # They connect at their first exchange, and CPUs wait 30 s for that: now, while none compiles longer than another.
    mesh = device_mesh("everyone")
    everyone = from_process_local(np.ones(jax.local_device_count(), np.float32), split(mesh))
    jax.block_until_ready(jax.jit(jnp.sum, out_shardings=replicated(mesh))(everyone))


def leave() -> bool:
    """Part from the other processes, when all have come here; return whether this is the one that goes on alone.

    Alone it may use its own devices only.
    """
    jax.distributed.shutdown()
    return is_first()


def is_first() -> bool:
    """Whether this is the process that writes what all have in common; the only one is."""
    return jax.process_index() == 0


def share(total: int, what: str) -> int:
    """Return the part of each process; `what` names the setting. Raises ValueError if it cannot be shared equally."""
    if total % jax.process_count():
        raise ValueError(
            f"{what} = {total} cannot be shared equally by {jax.process_count()} processes: use a multiple of "
            f"{jax.process_count()}"
        )
    return total // jax.process_count()


def label(name: str) -> str:
    """Return a name for what every process shows of its own."""
    return name if is_first() else f"{name}, process {jax.process_index()}"


def anywhere(flag: bool) -> bool:
    """Whether it is so in any process. All of them ask together."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


def is_time_to_ask(step: int) -> bool:
    """Whether processes ask each other after this step of theirs: several do at every eighth.

    They wait for each other then, and for all that was begun on their devices, which are to be kept ahead.
    """
    return jax.process_count() == 1 or step % 8 == 0


def asked_to_stop(stop: StopRequest) -> bool:
    """Whether a signal has asked any process to stop, which all then take for theirs. All of them ask together."""
    asked = anywhere(bool(stop))
    if asked and not stop:
        stop.number = signal.SIGTERM
    return asked


def meet(what: str, number: int = 0) -> None:
    """Wait for all processes to come here. Raises AssertionError if they do not come with the same number."""
    if jax.process_count() > 1:
        multihost_utils.assert_equal(np.int64(number), f"the processes do not agree on {what}, {number} in this one")


def own_folder(run: Path) -> Path:
    """Return the folder that this process writes to: the first that of the run, the others one within it."""
    return folder_of(run, jax.process_index())


def run_folder(own: Path) -> Path:
    """Return the folder of the run, given that of this process."""
    return own if is_first() else own.parents[1]
