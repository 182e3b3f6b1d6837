"""Timing what runs asynchronously: compilation apart, results waited for, contenders in turn."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Timing(NamedTuple):
    """How long a call took."""

    first_s: float  # the first call, with compilation
    seconds: np.ndarray  # [n] the calls after it

    def rate(self, amount: float) -> np.ndarray:
        """`amount` per second in each call. Shapes: -> [n]."""
        return amount / self.seconds


def measure(contenders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Time functions without arguments; jax arrays in what they return are waited for.

    The contenders take turns, so that what else the machine does in the meantime meets all of them.
    """

    def call(function: Callable[[], Any]) -> float:
        begun = time.perf_counter()
        jax.block_until_ready(function())
        return time.perf_counter() - begun

    first = {name: call(function) for name, function in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, function in contenders.items():
            seconds[name].append(call(function))
    return {name: Timing(first[name], np.array(seconds[name])) for name in contenders}
