"""Acting in environments: the loop that real environments, those seen through a model, and dreams share."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import checks
from dreamjax.types import (
    Action,
    Agent,
    AgentParams,
    AnyPolicy,
    Array,
    Environment,
    EnvSpec,
    Key,
    LatentModel,
    Outcome,
    Params,
    Policy,
    PyTree,
    RecurrentPolicy,
    Space,
    State,
    Step,
    StepPolicy,
)


class AgentState(NamedTuple):
    """What an agent with a world model remembers."""

    latent: State  # of the `LatentModel`, at the last step it acted on
    action: Action  # chosen then
    memory: State = ()  # of the policy, if it is recurrent


class Transition(NamedTuple):
    """A step and the action taken after it."""

    step: Step
    action: Action


class UnrollState(NamedTuple):
    """Where `unroll` stands."""

    environment: State
    step: Step
    agent: State


class Returns(NamedTuple):
    """What whole episodes came to."""

    total: Array  # [...] float32, sum of rewards
    steps: Array  # [...] int32, actions taken


def zero_action(space: PyTree) -> Action:
    """Return the action of all zeros, which stands before the first step of an episode."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), space)


@checks.arguments
def recurrent(policy: AnyPolicy) -> RecurrentPolicy:
    """Lift a policy to a recurrent one with empty memory; a `RecurrentPolicy` stays as it is."""
    if isinstance(policy, RecurrentPolicy):
        return policy

    def act(params: Params, key: Key, memory: State, features: Array) -> tuple[State, Action]:
        return memory, policy.act(params, key, features)

    return RecurrentPolicy(policy.init, lambda params: (), act)


def random_policy(space: PyTree) -> Policy:
    """Act uniformly at random, whatever is seen. Raises ValueError for a space without bounds, or too wide."""
    checks.drawable(space)

    def act(params: Params, key: Key, features: Array) -> Action:
        del params, features
        leaves, structure = jax.tree.flatten(space)
        draws = []
        for part, one in zip(leaves, jax.random.split(key, len(leaves)), strict=True):
            draw = jax.random.randint if part.is_discrete else jax.random.uniform
            dtype = np.int32 if part.dtype == bool else part.dtype  # booleans cannot be drawn
            drawn = draw(one, part.shape, dtype=dtype, minval=part.low_array, maxval=part.high_array)
            draws.append(drawn.astype(part.dtype))
        return jax.tree.unflatten(structure, draws)

    return Policy(lambda key: (), act)


def noisy(policy: AnyPolicy, space: Space) -> RecurrentPolicy:
    """Explore: add Gaussian noise to the actions of a policy, cut off at the bounds of their space.

    Its parameters: those of the policy, and the noise's standard deviation, at first 0. Raises ValueError if discrete.
    """
    checks.continuous(space)
    inner = recurrent(policy)

    def act(params: tuple[Params, Array], key: Key, memory: State, features: Array) -> tuple[State, Action]:
        key_act, key_noise = jax.random.split(key)
        memory, action = inner.act(params[0], key_act, memory, features)
        noise = params[1] * jax.random.normal(key_noise, action.shape)
        return memory, jnp.clip(action + noise, space.low_array, space.high_array).astype(space.dtype)

    return RecurrentPolicy(lambda key: (inner.init(key), jnp.float32(0)), lambda params: inner.start(params[0]), act)


@checks.arguments
def step_policy(agent: Agent, model_params: Params) -> StepPolicy:
    """Filter observations with the world model of an agent, and act on the features of its posterior state.

    Its parameters are those of the agent's policy alone, so that a population of policies can share one world model.
    """
    model, reacting = agent.model, reactive(agent.policy)

    def start(params: Params) -> AgentState:
        return AgentState(model.start(model_params), zero_action(model.spec.action), reacting.start(params))

    def act(params: Params, key: Key, state: AgentState, step: Step) -> tuple[AgentState, Action]:
        key_observe, key_act = jax.random.split(key)
        checks.observation(model.spec, step.observation, "what an agent acts on")
        embedding = model.encode(model_params, step.observation)
        latent = model.observe(model_params, key_observe, state.latent, state.action, embedding, step.is_first)
        memory, action = reacting.act(params, key_act, state.memory, step._replace(observation=model.features(latent)))
        return AgentState(latent, action, memory), action

    return StepPolicy(start, act)


@checks.arguments
def start(agent: Agent, params: AgentParams) -> AgentState:
    """Return the state of an agent before its first step."""
    return step_policy(agent, params.model).start(params.policy)


@checks.arguments
@partial(jax.jit, static_argnums=0)
def act(agent: Agent, params: AgentParams, key: Key, state: AgentState, step: Step) -> tuple[AgentState, Action]:
    """Act once, on one step. `jax.vmap(partial(act, agent), (None, 0, 0, 0))` acts in a batch [B, ...] of environments.

    An episode may begin at any step: where `is_first`, what was remembered is forgotten.
    """
    return step_policy(agent, params.model).act(params.policy, key, state, step)


@checks.arguments
def reactive(policy: AnyPolicy) -> StepPolicy:
    """Let a policy act on the observation itself, without a world model. In a dream the observation is the features.

    The memory of a recurrent policy is new in every episode.
    """
    whole = recurrent(policy)

    def act(params: Params, key: Key, state: State, step: Step) -> tuple[State, Action]:
        checks.policy(policy, params)
        state = jax.tree.map(partial(jnp.where, step.is_first), whole.start(params), state)
        return whole.act(params, key, state, step.observation)

    return StepPolicy(whole.start, act)


