"""The intrinsic reward of recorded episodes, against M asked about one episode after the other."""

import jax
import numpy as np
import pytest

from dreamjax.optim import AdamConfig
from dreamjax.replay import latents
from dreamjax.replay.latents import Chunk, Latents
from dreamjax.worldmodels import curiosity, learner, memory
from dreamjax.worldmodels.learner import MemoryLearner
from dreamjax.worldmodels.memory import MemoryConfig

CFG = MemoryConfig(latent_size=3, action_size=2, hidden_size=5, mixtures=2, predict_reward=True)
PARAMS = jax.tree.map(lambda leaf: 2 * leaf, memory.init(CFG, jax.random.key(0)))
LENGTHS = np.array([5, 1, 4])


def recorded() -> Latents:
    rng = np.random.default_rng(0)
    count = LENGTHS.sum()
    return Latents(
        rng.normal(size=(count, 3)).astype(np.float16),
        np.full((count, 3), -60, np.float16),  # so narrow that every draw is the mean
        rng.uniform(-1, 1, (count, 2)).astype(np.float16),
        rng.normal(size=count).astype(np.float32),
        np.zeros(count, bool),
        LENGTHS,
    )


@pytest.mark.parametrize("batch", [2, 64])
def test_every_step_is_rewarded_with_the_surprise_of_arriving_there(batch: int) -> None:
    data, first = recorded(), 0
    got = curiosity.intrinsic_reward(CFG, PARAMS, jax.random.key(1), data, batch)
    assert got.shape == (10,) and got.dtype == np.float32
    for length in LENGTHS:
        episode = [array[first : first + length, None] for array in data[:-1]]
        time = np.arange(length)[:, None]
        chunk = Chunk(*episode, time == 0, time == length - 1, np.array(True))
        expected = memory.surprise(CFG, PARAMS, jax.random.key(2), chunk)[:, 0] if length > 1 else []
        np.testing.assert_allclose(got[first : first + length], [0.0, *expected], rtol=1e-4)
        first += length


def test_where_nothing_leads_to_a_step_there_is_no_reward() -> None:
    alone = recorded()._replace(length=np.ones(10, int))
    np.testing.assert_array_equal(curiosity.intrinsic_reward(CFG, PARAMS, jax.random.key(1), alone), np.zeros(10))


def test_what_m_has_learned_surprises_it_less() -> None:
    """M learns that z repeats with the sign of the action; it is then surprised by the frame that does not."""
    rng, episodes, steps = np.random.default_rng(3), 16, 12
    action = np.sign(rng.normal(size=(episodes, steps, 2))).astype(np.float16)
    mean = np.zeros((episodes, steps, 3), np.float16)
    mean[:, 1:] = action[:, :-1, :1]  # all latents are the first action before
    flat = lambda array: array.reshape(-1, *array.shape[2:])  # noqa: E731
    data = Latents(
        flat(mean),
        np.full((episodes * steps, 3), -4, np.float16),
        flat(action),
        np.zeros(episodes * steps, np.float32),
        np.zeros(episodes * steps, bool),
        np.full(episodes, steps),
    )
    learns = MemoryLearner(CFG, AdamConfig(1e-2), streams=4)
    state = learner.init(learns, jax.random.key(4))
    for _, chunk in zip(range(150), latents.chunks(data, 0, 4, 11), strict=False):
        state, _ = learner.train_step(learns, jax.random.key(5), state, chunk)
    odd = data.mean.copy()
    odd[6] = -odd[6]
    known, strange = (
        curiosity.intrinsic_reward(CFG, state.params, jax.random.key(6), data._replace(mean=one))
        for one in (data.mean, odd)
    )
    assert np.median(known) < 0.5
    assert strange[6] > 3 + known[6]
    np.testing.assert_allclose(np.delete(strange, [6, 7]), np.delete(known, [6, 7]), atol=1.0)
