"""Small environments for the tests of this folder, some of which misbehave. Imports no JAX, for quick workers."""

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

Arrived = tuple[Any, float, bool, bool, dict[str, Any]]


class Ragged(gymnasium.Env):
    """Episodes that are told apart by everything: pictures, rewards, lengths, and how they end."""

    observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = spaces.Box(-1.0, 1.0, ())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.seed = int(self.np_random.integers(1000)) if seed is None else seed
        self.steps = 0
        return self._picture(), {}

    def step(self, action: np.ndarray) -> Arrived:
        assert -1 <= action <= 1 and action.dtype == np.float32 and self.steps < self.length
        self.steps += 1
        over = self.steps == self.length
        ends = self.seed % 3  # by itself, by a limit, or both
        info = {"steps": self.steps, "seed": self.seed}
        return self._picture(), self.seed % 64 + float(action), over and ends != 1, over and ends != 0, info

    @property
    def length(self) -> int:
        return 3 + self.seed % 13

    def _picture(self) -> np.ndarray:
        picture = np.full((64, 64, 3), (7 * self.seed + self.steps) % 256, np.uint8)
        picture[0] = np.random.default_rng([self.seed, self.steps]).integers(0, 256, (64, 3), np.uint8)
        return picture


class Placed(Ragged):
    """Is named after the node of a cluster that it is on."""

    def __str__(self) -> str:
        import ray

        return ray.get_runtime_context().get_node_id()


def misbehave(how: str) -> None:
    """Raise an error, be killed, or hang: as environments do."""
    if how == "raise":
        raise LookupError("the simulator is gone")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(600)
    raise AssertionError(how)


class Faulty(Ragged):
    """Misbehaves at a step of the episode of a seed, `times` times; files in `folder` count, for all processes."""

    def __init__(self, folder: Path, how: str, seed: int, at: int = 2, times: int = 1) -> None:
        self.folder, self.how, self.bad_seed, self.at, self.times = folder, how, seed, at, times

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        arrived = super().reset(seed=seed)
        self._maybe()
        return arrived

    def step(self, action: np.ndarray) -> Arrived:
        arrived = super().step(action)
        self._maybe()
        return arrived

    def _maybe(self) -> None:
        if self.seed != self.bad_seed or self.steps != self.at:
            return
        count = len(list(self.folder.iterdir()))
        if count < self.times:
            (self.folder / f"{count}").touch(exist_ok=False)
            misbehave(self.how)


class Scripted(gymnasium.Env):
    """Counts its steps, and does what its action says: 0 nothing, 1 raise, 2 be killed, 3 hang, 4 end, 5 reward NaN."""

    observation_space = spaces.Box(-1, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(6)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.number = int(self.np_random.integers(2**20))
        self.time = 0
        return self._observation(), {"ignored": 1.0}

    def step(self, action: np.int64) -> Arrived:
        self.time += 1
        if action in (1, 2, 3):
            misbehave(["raise", "kill", "hang"][action - 1])
        reward = np.nan if action == 5 else float(self.time)
        info = {"time": self.time, "by": {"half": self.time / 2}, "name": "script", "unknown": np.nan}
        return self._observation(), reward, action == 4, self.time >= 6, info

    def _observation(self) -> np.ndarray:
        return np.array([self.time, self.number], np.float64)


class FailsToReset(gymnasium.Env):
    """Never gets to its first step."""

    observation_space = spaces.Discrete(3)
    action_space = spaces.Discrete(6)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict]:
        raise LookupError("no luck")


class Everything(gymnasium.Env):
    """Every kind of space, nested; the observation shows the last action, and counts."""

    action_space = spaces.Dict(
        button=spaces.Discrete(4, start=3),
        sticks=spaces.Tuple([spaces.Box(-1.0, 1.0, (2,), np.float64), spaces.MultiDiscrete([9, 9])]),
        bits=spaces.MultiBinary(3),
    )
    observation_space = spaces.Dict(
        image=spaces.Box(0, 255, (4, 5, 3), np.uint8),
        wide=spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 5.0]), dtype=np.float64),
        level=spaces.Box(-100, 1000, (2, 1), np.int64),
        mask=spaces.Box(0, 1, (2,), dtype=np.bool_),
        deep=spaces.Dict(last=action_space, number=spaces.Discrete(100)),
    )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.time, self.noise = 0, self.np_random.uniform(0, 1, 2)
        nothing = {"button": 3, "sticks": (np.zeros(2), np.zeros(2, int)), "bits": np.zeros(3, np.int8)}
        return self._observation(nothing), {}

    def step(self, action: dict[str, Any]) -> Arrived:
        assert self.action_space.contains(action), action
        self.time += 1
        return self._observation(action), 0.5, False, False, {}

    def _observation(self, last: dict[str, Any]) -> dict[str, Any]:
        return {
            "image": np.full((4, 5, 3), self.time, np.uint8),
            "wide": self.noise,
            "level": np.array([[self.time], [-self.time]]),
            "mask": np.array([self.time % 2 == 0, True]),
            "deep": {"last": last, "number": self.time},
        }


class Returning(gymnasium.Env):
    """Observes whatever it was given, in its second step."""

    action_space = spaces.Discrete(2)
    observation_space = spaces.Dict(
        image=spaces.Box(0, 255, (2, 2), np.uint8),
        inner=spaces.Tuple([spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3), spaces.MultiDiscrete([2, 2])]),
    )

    def __init__(self, change: dict[str, Any]) -> None:
        self.change = change

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        return self._observation({}), {}

    def step(self, action: np.int64) -> Arrived:
        return self._observation(self.change), 0.0, False, False, {}

    def _observation(self, change: dict[str, Any]) -> Any:
        parts = {"image": np.zeros((2, 2), np.uint8), "0": np.zeros(2), "1": 2, "2": np.array([0, 1])} | change
        observed = {"image": parts["image"], "inner": (parts["0"], parts["1"], parts["2"])}
        return {name: value for name, value in observed.items() if value is not None}


def hangs_at_once() -> gymnasium.Env:
    """Never make an environment."""
    time.sleep(600)
    raise AssertionError


def is_running(pid: int) -> bool:
    """Whether a process still runs; one that is dead and waits to be read by its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def running_children() -> set[int]:
    """The processes that this one started and that still run."""
    found = set()
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile, and has none
            found |= {int(child) for child in (thread / "children").read_text().split()}
    return {child for child in found if is_running(child)}


def wait_until_gone(pids: set[int] | list[int], seconds: float = 20.0) -> None:
    """Wait until none of the processes runs. Raises AssertionError if one still does after the limit."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.02)
