"""One call trains DreamerV3 on an environment of one's own; others go on with what it left."""

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import imageio.v2 as imageio
import jax
import numpy as np
import pytest

import dreamjax
from dreamjax import dream
from dreamjax.dreamerv3 import SIZES, debug
from dreamjax.storage.agents import load_learned
from dreamjax.storage.folder import ConfigMismatch, RunFolder
from dreamjax.storage.identity import pin

SMALL: dict[str, Any] = {"batch_size": 2, "batch_length": 8, "train_ratio": 4, "checkpoint_every": 5, "log_every": 5}


class Walk(gymnasium.Env):
    """Go three steps to the right."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gymnasium.spaces.Box(-10, 10, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, goal: int = 3, render_mode: str | None = None) -> None:
        self.goal, self.render_mode = goal, render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        self.place = 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.place += 2 * int(action) - 1
        return self._observe(), float(self.place == self.goal), self.place == self.goal, False, {}

    def render(self) -> np.ndarray:  # type: ignore[override]
        return np.full((32, 32, 3), 100 + 5 * self.place, np.uint8)

    def _observe(self) -> np.ndarray:
        return np.array([self.place, self.goal], np.float32)


class Other(Walk):
    """Has the spaces of `Walk`."""


train = partial(dreamjax.train, agent=debug(), max_steps=9, envs=2, **SMALL)


def test_a_run_stays_in_its_environment(tmp_path: Path) -> None:
    pin(tmp_path, "environment", str(Walk()))
    with pytest.raises(ValueError, match="another environment, <Walk instance>, not <Other instance>"):
        train(Other, tmp_path, 40)


def test_train_go_on_begin_with_other_weights_load_and_film(tmp_path: Path) -> None:
    with jax.debug_key_reuse(False):
        agent, params = train(Walk, tmp_path / "run", 40)
        again, longer = train(lambda: Walk(goal=3), tmp_path / "run", 60, workers=1)
        _, other = train(Walk, tmp_path / "other", 2, weights=tmp_path / "run")
        loaded, back = dreamjax.load(tmp_path / "run")
    assert agent is again is loaded
    jax.tree.map(np.testing.assert_array_equal, back, longer)
    moved = jax.tree.map(lambda new, old: bool((new != old).any()), longer.model, params.model)
    assert any(jax.tree.leaves(moved))  # it has learned on
    jax.tree.map(np.testing.assert_array_equal, other[:2], longer[:2])  # two steps teach nothing
    learned = [load_learned(tmp_path / name) for name in ("run", "other")]  # the critic too
    jax.tree.map(np.testing.assert_array_equal, *(one["value"] for one in learned))
    changed = RunFolder.__new__(RunFolder)
    changed.path = tmp_path / "run"
    texts = [text for change in changed.read_json("changes.json") for text in change["changed"]]
    assert texts == ["online.steps: the folder has 40, this run 60", "workers: the folder has 0, this run 1"]

    returns = dreamjax.film(tmp_path / "ten.mp4", loaded, back, lambda: Walk(render_mode="rgb_array"), episodes=10)
    assert len(returns) == 10 and set(returns) <= {0.0, 1.0}
    frames = imageio.mimread(tmp_path / "ten.mp4", memtest=False)
    assert 10 * 4 <= len(frames) <= 10 * 10 and np.shape(frames[0]) == (256, 256, 3)


def test_what_is_loaded_dreams_from_what_it_saw(tmp_path: Path) -> None:
    with jax.debug_key_reuse(False):
        train(Walk, tmp_path, 20)
        agent, params = dreamjax.load(tmp_path)
    seen = agent.model.encode(params.model, np.array([0, 3], np.float32))
    for start in np.asarray(params.starts, np.float32):
        np.testing.assert_allclose(start, np.asarray(seen, np.float32), atol=0.05)
    assert len(params.starts) >= 2
    environment = dream.environment(agent.model, params.model, params.starts)
    _, step = environment.reset(jax.random.key(0))
    assert bool(step.is_first) and step.observation.shape == environment.spec.observation.shape


def test_what_does_not_fit_the_run_is_refused(tmp_path: Path) -> None:
    with jax.debug_key_reuse(False):
        train(Walk, tmp_path / "run", 2)
        with pytest.raises(ConfigMismatch, match="max_steps: the folder has 9, this run 5"):
            train(Walk, tmp_path / "run", 2, max_steps=5)
        with pytest.raises(ValueError, match=r"does not fit what is to begin with it:\n  model/enc/"):
            train(Walk, tmp_path / "other", 2, agent=SIZES["1m"], weights=tmp_path / "run")


def test_a_run_that_was_refused_for_what_it_begins_with_begins_with_something_else(tmp_path: Path) -> None:
    with jax.debug_key_reuse(False):
        with pytest.raises(FileNotFoundError, match="misspelt"):
            train(Walk, tmp_path / "run", 2, weights=tmp_path / "misspelt")
        train(Walk, tmp_path / "run", 2)
        with pytest.raises(ConfigMismatch, match=r"begin\.leave: .*, and train made use of it already"):
            train(Walk, tmp_path / "run", 2, leave=["model/*"])
