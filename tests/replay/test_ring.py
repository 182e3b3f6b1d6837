"""The ring against a plain list of everything that was ever written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.replay import ring
from dreamjax.replay.ring import Address

STREAMS, SIZE, LENGTH = 3, 10, 4


def step_at(t: int) -> dict[str, jax.Array]:
    """Says of every stream what time it is: 100 e + t."""
    value = 100 * jnp.arange(STREAMS) + t
    return {"x": value, "wide": value[:, None].astype(jnp.float32) + jnp.array([[0.0, 0.5]])}


def filled(steps: int) -> ring.Ring:
    example = {"x": jax.ShapeDtypeStruct((), jnp.int32), "wide": jax.ShapeDtypeStruct((2,), jnp.float32)}
    state = ring.init(example, STREAMS, SIZE)
    add = jax.jit(ring.add)
    for t in range(steps):
        state = add(state, step_at(t))
    return state


@pytest.mark.parametrize(("steps", "starts"), [(0, 0), (3, 0), (4, 1), (10, 7), (23, 7)])
def test_starts(steps: int, starts: int):
    assert int(ring.starts(filled(steps), LENGTH)) == starts


@pytest.mark.parametrize("steps", [4, 9, 10, 27])
def test_samples_are_consecutive_steps_of_one_stream_and_all_come_up(steps: int):
    state = filled(steps)
    batch, address = jax.jit(ring.sample, static_argnums=(2, 3))(state, jax.random.key(0), 500, LENGTH)
    first = 100 * np.asarray(address.stream) + np.asarray(address.time)
    np.testing.assert_array_equal(batch["x"], first[:, None] + np.arange(LENGTH))
    np.testing.assert_array_equal(batch["wide"][..., 1], batch["x"] + 0.5)
    oldest = max(0, steps - SIZE)
    wanted = {100 * e + t for e in range(STREAMS) for t in range(oldest, steps - LENGTH + 1)}
    assert set(first.tolist()) == wanted


def test_update_writes_where_the_sample_came_from_and_nowhere_else():
    state = filled(13)
    address = Address(jnp.array([1, 2]), jnp.array([4, 8]))
    after = jax.jit(ring.update, static_argnums=2)(state, address, 1, {"x": jnp.full((2, 3), -1), "wide": None})
    np.testing.assert_array_equal(after.data["wide"], state.data["wide"])
    changed = {(e, t) for e in range(STREAMS) for t in range(3, 13) if after.data["x"][e, t % SIZE] == -1}
    assert changed == {(1, 5), (1, 6), (1, 7), (2, 9), (2, 10), (2, 11)}


def test_update_leaves_alone_what_was_overwritten_since():
    state = filled(13)  # times 3 to 12 are left
    address = Address(jnp.array([0]), jnp.array([1]))
    after = ring.update(state, address, 0, {"x": jnp.full((1, 4), -1), "wide": None})
    changed = {t for t in range(3, 13) if after.data["x"][0, t % SIZE] == -1}
    assert changed == {3, 4}


def test_it_runs_inside_a_scan():
    def body(state: ring.Ring, t: jax.Array) -> tuple[ring.Ring, jax.Array]:
        state = ring.add(state, step_at(t))
        return state, ring.starts(state, LENGTH)

    state, starts = jax.jit(lambda state: jax.lax.scan(body, state, jnp.arange(12)))(filled(0))
    np.testing.assert_array_equal(starts, np.clip(np.arange(1, 13), 0, SIZE)[:, None].max(1).clip(LENGTH - 1) - 3)
    np.testing.assert_array_equal(state.data["x"], filled(12).data["x"])


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="streams >= 1"):
        ring.init({"x": jnp.zeros(())}, 0, 3)
    with pytest.raises(ValueError, match=rf"a ring of {SIZE} steps of each stream holds no sequence of {SIZE + 1}"):
        ring.sample(filled(12), jax.random.key(0), 2, SIZE + 1)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"x": jnp.zeros((1,), jnp.int32)}, r"\['x'\] must be int32 of shape \(3,\), got int32 of \(1,\)"),
        ({"x": jnp.zeros((STREAMS,))}, r"\['x'\] must be int32 of shape \(3,\), got float32"),
        ({"wide": jnp.zeros(2)}, r"\['wide'\] must be float32 of shape \(3, 2\)"),
        ({"more": jnp.zeros(STREAMS)}, "a step must have the structure"),
    ],
)
def test_steps_that_are_not_those_of_all_streams_are_refused(broken: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ring.add(filled(1), step_at(1) | broken)
