"""Planning: actions chosen by imagining what follows from many, in any `LatentModel`, without training a policy.

Plans are drawn from a distribution, imagined, and compared by the return that the model promises; the best of them make
the next distribution. A planner is a policy that remembers its plan from step to step, and goes to every place that
takes one::

    planner = Planner(agent.model, icem())
    planning_agent, planning_params = planning.agent(planner), planning.agent_params(params)

Sources: see `methods`.
"""

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dreamjax import checks, dream
from dreamjax.planning.beliefs import Belief, coloured_by, draw, draw_evenly, follow, likeliest, refit, unknown, within
from dreamjax.planning.methods import PlanConfig
from dreamjax.rollout import random_policy
from dreamjax.types import (
    Action,
    Agent,
    AgentParams,
    AnyPolicy,
    Array,
    Key,
    LatentModel,
    Params,
    PyTree,
    RecurrentPolicy,
    Space,
    State,
)


class Value(Protocol):
    def __call__(self, params: Params, features: PyTree, /) -> Array:
        """Predict the return [] that follows upon a state with features [F]."""


@dataclass(frozen=True)
class Planner:
    """What is imagined, and how plans are searched for. Hashable.

    With a mesh the candidates are split over its devices, each of which imagines its own; only returns are exchanged,
    and the plans are those of one device, to rounding.

    Raises: ValueError for an action without bounds, if candidates are to come from a prior that is not there, or if the
        devices do not divide the candidates.
    """

    model: LatentModel  # `prior` and `value` read its features
    cfg: PlanConfig = PlanConfig()
    prior: AnyPolicy | None = None  # chooses `cfg.from_prior` of the candidates; a recurrent one remembers nothing
    value: Value | None = None  # of the state in which a plan ends; without one, nothing follows
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        random_policy(self.model.spec.action)  # it refuses what has no bounds
        if self.cfg.from_prior and self.prior is None:
            raise ValueError(f"{self.cfg.from_prior} candidates are to come from a prior, but `prior` is None")
        if self.mesh and self.cfg.candidates % self.mesh.size:
            raise ValueError(
                f"{self.mesh.size} devices do not divide {self.cfg.candidates} candidates; use a multiple or fewer "
                "devices"
            )

    @property
    def spaces(self) -> list[Space]:
        """Space of every part of an action."""
        return jax.tree.leaves(self.model.spec.action)


class PlannerParams(NamedTuple):
    """What a planner imagines with: its parameters as a policy."""

    model: Params  # of the `LatentModel`
    prior: Params = ()
    value: Params = ()


class Plan(NamedTuple):
    """Where a search stands; lists have an item for every part of the action."""

    beliefs: list[Belief]
    kept: list[Array]  # [kept, H, *shape], the best plans, the first the best
    promised: Array  # [] float32, the return that the model promises for the best plan of the last iteration


def agent_params(params: AgentParams, value: Params = ()) -> AgentParams:
    """Turn the parameters of an agent into those of one that plans in its model; its policy becomes the prior.

    `value` are those of the critic: `DreamerParams.value` where DreamerV3 is trained. A planner's parameters hold the
    world model, so that many planners in one call, as in `rollout.population_returns`, hold it many times.
    """
    return params._replace(policy=PlannerParams(params.model, params.policy, value))


@lru_cache(maxsize=128)
def agent(planner: Planner) -> Agent:
    """Make the agent that plans: it acts, dreams, and is evaluated and filmed like any other. See `agent_params`."""

    def init(key: Key) -> PlannerParams:
        key_model, key_prior = jax.random.split(key)
        prior = planner.prior.init(key_prior) if planner.prior else ()
        return PlannerParams(planner.model.init(key_model), prior)

    def act(params: Params, key: Key, plan: State, state: PyTree) -> tuple[State, Action]:
        plan, action = search(planner, params, key, state, plan)
        return advance(planner, plan), action

    return Agent(dream.expose_state(planner.model), RecurrentPolicy(init, lambda params: start(planner), act))


def start(planner: Planner) -> Plan:
    """Begin to search, with nothing known."""
    beliefs = [unknown(planner.cfg.horizon, planner.cfg.spread, space) for space in planner.spaces]
    best = map(likeliest, planner.spaces, beliefs)
    plan = Plan(beliefs, [jnp.repeat(x[None], planner.cfg.kept, 0) for x in best], jnp.float32(0))
    if planner.mesh is None or planner.mesh.size == 1:
        return plan
    # Where `search` leaves it, or the second search would compile again.
    return jax.lax.with_sharding_constraint(plan, NamedSharding(planner.mesh, PartitionSpec()))


def advance(planner: Planner, plan: Plan) -> Plan:
    """Let the plan for a state become the one for the next: a step shorter at the start, unknown at the end."""
    beliefs = list(map(follow, planner.spaces, plan.beliefs, start(planner).beliefs))
    kept = [jnp.concatenate([x[:, 1:], x[:, -1:]], 1) for x in plan.kept]
    return Plan(beliefs, kept, plan.promised)


