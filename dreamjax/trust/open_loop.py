"""Open-loop predictions: how far a dream has left the game, so many steps after it last saw it.

An agent's episodes are filtered, and cut into pieces. From the filtered state with which a piece begins, the model
dreams on with the actions that were taken, several times, and each dream is compared with what came. Errors are those
of single draws, since a dream is one, not of their mean:

    reward       absolute difference, in the unit of rewards, where the game went on
    goes on      how often dream and game disagree on whether the episode still goes on, which a dream does by the rule
                 of `dream.environment`: this is the error of its probability of going on, |p - what came|
    latent       mean squared difference to the filtered state, of every part of it: z and the state of M, or the
                 classes and the recurrent state of the RSSM, of whose classes it counts the share that differ
    observation  mean squared difference of pictures, and of the symlog of vectors; share of discrete values that differ

Latents and observations are divided by what lies between two episodes. So 0 is a perfect prediction, and 1 is what a
dream reaches that knows nothing of this episode, but looks like the game; above 1 it has left what there is in the
game. This is the scale for V's numbers and for classes alike. Errors of the same kind stand beside them:

    filtering        of a model that sees each step; for latents, between two filters that draw for themselves
    last seen        of what was there at the beginning of the piece
    another episode  of what another episode had at that step of a piece

A colder dream draws closer to the most probable, so that its single draws err less, without knowing more.

Source: Hafner et al. 2023, figure 4, for the predictions; the errors are ours.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import dream, rollout
from dreamjax.distributions import symlog
from dreamjax.dreamerv3.codec import is_image, leaves_by_name, with_channels
from dreamjax.rollout import AgentState, Transition
from dreamjax.types import Action, Agent, AgentParams, Array, Key, LatentModel, Params, PyTree, Space, State

CHUNK = 64  # steps that are filtered at once
FILTERING, LAST, OTHER = "filtering", "last seen", "another episode"


class Moment(NamedTuple):
    """What there is at a step, of a dream or the game."""

    reward: Array | np.ndarray  # [...]
    goes_on: Array | np.ndarray  # [...] bool, whether the episode has not ended so far
    latent: dict[str, Array]  # [..., *] the floating parts of a state, by name
    observation: dict[str, Array]  # [..., *]


class Piece(NamedTuple):
    """Pieces of an episode; P of them, of H steps after the one that each begins with, of which N are compared."""

    at: np.ndarray  # [P] step of the episode with which each begins
    begin: State  # [P, ...] filtered
    actions: Action  # [P, H, ...]
    first: Moment  # [P] with which they begin
    truth: Moment  # [P, N] that came
    filtered: Moment  # [P, N] what a second filter says, that saw it come
    known: np.ndarray  # [P, N] bool, whether the episode had such a step
    decided: np.ndarray  # [P, N] bool, whether it is known if it still goes on


def filtered(agent: Agent, params: AgentParams, key: Key, recorded: Transition) -> State:
    """Filter an episode twice, with draws of their own. Shapes: [T, ...] -> numpy [2, T, ...]."""
    count = len(recorded.step.is_first)
    start = rollout.start(agent, params)
    memory = AgentState(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start.latent), start.action)
    parts = []
    for number, begin in enumerate(range(0, count, CHUNK)):
        rows = np.minimum(np.arange(begin, begin + CHUNK), count - 1)
        chunk = jax.tree.map(lambda leaf, rows=rows: leaf[rows], recorded)
        states = _filter(agent.model, params.model, jax.random.fold_in(key, number), memory, chunk)
        memory = AgentState(
            jax.tree.map(lambda leaf: leaf[:, -1], states), jax.tree.map(lambda leaf: leaf[-1], chunk.action)
        )
        parts.append(jax.device_get(states))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves, 1)[:, :count], *parts)


def cut(
    agent: Agent,
    params: AgentParams,
    recorded: Transition,
    states: State,
    steps: Sequence[int],
    pieces: int,
    draw: float,
) -> Piece:
    """Cut an episode into pieces, one after the other, and take `pieces` of them.

    They are evenly spaced from a first that `draw`, in [0, 1), chooses, so that each is as likely as another. Where
    there are fewer, the last is repeated and marked as unknown. The `steps` after each beginning are compared.

    Shapes: recorded [T, ...], states [2, T, ...].
    """
    end, length, at = len(recorded.step.is_first) - 1, steps[-1], np.array(steps)
    whole = -(-end // length)
    chosen = np.arange(whole) if whole <= pieces else ((np.arange(pieces) + draw) * whole / pieces).astype(int)
    real = np.arange(pieces) < len(chosen)
    begins = length * chosen[np.minimum(np.arange(pieces), len(chosen) - 1)]
    reached = begins[:, None] + at  # [P, N]
    rows = np.minimum(begins[:, None] + np.arange(length + 1), end)  # [P, H + 1]
    first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in range(2))
    said: Moment = jax.device_get(_say(agent.model, params.model, jax.tree.map(lambda leaf: leaf[rows], second), at))
    observed = leaves_by_name(recorded.step.observation, "observation")
    pictured = {name: observed[name] for name in said.observation}  # as much as the model decodes
    seen = Moment(recorded.step.reward, np.ones(end + 1, bool), _floating(first), pictured)
    take = lambda tree, rows: jax.tree.map(lambda leaf: leaf[rows], tree)  # noqa: E731
    is_terminal = bool(recorded.step.is_terminal[-1])
    going = reached < end if is_terminal else reached <= end
    known = (reached <= end) & real[:, None]
    return Piece(
        begins,
        take(first, begins),
        take(recorded.action, rows[:, :-1]),
        take(seen, begins),
        take(seen, np.minimum(reached, end))._replace(goes_on=going),
        said,
        known,
        known | (real[:, None] & is_terminal),
    )


def compare(
    agent: Agent,
    params: AgentParams,
    key: Key,
    piece: Piece,
    temperatures: Sequence[float],
    steps: Sequence[int],
    samples: int,
) -> dict[str, dict[str, np.ndarray]]:
    """Dream the pieces of one episode: errors [N] by what predicted, by quantity; NaN where the episode tells nothing.

    Each is the mean over the pieces of the episode, and over `samples` dreams of each.
    """
    spec = agent.model.spec
    dreams = _dream(
        agent.model, samples, params.model, key, jnp.array(temperatures, jnp.float32), piece, np.array(steps)
    )
    still = jax.tree.map(lambda leaf: leaf[:, None], piece.first)
    apart = partial(_distances, spec.observation)
    found = {LAST: apart(still, piece.truth), FILTERING: apart(piece.filtered, piece.truth)}
    errors: dict[str, dict[str, np.ndarray]] = {name: {} for name in dreams}
    for name, by_temperature in jax.device_get(dreams).items():
        for i, temperature in enumerate(temperatures):
            errors[name][dream_at(temperature)] = averaged(by_temperature[:, i], piece, name)
        for label, values in found.items():
            errors[name][label] = averaged(np.asarray(values[name]), piece, name)
    return errors


def between(agent: Agent, pieces: Sequence[Piece], others: int) -> list[dict[str, np.ndarray]]:
    """How far the pieces of each episode lie from those of some others: errors [N] of each episode, by quantity."""
    found = []
    for number, piece in enumerate(pieces):
        errors = []
        for shift in range(1, 1 + min(others, len(pieces) - 1)):
            other = pieces[(number + shift) % len(pieces)]
            apart = jax.device_get(_distances(agent.model.spec.observation, other.truth, piece.truth))
            both = piece._replace(known=piece.known & other.known, decided=piece.decided & other.decided)
            errors.append({name: averaged(values, both, name) for name, values in apart.items()})
        found.append({name: _mean(np.stack([one[name] for one in errors])) for name in errors[0]})
    return found


def pictured(
    agent: Agent, params: AgentParams, key: Key, recorded: Transition, piece: Piece
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Picture the middle one of the pieces that the episode does not end in, as it was and as one dream has it.

    Shapes: recorded [T, ...] -> uint8 [H + 1, rows, columns, channels] of each kind of picture, of which the first is
    what the filter makes of the last that it saw; nothing if there are neither such pieces nor pictures.
    """
    whole = np.flatnonzero(piece.known[:, -1])
    spaces = leaves_by_name(agent.model.spec.observation, "observation")
    pictures = {name: space for name, space in spaces.items() if is_image(space)}
    if not len(whole) or not pictures:
        return {}
    middle = whole[len(whole) // 2]
    begin, actions = (jax.tree.map(lambda leaf: leaf[middle], part) for part in (piece.begin, piece.actions))
    decoded = jax.device_get(_picture(agent.model, params.model, key, begin, actions))
    rows = piece.at[middle] + np.arange(len(jax.tree.leaves(decoded)[0]))
    seen, dreamt = (leaves_by_name(one, "observation") for one in (recorded.step.observation, decoded))
    return {
        name: (np.asarray(with_channels(space, seen[name][rows])), np.asarray(with_channels(space, dreamt[name])))
        for name, space in pictures.items()
        if name in dreamt
    }


def dream_at(temperature: float) -> str:
    """Name what is dreamed at a temperature."""
    return f"dream@{temperature:.2f}"


def averaged(errors: np.ndarray, piece: Piece, name: str) -> np.ndarray:
    """Average over the pieces that tell something. Shapes: [P, N] -> [N], NaN where none does."""
    return _mean(np.where(piece.decided if name == "goes on" else piece.known, errors, np.nan))


def _mean(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)


@partial(jax.jit, static_argnums=0)
def _filter(model: LatentModel, params: Params, key: Key, memory: AgentState, chunk: Transition) -> State:
    follow = partial(dream.open_loop, model)
    once = lambda key, latent: follow(params, key, memory._replace(latent=latent), chunk, CHUNK)  # noqa: E731
    return jax.vmap(once)(jax.random.split(key), memory.latent)


@partial(jax.jit, static_argnums=0)
def _picture(model: LatentModel, params: Params, key: Key, begin: State, actions: Action) -> PyTree:
    states = dream.imagine_actions(model, params, key, begin, actions).states
    return jax.vmap(partial(model.decode, params))(states)


@partial(jax.jit, static_argnums=0)
def _say(model: LatentModel, params: Params, states: State, at: Array) -> Moment:
    """What a model says in states [P, H + 1, ...], of the steps `at` [N] after the first. Shapes: -> [P, N]."""
    return jax.vmap(partial(_moments, model, params, at))(states)


def _moments(model: LatentModel, params: Params, at: Array, states: State) -> Moment:
    """Shapes: states [H + 1, ...] -> [N]."""
    outcome = jax.vmap(partial(model.outcome, params))(states)
    goes_on = jnp.cumprod((outcome.continues[1:] >= 0.5).astype(jnp.int32)).astype(bool)
    there = jax.tree.map(lambda leaf: leaf[at], states)
    decoded = jax.vmap(partial(model.decode, params))(there)
    return Moment(outcome.reward[at], goes_on[at - 1], _floating(there), leaves_by_name(decoded, "observation"))


@partial(jax.jit, static_argnums=(0, 1))
def _dream(
    model: LatentModel, samples: int, params: Params, key: Key, temperatures: Array, piece: Piece, at: Array
) -> dict[str, Array]:
    """Errors of dreams, averaged over `samples` of each. Shapes: -> [P, temperatures, N] of each quantity."""

    def once(key: Key, temperature: Array, begin: State, actions: Action, truth: Moment) -> dict[str, Array]:
        states = dream.imagine_actions(model, params, key, begin, actions, temperature).states
        return _distances(model.spec.observation, _moments(model, params, at, states), truth)

    over_samples = jax.vmap(once, (0, None, None, None, None))
    over_temperatures = jax.vmap(over_samples, (0, 0, None, None, None))
    keys = jax.random.split(key, (len(piece.known), len(temperatures), samples))
    errors = jax.vmap(over_temperatures, (0, None, 0, 0, 0))(
        keys, temperatures, piece.begin, piece.actions, piece.truth
    )
    return jax.tree.map(lambda leaf: leaf.mean(2), errors)


def _distances(spaces: PyTree, x: Moment, y: Moment) -> dict[str, Array]:
    """How far moments [...] are apart. Shapes: -> [...] float32 of each quantity."""
    apart = {"reward": jnp.abs(x.reward - y.reward), "goes on": (x.goes_on != y.goes_on).astype(jnp.float32)}
    lead = y.reward.ndim
    for name, latent in y.latent.items():
        squared = (jnp.asarray(x.latent[name], jnp.float32) - jnp.asarray(latent, jnp.float32)) ** 2
        apart[_named("latent", name)] = squared.mean(tuple(range(lead, squared.ndim)))
    for name, space in leaves_by_name(spaces, "observation").items():
        if name not in y.observation:
            continue
        apart[_named("observation", name)] = _distance(space, x.observation[name], y.observation[name])
    return apart


def _named(kind: str, name: str) -> str:
    return kind if name == kind else f"{kind} {name}"


def _floating(state: State) -> dict[str, Any]:
    parts: Mapping[str, Any] = leaves_by_name(state, "latent")
    return {name: part for name, part in parts.items() if jnp.issubdtype(part.dtype, jnp.floating)}


def _distance(space: Space, x: Array, y: Array) -> Array:
    """Mean squared error of pictures in [0, 1] and of the symlog of vectors; the share of discrete values that differ.

    Shapes: [..., *space.shape] -> [...] float32.
    """
    if space.is_discrete and not is_image(space):
        apart = (x != y).astype(jnp.float32)
    else:
        x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
        x, y = (x / 255, y / 255) if is_image(space) else (symlog(x), symlog(y))
        apart = (x - y) ** 2
    return apart.mean(tuple(range(-len(space.shape), 0)))