def random_agent(spec: EnvSpec) -> Agent:
    """Act uniformly at random: an agent whose world model knows nothing, so that random play is the play of an agent.

    Its parameters are `AgentParams((), ())`, and the features of its model a single zero. Raises ValueError if an
    action has no bounds.
    """
    model = LatentModel(
        init=lambda key: (),
        start=lambda params: (),
        encode=lambda params, observation: (),
        observe=lambda params, key, state, action, embedding, is_first: (),
        imagine=lambda params, key, state, action, temperature: (),
        features=lambda state: jnp.zeros(1),
        outcome=lambda params, state: Outcome(jnp.float32(0), jnp.float32(1)),
        decode=lambda params, state: zero_action(spec.observation),
        spec=spec,
    )
    return Agent(model, random_policy(spec.action))


@checks.arguments
def unroll(
    environment: Environment, agent: StepPolicy, params: Params, key: Key, length: int, state: UnrollState | None = None
) -> tuple[UnrollState, Transition]:
    """Act for `length` steps; after the last step of an episode comes the first of the next.

    Pass the returned state to go on where it stopped. The action that follows the last step of an episode is recorded
    but has no effect.

    Shapes: transitions [T, ...].
    Raises: ValueError if the environment or the agent returns what its spec does not declare.
    """
    environment, agent = checks.loop(environment, agent)
    key_reset, key_steps = jax.random.split(key)
    if state is None:
        state = UnrollState(*environment.reset(key_reset), agent.start(params))

    def advance(state: UnrollState, key: Key) -> tuple[UnrollState, Transition]:
        key_act, key_step, key_next = jax.random.split(key, 3)
        memory, action = agent.act(params, key_act, state.agent, state.step)
        following, step = jax.lax.cond(
            state.step.is_last,
            lambda: environment.reset(key_next),
            lambda: environment.step(key_step, state.environment, action),
        )
        return UnrollState(following, step, memory), Transition(state.step, action)

    return jax.lax.scan(advance, state, jax.random.split(key_steps, length))


class _Episode(NamedTuple):
    number: Array  # [] int32, which one this is
    params: Params
    key: Key
    environment: State
    step: Step
    agent: State
    total: Array
    steps: Array


@checks.arguments
def episodes(
    environment: Environment, agent: StepPolicy, params: Params, keys: Key, stages: int = 3, smallest: int = 64
) -> Returns:
    """Act through E whole episodes in one batch, each with its own policy parameters and key.

    All step together until only so many are still running as fit into the next smaller batch, of `stages` in all that
    are evenly spaced and not smaller than `smallest`. So none waits long for the longest episode, which pays wherever
    the cost of a step grows with the batch. Each stage is a copy of the step in the program, and is compiled as long;
    the result does not depend on them.

    Shapes: params [E, ...], keys [E] -> [E].
    Raises: ValueError if the environment or the agent returns what its spec does not declare.
    """
    environment, agent = checks.loop(environment, agent)
    count = len(keys)
    results = Returns(jnp.zeros(count), jnp.zeros(count, jnp.int32))

    def begin(number: Array, params: Params, key: Key) -> _Episode:
        state, step = environment.reset(jax.random.fold_in(key, 0))
        return _Episode(number, params, key, state, step, agent.start(params), jnp.float32(0), jnp.int32(0))

    def advance(episode: _Episode) -> _Episode:
        key_act, key_step = jax.random.split(jax.random.fold_in(episode.key, episode.steps + 1))
        memory, action = agent.act(episode.params, key_act, episode.agent, episode.step)
        state, step = environment.step(key_step, episode.environment, action)
        # An episode that is over stays as it was, until the batch is packed again.
        over = episode.step.is_last
        return episode._replace(
            environment=state,
            step=step._replace(is_last=over | step.is_last),
            agent=memory,
            total=episode.total + jnp.where(over, 0.0, step.reward),
            steps=episode.steps + jnp.where(over, 0, 1),
        )

    def more_than(count: int, running: _Episode) -> Array:
        return (~running.step.is_last).sum() > count

    running = jax.vmap(begin)(jnp.arange(count), params, keys)
    sizes = _batch_sizes(count, stages, smallest)
    for size, fewer in zip(sizes, [*sizes[1:], 0], strict=True):
        running = jax.tree.map(partial(jnp.take, indices=jnp.argsort(running.step.is_last)[:size], axis=0), running)
        running = jax.lax.while_loop(partial(more_than, fewer), jax.vmap(advance), running)
        results = Returns(
            results.total.at[running.number].set(running.total), results.steps.at[running.number].set(running.steps)
        )
    return results


def _batch_sizes(count: int, stages: int, smallest: int) -> list[int]:
    """Sizes of the stages: `count`, then evenly spaced down towards nothing, in multiples of 8."""
    later = {8 * -(-count * left // (8 * stages)) for left in range(1, stages)}
    return [count, *sorted((size for size in later if smallest <= size < count), reverse=True)]


def population_of_one(params: Params) -> Params:
    """Give the parameters of one policy the leading axis of a population. Shapes: [...] -> [1, ...]."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], params)


@checks.arguments
def population_returns(environment: Environment, agent: StepPolicy, population: Params, keys: Key) -> Returns:
    """Act through E episodes with each of N policies. The policies share the keys, so that luck separates them less.

    Shapes: population [N, ...], or without arrays, of one policy that has none; keys [E] -> [N, E].
    """
    n, e = checks.population(population), len(keys)
    params = jax.tree.map(lambda leaf: jnp.repeat(leaf, e, axis=0), population)
    returns = episodes(environment, agent, params, jnp.tile(keys, n))
    return jax.tree.map(lambda leaf: leaf.reshape(n, e), returns)
