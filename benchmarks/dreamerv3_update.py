"""How fast DreamerV3 learns: one update of world model, actor and critic, and how its time grows.

    python benchmarks/dreamerv3_update.py                     six to twenty minutes on two cores, 12 GiB of memory
    python benchmarks/dreamerv3_update.py --published PATH    beside a checkout of the published code, danijar/dreamerv3
    python benchmarks/dreamerv3_update.py --sheeprl PYTHON --torchrl PYTHON    beside these, in Pythons that have them
    python benchmarks/dreamerv3_update.py --smoke             a minute, to see that it runs; writes nothing

The batch is as published, 16 sequences of 64 steps, of 15 imagined steps each, in float32 on a CPU and in bfloat16, as
published, on an accelerator, where 200m is measured as well: Crafter's spaces (a picture of 64 x 64 and one discrete
action) and walker's (vectors and a continuous action). The results of each kind of accelerator are a file of their own,
and updates follow each other there without the host waiting for each. The published code updates in turn
with ours, in the same process, where a checkout is given: it needs elements, ninjax, portal, einops, granular, scope
and ruamel.yaml installed. sheeprl and TorchRL, in PyTorch, need other packages than ours: at 1m they update in turn as
well, on as many threads, each in a process of its own (`peers/`), as they come, and with `--compiled` once more, with
their option to compile. The arithmetic that an update needs is compared with what the same machine does, in turn, in a
plain product of 1024 x 1024 matrices.
"""

import argparse
import gc
import importlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.dreamerv3 import experience, learner
from dreamjax.dreamerv3.config import SIZES, DreamerConfig, debug
from dreamjax.dreamerv3.experience import Experience
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.optim import parameter_count
from dreamjax.reporting.results import result_row, write_result
from dreamjax.reporting.timing import matrix_flops, measure
from dreamjax.training.devices import keep_freed_memory
from dreamjax.types import EnvSpec, Space

RESULTS = Path(__file__).parent / "results"
SPACES = {
    "images": ({"image": Space((64, 64, 3), np.uint8, 0, 256)}, {"action": Space((), np.int32, 0, 17)}),
    "vectors": (
        {"height": Space(()), "orientations": Space((14,)), "velocity": Space((9,))},
        {"action": Space((6,), np.float32, -1.0, 1.0)},
    ),
}
PEERS = {"sheeprl": "sheeprl==0.8.4", "torchrl": "torchrl==0.14.1"}  # library -> what to install
COMPARED = [("1m", "images"), ("12m", "images"), ("1m", "vectors"), ("12m", "vectors")]


def draw(dreamer: Dreamer, batch: int, length: int) -> Experience:
    """Invent replayed sequences."""
    rng = np.random.default_rng(0)

    def invent(like: jax.ShapeDtypeStruct) -> np.ndarray:
        shape = (batch, length, *like.shape)
        if like.dtype == bool:
            return rng.random(shape) < 0.01
        if np.issubdtype(like.dtype, np.integer):
            return rng.integers(0, 256 if len(like.shape) == 3 else 4, shape).astype(like.dtype)
        return np.clip(rng.normal(size=shape), -1, 1).astype(like.dtype)

    return jax.tree.map(invent, experience.example(dreamer))


def published_update(checkout: Path, size: str, kind: str, batch: int, length: int, dtype: str) -> Callable[[], Any]:
    """Make the published code's update on invented data: its own `train`, compiled, with its state donated."""
    sys.path[:0] = [str(checkout)]
    modules = "elements", "ninjax", "ruamel.yaml", "dreamerv3.agent", "embodied.jax.nets"
    elements, ninjax, yaml, agents, nets = map(_module, modules)
    del sys.path[0]
    nets.COMPUTE_DTYPE = getattr(jnp, dtype)
    configs = yaml.YAML(typ="safe").load(checkout / "dreamerv3" / "configs.yaml")
    config = elements.Config(configs["defaults"]).update(configs[f"size{size}"])
    settings = dict(batch_size=batch, batch_length=length, replay_context=1, report_length=32, seed=0, logdir="")
    settings |= dict(config.agent, jax=config.jax, replica=0, replicas=1)
    shared = {"reward": elements.Space(np.float32)}
    shared |= {name: elements.Space(bool) for name in ("is_first", "is_last", "is_terminal")}
    observed, acted = (
        {name: elements.Space(space.dtype, space.shape, space.low, space.high) for name, space in spaces.items()}
        for spaces in SPACES[kind]
    )
    model = object.__new__(agents.Agent)  # without the loop around it, which its own `__new__` sets up
    model.__init__(observed | shared, acted, elements.Config(**settings))
    rng = np.random.default_rng(0)

    def invent(space: Any) -> jax.Array:
        shape = (batch, length + 1, *space.shape)
        if space.dtype == bool:
            return jnp.asarray(rng.random(shape) < 0.01)
        if np.issubdtype(space.dtype, np.integer):
            return jnp.asarray(rng.integers(0, 256 if len(space.shape) == 3 else 4, shape).astype(space.dtype))
        return jnp.asarray(np.clip(rng.normal(size=shape), -1, 1).astype(space.dtype))

    data = {name: invent(space) for name, space in (observed | shared | acted | model.ext_space).items()}
    data["consec"] = jnp.zeros_like(data["consec"])  # the first piece of a sequence
    carry = ninjax.pure(model.init_train)({}, batch, seed=0)[1]
    state = ninjax.init(model.train)({}, carry, data, seed=0)
    step = jax.jit(ninjax.pure(model.train), donate_argnums=0)
    updates = 0

    def learn() -> Any:
        nonlocal state, updates
        updates += 1
        state, (_, _, metrics) = step(state, carry, data, seed=jnp.array([updates, 0], jnp.uint32))
        return metrics

    return learn


