"""Open-loop predictions of a trained agent in episodes that no training saw: filter a few steps, then predict."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import dream, rollout
from dreamjax.acting import seeds
from dreamjax.acting.evaluation import play_all
from dreamjax.distributions import symlog
from dreamjax.dreamerv3.codec import is_image, leaves_by_name, with_channels
from dreamjax.reporting import curves, films
from dreamjax.rollout import AgentState, Transition
from dreamjax.storage.progress import progress
from dreamjax.types import Agent, AgentParams, Array, Key, Space

OBSERVED, LENGTH = 5, 50  # steps of a prediction that are filtered, and all of them
EPISODES = 6  # that are predicted
CAPTION = f"The model filters {OBSERVED} steps (green); from there on it predicts open-loop, from actions alone."
MAX_STEPS = 250  # of an episode


class Predictions(NamedTuple):
    """Open-loop predictions, by the name of each part of the observation."""

    seen: Mapping[str, np.ndarray]  # [N, T, ...] what there was; pictures with a channel, [N, T, H, W, C]
    predicted: Mapping[str, np.ndarray]  # [N, T, ...] what the model predicted
    errors: Mapping[str, Mapping[str, np.ndarray]]  # of each part: mean errors [T], by what predicted


def predict(agent: Agent, params: AgentParams, make_env: Callable[[], gymnasium.Env], key: Key) -> Predictions | None:
    """Predict pieces of test episodes, one after the other, from the actions alone, after `OBSERVED` filtered steps.

    The first episodes are cut into pieces of `LENGTH` steps, or of as many as half of the episodes have. Errors are
    means over all pieces, of the model and of what was seen last, repeated. Of every episode that is long enough for
    one, the middle piece is returned. None if half of the episodes are no longer than what is filtered.

    Shapes: as in `Predictions`. Source: Hafner et al. 2023, figure 4.
    """
    spec = agent.model.spec
    short = Agent(agent.model._replace(spec=spec._replace(max_steps=min(MAX_STEPS, spec.max_steps))), agent.policy)
    played = play_all(short, params, make_env, seeds.test(EPISODES), key, workers=0, record=True)
    in_order = sorted(progress(played, "predict", unit="episode"), key=lambda episode: episode.seed)
    recorded = [episode.recorded for episode in in_order if episode.recorded]
    lengths = sorted(len(episode.step.is_first) for episode in recorded)
    length, longest = min(LENGTH, lengths[(len(lengths) - 1) // 2]), lengths[-1]
    if length <= OBSERVED:
        return None
    nothing = rollout.start(agent, params)
    follow = jax.jit(partial(dream.open_loop, agent.model))
    shown, errors = [], []
    for number, episode in enumerate(recorded):
        key_follow, key_look = jax.random.split(jax.random.fold_in(key, number))
        steps = len(episode.step.is_first)
        whole = jax.tree.map(lambda x: np.pad(x, [(0, longest - len(x))] + [(0, 0)] * (x.ndim - 1)), episode)
        states = AgentState(follow(params.model, key_follow, nothing, whole, steps), whole.action)
        begins = range(0, steps - length + 1, length)
        for begin in begins:
            before = jax.tree.map(lambda x, t=begin: x[max(t - 1, 0)], states)  # forgotten if the episode begins here
            piece = jax.tree.map(lambda x, t=begin: x[t : t + length], whole)
            one = jax.random.fold_in(key_look, begin)
            seen, predicted, wrong = jax.device_get(_predict_piece(agent, params, one, before, piece))
            errors.append(wrong)
            if begin == begins[len(begins) // 2]:
                shown.append((seen, predicted))
    seen, predicted = jax.tree.map(lambda *x: np.stack(x), *shown)
    return Predictions(seen, predicted, jax.tree.map(lambda *x: np.mean(x, 0), *errors))


def write_predictions(folder: Path, predictions: Predictions) -> list[str]:
    """Write a film of each kind of picture, and a plot of the errors by step; return the names of the files."""
    names = []
    for name, seen in predictions.seen.items():
        if is_image(Space(seen.shape[2:], seen.dtype, 0, 256)):
            both = seen, predictions.predicted[name]
            names += films.write_open_loop(folder, f"open_loop_{name.replace('/', '_')}", *both, OBSERVED)
    curves.horizon_errors(predictions.errors, OBSERVED, folder / "open_loop_errors.png")
    return [*names, "open_loop_errors.png"]


@partial(jax.jit, static_argnames=("agent", "name"))
def one_step_error(agent: Agent, params: AgentParams, keys: Key, recorded: Transition, name: str, mask: Array) -> Array:
    """Return how far the next picture is from the one expected: squared, summed over it, averaged over `mask`.

    The likeliest next latent is decoded. This is twice the negative log likelihood of a Gaussian of deviation 1 around
    the expected picture, up to a constant, so that models with different latents can be compared.

    Shapes: keys [2], to observe and to imagine; recorded [E, T, ...], whose observation `name` is uint8 pictures;
    mask [E, T - 1] bool, which of the predicted steps count -> [] float32.
    """
    model, pictures = agent.model, recorded.step.observation[name]
    episodes, length = pictures.shape[:2]

    def expect(key_observe: Key, key_imagine: Key, episode: Transition) -> Array:
        begin = rollout.start(agent, params)
        states = dream.open_loop(model, params.model, key_observe, begin, episode, length)
        imagine = jax.vmap(model.imagine, (None, 0, 0, 0, None))
        following = imagine(params.model, jax.random.split(key_imagine, length), states, episode.action, 0.01)
        return jax.vmap(partial(model.decode, params.model))(following)[name][:-1]

    each = [jax.random.split(key, episodes) for key in keys]
    expected = jax.lax.map(lambda data: expect(*data), (*each, recorded))
    truth = pictures[:, 1:].astype(jnp.float32)
    error = jnp.square((truth - expected.astype(jnp.float32)) / 255).sum((2, 3, 4))
    return (error * mask).sum() / mask.sum()


@partial(jax.jit, static_argnums=0)
def _predict_piece(
    agent: Agent, params: AgentParams, key: Key, before: AgentState, piece: Transition
) -> tuple[dict[str, Array], dict[str, Array], dict[str, dict[str, Array]]]:
    """Predict a piece of an episode; also how far the prediction, and a repeated observation, are off by step."""
    model, spaces = agent.model, leaves_by_name(agent.model.spec.observation, "observation")
    states = dream.open_loop(model, params.model, key, before, piece, OBSERVED)
    seen = leaves_by_name(piece.step.observation, "observation")
    predicted = leaves_by_name(jax.vmap(partial(model.decode, params.model))(states), "observation")
    last = jnp.minimum(jnp.arange(len(piece.step.is_first)), OBSERVED - 1)
    errors = {
        name: {
            "model": _distance(space, predicted[name], seen[name]),
            "repeating the last seen": _distance(space, seen[name][last], seen[name]),
        }
        for name, space in spaces.items()
    }
    pictures = {name: space for name, space in spaces.items() if is_image(space)}
    channelled = lambda parts: parts | {name: with_channels(s, parts[name]) for name, s in pictures.items()}  # noqa: E731
    return channelled(seen), channelled(predicted), errors


def _distance(space: Space, x: Array, y: Array) -> Array:
    """Mean squared error of pictures in [0, 1] and of the symlog of vectors; the share of discrete values that differ.

    Shapes: [T, *space.shape] -> [T] float32.
    """
    if space.is_discrete and not is_image(space):
        apart = (x != y).astype(jnp.float32)
    else:
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
        x, y = (x / 255, y / 255) if is_image(space) else (symlog(x), symlog(y))
        apart = (x - y) ** 2
    return apart.mean(tuple(range(-len(space.shape), 0)))
