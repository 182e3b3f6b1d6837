"""Several processes train one agent: to the numbers of one process, and until one of them dies or is told to stop."""

import re
import signal
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import gymnasium
import jax
import numpy as np
import pytest

from dreamjax.acting import seeds
from dreamjax.acting.vector import VectorEnvironment
from dreamjax.dreamerv3 import learner
from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.storage.metrics import read_metrics
from dreamjax.storage.recordings import open_recording
from dreamjax.training import processes
from dreamjax.training.online_config import OnlineConfig, updates_due
from tests.training import together
from tests.training.same_numbers import DREAMER
from tests.training.test_online import counter

REPO = Path(__file__).resolve().parents[2]
NUMBERS = Path(__file__).with_name("same_numbers.py")
STATE = jax.eval_shape(partial(learner.init, DREAMER), jax.random.key(0))


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
    together.run([NUMBERS, folder, 1, "none", "whole"], processes=1)
    return folder


CASES = [(1, 2, "whole"), (1, 8, "sharded"), (2, 4, "sharded"), (2, 1, "sharded"), (4, 1, "whole")]


@pytest.mark.parametrize(
    ("count", "devices", "kind"),
    [
        pytest.param(2, 1, "whole", marks=pytest.mark.long),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES),
    ],
)
def test_any_number_of_processes_and_devices_comes_to_the_same(
    alone: Path, tmp_path: Path, count: int, devices: int, kind: str
):
    together.run([NUMBERS, tmp_path, "all", alone, kind], count, devices)  # it reads the checkpoint of one device, too
    found, expected = read(tmp_path), read(alone)
    assert found.keys() == expected.keys() and all(any(x in name for name in found) for x in ("generation 1", "plan 1"))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-5, err_msg=name)
    steps, back = Checkpoints(tmp_path / "checkpoints").restore(STATE)  # and one device reads theirs
    _, own = Checkpoints(alone / "checkpoints").restore(STATE)
    assert steps == 5
    for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(own), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5)


DYING = """
import os, signal, sys
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


def test_importing_everything_leaves_time_to_meet():
    script = "import experiments.dreamerv3, dreamjax.worldmodels.search, jax._src.xla_bridge as backends; "
    script += "print(backends.backends_are_initialized())"
    child = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=True)
    assert child.stdout == "False\n"


def test_processes_that_do_not_know_each_other_say_what_to_set():
    script = "from dreamjax.training import processes; processes.join()"
    child = subprocess.run([sys.executable, "-c", script], cwd=REPO, capture_output=True, text=True, check=False)
    assert child.returncode == 1 and "JAX_COORDINATOR_ADDRESS" in child.stderr and "Traceback" not in child.stderr


def test_environments_of_all_processes_have_the_seeds_that_they_have_in_one():
    def drawn(envs: int, first: int) -> list[int]:
        seen: list[int] = []

        class Told(gymnasium.Wrapper):
            def reset(self, *, seed: int | None = None, **options):
                seen.append(seed)
                return super().reset(seed=seed, **options)

        with closing(VectorEnvironment(lambda: Told(counter()), envs, 7, first=first)) as environment:
            environment.reset(seed=(0, 100))
        return [seed for seed in seen if seed in seeds.TRAIN]

    assert len(set(drawn(4, 0))) == 4
    assert drawn(4, 0) == drawn(2, 0) + drawn(2, 2)


RUN = [REPO / "experiments" / "dreamerv3.py", "--preset", "smoke", "--episodes", 2, "--folder"]


def newest(run: Path) -> int:
    """Update of the newest checkpoint; 0 if there is none."""
    return max((int(path.name) for path in run.glob("checkpoints/*") if path.name.isdigit()), default=0)


def wait_for_another(run: Path, started: list[subprocess.Popen]) -> None:
    before, end = newest(run), time.monotonic() + together.LIMIT
    while newest(run) == before and time.monotonic() < end:
        if any(process.poll() is not None for process in started):
            pytest.fail("\n".join(text for _, text in together.ended(started)))
        time.sleep(0.05)
    assert newest(run) > before


@pytest.mark.slow
def test_a_run_of_two_processes_is_killed_stopped_and_ended_by_one(tmp_path):
    command = [*RUN, tmp_path, "--distributed"]
    started = together.start(command, 2)
    wait_for_another(tmp_path, started)
    started[1].kill()
    (first, said), (second, _) = together.ended(started)
    assert first not in (0, 75) and second == -signal.SIGKILL, said

    started = together.start(command, 2)
    wait_for_another(tmp_path, started)
    started[1].terminate()
    ends = together.ended(started)
    assert [code for code, _ in ends] == [75, 75], ends
    at = [re.search(r"saved at step (\d+) of 400", text)[1] for _, text in ends]
    assert at[0] == at[1]
    episodes = (
        read_metrics(tmp_path / "metrics.jsonl")["episode"],
        read_metrics(tmp_path / "processes" / "1" / "metrics.jsonl")["episode"],
    )
    assert not set(episodes[0]["return"][0]) & set(episodes[1]["return"][0])
    assert not (tmp_path / "result.json").exists()

    together.run([*RUN, tmp_path], 1)
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    assert metrics["learn"]["loss"][0][-1] == updates_due(OnlineConfig(400, 4, 8, 16.0), 9, 2, 400) // 10 * 10
    assert open_recording(tmp_path).streams == 2 and (tmp_path / "result.json").exists()
