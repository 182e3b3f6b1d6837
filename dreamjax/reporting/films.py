"""Films of an agent: what it dreams, what it sees in the real game, and what it expects to see there."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import gymnasium
import jax
import numpy as np

from dreamjax import dream
from dreamjax.acting.play import play
from dreamjax.reporting import videos
from dreamjax.storage.agents import StoredAgent
from dreamjax.types import Agent, AgentParams, AnyPolicy, Array, Key, LatentModel

_SEEN, _IMAGINED = (0, 158, 115), (213, 94, 0)  # borders
_BORDER = 3  # pixels
_PAUSE = 10  # black frames at the end


def film_dream(
    model: LatentModel, policy: AnyPolicy, agent: StoredAgent, key: Key, steps: int, temperature: float
) -> np.ndarray:
    """Film one dreamed episode, at most `steps` of it. Shapes: -> uint8 [T, H, W, 3]."""

    @partial(jax.jit, static_argnames="steps")
    def imagine(agent: StoredAgent, key: Key, steps: int) -> tuple[Array, Array]:
        key_reset, key_imagine = jax.random.split(key)
        begin, _ = dream.environment(model, agent.model, agent.starts, temperature).reset(key_reset)
        params = AgentParams(agent.model, agent.controller)
        states = dream.imagine(Agent(model, policy), params, key_imagine, begin.latent, steps, temperature).states
        outcome = jax.vmap(partial(model.outcome, agent.model))(states)
        return outcome.continues, jax.lax.map(partial(model.decode, agent.model), states)

    continues, frames = imagine(agent, key, steps)
    over = 1 + np.flatnonzero(np.asarray(continues[1:]) < 0.5)
    return np.asarray(frames[: over[0] + 1 if len(over) else steps])


def film_game(
    make_env: Callable[[], gymnasium.Env],
    model: LatentModel,
    policy: AnyPolicy,
    agent: StoredAgent,
    key: Key,
    seed: int,
) -> np.ndarray:
    """Film the real episode of a seed, as `play` plays it with the same key. Shapes: -> uint8 [T, H, W, 3]."""
    params = (agent.model, agent.controller)
    (played,) = play(make_env, model, policy, params, key, [seed], games=1, film=[seed])
    assert played.recorded is not None  # it was asked for
    return played.recorded.step.observation


def write_films(folder: str | os.PathLike[str], dreamed: np.ndarray, real: np.ndarray, fps: float) -> None:
    """Write `dream_and_real.mp4`, and a sheet of eight moments of each, `dream_and_real.png`."""
    large = [videos.upscale(film, 5) for film in (dreamed, real)]
    videos.write_video(
        Path(folder) / "dream_and_real.mp4", videos.side_by_side(large, ["its dream", "the real game"]), fps
    )
    moments = [film[np.linspace(0, len(film) - 1, 8).astype(int)] for film in (dreamed, real)]
    sheet = videos.contact_sheet(videos.upscale(np.concatenate(moments), 2), 8)
    videos.write_image(Path(folder) / "dream_and_real.png", sheet)


def film_temperatures(
    folder: Path,
    name: str,
    acting: tuple[LatentModel, AnyPolicy],
    agents: Mapping[float, StoredAgent],
    key: Key,
    game: tuple[Callable[[], gymnasium.Env], int],
    steps: int,
    fps: float,
) -> list[str]:
    """Film a dream of each temperature, at most `steps` of it, beside the game (how to make it, and a seed).

    Returns the names of the films, `<name>-at-<temperature>/dream_and_real.mp4`. Those that the folder has stay.
    """
    key_dream, key_game = jax.random.split(key)
    files = []
    for temperature, agent in agents.items():
        files.append(f"{name}-at-{temperature:.2f}/dream_and_real.mp4")
        if not (folder / files[-1]).exists():
            dreamed = film_dream(*acting, agent, key_dream, steps, temperature)
            real = film_game(game[0], *acting, agent, key_game, game[1])
            write_films((folder / files[-1]).parent, dreamed, real, fps)
    return files


def write_open_loop(
    folder: str | os.PathLike[str], name: str, truth: np.ndarray, predicted: np.ndarray, observed: int, fps: float = 10
) -> list[str]:
    """Write `<name>.mp4`, N sequences next to each other, and ten moments of the first as `<name>.png`.

    Above what happened, in the middle what the model makes of it, below the difference; framed green where the model
    sees, red where it imagines. Pictures of neither one nor three channels are shown as the mean of their channels.
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
