"""How fast the Doom dream is: the full M with C, against PyTorch, against one lane, against bare matrix products.

    python benchmarks/dream_throughput.py            one or two minutes on two cores
    python benchmarks/dream_throughput.py --smoke    seconds, to see that it runs; writes nothing

One imagined step is: C acts, M takes in (z, a), all 64 latents are drawn from their mixtures at temperature 1.5, and
the done head is read. PyTorch does the same, eagerly, on as many threads as there are cores; both keep the memory that
they free (`dreamjax.training.devices`). The last rows are a generation of the published size, 64 controllers x 16
episodes of at most 2100 steps, in the dream of the committed agent, with controllers drawn around it.
"""

import os
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import dream, rollout
from dreamjax._extras import extra
from dreamjax.reporting.results import result_row, write_result
from dreamjax.reporting.timing import Timing, measure
from dreamjax.storage.agents import load
from dreamjax.training.devices import keep_freed_memory
from dreamjax.types import Array, Key, Params, PyTree

with extra("benchmarks", "the comparison"):
    import torch

TEMPERATURE = 1.5  # as in the experiment's preset for a CPU
RESULTS = Path(__file__).parent / "results" / "dream_throughput.json"
AGENT, STORED = load(Path(__file__).parents[1] / "experiments" / "results" / "doom_take_cover")
FLOPS = 2 * (578 * 2048 + 512 * 961)  # of M's two matrix products, per step


@partial(jax.jit, static_argnames="steps")
def imagine(params: Params, starts: PyTree, kernels: Array, key: Key, steps: int) -> Array:
    """Step L dreams side by side, each with its own controller; returns what depends on every step."""
    environment = dream.environment(AGENT.model, params, starts, TEMPERATURE)
    acting = rollout.reactive(AGENT.policy)

    def lane(kernel: Array, key: Key) -> Array:
        key_reset, key_steps = jax.random.split(key)

        def step(carry: PyTree, key: Key) -> tuple[PyTree, None]:
            state, last, alive = carry
            key_act, key_step = jax.random.split(key)
            _, action = acting.act({"kernel": kernel}, key_act, (), last)
            state, last = environment.step(key_step, state, action)
            return (state, last, alive + last.reward * ~last.is_last), None

        begin = (*environment.reset(key_reset), jnp.float32(0))
        (_, last, alive), _ = jax.lax.scan(step, begin, jax.random.split(key_steps, steps))
        return alive + last.observation.sum()

    return jax.vmap(lane)(kernels, jax.random.split(key, len(kernels)))


def torch_imagine(params: Params, lanes: int, steps: int) -> torch.Tensor:
    """Do the same in PyTorch."""
    lstm, output = params.memory["lstm"], params.memory["output"]
    kernel, bias, w, b = (
        torch.tensor(np.asarray(x)) for x in (lstm["kernel"], lstm["bias"], output["kernel"], output["bias"])
    )
    kernels = torch.full((lanes, 1088), 0.01)
    z, c, h = torch.randn(lanes, 64), torch.zeros(lanes, 512), torch.zeros(lanes, 512)
    first, alive = torch.ones(lanes, 1), torch.zeros(lanes)
    with torch.no_grad():
        for _ in range(steps):
            action = torch.tanh((torch.cat([z, c, h], 1) * kernels).sum(1, keepdim=True))
            i, j, f, o = torch.addmm(bias, torch.cat([z, action, first, h], 1), kernel).chunk(4, 1)
            c = c * torch.sigmoid(f + 1) + torch.sigmoid(i) * torch.tanh(j)
            h = torch.tanh(c) * torch.sigmoid(o)
            y = torch.addmm(b, h, w)
            logits, means, log_stds = y[:, :960].reshape(lanes, 3, 5, 64).unbind(1)
            cumulative = torch.softmax(logits / TEMPERATURE, 1).cumsum(1)
            chosen = (torch.rand(lanes, 1, 64) > cumulative[:, :4]).sum(1, keepdim=True)
            mean, log_std = means.gather(1, chosen)[:, 0], log_stds.gather(1, chosen)[:, 0]
            z = mean + log_std.exp() * TEMPERATURE**0.5 * torch.randn(lanes, 64)
            alive += (y[:, 960] <= 0).float()
            first = torch.zeros(lanes, 1)
    return alive + h.sum()


