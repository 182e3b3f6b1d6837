"""A trained agent in fresh episodes: every one counts once, and its predictions are those of its model."""

import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v2 as imageio
import jax
import numpy as np
import pytest
from dreamjax.envs.lanes import rescaled
from dreamjax.reporting.evaluation import (
    FILMED,
    FIRST_SEED,
    OBSERVED,
    Trained,
    evaluate,
    newest,
    predict,
    write_predictions,
)

from dreamjax.dreamerv3 import learner, model
from dreamjax.dreamerv3.config import debug
from dreamjax.dreamerv3.model import Dreamer, DreamerParams
from dreamjax.envs.gymnasium import spec_from_gymnasium
from dreamjax.storage.checkpoints import Checkpoints

KEY = jax.random.key(4)


class Drift(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A place that actions move; the episode of a seed lasts `shortest + seed % 5` steps, with reward 1 for each."""

    taken: list[float]

    def __init__(self, shortest: int, taken: list[float]) -> None:
        self.observation_space: Any = gymnasium.spaces.Dict(
            {
                "image": gymnasium.spaces.Box(0, 255, (48, 64, 1), np.uint8),
                "place": gymnasium.spaces.Box(-np.inf, np.inf, (), np.float32),
            }
        )
        self.action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)
        self.shortest, self.taken = shortest, taken

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        assert seed is not None
        self.left, self.place = self.shortest + seed % 5, float(seed % 7)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.taken.append(float(action[0]))
        self.place += float(action[0])
        self.left -= 1
        return self._observe(), 1.0, self.left == 0, False, {}

    def _observe(self) -> dict[str, np.ndarray]:
        shade = np.full((48, 64, 1), int(abs(self.place) * 10) % 256, np.uint8)
        return {"image": shade, "place": np.float32(self.place)}


def trained(shortest: int, taken: list[float] | None = None) -> Trained:
    make = lambda: rescaled(Drift(shortest, [] if taken is None else taken))  # noqa: E731
    spec = spec_from_gymnasium(make(), 100)
    dreamer = Dreamer.of(replace(debug(), compute_dtype="float32"), spec)
    return Trained(dreamer, parameters(dreamer), make)


@cache
def parameters(dreamer: Dreamer) -> DreamerParams:
    return jax.jit(partial(model.init, dreamer))(jax.random.key(0))


def test_every_fresh_episode_counts_once_however_short(tmp_path: Path) -> None:
    taken: list[float] = []
    path = tmp_path / "evaluation" / "7.jsonl"
    agent = trained(3, taken)
    expected = [3.0 + (FIRST_SEED + i) % 5 for i in range(11)]
    np.testing.assert_array_equal(evaluate(agent, KEY, 11, path), expected)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(row["seed"] for row in rows) == [FIRST_SEED + i for i in range(11)]
    assert all(row["return"] == row["steps"] and row["terminal"] for row in rows)
    # Drawn, not the likeliest ones; rescaled, and cut to the bounds of the environment.
    assert len(taken) == sum(expected) and len(set(np.round(taken, 3))) > len(taken) // 3
    assert max(map(abs, taken)) == 2
    np.testing.assert_array_equal(evaluate(agent, KEY, 11, path), expected)
    assert len(taken) == sum(expected)  # nothing was played again


def test_predictions_are_films_of_pieces_of_episodes(tmp_path: Path) -> None:
    agent = trained(12)
    predictions = predict(agent, KEY)
    assert predictions is not None
    lengths = [12 + (FIRST_SEED + i) % 5 for i in range(FILMED)]
    length = sorted(lengths)[2]
    shape = (sum(one >= length for one in lengths), length)  # shorter episodes give no piece
    assert predictions.seen["image"].shape == predictions.predicted["image"].shape == (*shape, 48, 64, 1)
    assert predictions.predicted["image"].dtype == np.uint8
    assert predictions.seen["place"].shape == predictions.predicted["place"].shape == shape
    first = FIRST_SEED + next(i for i, one in enumerate(lengths) if one >= length)
    assert predictions.seen["place"][0, 0] == first % 7

    still = predictions.errors["place"]["repeating the last seen"]
    squashed = np.sign(predictions.seen["place"]) * np.log1p(np.abs(predictions.seen["place"]))
    repeated = squashed[:, np.minimum(np.arange(length), OBSERVED - 1)]
    np.testing.assert_allclose(still, ((squashed - repeated) ** 2).mean(0), atol=1e-5)
    apart = predictions.seen["image"] / 255 - predictions.predicted["image"] / 255
    np.testing.assert_allclose(predictions.errors["image"]["model"], (apart**2).mean((0, 2, 3, 4)), atol=1e-5)

    names = write_predictions(tmp_path, agent.dreamer, predictions)
    assert names == ["open_loop_image.mp4", "open_loop_image.png", "open_loop_errors.png"]
    assert len(imageio.mimread(tmp_path / names[0])) == length + 10
    assert all((tmp_path / name).stat().st_size > 500 for name in names)


def test_longer_episodes_are_cut_into_pieces() -> None:
    predictions = predict(trained(120), KEY)
    assert predictions is not None
    assert predictions.seen["place"].shape == (FILMED, 50)
    actions_before = np.abs(predictions.seen["place"][:, 0] - [(FIRST_SEED + i) % 7 for i in range(FILMED)])
    assert (actions_before > 0).all()  # the middle piece of each is not its beginning


def test_episodes_that_end_at_once_leave_nothing_to_predict() -> None:
    assert predict(trained(1), KEY) is None


def test_the_newest_parameters_of_a_run_are_read(tmp_path: Path) -> None:
    agent = trained(3)
    with pytest.raises(FileNotFoundError, match="train first"):
        newest(tmp_path, agent.dreamer)
    assert list(tmp_path.iterdir()) == []
    like = jax.eval_shape(partial(learner.init, agent.dreamer), jax.random.key(0))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)._replace(params=agent.params)
    Checkpoints(tmp_path / "checkpoints").save(12, state)
    updates, params = newest(tmp_path, agent.dreamer)
    assert updates == 12
    jax.tree.map(np.testing.assert_array_equal, params, agent.params)
