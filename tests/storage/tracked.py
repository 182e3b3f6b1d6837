"""A run that is written by processes of its own, for the tests of trackers."""

import os
import subprocess
import sys
from pathlib import Path

WRITE = """
import sys
from dreamjax.storage.metrics import MetricsLog
folder, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with MetricsLog(folder) as log:
    log.rewind("vision", first - 1)
    for step in range(first, last + 1):
        log.write("vision", step, {"loss": step / 2})
    log.write("memory", last, {"loss": -1.0})
"""


def write(folder: Path, first: int, last: int, **environment: str) -> None:
    """Write steps in a process of its own, as a run or a resumed one does."""
    command = [sys.executable, "-c", WRITE, str(folder), str(first), str(last)]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
