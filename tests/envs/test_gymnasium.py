"""The adapter, seen from Gymnasium's own checker, from its vector environments, and from a trip there and back."""

import warnings
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import TimeLimit

from dreamjax.acting.vector import VectorEnvironment
from dreamjax.envs.gymnasium import spec_from_gymnasium, to_gymnasium, to_gymnasium_vector
from dreamjax.envs.host import InvalidStep
from dreamjax.envs.probes import counter, dodge, draw_dodge
from dreamjax.types import Environment, EnvSpec, Space, Step


class Move(NamedTuple):
    button: Space
    stick: Space


def nested() -> Environment:
    """Dicts, tuples and every kind of space; the observation shows the last action and a random number."""
    observation = {
        "image": Space((4, 4, 3), np.uint8, 0, 256),
        "last": (Space((), np.int32, 3, 7), Space((2,), np.float32, 0.0, 1.0)),
        "levels": Space((3,), np.int32, 1, 5),
        "noise": Space((), np.float32, 0.0, 1.0),
    }
    action = Move(button=Space((), np.int32, 3, 7), stick=Space((2,), np.float32, 0.0, 1.0))

    def arrive(key, time, button, stick):
        observation = {
            "image": jnp.full((4, 4, 3), time * 10).astype(jnp.uint8),
            "last": (button, stick),
            "levels": jnp.full((3,), 1 + time % 4),
            "noise": jax.random.uniform(key),
        }
        terminal = button == 6
        step = Step(observation, time * 0.5, time == 0, terminal | (time >= 4), terminal)
        return time, step

    def reset(key):
        return arrive(key, jnp.int32(0), jnp.int32(3), jnp.zeros(2))

    def step(key, time, action):
        return arrive(key, time + 1, action.button, action.stick)

    return Environment(reset, step, EnvSpec(observation, action, 4))


PROBES = {
    "counter": (counter(), None),
    "dodge": (dodge(), draw_dodge),
    "dodge-state": (dodge(observation="state"), draw_dodge),
    "nested": (nested(), None),
}


@pytest.mark.parametrize("name", PROBES)
def test_gymnasium_checker_finds_nothing_to_say(name):
    environment, render = PROBES[name]
    entry = f"dreamjax/{name}-v0"
    gymnasium.register(entry, lambda render_mode=None: to_gymnasium(environment, render if render_mode else None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mode = "rgb_array" if render else None
        check_env(gymnasium.make(entry, render_mode=mode, disable_env_checker=True).unwrapped)
    gymnasium.registry.pop(entry)


def test_spaces():
    env = to_gymnasium(nested())
    assert env.observation_space == spaces.Dict(
        image=spaces.Box(0, 255, (4, 4, 3), np.uint8),
        last=spaces.Tuple([spaces.Discrete(4, start=3), spaces.Box(0.0, 1.0, (2,), np.float32)]),
        levels=spaces.MultiDiscrete([4, 4, 4], start=[1, 1, 1]),
        noise=spaces.Box(0.0, 1.0, (), np.float32),
    )
    assert env.action_space == spaces.Tuple([spaces.Discrete(4, start=3), spaces.Box(0.0, 1.0, (2,), np.float32)])


def test_spaces_that_gymnasium_cannot_express_are_refused():
    environment = counter()
    unbounded = environment._replace(spec=environment.spec._replace(observation=Space((), np.int32)))
    with pytest.raises(ValueError, match="finite bounds"):
        to_gymnasium(unbounded)
    listed = environment._replace(spec=environment.spec._replace(observation=[Space((), np.float32)]))
    with pytest.raises(TypeError, match="dicts, tuples and Space, got list"):
        to_gymnasium(listed)


def test_spec_survives_the_round_trip():
    spec = nested().spec
    back = spec_from_gymnasium(to_gymnasium(nested()), max_steps=4)
    assert back.observation == spec.observation
    assert back.action == tuple(spec.action)
    assert back.max_steps == 4


def test_spec_from_foreign_spaces():
    cartpole = spec_from_gymnasium(gymnasium.make("CartPole-v1"), max_steps=500)
    assert cartpole.action == Space((), np.int32, 0, 2)
    assert cartpole.observation == Space((4,), np.float32, -np.inf, np.inf)
    env = gymnasium.Env()
    env.observation_space = spaces.Dict(
        bits=spaces.MultiBinary(3),
        wide=spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 5.0]), dtype=np.float64),
        mask=spaces.Box(0, 1, (2,), dtype=np.bool_),
        levels=spaces.MultiDiscrete([2, 9]),
    )
    env.action_space = spaces.Box(-1.0, 1.0, (2,), np.float64)
    spec = spec_from_gymnasium(env, max_steps=10)
    assert spec.observation == {
        "bits": Space((3,), np.int8, 0, 2),
        "wide": Space((2,), np.float32, -1.0, 5.0),
        "mask": Space((2,), np.bool_, 0, 2),
        "levels": Space((2,), np.int32, 0, 9),
    }
    assert spec.action == Space((2,), np.float32, -1.0, 1.0)
    env.action_space = spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 1.0]), dtype=np.float64)
    assert spec_from_gymnasium(env, max_steps=10).action == Space((2,), np.float32, (-1.0, 0.0), 1.0)
    env.action_space = spaces.Text(5)
    with pytest.raises(ValueError, match="no form as an array"):
        spec_from_gymnasium(env, max_steps=10)
    with pytest.raises(ValueError, match="max_steps"):
        spec_from_gymnasium(env, max_steps=0)


