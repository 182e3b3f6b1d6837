"""Loops in environments against the same loops written naively, in integers, so that equal means equal."""

import itertools
from functools import partial
from typing import NamedTuple

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from dreamjax import dream, rollout
from dreamjax.envs import probes
from dreamjax.rollout import Returns, _batch_sizes, episodes, population_returns, unroll
from dreamjax.types import (
    Action,
    Agent,
    AgentParams,
    Array,
    Environment,
    EnvSpec,
    Key,
    LatentModel,
    Params,
    Policy,
    RecurrentPolicy,
    Space,
    Step,
    StepPolicy,
)


class Hops(NamedTuple):
    position: Array  # [] int32, in [0, 101)
    time: Array  # [] int32


def hops() -> Environment:
    """A position that hops about at random and by the action; over at multiples of 13, cut after 40 steps.

    The reward is the position. To step on after the end is punished with a reward that is not a number.
    """

    def observe(state: Hops, is_first: bool, was_over: Array) -> Step:
        is_terminal = state.position % 13 == 0
        reward = jnp.where(was_over, jnp.nan, 0.0 if is_first else state.position.astype(jnp.float32))
        return Step(state.position, reward, jnp.array(is_first), is_terminal | (state.time >= 40), is_terminal)

    def reset(key: Key) -> tuple[Hops, Step]:
        state = Hops(jax.random.randint(key, (), 0, 30), jnp.int32(0))
        return state, observe(state, True, jnp.array(False))

    def step(key: Key, state: Hops, action: Action) -> tuple[Hops, Step]:
        was_over = (state.position % 13 == 0) | (state.time >= 40)
        position = (3 * state.position + action + jax.random.randint(key, (), 0, 5)) % 101
        state = Hops(position, state.time + 1)
        return state, observe(state, False, was_over)

    return Environment(reset, step, EnvSpec(Space((), np.int32, 0, 101), Space((), np.int32, 0, 100), 40))


def counting_agent() -> StepPolicy:
    """Remembers how often it acted; acts on that, on what it sees, on its parameter and on luck."""

    def act(params: Params, key: Key, count: Array, step: Step) -> tuple[Array, Action]:
        return count + 1, params * step.observation + count + jax.random.randint(key, (), 0, 3)

    return StepPolicy(lambda params: params % 4, act)


def pattern_agent(pattern: list[int]) -> StepPolicy:
    """Plays a pattern of actions over and over; its memory is the place in it, which no episode resets."""
    actions = jnp.array(pattern)

    def act(params: Params, key: Key, place: Array, step: Step) -> tuple[Array, Action]:
        return (place + 1) % len(pattern), actions[place]

    return StepPolicy(lambda params: jnp.int32(0), act)


def naive_episode(environment: Environment, agent: StepPolicy, params: Params, key: Key) -> tuple[float, int]:
    """One episode, written out: keys from the number of the step."""
    state, step = environment.reset(jax.random.fold_in(key, 0))
    memory, total, steps = agent.start(params), 0.0, 0
    while not step.is_last:
        key_act, key_step = jax.random.split(jax.random.fold_in(key, steps + 1))
        memory, action = agent.act(params, key_act, memory, step)
        state, step = environment.step(key_step, state, action)
        total += float(step.reward)
        steps += 1
    return total, steps


def assert_equal(left: Returns, right: Returns) -> None:
    np.testing.assert_array_equal(left.total, right.total)
    np.testing.assert_array_equal(left.steps, right.steps)


# unroll


def test_a_step_is_what_the_action_before_it_led_to() -> None:
    environment = probes.counter(size=4, max_steps=5)
    _, path = unroll(environment, pattern_agent([1, 0, 1, 1, 1]), (), jax.random.key(0), 12)
    count = np.asarray(path.step.observation).argmax(-1)
    np.testing.assert_array_equal(path.action, [1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0])
    #                   the top after 4 steps; the action there has no effect | again | and again
    np.testing.assert_array_equal(count, [0, 1, 1, 2, 3, 0, 1, 1, 2, 3, 0, 1])
    np.testing.assert_array_equal(path.step.reward, count == 3)
    np.testing.assert_array_equal(path.step.is_terminal, count == 3)
    np.testing.assert_array_equal(path.step.is_last, count == 3)
    np.testing.assert_array_equal(path.step.is_first, count == 0)


