"""Several processes train one agent: to the numbers of one process, and until one of them dies or is told to stop."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from dreamjax.acting import seeds
from dreamjax.training import processes
from tests.training import together

NUMBERS = Path(__file__).with_name("same_numbers.py")


def test_one_process_is_the_first_and_shares_with_nobody(tmp_path):
    assert processes.is_first() and processes.leave() and processes.share(3, "envs") == 3
    assert processes.own_folder(tmp_path) == processes.run_folder(tmp_path) == tmp_path
    assert [processes.anywhere(flag) for flag in (False, True)] == [False, True]


def read(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "numbers.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    together.run([NUMBERS, folder, 1, "none"], processes=1)
    return folder


FEW = [(1, 8), (2, 1)]
MANY = [pytest.param(*counts, marks=pytest.mark.slow) for counts in ((1, 2), (2, 4), (4, 1))]


@pytest.mark.parametrize(("count", "devices"), FEW + MANY)
def test_any_number_of_processes_and_devices_comes_to_the_same(alone: Path, tmp_path, count: int, devices: int):
    # They also go on from the checkpoint of one device, and one device goes on from theirs.
    together.run([NUMBERS, tmp_path, "all", alone], count, devices)
    found, expected = read(tmp_path), read(alone)
    assert found.keys() == expected.keys() and any("generation 1" in name for name in found)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
    for name in expected:
        if name.startswith("sharded "):
            whole = expected[name.removeprefix("sharded ")]
            np.testing.assert_allclose(found[name], whole, rtol=2e-4, atol=2e-5, err_msg=name)


DYING = """
import os, signal, sys, time
from dreamjax.training import processes
processes.join()
number = int(os.environ["JAX_PROCESS_ID"])
processes.meet("the beginning")
print("met", flush=True)
if number == int(sys.argv[1]):
    if sys.argv[2] == "raises":
        raise ValueError("what is wrong in one of them")
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
for i in range(10**9):
    processes.meet("a step", i)
"""


DEATHS = [pytest.param(*case, marks=pytest.mark.slow) for case in ((0, "SIGKILL"), (1, "raises"), (1, "SIGSTOP"))]


@pytest.mark.parametrize(("which", "how"), [(1, "SIGKILL"), *DEATHS])
def test_where_one_process_dies_the_others_end_and_say_so(which: int, how: str):
    started = together.start(["-c", DYING, which, how], 2)
    other = started[1 - which]
    text, _ = other.communicate(timeout=together.LIMIT)
    started[which].kill()
    assert other.returncode != 0 and "met" in text
    assert "Connection closed by peer" in text or "distributed service" in text, text


def test_processes_that_do_not_know_each_other_say_what_to_set():
    script = "from dreamjax.training import processes; processes.join()"
    child = subprocess.run(["python", "-c", script], capture_output=True, text=True, check=False)
    assert child.returncode == 1 and "JAX_COORDINATOR_ADDRESS" in child.stderr and "Traceback" not in child.stderr


def test_environments_of_all_processes_have_seeds_of_their_own():
    drawn = {seeds.training(0, 100, number, 0) for number in range(64)}
    assert len(drawn) == 64
