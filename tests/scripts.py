"""Starting experiments as a person does, killing them, and reading what they leave."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
LIMIT = 900  # seconds for any one of them


def start(script: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(script), *arguments],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> str:
    output = ended(process)
    assert process.returncode == 0, output
    return output


def ended(process: subprocess.Popen) -> str:
    """Wait until the process ends, kill it with all it started if that takes too long; return what it printed."""
    try:
        return process.communicate(timeout=LIMIT)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"{process.args} has not ended after {LIMIT} s:\n{process.communicate()[0]}")


def kill_when(process: subprocess.Popen, path: Path) -> None:
    """SIGKILL the process and all it started as soon as `path` is there."""
    begun = time.monotonic()
    while process.poll() is None and not path.exists() and time.monotonic() < begun + LIMIT:
        time.sleep(0.02)
    arrived, ran = path.exists(), process.poll() is None
    if ran:
        os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=LIMIT)
    assert ran and arrived, output


def outcome(folder: Path) -> tuple[dict, dict]:
    """Everything that was measured in a finished run: metrics by stage and step, and the rows of the result."""
    assert "not finished" not in (folder / "summary.html").read_text()
    metrics: dict[tuple[str, int], dict] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        row.pop("seconds")
        metrics[row["stage"], row["step"]] = row
    rows = {row["name"]: row for row in json.loads((folder / "result.json").read_text())["rows"]}
    return metrics, rows


def refused(script: Path, *arguments: str) -> str:
    process = start(script, *arguments)
    output = ended(process)
    assert process.returncode != 0
    return output
