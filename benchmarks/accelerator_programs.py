"""What an accelerator that is not here would be given to do: XLA compiles for it all the same, and the text is counted.

    make accelerators                                                       both chips, hours on two cores
    .venv-h100/bin/python benchmarks/accelerator_programs.py h100           all programs, for an NVIDIA H100
    .venv-v5e/bin/python benchmarks/accelerator_programs.py v5e             and for one chip of a TPU v5e
    .venv-v5e/bin/python benchmarks/accelerator_programs.py v5e --only 1m   those whose name has it; other rows stay
    python benchmarks/accelerator_programs.py --smoke                       seconds, for this CPU; writes nothing

Nothing runs, so that nothing is timed. At the sizes of this field a GPU waits for launches rather than computes: they
are counted, those in a loop as often as it turns. A TPU is given a whole program at once; of each of its instructions
the compiler estimates the cycles, which are added up in the same way. A loop that ends when its data say so, as those
of a population's dream do, counts as one turn. The arithmetic is that of matrix products and convolutions. A program
that needs more memory than the chip has is a row too. A GPU's temporary memory has the 32 MiB that cuBLAS asks for, a
TPU's lacks what its fast memory holds. Compilation is in seconds of processor time, of all cores.

The published column is the published code of DreamerV3 (May 2026), compiled in the same way.
"""

import argparse
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax._src import xla_bridge
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from dreamjax import dream
from dreamjax.dreamerv3 import experience, learner, loop
from dreamjax.dreamerv3.config import SIZES, debug
from dreamjax.dreamerv3.loop import LoopConfig
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.envs import probes
from dreamjax.replay.latents import Chunk
from dreamjax.reporting import programs
from dreamjax.reporting.results import read_result, result_row, write_result
from dreamjax.reporting.timing import matrix_flops
from dreamjax.storage.agents import load
from dreamjax.storage.provenance import commit, machine
from dreamjax.training.devices import replicated, sharded, split
from dreamjax.training.trainer import learning
from dreamjax.types import EnvSpec, PyTree, Space
from dreamjax.worldmodels import learner as worldmodels
from dreamjax.worldmodels.learner import MemoryLearner, VisionLearner

RESULTS = Path(__file__).parent / "results"
AGENT = Path(__file__).parents[1] / "experiments" / "results" / "doom_take_cover"
Rows = list[dict[str, Any]]
KEY = jax.eval_shape(lambda: jax.random.key(0))
ENVS = 16  # in which an agent acts at once
SPACES = {
    "vectors": (
        {"height": Space(()), "orientations": Space((14,)), "velocity": Space((9,))},
        {"action": Space((6,), np.float32, -1.0, 1.0)},
    ),
    "images": ({"image": Space((64, 64, 3), np.uint8, 0, 256)}, {"action": Space((), np.int32, 0, 17)}),
}
PUBLISHED = {
    ("h100", "DreamerV3 update, 1m, vectors: launches"): 11_181,
    ("h100", "DreamerV3 update, 1m, vectors: matrix products"): 1_527,
    ("h100", "DreamerV3 update, 1m, vectors: temporary memory"): 175,
    ("v5e", "DreamerV3 update, 1m, vectors: estimated cycles"): 26.8,
    ("v5e", "DreamerV3 update, 1m, vectors: temporary memory"): 197,
}
ENVIRONMENT = {  # variables; nothing is tuned, as nothing can be timed
    "h100": {
        "CUDA_VISIBLE_DEVICES": "-1",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0 --xla_gpu_enable_command_buffer=",
    },
    "v5e": {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"},
}
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 7 } runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Case(NamedTuple):
    """A jitted function, and what it is called with."""

    function: Any  # as `jax.jit` makes it
    static: tuple[Any, ...]  # first arguments, compiled into the program
    arguments: PyTree  # the others, as `jax.ShapeDtypeStruct`s
    places: PyTree = None  # their shardings, where they are divided among chips; otherwise all is on one


