"""Films of an agent: what it dreams, what it sees in the real game, and both side by side."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gymnasium
import jax
import numpy as np

from dreamjax import dream
from dreamjax.run import videos
from dreamjax.run.agent import StoredAgent
from dreamjax.run.play import play
from dreamjax.types import Array, Key, LatentModel, Policy


def film_dream(
    model: LatentModel, policy: Policy, agent: StoredAgent, key: Key, steps: int, temperature: float
) -> np.ndarray:
    """Film one dreamed episode, at most `steps` of it. Shapes: -> uint8 [T, H, W, 3]."""

    @partial(jax.jit, static_argnames="steps")
    def imagine(agent: StoredAgent, key: Key, steps: int) -> tuple[Array, Array]:
        key_reset, key_imagine = jax.random.split(key)
        begin, _ = dream.environment(model, agent.model, agent.starts, temperature).reset(key_reset)
        params = (agent.model, agent.controller)
        states = dream.imagine(model, policy, params, key_imagine, begin.latent, steps, temperature).states
        outcome = jax.vmap(partial(model.outcome, agent.model))(states)
        return outcome.continues, jax.lax.map(partial(model.decode, agent.model), states)

    continues, frames = imagine(agent, key, steps)
    over = 1 + np.flatnonzero(np.asarray(continues[1:]) < 0.5)
    return np.asarray(frames[: over[0] + 1 if len(over) else steps])


def film_game(
    make_env: Callable[[], gymnasium.Env], model: LatentModel, policy: Policy, agent: StoredAgent, key: Key, seed: int
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
