"""Environments drawn at random: what is observed, done and paid is never silently changed, or it is refused by name."""

from functools import partial
from typing import Any

import gymnasium
import jax
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, note, settings, strategies as st

from dreamjax.acting.vector import VectorEnvironment
from dreamjax.dreamerv3 import Dreamer, debug, experience, model
from dreamjax.envs import adapted, spec_from_gymnasium
from dreamjax.envs.host import InvalidStep
from dreamjax.types import Step
from tests.faults.fuzzed import Fault, Fuzzed, parts

SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)
WHOLE = {np.uint8: (0, 255), np.int8: (-128, 127), np.int16: (-300, 300), np.int32: (-900, 900), np.int64: (-900, 900)}
HOWS = ("nan", "inf", "-inf", "outside", "dtype", "shape", "lost", "four", "reward", "raise")


@st.composite
def float_boxes(draw: Any, bounded: bool) -> spaces.Box:
    shape, dtype = draw(SHAPES), draw(st.sampled_from([np.float16, np.float32, np.float64]))
    numbers = st.floats(-100, 100, width=16)
    low = np.array(draw(st.lists(numbers, min_size=27, max_size=27)))[: int(np.prod(shape))].reshape(shape)
    if draw(st.booleans()):
        low = np.full(shape, draw(numbers))
    high = low + draw(st.floats(0.5, 50, width=16))
    if not bounded:
        low, high = draw(st.sampled_from([(low, high), (-np.inf, high), (low, np.inf), (-np.inf, np.inf)]))
    return spaces.Box(
        np.broadcast_to(low, shape).astype(dtype), np.broadcast_to(high, shape).astype(dtype), shape, dtype
    )


@st.composite
def whole_boxes(draw: Any) -> spaces.Box:
    shape, dtype = draw(SHAPES), draw(st.sampled_from(list(WHOLE)))
    least, most = WHOLE[dtype]
    low = draw(st.integers(least, most - 1))
    high = draw(st.integers(low + 1, min(most, low + 40)))
    if draw(st.booleans()) and shape:
        highs = np.array([min(most, high + i) for i in range(int(np.prod(shape)))]).reshape(shape)
        return spaces.Box(np.full(shape, low, dtype), highs.astype(dtype), shape, dtype)
    return spaces.Box(low, high, shape, dtype)


DISCRETE = st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 9), st.integers(-5, 5))
COUNTS = st.lists(st.integers(1, 5), min_size=1, max_size=3)
MULTI = st.builds(
    lambda counts, start: spaces.MultiDiscrete(counts, start=[start] * len(counts)), COUNTS, st.integers(0, 4)
)
BINARY = st.one_of(st.integers(1, 4), st.just((2, 2))).map(spaces.MultiBinary)
FLAGS = SHAPES.map(lambda shape: spaces.Box(0, 1, shape, np.bool_))
NAMES = st.sampled_from(["image", "lidar", "a b", "0", "Zoom", "é"])
SINGLE = st.one_of(whole_boxes(), DISCRETE, MULTI, BINARY, FLAGS)


def nested(leaf: st.SearchStrategy) -> st.SearchStrategy:
    """A space, or dicts and tuples of spaces, two deep."""
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.dictionaries(NAMES, inner, min_size=1, max_size=3).map(lambda each: spaces.Dict(list(each.items()))),
            st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
        ),
        max_leaves=4,
    )


OBSERVATIONS = nested(st.one_of(float_boxes(bounded=False), SINGLE))
ACTIONS = nested(st.one_of(float_boxes(bounded=True), SINGLE))
NO_ARRAY = st.sampled_from(
    [
        spaces.Text(4),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Graph(spaces.Box(-1, 1, (2,)), None),
        spaces.OneOf([spaces.Discrete(2), spaces.Discrete(3)]),
        spaces.Box(0, 2**33, (2,), np.int64),
        spaces.Box(-1, 1, (2, 0)),
        spaces.Dict({}),
    ]
)


def choose(rng: np.random.Generator, spec: Any, count: int) -> Any:
    """Choose actions for environments, floats beyond their bounds as well."""

    def one(space: Any) -> np.ndarray:
        if not space.is_discrete:
            return rng.uniform(-1.3, 1.3, (count, *space.shape)).astype(space.dtype)
        return rng.integers(space.low_array, space.high_array, (count, *space.shape)).astype(space.dtype)

    return jax.tree.map(one, spec)


