"""Planners find the best plans of models whose every number is known, and go wherever a policy goes."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

import dreamjax
from dreamjax import dream, planning, rollout
from dreamjax.envs import probes
from dreamjax.planning import Plan, PlanConfig, Planner, PlannerParams, beliefs
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
    Space,
)

REPO = Path(__file__).resolve().parents[1]
STEPS = 30


@pytest.fixture(autouse=True)
def _keys_may_be_scanned() -> Iterator[None]:
    with jax.debug_key_reuse(False):  # the check takes keys that are scanned under vmap for used ones
        yield


METHODS = {
    "random shooting": planning.random_shooting,
    "cem": planning.cem,
    "icem": planning.icem,
    "mppi": planning.mppi,
}


def point_model() -> LatentModel:
    """A point on a line that actions move: position, then speed. The reward is minus the distance from the target."""

    def imagine(params: Params, key: Key, state: Array, action: Action, temperature: Array | float) -> Array:
        speed = 0.8 * state[1] + 0.2 * action["push"][0]
        return jnp.array([state[0] + speed, speed]) + 0.0 * jax.random.normal(key) * temperature

    return LatentModel(
        init=lambda key: jnp.float32(1),
        start=lambda params: jnp.zeros(2),
        encode=lambda params, observation: observation,
        observe=lambda params, key, state, action, embedding, is_first: embedding,
        imagine=imagine,
        features=lambda state: state,
        outcome=lambda params, state: Outcome(-jnp.abs(state[0] - params), jnp.float32(1)),
        decode=lambda params, state: state,
        spec=EnvSpec(Space((2,)), {"push": Space((1,), np.float32, -1.0, 1.0)}, STEPS),
    )


POINT = point_model()
TARGET = jnp.float32(1)


def path_model() -> LatentModel:
    """Three actions a step; the state counts in base 3 which were taken, and rewards are drawn for every path."""
    table = jnp.asarray(np.random.default_rng(0).normal(size=40), jnp.float32)

    def outcome(params: Params, state: Array) -> Outcome:
        return Outcome(table[state], jnp.where(state % 3 == 0, 0.5, 1.0))

    return LatentModel(
        init=lambda key: (),
        start=lambda params: jnp.int32(0),
        encode=lambda params, observation: observation,
        observe=lambda params, key, state, action, embedding, is_first: embedding,
        imagine=lambda params, key, state, action, temperature: 3 * state + action,
        features=lambda state: jnp.float32(state)[None],
        outcome=outcome,
        decode=lambda params, state: state,
        spec=EnvSpec(Space((), np.int32, 0, 40), Space((), np.int32, 1, 4), 3),
    )


PATH = path_model()


def search(planner: Planner, params: PlannerParams, seed: int, state: Array) -> tuple[Plan, Action]:
    """Search from nothing known."""
    return planning.search(planner, params, jax.random.key(seed), state, planning.start(planner))


def distance_after(planner: Planner, steps: int = 20) -> float:
    agent = planning.agent(planner)
    params = AgentParams(TARGET, PlannerParams(TARGET))
    dreamed = dream.imagine(agent, params, jax.random.key(0), jnp.zeros(2), steps)
    assert dreamed.actions["push"].min() >= -1 and dreamed.actions["push"].max() <= 1
    return float(jnp.abs(dreamed.states[-1, 0] - TARGET))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_reaches_the_target_and_stays(name: str) -> None:
    assert distance_after(Planner(POINT, METHODS[name](horizon=8))) < (0.25 if name == "random shooting" else 0.06)


def test_the_best_of_all_paths_is_found() -> None:
    """Against every path there is, counted out by hand: rewards, weighted by the probability to get there."""
    wanted = {}
    for actions in product((1, 2, 3), repeat=3):
        state, weight, total = 0, 1.0, 0.0
        for action in actions:
            state = 3 * state + action
            reward, continues = PATH.outcome((), jnp.int32(state))
            total += weight * float(reward)
            weight *= 0.9 * float(continues)
        wanted[actions] = total
    planner = Planner(PATH, planning.random_shooting(3, 500, discount=0.9))
    for actions, value in wanted.items():
        found = planning.plan_return(planner, PlannerParams(()), jax.random.key(0), jnp.int32(0), jnp.array(actions))
        assert float(found) == pytest.approx(value, abs=1e-6)
    for cfg in (planner.cfg, planning.cem(3, 64, discount=0.9), planning.icem(3, 64, exponent=1.0, discount=0.9)):
        plan, action = search(Planner(PATH, cfg), PlannerParams(()), 1, jnp.int32(0))
        best = max(wanted, key=lambda actions: wanted[actions])
        assert (int(action), float(plan.promised)) == (best[0], pytest.approx(wanted[best], abs=1e-6))
    for held, lasting in ((2, [path for path in wanted if path[0] == path[1]]), (3, [(a, a, a) for a in (1, 2, 3)])):
        plan, action = search(Planner(PATH, replace(planner.cfg, held=held)), PlannerParams(()), 1, jnp.int32(0))
        best = max(lasting, key=lambda actions: wanted[actions])
        assert (int(action), float(plan.promised)) == (best[0], pytest.approx(wanted[best], abs=1e-6))


def test_a_value_counts_what_follows() -> None:
    plain = Planner(POINT, PlanConfig(3, discount=0.5))
    valued = replace(plain, value=lambda params, features: params * features[0])
    params, actions = PlannerParams(TARGET, value=jnp.float32(8)), {"push": jnp.ones((3, 1))}
    promise = lambda one: planning.plan_return(one, params, jax.random.key(0), jnp.array([2.0, 0.0]), actions)  # noqa: E731
    reached = 2 + 0.2 + 0.36 + 0.488
    assert float(promise(valued) - promise(plain)) == pytest.approx(0.5**3 * 8 * reached, rel=1e-5)


def test_candidates_of_the_prior_compete() -> None:
    """The prior alone knows where to go: all drawn plans are those of a belief that is narrow and wrong."""
    known = Policy(lambda key: (), lambda params, key, state: {"push": jnp.clip(params - state[:1], -1, 1)})
    cfg = PlanConfig(6, 8, 1, 1, spread=1e-3, least_spread=0.0, from_prior=1, takes_best=True)
    planner = Planner(POINT, cfg, prior=known)
    params = PlannerParams(jnp.float32(5), prior=jnp.float32(5))
    _, action = search(planner, params, 0, jnp.zeros(2))
    assert action["push"] == 1.0
    wild = Policy(lambda key: (), lambda params, key, state: {"push": jnp.array([7.0])})
    wildly, _ = search(replace(planner, prior=wild), params, 0, jnp.zeros(2))
    assert jnp.abs(wildly.beliefs[0].mean).max() <= 1, "a prior may leave the bounds"
    with pytest.raises(ValueError, match="1 candidates are to come from a prior, but `prior` is None"):
        Planner(POINT, cfg)


def test_elites_are_weighted_by_their_returns() -> None:
    space, old = Space((), np.float32, -2.0, 2.0), beliefs.Belief(jnp.zeros(1), jnp.ones(1))
    elites, weights = jnp.array([[1.0], [-1.0]]), jnp.array([0.75, 0.25])
    mean, std = beliefs.refit(space, old, elites, weights, 0.2, 0.0)
    assert (float(mean[0]), float(std[0])) == pytest.approx((0.8 * 0.5, 0.2 + 0.8 * np.sqrt(0.75)))
    assert float(beliefs.refit(space, old, elites[:1], weights[:1] / 0.75, 0.0, 0.1).std[0]) == pytest.approx(0.4)
    classes = Space((), np.int32, 1, 4)
    old = beliefs.unknown(1, 0.5, classes)
    mean = beliefs.refit(classes, old, jnp.array([[1], [3]]), weights, 0.2, 0.3).mean
    even = 1 / 3
    np.testing.assert_allclose(mean[0], 0.7 * np.array([0.6 + even / 5, even / 5, 0.2 + even / 5]) + 0.1, rtol=1e-6)


def test_noise_is_coloured_and_of_unit_variance() -> None:
    white = jax.random.normal(jax.random.key(0), (12, 20_000))
    for exponent, least, most in ((0.0, -0.03, 0.03), (2.0, 0.5, 0.95)):
        noise = beliefs.coloured_by(exponent, 12) @ white
        np.testing.assert_allclose(noise.std(1), 1.0, atol=0.03)
        assert least < float((noise[3] * noise[4]).mean()) < most
    np.testing.assert_allclose(beliefs.coloured_by(0.0, 5), np.eye(5), atol=1e-6)
    assert beliefs.coloured_by(2.0, 1) == pytest.approx(1.0)


def test_discrete_actions_are_drawn_as_believed_and_every_entry_has_its_own_classes() -> None:
    space = Space((2,), np.int32, (0, 5), (3, 7))
    belief = beliefs.unknown(4, 0.5, space)
    np.testing.assert_allclose(belief.mean[0], [[1 / 3] * 3, [0.5, 0.5, 0.0]], rtol=1e-6)
    believed = belief._replace(mean=jnp.broadcast_to(jnp.array([[0.7, 0.3, 0.0], [0.1, 0.9, 0.0]]), (4, 2, 3)))
    noise = jax.random.normal(jax.random.key(0), (10_000, 4, 2))
    drawn = np.asarray(jax.vmap(lambda one: beliefs.draw(space, believed, one))(noise))
    assert drawn.shape == noise.shape and drawn.dtype == np.int32
    np.testing.assert_allclose((drawn == np.array([1, 6])).mean((0, 1)), [0.3, 0.9], atol=0.01)
    evenly = np.asarray(jax.vmap(lambda one: beliefs.draw_evenly(space, one))(noise))
    np.testing.assert_allclose([(evenly[..., 0] == k).mean() for k in range(3)], 1 / 3, atol=0.01)
    assert set(np.unique(evenly[..., 1])) == {5, 6}
    np.testing.assert_array_equal(beliefs.likeliest(space, believed), np.broadcast_to([0, 6], (4, 2)))


def test_a_plan_is_the_beginning_of_the_next() -> None:
    planner = Planner(POINT, planning.icem(4, 32, 2, 6))
    plan, _ = search(planner, PlannerParams(TARGET), 0, jnp.zeros(2))
    after = planning.advance(planner, plan)
    np.testing.assert_array_equal(after.beliefs[0].mean[:3], plan.beliefs[0].mean[1:])
    np.testing.assert_array_equal(after.beliefs[0].mean[3], 0.0)
    np.testing.assert_array_equal(after.beliefs[0].std, 1.0)
    np.testing.assert_array_equal(after.kept[0][:, :3], plan.kept[0][:, 1:])
    assert plan.kept[0].shape == (2, 4, 1)
    # With what is known, one iteration finds what from nothing takes two.
    once = Planner(POINT, replace(planner.cfg, iterations=1))
    again = planning.search(once, PlannerParams(TARGET), jax.random.key(1), jnp.zeros(2), plan)[0]
    assert float(again.promised) >= float(plan.promised)


def test_a_planner_acts_dreams_and_is_evaluated_like_any_policy() -> None:
    planner = Planner(POINT, planning.cem(5, 32, 2, 4))
    agent, params = planning.agent(planner), planning.agent_params(AgentParams(TARGET, (), jnp.zeros((2, 2))))
    assert planning.agent(Planner(POINT, planning.cem(5, 32, 2, 4))) is agent, "jitted functions would compile again"
    many = params._replace(policy=jax.tree.map(lambda x: x[None], params.policy))
    returns = dream.returns(agent, many, jax.random.split(jax.random.key(0), 3))
    assert returns.total.shape == (1, 3) and (np.asarray(returns.total) > -6).all()
    environment = dream.environment(POINT, TARGET, jnp.zeros((2, 2)))
    _, seen = rollout.unroll(environment, rollout.step_policy(agent, TARGET), params.policy, jax.random.key(1), 40)
    assert np.asarray(seen.step.is_first).sum() == 2
    ends = np.abs(np.asarray(seen.step.observation[:, 0]) - 1)[[29, 39]]
    assert (ends < 0.2).all()
    pushed = jax.vmap(lambda x: search(planner, params.policy, 2, x)[1]["push"][0])(jnp.array([[-5.0, 0], [5.0, 0]]))
    assert pushed[0] > 0.5 > -0.5 > pushed[1]
    drawn = agent.policy.init(jax.random.key(3))
    assert jax.tree.structure(drawn) == jax.tree.structure(params.policy)


def test_a_plan_whose_return_is_not_a_number_is_the_worst() -> None:
    broken = POINT._replace(
        outcome=lambda params, state: Outcome(jnp.where(state[1] > 0, jnp.nan, state[1]), jnp.float32(1))
    )
    plan, action = search(Planner(broken, planning.cem(2)), PlannerParams(TARGET), 0, jnp.zeros(2))
    assert np.isfinite(plan.promised) and action["push"] <= 0, "it has learned from what is not a number"
    jax.tree.map(lambda x: np.testing.assert_array_equal(jnp.isfinite(x), True), plan)
    for paid in (jnp.nan, jnp.inf, -jnp.inf):  # by all plans, or by some of them
        for far in (jnp.inf, 0.0):
            outcome = lambda _, state, paid=paid, far=far: Outcome(jnp.where(state[1] < far, paid, 1.0), jnp.ones(()))  # noqa: E731
            extreme = Planner(POINT._replace(outcome=outcome), planning.mppi(2, sharpness=5.0))
            plan, action = search(extreme, PlannerParams(TARGET), 0, jnp.zeros(2))
            jax.tree.map(lambda x: np.testing.assert_array_equal(jnp.isfinite(x), True), (plan, action))


def test_luck_is_shared_and_averaged_over_dreams() -> None:
    """A push costs, and brings a reward by chance: with enough dreams no luck makes the plan that pushes look good."""

    def imagine(params: Params, key: Key, state: Array, action: Action, temperature: Array | float) -> Array:
        return action["push"] * (jax.random.normal(key, (1,)) * 10.0 - 1.0)

    gamble = POINT._replace(imagine=imagine, start=lambda params: jnp.zeros(1))
    gamble = gamble._replace(outcome=lambda params, state: Outcome(state[0], jnp.float32(1)))
    planner = Planner(gamble, PlanConfig(1, 64, 3, 8, dreams=4000, momentum=0.0))
    _, action = search(planner, PlannerParams(TARGET), 0, jnp.zeros(1))
    assert action["push"] < -0.8


def test_bad_settings_are_refused() -> None:
    crowded = {"candidates": 20, "kept": 16, "from_prior": 5}
    for wrong in (
        {"horizon": 0},
        {"elites": 200},
        {"kept": 20},
        crowded,
        {"from_prior": -1},
        {"momentum": 1.5},
        {"held": 0},
        {"sharpness": -5.0},
        {"spread": -0.5},
        {"sharpness": float("nan")},
        {"exponent": float("nan")},
    ):
        with pytest.raises(
            ValueError, match="a planner needs a horizon, iterations, elites, held and dreams of 1 or more"
        ):
            PlanConfig(**wrong)
    unbounded = POINT._replace(spec=POINT.spec._replace(action=Space((2,))))
    with pytest.raises(ValueError, match="only what has bounds can be drawn uniformly"):
        Planner(unbounded)
    with pytest.raises(ValueError, match="3 devices do not divide 128 candidates"):
        Planner(POINT, mesh=AbstractMesh((3,), ("candidates",)))
    planner = Planner(POINT)
    with pytest.raises(ValueError, match=r"`state` of planning\.search must be a latent state"):
        search(planner, PlannerParams(TARGET), 0, jnp.zeros(3))
    with pytest.raises(TypeError, match=r"plan of planning\.planner\.search"):
        planning.search(planner, PlannerParams(TARGET), jax.random.key(0), jnp.zeros(2), None)
    for other in (planning.start(Planner(POINT, PlanConfig(horizon=3))), planning.start(Planner(PATH))):
        with pytest.raises(ValueError, match=r"`plan` must be one of this planner, as planning\.start makes it"):
            planning.search(planner, PlannerParams(TARGET), jax.random.key(0), jnp.zeros(2), other)
    assert isinstance(planning.agent(planner), Agent)


def test_a_planner_catches_balls_in_a_learned_model() -> None:
    """That of the committed DreamerV3 agent, whose actor takes no part; at random, one ball in four is caught."""
    trained, params = dreamjax.load(REPO / "experiments" / "results" / "dreamerv3_jax_catch")
    agent = planning.agent(Planner(trained.model, planning.cem(9, 24, 2, 4)))
    chosen = planning.agent_params(params._replace(policy=()))
    many = jax.tree.map(lambda x: jnp.broadcast_to(x, (12, *x.shape)), chosen.policy)
    keys = jax.random.split(jax.random.key(0), 12)
    caught = rollout.episodes(probes.catch(), rollout.step_policy(agent, chosen.model), many, keys, stages=1)
    assert caught.total.mean() > 0.6, caught.total
