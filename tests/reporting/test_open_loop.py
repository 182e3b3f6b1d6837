"""Predictions of trained agents in episodes that no training saw are those of their models."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v2 as imageio
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.acting.seeds import TEST
from dreamjax.dreamerv3 import model
from dreamjax.dreamerv3.config import debug
from dreamjax.envs.adaptation import adapted
from dreamjax.envs.gymnasium import spec_from_gymnasium
from dreamjax.reporting.open_loop import EPISODES, OBSERVED, _distance, one_step_error, predict, write_predictions
from dreamjax.rollout import Transition
from dreamjax.types import Agent, AgentParams, EnvSpec, LatentModel, Outcome, Policy, Space, Step

KEY = jax.random.key(4)


class Drift(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A place that actions move; the episode of a seed lasts `shortest + seed % 5` steps, with reward 1 for each."""

    def __init__(self, shortest: int) -> None:
        self.observation_space: Any = gymnasium.spaces.Dict(
            {
                "image": gymnasium.spaces.Box(0, 255, (48, 64, 1), np.uint8),
                "place": gymnasium.spaces.Box(-np.inf, np.inf, (), np.float32),
            }
        )
        self.action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)
        self.shortest = shortest

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        assert seed is not None
        self.left, self.place = self.shortest + seed % 5, float(seed % 7)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += float(action[0])
        self.left -= 1
        return self._observe(), 1.0, self.left == 0, False, {}

    def _observe(self) -> dict[str, np.ndarray]:
        shade = np.full((48, 64, 1), int(abs(self.place) * 10) % 256, np.uint8)
        return {"image": shade, "place": np.float32(self.place)}


def trained(shortest: int) -> tuple[Agent, AgentParams, Callable[[], gymnasium.Env]]:
    make = lambda: adapted(lambda: Drift(shortest))  # noqa: E731
    agent = model.make(replace(debug(), compute_dtype="float32"), spec_from_gymnasium(make(), 200))
    return agent, parameters(agent), make


@cache
def parameters(agent: Agent) -> AgentParams:
    key_model, key_policy = jax.random.split(jax.random.key(0))
    return AgentParams(jax.jit(agent.model.init)(key_model), jax.jit(agent.policy.init)(key_policy))


def test_predictions_are_films_of_pieces_of_episodes(tmp_path: Path) -> None:
    agent = trained(12)
    predictions = predict(*agent, KEY)
    assert predictions is not None
    lengths = [13 + (TEST[0] + i) % 5 for i in range(EPISODES)]  # steps, one more than actions
    length = sorted(lengths)[2]
    shape = (sum(one >= length for one in lengths), length)  # shorter episodes give no piece
    assert predictions.seen["image"].shape == predictions.predicted["image"].shape == (*shape, 48, 64, 1)
    assert predictions.predicted["image"].dtype == np.uint8
    assert predictions.seen["place"].shape == predictions.predicted["place"].shape == shape
    first = TEST[0] + next(i for i, one in enumerate(lengths) if one >= length)
    assert predictions.seen["place"][0, 0] == first % 7

    still = predictions.errors["place"]["repeating the last seen"]
    squashed = np.sign(predictions.seen["place"]) * np.log1p(np.abs(predictions.seen["place"]))
    repeated = squashed[:, np.minimum(np.arange(length), OBSERVED - 1)]
    np.testing.assert_allclose(still, ((squashed - repeated) ** 2).mean(0), atol=1e-5)
    apart = predictions.seen["image"] / 255 - predictions.predicted["image"] / 255
    np.testing.assert_allclose(predictions.errors["image"]["model"], (apart**2).mean((0, 2, 3, 4)), atol=1e-5)

    names = write_predictions(tmp_path, predictions)
    assert names == ["open_loop_image.mp4", "open_loop_image.png", "open_loop_errors.png"]
    assert len(imageio.mimread(tmp_path / names[0])) == length + 10
    assert all((tmp_path / name).stat().st_size > 500 for name in names)


def test_longer_episodes_are_cut_into_pieces() -> None:
    predictions = predict(*trained(120), KEY)
    assert predictions is not None
    assert predictions.seen["place"].shape == (EPISODES, 50)
    actions_before = np.abs(predictions.seen["place"][:, 0] - [(TEST[0] + i) % 7 for i in range(EPISODES)])
    assert (actions_before > 0).all()  # the middle piece of each is not its beginning


def test_episodes_that_end_at_once_leave_nothing_to_predict() -> None:
    assert predict(*trained(1), KEY) is None


def test_one_step_errors_count_where_they_are_asked_for() -> None:
    """The model expects every picture to be as bright as the last action says, plus one."""
    picture = Space((64, 64, 3), np.uint8, 0, 256)
    spec = EnvSpec({"image": picture}, Space((), np.float32, -1, 1), 9)
    guess = LatentModel(
        init=lambda key: (),
        start=lambda params: jnp.float32(0),
        encode=lambda params, observation: (),
        observe=lambda params, key, state, action, embedding, is_first: jnp.float32(0),
        imagine=lambda params, key, state, action, temperature: 50 * action + 1,
        features=lambda state: state[None],
        outcome=lambda params, state: Outcome(state, state),
        decode=lambda params, state: {"image": jnp.full(picture.shape, state).astype(jnp.uint8)},
        spec=spec,
    )
    agent = Agent(guess, Policy(lambda key: (), lambda params, key, features: jnp.float32(0)))
    action = np.array([[1, 0, 1], [0, 0, 1]], np.float32)
    images = np.array([[0, 51, 4], [0, 1, 3]], np.uint8)[..., None, None, None] * np.ones(picture.shape, np.uint8)
    no = np.zeros((2, 3), bool)
    recorded = Transition(Step({"image": images}, np.zeros((2, 3), np.float32), no, no, no), action)
    error = partial(one_step_error, agent, AgentParams((), ()))
    size = 64 * 64 * 3 / 255**2
    for mask, wrong in (([[1, 0], [1, 0]], 0), ([[0, 1], [0, 0]], 9), ([[1, 1], [1, 1]], (9 + 4) / 4)):
        keys = jax.random.split(jax.random.key(4))
        assert float(error(keys, recorded, "image", np.array(mask, bool))) == pytest.approx(wrong * size)


def test_distances_are_zero_for_what_is_equal_and_known_for_what_is_not() -> None:
    spaces = {
        "image": Space((48, 48, 2), np.uint8, 0, 256),
        "vector": Space((3,)),
        "word": Space((4,), np.int32, 1, 5),
        "flag": Space((), np.bool_, 0, 2),
    }
    zero = {name: jnp.zeros((7, *space.shape), space.dtype) for name, space in spaces.items()}
    other = {
        "image": jnp.full((7, 48, 48, 2), 51, np.uint8),
        "vector": jnp.full((7, 3), np.e - 1),  # symlog 1
        "word": zero["word"].at[..., 0].set(3),
        "flag": ~zero["flag"],
    }
    same = [_distance(space, zero[name], zero[name]) for name, space in spaces.items()]
    apart = [_distance(space, other[name], zero[name]) for name, space in spaces.items()]
    assert all(x.shape == (7,) and x.dtype == np.float32 for x in same + apart)
    assert [float(x.max()) for x in same] == [0, 0, 0, 0]
    # Older versions of jax round symlog more coarsely.
    np.testing.assert_allclose([float(x[3]) for x in apart], [0.04, 1, 0.25, 1], rtol=1e-4)
