"""Collecting and learning as one program, on a probe whose best return is known."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.dreamerv3 import experience, loop
from dreamjax.dreamerv3.config import CodecConfig, DreamerConfig, HeadsConfig, RSSMConfig, tiny
from dreamjax.dreamerv3.experience import Experience, Latent
from dreamjax.dreamerv3.learner import Hyper
from dreamjax.dreamerv3.loop import LoopConfig, LoopState
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.envs import probes
from dreamjax.optim import LaPropConfig
from dreamjax.types import Step

GAME = probes.counter(size=4, max_steps=12)
CFG = DreamerConfig(
    rssm=RSSMConfig(32, 16, 4, 4, 4),
    codec=CodecConfig(2, encoder_layers=1, decoder_layers=1, units=16),
    heads=HeadsConfig(16, 41),
    optimizer=LaPropConfig(1e-3, warmup=10, eps=1e-2),  # eps above gradients whose sign the order of sums decides
    compute_dtype="float32",
)
DREAMER = Dreamer.of(CFG, GAME.spec)
QUICK = {"xla_backend_optimization_level": 0}  # compiled in half the time, and run a few times
LOOP = LoopConfig(envs=2, batch_size=4, batch_length=8, train_ratio=16, capacity=200)


@pytest.fixture(scope="module")
def begin() -> Callable[..., LoopState]:
    return jax.jit(partial(loop.init, DREAMER, GAME, LOOP), compiler_options=QUICK)


@pytest.fixture(scope="module")
def iterate() -> Callable[..., Any]:
    return jax.jit(partial(loop.iterate, DREAMER, GAME, LOOP), compiler_options=QUICK)


@pytest.mark.parametrize(
    ("envs", "ratio", "rhythm"),
    [
        (16, 32, (1, 2)),
        (1, 512, (1, 2)),
        (4, 1024, (4, 1)),
        (3, 512, (3, 2)),
        (10, 0.1, (1, 1024)),
        (15, 1 / 3, (5, 1024)),
    ],
)
def test_rhythm_keeps_the_train_ratio(envs: int, ratio: float, rhythm: tuple[int, int]):
    assert LoopConfig(envs=envs, train_ratio=ratio).rhythm == rhythm


@pytest.mark.parametrize(("ratio", "why"), [(0.0, "positive"), (1e-8, "positive"), (np.pi, "round it")])
def test_a_ratio_without_a_rhythm_is_refused(ratio: float, why: str):
    with pytest.raises(ValueError, match=why):
        LoopConfig(train_ratio=ratio)


def test_it_collects_and_learns_in_step(begin, iterate):
    state = begin(jax.random.key(0))
    fill = int(state.replay.written)
    assert fill * LOOP.envs >= LOOP.batch_size * LOOP.batch_length
    for i in range(3):
        state, progress = iterate(jax.random.fold_in(jax.random.key(1), i), state)
    assert (int(state.replay.written), int(state.learner.step)) == (fill + 3, 3)
    assert all(np.isfinite(x) for x in jax.tree.leaves(progress.metrics))


def test_replayed_latents_are_refreshed(begin, iterate):
    before = begin(jax.random.key(0))
    after, _ = iterate(jax.random.key(1), before)
    written = int(before.replay.written)
    old, new = (np.asarray(state.replay.data.latent.deter)[:, :written] for state in (before, after))
    # The first update has a learning rate of zero, but draws its own latents.
    assert 0 < (old != new).any(-1).sum() <= LOOP.batch_size * LOOP.batch_length
    np.testing.assert_array_equal(
        before.replay.data.step.observation[:, :written],
        after.replay.data.step.observation[:, :written],
    )


@pytest.mark.long
def test_seeds_and_settings_in_parallel_are_those_one_by_one(begin, iterate):
    keys = jax.random.split(jax.random.key(0), 2)
    usual = Hyper.of(CFG)
    hyper = Hyper(usual.learning_rate * jnp.array([1.0, 3.0]), jnp.array([0.1, 0.3]), jnp.array([0.9, 0.99]))

    def begin_with(key: jax.Array, hyper: Hyper) -> LoopState:
        state = begin(key)  # what is collected first does not depend on them
        return state._replace(learner=state.learner._replace(hyper=hyper))

    def run(begin: Callable, iterate: Callable, key: jax.Array, hyper: Hyper) -> Any:
        key_begin, *key_steps = jax.random.split(key, 3)
        state, out = begin(key_begin, hyper), None
        for key_step in key_steps:
            state, out = iterate(key_step, state)
        return state.learner.params, out

    one_by_one = [run(begin_with, iterate, keys[i], jax.tree.map(lambda x, i=i: x[i], hyper)) for i in range(2)]
    with jax.debug_key_reuse(False):  # the check takes keys that are scanned under vmap for used ones
        plain = partial(run, begin.__wrapped__, iterate.__wrapped__)
        together = jax.jit(jax.vmap(plain), compiler_options=QUICK)(jax.random.clone(keys), hyper)
    for i, alone in enumerate(one_by_one):
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, 1e-3, 1e-4), together, alone)


def test_a_batch_knows_where_episodes_were_abandoned():
    flags = {name: jnp.zeros((1, 5), bool) for name in ("is_first", "is_last", "is_terminal")}
    flags["is_first"] = flags["is_first"].at[0, 3].set(True)
    step = Step(jnp.zeros((1, 5, 4)), jnp.zeros((1, 5)), **flags)
    latent = Latent(jnp.arange(5.0)[None, :, None], jnp.zeros((1, 5, 4), jnp.uint8))
    batch = experience.as_batch(DREAMER, Experience(step, jnp.zeros((1, 5), jnp.int32), latent))
    np.testing.assert_array_equal(batch.steps.is_first[0], [True, False, False, True, False])
    np.testing.assert_array_equal(batch.steps.is_last[0], [False, False, True, False, False])
    assert float(batch.start.deter[0, 0]) == 0.0


def test_a_replay_too_small_for_a_batch_is_refused():
    with pytest.raises(ValueError, match="capacity of 10 steps holds 5"):
        loop.init(DREAMER, GAME, LoopConfig(envs=2, capacity=10), jax.random.key(0))


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.slow if seed else pytest.mark.long) for seed in range(3)]
)
def test_the_tiny_configuration_learns_to_count(seed: int):
    dreamer = Dreamer.of(tiny(), GAME.spec)
    cfg = LoopConfig(envs=4, batch_size=8, batch_length=12, train_ratio=48, capacity=2000)
    key_begin, key_run = jax.random.split(jax.random.key(seed))
    state = jax.jit(partial(loop.init, dreamer, GAME, cfg), compiler_options=QUICK)(key_begin)

    def body(state: LoopState, key: jax.Array) -> tuple[LoopState, tuple[jax.Array, jax.Array]]:
        state, progress = loop.iterate(dreamer, GAME, cfg, key, state)
        return state, (progress.finished, progress.returns)

    with jax.debug_key_reuse(False):
        run = jax.jit(lambda state, keys: jax.lax.scan(body, state, keys), donate_argnums=0)
        _, (finished, returns) = run(state, jax.random.split(key_run, 600))
    early, late = (float(returns[part].sum() / finished[part].sum()) for part in (slice(0, 50), slice(-100, None)))
    assert late > 0.95 > early