def stream(env, seed, steps):
    """Observations of consecutive episodes, from one seeded reset."""
    observation, _ = env.reset(seed=seed)
    seen = [observation]
    for action in np.random.default_rng(0).uniform(-1, 1, size=steps).astype(np.float32):
        observation, _, terminated, truncated, _ = env.step(np.asarray(action))
        seen.append(env.reset()[0] if terminated or truncated else observation)
    return np.stack(seen)


def test_the_whole_stream_repeats_from_its_seed():
    env = to_gymnasium(dodge(rate=0.5, max_steps=10, observation="state"))
    first = stream(env, seed=7, steps=40)
    np.testing.assert_array_equal(first, stream(env, seed=7, steps=40))
    assert not np.array_equal(first, stream(env, seed=8, steps=40))
    assert not np.array_equal(first[0], env.reset()[0]), "a reset without a seed opens a new episode"


def test_a_trace_serves_every_step_and_observations_belong_to_the_caller():
    traces = []
    environment = counter()

    def traced_step(key, state, action):
        traces.append("step")
        return environment.step(key, state, action)

    env = to_gymnasium(environment._replace(step=traced_step))
    observation, _ = env.reset(seed=0)
    observation[:] = 9
    for action in [1, np.int64(1), np.asarray(0), jnp.int32(0)]:
        observation, *_ = env.step(action)
    np.testing.assert_array_equal(observation, [0, 0, 1, 0, 0])
    assert traces == ["step"]


def test_flags_and_order_of_calls():
    env = to_gymnasium(counter(size=3, max_steps=4))
    with pytest.raises(ResetNeeded, match="reset first"):
        env.step(0)
    env.reset(seed=0)
    assert [env.step(1)[1:4] for _ in range(2)] == [(0.0, False, False), (1.0, True, False)]
    with pytest.raises(ResetNeeded, match="after every end"):
        env.step(0)
    env.reset()
    assert [env.step(0)[1:4] for _ in range(4)] == [(0.0, False, False)] * 3 + [(0.0, False, True)]


@pytest.mark.parametrize("action", [2, -1, 0.5, [0], np.float32(1), 2**32])
def test_discrete_actions_outside_the_space_are_refused(action):
    env = to_gymnasium(counter())
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="action"):
        env.step(action)
    env.step(1)


@pytest.mark.parametrize("action", [1.01, np.nan, np.zeros(1), np.zeros((2, 1))])
def test_float_actions_outside_the_space_are_refused(action):
    env = to_gymnasium(dodge())
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="action"):
        env.step(action)
    env.step(np.float64(1.0))


@pytest.mark.parametrize("action", [3, (3,), {"button": 3, "stick": np.zeros(2)}, (3, np.zeros(3))])
def test_actions_of_the_wrong_structure_are_refused(action):
    env = to_gymnasium(nested())
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="action must"):
        env.step(action)


def test_bad_seeds_and_options_are_refused():
    env, vector = to_gymnasium(counter()), to_gymnasium_vector(counter(), 3)
    with pytest.raises(ValueError, match="32 bits"):
        env.reset(seed=2**32)
    with pytest.raises(ValueError, match="no reset options"):
        env.reset(options={"level": 3})
    with pytest.raises(ValueError, match="2 seeds for 3 environments"):
        vector.reset(seed=[1, 2])
    with pytest.raises(ResetNeeded, match="reset first"):
        vector.step(np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="num_envs"):
        to_gymnasium_vector(counter(), 0)


