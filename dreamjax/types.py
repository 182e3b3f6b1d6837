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

Letters in shapes: B batch, T time, N population, E episodes, S starts, F features, Z latent size, H recurrent size,
A action size, K mixture components. Functions take one example; `jax.vmap` makes batches. Arguments are ordered
`params, key, state, data`, results `(new_state, output)`. Keys are typed (`jax.random.key`) and used once. Numbers have
32 bits or fewer: `jax_enable_x64` is not supported.

A contract is a bundle of pure functions; the type of each field is a Protocol that documents its call, which
`help(LatentModel)` shows. Arguments are positional.
"""

import inspect
import re
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

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
    classes is `Space((), np.int32, 0, n)` and an image is `Space((64, 64, 3), np.uint8, 0, 256)`. Bounds are numbers,
    or arrays or nested sequences of `shape`, one bound for each entry; they are kept as numbers where all are equal and
    as nested tuples elsewhere, so that a space is hashable.

    Raises: ValueError if a bound has another shape, or a lower one is not below its upper one.
    """

    shape: tuple[int, ...]
    dtype: Any = np.float32
    low: Any = -np.inf
    high: Any = np.inf

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", np.dtype(self.dtype))
        for name in ("low", "high"):
            object.__setattr__(self, name, self._bound(name, getattr(self, name)))
        if not (self.low_array < self.high_array).all():
            raise ValueError(f"Space needs low < high, got low={self.low}, high={self.high}")

    @property
    def is_discrete(self) -> bool:
        """Whether values are classes or levels."""
        return not jax.dtypes.issubdtype(self.dtype, np.floating)

    @property
    def low_array(self) -> np.ndarray:
        """Lower bound of each entry, of `shape`: of the dtype of the space, or int64 if it is discrete."""
        return self._array(self.low)

    @property
    def high_array(self) -> np.ndarray:
        """Upper bound of each entry, as `low_array`; that of a discrete space is the first value that is too large."""
        return self._array(self.high)

    def _array(self, bound: Any) -> np.ndarray:
        dtype = self.dtype if not self.is_discrete else np.int64 if np.isfinite(bound).all() else np.float64
        return np.broadcast_to(np.asarray(bound, dtype), self.shape)

    def _bound(self, name: str, bound: Any) -> Any:
        values = np.asarray(bound)
        if values.ndim and values.shape != tuple(self.shape):
            raise ValueError(f"{name} must be a number or have the shape {self.shape} of its Space, got {values.shape}")
        if values.size and (values == values.flat[0]).all():
            return values.flat[0].item()
        return _tuples(values.tolist())


def _tuples(nested: Any) -> Any:
    return tuple(map(_tuples, nested)) if isinstance(nested, list) else nested


class EnvSpec(NamedTuple):
    """What an environment emits and takes: pytrees of `Space`, and the step limit of an episode."""

    observation: PyTree  # of `Space`
    action: PyTree  # of `Space`
    max_steps: int  # after which an episode is cut

    def __hash__(self) -> int:
        """Hash mappings of spaces too, so that jitted functions can take as static what holds a spec."""
        leaves, structure = jax.tree.flatten(tuple(self))
        return hash((tuple(leaves), structure))


class Step(NamedTuple):
    """What arrives at time t. See the drawing at the top of this module."""

    observation: PyTree  # x_t
    reward: Array  # [] float32, r_t; 0 where is_first
    is_first: Array  # [] bool
    is_last: Array  # [] bool
    is_terminal: Array  # [] bool; implies is_last


class Outcome(NamedTuple):
    """What a world model says of the state it is in, besides the observation."""

    reward: Array  # [] float32, of arriving in this state
    continues: Array  # [] float32, probability that the episode goes on; may contain a discount


class Reset(Protocol):
    def __call__(self, key: Key, /) -> tuple[State, Step]:
        """Begin an episode: the state of the environment, and its first step (`is_first`, reward 0)."""


class Advance(Protocol):
    def __call__(self, key: Key, state: State, action: Action, /) -> tuple[State, Step]:
        """Take an action shaped as `spec.action`: the next state, and the step that arrives.

        After an `is_last` step it may return anything: callers reset or ignore it.
        """


class Init(Protocol):
    def __call__(self, key: Key, /) -> Params:
        """Draw the parameters, a pytree of arrays (empty if there is nothing to learn)."""


class Start(Protocol):
    def __call__(self, params: Params, /) -> State:
        """State before the first step of an episode."""


class Encode(Protocol):
    def __call__(self, params: Params, observation: PyTree, /) -> PyTree:
        """Embed an observation shaped as `spec.observation`; depends on nothing else, so that it stays out of scans."""


