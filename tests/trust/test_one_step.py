"""Errors of the next picture count where they are asked for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.rollout import Transition
from dreamjax.trust import one_step_error
from dreamjax.types import Agent, AgentParams, EnvSpec, LatentModel, Outcome, Policy, Space, Step


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
