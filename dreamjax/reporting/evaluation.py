"""Evaluate a trained DreamerV3 agent on episodes that no training saw: scores and open-loop predictions."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.wrappers import TimeLimit

from dreamjax import dream, rollout
from dreamjax.acting.play import Played, play, returns
from dreamjax.dreamerv3 import codec, learner, model
from dreamjax.dreamerv3.model import Dreamer, DreamerParams, ModelParams
from dreamjax.reporting import curves, films
from dreamjax.rollout import AgentState, Transition
from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.storage.progress import progress
from dreamjax.types import Array, Key

FIRST_SEED = 2**31 - 10**6  # of the episodes to evaluate in; training draws its own below 2 ** 30
OBSERVED, LENGTH = 5, 50  # steps of an open-loop prediction that are seen, and all of them
FILMED = 6  # episodes
FILM_STEPS = 250  # of an episode, at most


class Trained(NamedTuple):
    """A trained agent, and its environment with actions rescaled to [-1, 1]."""

    dreamer: Dreamer
    params: DreamerParams
    make: Callable[[], gymnasium.Env]


class Predictions(NamedTuple):
    """Open-loop predictions in evaluation episodes."""

    seen: Mapping[str, np.ndarray]  # [N, T, ...] of each part of the observation, what there was
    predicted: Mapping[str, np.ndarray]  # [N, T, ...] what the model predicted
    errors: Mapping[str, Mapping[str, np.ndarray]]  # of each part: mean errors [T], by what predicted


def newest(folder: Path, dreamer: Dreamer) -> tuple[int, DreamerParams]:
    """Read the parameters of a run's newest checkpoint, and the number of its update.

    Raises: FileNotFoundError if there is none, ValueError if they are those of another agent.
    """
    like = jax.eval_shape(partial(learner.init, dreamer), jax.random.key(0))
    found = Checkpoints(folder / "checkpoints").restore(like) if (folder / "checkpoints").exists() else None
    if found is None:
        raise FileNotFoundError(f"there is no checkpoint in {folder}: train first")
    updates, state = found
    return updates, state.params


def evaluate(trained: Trained, key: Key, episodes: int, path: Path) -> np.ndarray:
    """Play fresh episodes, eight at once, with actions drawn as in training, as published; their returns.

    Each episode has its own seed, and all of them count, so short ones count no more than long ones. They are noted in
    the file at `path`; what is there is not played again. Shapes: -> [episodes].
    """
    seeds = [FIRST_SEED + i for i in range(episodes)]
    return returns(path, seeds, "evaluate", partial(_play, trained, key, trained.make, games=min(8, episodes)))


def predict(trained: Trained, key: Key) -> Predictions | None:
    """Predict pieces of fresh episodes, one after the other, from the actions alone, after `OBSERVED` seen steps.

    The first episodes of `evaluate` are cut into pieces of `LENGTH` steps, or of as many as half of the episodes have.
    Errors are means over all pieces, of the model and of what was last seen, repeated. Of every episode that is long
    enough for one, the middle piece is returned. None if half of the episodes are no longer than what is seen.
    """
    seeds = [FIRST_SEED + i for i in range(FILMED)]
    played = _play(trained, key, lambda: TimeLimit(trained.make(), FILM_STEPS), seeds, games=FILMED, film=seeds)
    in_order = sorted(progress(played, "film", unit="episode"), key=lambda episode: episode.seed)
    recorded = [episode.recorded for episode in in_order if episode.recorded]
    lengths = sorted(len(episode.step.is_first) for episode in recorded)
    length, longest = min(LENGTH, lengths[(len(lengths) - 1) // 2]), lengths[-1]
    if length <= OBSERVED:
        return None
    agent, params = model.agent(trained.dreamer), model.agent_params(trained.params)
    world, nothing = agent.model, rollout.start(agent, params)
    follow, look = jax.jit(partial(dream.open_loop, world)), _look(trained)

    shown, errors = [], []
    for number, episode in enumerate(progress(recorded, "predict", unit="episode")):
        key_follow, key_look = jax.random.split(jax.random.fold_in(key, number))
        steps = len(episode.step.is_first)
        whole = jax.tree.map(lambda x: np.pad(x, [(0, longest - len(x))] + [(0, 0)] * (x.ndim - 1)), episode)
        memory = AgentState(follow(params.model, key_follow, nothing, whole, steps), whole.action)
        begins = range(0, steps - length + 1, length)
        for begin in begins:
            before = jax.tree.map(lambda x, t=begin: x[max(t - 1, 0)], memory)  # forgotten if the episode begins here
            piece = jax.tree.map(lambda x, t=begin: x[t : t + length], whole)
            seen, predicted, wrong = jax.device_get(
                look(params.model, jax.random.fold_in(key_look, begin), before, piece)
            )
            errors.append(wrong)
            if begin == begins[len(begins) // 2]:
                shown.append((seen, predicted))
    seen, predicted = jax.tree.map(lambda *x: np.stack(x), *shown)
    return Predictions(seen, predicted, jax.tree.map(lambda *x: np.mean(x, 0), *errors))


def write_predictions(folder: Path, dreamer: Dreamer, predictions: Predictions) -> list[str]:
    """Write a film of each kind of picture, and a plot of the errors by step; return the names of the files."""
    names = []
    for name, space in dreamer.observation:
        if codec.is_image(space):
            both = predictions.seen[name], predictions.predicted[name]
            names += films.write_open_loop(folder, f"open_loop_{name.replace('/', '_')}", *both, OBSERVED)
    curves.horizon_errors(predictions.errors, OBSERVED, folder / "open_loop_errors.png")
    return [*names, "open_loop_errors.png"]


def _play(
    trained: Trained, key: Key, make: Callable[[], gymnasium.Env], seeds: list[int], **settings: Any
) -> Iterator[Played]:
    agent, params = model.agent(trained.dreamer), model.agent_params(trained.params)
    return play(make, agent.model, agent.policy, (params.model, params.policy), key, seeds, **settings)


def _look(trained: Trained) -> Callable:
    """One jitted call that predicts a piece of an episode, and says how far it and a repeated picture are off."""
    dreamer, world = trained.dreamer, model.agent(trained.dreamer).model
    distances = partial(codec.distances, dreamer.cfg.codec, dreamer.observation)

    def look(params: ModelParams, key: Key, memory: AgentState, piece: Transition) -> tuple[dict, dict, dict]:
        states = dream.open_loop(world, params, key, memory, piece, OBSERVED)
        seen = dreamer.observation_by_name(piece.step.observation)
        predicted = dreamer.observation_by_name(jax.vmap(partial(world.decode, params))(states))
        last = jnp.minimum(jnp.arange(len(piece.step.is_first)), OBSERVED - 1)
        repeated = {name: x[last] for name, x in seen.items()}
        ours, still = distances(predicted, seen), distances(repeated, seen)
        errors: dict[str, dict[str, Array]] = {
            name: {"model": ours[name], "repeating the last seen": still[name]} for name in ours
        }
        return seen, predicted, errors

    return jax.jit(look)
