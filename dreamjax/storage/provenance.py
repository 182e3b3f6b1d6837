"""Where a number comes from: the hardware and the commit of the code."""

import os
import platform
import re
import subprocess
from collections import Counter
from pathlib import Path

import flax
import jax


def machine() -> str:
    """Describe the hardware: processor, cores, JAX devices, and the versions on which numbers depend."""
    try:
        processor = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        name = processor.group(1) if processor else platform.machine()
    except FileNotFoundError:  # not a Linux
        name = platform.processor() or platform.machine()
    devices = Counter(device.device_kind for device in jax.devices())
    shown = " + ".join(f"{count} x {kind}" for kind, count in devices.items())
    versions = f"Python {platform.python_version()}, jax {jax.__version__}, flax {flax.__version__}"
    return f"{name}, {os.cpu_count()} cores; jax on {shown}; {versions}"


def commit(source: Path = Path(__file__)) -> str:
    """Return the git commit of the checkout that holds `source`, with "-dirty" if a .py file differs from it.

    "unknown" if that file is not tracked by git, as in an installed package.
    """

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", source.parent, *arguments], capture_output=True, text=True)

    try:
        if git("ls-files", "--error-unmatch", source.name).returncode:
            return "unknown"
    except FileNotFoundError:  # no git here
        return "unknown"
    head = git("rev-parse", "--verify", "HEAD")
    if head.returncode:
        return "unknown"
    is_dirty = git("diff", "--quiet", "HEAD", "--", ":/*.py").returncode != 0
    return head.stdout.strip() + ("-dirty" if is_dirty else "")