def assert_given(space: spaces.Space, got: Any, chosen: Any) -> None:
    """Compare the action that an environment was given to the one that was chosen for it."""
    if isinstance(space, spaces.Dict):
        for key, one in space.spaces.items():
            assert_given(one, got[key], chosen[key])
    elif isinstance(space, spaces.Tuple):
        for one, mine, its in zip(space.spaces, got, chosen, strict=True):
            assert_given(one, mine, its)
    elif isinstance(space, spaces.Box) and space.dtype.kind == "f":
        share = (np.clip(np.asarray(chosen, np.float64), -1, 1) + 1) / 2
        wanted = space.low + share * (space.high.astype(np.float64) - space.low)
        np.testing.assert_allclose(got, wanted, rtol=1e-3 if space.dtype == np.float16 else 1e-5, atol=1e-2)
    else:
        entries = np.array(chosen).reshape(space.shape) if isinstance(chosen, tuple) else chosen
        np.testing.assert_array_equal(got, entries)


def assert_seen(step: Step, number: int, log: list[tuple[Any, ...]]) -> None:
    """Compare what arrived from an environment to what it emitted last, to the last bit that 32 bits can hold."""
    _, observation, reward = log[-1]
    for (path, stored), (_, emitted) in zip(
        jax.tree_util.tree_leaves_with_path(step.observation),
        jax.tree_util.tree_leaves_with_path(observation),
        strict=True,
    ):
        np.testing.assert_array_equal(stored[number], np.asarray(emitted).astype(stored.dtype), err_msg=str(path))
    assert step.reward[number] == np.float32(reward)


def make(made: list[Fuzzed], *settings: Any) -> gymnasium.Env:
    made.append(Fuzzed(*settings))
    return made[-1]


@settings(max_examples=60)
@given(OBSERVATIONS, ACTIONS, st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**20))
def test_everything_arrives_as_it_was_emitted_and_chosen(
    observation: spaces.Space, action: spaces.Space, length: int, max_steps: int, seed: int
) -> None:
    made: list[Fuzzed] = []
    vector = VectorEnvironment(partial(adapted, partial(make, made, observation, action, length)), 2, max_steps)
    rng, step = np.random.default_rng(seed), vector.reset((seed,))
    time = 0
    for _ in range(9):
        for number in range(2):
            assert_seen(step, number, made[number].log)
        assert step.is_first.tolist() == [time == 0] * 2
        assert step.is_last.tolist() == [time == min(length, max_steps)] * 2
        assert step.is_terminal.tolist() == [time == length <= max_steps] * 2
        chosen = choose(rng, vector.spec.action, 2)
        ended = step.is_last[0]
        step = vector.step(chosen)
        time = 0 if ended else time + 1
        for number in range(0 if ended else 2):
            assert_given(action, made[number].log[-1][0], jax.tree.map(lambda leaf, i=number: leaf[i], chosen))
    assert len(made) == 2 and vector.failures == 0
    vector.close()


@pytest.mark.filterwarnings("ignore:environment . is made anew")
@settings(max_examples=80)
@given(OBSERVATIONS, ACTIONS, st.sampled_from(HOWS), st.integers(1, 3), st.integers(0, 99), st.integers(0, 2**20))
def test_what_misbehaves_is_refused_at_its_step_by_name(
    observation: spaces.Space, action: spaces.Space, how: str, at: int, part: int, seed: int
) -> None:
    named = list(parts(observation))
    fault, made = Fault(how, at, part % len(named)), list[Fuzzed]()
    note(f"{fault} {named}")
    vector = VectorEnvironment(partial(adapted, partial(make, made, observation, action, 4, fault)), 1, 9)
    rng, step = np.random.default_rng(seed), vector.reset((seed,))
    for _ in range(at - 1):
        step = vector.step(choose(rng, vector.spec.action, 1))
        assert_seen(step, 0, made[0].log)
    if how == "raise":
        before = step
        step = vector.step(choose(rng, vector.spec.action, 1))
        assert (step.is_last, step.is_terminal, step.reward, vector.failures) == (True, False, 0, 1)
        jax.tree.map(np.testing.assert_array_equal, step.observation, before.observation)
        assert vector.step(choose(rng, vector.spec.action, 1)).is_first
    else:
        with pytest.raises(InvalidStep) as refused:
            vector.step(choose(rng, vector.spec.action, 1))
        said, name = str(refused.value), named[fault.part][0]
        assert "Fuzzed" in said and vector.failures == 0
        if how not in ("four", "reward"):
            assert (name.rpartition("/")[0] if how == "lost" else name) in said and "observation" in said
    vector.close()


