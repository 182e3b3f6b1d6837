"""Shapes and dtypes of what a user's functions return, checked with chex where it enters the library.

Checks run while a program is traced and cost nothing afterwards. A mismatch raises ValueError with the name of the
function that returned it, which part of its result is wrong, and what the specification declares.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.types import Action, Array, Environment, EnvSpec, Key, Outcome, Params, PyTree, State, Step, StepPolicy

_FLAGS = ("is_first", "is_last", "is_terminal")


def loop(environment: Environment, agent: StepPolicy) -> tuple[Environment, StepPolicy]:
    """Wrap what a loop calls, so that every call is checked. The wrapped functions raise ValueError."""
    spec = environment.spec

    def reset(key: Key) -> tuple[State, Step]:
        begun, first = environment.reset(key)
        step(spec, first, "Environment.reset")
        return begun, first

    def advance(key: Key, before: State, taken: Action) -> tuple[State, Step]:
        after, arrived = environment.step(key, before, taken)
        state(before, after, "Environment.step")
        step(spec, arrived, "Environment.step")
        return after, arrived

    def act(params: Params, key: Key, before: State, arrived: Step) -> tuple[State, Action]:
        after, chosen = agent.act(params, key, before, arrived)
        state(before, after, "StepPolicy.act")
        action(spec, chosen, "StepPolicy.act")
        return after, chosen

    return Environment(reset, advance, spec), StepPolicy(agent.start, act)


def step(spec: EnvSpec, value: Step, by: str) -> None:
    """Check a step against the spec of its environment. Raises ValueError."""
    if not isinstance(value, Step):
        raise ValueError(f"{by} must return (state, Step), got {type(value).__name__} in the place of the Step")
    _spaces(spec.observation, value.observation, f"the observation of {by}", "spec.observation")
    _array(value.reward, (), np.dtype(np.float32), f"the reward of {by}")
    for name in _FLAGS:
        _array(getattr(value, name), (), np.dtype(bool), f"{name} of {by}")


def action(spec: EnvSpec, value: Action, by: str) -> None:
    """Check an action against the spec of its environment. Raises ValueError."""
    _spaces(spec.action, value, f"the action of {by}", "spec.action")


def state(before: State, after: State, by: str) -> None:
    """Check that a state has the structure, shapes and dtypes of the one before it. Raises ValueError."""
    before, after = (jax.tree.map(_described, tree) for tree in (before, after))
    note = f"{by} must return a state with the structure, shapes and dtypes of the one it is given"
    chex.assert_trees_all_equal_structs(before, after, custom_message=note, exception_type=ValueError)
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after, custom_message=note, exception_type=ValueError)


def features(value: Array, by: str) -> None:
    """Check that features are one float vector [F]. Raises ValueError."""
    note = f"{by} must be a float vector [F]"
    chex.assert_rank(value, 1, custom_message=note, exception_type=ValueError)
    if not jax.dtypes.issubdtype(value.dtype, np.floating):
        raise ValueError(f"{note}, got {value.dtype}")


def outcome(value: Outcome, by: str) -> None:
    """Check that an outcome is of one state. Raises ValueError."""
    for name in Outcome._fields:
        got = jnp.asarray(getattr(value, name))
        chex.assert_shape(got, (), custom_message=f"{name} of {by} must be one number []", exception_type=ValueError)
        if not jax.dtypes.issubdtype(got.dtype, np.floating):
            raise ValueError(f"{name} of {by} must be a float, got {got.dtype}")


def starts(value: PyTree) -> None:
    """Check that embeddings are stacked [S, ...], with S at least 1. Raises ValueError."""
    leaves = jax.tree.leaves(value)
    note = "`starts` must be embeddings of S >= 1 first observations, every array [S, ...]"
    if not leaves or not all(jnp.ndim(leaf) and len(leaf) for leaf in leaves):
        raise ValueError(f"{note}, got {jax.tree.map(jnp.shape, value)}")
    chex.assert_equal_shape_prefix(leaves, 1, custom_message=note, exception_type=ValueError)


def _spaces(spaces: PyTree, value: PyTree, what: str, where: str) -> None:
    wanted: Any = jax.tree.structure(spaces)
    got: Any = jax.tree.structure(value)
    if got != wanted:
        raise ValueError(f"{what} must have the structure of {where}, {wanted}, got {got}")
    for (path, space), leaf in zip(jax.tree_util.tree_leaves_with_path(spaces), jax.tree.leaves(value), strict=True):
        part = jax.tree_util.keystr(path)
        _array(leaf, space.shape, space.dtype, f"{what}, {part}," if part else what)


def _array(value: Any, shape: tuple[int, ...], dtype: np.dtype, what: str) -> None:
    value = jnp.asarray(value)
    note = f"{what} must be {dtype} {list(shape)}, got {value.dtype} {list(value.shape)}"
    chex.assert_shape(value, shape, custom_message=note, exception_type=ValueError)
    chex.assert_type(value, dtype, custom_message=note, exception_type=ValueError)


def _described(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.asarray(leaf).dtype)
