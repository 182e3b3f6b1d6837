"""Films of an agent: what it dreams, what it sees in the real environment, and what it expects to see there."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np

from dreamjax import dream
from dreamjax.acting import seeds
from dreamjax.acting.evaluation import play_all, record_episode
from dreamjax.acting.process import draw_without_screen
from dreamjax.envs.host import InvalidStep
from dreamjax.reporting import videos
from dreamjax.reporting.pages import Section
from dreamjax.types import Agent, AgentParams, Array, Key, PyTree

_SEEN, _IMAGINED = (0, 158, 115), (213, 94, 0)  # borders
_BORDER = 3  # pixels
_PAUSE = 10  # black frames at the end
_FILMED = 1000  # steps of an episode on a page


class CannotFilm(InvalidStep):
    """An environment shows nothing to film."""


def film(
    path: str | os.PathLike[str],
    agent: Agent,
    params: AgentParams,
    make_env: Callable[[], gymnasium.Env],
    episodes: int = 1,
    seed: int = 0,
    fps: float | None = None,
    *,
    max_steps: int | None = None,
) -> list[float]:
    """Film an agent in test episodes, one after the other, in an `.mp4`; return the sum of rewards of each.

    The film shows what the environment renders, if its `render_mode` is "rgb_array", and otherwise the picture that it
    observes, at the environment's own rate unless `fps` is given. `seed` seeds the agent's draws. Episodes are
    truncated at `max_steps`, if given.

    Raises: CannotFilm, before anything is played, if there is neither, or the environment cannot render.
    """
    spec = agent.model.spec
    short = spec._replace(max_steps=spec.max_steps if max_steps is None else min(max_steps, spec.max_steps))
    agent = Agent(agent.model._replace(spec=short), agent.policy)
    draw_without_screen()
    with make_env() as env:
        rate = fps or _rate(env)
        _picture(env, env.reset(seed=seeds.TEST[0])[0])
    with videos.video_writer(path, rate) as write:
        watched = partial(_Watched, make_env, write)
        played = play_all(agent, params, watched, seeds.test(episodes), jax.random.key(seed), envs=1, workers=0)
        return [episode.total for episode in played]


def film_section(
    folder: Path, agent: Agent, params: AgentParams, make_env: Callable[[], gymnasium.Env], seed: int
) -> list[Section]:
    """Film the first test episode for the page of a run, at most 1,000 steps; where that is impossible, print why."""
    try:
        film(folder / "episode.mp4", agent, params, make_env, seed=seed, max_steps=_FILMED)
    except CannotFilm as error:
        print(f"No film of an episode: {error}")
        return []
    return [Section("The agent at play", "In the first test episode.", ["episode.mp4"])]


class _Watched(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Write every picture of an environment."""

    def __init__(self, make_env: Callable[[], gymnasium.Env], write: Callable[[np.ndarray], None]) -> None:
        super().__init__(make_env())
        self._write = write

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._write(_picture(self.env, observation))
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, *rest = self.env.step(action)
        self._write(_picture(self.env, observation))
        return observation, *rest


def _rate(env: gymnasium.Env) -> float:
    return env.metadata.get("render_fps") or 30


