"""What the loops around DreamerV3's update cost: online loop and jitted loop on one probe, and the share of updates.

    python benchmarks/dreamerv3_loops.py            five to ten minutes on two cores, mostly to compile
    python benchmarks/dreamerv3_loops.py --host     the host loop's rows alone; writes nothing
    python benchmarks/dreamerv3_loops.py --smoke    a minute, to see that it runs; writes nothing

The probe is `counter`, and the agent the smallest there is, so that what is not the update shows. The host loop steps
a copy in numpy through Gymnasium; the jitted one is one program. Where a step of all environments asks for eight
updates, the host loop makes them in one call, beside a run that makes single calls: with the smallest batches, whose
updates take about as long as they do on an accelerator, and on walker of the Control Suite from vectors, size 1m, at
the published train ratio of 512. The share of updates is the time that as many updates take on their own, in turn with
the loop, over the time of the loop, with what it takes to read and save the run.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dreamjax.acting.vector import VectorEnvironment
from dreamjax.dreamerv3 import experience, loop
from dreamjax.dreamerv3.config import SIZES, DreamerConfig, debug
from dreamjax.dreamerv3.loop import LoopConfig
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.envs import probes
from dreamjax.envs.dmc import ControlSuite
from dreamjax.reporting.results import result_row, write_result
from dreamjax.reporting.timing import Timing, measure
from dreamjax.storage.folder import RunFolder
from dreamjax.training.devices import device_mesh, keep_freed_memory
from dreamjax.training.online import train_online
from dreamjax.training.trainer import AT_ONCE, OnlineConfig, updates_at_once
from dreamjax.types import Environment

RESULTS = Path(__file__).parent / "results" / "dreamerv3_loops.json"
ENVS = 16


class Counter(gymnasium.Env[np.ndarray, np.integer]):
    """The probe `counter` in numpy."""

    observation_space = gymnasium.spaces.Box(0, 1, (5,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._value = 0
        return np.eye(5, dtype=np.float32)[0], {}

    def step(self, action: np.integer) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._value = min(self._value + int(action), 4)
        return np.eye(5, dtype=np.float32)[self._value], float(self._value == 4), self._value == 4, False, {}


class HostLoop:
    """A run of the host loop that is taken further and further."""

    def __init__(
        self, agent: DreamerConfig, environment: VectorEnvironment, cfg: OnlineConfig, at_once: int = AT_ONCE
    ) -> None:
        self.dreamer, self.at_once = Dreamer.of(agent, environment.spec), updates_at_once(cfg, ENVS, at_once)
        self._environment, self._cfg, self._steps = environment, cfg, cfg.steps
        self._folder = tempfile.TemporaryDirectory()
        self._run = RunFolder(self._folder.name, agent)
        self.go(0)

    def go(self, steps: int) -> None:
        """Collect and learn `steps` further; what it takes to read and write the run is in it."""
        self._steps += steps
        cfg = replace(self._cfg, steps=self._steps)
        self.state = train_online(self._run, self.dreamer, self._environment, cfg, 0, at_once=self.at_once)


def jitted(environment: Environment, agent: DreamerConfig, cfg: LoopConfig, iterations: int) -> Any:
    """Return a function that runs so many iterations of the jitted loop, in one call."""
    dreamer = Dreamer.of(agent, environment.spec)

    @partial(jax.jit, donate_argnums=0)
    def run(state: loop.LoopState, key: jax.Array) -> tuple[loop.LoopState, loop.Progress]:
        iterate = lambda state, key: loop.iterate(dreamer, environment, cfg, key, state)  # noqa: E731
        return jax.lax.scan(iterate, state, jax.random.split(key, iterations))

    state = jax.jit(partial(loop.init, dreamer, environment, cfg))(jax.random.key(0))
    calls = 0

    def advance() -> loop.Progress:
        nonlocal state, calls
        calls += 1
        state, progress = run(state, jax.random.fold_in(jax.random.key(1), calls))
        return progress

    return advance


def probe_rows(batch: tuple[int, int], ratio: float, iterations: int, repeats: int) -> list[dict[str, Any]]:
    """Time both loops on the probe."""
    environment, agent = probes.counter(), replace(debug(), compute_dtype="float32")
    inside = LoopConfig(ENVS, *batch, ratio)
    _, steps = inside.rhythm
    stepped = VectorEnvironment(Counter, ENVS, environment.spec.max_steps)
    host = HostLoop(agent, stepped, OnlineConfig(2 * ENVS * batch[1] + batch[0] * batch[1], *batch, ratio))
    amount = iterations * steps * ENVS
    timings = measure(
        {"jitted": jitted(environment, agent, inside, iterations), "host": partial(host.go, amount)}, repeats
    )
    rate = {name: timing.rate(amount) for name, timing in timings.items()}
    name = f"probe, ratio {ratio:g}, batch {batch[0]} x {batch[1]}"
    return [
        *(result_row(f"{name}: {kind} loop", values, "steps/s") for kind, values in rate.items()),
        result_row(f"{name}: jitted / host", rate["jitted"] / rate["host"], "x"),
    ]


def call_rows(batch: tuple[int, int], ratio: float, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Time the host loop on the probe with all updates of a step in one call, and in single calls."""
    agent, begin = replace(debug(), compute_dtype="float32"), 2 * ENVS * batch[1] + batch[0] * batch[1]
    cfg = OnlineConfig(begin, *batch, ratio)
    hosts = {
        at_once: HostLoop(agent, VectorEnvironment(Counter, ENVS, probes.counter().spec.max_steps), cfg, at_once)
        for at_once in (1, AT_ONCE)
    }
    timings = measure({str(at_once): partial(host.go, steps) for at_once, host in hosts.items()}, repeats)
    return _beside(f"probe, ratio {ratio:g}, batch {batch[0]} x {batch[1]}", hosts[AT_ONCE], timings, steps)


