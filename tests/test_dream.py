"""Dreams of a model whose every number is known, and of one built like Doom's on several devices."""

import json
import os
import subprocess
import sys
import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dreamjax import dream, rollout
from dreamjax.envs.gymnasium import to_gymnasium
from dreamjax.rollout import Transition
from dreamjax.types import (
    Action,
    Agent,
    AgentParams,
    Array,
    EnvSpec,
    Key,
    LatentModel,
    Outcome,
    Params,
    Policy,
    RecurrentPolicy,
    Space,
    Step,
)

MAX_STEPS = 6
CONTINUES = [1.0, 0.9, 0.51, 0.5, 0.49, 0.0]  # of counts 0 to 5 and above: 4 is the first that ends a dream


class Count(NamedTuple):
    count: Array  # [] float32
    mark: Array  # [] float32, what the start of the episode said besides


def counter() -> LatentModel:
    """Imagining adds action * temperature to the count. The reward is ten times the count, plus the mark."""

    def observe(params: Params, key: Key, state: Count, action: Action, embedding: tuple, is_first: Array) -> Count:
        count, mark = embedding
        untouched = is_first & (state.count == -1) & (action == 0)
        return Count(jnp.where(untouched, count, jnp.nan), mark)

    def imagine(params: Params, key: Key, state: Count, action: Action, temperature: Array | float) -> Count:
        return Count(state.count + params["step"] * action * temperature, state.mark)

    def outcome(params: Params, state: Count) -> Outcome:
        table = jnp.array(CONTINUES)
        return Outcome(10 * state.count + state.mark, table[jnp.clip(state.count.astype(jnp.int32), 0, 5)])

    return LatentModel(
        init=lambda key: {"step": jnp.float32(1)},
        start=lambda params: Count(jnp.float32(-1), jnp.float32(-1)),
        encode=lambda params, observation: (observation, jnp.float32(0)),
        observe=observe,
        imagine=imagine,
        features=lambda state: jnp.stack([state.count, state.mark]),
        outcome=outcome,
        decode=lambda params, state: state.count,
        spec=EnvSpec(Space(()), Space((), np.float32, -1.0, 1.0), MAX_STEPS),
    )


MODEL = counter()
PARAMS = {"step": jnp.float32(1)}
STARTS = (jnp.array([0.0, 1.0, 2.0]), jnp.array([0.25, 0.5, 0.75]))  # counts, and a mark for each
LINEAR = Policy(lambda key: jnp.zeros(2), lambda params, key, features: params[0] * features[0] + params[1])


AGENT = Agent(MODEL, LINEAR)


def one_start(i: int) -> tuple[Array, Array]:
    return STARTS[0][i : i + 1], STARTS[1][i : i + 1]


def follow(environment: Any, actions: list[float]) -> list[tuple]:
    """Count, mark, reward, is_first, is_last, is_terminal of every step."""
    state, step = environment.reset(jax.random.key(0))
    steps = [step]
    for t, action in enumerate(actions):
        state, step = environment.step(jax.random.key(t + 1), state, jnp.float32(action))
        steps.append(step)
    return [(*s.observation.tolist(), *(float(x) for x in s[1:])) for s in steps]


def test_an_episode_of_a_dream_ends_where_the_model_thinks_it_is_over() -> None:
    """At 0.5 it goes on, below it ends. The reward is that of the state which the action leads to."""
    environment = dream.environment(MODEL, PARAMS, one_start(1))
    assert follow(environment, [1, 0, 1, 1]) == [
        (1, 0.5, 0, 1, 0, 0),
        (2, 0.5, 20.5, 0, 0, 0),
        (2, 0.5, 20.5, 0, 0, 0),
        (3, 0.5, 30.5, 0, 0, 0),
        (4, 0.5, 40.5, 0, 1, 1),
    ]


