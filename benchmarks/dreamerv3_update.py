"""How fast DreamerV3 learns: one update of world model, actor and critic, and how its time grows.

    python benchmarks/dreamerv3_update.py            six to twenty minutes on two cores, 12 GiB of memory
    python benchmarks/dreamerv3_update.py --smoke    a minute, to see that it runs; writes nothing

The batch is as published, 16 sequences of 64 steps, of 15 imagined steps each, in float32: Crafter's spaces (a picture
of 64 x 64 and one discrete action) and walker's (vectors and a continuous action). The published column is what the
published code, in JAX 0.10, needed on two cores that multiply matrices at 110 to 120 GFLOP/s. The arithmetic that an
update needs is compared with what the same machine does, in turn, in a plain product of 1024 x 1024 matrices.
"""

import gc
import sys
import time
from dataclasses import replace
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
from dreamjax.reporting.results import result_row, write_result
from dreamjax.reporting.timing import matrix_flops, measure
from dreamjax.training.devices import keep_freed_memory
from dreamjax.types import EnvSpec, Space

RESULTS = Path(__file__).parent / "results" / "dreamerv3_update.json"
SPACES = {
    "images": ({"image": Space((64, 64, 3), np.uint8, 0, 256)}, {"action": Space((), np.int32, 0, 17)}),
    "vectors": (
        {"height": Space(()), "orientations": Space((14,)), "velocity": Space((9,))},
        {"action": Space((6,), np.float32, -1.0, 1.0)},
    ),
}
PUBLISHED = {("1m", "images"): 10.7, ("12m", "images"): 80.6, ("1m", "vectors"): 0.99, ("12m", "vectors"): 6.87}


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


def rows_of(name: str, cfg: DreamerConfig, kind: str, batch: int, length: int, repeats: int) -> list[dict[str, Any]]:
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
    timings = measure({"update": learn, "product": partial(jax.jit(lambda a: a @ a), square)}, repeats)
    flops = matrix_flops(partial(experience.learn, dreamer), key, jax.eval_shape(lambda: state), drawn)
    share = timings["update"].rate(flops) / timings["product"].rate(2 * 1024**3)
    published = PUBLISHED.get((name, kind))
    rows = [
        result_row(f"{name}, {kind}: update", timings["update"].seconds, "s", published),
        result_row(f"{name}, {kind}: of the speed of a matrix product", share, ""),
        result_row(f"{name}, {kind}: memory", np.array([held / 2**20]), "MiB"),
    ]
    if published:
        rows.append(result_row(f"{name}, {kind}: arithmetic", np.array([flops / 1e9]), "GFLOP"))
        rows.append(result_row(f"{name}, {kind}: compilation", np.array([compiled]), "s"))
    print("; ".join(f"{row['name'].rpartition(':')[2]} {row['mean']:.3g} {row['unit']}" for row in rows), flush=True)
    return rows


def main(smoke: bool) -> None:
    """Measure and write."""
    begun = time.monotonic()
    keep_freed_memory()
    small = replace(SIZES["1m"], compute_dtype="float32")
    horizon = lambda steps: replace(small, behaviour=replace(small.behaviour, horizon=steps))  # noqa: E731
    cases = [
        *((size, replace(SIZES[size], compute_dtype="float32"), kind, 16, 64) for size, kind in PUBLISHED),
        ("1m batch 8", small, "vectors", 8, 64),
        ("1m batch 32", small, "vectors", 32, 64),
        ("1m length 32", small, "vectors", 16, 32),
        ("1m length 128", small, "vectors", 16, 128),
        ("1m horizon 5", horizon(5), "vectors", 16, 64),
        ("1m horizon 30", horizon(30), "vectors", 16, 64),
        ("1m in bfloat16", SIZES["1m"], "vectors", 16, 64),
    ]
    if smoke:
        cases = [("debug", replace(debug(), compute_dtype="float32"), kind, 2, 4) for kind in SPACES]
    rows = []
    for name, cfg, kind, batch, length in cases:
        print(f"{name}, {kind}:", end=" ", flush=True)
        rows += rows_of(name, cfg, kind, batch, length, 1 if smoke else 3 if name == "12m" else 7)
        gc.collect()
    if not smoke:
        command = "python benchmarks/dreamerv3_update.py"
        write_result(RESULTS, "dreamerv3_update", "full", command, [0], time.monotonic() - begun, rows)


if __name__ == "__main__":
    main("--smoke" in sys.argv[1:])