def test_an_episode_that_is_cut_is_followed_by_a_first_step() -> None:
    environment = probes.counter(size=4, max_steps=2)
    _, path = unroll(environment, pattern_agent([1]), (), jax.random.key(0), 7)
    np.testing.assert_array_equal(np.asarray(path.step.observation).argmax(-1), [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(path.step.is_first, [1, 0, 0, 1, 0, 0, 1])
    np.testing.assert_array_equal(path.step.is_last, [0, 0, 1, 0, 0, 1, 0])
    assert not path.step.is_terminal.any() and not path.step.reward.any()


@pytest.mark.parametrize("cut", [1, 4, 5, 6])
def test_an_unroll_goes_on_where_it_stopped(cut: int) -> None:
    """Also right before, at and right after the end of an episode; the memory of the agent goes on, too."""
    environment, agent = probes.counter(size=4, max_steps=5), pattern_agent([1, 0, 1, 1, 1, 0])
    end, whole = unroll(environment, agent, (), jax.random.key(0), 15)
    state, first = unroll(environment, agent, (), jax.random.key(1), cut)
    resumed, rest = unroll(environment, agent, (), jax.random.key(2), 15 - cut, state)
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), first, rest)
    for left, right in zip(jax.tree.leaves((end, whole)), jax.tree.leaves((resumed, joined)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_every_draw_of_an_unroll_has_a_key_of_its_own() -> None:
    """The environment shows what it draws, and ends on every third step; the agent acts what it draws."""

    def arrive(key: Key, time: Array) -> tuple[Array, Step]:
        first, last = time == 0, time == 2
        return time, Step(jax.random.uniform(key), jnp.float32(0), first, last, last)

    environment = Environment(
        lambda key: arrive(key, jnp.int32(0)),
        lambda key, state, action: arrive(key, state + 1),
        EnvSpec(Space(()), Space(()), 2),
    )
    agent = StepPolicy(lambda params: (), lambda params, key, state, step: (state, jax.random.uniform(key)))
    _, path = unroll(environment, agent, (), jax.random.key(0), 60)
    drawn = np.concatenate([path.step.observation, path.action])
    assert len(np.unique(drawn)) == 120


def test_the_parameters_reach_the_agent() -> None:
    agent = StepPolicy(lambda params: params, lambda params, key, state, step: (state, params + state))
    environment = probes.counter(size=100, max_steps=50)
    _, path = unroll(environment, agent, jnp.int32(3), jax.random.key(0), 4)
    np.testing.assert_array_equal(np.asarray(path.step.observation).argmax(-1), [0, 6, 12, 18])


# episodes


@pytest.fixture(scope="module")
def lanes() -> tuple[Array, Key, Returns]:
    """Parameters and keys of 50 lanes, and what they come to one by one."""
    params, keys = jnp.arange(50) % 7, jax.random.split(jax.random.key(3), 50)
    environment, agent = hops(), counting_agent()
    jitted = Environment(jax.jit(environment.reset), jax.jit(environment.step), environment.spec)
    agent = StepPolicy(agent.start, jax.jit(agent.act))
    played = [naive_episode(jitted, agent, params[i], keys[i]) for i in range(50)]
    total, steps = zip(*played, strict=True)
    return params, keys, Returns(np.array(total, np.float32), np.array(steps, np.int32))


@pytest.mark.parametrize(("stages", "smallest"), [(3, 16), (2, 8), (6, 1), (1, 1)])
def test_episodes_equal_a_loop_however_they_are_packed(
    lanes: tuple[Array, Key, Returns], stages: int, smallest: int
) -> None:
    params, keys, expected = lanes
    play = jax.jit(partial(episodes, hops(), counting_agent(), stages=stages, smallest=smallest))
    assert_equal(play(params, keys), expected)
    assert len(set(expected.steps)) > 10 and expected.steps.max() == 40 and expected.steps.min() == 0


def test_each_lane_has_its_own_parameters_and_key(lanes: tuple[Array, Key, Returns]) -> None:
    params, keys, expected = lanes
    order = np.random.default_rng(0).permutation(50)
    got = jax.jit(partial(episodes, hops(), counting_agent()))(params[order], keys[order])
    assert_equal(got, jax.tree.map(lambda leaf: leaf[order], expected))


def test_one_lane_is_enough(lanes: tuple[Array, Key, Returns]) -> None:
    params, keys, expected = lanes
    got = episodes(hops(), counting_agent(), params[7:8], keys[7:8])
    assert_equal(got, jax.tree.map(lambda leaf: leaf[7:8], expected))


def test_population_returns_play_every_policy_with_every_key(lanes: tuple[Array, Key, Returns]) -> None:
    _, keys, _ = lanes
    population = {"factor": jnp.array([0, 5, 2, 5])}
    environment, plain = hops(), counting_agent()
    agent = StepPolicy(
        lambda params: plain.start(params["factor"]), lambda params, *rest: plain.act(params["factor"], *rest)
    )
    keys = jax.random.clone(keys[:6])
    got = jax.jit(partial(population_returns, environment, agent))(population, keys)
    assert got.total.shape == got.steps.shape == (4, 6)
    np.testing.assert_array_equal(got.total[1], got.total[3])
    for n in range(3):
        factors = jnp.repeat(population["factor"][n], 6)
        alone = jax.jit(partial(episodes, environment, plain))(factors, jax.random.clone(keys))
        assert_equal(jax.tree.map(lambda leaf, n=n: leaf[n], got), alone)
    assert len(np.unique(got.total[:3])) > 6


def test_policies_without_parameters_are_a_population_of_one() -> None:
    environment, keys = probes.remember(), jax.random.split(jax.random.key(0), 400)
    agent = rollout.random_agent(environment.spec)
    got = population_returns(environment, rollout.step_policy(agent, ()), rollout.population_of_one(()), keys)
    assert got.total.shape == (1, 400) and abs(got.total.mean() - 0.25) < 0.07  # three standard errors


@given(st.integers(1, 2000), st.integers(1, 9), st.integers(1, 64))
def test_batch_sizes_fall_evenly(count: int, stages: int, smallest: int) -> None:
    counts = _batch_sizes(count, stages, smallest)
    assert counts[0] == count and len(counts) <= stages
    for before, after in itertools.pairwise(counts):
        assert smallest <= after < before and after % 8 == 0 and before - after < count / stages + 8


def test_batch_sizes_of_a_generation() -> None:
    assert _batch_sizes(1024, 3, 64) == [1024, 688, 344]
    assert _batch_sizes(128, 3, 64) == [128, 88]
    assert _batch_sizes(64, 3, 64) == [64]
    assert _batch_sizes(5, 3, 1) == [5]


# agents


class Seen(NamedTuple):
    """A latent state that writes down what it was made of."""

    before: Array  # what the state before had seen
    action: Array
    embedding: Array
    is_first: Array


def recording_model() -> LatentModel:
    def observe(params: Params, key: Key, state: Seen, action: Action, embedding: Array, is_first: Array) -> Seen:
        return Seen(state.embedding, action, embedding, is_first.astype(jnp.float32))

    def unused(*arguments: Array) -> None:
        raise AssertionError("an agent in the real world calls neither the prior nor the heads")

    spec = EnvSpec(Space(()), Space((), np.float32, -100.0, 100.0), 10)
    start = lambda params: Seen(*(jnp.float32(x) for x in (-1, -2, -3, -4)))  # noqa: E731
    encode = lambda params, observation: params * observation  # noqa: E731
    return LatentModel(unused, start, encode, observe, unused, jnp.stack, unused, unused, spec)


def test_an_agent_observes_with_the_action_before_and_acts_on_the_features() -> None:
    policy = Policy(lambda key: (), lambda params, key, features: (params * features).sum())
    agent = rollout.step_policy(Agent(recording_model(), policy), jnp.float32(10))
    weights = jnp.array([1.0, 0.0, 1.0, 100.0])
    state = agent.start(weights)
    assert state.action == 0 and state.action.dtype == jnp.float32
    no = jnp.array(False)
    expected = [Seen(-3, 0, 20, 1), Seen(20, 117, 30, 0), Seen(30, 50, 40, 0)]
    for t, seen in enumerate(expected):
        step = Step(jnp.float32(2 + t), jnp.float32(0), jnp.array(t == 0), no, no)
        state, action = agent.act(weights, jax.random.key(t), state, step)
        assert tuple(map(float, state.latent)) == seen
        assert action == state.action == seen.before + seen.embedding + 100 * seen.is_first


def test_an_agent_acts_with_its_parameters_in_one_or_many_environments() -> None:
    agent = Agent(recording_model(), counting())
    params = AgentParams(jnp.float32(10), jnp.float32(2), starts=jnp.zeros(3))
    no = jnp.array(False)
    state, keys = rollout.start(agent, params), jax.random.split(jax.random.key(0), 2)
    for t in range(3):
        step = Step(jnp.float32(4), jnp.float32(0), jnp.array(t == 0), no, no)
        state, action = rollout.act(agent, params, jax.random.key(t), state, step)
        assert (action, state.action, state.memory, state.latent.embedding) == (2 * t, 2 * t, t + 1, 40)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), (state, step))
    starting = many[1]._replace(is_first=jnp.array([False, True]))
    _, actions = jax.vmap(partial(rollout.act, agent), (None, 0, 0, 0))(params, keys, many[0], starting)
    np.testing.assert_array_equal(actions, [6, 0])


