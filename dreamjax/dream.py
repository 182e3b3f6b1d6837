"""Dreaming: stepping a world model from its prior, without the world.

Source: Ha & Schmidhuber 2018, section 4 (training inside the dream); Hafner et al. 2023 (actor critic learning).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from dreamjax import checks
from dreamjax.rollout import AgentState, Returns, Transition, population_returns, reactive, recurrent, zero_action
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
    PyTree,
    RecurrentPolicy,
    Space,
    State,
    Step,
)


class Dream(NamedTuple):
    """An imagined trajectory; decode its states with the model, or ask it for their outcomes."""

    states: State  # [H+1, ...], the first is the start
    actions: Action  # [H, ...], each taken in the state of the same index


@checks.arguments
def imagine(
    agent: Agent,
    params: AgentParams,
    key: Key,
    state: State,
    horizon: int,
    temperature: Array | float = 1.0,
    unroll: int = 1,
) -> Dream:
    """Follow the policy of an agent through its prior for `horizon` steps, without regard to the end of episodes.

    Differentiable through the states and actions. `unroll` steps are compiled as one: with short steps that is faster.
    A recurrent policy starts here with the memory of a first step.
    """
    model, acting = agent.model, recurrent(agent.policy)
    model_params, policy_params = params.model, params.policy
    checks.latent(model, model_params, state, "`state` of dream.imagine")
    checks.policy(agent.policy, policy_params)

    def step(carry: tuple[State, State], key: Key) -> tuple[tuple[State, State], tuple[State, Action]]:
        state, memory = carry
        key_act, key_imagine = jax.random.split(key)
        memory, action = acting.act(policy_params, key_act, memory, model.features(state))
        following = model.imagine(model_params, key_imagine, state, action, temperature)
        checks.state(state, following, "LatentModel.imagine")
        return (following, memory), (following, action)

    begin = (state, acting.start(policy_params))
    _, (states, actions) = jax.lax.scan(step, begin, jax.random.split(key, horizon), unroll=unroll)
    return Dream(jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), state, states), actions)


@checks.arguments
def imagine_actions(
    model: LatentModel,
    params: Params,
    key: Key,
    state: State,
    actions: Action,
    temperature: Array | float = 1.0,
    unroll: int = 1,
) -> Dream:
    """Imagine what follows from given actions, in their order, without regard to the end of episodes.

    Differentiable through the states and actions. The actions of a dream with its key give the same dream again.
    `jax.vmap` over keys and actions compares plans.

    Shapes: actions [H, ...] -> states [H+1, ...].
    Raises: ValueError if the actions are not stacked, or not those of the model's spec.
    """
    actions = jax.tree.map(jnp.asarray, actions)
    if {leaf.shape[:1] for leaf in jax.tree.leaves(actions)} & {(), (0,)}:
        raise ValueError(f"actions must be stacked [H, ...], H at least 1, got {jax.tree.map(jnp.shape, actions)}")
    checks.action(model.spec, jax.tree.map(lambda leaf: leaf[0], actions), "dream.imagine_actions at every step")

    def act(actions: Action, key: Key, time: Array, features: Array) -> tuple[Array, Action]:
        return time + 1, jax.tree.map(lambda leaf: leaf[time], actions)

    # Playing back is a policy that remembers the time, and whose parameters are what is played.
    playback = RecurrentPolicy(lambda key: (), lambda actions: jnp.int32(0), act)
    length = len(jax.tree.leaves(actions)[0])
    return imagine(Agent(model, playback), AgentParams(params, actions), key, state, length, temperature, unroll)


def expose_state(model: LatentModel) -> LatentModel:
    """Let policies read the whole latent state: the same model, whose features are its state.

    A planner imagines from the state where it acts, so that it needs more than the vector of features. As the policy of
    `Agent(expose_state(model), policy)` it acts, dreams and is evaluated like any other.
    """
    return model._replace(features=_whole)


def _whole(state: State) -> State:
    return state


@checks.arguments
def open_loop(
    model: LatentModel,
    params: Params,
    key: Key,
    memory: AgentState,
    recorded: Transition,
    observed: Array | int,
    temperature: Array | float = 1.0,
) -> State:
    """Filter a recording for `observed` steps, then predict the rest open-loop, from its actions alone.

    States of the first steps are posterior, those after them prior, without observations and without word of where an
    episode begins. `memory` is the agent's at the step before the first; where the first step opens an episode, it does
    not matter. Decode the states to look at them.

    Source: Hafner et al. 2023, figure 4, with 5 observed steps and 45 others.
    Shapes: recorded [T, ...] -> [T, ...].
    """
    step = recorded.step
    embeddings = jax.vmap(partial(model.encode, params))(step.observation)
    before = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest[:-1]]), memory.action, recorded.action)
    length = len(step.is_first)

    def follow(state: State, data: tuple[Key, Array, Action, PyTree, Array]) -> tuple[State, State]:
        key, is_seen, action, embedding, is_first = data
        state = jax.lax.cond(
            is_seen,
            lambda: model.observe(params, key, state, action, embedding, is_first),
            lambda: model.imagine(params, key, state, action, temperature),
        )
        return state, state

    data = (jax.random.split(key, length), jnp.arange(length) < observed, before, embeddings, step.is_first)
    return jax.lax.scan(follow, memory.latent, data)[1]


class DreamState(NamedTuple):
    """Where a dreamed episode stands."""

    latent: State
    steps: Array  # [] int32, taken so far


@checks.arguments
def environment(model: LatentModel, params: Params, starts: PyTree, temperature: Array | float = 1.0) -> Environment:
    """Turn a world model into an environment.

    An episode begins in the posterior of one of `starts`: embeddings of real first observations, as `model.encode`
    returns them, stacked [S, ...]. Observations are the model's features. The episode ends where the model predicts an
    end as more likely than not (a threshold, not a draw), and is cut at the step limit of the environment it models. A
    temperature above 1 makes the dream less certain, and so harder to exploit. Where it is NaN whether the episode goes
    on, it ends with a reward of NaN, so that no search takes that for survival.

    Build it inside the function you jit, so that the parameters are arguments of the program and not constants in it.

    Source: Ha & Schmidhuber 2018, section 4.2 to 4.4, appendix A.4.
    Raises: ValueError if starts are not stacked, if the temperature is not above 0, or a function of the model returns
        what the contract does not say; what `model.observe` raises where starts are not embeddings, with a note.
    """
    checks.starts(starts)
    features = jax.eval_shape(lambda params: model.features(model.start(params)), params)
    checks.features(features, "LatentModel.features")
    observation = jax.tree.map(lambda leaf: Space(leaf.shape, leaf.dtype), features)
    spec = EnvSpec(observation, model.spec.action, model.spec.max_steps)

    def reset(key: Key) -> tuple[DreamState, Step]:
        key_choice, key_observe = jax.random.split(key)
        count = jax.tree.leaves(starts)[0].shape[0]
        chosen = jax.random.randint(key_choice, (), 0, count)
        embedding = jax.tree.map(lambda leaf: leaf[chosen], starts)
        nothing = zero_action(spec.action)
        before = model.start(params)
        try:
            latent = model.observe(params, key_observe, before, nothing, embedding, jnp.array(True))
            checks.state(before, latent, "LatentModel.observe")
        except (TypeError, ValueError) as error:
            got = jax.tree.map(jnp.shape, starts)
            error.add_note(f"`starts` must be embeddings as `model.encode` returns them, stacked [S, ...], got {got}")
            raise
        no = jnp.array(False)
        return DreamState(latent, jnp.int32(0)), Step(model.features(latent), jnp.float32(0), ~no, no, no)

    def step(key: Key, state: DreamState, action: Action) -> tuple[DreamState, Step]:
        latent = model.imagine(params, key, state.latent, action, temperature)
        outcome = model.outcome(params, latent)
        checks.state(state.latent, latent, "LatentModel.imagine")
        checks.outcome(outcome, "LatentModel.outcome")
        steps = state.steps + 1
        is_broken = jnp.isnan(outcome.continues)
        is_terminal = is_broken | (outcome.continues < 0.5)
        is_last = is_terminal | (steps >= spec.max_steps)
        return DreamState(latent, steps), Step(
            model.features(latent),
            jnp.where(is_broken, jnp.nan, outcome.reward),
            jnp.array(False),
            is_last,
            is_terminal,
        )

    return Environment(reset, step, spec)


@checks.arguments
@partial(jax.jit, static_argnames=("agent", "mesh"))
def returns(
    agent: Agent, params: AgentParams, keys: Key, temperature: Array | float = 1.0, mesh: Mesh | None = None
) -> Returns:
    """Let every policy of a population dream: all episodes and all their steps in one call.

    The policies share the keys. With a mesh the population is split over its devices, each of which dreams for its own
    part; only returns are exchanged, and every device gets those of all. Agents are told apart by identity: make them
    once.

    Shapes: params.policy [N, ...], params.starts [S, ...], keys [E] -> [N, E].
    Raises: ValueError if the devices do not divide the population.
    """

    def dreamed(params: AgentParams, keys: Key, temperature: Array) -> Returns:
        dreams = environment(agent.model, params.model, params.starts, temperature)
        return population_returns(dreams, reactive(agent.policy), params.policy, keys)

    temperature = jnp.asarray(temperature, jnp.float32)
    if mesh is None:
        return dreamed(params, keys, temperature)
    count = checks.population(params.policy)
    if count % mesh.size:
        raise ValueError(f"{mesh.size} devices do not divide a population of {count}; use a multiple or fewer devices")
    whole, split = PartitionSpec(), PartitionSpec(mesh.axis_names)
    specs = (AgentParams(whole, split, whole), whole, whole)
    return over_devices(dreamed, mesh, specs)(params, keys, temperature)


def over_devices(function: Callable[..., PyTree], mesh: Mesh, specs: PyTree) -> Callable[..., PyTree]:
    """Call a function on every device of a mesh, with the parts of its arguments that their `PartitionSpec` give it.

    Only results are exchanged: every device gets those of all, one after the other along their first axis.
    """

    def exchanged(*own: PyTree) -> PyTree:
        return jax.lax.all_gather(function(*own), mesh.axis_names, tiled=True)

    # The loops inside start from constants, which the check of varying axes takes for equal on all devices.
    return jax.shard_map(exchanged, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
