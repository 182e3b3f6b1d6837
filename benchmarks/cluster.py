"""What workers on a Ray cluster cost beside processes of this machine: steps a second, and the time of the driver.

    python benchmarks/cluster.py            three minutes on two cores
    python benchmarks/cluster.py --smoke    half a minute, to see that it runs; writes nothing

The pool of `dreamjax.acting` steps environments with one action, two groups in a worker, as where a policy acts for one
group while the worker steps the other; the reset of an episode counts as a step. `pictures` costs nothing but to hand
over a picture of 64 x 64, so that what is seen is the pool; Doom is Take Cover. Processes and actors take turns; the
cluster has one node, this one, so that the network is not in it. The driver's own time is the processor time of all
threads of the process that holds the pool: what one machine in front of many workers has least of.
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from dreamjax.acting import cluster
from dreamjax.acting.pool import BATCH, Pool
from dreamjax.acting.worker import Order
from dreamjax.envs.vizdoom import TakeCover
from dreamjax.reporting.results import result_row, write_result

RESULTS = Path(__file__).parent / "results" / "cluster.json"


class Pictures(gymnasium.Env[np.ndarray, np.ndarray]):
    """A picture that is always the same, and has no end."""

    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, ())
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        return self.picture, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self.picture, 1.0, False, False, {}


class Stepper:
    """Steps all environments of a pool, always with the same action."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.action = pool, [np.array(0.5, np.float32)]
        self.over = [np.ones(pool.size, bool) for _ in range(pool.groups)]

    def __call__(self, rounds: int) -> tuple[float, float]:
        """Step every environment so often; return the seconds and the processor seconds of this process, per step."""
        pool, left = self.pool, [rounds] * self.pool.groups
        begun, used = time.perf_counter(), time.process_time()
        for group in range(pool.groups):
            self._send(group)
        while any(left):
            for answer in pool.receive():
                pool.observation(answer.group)
                reply = answer.reply
                if reply.errors:
                    raise RuntimeError(f"an environment failed: {reply.errors}")
                self.over[answer.group] = reply.terminated | reply.truncated
                left[answer.group] -= 1
                if left[answer.group]:
                    self._send(answer.group)
        steps = rounds * len(pool)
        return (time.perf_counter() - begun) / steps, (time.process_time() - used) / steps

    def _send(self, group: int) -> None:
        orders: list[Order] = [0 if over else self.action for over in self.over[group]]
        self.pool.send(group, orders)


def rows_of(
    name: str, make_env: Callable[[], gymnasium.Env], workers: int, size: int, rounds: int, repeats: int
) -> list[dict]:
    """Let both kinds of workers step the same environments in turn."""
    seconds: dict[str, list[float]] = {"processes": [], "actors": []}
    driver: dict[str, list[float]] = {"processes": [], "actors": []}
    with ExitStack() as open_pools:
        made = partial(Pool, make_env, 2 * size * workers, workers, groups=2)
        steppers = {"processes": Stepper(open_pools.enter_context(made()))}
        with cluster.on_ray("local", 1 / workers):
            steppers["actors"] = Stepper(open_pools.enter_context(made()))
        for repeat in range(repeats + 1):
            for kind, step in steppers.items():
                taken, used = step(rounds)
                if repeat:  # the first makes the environments
                    seconds[kind].append(taken)
                    driver[kind].append(used)
    name = f"{name}, {workers} workers, groups of {size}"
    rates = {kind: 1 / np.array(taken) for kind, taken in seconds.items()}
    return [
        *(result_row(f"{name}: {kind}", rate, "steps/s") for kind, rate in rates.items()),
        result_row(f"{name}: actors / processes", rates["actors"] / rates["processes"], "x"),
        *(
            result_row(f"{name}: the driver's own time, {kind}", 1e6 * np.array(t), "us/step")
            for kind, t in driver.items()
        ),
    ]


def main(smoke: bool) -> None:
    """Measure and write."""
    begun = time.monotonic()
    rounds, repeats = (3, 1) if smoke else (400, 7)
    rows = rows_of("pictures", Pictures, 2, BATCH, rounds, repeats)
    if not smoke:
        rows += rows_of("pictures", Pictures, 8, BATCH, rounds // 4, repeats)
        rows += rows_of("pictures", Pictures, 2, 16 * BATCH, rounds // 8, repeats)
    rows += rows_of("Doom", TakeCover, 2, BATCH, rounds // 4 + 1, repeats)
    print("\n".join(f"{row['name']}: {row['mean']:.4g} +- {row['std']:.2g} {row['unit']}" for row in rows))
    if not smoke:
        command = "python benchmarks/cluster.py"
        write_result(RESULTS, "cluster", "full", command, [0], time.monotonic() - begun, rows)


if __name__ == "__main__":
    main("--smoke" in sys.argv[1:])