def test_random_play_is_an_agent() -> None:
    """It acts through any observation, dreams, and is drawn from the whole of its space."""
    spec = EnvSpec({"seen": Space((2,))}, {"fire": Space((), np.int32, 0, 3)}, 10)
    agent, params = rollout.random_agent(spec), AgentParams((), ())
    environment = probes.counter(size=4, max_steps=5)
    random = rollout.step_policy(rollout.random_agent(environment.spec), ())
    _, path = unroll(environment, random, (), jax.random.key(0), 100)
    assert sorted(set(path.action.tolist())) == [0, 1]
    dreamed = dream.imagine(agent, params, jax.random.key(0), (), 50)
    assert sorted(set(dreamed.actions["fire"].tolist())) == [0, 1, 2]


def test_a_reactive_agent_acts_on_the_observation() -> None:
    agent = rollout.reactive(Policy(lambda key: (), lambda params, key, x: params * x))
    no = jnp.array(False)
    state, action = agent.act(jnp.float32(3), jax.random.key(0), agent.start(3), Step(jnp.float32(4), 0.0, no, no, no))
    assert state == () and action == 12


def counting() -> RecurrentPolicy:
    """Remembers how often it acted, and does that, times its parameter."""

    def act(params: Params, key: Key, memory: Array, features: Array) -> tuple[Array, Action]:
        return memory + 1, params * memory

    return RecurrentPolicy(lambda key: jnp.float32(0), lambda params: jnp.float32(0), act)


