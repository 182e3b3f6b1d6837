"""Environments of gymnax come out of the adapter as they are when stepped by hand, with honest flags and specs."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from dreamjax import rollout
from dreamjax.dreamerv3 import loop
from dreamjax.dreamerv3.config import DreamerConfig, debug
from dreamjax.dreamerv3.loop import LoopConfig
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.envs.gymnax import from_gymnax, make
from dreamjax.storage.identity import fingerprint
from dreamjax.types import Space, StepPolicy
from tests.scripts import REPO, finish, outcome, start

QUICK = {"xla_backend_optimization_level": 0}
NAMES = [
    "CartPole-v1",
    "Pendulum-v1",  # continuous, with actions that reach to 2
    "FourRooms-misc",  # integers for floats
    "FrozenLake-misc",  # a lone class
    "UmbrellaChain-bsuite",  # a whole-number reward
    "SimpleBandit-bsuite",  # an observation that never changes
    "MemoryChain-bsuite",  # and one that leaves its bounds
]


@pytest.fixture(scope="module")
def gymnax() -> Any:
    return pytest.importorskip("gymnax", reason="gymnax needs a venv of its own: make test-adapters")


def flags(step: Any) -> tuple[bool, ...]:
    return bool(step.is_first), bool(step.is_last), bool(step.is_terminal)


def actions_of(environment: Any, key: jax.Array, length: int) -> jax.Array:
    space = environment.spec.action
    if space.is_discrete:
        return jax.random.randint(key, (length, *space.shape), int(space.low), int(space.high), space.dtype)
    return jax.random.uniform(key, (length, *space.shape), minval=-1.2, maxval=1.2)  # the actor may leave [-1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_the_original(gymnax: Any, name: str) -> None:
    original, params = gymnax.make(name)
    environment = make(name)
    actions = actions_of(environment, jax.random.key(0), 30)
    key_reset, *keys = jax.random.split(jax.random.key(1), 31)
    wanted, theirs = original.reset_env(jax.random.clone(key_reset), params)
    state, step = environment.reset(key_reset)
    np.testing.assert_array_equal(step.observation, wanted)
    assert step.reward == 0 and flags(step) == (True, False, False)
    by_hand, ours = jax.jit(original.step_env), jax.jit(environment.step)
    for key, action in zip(keys, actions, strict=True):
        their_action = action if environment.spec.action.is_discrete else 2.0 * jnp.clip(action, -1, 1)
        wanted, theirs, reward, terminated, _ = by_hand(jax.random.clone(key), theirs, their_action, params)
        truncated = original.is_truncated(theirs, params)
        state, step = ours(key, state, action)
        np.testing.assert_allclose(step.observation, wanted, 1e-4, 1e-5)
        np.testing.assert_allclose(step.reward, reward, 1e-5)
        assert flags(step) == (False, bool(terminated | truncated), bool(terminated))
        if step.is_last:
            break


@pytest.mark.parametrize("name", NAMES)
def test_it_is_described_alike_when_made_again(gymnax: Any, name: str) -> None:
    assert fingerprint(make(name)) == fingerprint(make(name))


def test_dreamerv3_learns_and_reports_in_one(gymnax: Any, tmp_path: Path) -> None:
    """As the command does it that experiments/README.md shows."""
    script = REPO / "experiments" / "dreamerv3_jax.py"
    task = "--task", "gymnax_CartPole-v1", "--episodes", "4", "--loop.capacity", "200"
    finish(start(script, "--preset", "smoke", *task, "--folder", str(tmp_path)))
    assert list(outcome(tmp_path)[1])[-1] == "gymnax_CartPole-v1, mean of 2 seeds"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_emitted_fits_the_spec_jitted_over_lanes(gymnax: Any, name: str) -> None:
    environment = make(name)
    space = environment.spec.observation

    def go(key: jax.Array) -> Any:
        key_actions, key_play = jax.random.split(key)
        plan = actions_of(environment, key_actions, 40)
        # The memory is the time, so that actions are those planned.
        start = lambda params: jnp.int32(0)  # noqa: E731
        agent = StepPolicy(start, lambda params, key, time, step: (time + 1, plan[time]))
        return rollout.unroll(environment, agent, None, key_play, 40)[1].step

    with jax.debug_key_reuse(False):  # the check takes keys that are scanned under vmap for used ones
        steps = jax.jit(jax.vmap(go), compiler_options=QUICK)(jax.random.split(jax.random.key(0), 3))
    assert steps.observation.shape == (3, 40, *space.shape) and steps.observation.dtype == space.dtype
    assert (steps.observation >= space.low).all() and (steps.observation <= space.high - space.is_discrete).all()
    assert [leaf.dtype for leaf in steps[1:]] == [jnp.float32, bool, bool, bool]
    assert not (steps.is_terminal & ~steps.is_last).any()
    np.testing.assert_array_equal(steps.is_first[:, 1:], steps.is_last[:, :-1])
    assert (steps.reward[steps.is_first] == 0).all()


def test_a_time_limit_is_not_terminal_but_a_fall_at_it_is(gymnax: Any) -> None:
    original, params = gymnax.make("CartPole-v1")
    fall = 0
    for limit, falls in [(500, True), (5, False)]:
        environment = from_gymnax(original, params.replace(max_steps_in_episode=limit))
        ours = jax.jit(environment.step)
        state, step = environment.reset(jax.random.key(0))
        length = 0
        while not step.is_last:
            state, step = ours(jax.random.key(length), state, jnp.int32(1))
            length += 1
        assert flags(step) == (False, True, falls)
        # The observation is the last one of the episode, not the first of the next.
        assert abs(float(step.observation[2])) > 0.05 and step.reward == 1
        fall = fall or length
    environment = from_gymnax(original, params.replace(max_steps_in_episode=fall))
    state, step = environment.reset(jax.random.key(0))
    for time in range(fall):
        assert not step.is_last
        state, step = environment.step(jax.random.key(time), state, jnp.int32(1))
    assert environment.spec.max_steps == fall and flags(step) == (False, True, True)


def test_dreamerv3_learns_in_it(gymnax: Any) -> None:
    environment, cfg = make("CartPole-v1"), LoopConfig(2, batch_size=2, batch_length=4, train_ratio=4, capacity=100)
    dreamer = Dreamer.of(debug(DreamerConfig()), environment.spec)
    with jax.debug_key_reuse(False):  # as above
        state = jax.jit(partial(loop.init, dreamer, environment, cfg), compiler_options=QUICK)(jax.random.key(0))
        iterate = jax.jit(partial(loop.iterate, dreamer, environment, cfg), compiler_options=QUICK)
        for i in range(3):
            state, progress = iterate(jax.random.key(i), state)
    assert int(state.learner.step) == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(progress.metrics))


def test_an_unknown_name_is_refused(gymnax: Any) -> None:
    with pytest.raises(ValueError, match="'chess'; there are CartPole-v1"):
        make("chess")


class Params(NamedTuple):
    max_steps_in_episode: int = 3


class Double:
    """In the manner of gymnax: shows what was done. Its reset and its step disagree on dtypes."""

    default_params = Params()

    def __init__(self, observation: Any, action: Any, shown: Any = lambda action: action) -> None:
        self.observation_space, self.action_space = (lambda _: observation), (lambda _: action)
        self.shown = shown
        self.blank = {"seen": jnp.zeros(2)} if isinstance(observation, spaces.Dict) else jnp.zeros(2)

    def reset_env(self, key: jax.Array, params: Params) -> Any:
        return self.blank, {"time": 0, "moved": jnp.float32(0)}

    def step_env(self, key: jax.Array, state: Any, action: Any, params: Params) -> Any:
        state = {"time": jnp.int32(state["time"]) + 1, "moved": jnp.int32(1)}
        return self.shown(action), state, 1, jnp.bool_(False), {}

    def is_truncated(self, state: Any, params: Params) -> Any:
        return state["time"] >= params.max_steps_in_episode


BOX = spaces.Box(-np.inf, np.inf, (2,))


def test_actions_are_cut_and_rescaled_entry_by_entry() -> None:
    environment = from_gymnax(Double(BOX, spaces.Box(np.float32([0, -4]), np.float32([1, 8]))))
    assert environment.spec.action == Space((2,), np.float32, -1.0, 1.0)
    state, _ = environment.reset(jax.random.key(0))
    for action, wanted in [((-1, -1), (0, -4)), ((0, 0), (0.5, 2)), ((1, 1), (1, 8)), ((-3, 3), (0, 8))]:
        _, step = environment.step(jax.random.key(0), state, jnp.float32(action))
        np.testing.assert_allclose(step.observation, wanted)


def test_parts_keep_their_names_and_places() -> None:
    action = spaces.Dict({"go": spaces.Discrete(3), "how": spaces.Tuple([spaces.Box(0, 2, (2,))])})
    seen = spaces.Dict({"seen": spaces.Box(0, 2, (2,), np.int64)})
    environment = from_gymnax(Double(seen, action, lambda a: {"seen": a["how"][0] * a["go"]}))
    assert environment.spec.observation == {"seen": Space((2,), np.int32, 0, 3)}
    unit = Space((2,), np.float32, -1.0, 1.0)
    assert environment.spec.action == {"go": Space((), np.int32, 0, 3), "how": (unit,)}
    state, step = environment.reset(jax.random.key(0))
    assert step.observation["seen"].dtype == np.int32
    _, step = environment.step(jax.random.key(0), state, {"go": jnp.int32(2), "how": (jnp.zeros(2),)})
    np.testing.assert_array_equal(step.observation["seen"], [2, 2])
    assert step.observation["seen"].dtype == np.int32


def test_reset_and_step_agree_on_every_dtype() -> None:
    environment = from_gymnax(Double(BOX, spaces.Box(-1, 1, (2,))))
    opened = jax.eval_shape(environment.reset, jax.random.key(0))
    moved = jax.eval_shape(environment.step, jax.random.key(0), opened[0], jnp.zeros(2))
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), opened) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.weak_type), moved
    )


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (BOX, spaces.Box(-np.inf, np.inf, (2,)), "finite bounds"),
        (BOX, spaces.Box(0, 4, (2,), np.int32), "finite bounds"),
        (spaces.Text(4), spaces.Box(-1, 1, (2,)), "no array form"),
        (spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), r"shape \(3,\), but makes \(2,\)"),
    ],
)
def test_what_cannot_be_represented_is_refused(observation: Any, action: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_gymnax(Double(observation, action))