@checks.arguments
@partial(jax.jit, static_argnums=0)
def search(planner: Planner, params: PlannerParams, key: Key, state: State, plan: Plan) -> tuple[Plan, Action]:
    """Improve the plan for a latent state, and choose its first action; `advance` the plan before the next search.

    A plan whose return is not a number is the worst. `jax.vmap` searches from many states at once.

    Raises: ValueError if `state` is not a latent state or `plan` not one of this planner, or if a function of the model
        returns what the contract does not say.
    """
    checks.latent(planner.model, params.model, state, "`state` of planning.search")
    own = jax.eval_shape(lambda: start(planner))
    checks.like(own, plan, "`plan` must be one of this planner, as planning.start makes it", leading=False)
    cfg, structure = planner.cfg, jax.tree.structure(planner.model.spec.action)
    key_prior, key_search = jax.random.split(key)
    proposed = _proposed(planner, params, key_prior, state)

    def improve(plan: Plan, key: Key) -> tuple[Plan, list[Array]]:
        key_draw, key_dreams = jax.random.split(key)
        candidates = _candidates(planner, key_draw, plan, proposed)
        returns = _promised(planner, params, jax.random.split(key_dreams, cfg.dreams), state, candidates)
        most = jnp.finfo(returns.dtype).max / 4  # so that differences are finite, too
        # `top_k` takes what is not a number for the largest.
        returns = jnp.clip(jnp.nan_to_num(returns, nan=-most), -most, most)
        best, order = jax.lax.top_k(returns, cfg.elites)
        elites = [part[order] for part in candidates]
        # As differences from the best: products with the sharpness may be infinite, and these are so below it only.
        settings = jax.nn.softmax(cfg.sharpness * (best - best[0])), cfg.momentum, cfg.least_spread
        beliefs = [refit(*part, *settings) for part in zip(planner.spaces, plan.beliefs, elites, strict=True)]
        return Plan(beliefs, [part[: cfg.kept] for part in elites], best[0]), [part[0, 0] for part in elites]

    plan, best = jax.lax.scan(improve, plan, jax.random.split(key_search, cfg.iterations))
    if cfg.takes_best:
        chosen = [actions[-1] for actions in best]
    else:
        chosen = [actions[0] for actions in map(likeliest, planner.spaces, plan.beliefs)]
    return plan, jax.tree.unflatten(structure, chosen)


def plan_return(planner: Planner, params: PlannerParams, key: Key, state: State, actions: Action) -> Array:
    """Return that the model promises for a plan: every reward counts by how probable it is to be reached.

    Shapes: actions [H, *shape] -> [] float32.
    """
    model, cfg = planner.model, planner.cfg

    def step(carry: tuple[State, Array], data: tuple[Key, Action]) -> tuple[tuple[State, Array], Array]:
        before, weight = carry
        key, action = data
        state = model.imagine(params.model, key, before, action, cfg.temperature)
        outcome = model.outcome(params.model, state)
        checks.state(before, state, "LatentModel.imagine")
        checks.outcome(outcome, "LatentModel.outcome")
        return (state, weight * outcome.continues * cfg.discount), weight * outcome.reward

    length = len(jax.tree.leaves(actions)[0])
    begin = state, jnp.float32(1)
    (last, weight), rewards = jax.lax.scan(step, begin, (jax.random.split(key, length), actions))
    follows = weight * planner.value(params.value, model.features(last)) if planner.value else 0.0
    return rewards.sum() + follows


def _promised(planner: Planner, params: PlannerParams, luck: Key, state: State, candidates: list[Array]) -> Array:
    """Returns of plans, all with the same luck, so that it does not decide between them. Shapes: luck [D] -> [N]."""
    structure, mesh = jax.tree.structure(planner.model.spec.action), planner.mesh

    def promise(params: PlannerParams, luck: Key, state: State, plan: list[Array]) -> Array:
        actions = jax.tree.unflatten(structure, plan)
        return jax.vmap(lambda key: plan_return(planner, params, key, state, actions))(luck).mean()

    every = jax.vmap(promise, (None, None, None, 0))
    if mesh is None or mesh.size == 1:
        return every(params, luck, state, candidates)

    whole, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
    return dream.over_devices(every, mesh, (whole, whole, whole, split))(params, luck, state, candidates)


def _proposed(planner: Planner, params: PlannerParams, key: Key, state: State) -> list[Array]:
    """Plans of the prior policy. Shapes: -> [from_prior, H, *shape] of each part."""
    cfg, model = planner.cfg, planner.model
    if planner.prior is None or not cfg.from_prior:
        return [jnp.zeros((0, cfg.horizon, *space.shape), space.dtype) for space in planner.spaces]
    who = Agent(model, planner.prior), AgentParams(params.model, params.prior)
    propose = lambda key: dream.imagine(*who, key, state, cfg.horizon, cfg.temperature).actions  # noqa: E731
    actions = jax.tree.leaves(jax.vmap(propose)(jax.random.split(key, cfg.from_prior)))
    return [within(space, part) for space, part in zip(planner.spaces, actions, strict=True)]


def _candidates(planner: Planner, key: Key, plan: Plan, proposed: list[Array]) -> list[Array]:
    """Plans to compare. Shapes: -> [candidates, H, *shape] of each part."""
    cfg, spaces = planner.cfg, planner.spaces
    coloured = coloured_by(cfg.exponent, -(-cfg.horizon // cfg.held))
    found = []
    for space, belief, kept, others, key_one in zip(
        spaces, plan.beliefs, plan.kept, proposed, jax.random.split(key, len(spaces)), strict=True
    ):
        white = jax.random.normal(key_one, (len(coloured), cfg.drawn, *space.shape))
        lasting = jnp.repeat(jnp.tensordot(coloured, white, 1), cfg.held, 0)[: cfg.horizon]
        noise = jnp.moveaxis(lasting, 0, 1)
        again = [likeliest(space, belief)[None], kept] if cfg.kept else []
        drawing = partial(draw_evenly, space) if cfg.is_uniform else partial(draw, space, belief)
        found.append(jnp.concatenate([*again, others, jax.vmap(drawing)(noise)]))
    return found
