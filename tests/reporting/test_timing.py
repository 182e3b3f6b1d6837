from itertools import count
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.reporting.timing import Timing, matrix_flops, measure


def test_contenders_take_turns_after_a_first_call_each() -> None:
    calls: list[str] = []
    timings = measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert "".join(calls) == "abababab"
    assert {name: timing.seconds.shape for name, timing in timings.items()} == {"a": (3,), "b": (3,)}
    assert all((timing.seconds >= 0).all() and timing.first_s >= 0 for timing in timings.values())


def test_rate_is_amount_over_seconds() -> None:
    np.testing.assert_allclose(Timing(1.0, np.array([0.5, 2.0])).rate(10), [20.0, 5.0])


def test_flops_of_products_convolutions_and_scans():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    assert matrix_flops(jnp.matmul, a, b) == 2 * 3 * 4 * 5
    assert matrix_flops(jax.jit(jax.vmap(jnp.matmul, (0, None))), jnp.ones((7, 3, 4)), b) == 7 * 2 * 3 * 4 * 5
    product = lambda a, _: (a @ jnp.ones((4, 4)), None)  # noqa: E731
    assert matrix_flops(lambda a: jax.lax.scan(product, a, length=6), a) == 6 * 2 * 3 * 4 * 4
    assert matrix_flops(jax.grad(lambda a, b: (a @ b).sum(), (0, 1)), a, b) == 3 * 2 * 3 * 4 * 5
    assert matrix_flops(lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((3, 5))), a) == 120
    image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((5, 5, 3, 7))
    convolve = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", None, None, ("NHWC", "HWIO", "NHWC"))  # noqa: E731
    assert matrix_flops(convolve, image, kernel) == 2 * 2 * 8 * 8 * 7 * 5 * 5 * 3


def test_a_turn_of_several_calls_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by six seconds whenever it is read; the first call is alone, as it compiles."""
    clock, made = count(0.0, 6.0), list[str]()
    monkeypatch.setattr("dreamjax.reporting.timing.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    timing = measure({"one": lambda: made.append("one"), "two": lambda: made.append("two")}, 2, calls=3)
    assert made == ["one", "two", *(["one"] * 3 + ["two"] * 3) * 2]
    assert timing["one"].first_s == 6 and timing["two"].seconds.tolist() == [2, 2]
