"""Craftax comes out of the adapter as it is when stepped by hand; its pictures become even bytes."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.envs.craftax import from_craftax, make, paint
from dreamjax.storage.identity import fingerprint

NAME = "Craftax-Classic-Symbolic-v1"
QUICK = {"xla_backend_optimization_level": 0}


@pytest.fixture(scope="module")
def original() -> Any:
    craftax = pytest.importorskip("craftax.craftax_env", reason="not installed: make test-adapters")
    return craftax.make_craftax_env_from_name(NAME, auto_reset=False)


@pytest.fixture(autouse=True)
def lax_jax(strict_jax: None) -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"), jax.debug_key_reuse(False):  # Craftax does both, throughout
        yield


def test_steps_are_those_of_the_original(original: Any) -> None:
    environment, params = make(NAME), original.default_params
    space = environment.spec.observation
    keys = jax.random.split(jax.random.key(0), 9)
    actions = jax.random.randint(jax.random.key(1), (8,), 0, 17)

    def by_hand(keys: jax.Array) -> Any:
        observation, state = original.reset_env(keys[0], params)

        def advance(state: Any, given: Any) -> Any:
            seen, state, reward, is_over, _ = original.step_env(given[0], state, given[1], params)
            return state, (seen, reward, is_over)

        return observation, jax.lax.scan(advance, state, (keys[1:], actions))[1]

    def ours(keys: jax.Array) -> Any:
        state, first = environment.reset(keys[0])
        return first, jax.lax.scan(lambda s, g: environment.step(g[0], s, g[1]), state, (keys[1:], actions))[1]

    opened, (seen, reward, is_over) = jax.jit(by_hand, compiler_options=QUICK)(jax.random.clone(keys))
    first, steps = jax.jit(ours, compiler_options=QUICK)(keys)
    np.testing.assert_array_equal(first.observation, opened)
    np.testing.assert_array_equal(steps.observation, seen)
    np.testing.assert_allclose(steps.reward, reward)
    np.testing.assert_array_equal(steps.is_last, is_over)
    assert first.is_first and not steps.is_first.any()
    assert steps.observation.shape == (8, *space.shape) and steps.observation.dtype == space.dtype
    assert steps.observation.min() >= space.low and steps.observation.max() <= space.high


def test_it_is_described_alike_when_made_again(original: Any) -> None:
    assert fingerprint(make(NAME)) == fingerprint(make(NAME))


def test_a_time_limit_is_not_terminal_but_a_death_is(original: Any) -> None:
    environment = from_craftax(original, original.default_params.replace(max_timesteps=1))
    state, _ = jax.jit(environment.reset, compiler_options=QUICK)(jax.random.key(0))
    dying = state.replace(player_health=jnp.int32(0))
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), state, dying)
    step = jax.jit(jax.vmap(environment.step, (None, 0, None)), compiler_options=QUICK)
    _, steps = step(jax.random.key(1), both, jnp.int32(0))
    np.testing.assert_array_equal(steps.is_last, [True, True])
    np.testing.assert_array_equal(steps.is_terminal, [False, True])
    assert environment.spec.max_steps == 1


def test_pictures_become_bytes_with_even_sides() -> None:
    picture = jax.random.randint(jax.random.key(0), (63, 70, 3), 0, 256)
    painted = paint(picture / 255.0)
    assert painted.shape == (64, 80, 3) and painted.dtype == np.uint8
    np.testing.assert_array_equal(painted[:63, :70], picture)
    assert not painted[63:].any() and not painted[:, 70:].any()