def _module(name: str) -> Any:
    return importlib.import_module(name)


def has(python: str, package: str) -> bool:
    """Say whether a package is installed for another Python."""
    command = [python, "-c", f"import importlib.metadata; importlib.metadata.version({package!r})"]
    try:
        return not subprocess.run(command, capture_output=True, check=False).returncode
    except OSError:
        return False


def task_of(name: str, cfg: DreamerConfig, kind: str, batch: int, length: int) -> dict[str, Any]:
    """Describe for `peers/` what is updated."""
    observed, acted = SPACES[kind]
    action = acted["action"]
    discrete = np.issubdtype(action.dtype, np.integer)
    return {
        "size": "1m" if name == "debug" else name,
        "config": asdict(cfg),
        "observation": [space.shape for space in observed.values()],
        "actions": int(action.high) if discrete else action.shape[0],
        "discrete": discrete,
        "batch": batch,
        "length": length,
    }


@contextmanager
def peer(library: str, python: str, task: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Callable[[], None]]]:
    """Let another library make ready in a Python of its own: what it says of itself, and a function that updates once.

    It keeps the memory that it frees, as this process does.
    """
    keeping = {"MALLOC_TRIM_THRESHOLD_": str(2**62), "MALLOC_MMAP_MAX_": "0", "MALLOC_ARENA_MAX": "1"}
    command = [python, "-m", "benchmarks.peers", library, json.dumps(task)]
    environment = os.environ | keeping | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        asked, answered = process.stdin, process.stdout
        assert asked is not None and answered is not None  # both are pipes

        def answer() -> str:
            if line := answered.readline():
                return line
            raise RuntimeError(f"{library} in {python} ended with {process.wait()}; above is what it wrote")

        def update() -> None:
            print("go", file=asked, flush=True)
            if not math.isfinite(number := float(answer())):
                raise RuntimeError(f"{library} computes {number}: that is no update to compare with")

        yield json.loads(answer()), update


def rows_of(
    name: str,
    cfg: DreamerConfig,
    kind: str,
    batch: int,
    length: int,
    repeats: int,
    checkout: Path | None,
    libraries: list[tuple[str, str, bool]],
) -> list[dict[str, Any]]:
    """Measure one configuration."""
    dreamer = Dreamer.of(cfg, EnvSpec(*SPACES[kind], 1))
    key = jax.random.key(0)
    state = jax.jit(partial(learner.init, dreamer))(key)
    drawn = jax.device_put(draw(dreamer, batch, cfg.context + length))
    begun = time.perf_counter()
    update = experience.learn.lower(dreamer, key, state, drawn).compile()
    compiled = time.perf_counter() - begun
    memory = update.memory_analysis()
    assert memory is not None  # CPUs, GPUs and TPUs have one
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes

    def learn() -> jax.Array:
        nonlocal state
        state, learned = update(key, state, drawn)
        return learned.metrics["loss"]

    square = jnp.ones((1024, 1024))
    contenders: dict[str, Callable[[], Any]] = {"update": learn, "product": partial(jax.jit(lambda a: a @ a), square)}
    is_compared = name in SIZES
    if checkout is not None and is_compared:
        contenders["published"] = published_update(checkout, name, kind, batch, length, cfg.compute_dtype)
    parameters = {"ours": parameter_count(state.params)}
    with ExitStack() as running:
        if name in ("1m", "debug"):
            for library, python, is_compiled in libraries:
                task = task_of(name, cfg, kind, batch, length) | {"compiled": is_compiled}
                described, update_peer = running.enter_context(peer(library, python, task))
                called = described["versions"] + ", compiled" * is_compiled
                contenders[called], parameters[called] = update_peer, described["parameters"]
        timings = measure(contenders, repeats, 1 if jax.default_backend() == "cpu" else 20)
    flops = matrix_flops(partial(experience.learn, dreamer), key, jax.eval_shape(lambda: state), drawn)
    share = timings["update"].rate(flops) / timings["product"].rate(2 * 1024**3)
    published = float(timings["published"].seconds.mean()) if "published" in timings else None
    rows = [
        result_row(f"{name}, {kind}: update", timings["update"].seconds, "s", published),
        result_row(f"{name}, {kind}: of the speed of a matrix product", share, ""),
        result_row(f"{name}, {kind}: memory", np.array([held / 2**20]), "MiB"),
    ]
    if published is not None:
        ratio = timings["published"].seconds / timings["update"].seconds
        rows.append(result_row(f"{name}, {kind}: published code's time / ours", ratio, "x"))
    if is_compared:
        rows.append(result_row(f"{name}, {kind}: arithmetic", np.array([flops / 1e9]), "GFLOP"))
        rows.append(result_row(f"{name}, {kind}: compilation", np.array([compiled]), "s"))
    for called, count in parameters.items() if len(parameters) > 1 else ():
        rows.append(result_row(f"{name}, {kind}: parameters, {called}", np.array([count]), ""))
        if called in timings:
            ratio = timings[called].seconds / timings["update"].seconds
            rows.append(result_row(f"{name}, {kind}: time of {called} / ours", ratio, "x"))
    print("; ".join(f"{row['name'].rpartition(':')[2]} {row['mean']:.3g} {row['unit']}" for row in rows), flush=True)
    return rows


