"""Arguments, and shapes and dtypes of what a user's functions return, checked where they enter the library.

Checks of arrays run while a program is traced and cost nothing afterwards. A mismatch raises ValueError with the name
of the function that returned it, which part of its result is wrong, and what the specification declares.
"""

import inspect
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.types import (
    Action,
    AnyPolicy,
    Environment,
    EnvSpec,
    Key,
    LatentModel,
    Outcome,
    Params,
    PyTree,
    Space,
    State,
    Step,
    StepPolicy,
)

P = ParamSpec("P")
R = TypeVar("R")

_FLAGS = ("is_first", "is_last", "is_terminal")
_HINTS: dict[type, str] = {StepPolicy: "; step_policy(agent, model_params) or reactive(policy) makes one"}


def arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function to check what it is called with, so that swapped arguments are named at once.

    Arguments annotated as a contract, a state or a configuration must be one, `key` a typed key [], and `keys` typed
    keys [E]; the decorated function raises TypeError otherwise, and ValueError for a `temperature` that is not above 0.
    """
    signature = inspect.signature(function)
    kinds = {name: _classes(parameter.annotation) for name, parameter in signature.parameters.items()}
    call = f"{inspect.unwrap(function).__module__.removeprefix('dreamjax.')}.{inspect.unwrap(function).__name__}"
    listed = ", ".join(signature.parameters)

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if kinds[name] and not isinstance(value, kinds[name]):
                wanted = " or ".join(kind.__name__ for kind in kinds[name])
                hint = _HINTS.get(kinds[name][0], "")
                got = type(value).__name__
                raise TypeError(f"{name} of {call}({listed}) must be of kind {wanted}, got {got}{hint}")
            if name in ("key", "keys"):
                _typed_keys(value, int(name == "keys"), f"{name} of {call}({listed})")
            if name == "temperature" and not isinstance(value, jax.core.Tracer) and not np.all(np.greater(value, 0)):
                raise ValueError(f"temperature of {call}({listed}) must be above 0, got {value}")
        return function(*args, **kwargs)

    return checked


def same_spaces(wanted: EnvSpec, found: EnvSpec, hint: str = "") -> None:
    """Raise ValueError, naming the part, where an environment emits or takes other than what an agent was made for.

    All must have the same shape and dtype; actions and classes, whose bounds say what a number means, also the same
    bounds. The error ends with `hint`.
    """
    for kind, of_agent, of_environment in (
        ("observation", wanted.observation, found.observation),
        ("action", wanted.action, found.action),
    ):
        ours, theirs = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (of_agent, of_environment))
        for path in {**ours, **theirs}:
            a, b = ours.get(path), theirs.get(path)
            has_bounds = kind == "action" or (a is not None and a.is_discrete and a.dtype != np.uint8)
            if a and b and (a == b if has_bounds else (a.shape, a.dtype) == (b.shape, b.dtype)):
                continue
            named = jax.tree_util.keystr(path, simple=True, separator="/")
            part, none = (f"{kind} {named!r}", "missing") if named else (kind, None)
            raise ValueError(
                f"the agent was made for another environment: {part} is {b or none or of_environment}, and "
                f"{a or none or of_agent} for the agent{hint}"
            )


def _classes(annotation: Any) -> tuple[type, ...]:
    """List the classes that an annotation allows, where all of them can be told from arrays and trees."""
    kinds = get_args(annotation) or (annotation,)
    contracts = [isinstance(kind, type) and (hasattr(kind, "_fields") or is_dataclass(kind)) for kind in kinds]
    is_optional = kinds[-1] is type(None)
    return kinds if all(contracts[: len(kinds) - is_optional]) else ()


def _typed_keys(value: Any, axes: int, what: str) -> None:
    is_key = hasattr(value, "dtype") and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
    if not is_key or value.ndim != axes:
        wanted = "typed keys [E], as jax.random.split makes" if axes else "a typed key [], as jax.random.key makes"
        got = f"{value.dtype} {list(value.shape)}" if hasattr(value, "dtype") else type(value).__name__
        raise TypeError(f"{what} must be {wanted}, got {got}")


def loop(environment: Environment, agent: StepPolicy) -> tuple[Environment, StepPolicy]:
    """Wrap what a loop calls, so that every call is checked. The wrapped functions raise ValueError."""

    def act(params: Params, key: Key, before: State, arrived: Step) -> tuple[State, Action]:
        after, chosen = agent.act(params, key, before, arrived)
        state(before, after, "StepPolicy.act")
        action(environment.spec, chosen, "StepPolicy.act")
        return after, chosen

    return contract(environment), StepPolicy(agent.start, act)


def contract(environment: Environment) -> Environment:
    """Wrap an environment, so that every call is checked. The wrapped functions raise ValueError."""
    spec = environment.spec

    def reset(key: Key) -> tuple[State, Step]:
        begun, first = _pair(environment.reset(key), "Environment.reset")
        step(spec, first, "Environment.reset")
        return begun, first

    def advance(key: Key, before: State, taken: Action) -> tuple[State, Step]:
        after, arrived = _pair(environment.step(key, before, taken), "Environment.step")
        state(before, after, "Environment.step")
        step(spec, arrived, "Environment.step")
        return after, arrived

    return Environment(reset, advance, spec)


def _pair(value: Any, by: str) -> tuple[State, Step]:
    if type(value) is not tuple or len(value) != 2 or not isinstance(value[1], Step):
        got = f"({', '.join(type(part).__name__ for part in value)})" if type(value) is tuple else type(value).__name__
        raise ValueError(f"{by} must return (state, Step), got {got}")
    return value


def step(spec: EnvSpec, value: Step, by: str) -> None:
    """Check a step against the spec of its environment. Raises ValueError."""
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


def observation(spec: EnvSpec, value: PyTree, what: str) -> None:
    """Check an observation that may have leading axes, the same for all its parts. Raises ValueError."""
    one = jax.tree.map(lambda space: jax.ShapeDtypeStruct(space.shape, space.dtype), spec.observation)
    like(one, value, f"{what} must be the observation of the world model's spec")


def latent(model: LatentModel, params: Params, value: State, what: str) -> None:
    """Check a latent state that may have leading axes, the same for all its parts. Raises ValueError."""
    like(jax.eval_shape(model.start, params), value, f"{what} must be a latent state, as LatentModel.start returns it")


def drawable(spaces: PyTree) -> None:
    """Check that all spaces have bounds between which JAX can draw: in 32 bits, or overflow. Raises ValueError."""
    for space in jax.tree.leaves(spaces):
        low, high = space.low_array, space.high_array
        with np.errstate(over="ignore", invalid="ignore"):
            is_narrow = (low >= -(2**31)) & (high < 2**31) if space.is_discrete else np.isfinite(high - low)
        if not is_narrow.all():
            raise ValueError(
                "only what has bounds can be drawn uniformly, whole numbers from -2**31 to 2**31 - 2 and others whose "
                f"range is finite, got {space}"
            )


def continuous(space: PyTree) -> None:
    """Check that a space is a lone one of real numbers. Raises ValueError."""
    if not isinstance(space, Space) or space.is_discrete:
        raise ValueError(f"need the space of a lone continuous action, got {space}")


def policy(policy: AnyPolicy, params: Params) -> None:
    """Check parameters of one policy against those that its `init` makes. Raises ValueError.

    Others are left to the policy: those in another structure, as of a policy whose `init` makes none.
    """
    wanted = _initial(policy)
    structures: Any = [jax.tree.structure(tree) for tree in (params, wanted)]
    if structures[0] != structures[1]:
        return
    for (path, one), leaf in zip(jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(params), strict=True):
        if jnp.shape(leaf) != one.shape:
            raise ValueError(
                f"the parameters of the policy{jax.tree_util.keystr(path)} must be {list(one.shape)}, as its `init` "
                f"makes them, got {list(jnp.shape(leaf))}. A population is stacked [N, ...], where one is asked for, "
                "and nowhere else; rollout.population_of_one stacks those of one policy"
            )


def population(params: Params) -> int:
    """Count the policies whose parameters are stacked [N, ...]; one may have none. Raises ValueError if they differ."""
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(params)} or {(1,)}
    if len(counts) > 1 or () in counts:
        raise ValueError(
            "the parameters of a population are stacked, every array [N, ...]; rollout.population_of_one stacks those "
            f"of one policy. Got {jax.tree.map(jnp.shape, params)}"
        )
    return counts.pop()[0]


@lru_cache(maxsize=128)
def _initial(policy: AnyPolicy) -> PyTree:
    return jax.eval_shape(policy.init, jax.eval_shape(lambda: jax.random.key(0)))


def like(wanted: PyTree, value: PyTree, note: str, *, leading: bool = True) -> None:
    """Check structure, shapes and dtypes; with `leading`, all may have the same leading axes. Raises ValueError."""
    structures: Any = [jax.tree.structure(tree) for tree in (wanted, value)]
    if structures[0] != structures[1]:
        raise ValueError(f"{note}, {structures[0]}, got {structures[1]}")
    leads = set()
    for (path, one), leaf in zip(jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(value), strict=True):
        got = _described(leaf)
        axes = len(got.shape) - len(one.shape)
        if axes < 0 or (axes > 0 and not leading) or got.shape[axes:] != one.shape or got.dtype != one.dtype:
            part = jax.tree_util.keystr(path)
            raise ValueError(f"{note}{part and f': {part} is'}, {_text(one)}, got {_text(got)}")
        leads.add(got.shape[:axes])
    if len(leads) > 1:
        raise ValueError(f"{note}, with the same leading axes for all its parts, got {sorted(leads)}")


def _text(one: jax.ShapeDtypeStruct) -> str:
    return f"{one.dtype} {list(one.shape)}"


def features(value: PyTree, by: str) -> None:
    """Check that features are one float vector [F]; a tree of arrays is left to the policy. Raises ValueError."""
    if not jax.tree_util.all_leaves([value]):
        return
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
    note += "; dreamjax does not support jax_enable_x64" * bool(jax.config.read("jax_enable_x64"))
    chex.assert_shape(value, shape, custom_message=note, exception_type=ValueError)
    chex.assert_type(value, dtype, custom_message=note, exception_type=ValueError)


def _described(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.asarray(leaf).dtype)