def shaped(lead: tuple[int, ...], like: PyTree) -> PyTree:
    """Put axes before those of every array."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype), like)


def dreamer_of(size: str, kind: str) -> Dreamer:
    """Make an agent for walker's vectors and a continuous action, or for Crafter's images and a discrete one."""
    return Dreamer.of(debug() if size == "debug" else SIZES[size], EnvSpec(*SPACES[kind], 1))


def update(size: str, kind: str) -> Case:
    """Update on the published batch, 16 sequences of 64 steps, with 15 imagined steps from each."""
    dreamer = dreamer_of(size, kind)
    state = jax.eval_shape(partial(learner.init, dreamer), KEY)
    drawn = shaped((16, dreamer.cfg.context + 64), experience.example(dreamer))
    return Case(experience.learn, (dreamer,), (KEY, state, drawn))


def shared_update(devices: Sequence[jax.Device]) -> Case:
    """Update 400m, whose sequences, parameters and optimiser are split over chips that could not hold it each."""
    one = update("400m", "images")
    key, state, drawn = one.arguments
    mesh = Mesh(np.array(devices), ("batch",), axis_types=(AxisType.Auto,))
    places = sharded(mesh, state)
    arguments = key, state, shaped((1,), drawn), jax.ShapeDtypeStruct((), np.int32)
    whole, rows = replicated(mesh), split(mesh, 1)
    each = whole, places, jax.tree.map(lambda _: rows, arguments[2]), whole
    return Case(learning(mesh, places), one.static, arguments, each)


def several(size: str, kind: str) -> Case:
    """Update on up to 8 batches in one call; the count is data, so that the program is counted with one update."""
    one = update(size, kind)
    key, state, drawn = one.arguments
    arguments = (key, state, shaped((8,), drawn), jax.ShapeDtypeStruct((), np.int32))
    return Case(experience.learn_several, one.static, arguments)


def act(size: str, kind: str) -> Case:
    """Act once in each of some environments."""
    dreamer = dreamer_of(size, kind)
    params = jax.eval_shape(partial(learner.init, dreamer), KEY).params
    state, step = jax.eval_shape(partial(experience.start, dreamer, ENVS)), experience.recorded(dreamer.spec).step
    return Case(experience.act, (dreamer,), (params, KEY, state, shaped((ENVS,), step)))


def jitted_loop(size: str) -> Case:
    """Step a probe two times in each of 16 environments and update once: an iteration at the train ratio of 32."""
    environment, cfg = probes.counter(), LoopConfig(ENVS)
    dreamer = Dreamer.of(SIZES[size], environment.spec)
    state = jax.eval_shape(partial(loop.init, dreamer, environment, cfg), KEY)
    iterate = jax.jit(partial(loop.iterate, dreamer, environment, cfg), donate_argnums=1)
    return Case(iterate, (), (KEY, state))


def train_vision() -> Case:
    """Train V by one step, on the published batch."""
    vision = VisionLearner()
    state = jax.eval_shape(partial(worldmodels.init, vision), KEY)
    return Case(worldmodels.train_step, (vision,), (KEY, state, jax.ShapeDtypeStruct((100, 64, 64, 3), np.uint8)))


def train_memory() -> Case:
    """Train M by one step, on 32 streams of 64 steps."""
    memory = MemoryLearner(streams=32)
    state = jax.eval_shape(partial(worldmodels.init, memory), KEY)
    half, single, flag = (jax.ShapeDtypeStruct((), dtype) for dtype in (np.float16, np.float32, bool))
    step = (*shaped((64,), (half, half)), half, single, flag, flag, flag)
    return Case(worldmodels.train_step, (memory,), (KEY, state, Chunk._make((*shaped((65, 32), step), flag))))


def population() -> Case:
    """Dream of a generation of the published size, 64 controllers x 16 episodes, with the committed agent of Doom."""
    agent, stored = load(AGENT)
    params = jax.eval_shape(lambda: stored)
    params = params._replace(policy=shaped((64,), params.policy))
    returns = jax.jit(partial(dream.returns, agent))
    return Case(returns, (), (params, shaped((16,), KEY), jax.ShapeDtypeStruct((), np.float32)))


CASES: dict[str, Callable[[], Case]] = {
    f"DreamerV3 {step.__name__}, {size}, {kind}": partial(step, size, kind)
    for size in ("1m", "12m", "200m")
    for kind in SPACES
    for step in (update, act)
} | {
    "DreamerV3 several updates, 1m, vectors": partial(several, "1m", "vectors"),
    "DreamerV3 jitted loop, 1m, probe": partial(jitted_loop, "1m"),
    "train step of V": train_vision,
    "train step of M": train_memory,
    "dream of a population": population,
}
SHARED = {"v5e": {"DreamerV3 update, 400m, images, over 4 chips": shared_update}}  # of programs for several chips
SMOKE: dict[str, Callable[[], Case]] = {
    "DreamerV3 act, debug, vectors": partial(act, "debug", "vectors"),
    "train step of M": train_memory,
}


def chips(chip: str) -> list[jax.Device]:
    """Set this process up to compile for a chip, and return those that are pretended to be here."""
    if chip == "cpu":
        return jax.devices()
    os.environ.update(ENVIRONMENT[chip])
    jax.config.update("jax_platforms", "cpu")  # what there is
    if chip == "h100":
        ask = xla_bridge.canonicalize_platform  # what kind of GPU is here: it does not know of one
        xla_bridge.canonicalize_platform = lambda platform: "cuda" if platform in ("gpu", "cuda") else ask(platform)
        topology = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=H100)
    else:
        topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    return list(topology.devices)


def rows_of(case: Case, device: jax.Device) -> Iterator[tuple[str, float, str]]:
    """Compile a program and count what each chip does: what, how much, and the unit."""
    places = case.places
    if places is None:
        whole = replicated(Mesh(np.array([device]), ("chip",)))
        places = jax.tree.map(lambda _: whole, case.arguments)
    place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)  # noqa: E731
    arguments = jax.tree.map(place, case.arguments, places)
    begun = time.process_time()
    try:
        compiled = case.function.lower(*case.static, *arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = re.search(r"Used ([\d.]+)G of ([\d.]+)G hbm", str(error))
        if not sizes:
            raise
        yield f"does not fit {sizes[2]} GiB, needs", float(sizes[1]), "GiB"
        return
    seconds = time.process_time() - begun
    total, loops = programs.count(compiled.as_text())
    memory = compiled.memory_analysis()
    launches = "instructions" if total.cycles else "launches"
    yield launches, total.launches, ""
    yield "matrix products", total.products, ""
    if total.cycles:
        yield "estimated cycles", total.cycles / 1e6, "million"
    for number, (trips, step, runs) in enumerate(loops, 1):
        turns = f"{runs} x " * (runs > 1) + (f"{trips} x" if trips else "unknown x")
        part = (trips or 1) * runs
        yield f"share of loop {number}, {turns} {step.launches} {launches}", part * step.launches / total.launches, ""
        if total.cycles:
            yield f"share of loop {number}, {turns} {step.cycles:,} cycles", part * step.cycles / total.cycles, ""
    yield "arithmetic", matrix_flops(partial(case.function, *case.static), *case.arguments) / 1e9, "GFLOP"
    yield "arguments", memory.argument_size_in_bytes / 2**20, "MiB"
    yield "temporary memory", memory.temp_size_in_bytes / 2**20, "MiB"
    yield "compilation", seconds, "s"


def write(path: Path, old: dict[str, Any] | None, done: dict[str, Rows], made_by: str, seconds: float) -> None:
    """Write the rows of the programs that are done; those of the others stay as they are in the old result."""
    rows, names = dict(done), [*CASES, *(name for those in SHARED.values() for name in those)]
    for row in old["rows"] if old else []:
        name = row["name"].partition(":")[0]
        if name in names and name not in done:
            rows.setdefault(name, []).append(row)
    if old and len(rows) > len(done):
        made_by = ", ".join(dict.fromkeys([*old["commit"].split(", "), made_by]))
        seconds += old["wall_s"]
    ordered = [row for name in names for row in rows.get(name, [])]
    write_result(path, path.stem, "full", "make accelerators", [0], seconds, ordered, origin=(made_by, machine()))


def main() -> None:
    """Compile, count and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chip", nargs="?", choices=list(ENVIRONMENT))
    parser.add_argument("--only", default="", metavar="REGEX", help="compile the programs whose name has it")
    parser.add_argument("--smoke", action="store_true")
    chosen = parser.parse_args()
    if chosen.smoke == bool(chosen.chip):
        parser.error("name a chip, or --smoke")
    chip = chosen.chip or "cpu"
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is a row
    begun, made_by, devices = time.monotonic(), commit(), chips(chip)
    shared = {name: partial(case, devices) for name, case in SHARED.get(chip, {}).items()}
    known = (CASES if chosen.chip else SMOKE) | shared
    cases = {name: case for name, case in known.items() if re.search(chosen.only, name)}
    if not cases:
        parser.error(f"no program has {chosen.only!r} in its name: {', '.join(known)}")
    path = RESULTS / f"accelerator_programs_{chip}.json"
    old = read_result(path) if path.exists() else None
    done: dict[str, Rows] = {}
    for name, case in cases.items():
        print(f"{name}, {chip}:", end=" ", flush=True)
        done[name] = []
        for what, value, unit in rows_of(case(), devices[0]):
            label = f"{name}: {what}"
            done[name].append(result_row(label, np.array([value]), unit, PUBLISHED.get((chip, label))))
            print(f"{what} {value:.6g} {unit}".rstrip(), end="; ", flush=True)
        print()
        if chosen.chip:  # now, as the next may take as long as all before it
            write(path, old, done, made_by, time.monotonic() - begun)


if __name__ == "__main__":
    main()
