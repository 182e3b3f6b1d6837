"""Launches and loops in the texts of compiled programs: one for each chip, kept in `programs/`, and some of this CPU.

Those that are kept are `scan_then_while` for weights [128, 128] and inputs [5, 8, 128], as `placing` in
benchmarks/accelerator_programs.py lets JAX 0.10.2 compile it, without the notes that nobody reads here.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from dreamjax.reporting.programs import Cost, Loop, Program, count

TEXTS = Path(__file__).parent / "programs"
SQUARE = jax.ShapeDtypeStruct((128, 128), jnp.float32)


def scan_then_while(w, xs):
    h, _ = jax.lax.scan(lambda h, x: (jnp.tanh(h @ w + x), None), jnp.zeros((8, 128)), xs)
    return jax.lax.while_loop(lambda h: h.max() < 1, lambda h: h @ w, h)


def compiled(function: Callable, *arguments: jax.ShapeDtypeStruct) -> Program:
    return count(jax.jit(function).lower(*arguments).compile().as_text())


def test_gpu() -> None:
    # To slice x, count, multiply and add x, take the tanh; then to multiply, copy, find the maximum and compare it.
    scan, search = Loop(5, Cost(4, 1), 1), Loop(None, Cost(4, 1), 1)
    # Before both, the counter and h are set to zero.
    assert count((TEXTS / "h100.txt").read_text()) == Program(Cost(2 + 5 * 4 + 4, 5 + 1), (scan, search))


def test_tpu_notes_cycles_and_no_trips() -> None:
    # One fusion does it all there, and copies and scalars go without an estimate.
    scan, search = Loop(5, Cost(5, 1, 2080), 1), Loop(None, Cost(4, 1, 2072 + 1832), 1)
    # Before both, the counter is set to zero, and the weights are converted to bfloat16 at 2094 cycles.
    total = Cost(2 + 5 * 5 + 4, 5 + 1, 2094 + 5 * 2080 + 2072 + 1832)
    assert count((TEXTS / "v5e.txt").read_text()) == Program(total, (scan, search))


def test_cpu() -> None:
    program = compiled(scan_then_while, SQUARE, jax.ShapeDtypeStruct((5, 8, 128), jnp.float32))
    assert [(loop.trips, loop.step.products, loop.runs) for loop in program.loops] == [(5, 1, 1), (None, 1, 1)]
    assert program.total.products == 6


def test_loops_in_loops() -> None:
    def inner(h, _):
        return jax.lax.scan(lambda h, _: (jnp.sin(h @ h), None), jnp.cos(h @ h), length=7)[0], None

    program = compiled(lambda h: jax.lax.scan(inner, h, length=3)[0] @ h, SQUARE)
    assert [(loop.trips, loop.step.products, loop.runs) for loop in program.loops] == [(3, 8, 1), (7, 1, 3)]
    assert program.total.products == 3 * 8 + 1
    outer, nested = program.loops
    assert program.total.launches > 3 * outer.step.launches > 3 * 7 * nested.step.launches > 0


def test_the_costlier_branch_counts() -> None:
    def branches(h):
        return jax.lax.cond(h.sum() > 0, lambda h: h @ h @ h, lambda h: h, h)

    assert compiled(branches, SQUARE).total.products == 2


def test_fewer_launches_are_fewer() -> None:
    def steps(h, unroll):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h), h.sum()), h, length=12, unroll=unroll)

    once, all_at_once = (compiled(lambda h, n=n: steps(h, n), SQUARE) for n in (1, 12))
    assert once.loops[0].trips == 12 and all_at_once.loops == ()
    assert once.total.launches >= 12 * once.loops[0].step.launches > 0


@pytest.mark.parametrize("text", ["", "HloModule empty", "  %x = f32[] parameter(0)"])
def test_what_is_no_program_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no text of a compiled program"):
        count(text)
