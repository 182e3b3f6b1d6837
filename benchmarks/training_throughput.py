"""How fast V and M train and V encodes: jitted steps against the same layers in PyTorch, on the same cores, in one run.

    python benchmarks/training_throughput.py            one or two minutes on two cores
    python benchmarks/training_throughput.py --smoke    seconds, to see that it runs; writes nothing

V: batches of 100 frames, as published; beside it V in plain Flax, whose convolutions XLA lowers as it likes. M: 32
streams of 64 steps. PyTorch's LSTM is its fused one, which does not even reset the state at the first frame of an
episode as ours does. Training includes the optimiser. Encoding: uint8 frames to mean and log variance, in batches of 8
(as in acting), 64 and 256 (as when recorded episodes are encoded). All keep the memory that they free
(`dreamjax.training.devices`).
"""

import inspect
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from dreamjax._extras import extra
from dreamjax.nets import conv
from dreamjax.replay.latents import Chunk
from dreamjax.reporting.results import result_row, write_result
from dreamjax.reporting.timing import measure
from dreamjax.training.devices import keep_freed_memory
from dreamjax.worldmodels import learner, vision

with extra("benchmarks", "the comparison"):
    import torch
    from torch import nn

VISION = learner.VisionLearner()
RESULTS = Path(__file__).parent / "results" / "training_throughput.json"


def ours_vision(frames: np.ndarray) -> Callable[[], jax.Array]:
    """Return a function that trains our V by one step."""
    state = learner.init(VISION, jax.random.key(0))

    def step() -> jax.Array:
        nonlocal state
        state, metrics = learner.train_step(VISION, jax.random.key(1), state, frames)
        return metrics["loss"]

    return step


def plain_vision(frames: np.ndarray) -> Callable[[], jax.Array]:
    """Return the same, with XLA's own convolutions."""
    state = learner.init(VISION, jax.random.key(0))
    unjitted = partial(inspect.unwrap(learner.train_step), VISION)
    native: dict[str, Any] = {
        "_forward_cpu": conv._forward_native,
        "_transpose_cpu": conv._transpose_native,
        "_kernel_gradient_cpu": conv._kernel_gradient_native,
    }
    with mock.patch.multiple(conv, **native):
        update = jax.jit(unjitted, donate_argnums=1).lower(jax.random.key(1), state, frames).compile()

    def step() -> jax.Array:
        nonlocal state
        state, metrics = update(jax.random.key(1), state, frames)
        return metrics["loss"]

    return step


def ours_encoding(frames: np.ndarray) -> Callable[[], Any]:
    """Return a function that encodes the frames with our V."""
    params = vision.init(VISION.cfg, jax.random.key(0))
    return partial(jax.jit(vision.encode, static_argnums=0), VISION.cfg, params, frames)


def torch_encoding(frames: np.ndarray) -> Callable[[], torch.Tensor]:
    """Return a function that encodes the frames with V in PyTorch."""
    encoder, mean_layer, log_variance_layer = torch_encoder()

    @torch.inference_mode()
    def encode() -> torch.Tensor:
        hidden = encoder(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255)
        return torch.cat([mean_layer(hidden), log_variance_layer(hidden)], 1)

    return encode


def torch_encoder() -> tuple[nn.Module, nn.Module, nn.Module]:
    """Build V's encoder in PyTorch: the convolutions, and the layers of mean and log variance."""
    relu = nn.ReLU()
    encoder = nn.Sequential(
        *(nn.Conv2d(3, 32, 4, 2), relu, nn.Conv2d(32, 64, 4, 2), relu),
        *(nn.Conv2d(64, 128, 4, 2), relu, nn.Conv2d(128, 256, 4, 2), relu, nn.Flatten()),
    )
    return encoder, nn.Linear(1024, 64), nn.Linear(1024, 64)


def torch_vision(frames: np.ndarray) -> Callable[[], torch.Tensor]:
    """Return a function that trains V in PyTorch by one step."""
    relu, dec_fc = nn.ReLU(), nn.Linear(64, 1024)
    encoder, mean_layer, log_variance_layer = torch_encoder()
    decoder = nn.Sequential(
        *(nn.ConvTranspose2d(1024, 128, 5, 2), relu, nn.ConvTranspose2d(128, 64, 5, 2), relu),
        *(nn.ConvTranspose2d(64, 32, 6, 2), relu, nn.ConvTranspose2d(32, 3, 6, 2), nn.Sigmoid()),
    )
    modules = nn.ModuleList([encoder, mean_layer, log_variance_layer, dec_fc, decoder])
    optimizer = torch.optim.Adam(modules.parameters(), 1e-4)
    stored = torch.tensor(frames).permute(0, 3, 1, 2).contiguous()

    def step() -> torch.Tensor:
        x = stored.float() / 255
        hidden = encoder(x)
        mean, log_variance = mean_layer(hidden), log_variance_layer(hidden)
        z = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        error = ((decoder(dec_fc(z)[:, :, None, None]) - x) ** 2).sum((1, 2, 3)).mean()
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)
        loss = error + kl.clamp(min=32).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def ours_memory(data: Chunk) -> Callable[[], jax.Array]:
    """Return a function that trains our M by one step."""
    learns = learner.MemoryLearner(streams=data.mean.shape[1])
    state = learner.init(learns, jax.random.key(0))

    def step() -> jax.Array:
        nonlocal state
        state, metrics = learner.train_step(learns, jax.random.key(1), state, data)
        return metrics["loss"]

    return step