def _picture(env: gymnasium.Env, observation: Any) -> np.ndarray:
    """Return what an environment shows, enlarged if it is small. Shapes: -> uint8 [H, W, 3]."""
    pictures = jax.tree.leaves(observation)
    if env.render_mode == "rgb_array":
        try:
            pictures = [env.render()]
        except Exception as error:
            raise CannotFilm(f"{env} cannot render: {error}") from error
    for picture in pictures:
        if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.ndim in (2, 3):
            factor, picture = max(1, 256 // len(picture)), np.atleast_3d(picture)
            colours = picture if picture.shape[2] == 3 else picture.mean(2, keepdims=True).astype(np.uint8)
            return np.broadcast_to(colours, (*picture.shape[:2], 3)).repeat(factor, 0).repeat(factor, 1)
    raise CannotFilm(f"{env} neither renders pictures (its render_mode is {env.render_mode!r}) nor observes one")


def film_dream(agent: Agent, params: AgentParams, key: Key, steps: int, temperature: float = 1.0) -> np.ndarray:
    """Film one dreamed episode, at most `steps` of it. Shapes: -> uint8 [T, H, W, C].

    Raises: ValueError if the observation does not hold exactly one picture.
    """
    continues, decoded = _dream(agent, params, key, steps, temperature)
    over = 1 + np.flatnonzero(np.asarray(continues[1:]) < 0.5)
    return np.asarray(_only_pictures(decoded)[: over[0] + 1 if len(over) else steps])


def _only_pictures(observed: PyTree) -> Any:
    """Find the pictures among what is observed in T steps. Shapes: [T, ...] -> [T, H, W, C].

    Raises: ValueError if there is not exactly one in each step.
    """
    leaves = [leaf for leaf in jax.tree.leaves(observed) if leaf.dtype == np.uint8 and leaf.ndim in (3, 4)]
    if len(leaves) != 1:
        raise ValueError(f"an observation of {len(leaves)} pictures cannot be filmed, only one of a single picture")
    return leaves[0].reshape(*leaves[0].shape[:3], -1)


@partial(jax.jit, static_argnames=("agent", "steps"))
def _dream(agent: Agent, params: AgentParams, key: Key, steps: int, temperature: Array | float) -> tuple[Array, PyTree]:
    key_reset, key_imagine = jax.random.split(key)
    model, learned = agent.model, params.model
    begin, _ = dream.environment(model, learned, params.starts, temperature).reset(key_reset)
    states = dream.imagine(agent, params, key_imagine, begin.latent, steps, temperature).states
    outcome = jax.vmap(partial(model.outcome, learned))(states)
    # A picture by itself leaves a processor with little to do; all at once may not fit the memory of a device.
    return outcome.continues, jax.lax.map(partial(model.decode, learned), states, batch_size=50)


def film_episode(
    agent: Agent, params: AgentParams, make_env: Callable[[], gymnasium.Env], seed: int, key: Key
) -> np.ndarray:
    """Film the real episode of a seed, as `acting.evaluate` plays it with the same key.

    Shapes: -> uint8 [T, H, W, C]. Raises: ValueError if the observation does not hold exactly one picture.
    """
    played = record_episode(agent, params, make_env, seed, key)
    assert played.recorded is not None  # it was asked for
    return _only_pictures(played.recorded.step.observation)


def write_films(folder: str | os.PathLike[str], panels: Mapping[str, np.ndarray], fps: float, name: str) -> None:
    """Write films side by side under their labels, `<name>.mp4`, and eight moments of each, a row each, `<name>.png`.

    Shapes: each film uint8 [T, H, W, 3], of any length.
    """
    large = [videos.upscale(panel, 5) for panel in panels.values()]
    videos.write_video(Path(folder) / f"{name}.mp4", videos.side_by_side(large, list(panels)), fps)
    moments = [panel[np.linspace(0, len(panel) - 1, 8).astype(int)] for panel in panels.values()]
    sheet = videos.contact_sheet(videos.upscale(np.concatenate(moments), 2), 8)
    videos.write_image(Path(folder) / f"{name}.png", sheet)


def film_dream_and_real(
    path: Path,
    agent: Agent,
    params: AgentParams,
    make_env: Callable[[], gymnasium.Env],
    key: Key,
    steps: int,
    temperature: float = 1.0,
    *,
    beside: Mapping[str, tuple[Agent, AgentParams]] | None = None,
) -> None:
    """Film a dream beside the first test episode, at most `steps` of each: an `.mp4`, and a `.png` of some moments.

    The episode is the first that `acting.evaluate` scores with the same key, not a chosen one. Other agents, by
    label, are filmed `beside` it in the same episode.

    Shapes: key [], params.policy not stacked, params.starts [S, ...]. Raises: as `film_episode` does.
    """
    with make_env() as env:
        rate = _rate(env)
    # Acting folds the seed of its episode into the key, which is never 0 in a test episode.
    panels = {"its dream": film_dream(agent, params, jax.random.fold_in(key, 0), steps, temperature)}
    for label, (other, parameters) in {"the real environment": (agent, params), **(beside or {})}.items():
        panels[label] = film_episode(other, parameters, make_env, seeds.TEST[0], key)[:steps]
    write_films(path.parent, panels, rate, path.stem)


def write_open_loop(
    folder: str | os.PathLike[str], name: str, truth: np.ndarray, predicted: np.ndarray, observed: int, fps: float = 10
) -> list[str]:
    """Write `<name>.mp4`, N sequences next to each other, and ten moments of the first as `<name>.png`.

    The top row is what happened, the middle one what the model predicts, the bottom one the difference; frames are
    green where the model sees, red where it imagines. Pictures of neither one nor three channels are shown as the mean
    of their channels.

    Returns the names of the files, the film first.

    Source: the layout is that of the published code of Hafner et al. 2023.
    Shapes: truth and predicted uint8 [N, T, H, W, C], of which the first `observed` of T were seen.
    """
    panels = _framed(truth, predicted, observed)
    rows = [np.concatenate(list(row), axis=2) for row in panels]  # [T, H, N * W, 3] of each
    labels = ("what happened", "what the model expects", "the difference")
    film = np.concatenate([videos.labelled(row, text, 14) for row, text in zip(rows, labels, strict=True)], axis=1)
    film = np.pad(film, ((0, _PAUSE), (0, 0), (0, 0), (0, 0)))
    videos.write_video(Path(folder) / f"{name}.mp4", film, fps)
    moments = np.linspace(0, truth.shape[1] - 1, min(10, truth.shape[1])).astype(int)
    sheet = panels[:, 0, moments].reshape(-1, *panels.shape[3:])
    videos.write_image(Path(folder) / f"{name}.png", videos.contact_sheet(sheet, len(moments), gap=0))
    return [f"{name}.mp4", f"{name}.png"]


def _framed(truth: np.ndarray, predicted: np.ndarray, observed: int) -> np.ndarray:
    """Truth, prediction and difference, enlarged and framed. Shapes: -> [3, N, T, H, W, 3]."""
    difference = ((predicted.astype(int) - truth + 255) // 2).astype(np.uint8)
    panels = np.stack([truth, predicted, difference])
    if panels.shape[-1] != 3:
        panels = panels.mean(-1, keepdims=True).astype(np.uint8).repeat(3, -1)
    factor = max(1, 128 // truth.shape[2])
    panels = panels.repeat(factor, 3).repeat(factor, 4)
    height, width = (side + 2 * _BORDER for side in panels.shape[3:5])
    framed = np.empty((*panels.shape[:3], height, width, 3), np.uint8)
    framed[:, :, :observed] = _SEEN
    framed[:, :, observed:] = _IMAGINED
    framed[..., _BORDER:-_BORDER, _BORDER:-_BORDER, :] = panels
    return framed