def test_the_step_limit_is_last_but_not_terminal() -> None:
    environment = dream.environment(MODEL, PARAMS, one_start(0))
    steps = follow(environment, [0] * MAX_STEPS)
    assert [step[-2:] for step in steps] == [(0, 0)] * MAX_STEPS + [(1, 0)]
    steps = follow(environment, [0, 0, 1, 1, 1, 1])
    assert steps[-1][-2:] == (1, 1) and steps[-2][-2:] == (0, 0), "an end at the limit is still one"


def test_the_parameters_and_the_temperature_reach_the_model() -> None:
    environment = dream.environment(MODEL, {"step": jnp.float32(0.5)}, one_start(0), temperature=3.0)
    assert [step[0] for step in follow(environment, [1, 1])] == [0, 1.5, 3]


def test_a_dream_says_what_it_emits_and_takes() -> None:
    spec = dream.environment(MODEL, PARAMS, STARTS).spec
    assert spec == EnvSpec(Space((2,)), MODEL.spec.action, MAX_STEPS)


def test_every_start_is_used_equally_often() -> None:
    """What belongs to one start stays together."""
    environment = dream.environment(MODEL, PARAMS, STARTS)
    keys = jax.random.split(jax.random.key(0), 6000)
    _, step = jax.jit(jax.vmap(environment.reset))(keys)
    counts, marks = np.asarray(step.observation).T
    np.testing.assert_array_equal(marks, (counts + 1) / 4)
    frequencies = [(counts == start).mean() for start in (0, 1, 2)]
    np.testing.assert_allclose(frequencies, 1 / 3, atol=4 * (2 / 9 / 6000) ** 0.5)


def test_an_imagined_action_belongs_to_the_state_before_it() -> None:
    start = Count(jnp.float32(2), jnp.float32(7))
    dreamed = dream.imagine(AGENT, AgentParams(PARAMS, jnp.array([0.5, 1.0])), jax.random.key(0), start, 3)
    np.testing.assert_array_equal(dreamed.states.count, [2, 4, 7, 11.5])  # x + (x / 2 + 1)
    np.testing.assert_array_equal(dreamed.actions, [2, 3, 4.5])
    np.testing.assert_array_equal(dreamed.states.mark, [7] * 4)
    three = dream.imagine(AGENT, AgentParams(PARAMS, jnp.array([0.5, 1.0])), jax.random.key(0), start, 3, unroll=2)
    jax.tree.map(np.testing.assert_array_equal, three, dreamed)
    hot = dream.imagine(AGENT, AgentParams(PARAMS, jnp.array([0.0, 1.0])), jax.random.key(0), start, 2, 10.0)
    np.testing.assert_array_equal(hot.states.count, [2, 12, 22])


def recorded(counts: list[float], actions: list[float]) -> Transition:
    zeros = jnp.zeros(len(counts))
    first = jnp.arange(len(counts)) == 0
    return Transition(Step(jnp.array(counts), zeros, first, first & False, first & False), jnp.array(actions))


def test_given_actions_are_followed() -> None:
    start, key = Count(jnp.float32(2), jnp.float32(7)), jax.random.key(0)
    given = dream.imagine_actions(MODEL, PARAMS, key, start, jnp.array([1.0, 0.0, -3.0]))
    np.testing.assert_array_equal(given.states.count, [2, 3, 3, 0])
    np.testing.assert_array_equal(given.actions, [1, 0, -3])
    hot = dream.imagine_actions(MODEL, PARAMS, jax.random.clone(key), start, jnp.array([1.0, 0.5]), 10.0)
    np.testing.assert_array_equal(hot.states.count, [2, 12, 17])
    again = jax.random.clone(key)
    last = lambda x: dream.imagine_actions(MODEL, PARAMS, again, start, x, 2.0).states.count[-1]  # noqa: E731
    np.testing.assert_array_equal(jax.grad(last)(jnp.ones(3)), [2, 2, 2])
    with pytest.raises(ValueError, match=r"the action of dream.imagine_actions at every step must be float32 \[\]"):
        dream.imagine_actions(MODEL, PARAMS, jax.random.key(0), start, jnp.zeros(3, jnp.int32))