def torch_memory(data: Chunk) -> Callable[[], torch.Tensor]:
    """Return a function that trains M in PyTorch by one step."""
    lstm, output = nn.LSTM(66, 512), nn.Linear(512, 961)
    parameters = [*lstm.parameters(), *output.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-3)
    mean, log_variance = torch.tensor(data.mean), torch.tensor(data.log_variance)
    action, first = torch.tensor(data.action)[..., None], torch.tensor(data.is_first)[..., None].float()
    streams = data.mean.shape[1]
    carry = (torch.zeros(1, streams, 512), torch.zeros(1, streams, 512))

    def step() -> torch.Tensor:
        nonlocal carry
        z = mean.float() + torch.exp(log_variance.float() / 2) * torch.randn(mean.shape)
        hs, carry = lstm(torch.cat([z, action.float(), first], 2)[:-1], tuple(part.detach() for part in carry))
        y = output(hs)
        logits, means, log_stds = y[..., :960].reshape(*y.shape[:2], 3, 5, 64).unbind(2)
        standard = (z[1:, :, None] - means) * torch.exp(-log_stds)
        log_normal = -0.5 * standard**2 - log_stds - 0.5 * np.log(2 * np.pi)
        nll = -torch.logsumexp(torch.log_softmax(logits, 2) + log_normal, 2).mean()
        done = first[1:, :, 0]
        entropy = nn.functional.binary_cross_entropy_with_logits(y[..., 960], done, reduction="none")
        loss = nll + ((1 + 9 * done) * entropy).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_value_(parameters, 1.0)
        optimizer.step()
        return loss

    return step


def main(smoke: bool) -> None:
    """Measure and write."""
    begun = time.monotonic()
    keep_freed_memory()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rng = np.random.default_rng(0)
    repeats = 1 if smoke else 9
    frames = rng.integers(0, 256, (4 if smoke else 100, 64, 64, 3), np.uint8)
    steps, streams = (4, 2) if smoke else (64, 32)
    shape = (steps + 1, streams)
    chunk = Chunk._make(
        [
            rng.normal(size=(*shape, 64)).astype(np.float16),
            np.full((*shape, 64), -1, np.float16),
            rng.uniform(-1, 1, shape).astype(np.float16),
            np.ones(shape, np.float32),
            rng.random(shape) < 0.003,
            rng.random(shape) < 0.003,
            np.zeros(shape, bool),
            np.array(False),
        ]
    )
    v = measure({"ours": ours_vision(frames), "plain": plain_vision(frames), "torch": torch_vision(frames)}, repeats)
    m = measure({"ours": ours_memory(chunk), "torch": torch_memory(chunk)}, repeats)
    parts = [("V", len(frames), v), ("M", steps * streams, m)]
    for count in (2,) if smoke else (8, 64, 256):
        some = rng.integers(0, 256, (count, 64, 64, 3), np.uint8)
        timings = measure({"ours": ours_encoding(some), "torch": torch_encoding(some)}, repeats)
        parts.append((f"encoding {count}", count, timings))
    rows, unit = [], "frames/s"
    for part, amount, timings in parts:
        rate = {name: timing.rate(amount) for name, timing in timings.items()}
        rows += [result_row(f"{part}, {name}", values, unit) for name, values in rate.items()]
        rows += [
            result_row(f"{part}, ours / {name}", rate["ours"] / values, "x")
            for name, values in rate.items()
            if name != "ours"
        ]
        rows.append(result_row(f"{part}, compilation", np.array([timings["ours"].first_s]), "s"))
    print("\n".join(f"{row['name']:24} {row['mean']:10.2f} ± {row['std']:.2f} {row['unit']}" for row in rows))
    if not smoke:
        command = "python benchmarks/training_throughput.py"
        write_result(RESULTS, "training_throughput", "full", command, [0], time.monotonic() - begun, rows)


if __name__ == "__main__":
    main("--smoke" in sys.argv[1:])
