"""Training steps of V and M: they learn, resume exactly, give up the state they are given and compile once."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamjax import optim
from dreamjax.optim import AdamConfig
from dreamjax.replay.latents import Chunk
from dreamjax.worldmodels import learner
from dreamjax.worldmodels.learner import MEMORY_OPTIMIZER, VISION_OPTIMIZER, MemoryLearner, TrainState, VisionLearner
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.vision import VisionConfig

OPTIMIZER = AdamConfig(3e-3, 1e-5, 0.999, clip=1.0)
B, T = 4, 10
MEMORY = MemoryConfig(latent_size=3, action_size=1, hidden_size=8, mixtures=2)
V_LEARNER = VisionLearner(VisionConfig(latent_size=4), OPTIMIZER)
M_LEARNER = MemoryLearner(MEMORY, OPTIMIZER, B)

vision_step = partial(learner.train_step, V_LEARNER)
memory_step = partial(learner.train_step, M_LEARNER)
init = jax.jit(learner.init, static_argnums=0)


def new_vision() -> TrainState:
    return init(V_LEARNER, jax.random.key(0))


def new_memory() -> TrainState:
    return init(M_LEARNER, jax.random.key(0))


def draw_frames(seed: int = 0) -> np.ndarray:
    """Grey frames of two kinds, which one latent can tell apart."""
    bright = np.random.default_rng(seed).permutation(B) % 2 == 0
    return np.broadcast_to(np.where(bright, 200, 40)[:, None, None, None], (B, 64, 64, 3)).astype(np.uint8)


def draw_chunk(seed: int = 0) -> Chunk:
    """Latents that turn their sign at every frame, so that there is something to predict."""
    rng = np.random.default_rng(seed)
    signs = (-1.0) ** np.arange(T + 1)[:, None, None] * rng.choice([-1.0, 1.0], (1, B, MEMORY.latent_size))
    is_first = np.zeros((T + 1, B), bool)
    is_first[0] = is_first[T // 2, 0] = True
    action = rng.uniform(-1, 1, (T + 1, B))
    arrays = (signs, np.full_like(signs, -4), action)
    reward, is_last = rng.uniform(size=(T + 1, B)).astype(np.float32), np.roll(is_first, -1, 0)
    flags = (is_last, is_first, is_last, np.array(seed == 0))  # every last step is terminal
    return Chunk(*(array.astype(np.float16) for array in arrays), reward, *flags)


def train(step, state, batches):
    losses = []
    for batch in batches:
        state, metrics = step(jax.random.key(1), state, batch)
        losses.append(float(metrics["loss"]))
    return state, losses


# One case each: the step, a new state, and a function from a seed to a batch.
V = (vision_step, new_vision, draw_frames)
M = (memory_step, new_memory, draw_chunk)
each = pytest.mark.parametrize("case", [V, M], ids=["vision", "memory"])


def test_training_lowers_the_loss_of_v():
    _, losses = train(vision_step, new_vision(), [draw_frames()] * 40)
    assert np.isfinite(losses).all() and min(losses) < 0.5 * losses[0]


def test_training_lowers_the_loss_of_m():
    state, losses = train(memory_step, new_memory(), [draw_chunk()] * 150)
    assert np.isfinite(losses).all() and losses[-1] < losses[0] - 1.5
    assert state.step == 150


@each
def test_a_resumed_run_is_the_same_run(case):
    step, new, draw = case
    batches = [draw(seed) for seed in range(4)]
    expected, losses = train(step, new(), batches)
    half, first_losses = train(step, new(), batches[:2])
    stored = jax.tree.map(np.array, half)  # as a checkpoint keeps it
    resumed, last_losses = train(step, jax.tree.map(jnp.asarray, stored), batches[2:])
    assert first_losses + last_losses == losses
    chex.assert_trees_all_equal(resumed, expected)


@each
def test_the_state_is_given_up_and_the_batch_is_not(case):
    step, new, draw = case
    state, batch = new(), jax.tree.map(jnp.asarray, draw(0))
    after, _ = step(jax.random.key(0), state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, batch)))
    chex.assert_trees_all_equal_shapes_and_dtypes(after, new())


@each
def test_later_steps_do_not_compile_again(case):
    step, new, draw = case
    state, _ = step(jax.random.key(0), new(), draw(0))
    size = step.func._cache_size()
    state, _ = step(jax.random.key(0), state, draw(1))
    step(jax.random.key(1), state, draw(2))
    assert step.func._cache_size() == size


@each
def test_every_step_draws_its_own_noise_from_the_same_key(case):
    step, new, draw = case
    losses = []
    for number in (0, 0, 1):
        state = new()._replace(step=jnp.int32(number))
        losses.append(float(step(jax.random.key(0), state, draw(0))[1]["loss"]))
    assert losses[0] == losses[1] and losses[0] != losses[2]


def test_m_remembers_where_its_streams_stand():
    chunk = draw_chunk(1)
    assert not chunk.reset
    state, _ = memory_step(jax.random.key(0), new_memory(), chunk)
    lstm = jax.tree.map(np.array, state.carry)
    chex.assert_shape(lstm, (B, MEMORY.hidden_size))
    assert (abs(lstm.h).max(1) > 0).all()
    # The next chunk begins there: another memory gives another loss, and one that begins new streams ignores it.
    following = chunk._replace(is_first=np.zeros_like(chunk.is_first))
    for reset in (False, True):
        data = following._replace(reset=np.array(reset))
        one, other = (
            float(
                memory_step(jax.random.key(0), new_memory()._replace(carry=jax.tree.map(jnp.array, start)), data)[1][
                    "nll"
                ]
            )
            for start in (lstm, jax.tree.map(lambda x: -x, lstm))
        )
        assert (one == other) == reset


@each
def test_learning_rates_are_swept_by_one_program(case):
    """The first step of Adam moves what has a gradient by the learning rate."""
    step, new, draw = case
    begun, rates = new(), np.array([1e-3, 3e-3], np.float32)
    states = jax.vmap(lambda rate: begun._replace(learning_rate=rate))(rates)
    swept, _ = jax.vmap(lambda state: step(jax.random.key(1), state, draw(0)))(states)
    moved = jax.tree.map(lambda many, one: abs(many - one[None]).reshape(2, -1).max(1), swept.params, begun.params)
    np.testing.assert_allclose(np.max(jax.tree.leaves(moved), 0), rates, rtol=1e-2)
    step(jax.random.key(1), new(), draw(0))
    size = step.func._cache_size()
    step(jax.random.key(1), new()._replace(learning_rate=jnp.float32(1e-4)), draw(0))
    assert step.func._cache_size() == size


def test_a_traced_rate_decays_as_that_of_the_configuration():
    for updates in (0, 7):
        own = optim.adam(MEMORY_OPTIMIZER)
        given = optim.adam(AdamConfig(1.0, 1e-5, 0.99999, clip=1.0), jnp.float32(1e-3))
        state = optax.tree_utils.tree_set(own.init(jnp.zeros(1)), count=jnp.int32(updates))
        one, two = (optimizer.update(jnp.ones(1), state, jnp.zeros(1))[0] for optimizer in (own, given))
        np.testing.assert_allclose(one, two, rtol=3e-7)


# The optimiser


def constant_gradient_update(cfg: AdamConfig, updates_before: int, gradient: float = 0.5) -> float:
    """What Adam adds to a parameter whose gradient has always been the same: minus the learning rate."""
    optimizer = optim.adam(cfg)
    params = jnp.zeros(1)
    grads = jnp.full(1, gradient)
    state = optimizer.init(params)
    correction = [1 - beta**updates_before for beta in (0.9, 0.999)]
    state = optax.tree_utils.tree_set(
        state, count=jnp.int32(updates_before), mu=correction[0] * grads, nu=correction[1] * grads**2
    )
    update, _ = optimizer.update(grads, state, params)
    return float(update[0])


@pytest.mark.parametrize("count", [0, 1, 2, 10])
def test_the_learning_rate_decays_towards_the_final_one(count):
    cfg = AdamConfig(1e-2, 1e-3, 0.5)
    expected = (1e-2 - 1e-3) * 0.5**count + 1e-3
    assert constant_gradient_update(cfg, count) == pytest.approx(-expected, rel=1e-4)


def test_published_learning_rates():
    assert constant_gradient_update(VISION_OPTIMIZER, 0) == pytest.approx(-1e-4, rel=1e-4)
    assert constant_gradient_update(VISION_OPTIMIZER, 300_000) == pytest.approx(-1e-4, rel=1e-4)
    assert constant_gradient_update(MEMORY_OPTIMIZER, 0) == pytest.approx(-1e-3, rel=1e-4)
    assert constant_gradient_update(MEMORY_OPTIMIZER, 24_400) == pytest.approx(-7.86e-4, rel=1e-3)


def test_every_gradient_entry_is_clipped_by_itself():
    gradient = jnp.array([100.0, -3.0, 0.5, -0.25])
    for cfg, expected in ((MEMORY_OPTIMIZER, [1.0, -1.0, 0.5, -0.25]), (VISION_OPTIMIZER, gradient)):
        optimizer = optim.adam(cfg)
        _, state = optimizer.update(gradient, optimizer.init(jnp.zeros(4)), jnp.zeros(4))
        np.testing.assert_allclose(optax.tree_utils.tree_get(state, "mu"), 0.1 * np.asarray(expected), rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"learning_rate": 0}, {"decay": 0}, {"decay": 1.1}, {"clip": 0}])
def test_wrong_optimizers_are_refused(wrong):
    with pytest.raises(ValueError, match="need learning_rate > 0, 0 < decay <= 1 and clip > 0"):
        AdamConfig(**wrong)