def test_the_actions_of_a_dream_give_the_same_dream_again() -> None:
    def imagine(params: Params, key: Key, state: Count, action: Action, temperature: Array | float) -> Count:
        return Count(state.count + action + jax.random.uniform(key), state.mark)

    model, key, start = MODEL._replace(imagine=imagine), jax.random.key(0), Count(jnp.float32(2), jnp.float32(7))
    dreamed = dream.imagine(Agent(model, LINEAR), AgentParams(PARAMS, jnp.array([0.5, 1.0])), key, start, 4)
    again = dream.imagine_actions(model, PARAMS, jax.random.clone(key), start, dreamed.actions)
    jax.tree.map(np.testing.assert_array_equal, again, dreamed)


def test_a_planner_reads_the_latent_state() -> None:
    """It imagines each of three actions from where it stands, and takes the one with the largest reward."""

    def plan(params: Params, key: Key, state: Count) -> Action:
        actions = jnp.array([[-1.0], [0.5], [-0.5]])
        imagine = lambda one: dream.imagine_actions(MODEL, params, key, state, one).states  # noqa: E731
        rewards = jax.vmap(lambda one: MODEL.outcome(params, jax.tree.map(lambda x: x[-1], imagine(one))).reward)(
            actions
        )
        return actions[rewards.argmax(), 0]

    planner = Agent(dream.expose_state(MODEL), Policy(lambda key: PARAMS, plan))
    assert planner == Agent(dream.expose_state(MODEL), planner.policy), "jitted functions would compile again"
    params = AgentParams(PARAMS, PARAMS, STARTS)
    with jax.debug_key_reuse(False):  # all plans share a key
        dreamed = dream.imagine(planner, params, jax.random.key(0), Count(jnp.float32(2), jnp.float32(7)), 3)
        np.testing.assert_array_equal(dreamed.states.count, [2, 2.5, 3, 3.5])
        found = rollout.start(planner, params)
        step = Step(
            (jnp.float32(1), jnp.float32(0)), jnp.float32(0), jnp.array(True), jnp.array(False), jnp.array(False)
        )
        model = planner.model._replace(
            encode=lambda params, seen: seen, spec=MODEL.spec._replace(observation=(Space(()),) * 2)
        )
        assert rollout.act(Agent(model, planner.policy), params, jax.random.key(1), found, step)[1] == 0.5
        many = params._replace(policy=jax.tree.map(lambda x: x[None], PARAMS))
        reached = dream.returns(planner, many, jax.random.split(jax.random.key(2), 2))
    assert (np.asarray(reached.steps) > 0).all()


def test_open_loop_only_the_actions_count() -> None:
    """The first step is seen, the others follow from the actions recorded before them."""
    memory = rollout.AgentState(MODEL.start(PARAMS), jnp.float32(0))
    seen = recorded([5, 50, 60, 70], [1, 2, 0.5, 9])
    states = dream.open_loop(MODEL, PARAMS, jax.random.key(0), memory, seen, 1)
    np.testing.assert_array_equal(states.count, [5, 6, 8, 8.5])
    np.testing.assert_array_equal(states.mark, 0)
    states = dream.open_loop(MODEL, PARAMS, jax.random.key(0), memory, seen, 1, temperature=2.0)
    np.testing.assert_array_equal(states.count, [5, 7, 11, 12])


def test_an_open_loop_prediction_can_begin_unobserved() -> None:
    memory = rollout.AgentState(Count(jnp.float32(3), jnp.float32(7)), jnp.float32(0.25))
    states = dream.open_loop(MODEL, PARAMS, jax.random.key(0), memory, recorded([50, 60], [1, 2]), 0)
    np.testing.assert_array_equal(states.count, [3.25, 4.25])
    np.testing.assert_array_equal(states.mark, 7)