def test_render_shows_the_state():
    env = to_gymnasium(dodge(), draw_dodge)
    with pytest.raises(ResetNeeded, match="render"):
        env.render()
    observation, _ = env.reset(seed=1)
    np.testing.assert_array_equal(env.render(), observation)
    assert to_gymnasium(dodge()).render_mode is None


@pytest.mark.parametrize("name", ["dodge-state", "nested"])
def test_vector_lanes_are_the_single_environments(name):
    environment = nested() if name == "nested" else dodge(rate=0.5, max_steps=10, observation="state")
    ours = to_gymnasium_vector(environment, 2)
    theirs = gymnasium.vector.SyncVectorEnv([lambda: to_gymnasium(environment)] * 2)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    jax.tree.map(np.testing.assert_array_equal, ours.reset(seed=5), theirs.reset(seed=5))
    ours.action_space.seed(0)
    ends = 0
    for _ in range(30):
        actions = ours.action_space.sample()
        mine, other = ours.step(actions), theirs.step(actions)
        jax.tree.map(np.testing.assert_array_equal, mine[:4], other[:4])
        assert mine[0] in ours.observation_space
        ends += (mine[2] | mine[3]).sum()
    assert ends >= 3


def test_vector_seeds_and_frames():
    vector = to_gymnasium_vector(dodge(), 2, draw_dodge)
    together, _ = vector.reset(seed=[4, 4])
    np.testing.assert_array_equal(together[0], together[1])
    apart, _ = vector.reset(seed=4)
    np.testing.assert_array_equal(apart[0], together[0])
    assert not np.array_equal(apart[0], apart[1])
    np.testing.assert_array_equal(np.stack(vector.render()), apart)
    with pytest.raises(InvalidAction, match=r"shape \(2,\)"):
        vector.step(np.zeros(3, np.float32))


def steps_of(make_env, actions, workers=0):
    """The steps of one environment, as `acting` sees them, [T + 1, ...]."""
    vector = VectorEnvironment(make_env, 1, 100, workers)
    steps = [vector.reset((0,))] + [vector.step(jax.tree.map(lambda x: np.asarray(x)[None], a)) for a in actions]
    vector.close()
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *steps)


def test_host_steps_match_the_pure_environment():
    environment = counter(size=4, max_steps=3)
    key = jax.random.key(0)
    state, first = environment.reset(key)
    expected = [first]
    for action in [1, 0, 1]:
        state, step = environment.step(jax.random.fold_in(key, action), state, jnp.int32(action))
        expected.append(step)
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *expected)
    found = steps_of(lambda: to_gymnasium(environment), np.int32([1, 0, 1]))
    assert jax.tree.map(lambda leaf: leaf.dtype, found) == jax.tree.map(lambda leaf: leaf.dtype, expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert (found.is_last[-1], found.is_terminal[-1]) == (True, False)


def test_host_steps_nested():
    found = steps_of(lambda: to_gymnasium(nested()), [(np.int32(6), np.float32([0.5, 7.0]))])
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.type), found.observation) == {
        "image": ((2, 4, 4, 3), np.uint8),
        "last": (((2,), np.int32), ((2, 2), np.float32)),
        "levels": ((2, 3), np.int32),
        "noise": ((2,), np.float32),
    }
    np.testing.assert_array_equal(found.observation["last"][0], [3, 6])
    np.testing.assert_array_equal(found.observation["last"][1][1], [0.5, 1.0])  # clipped to its bounds
    np.testing.assert_array_equal(
        [found.reward, found.is_first, found.is_last, found.is_terminal], [[0, 0.5], [1, 0], [0, 1], [0, 1]]
    )
    with pytest.raises(InvalidStep, match="the action was declared as a tuple of 2"):
        steps_of(lambda: to_gymnasium(nested()), [np.int32(6)])


def test_an_end_that_is_both_terminated_and_truncated_is_not_terminal():
    """The pole is pushed one way until it falls."""
    pushes = np.ones(20, np.int32)
    whole = steps_of(lambda: gymnasium.make("CartPole-v1"), pushes)
    length = int(whole.is_last.argmax())
    assert 5 < length < 20 and whole.observation.dtype == np.float32
    np.testing.assert_array_equal(whole.is_terminal, whole.is_last)
    assert not whole.is_first[length] and whole.is_first[length + 1]
    limited = lambda: TimeLimit(gymnasium.make("CartPole-v1").unwrapped, max_episode_steps=length)  # noqa: E731
    cut = steps_of(limited, pushes[:length])
    assert (cut.is_last[-1], cut.is_terminal[-1]) == (True, False)
    np.testing.assert_array_equal(cut.observation, whole.observation[: length + 1])
