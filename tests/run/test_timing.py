import numpy as np

from dreamjax.run.timing import Timing, measure


def test_contenders_take_turns_after_a_first_call_each() -> None:
    calls: list[str] = []
    timings = measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert "".join(calls) == "abababab"
    assert {name: timing.seconds.shape for name, timing in timings.items()} == {"a": (3,), "b": (3,)}
    assert all((timing.seconds >= 0).all() and timing.first_s >= 0 for timing in timings.values())


def test_rate_is_amount_over_seconds() -> None:
    np.testing.assert_allclose(Timing(1.0, np.array([0.5, 2.0])).rate(10), [20.0, 5.0])