def test_gradients_flow_through_imagined_states_and_actions() -> None:
    """x_H = x_0 (1 + s w)^H, by the policy's w and by the model's s and start x_0."""
    horizon, w, s, x = 4, 0.3, 0.5, 2.0

    def last(w: Array, s: Array, x: Array) -> Array:
        params = AgentParams({"step": s}, jnp.stack([w, jnp.float32(0)]))
        dreamed = dream.imagine(AGENT, params, jax.random.key(0), Count(x, jnp.float32(0)), horizon)
        return dreamed.states.count[-1]

    got = jax.grad(last, (0, 1, 2))(*map(jnp.float32, (w, s, x)))
    base = (1 + s * w) ** (horizon - 1)
    np.testing.assert_allclose(got, [x * horizon * base * s, x * horizon * base * w, base * (1 + s * w)], rtol=1e-5)


def test_every_imagined_step_has_a_key_of_its_own() -> None:
    def imagine(params: Params, key: Key, state: Count, action: Action, temperature: Array | float) -> Count:
        return Count(jax.random.uniform(key), action)

    policy = Policy(lambda key: (), lambda params, key, features: jax.random.uniform(key))
    model = MODEL._replace(imagine=imagine)
    dreamed = dream.imagine(Agent(model, policy), AgentParams(PARAMS, ()), jax.random.key(0), MODEL.start(PARAMS), 50)
    assert len(np.unique(jnp.concatenate([dreamed.states.count[1:], dreamed.actions]))) == 100


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_returns_equal_a_loop_over_policies_and_keys(temperature: float) -> None:
    population = jnp.array([[0.0, 1.0], [0.5, 0.0], [0.25, 0.25], [0.0, 0.0], [0.0, 0.5]])
    keys = jax.random.split(jax.random.key(1), 8)
    got = dream.returns(AGENT, AgentParams(PARAMS, population, STARTS), keys, temperature)
    environment = dream.environment(MODEL, PARAMS, STARTS, temperature)
    step = jax.jit(environment.step)
    for n, policy in enumerate(population):
        for e, key in enumerate(keys):
            state, arrived = environment.reset(jax.random.fold_in(key, 0))
            total, steps = 0.0, 0
            while not arrived.is_last:
                action = LINEAR.act(policy, None, arrived.observation)
                state, arrived = step(jax.random.key(0), state, action)
                total, steps = total + float(arrived.reward), steps + 1
            assert (float(got.total[n, e]), int(got.steps[n, e])) == (total, steps)
    assert {MAX_STEPS} < set(got.steps.flatten().tolist())


def test_without_a_temperature_it_is_one() -> None:
    keys, population = jax.random.split(jax.random.key(1), 3), jnp.array([[0.0, 0.5]])
    default = dream.returns(AGENT, AgentParams(PARAMS, population, STARTS), jax.random.clone(keys))
    one = dream.returns(AGENT, AgentParams(PARAMS, population, STARTS), keys, 1.0)
    np.testing.assert_array_equal(default.total, one.total)