class Observe(Protocol):
    def __call__(
        self, params: Params, key: Key, state: State, action: Action, embedding: PyTree, is_first: Array, /
    ) -> State:
        """Step the posterior: (params, key, state_{t-1}, action_{t-1}, embedding_t, is_first_t) -> state_t.

        Where `is_first` [] bool, state_{t-1} and action_{t-1} belong to another episode and must not count. state_t has
        the structure, shapes and dtypes of state_{t-1}.
        """


class Imagine(Protocol):
    def __call__(self, params: Params, key: Key, state: State, action: Action, temperature: Array | float, /) -> State:
        """Step the prior, without an observation: (params, key, state_{t-1}, action_{t-1}, temperature) -> state_t.

        A temperature above 1 makes what is drawn less certain. state_t is shaped as state_{t-1}.
        """


class Features(Protocol):
    def __call__(self, state: State, /) -> PyTree:
        """What a policy reads of a latent state: a float vector [F], or what `dream.expose_state` makes of it."""


class PredictOutcome(Protocol):
    def __call__(self, params: Params, state: State, /) -> Outcome:
        """Predict the reward of having arrived in a state [], and the probability that the episode goes on []."""


class Decode(Protocol):
    def __call__(self, params: Params, state: State, /) -> PyTree:
        """Picture a state as an observation, to look at; no loss calls it."""


class Act(Protocol):
    def __call__(self, params: Params, key: Key, features: PyTree, /) -> Action:
        """Choose an action for features [F]. In an environment without a model the features are the observation."""


class ActRecurrently(Protocol):
    def __call__(self, params: Params, key: Key, memory: State, features: PyTree, /) -> tuple[State, Action]:
        """Choose an action: (params, key, memory_{t-1}, features_t [F]) -> (memory_t, action_t)."""


class ActOnStep(Protocol):
    def __call__(self, params: Params, key: Key, state: State, step: Step, /) -> tuple[State, Action]:
        """Choose an action for a step: (params, key, state_{t-1}, step_t) -> (state_t, action_t).

        Where `step.is_first`, state_{t-1} belongs to another episode.
        """


class Environment(NamedTuple):
    """A pure environment: one written in JAX, a real one seen through a model, or a dream."""

    reset: Reset
    step: Advance
    spec: EnvSpec


class LatentModel(NamedTuple):
    """A world model: a recurrent latent state with a posterior (`observe`) and a prior (`imagine`).

    A bundle of pure functions with its configuration already bound; both the 2018 model and an RSSM are one.
    """

    init: Init
    start: Start
    encode: Encode
    observe: Observe
    imagine: Imagine
    features: Features
    outcome: PredictOutcome
    decode: Decode
    spec: EnvSpec  # of the environment that it models


class Policy(NamedTuple):
    """What chooses actions from the features of a `LatentModel`: a linear controller, an actor."""

    init: Init
    act: Act


class RecurrentPolicy(NamedTuple):
    """A policy with a memory of its own, for example a recurrent network; it goes wherever a `Policy` does."""

    init: Init
    start: Start
    act: ActRecurrently


AnyPolicy = Policy | RecurrentPolicy


class StepPolicy(NamedTuple):
    """What acts on the steps of an environment, with whatever it has to remember: what `rollout` unrolls."""

    start: Start
    act: ActOnStep


class Agent(NamedTuple):
    """A world model and the policy that reads its features: the one bundle that acts, dreams, is evaluated and stored.

    Jitted functions take it as static and tell agents apart by identity, so make it once: `make` of both systems
    returns the same agent for equal arguments.
    """

    model: LatentModel  # of the environment
    policy: AnyPolicy  # reads `model.features`


class AgentParams(NamedTuple):
    """The parameters of an `Agent`, and where its dreams begin."""

    model: Params  # of the `LatentModel`
    policy: Params  # of the policy; a population is stacked [N, ...]
    starts: PyTree = ()  # [S, ...] embeddings of real first observations, as `LatentModel.encode` returns them


def _document(contract: Any) -> None:
    """Let `help` show the call of every field, as its Protocol documents it."""
    for field, kind in contract.__annotations__.items():
        if getattr(kind, "_is_protocol", False):
            arguments = list(inspect.signature(kind.__call__).parameters)[1:]
            call = f"{field}({', '.join(arguments)})"
            getattr(contract, field).__doc__ = f"{call}\n\n{inspect.getdoc(kind.__call__)}"
        elif kind is EnvSpec:
            getattr(contract, field).__doc__ = "`EnvSpec`: the spaces of observations and actions, and the step limit."


def _document_data(kind: Any) -> None:
    """Let `help` show what the comment behind every field says."""
    for field, comment in re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(kind), re.MULTILINE):
        getattr(kind, field).__doc__ = comment


for _contract in (Environment, LatentModel, Policy, RecurrentPolicy, StepPolicy):
    _document(_contract)
for _data in (EnvSpec, Step, Outcome, Agent, AgentParams):
    _document_data(_data)
