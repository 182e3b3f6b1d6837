"""Every benchmark runs in its smallest form. Speeds are not tested here; what was measured is in benchmarks/results."""

import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    "name",
    [
        *("accelerator_programs", "car_racing", "cluster", "dream_throughput", "dreamerv3_loops", "dreamerv3_update"),
        *("evaluation", "training_throughput"),
        pytest.param("play", marks=pytest.mark.page),
    ],
)
def test_benchmark_runs(name: str) -> None:
    command = [sys.executable, str(REPO / "benchmarks" / f"{name}.py"), "--smoke"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert any(what in done.stdout for what in ("/s", "update", "launches"))


@pytest.mark.parametrize("library", ["sheeprl", "torchrl"])
def test_python_without_the_library_is_refused(library: str) -> None:
    command = [sys.executable, str(REPO / "benchmarks" / "dreamerv3_update.py"), f"--{library}", sys.executable]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{sys.executable} has no {library}: " in done.stderr and f"{library}==" in done.stderr