def test_a_dream_passes_gymnasiums_own_checks() -> None:
    env = to_gymnasium(dream.environment(MODEL, PARAMS, STARTS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Features have no bounds, and what was not made by gymnasium.make has no spec.
        warnings.filterwarnings("ignore", message=".*(infinity|no spec|render modes).*")
        check_env(env, skip_render_check=True)
    observation, _ = env.reset(seed=3)
    ended = [env.step(np.float32(1.0))[1:4] for _ in range(4 - int(observation[0]))][-1]
    assert ended == (40 + float(observation[1]), True, False)
    env.reset()
    cut = [env.step(np.float32(0.0))[2:4] for _ in range(MAX_STEPS)]
    assert cut == [(False, False)] * (MAX_STEPS - 1) + [(False, True)]


# A world model built like Doom's, on eight virtual devices.

SCRIPT = """
import json, sys
import jax, jax.numpy as jnp
from dreamjax import dream
from dreamjax.envs.vizdoom import take_cover_spec
from dreamjax.training.devices import device_mesh
from dreamjax.types import AgentParams
from dreamjax.worldmodels import controller, memory, model
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.model import WorldModelConfig, WorldModelParams
from dreamjax.worldmodels.vision import VisionConfig

world = WorldModelConfig(
    VisionConfig(4),
    MemoryConfig(latent_size=4, hidden_size=16, mixtures=2),
    controller.ControllerConfig(bias=False),
    step_reward=1.0,
)
agent = model.make(world, take_cover_spec(max_steps=40))
key_memory, key_starts, key_population, key_dream = jax.random.split(jax.random.key(0), 4)
params = memory.init(world.memory, key_memory)
params["output"]["kernel"] = params["output"]["kernel"].at[:, -1].multiply(5.0)  # ends that depend on the state
params["output"]["bias"] = params["output"]["bias"].at[-1].set(-1.0)
starts = tuple(jax.random.normal(key_starts, (2, 5, 4)))
population = {"kernel": jax.random.normal(key_population, (24, model.feature_size(world)))}
keys = jax.random.split(key_dream, 4)
params = AgentParams(WorldModelParams({}, params), population, starts)
played = {
    str(count): dream.returns(agent, params, keys, 1.15, mesh).steps.tolist()
    for count, mesh in ((1, None), (2, device_mesh("population", 2)), (8, device_mesh("population")))
}
fewer = params._replace(policy=jax.tree.map(lambda leaf: leaf[:12], population))
try:
    dream.returns(agent, fewer, keys, 1.15, device_mesh("population"))
except ValueError as error:
    played["error"] = str(error)
print(json.dumps(played))
"""


@pytest.fixture(scope="module")
def on_eight_devices() -> dict[str, Any]:
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.getcwd(),
    }
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("devices", ["2", "8"])
def test_a_generation_split_over_devices_dreams_the_same(on_eight_devices: dict[str, Any], devices: str) -> None:
    whole, split = np.array(on_eight_devices["1"]), np.array(on_eight_devices[devices])
    assert whole.shape == (24, 4) and len(np.unique(whole)) > 10
    np.testing.assert_array_equal(split, whole)  # no tolerance: an episode is computed alike in any number of lanes


def test_devices_that_do_not_divide_the_population_are_refused(on_eight_devices: dict[str, Any]) -> None:
    assert "8 devices do not divide a population of 12" in on_eight_devices["error"]


def test_a_dream_is_rolled_out_like_any_environment() -> None:
    """Auto-reset and all: the loop of the real world, which knows nothing of dreams."""
    environment = dream.environment(MODEL, PARAMS, one_start(2))
    unrolled = jax.jit(partial(rollout.unroll, environment, rollout.reactive(LINEAR)), static_argnums=2)
    _, path = unrolled(jnp.array([0.0, 1.0]), jax.random.key(0), 7)
    np.testing.assert_array_equal(path.step.observation[:, 0], [2, 3, 4, 2, 3, 4, 2])
    np.testing.assert_array_equal(path.step.reward, [0, 30.75, 40.75, 0, 30.75, 40.75, 0])
    np.testing.assert_array_equal(path.step.is_first, [1, 0, 0, 1, 0, 0, 1])


def test_a_recurrent_policy_dreams_the_same_in_imagination_and_in_the_environment() -> None:
    def act(params: Params, key: Key, memory: Array, features: Array) -> tuple[Array, Action]:
        memory = memory / 2 + params * features[0]
        return memory, memory

    policy = RecurrentPolicy(lambda key: (), lambda params: jnp.float32(1), act)
    weight, actions, memory, count = jnp.float32(0.25), [], 1.0, 0.5
    for _ in range(3):
        memory = memory / 2 + 0.25 * count
        actions.append(memory)
        count += memory
    start = Count(jnp.float32(0.5), jnp.float32(0))
    dreamed = dream.imagine(Agent(MODEL, policy), AgentParams(PARAMS, weight), jax.random.key(0), start, 3)
    np.testing.assert_allclose(dreamed.actions, actions, rtol=1e-6)
    environment = dream.environment(MODEL, PARAMS, (jnp.array([0.5]), jnp.array([0.0])))
    _, path = rollout.unroll(environment, rollout.reactive(policy), weight, jax.random.key(0), 3)
    np.testing.assert_allclose(path.action, actions, rtol=1e-6)
