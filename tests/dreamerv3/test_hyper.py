"""Learning rate, entropy scale and discount are traced: one compiled program serves all their values."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.dreamerv3 import experience, interop, learner
from dreamjax.dreamerv3.config import DreamerConfig, debug
from dreamjax.dreamerv3.experience import Experience
from dreamjax.dreamerv3.learner import Hyper, TrainState
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.types import EnvSpec, Space

SPEC = EnvSpec(Space((3,)), Space((), np.int32, 0, 3), 10)
BASE = replace(debug(), compute_dtype="float32")
BASE = replace(BASE, heads=replace(BASE.heads, zero_init=False))  # so that no loss is flat where it begins
# A gradient next to nothing, divided by its size, has a sign that the order of sums decides; eps is above that.
ONE = replace(BASE, optimizer=replace(BASE.optimizer, warmup=2, eps=1e-2))
OTHER = replace(
    ONE,
    optimizer=replace(ONE.optimizer, learning_rate=1e-2),
    behaviour=replace(ONE.behaviour, entropy=0.1, discount_horizon=5.0),
)
DREAMER = Dreamer.of(ONE, SPEC)
QUICK = {"xla_backend_optimization_level": 0}  # compiled in half the time, and run a few times


def drawn() -> Experience:
    """Two sequences of random experience."""
    rng = np.random.default_rng(0)

    def fill(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        shape = (2, 5, *leaf.shape)
        values = rng.normal(size=shape) if leaf.dtype == np.float32 else rng.integers(0, 2, shape)
        return values.astype(leaf.dtype)

    return jax.tree.map(fill, experience.example(DREAMER))


@cache
def program(cfg: DreamerConfig) -> Any:
    """The update of a configuration."""
    return jax.jit(partial(experience.learn.__wrapped__, Dreamer.of(cfg, SPEC)), compiler_options=QUICK)


def trained(cfg: DreamerConfig, hyper: Hyper | None = None) -> TrainState:
    """The state after two updates, of which the first has a learning rate of zero."""
    state = learner.init(Dreamer.of(cfg, SPEC), jax.random.key(0), hyper)
    for _ in range(2):
        state, _ = program(cfg)(jax.random.key(1), state, drawn())
    return state


@pytest.mark.long
def test_one_program_serves_the_values_of_two_configurations() -> None:
    one, other = (trained(ONE, Hyper.of(cfg)) for cfg in (ONE, OTHER))
    assert program(ONE)._cache_size() == 1
    chex.assert_trees_all_equal(one, trained(ONE))
    chex.assert_trees_all_equal(other, trained(ONE, Hyper(1e-2, 0.1, 0.8)))
    assert program(ONE)._cache_size() == 1
    chex.assert_trees_all_close(other, trained(OTHER), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "reached"),
    [
        ("learning_rate", {"enc", "dyn", "dec", "rew", "con", "pol", "val"}),
        ("entropy", {"pol"}),
        ("discount", {"enc", "dyn", "con", "val"}),
    ],
)
def test_each_value_reaches_what_it_should(name: str, reached: set[str]) -> None:
    hyper = Hyper.of(ONE)._replace(**{name: getattr(Hyper.of(OTHER), name)})
    found, usual = (interop.flatten(state.params) for state in (trained(ONE, hyper), trained(ONE)))
    assert {leaf.split("/")[0] for leaf in found if (found[leaf] != usual[leaf]).any()} == reached


def test_vmap_sweeps_them() -> None:
    sweep = jax.tree.map(lambda *x: jnp.stack(x), Hyper.of(ONE), Hyper.of(OTHER))
    update = jax.vmap(partial(experience.learn.__wrapped__, DREAMER), (None, 0, None))
    with jax.debug_key_reuse(False):  # the check takes a key that is shared under vmap for a used one
        states = jax.vmap(lambda hyper: learner.init(DREAMER, jax.random.key(0), hyper))(sweep)
        for _ in range(2):
            states, _ = jax.jit(update, compiler_options=QUICK)(jax.random.key(1), states, drawn())
    for i, cfg in enumerate((ONE, OTHER)):
        alone = trained(ONE, Hyper.of(cfg)).params
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], states.params), alone, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_equal(states.hyper, sweep)


def test_the_values_of_a_caller_survive_the_donated_state() -> None:
    hyper = Hyper.of(ONE)
    state = learner.init(DREAMER, jax.random.key(0), hyper)
    jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)(state)
    assert state.hyper.entropy.is_deleted()
    assert float(hyper.learning_rate) == pytest.approx(ONE.optimizer.learning_rate)
