"""Whether an environment keeps the contract of `dreamjax.types`: what no type can say, found out by random play."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import checks
from dreamjax.rollout import random_policy
from dreamjax.types import Array, Environment, EnvSpec, Key, Space, State, Step

EPISODES = 8  # that are played side by side
STEPS = 300  # of each, through as many episodes as they make
_ROUNDING = 1e-5  # by which a float may leave its bounds, relative to them
_LARGE = 1e6  # actions are not drawn from beyond


@checks.arguments
def check_environment(environment: Environment, seed: int = 0, steps: int = STEPS) -> None:
    """Play at random for `steps` steps, side by side, and check all that `reset` and `step` return.

    Structure, shapes and dtypes are those of the spec. Observations are finite and within their bounds, discrete ones
    among their classes. Rewards are finite, and 0 in the first step of an episode, which `reset` marks as `is_first`
    and `step` never does. `is_terminal` implies `is_last`, which is set at the step limit at the latest. Equal keys and
    actions give equal steps, also when the functions are traced again. What random play does not meet is not checked.

    Raises: ValueError that lists each rule that is broken, by which function, and the first step where it is; TypeError
        for what is no `Environment`.
    """
    _check_spec(environment.spec)
    _trace(environment)
    played, again = (jax.device_get(_play(environment, seed, steps)) for _ in range(2))
    problems = [_first(played, rule, broken) for rule, broken in played["broken"].items() if broken.any()]
    # NaN, which differs from itself, has been found already.
    if not problems and (differs := np.not_equal(played["sums"], again["sums"]).any(-1)).any():
        rule = (
            "what it returns depends on more than its arguments: traced again, the same key and state gave another step"
        )
        problems.append(_first(played, rule, differs))
    if problems:
        raise ValueError("the environment breaks its contract\n  " + "\n  ".join(problems))


def _first(played: dict[str, Any], rule: str, broken: np.ndarray) -> str:
    """Name the function that broke a rule, and where it first did. Shapes: broken [steps + 1, episodes]."""
    at = np.unravel_index(broken.argmax(), broken.shape)
    time = int(played["time"][at])
    found = "".join(f", {name} {value[at]:g}" for name, value in played["found"].get(rule, {}).items())
    return f"Environment.{'step' if time else 'reset'}: {rule} at step {time}{found}"


def _check_spec(spec: EnvSpec) -> None:
    if not isinstance(spec, EnvSpec):
        raise TypeError(f"Environment.spec must be an EnvSpec, got {type(spec).__name__}")
    for name in ("observation", "action"):
        leaves = jax.tree.leaves(getattr(spec, name))
        if not leaves or not all(isinstance(leaf, Space) for leaf in leaves):
            raise ValueError(f"spec.{name} must be a Space or a tree of them, got {getattr(spec, name)}")
    if not isinstance(spec.max_steps, int | np.integer) or spec.max_steps < 1:
        raise ValueError(f"spec.max_steps must be a number of steps, at least 1, got {spec.max_steps!r}")


def _trace(environment: Environment) -> None:
    """Trace both functions, so that an error of theirs is told from one in what they return."""
    key = jax.random.key(0)
    action = jax.tree.map(lambda space: jnp.zeros(space.shape, space.dtype), environment.spec.action)
    call = "reset(key)"
    try:
        begun = jax.eval_shape(environment.reset, key)
        call = "step(key, state, action)"
        if type(begun) is tuple and isinstance(begun[-1], Step):  # if not, a check says so
            jax.eval_shape(environment.step, key, begun[0], action)
    except Exception as error:
        raise ValueError(f"Environment.{call} cannot be traced by JAX: {type(error).__name__}: {error}") from error


def _play(environment: Environment, seed: int, steps: int) -> dict[str, Any]:
    """Play at random, and note at every step which rules are broken. Shapes: -> [steps + 1, episodes] of each."""
    checked, act = checks.contract(environment), random_policy(jax.tree.map(_bounded, environment.spec.action)).act

    def advance(carry: tuple[State, Step, Array], key: Key) -> tuple[tuple[State, Step, Array], dict[str, Any]]:
        state, step, time = carry
        key_act, key_step, key_reset = jax.random.split(key, 3)
        action = act((), key_act, jnp.zeros(0))
        state, following = jax.lax.cond(
            step.is_last, lambda: checked.reset(key_reset), lambda: checked.step(key_step, state, action)
        )
        time = jnp.where(step.is_last, 0, time + 1)
        return (state, following, time), _look(environment.spec, following, time)

    def one(key: Key) -> dict[str, Any]:
        key_reset, key_steps = jax.random.split(key)
        state, step = checked.reset(key_reset)
        first = _look(environment.spec, step, jnp.int32(0))
        _, rest = jax.lax.scan(advance, (state, step, jnp.int32(0)), jax.random.split(key_steps, steps))
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)

    # A new function each time, so that it is traced each time; compiled with less care, in half the time, and run once.
    play = jax.jit(jax.vmap(one, out_axes=1), compiler_options={"xla_backend_optimization_level": 0})
    return play(jax.random.split(jax.random.key(seed), EPISODES))


def _look(spec: EnvSpec, step: Step, time: Array) -> dict[str, Any]:
    """Which rules a step breaks [], numbers found where they are, and sums that tell one step from another."""
    is_begin, reward = time == 0, step.reward
    broken = {
        "is_first is not set": is_begin & ~step.is_first,
        "is_first is set": ~is_begin & step.is_first,
        "is_terminal without is_last": step.is_terminal & ~step.is_last,
        "the reward is not finite": ~jnp.isfinite(reward),
        "the first reward is not 0": is_begin & (reward != 0),
        f"is_last is not set at the limit of {spec.max_steps} steps": (time >= spec.max_steps) & ~step.is_last,
    }
    found: dict[str, Any] = {"the first reward is not 0": {"but": reward}, "the reward is not finite": {"but": reward}}
    sums = [reward, *(getattr(step, name).astype(jnp.float32) for name in ("is_first", "is_last", "is_terminal"))]
    leaves = jax.tree.leaves(step.observation)
    for (path, space), x in zip(jax.tree_util.tree_leaves_with_path(spec.observation), leaves, strict=True):
        name = f"the observation{jax.tree_util.keystr(path)}"
        if not space.is_discrete:
            broken[f"{name} is not finite"] = ~jnp.isfinite(x).all()
        low, high = _inclusive(space)
        wide = x.astype(low.dtype)
        rule = f"{name} is outside of {space}"
        broken[rule] = (wide < low).any() | (wide > high).any()
        found[rule] = {"from": wide.min(), "to": wide.max()}
        weights = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)  # so that the places count
        sums.append((weights * jnp.nan_to_num(x.astype(jnp.float32))).sum())
    return {"time": time, "broken": broken, "found": found, "sums": jnp.stack(sums)}


def _inclusive(space: Space) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest values of a space, in a dtype that holds them. Shapes: -> [*shape] or [] each."""
    # One number where all entries share it: XLA would spend a second on a picture of zeros.
    kind = space.low_array.dtype.type
    low, high = (np.asarray(bound, kind) for bound in (space.low, space.high))
    if not space.is_discrete:
        return low - _ROUNDING * np.maximum(1, abs(low)), high + _ROUNDING * np.maximum(1, abs(high))
    dtype = np.dtype(np.uint8) if space.dtype == np.bool_ else space.dtype
    fit = partial(np.clip, a_min=np.iinfo(dtype).min, a_max=np.iinfo(dtype).max)
    return fit(low).astype(dtype), fit(high - 1).astype(dtype)


def _bounded(space: Space) -> Space:
    """Give an action without bounds some, to draw from."""
    if space.is_discrete:
        return space
    low = np.where(space.low_array > -_LARGE, space.low_array, np.minimum(space.high_array, 1) - 2)
    high = np.where(space.high_array < _LARGE, space.high_array, low + 2)
    return Space(space.shape, space.dtype, low, high)
