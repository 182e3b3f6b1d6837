"""The contracts that everything in dreamjax is written against.

Time is drawn once, here, and every module follows it::

        x_0, r_0=0        x_1, r_1          x_2, r_2             x_t   observation
          |                 |                 |                  r_t   reward received on arriving at x_t
          v                 v                 v                  z_t   stochastic latent of x_t
    h_0 -------> h_1 ------------> h_2 ------------> h_3         h_t   recurrent state, made of (h, z, a)_{t-1}
      \\          ^ \\              ^ \\              ^
       (h_0,z_0)-a_0  (h_1,z_1)---a_1  (h_2,z_2)---a_2           a_t   action chosen after seeing x_t

A `Step` holds what arrives at time t; the action a_t is chosen after it and caused by nothing later. The flags:
`is_first` opens an episode (recurrent state and previous action are zero, reward is 0), `is_last` closes it for
whatever reason, and `is_terminal` says that the future return is 0, so that a value may not be bootstrapped. An
episode that was cut by a time limit is last but not terminal.

Letters in shapes: B batch, T time, N population, E episodes, L lanes, F features, Z latent size, H recurrent size,
A action size, K mixture components. Functions take one example; `jax.vmap` makes batches. Arguments are ordered
`params, key, state, data`, results `(new_state, output)`. Keys are typed (`jax.random.key`) and used once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array
Key = jax.Array  # a typed PRNG key, see `jax.random.key`
PyTree = Any
Params = PyTree  # what is learned
State = PyTree  # what is carried from step to step
Action = PyTree  # what `EnvSpec.action` describes
Metrics = dict[str, Array]  # scalars, by name


@dataclass(frozen=True)
class Space:
    """The values that one array may take.

    Floats lie in [low, high]; integers are classes or levels in [low, high), so that a categorical action of n
    classes is `Space((), np.int32, 0, n)` and an image is `Space((64, 64, 3), np.uint8, 0, 256)`.
    """

    shape: tuple[int, ...]
    dtype: Any = np.float32
    low: float = -np.inf
    high: float = np.inf

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"Space needs low < high, got low={self.low}, high={self.high}")

    @property
    def is_discrete(self) -> bool:
        return not np.issubdtype(self.dtype, np.floating)


class EnvSpec(NamedTuple):
    """What an environment emits and takes: pytrees of `Space`, and the step limit of an episode."""

    observation: PyTree
    action: PyTree
    max_steps: int


class Step(NamedTuple):
    """What arrives at time t. See the drawing at the top of this module."""

    observation: PyTree  # x_t
    reward: Array  # [] float32, r_t; 0 where is_first
    is_first: Array  # [] bool
    is_last: Array  # [] bool
    is_terminal: Array  # [] bool; implies is_last


class Environment(NamedTuple):
    """A pure environment: a game written in JAX, a real one seen through a model, or a dream."""

    reset: Callable[[Key], tuple[State, Step]]
    step: Callable[[Key, State, Action], tuple[State, Step]]
    spec: EnvSpec


class Outcome(NamedTuple):
    """What a world model says of the state it is in, besides the observation."""

    reward: Array  # [] float32, of arriving in this state
    continues: Array  # [] float32, probability that the episode goes on; may contain a discount


class LatentModel(NamedTuple):
    """A world model: a recurrent latent state with a posterior (`observe`) and a prior (`imagine`).

    A bundle of pure functions with its configuration already bound; both the 2018 model and an RSSM are one.
    """

    init: Callable[[Key], Params]
    start: Callable[[Params], State]  # latent state before the first observation
    encode: Callable[[Params, PyTree], PyTree]  # observation -> embedding; outside any scan over time
    observe: Callable[[Params, Key, State, Action, PyTree, Array], State]
    # (params, key, state_{t-1}, action_{t-1}, embedding_t, is_first_t) -> state_t, from the posterior
    imagine: Callable[[Params, Key, State, Action, Array | float], State]
    # (params, key, state_{t-1}, action_{t-1}, temperature) -> state_t, from the prior
    features: Callable[[State], Array]  # state -> [F], what a policy reads
    outcome: Callable[[Params, State], Outcome]
    decode: Callable[[Params, State], PyTree]  # state -> observation, to look at; no loss calls it
    spec: EnvSpec  # of the environment that it models


class Policy(NamedTuple):
    """What chooses actions from the features of a `LatentModel`: a linear controller, an actor."""

    init: Callable[[Key], Params]
    act: Callable[[Params, Key, Array], Action]  # (params, key, features [F]) -> action


class RecurrentPolicy(NamedTuple):
    """A policy with a memory of its own, for example a recurrent network; it goes wherever a `Policy` does."""

    init: Callable[[Key], Params]
    start: Callable[[Params], State]  # memory before the first step of an episode
    act: Callable[[Params, Key, State, Array], tuple[State, Action]]
    # (params, key, memory_{t-1}, features_t [F]) -> (memory_t, action_t)


AnyPolicy = Policy | RecurrentPolicy


class StepPolicy(NamedTuple):
    """What acts on the steps of an environment, with whatever it has to remember: what `rollout` unrolls."""

    start: Callable[[Params], State]  # memory before the first step
    act: Callable[[Params, Key, State, Step], tuple[State, Action]]


class Agent(NamedTuple):
    """A world model and the policy that reads its features: the one bundle that acts, dreams, is evaluated and stored.

    Jitted functions take it as static and tell agents apart by identity, so make it once: `make` of both systems
    returns the same agent for equal arguments.
    """

    model: LatentModel
    policy: AnyPolicy


class AgentParams(NamedTuple):
    """The parameters of an `Agent`, and where its dreams begin."""

    model: Params  # of the `LatentModel`
    policy: Params  # of the policy; a population is stacked [N, ...]
    starts: PyTree = ()  # [S, ...] embeddings of real first observations, as `LatentModel.encode` returns them