def main(smoke: bool, checkout: Path | None, libraries: list[tuple[str, str, bool]]) -> None:
    """Measure and write."""
    begun = time.monotonic()
    keep_freed_memory()
    on_cpu = jax.default_backend() == "cpu"
    sizes = {size: replace(cfg, compute_dtype="float32") if on_cpu else cfg for size, cfg in SIZES.items()}
    small, full = sizes["1m"], replace(SIZES["1m"], compute_dtype="float32")
    horizon = lambda steps: replace(small, behaviour=replace(small.behaviour, horizon=steps))  # noqa: E731
    compared = COMPARED if on_cpu else [*COMPARED, ("200m", "images")]
    cases = [
        *((size, sizes[size], kind, 16, 64) for size, kind in compared),
        ("1m batch 8", small, "vectors", 8, 64),
        ("1m batch 32", small, "vectors", 32, 64),
        ("1m length 32", small, "vectors", 16, 32),
        ("1m length 128", small, "vectors", 16, 128),
        ("1m horizon 5", horizon(5), "vectors", 16, 64),
        ("1m horizon 30", horizon(30), "vectors", 16, 64),
        ("1m in bfloat16", SIZES["1m"], "vectors", 16, 64) if on_cpu else ("1m in float32", full, "vectors", 16, 64),
    ]
    if smoke:
        cases = [("debug", replace(debug(), compute_dtype="float32"), kind, 2, 4) for kind in SPACES]
    rows = []
    for name, cfg, kind, batch, length in cases:
        print(f"{name}, {kind}:", end=" ", flush=True)
        repeats = 1 if smoke else 3 if on_cpu and name == "12m" else 7
        rows += rows_of(name, cfg, kind, batch, length, repeats, checkout, libraries)
        gc.collect()
    if not smoke:
        asked = [" --published PATH"] * bool(checkout)
        asked += [f" --{library} PYTHON" for library, _, is_compiled in libraries if not is_compiled]
        asked += [" --compiled"] * any(is_compiled for _, _, is_compiled in libraries)
        command = "python benchmarks/dreamerv3_update.py" + "".join(asked)
        device = "" if on_cpu else "_" + jax.devices()[0].device_kind.lower().replace(" ", "_")
        file = RESULTS / f"dreamerv3_update{device}.json"
        write_result(file, file.stem, "full", command, [0], time.monotonic() - begun, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, metavar="PATH")
    for one in PEERS:
        parser.add_argument(f"--{one}", metavar="PYTHON")
    parser.add_argument("--compiled", action="store_true", help="those two once more, with their option to compile")
    parser.add_argument("--smoke", action="store_true")
    chosen = parser.parse_args()
    given = {one: python for one in PEERS if (python := getattr(chosen, one))}
    if given and jax.default_backend() != "cpu":
        parser.error("sheeprl and TorchRL are measured on a CPU: set JAX_PLATFORMS=cpu")
    for one, python in given.items():
        if not has(python, one):
            parser.error(f"{python} has no {one}: make it a venv of its own and install {PEERS[one]} there")
    choices = (False, True) if chosen.compiled else (False,)
    main(chosen.smoke, chosen.published, [(*each, choice) for each in given.items() for choice in choices])
