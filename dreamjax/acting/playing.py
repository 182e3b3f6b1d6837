"""Playing whole episodes in host environments: workers step, the device acts in batches for all that are ready."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import checks, rollout
from dreamjax.acting.pool import BATCH, Pool
from dreamjax.acting.worker import Order, Reply
from dreamjax.envs.host import flatten
from dreamjax.rollout import Returns, Transition
from dreamjax.types import Action, Agent, AgentParams, Key, PyTree, Space, State, Step

_ADAPT = ". Make it as in training; with its `resize`: functools.partial(dreamjax.envs.adapted, make_env, resize=...)"
ATTEMPTS = 3  # at an episode whose environment raises, or whose worker dies or hangs, before giving up


class Request(NamedTuple):
    """An episode to play."""

    seed: int  # that the environment is reset with
    policy: int = 0  # which row of the policies plays it


class Played(NamedTuple):
    """An episode that was played to its end."""

    request: int  # its number
    seed: int
    total: float  # sum of rewards
    steps: int  # actions taken
    terminated: bool  # ended by itself, not by a time limit
    info: Mapping[str, float]  # finite numbers that came with its last step
    recorded: Transition | None  # [steps + 1, ...] what arrived and what was done then; the last action is zero


def play(
    pool: Pool,
    agent: Agent,
    params: AgentParams,
    key: Key,
    requests: Iterable[Request],
    *,
    record: bool | Callable[[Request], bool] = False,
    rounded: bool = False,
    max_steps: int | None = None,
) -> Iterator[Played]:
    """Play the episodes of all requests, as many at once as the pool has environments; yield each that ends.

    `params.policy` is stacked [N, ...], a row for each policy. An episode depends on the parameters, its request and
    `key`, not on what is played beside it, nor on how many environments or workers there are. An episode whose
    environment raises, or whose worker dies or hangs, begins again. Requests are taken when an environment is free for
    them, so they may depend on what was yielded before. One play uses a pool at a time; one that was left in the middle
    may be followed by another.

    Args:
      record: whether to keep what was seen and done, or which requests to keep it of.
      rounded: clip continuous actions to their bounds and round them to float16 before they are taken, so that half
        the bytes store what was really done.
      max_steps: truncate episodes here; that of `agent.model.spec` if not given.

    Raises: ValueError if the agent was made for other spaces, policies are not stacked, or a request is for one that is
        not among them; RuntimeError if an episode fails three times, or if another play has begun in the pool;
        InvalidStep for observations other than declared.
    """
    spec = agent.model.spec
    checks.same_spaces(spec, pool.spec(spec.max_steps), _ADAPT)
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps must be 1 or more, got {max_steps}")
    use = pool.begin()
    params, count = AgentParams(params.model, params.policy), checks.population(params.policy)
    first = AgentParams(params.model, jax.tree.map(lambda leaf: leaf[0], params.policy))
    memory = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], pool.size, 0), rollout.start(agent, first))
    settings = _Settings(
        agent.model.spec.action,
        record if callable(record) else lambda request: record,
        rounded,
        agent.model.spec.max_steps if max_steps is None else max_steps,
    )
    act = partial(_act, agent, params, key)
    waiting = enumerate(_known(requests, count))
    groups = [_Group(pool, number, memory, settings) for number in range(pool.groups)]
    for group in groups:
        group.begin(waiting)
    while any(group.busy for group in groups):
        if pool.use != use:
            raise RuntimeError("another play has begun in this pool; finish one first, or use a pool for each")
        for answer in pool.receive():
            yield from groups[answer.group].advance(act, waiting, answer.reply)


def _known(requests: Iterable[Request], count: int) -> Iterator[Request]:
    """Yield the requests, if they are for policies that there are: compiled programs take the nearest instead."""
    for request in requests:
        if not 0 <= request.policy < count:
            raise ValueError(
                f"{request} is for policy {request.policy}, but there are {count}: the rows of params.policy"
            )
        yield request


@checks.arguments
def evaluate_population(
    pool: Pool, agent: Agent, params: AgentParams, key: Key, seeds: np.ndarray, max_steps: int | None = None
) -> Returns:
    """Play the episodes `seeds` [N, E] with a population, `params.policy` [N, ...]. Shapes: -> [N, E].

    Raises: ValueError if there is not a row of seeds for every policy; as `play` does.
    """
    seeds = np.asarray(seeds)
    count = checks.population(params.policy)
    if seeds.ndim != 2 or len(seeds) != count:
        raise ValueError(f"seeds must be [N, E], a row for each of {count} policies, got {list(seeds.shape)}")
    requests = [Request(int(seed), policy) for policy, row in enumerate(seeds) for seed in row]
    total, steps = np.zeros(seeds.size, np.float32), np.zeros(seeds.size, np.int32)
    for played in play(pool, agent, params, key, requests, max_steps=max_steps):
        total[played.request], steps[played.request] = played.total, played.steps
    return Returns(jnp.array(total.reshape(seeds.shape)), jnp.array(steps.reshape(seeds.shape)))


class _Rows(NamedTuple):
    """Which environments of a group act, and for what."""

    environment: np.ndarray  # [R]
    policy: np.ndarray  # [R]
    seed: np.ndarray  # [R] uint32
    steps: np.ndarray  # [R] so far
    reward: np.ndarray  # [R] float32


@partial(jax.jit, static_argnums=0)
def _act(
    agent: Agent, params: AgentParams, key: Key, memories: State, observation: PyTree, rows: _Rows
) -> tuple[State, Action]:
    """Act in R of the environments of a group. Shapes: memories [K, ...], observation [R, ...] -> actions [R, ...]."""
    fold = jax.random.fold_in
    keys = jax.vmap(lambda seed, step: fold(fold(key, seed), step))(rows.seed, rows.steps)
    no = jnp.zeros(len(rows.steps), bool)
    step = Step(observation, jnp.asarray(rows.reward), jnp.asarray(rows.steps == 0), no, no)
    is_one = all(leaf.shape[0] == 1 for leaf in jax.tree.leaves(params.policy))  # then all multiply by one matrix
    policy = jax.tree.map(lambda leaf: leaf[0 if is_one else rows.policy], params.policy)
    act = jax.vmap(rollout.step_policy(agent, params.model).act, (None if is_one else 0, 0, 0, 0))
    after, action = act(policy, keys, jax.tree.map(lambda leaf: leaf[rows.environment], memories), step)
    return jax.tree.map(lambda leaf, new: leaf.at[rows.environment].set(new), memories, after), action


class _Settings(NamedTuple):
    action: PyTree  # of `Space`
    record: Callable[[Request], bool]
    rounded: bool
    max_steps: int


class _Group:
    """The episodes under way in the environments of a group, and what the agent remembers of them."""

    def __init__(self, pool: Pool, number: int, memories: State, settings: _Settings) -> None:
        size = pool.size
        self._pool, self._number, self._memories, self._settings = pool, number, memories, settings
        self._playing: list[tuple[int, Request] | None] = [None] * size
        self._opening, self._recording = np.zeros(size, bool), np.zeros(size, bool)
        self._failures, self._steps, self._totals = np.zeros(size, int), np.zeros(size, np.int32), np.zeros(size)
        self._seen: list[list[Step]] = [[] for _ in range(size)]
        self._done: list[list[Action]] = [[] for _ in range(size)]

    @property
    def busy(self) -> bool:
        return any(playing is not None for playing in self._playing)

    def begin(self, waiting: Iterator[tuple[int, Request]]) -> None:
        """Open as many episodes as there are environments."""
        self._send([self._open(i, next(waiting, None)) for i in range(len(self._playing))])

    def advance(
        self,
        act: Callable[[State, PyTree, _Rows], tuple[State, Action]],
        waiting: Iterator[tuple[int, Request]],
        reply: Reply,
    ) -> Iterator[Played]:
        """Take in what arrived, yield the episodes that ended, and order what comes next."""
        orders: list[Order] = [None] * len(self._playing)
        ended, observation = [], self._pool.observation(self._number)
        for i, playing in enumerate(self._playing):
            if playing is None:
                continue
            if i in reply.errors:
                self._fail(i, playing, reply.errors[i])
                orders[i] = self._open(i, playing)
                continue
            is_last, is_terminal = self._arrive(i, reply)
            if self._recording[i]:
                now = jax.tree.map(lambda array, i=i: array[i].copy(), observation)
                flags: Any = (np.float32(reply.reward[i]), self._steps[i] == 0, is_last, is_terminal)
                self._seen[i].append(Step(now, *flags))
            if is_last:
                ended.append((i, playing, is_terminal, reply.info.get(i, {})))
        for one in ended:
            yield self._played(*one)
        for i, *_ in ended:
            self._failures[i] = 0
            orders[i] = self._open(i, next(waiting, None))
        acting = [i for i, one in enumerate(self._playing) if one is not None and orders[i] is None]
        if acting:
            for i, leaves in zip(acting, self._choose(act, acting, observation, reply.reward), strict=True):
                orders[i] = leaves
        self._send(orders)

    def _open(self, i: int, playing: tuple[int, Request] | None) -> Order:
        """Give an environment an episode, from its beginning, or none; return the order."""
        self._playing[i], self._steps[i], self._totals[i] = playing, 0, 0.0
        self._seen[i], self._done[i] = [], []
        self._opening[i] = playing is not None
        if playing is None:
            return None
        self._recording[i] = self._settings.record(playing[1])
        return int(playing[1].seed)

    def _arrive(self, i: int, reply: Reply) -> tuple[bool, bool]:
        """Count the step that an environment came to; say whether it is the last, and whether it is terminal."""
        if self._opening[i]:
            self._opening[i] = False
            return False, False
        self._steps[i] += 1
        self._totals[i] += reply.reward[i]
        is_terminal = bool(reply.is_terminal[i])
        return bool(is_terminal or reply.truncated[i] or self._steps[i] >= self._settings.max_steps), is_terminal

    def _choose(
        self, act: Callable[..., tuple[State, Action]], acting: list[int], observation: PyTree, reward: np.ndarray
    ) -> Iterator[list[np.ndarray]]:
        """Let the agent act; return the leaves of each action."""
        batches = []
        for begin in range(0, len(acting), BATCH):
            rows = np.resize(acting[begin : begin + BATCH], BATCH)  # where fewer act, some fill several rows
            requests = [playing[1] for playing in (self._playing[i] for i in rows) if playing is not None]
            policy, seed = np.array([request.policy for request in requests]), np.array([r.seed for r in requests])
            seen = jax.tree.map(lambda array, rows=rows: array[rows], observation)
            who = _Rows(rows, policy, seed.astype(np.uint32), self._steps[rows], reward[rows])
            self._memories, actions = act(self._memories, seen, who)
            batches.append(actions)
        chosen = jax.tree.map(lambda *leaves: np.concatenate(leaves), *jax.device_get(batches))
        if self._settings.rounded:
            chosen = jax.tree.map(_rounded, self._settings.action, chosen)
        for row, i in enumerate(acting):
            action = jax.tree.map(lambda leaf, row=row: leaf[row], chosen)
            if self._recording[i]:
                self._done[i].append(action)
            yield flatten(self._pool.action_space, action, "action")

    def _fail(self, i: int, playing: tuple[int, Request], error: Exception) -> None:
        self._failures[i] += 1
        if self._failures[i] == ATTEMPTS:
            seed = playing[1].seed
            raise RuntimeError(f"the episode of seed {seed} failed {ATTEMPTS} times, at last with: {error}") from error

    def _played(self, i: int, playing: tuple[int, Request], is_terminal: bool, info: Mapping[str, float]) -> Played:
        number, request = playing
        recorded = None
        if self._recording[i]:
            actions = [*self._done[i], jax.tree.map(np.zeros_like, self._done[i][-1])]
            recorded = jax.tree.map(lambda *leaves: np.stack(leaves), *map(Transition, self._seen[i], actions))
        total, steps = float(self._totals[i]), int(self._steps[i])
        return Played(number, request.seed, total, steps, is_terminal, info, recorded)

    def _send(self, orders: list[Order]) -> None:
        if any(order is not None for order in orders):
            self._pool.send(self._number, orders)


def _rounded(space: Space, action: np.ndarray) -> np.ndarray:
    if space.is_discrete:
        return action
    return np.clip(action, space.low_array, space.high_array).astype(np.float16).astype(space.dtype)