@settings(max_examples=25)
@given(OBSERVATIONS, NO_ARRAY, NAMES, st.booleans())
def test_what_has_no_array_is_refused_before_training(
    other: spaces.Space, bad: spaces.Space, name: str, acts: bool
) -> None:
    whole = spaces.Dict([(f"{name}_", spaces.Tuple([other])), (name, spaces.Dict({"inner": bad}))])
    observation, action = (spaces.Discrete(2), whole) if acts else (whole, spaces.Discrete(2))
    if acts:
        whole.spaces[f"{name}_"] = spaces.Discrete(2)
    with pytest.raises(ValueError, match=f"{name}/inner"):
        VectorEnvironment(partial(adapted, partial(Fuzzed, observation, action, 3)), 1, 9)


@settings(max_examples=60)
@given(OBSERVATIONS, ACTIONS)
def test_dreamer_reads_and_chooses_or_names_what_it_cannot(observation: spaces.Space, action: spaces.Space) -> None:
    vector = VectorEnvironment(partial(adapted, partial(Fuzzed, observation, action, 3)), 1, 9)
    vector.close()
    try:
        Dreamer.of(debug(), vector.spec)
    except ValueError as error:
        names = [name for name, _ in [*parts(observation), *parts(action)]]
        assert any(repr(name or "observation") in str(error) for name in names)


@settings(max_examples=4)
@given(OBSERVATIONS, ACTIONS)
def test_an_agent_reads_them_and_chooses_what_is_declared(observation: spaces.Space, action: spaces.Space) -> None:
    """As far as shapes and dtypes say, which takes no compilation."""
    env = adapted(partial(Fuzzed, observation, action, 3))
    dreamer = Dreamer.of(debug(), spec_from_gymnasium(env, 9))
    described = experience.example(dreamer)
    step = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), described.step)
    params = jax.eval_shape(partial(model.init, dreamer), jax.random.key(0))
    act, memory = partial(experience.act, dreamer), experience.start(dreamer, 2)
    after, _ = jax.eval_shape(act, params, jax.random.key(0), memory, step)
    chosen = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), after.action)
    assert chosen == jax.tree.map(lambda leaf: ((2, *leaf.shape), leaf.dtype), described.action)


@pytest.mark.slow
@settings(max_examples=3)
@given(OBSERVATIONS, ACTIONS, st.integers(0, 2**20))
def test_an_agent_acts_in_them(observation: spaces.Space, action: spaces.Space, seed: int) -> None:
    made: list[Fuzzed] = []
    vector = VectorEnvironment(partial(adapted, partial(make, made, observation, action, 3)), 2, 9)
    dreamer = Dreamer.of(debug(), vector.spec)
    params = jax.jit(model.init, static_argnums=0)(dreamer, jax.random.key(seed))
    step, memory = vector.reset((seed,)), experience.start(dreamer, 2)
    for key in jax.random.split(jax.random.key(1), 2):
        memory, _ = experience.act(dreamer, params, key, memory, step)
        chosen = jax.device_get(memory.action)
        step = vector.step(chosen)
        for number in range(2):
            assert_given(
                action, made[number].log[-1][0], jax.tree.map(lambda x, i=number: np.asarray(x[i]), memory.action)
            )
            assert_seen(step, number, made[number].log)
    vector.close()


@settings(max_examples=2)
@given(OBSERVATIONS, ACTIONS, st.integers(0, 2**20))
def test_workers_give_the_same_steps(observation: spaces.Space, action: spaces.Space, seed: int) -> None:
    found = []
    for workers in (0, 1):
        vector = VectorEnvironment(partial(adapted, partial(Fuzzed, observation, action, 3)), 2, 9, workers)
        rng = np.random.default_rng(seed)
        found.append([vector.reset((seed,))] + [vector.step(choose(rng, vector.spec.action, 2)) for _ in range(3)])
        vector.close()
    jax.tree.map(np.testing.assert_array_equal, *found)