def lanes_rows(params: Params, starts: PyTree, lanes: int, steps: int, repeats: int) -> dict[str, Timing]:
    """Time ours, PyTorch's, and the two products alone."""
    kernels, key = jnp.full((lanes, 1088), 0.01), jax.random.key(0)
    lstm, output = params.memory["lstm"]["kernel"], params.memory["output"]["kernel"]
    x, square = jnp.ones((lanes, 578)), jnp.ones((1024, 1024))

    @jax.jit
    def products(x: Array, lstm: Array, output: Array) -> tuple[Array, Array]:
        def step(x: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
            # What is carried on is as small as it can be, so that the products are all there is to do.
            gates = x @ lstm
            return x.at[0, 0].set(gates[0, 0]), (gates[0, 0], (x[:, :512] @ output)[0, 0])

        return jax.lax.scan(step, x, length=steps)[1]

    matmul = jax.jit(lambda a: a @ a)
    return measure(
        {
            "dreamjax": partial(imagine, params, starts, kernels, key, steps),
            "torch": partial(torch_imagine, params, lanes, steps),
            "products": partial(products, x, lstm, output),
            "matmul": partial(matmul, square),
        },
        repeats,
    )


def generation_rows() -> list[dict]:
    """Time a generation of the published size, once after the call that compiles it."""
    noise = 0.1 * jax.random.normal(jax.random.key(1), (64, 1088))
    population = STORED._replace(policy={"kernel": STORED.policy["kernel"] + noise})
    keys = jax.random.split(jax.random.key(2), 16)
    run = partial(dream.returns, AGENT, population, keys, TEMPERATURE)
    steps = np.zeros(0)

    def generation() -> np.ndarray:
        nonlocal steps
        steps = np.asarray(run().steps)
        return steps

    timing = measure({"generation": generation}, 1)["generation"]
    return [
        result_row("generation of 64 x 16 episodes", timing.seconds, "s", "116 on 64 cores"),
        result_row("length of its episodes", steps.ravel(), "steps"),
        result_row("imagined steps in it", timing.rate(steps.sum()), "steps/s"),
    ]


def main(smoke: bool) -> None:
    """Measure and write."""
    begun = time.monotonic()
    keep_freed_memory()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    params = AGENT.model.init(jax.random.key(0))
    starts = (jnp.zeros((10, 64)), jnp.zeros((10, 64)))
    rows = []
    for lanes in (1, 64) if smoke else (1, 64, 1024, 4096):
        steps = 4 if smoke else max(8, min(256, 16384 // lanes))
        timings = lanes_rows(params, starts, lanes, steps, 2 if smoke else 5)
        rates = {name: timing.rate(lanes * steps) for name, timing in timings.items()}
        allowed = timings["matmul"].rate(2 * 1024**3) / FLOPS
        medians = {name: float(np.median(rate)) for name, rate in rates.items()}
        rows += [
            result_row(f"{lanes} lanes", rates["dreamjax"], "steps/s"),
            result_row(f"{lanes} lanes, PyTorch", rates["torch"], "steps/s"),
            result_row(f"{lanes} lanes, ratio to PyTorch", rates["dreamjax"] / rates["torch"], "x"),
            result_row(f"{lanes} lanes, share of M's bare products", rates["dreamjax"] / rates["products"], ""),
            result_row(f"{lanes} lanes, share of a 1024^3 product", rates["dreamjax"] / allowed, ""),
            result_row(f"{lanes} lanes, compilation", np.array([timings["dreamjax"].first_s]), "s"),
        ]
        print(
            f"{lanes:5} lanes: {medians['dreamjax']:9.0f} steps/s, PyTorch {medians['torch']:9.0f}, "
            f"{np.median(rows[-4]['mean']):.2f} x; {rows[-3]['mean']:.2f} of M's products, "
            f"{rows[-2]['mean']:.2f} of a square product; compiled in {timings['dreamjax'].first_s:.1f} s",
            flush=True,
        )
    if smoke:
        return
    rows += generation_rows()
    print("\n".join(f"{row['name']}: {row['mean']:.1f} {row['unit']}" for row in rows[-3:]))
    write_result(
        RESULTS,
        "dream_throughput",
        "full",
        "python benchmarks/dream_throughput.py",
        [0],
        time.monotonic() - begun,
        rows,
    )


if __name__ == "__main__":
    main("--smoke" in sys.argv[1:])