def test_a_recurrent_policy_forgets_where_an_episode_begins() -> None:
    policy, no = counting(), jnp.array(False)
    for agent in (rollout.reactive(policy), rollout.step_policy(Agent(recording_model(), policy), jnp.float32(10))):
        state, acted = agent.start(jnp.float32(1)), []
        for t in range(5):
            step = Step(jnp.float32(4), jnp.float32(0), jnp.array(t in (0, 3)), no, no)
            state, action = agent.act(jnp.float32(1), jax.random.key(t), state, step)
            acted.append(int(action))
        assert acted == [0, 1, 2, 0, 1]


def test_random_actions_fill_their_space() -> None:
    space = {
        "move": Space((2,), np.float32, -1.0, 3.0),
        "fire": Space((), np.int32, 0, 3),
        "jump": Space((), bool, 0, 2),
    }
    policy = rollout.random_policy(space)
    actions = jax.vmap(lambda key: policy.act((), key, jnp.zeros(1)))(jax.random.split(jax.random.key(0), 500))
    assert actions["move"].shape == (500, 2) and actions["move"].dtype == jnp.float32
    assert sorted(set(actions["fire"].tolist())) == [0, 1, 2]
    assert sorted(set(actions["jump"].tolist())) == [False, True] and actions["jump"].dtype == bool
    np.testing.assert_allclose(actions["move"].min(0), -1, atol=0.05)
    np.testing.assert_allclose(actions["move"].max(0), 3, atol=0.05)
    np.testing.assert_allclose(actions["move"].mean(0), 1, atol=0.15)
    with pytest.raises(ValueError, match="only what has bounds"):
        rollout.random_policy(Space((2,)))


def test_random_actions_fill_every_entry_of_their_space() -> None:
    space = (Space((3,), np.float32, (-1, 0, 0), 1.0), Space((2,), np.int32, 0, (2, 5)))
    policy = rollout.random_policy(space)
    move, turn = jax.vmap(lambda key: policy.act((), key, jnp.zeros(1)))(jax.random.split(jax.random.key(0), 500))
    np.testing.assert_allclose(move.min(0), [-1, 0, 0], atol=0.05)
    np.testing.assert_allclose(move.max(0), 1, atol=0.05)
    assert [sorted(set(column.tolist())) for column in turn.T] == [[0, 1], [0, 1, 2, 3, 4]]


def test_noise_is_added_to_what_a_policy_does_within_its_bounds() -> None:
    policy = rollout.noisy(counting(), Space((), np.float32, -1.0, 6.5))
    for deviation in (0.0, 1.0):
        keys = jax.random.split(jax.random.key(0), 2000)
        params = (jnp.float32(2), jnp.float32(deviation))
        act = lambda key, params=params: policy.act(params, key, jnp.float32(2), jnp.zeros(1))  # noqa: E731
        memory, actions = jax.vmap(act)(keys)
        assert (memory == 3).all() and policy.start(params) == 0
        np.testing.assert_allclose(jnp.median(actions), 4, atol=0.1)
        np.testing.assert_allclose(jnp.mean(jnp.abs(actions - 4) < 1), 0.683 if deviation else 1, atol=0.03)
        assert actions.max() <= 6.5
    params, deviation = policy.init(jax.random.key(1))
    assert params == counting().init(jax.random.key(1)) and deviation == 0


def test_the_zero_action_has_the_structure_and_types_of_its_space() -> None:
    space = {"move": Space((2,), np.float32, -1.0, 1.0), "fire": Space((), np.int32, 0, 2)}
    action = rollout.zero_action(space)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), action) == {
        "move": ((2,), np.float32),
        "fire": ((), np.int32),
    }
    assert not any(leaf.any() for leaf in jax.tree.leaves(action))
