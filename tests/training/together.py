"""Starting several processes that train together, on this machine."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LIMIT = 900  # seconds for all of them
# On CPUs an exchange fails if one process comes to it 30 s after another, as may well happen where cores are few; and
# by default XLA lets exchanges that do not wait for each other happen in another order in each process, which ends all.
PATIENT = (
    "--xla_cpu_collective_timeout_seconds=900 --xla_cpu_collective_call_terminate_timeout_seconds=900 "
    "--xla_cpu_enable_concurrency_optimized_scheduler=false"
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(command: Sequence[str | Path], processes: int, devices: int = 1) -> list[subprocess.Popen]:
    """Start a Python command in so many processes, each with so many virtual devices."""
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {PATIENT} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    if processes > 1:
        environment |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(processes)}
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment | {"JAX_PROCESS_ID": str(number)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(processes)
    ]


def ended(started: Sequence[subprocess.Popen]) -> list[tuple[int, str]]:
    """Wait for all of them, kill those that take too long; return their exit codes and what they printed."""
    try:
        printed = [process.communicate(timeout=LIMIT)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, printed, strict=True)]


def run(command: Sequence[str | Path], processes: int, devices: int = 1) -> list[str]:
    """Run a Python command in so many processes, none of which may fail; return what they printed."""
    done = ended(start(command, processes, devices))
    assert not any(code for code, _ in done), "\n".join(text for _, text in done)
    return [text for _, text in done]
