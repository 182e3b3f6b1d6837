"""Brax comes out of the adapter as it is when stepped by hand, and its time limit is no end of the world."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.envs.brax import from_brax, make
from dreamjax.storage.identity import fingerprint
from dreamjax.types import Space

NAME = "inverted_pendulum"
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="module")
def envs() -> Any:
    return pytest.importorskip("brax.envs", reason="not installed: make test-adapters")


@pytest.fixture(autouse=True)
def lax_ranks(strict_jax: None) -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"):  # Brax broadcasts across ranks
        yield


def test_steps_are_those_of_the_original_to_a_time_limit_and_to_a_fall(envs: Any) -> None:
    for limit, action in [(4, 0.1), (100, 3.0)]:
        original = envs.create(NAME, episode_length=limit, auto_reset=False)
        environment = from_brax(original)
        assert environment.spec.max_steps == limit
        by_hand, ours = (jax.jit(step, compiler_options=QUICK) for step in (original.step, environment.step))
        theirs = jax.jit(original.reset, compiler_options=QUICK)(jax.random.key(0))
        state, step = jax.jit(environment.reset, compiler_options=QUICK)(jax.random.key(0))
        np.testing.assert_array_equal(step.observation, theirs.obs)
        assert step.is_first and not step.is_last and step.reward == 0
        length = 0
        while not step.is_last:
            theirs = by_hand(theirs, jnp.full(1, min(action, 1.0)))
            state, step = ours(jax.random.key(length), state, jnp.full(1, action))
            np.testing.assert_allclose(step.observation, theirs.obs, 1e-6)
            assert step.reward == theirs.reward and step.is_last == (theirs.done > 0) and not step.is_first
            length += 1
        assert (length == limit) == (limit == 4)
        assert bool(step.is_terminal) == (limit == 100)


def test_spec_batches_and_purity(envs: Any) -> None:
    environment = make(NAME)
    assert environment.spec == (Space((4,), np.float32), Space((1,), np.float32, -1.0, 1.0), 1000)
    keys = jax.random.split(jax.random.key(0), 2)
    states, opened = jax.jit(jax.vmap(environment.reset), compiler_options=QUICK)(keys)
    assert opened.observation.shape == (2, 4) and opened.observation.dtype == np.float32
    alone = jax.tree.map(lambda x: x[0], states)
    before = jax.tree.map(np.array, alone)
    _, one = environment.step(jax.random.key(1), alone, jnp.ones(1))
    jax.tree.map(np.testing.assert_array_equal, before, alone)
    _, both = jax.jit(jax.vmap(environment.step, (None, 0, None)))(jax.random.key(1), states, jnp.ones(1))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y[0], 1e-5, 1e-6), one, both)
    assert [leaf.dtype for leaf in one[1:]] == [jnp.float32, bool, bool, bool]


def test_it_is_described_alike_when_made_again(envs: Any) -> None:
    assert fingerprint(make(NAME)) == fingerprint(make(NAME))


def test_reset_and_step_fit_in_one_cond(envs: Any) -> None:
    environment = make(NAME)
    opened = jax.eval_shape(environment.reset, jax.random.key(0))
    moved = jax.eval_shape(environment.step, jax.random.key(0), opened[0], jnp.zeros(1))
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), opened) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.weak_type), moved
    )


def test_what_does_not_fit_is_refused(envs: Any) -> None:
    for settings, message in [
        ({"auto_reset": True}, "auto_reset=False"),
        ({"auto_reset": False, "episode_length": None}, "no time limit"),
        ({"auto_reset": False, "batch_size": 2}, "batch of"),
    ]:
        with pytest.raises(ValueError, match=message):
            from_brax(envs.create(NAME, **settings))
    with pytest.raises(ValueError, match="no environment 'chess'"):
        make("chess")
