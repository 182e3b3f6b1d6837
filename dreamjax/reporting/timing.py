"""Measure what programs cost: their time, with compilation apart and contenders in turn, and their arithmetic."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


class Timing(NamedTuple):
    """The time that calls took."""

    first_s: float  # the first call, with compilation
    seconds: np.ndarray  # [n] the calls after it

    def rate(self, amount: float) -> np.ndarray:
        """Return `amount` per second for each call. Shapes: -> [n]."""
        return amount / self.seconds


def measure(contenders: dict[str, Callable[[], Any]], repeats: int, calls: int = 1) -> dict[str, Timing]:
    """Time functions without arguments, including the JAX arrays that they return.

    The contenders take turns, so that other load on the machine affects all of them alike. With several `calls`, a
    turn makes that many, waits for the last one only, and counts the time of one: for accelerators, where the host runs
    ahead of the device.
    """

    def call(function: Callable[[], Any], calls: int) -> float:
        begun = time.perf_counter()
        for _ in range(calls):
            result = function()
        jax.block_until_ready(result)
        return (time.perf_counter() - begun) / calls

    first = {name: call(function, 1) for name, function in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, function in contenders.items():
            seconds[name].append(call(function, calls))
    return {name: Timing(first[name], np.array(seconds[name])) for name in contenders}


def matrix_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Count the floating-point operations of all matrix products and convolutions in a program.

    XLA's own cost analysis counts the body of a scan once, however often it runs; here it counts every time. A `while`
    counts once, a `cond` as its costliest branch, and products with the zeros of padding or dilation are included.
    `arguments` may be `jax.ShapeDtypeStruct`s.
    """
    return _flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _flops(jaxpr: Jaxpr) -> int:
    return sum(map(_flops_of, jaxpr.eqns))


def _flops_of(equation: JaxprEqn) -> int:
    name, settings = equation.primitive.name, equation.params
    inputs: list[Any] = [variable.aval for variable in equation.invars]
    outputs: list[Any] = [variable.aval for variable in equation.outvars]
    if name == "dot_general":
        (contracted, _), _ = settings["dimension_numbers"]
        return 2 * outputs[0].size * int(np.prod([inputs[0].shape[axis] for axis in contracted]))
    if name == "conv_general_dilated":
        features = inputs[1].shape[settings["dimension_numbers"].rhs_spec[0]]
        return 2 * outputs[0].size * (inputs[1].size // features)
    inner = [_flops(part) for part in _jaxprs(settings)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (settings["length"] if name == "scan" else 1)


def _jaxprs(settings: dict[str, Any]) -> list[Jaxpr]:
    values = [x for value in settings.values() for x in (value if isinstance(value, tuple | list) else (value,))]
    closed = [value.jaxpr if isinstance(value, ClosedJaxpr) else value for value in values]
    return [value for value in closed if isinstance(value, Jaxpr)]