def share_rows(agent: DreamerConfig, cfg: OnlineConfig, steps: int, repeats: int) -> list[dict[str, Any]]:
    """Time the host loop on walker, in the same way, and measure how much of its time its updates take."""
    hosts = {
        at_once: HostLoop(agent, VectorEnvironment(partial(ControlSuite, "walker_walk"), ENVS, 500), cfg, at_once)
        for at_once in (1, AT_ONCE)
    }
    due, contenders = round(steps * cfg.train_ratio / (cfg.batch_size * cfg.batch_length)), {}
    before = {at_once: int(host.state.step) for at_once, host in hosts.items()}
    for at_once, host in hosts.items():
        contenders[f"updates {at_once}"] = alone(host, cfg, due)
        contenders[str(at_once)] = partial(host.go, steps)
    timings = measure(contenders, repeats)
    for at_once, host in hosts.items():
        assert abs(int(host.state.step) - before[at_once] - due * (repeats + 1)) <= 1
    name = f"walker, ratio {cfg.train_ratio:g}"
    share = {n: timings[f"updates {n}"].seconds / timings[str(n)].seconds for n in hosts}
    return [
        *_beside(name, hosts[AT_ONCE], timings, steps),
        result_row(f"{name}: share of updates, single calls", share[1], ""),
        result_row(f"{name}: share of updates", share[AT_ONCE], ""),
    ]


def alone(host: HostLoop, cfg: OnlineConfig, updates: int) -> Callable[[], jax.Array]:
    """Return a function that makes so many updates as the host loop calls them, on batches that are on the device."""
    rng, length = np.random.default_rng(0), host.dreamer.cfg.context + cfg.batch_length

    def invent(like: jax.ShapeDtypeStruct) -> np.ndarray:
        return rng.integers(0, 2, (host.at_once, cfg.batch_size, length, *like.shape)).astype(like.dtype)

    # Where the host loop puts them, so that both run the same program.
    split = NamedSharding(device_mesh("batch", 1), PartitionSpec(None, "batch"))
    drawn = jax.device_put(jax.tree.map(invent, experience.example(host.dreamer)), split)
    state = jax.tree.map(jnp.array, host.state)

    def advance() -> jax.Array:
        nonlocal state
        for _ in range(0, updates, host.at_once):
            count = np.int32(host.at_once)
            state, learned = experience.learn_several(host.dreamer, jax.random.key(1), state, drawn, count)
        return learned.metrics["loss"]

    return advance


def _beside(name: str, host: HostLoop, timings: dict[str, Timing], steps: int) -> list[dict[str, Any]]:
    single, several = timings["1"].rate(steps), timings[str(AT_ONCE)].rate(steps)
    return [
        result_row(f"{name}: host loop, single calls", single, "steps/s"),
        result_row(f"{name}: host loop", several, "steps/s"),
        result_row(f"{name}: {host.at_once} updates in a call / single calls", several / single, "x"),
    ]


def main(options: set[str]) -> None:
    """Measure and write."""
    begun = time.monotonic()
    keep_freed_memory()
    if "--smoke" in options:
        rows = probe_rows((2, 4), 4, 2, 1) + call_rows((2, 4), 4, 64, 1)
        rows += share_rows(replace(debug(), compute_dtype="float32"), OnlineConfig(200, 2, 4, 4), 64, 1)
    else:
        rows = [] if "--host" in options else probe_rows((16, 64), 32, 40, 5) + probe_rows((16, 64), 1, 20, 5)
        rows += call_rows((4, 16), 32, 2048, 5)
        rows += share_rows(replace(SIZES["1m"], compute_dtype="float32"), OnlineConfig(2064, 16, 64, 512), 128, 3)
    print("\n".join(f"{row['name']}: {row['mean']:.3g} ± {row['std']:.2g} {row['unit']}" for row in rows))
    if not options:
        command = "python benchmarks/dreamerv3_loops.py"
        write_result(RESULTS, "dreamerv3_loops", "full", command, [0], time.monotonic() - begun, rows)


if __name__ == "__main__":
    main(set(sys.argv[1:]))
