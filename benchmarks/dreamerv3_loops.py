"""What the loops around DreamerV3's update cost: online loop and jitted loop on one probe, and the share of updates.

    python benchmarks/dreamerv3_loops.py            a quarter of an hour on two cores, mostly to compile
    python benchmarks/dreamerv3_loops.py --host     the host loop's rows alone; writes nothing
    python benchmarks/dreamerv3_loops.py --smoke    a minute, to see that it runs; writes nothing

The probe is `counter`, and the agent the smallest there is, so that what is not the update shows. The host loop steps
a copy in numpy through Gymnasium; the jitted one is one program. Neither is saved or logged.

Where a step of all environments asks for eight updates, the host loop makes them in one call. It is timed beside one of
single calls: on the probe with the smallest batches, whose updates take a few milliseconds as on an accelerator, and on
walker of the Control Suite from vectors, size 1m, at the published train ratio of 512. The share of updates is the time
that as many updates take on their own, in turn with the loop, over the time of the loop. What saving would add is the
last row: the time of a save over that of the updates between two.
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
from dreamjax.reporting.timing import measure
from dreamjax.storage.folder import RunFolder
from dreamjax.training.devices import device_mesh, keep_freed_memory
from dreamjax.training.online import act_and_learn
from dreamjax.training.online_config import AT_ONCE, OnlineConfig, updates_at_once
from dreamjax.training.trainer import Training
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
    """A run of the host loop that is taken further and further, without being saved or logged."""

    def __init__(
        self, agent: DreamerConfig, environment: VectorEnvironment, cfg: OnlineConfig, most: int = AT_ONCE
    ) -> None:
        self._folder, dreamer = tempfile.TemporaryDirectory(), Dreamer.of(agent, environment.spec)
        run, at_once = RunFolder(self._folder.name, agent), updates_at_once(cfg, ENVS, most)
        self.training = Training(run, dreamer, ENVS, replace(cfg, steps=10**9), 0, at_once)
        self._loop = act_and_learn(self.training, environment)
        self.go(cfg.steps)

    def go(self, steps: int) -> jax.Array:
        """Collect so many steps further, and learn what belongs to them."""
        for _ in range(0, steps, ENVS):
            next(self._loop)
        self.training.wait()
        return self.training.state.step


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


def call_rows(
    name: str, agent: DreamerConfig, environments: Callable[[], VectorEnvironment], cfg: OnlineConfig, size: tuple
) -> list[dict[str, Any]]:
    """Time the host loop with several updates in a call, with single calls, and as many updates on their own."""
    steps, repeats = size
    hosts = {most: HostLoop(agent, environments(), cfg, most) for most in (1, AT_ONCE)}
    updates = round(steps * cfg.train_ratio / (cfg.batch_size * cfg.batch_length))
    training, before = hosts[AT_ONCE].training, {most: host.training.updates for most, host in hosts.items()}
    contenders: dict[str, Callable[[], Any]] = {
        "single": partial(hosts[1].go, steps),
        "loop": partial(hosts[AT_ONCE].go, steps),
        "updates": alone(training, updates),
        "save": training.save,
    }
    seconds = {kind: timing.seconds for kind, timing in measure(contenders, repeats).items()}
    for most, host in hosts.items():
        assert abs(host.training.updates - before[most] - updates * (repeats + 1)) <= 1
    name = f"{name}, ratio {cfg.train_ratio:g}, batch {cfg.batch_size} x {cfg.batch_length}"
    between = cfg.checkpoint_every * seconds["updates"] / updates
    return [
        result_row(f"{name}: host loop, single calls", steps / seconds["single"], "steps/s"),
        result_row(f"{name}: host loop, {training.at_once} updates in a call", steps / seconds["loop"], "steps/s"),
        result_row(f"{name}: {training.at_once} updates in a call / single", seconds["single"] / seconds["loop"], "x"),
        result_row(f"{name}: share of updates", seconds["updates"] / seconds["loop"], ""),
        result_row(f"{name}: a save / {cfg.checkpoint_every:,} updates", seconds["save"] / between, ""),
    ]


def alone(training: Training, updates: int) -> Callable[[], jax.Array]:
    """Return a function that makes so many updates, by the program of the host loop, on one draw on the device."""
    cfg, at_once, rng = training.cfg, training.at_once, np.random.default_rng(0)
    drawn, _ = training.replay.sample(rng, at_once * cfg.batch_size)
    drawn = jax.tree.map(lambda x: x.reshape(at_once, cfg.batch_size, *x.shape[1:]), drawn)
    # Where the host loop puts them, so that both run the same program.
    drawn = jax.device_put(drawn, NamedSharding(device_mesh("batch", 1), PartitionSpec(None, "batch")))
    state, key = jax.tree.map(jnp.array, training.state), jax.random.key(1)

    def advance() -> jax.Array:
        nonlocal state
        for _ in range(0, updates, at_once):
            state, _ = experience.learn_several(training.dreamer, key, state, drawn, np.int32(at_once))
        return state.step

    return advance


def main(options: set[str]) -> None:
    """Measure and write."""
    begun = time.monotonic()
    keep_freed_memory()
    small, large = (replace(agent, compute_dtype="float32") for agent in (debug(), SIZES["1m"]))
    walker = partial(VectorEnvironment, partial(ControlSuite, "walker_walk"), ENVS, 500)
    probe = partial(VectorEnvironment, Counter, ENVS, probes.counter().spec.max_steps)
    if "--smoke" in options:
        rows = probe_rows((2, 4), 4, 2, 1)
        rows += call_rows("walker", small, walker, OnlineConfig(208, 2, 4, 4), (64, 1))
    else:
        rows = [] if "--host" in options else probe_rows((16, 64), 32, 40, 5) + probe_rows((16, 64), 1, 20, 5)
        rows += call_rows("probe", small, probe, OnlineConfig(1024, 4, 16, 32), (2048, 5))
        rows += call_rows("walker", large, walker, OnlineConfig(2064, 16, 64, 512), (64, 3))
    print("\n".join(f"{row['name']}: {row['mean']:.3g} ± {row['std']:.2g} {row['unit']}" for row in rows))
    if not options:
        command = "python benchmarks/dreamerv3_loops.py"
        write_result(RESULTS, "dreamerv3_loops", "full", command, [0], time.monotonic() - begun, rows)


if __name__ == "__main__":
    main(set(sys.argv[1:]))
