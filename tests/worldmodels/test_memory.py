"""M against a second implementation in float64: its step, its loss, and what it does at the seams of its streams."""

from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dreamjax.nets.lstm import LSTMState
from dreamjax.optim import parameter_count
from dreamjax.replay.latents import Chunk
from dreamjax.worldmodels import memory
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.model import CAR_RACING, DOOM

T, B = 6, 4
DONE = 3 * 2 * 3  # where the done logit stands among the outputs of DODGER
DODGER = MemoryConfig(latent_size=3, action_size=2, hidden_size=5, mixtures=2)
DRIVER = replace(DODGER, predict_done=False)
WHOLE = replace(DODGER, predict_reward=True, predict_action=True)
each = pytest.mark.parametrize("cfg", [DODGER, DRIVER, WHOLE], ids=["done", "no done", "all heads"])
loss = jax.jit(memory.loss, static_argnums=0)


def draw_params(cfg: MemoryConfig, seed: int = 0):
    """Larger than M's own, so that nothing is linear and no mixture component alone matters."""
    return jax.tree.map(lambda leaf: 1.5 * leaf, memory.init(cfg, jax.random.key(seed)))


def draw_state(cfg: MemoryConfig) -> LSTMState:
    rng = np.random.default_rng(1)
    return LSTMState(*(jnp.asarray(rng.normal(size=(B, cfg.hidden_size)), jnp.float32) for _ in range(2)))


def draw_chunk(cfg: MemoryConfig, length: int = T) -> Chunk:
    """Stream 0 opens an episode at its first step, and stream 1 at its third and its last, after the end of others.

    Stream 2 ends with a last step of which the next one is not seen, stream 3 runs on.
    """
    rng = np.random.default_rng(2)
    is_first, is_last, is_terminal = np.zeros((3, length + 1, B), bool)
    is_first[0, 0] = is_first[2, 1] = is_first[length, 1] = True
    is_last[1, 1] = is_last[length - 1, 1] = is_last[length, 2] = True
    is_terminal[1, 1] = is_terminal[length, 2] = True
    latent = (length + 1, B, cfg.latent_size)
    return Chunk(
        rng.normal(size=latent).astype(np.float16),
        (rng.normal(size=latent) - 1).astype(np.float16),
        rng.uniform(-1, 1, (length + 1, B, cfg.action_size)).astype(np.float16),
        rng.normal(size=(length + 1, B)).astype(np.float32),
        is_terminal,
        is_first,
        is_last,
        np.array(False),
    )


def certain(chunk: Chunk) -> Chunk:
    """Posteriors so narrow that every draw is their mean."""
    return chunk._replace(log_variance=np.full_like(chunk.log_variance, -60))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def oracle_step(params, state, x):
    kernel, bias = (np.float64(params["lstm"][part]) for part in ("kernel", "bias"))
    c, h = (np.float64(part) for part in state)
    i, j, f, o = np.split(np.concatenate([x, h], -1) @ kernel + bias, 4, -1)
    c = c * sigmoid(f + 1) + sigmoid(i) * np.tanh(j)
    return c, np.tanh(c) * sigmoid(o)


def oracle_predict(cfg, params, h):
    """Logits, means and log deviations [..., K, Z], and what there is of done logit, reward and action."""
    y = h @ np.float64(params["output"]["kernel"]) + np.float64(params["output"]["bias"])
    size = cfg.mixtures * cfg.latent_size
    parts = [part.reshape(*h.shape[:-1], cfg.mixtures, -1) for part in np.split(y[..., : 3 * size], 3, -1)]
    return parts, y[..., 3 * size :]


def oracle_loss(cfg, params, key, state, chunk):
    """Negative log likelihood, losses of the other heads, done logits: one stream and one step after the other."""
    noise = np.float64(jax.random.normal(jax.random.clone(key), chunk.mean.shape))
    z = chunk.mean.astype(float) + np.exp(chunk.log_variance.astype(float) / 2) * noise
    nll, done_loss, done_logits, reward_loss, action_loss = np.zeros((5, T, B))
    for b in range(B):
        c, h = (np.float64(part[b]) for part in state)
        for t in range(T):
            first, arrives = chunk.is_first[t, b], not chunk.is_last[t, b]
            flag = [first] if cfg.predict_done else []
            c, h = (0 * c, 0 * h) if first else (c, h)
            c, h = oracle_step(params, (c, h), np.concatenate([z[t, b], chunk.action[t, b], flag]))
            (logits, means, log_stds), heads = oracle_predict(cfg, params, h)
            if cfg.predict_reward:
                reward_loss[t, b] = (heads[1] - chunk.reward[t + 1, b]) ** 2 / 2 if arrives else 0
                acts = arrives and not chunk.is_last[t + 1, b]
                action_loss[t, b] = ((heads[2:] - chunk.action[t + 1, b]) ** 2).mean() / 2 if acts else 0
            weights = np.exp(logits) / np.exp(logits).sum(0)
            densities = np.exp(-0.5 * ((z[t + 1, b] - means) / np.exp(log_stds)) ** 2)
            densities /= np.exp(log_stds) * np.sqrt(2 * np.pi)
            nll[t, b] = -np.log((weights * densities).sum(0)).mean()
            if cfg.predict_done:
                done_logits[t, b] = heads[0]
                probability, done = sigmoid(heads[0]), chunk.is_terminal[t + 1, b]
                if arrives:
                    done_loss[t, b] = -cfg.done_weight * np.log(probability) if done else -np.log(1 - probability)
    losses = {"done_loss": done_loss, "reward_loss": reward_loss, "action_loss": action_loss}
    return nll.mean(), {name: loss.mean() for name, loss in losses.items() if loss.any()}, done_logits


# Shapes


@pytest.mark.parametrize(("cfg", "count"), [(CAR_RACING.memory, 422_368), (DOOM.memory, 1_678_785)])
def test_parameter_count_is_the_published_one(cfg, count):
    params = jax.eval_shape(partial(memory.init, cfg), jax.random.key(0))
    assert parameter_count(params) == count
    assert MemoryConfig() == DOOM.memory


@pytest.mark.parametrize("wrong", [{"latent_size": 0}, {"hidden_size": 0}, {"mixtures": 0}, {"action_size": -1}])
def test_wrong_configurations_are_refused(wrong):
    with pytest.raises(ValueError, match="every size of M must be positive"):
        MemoryConfig(**wrong)


@each
def test_any_leading_axes(cfg):
    params, chunk = draw_params(cfg), draw_chunk(cfg)
    z, action, is_first = (jnp.asarray(x[0], jnp.float32) for x in (chunk.mean, chunk.action, chunk.is_first))
    step = partial(memory.step, cfg, params)
    batch = step(draw_state(cfg), z, action, is_first)
    one = step(*jax.tree.map(lambda leaf: leaf[2], (draw_state(cfg), z, action, is_first)))
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[2], batch), one, atol=1e-6)
    expected = jax.tree.map(lambda leaf: leaf[2], memory.predict(cfg, params, batch.h))
    chex.assert_trees_all_close(memory.predict(cfg, params, one.h), expected, atol=1e-6)
    chex.assert_shape(expected.latent, (cfg.mixtures, cfg.latent_size))
    chex.assert_shape(expected.done, ())


def test_a_single_action_needs_no_axis():
    cfg = replace(DODGER, action_size=1)
    params, chunk = draw_params(cfg), draw_chunk(cfg)
    with_axis = loss(cfg, params, jax.random.key(0), draw_state(cfg), chunk)
    without = loss(cfg, params, jax.random.key(0), draw_state(cfg), chunk._replace(action=chunk.action[..., 0]))
    chex.assert_trees_all_equal(with_axis, without)


# Values


@each
@pytest.mark.parametrize("is_first", [False, True])
def test_step_and_prediction_match_the_oracle(cfg, is_first):
    rng = np.random.default_rng(0)
    params, state = draw_params(cfg), draw_state(cfg)
    z, action = rng.normal(size=(B, cfg.latent_size)), rng.normal(size=(B, cfg.action_size))
    flag = [np.full((B, 1), is_first)] if cfg.predict_done else []
    c, h = oracle_step(params, state, np.concatenate([z, action, *flag], -1))
    after = memory.step(cfg, params, state, jnp.float32(z), jnp.float32(action), jnp.full(B, is_first))
    np.testing.assert_allclose(after.c, c, atol=1e-5)
    np.testing.assert_allclose(after.h, h, atol=1e-5)
    prediction = memory.predict(cfg, params, after.h)
    parts, heads = oracle_predict(cfg, params, h)
    for got, wanted in zip(prediction.latent, parts, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    np.testing.assert_allclose(prediction.done, heads[:, 0] if cfg.predict_done else np.full(B, -np.inf), atol=1e-5)
    if cfg == WHOLE:
        np.testing.assert_allclose(prediction.reward, heads[:, 1], atol=1e-5)
        np.testing.assert_allclose(prediction.action, heads[:, 2:], atol=1e-5)
    else:
        assert prediction.reward is None and prediction.action is None


@pytest.mark.parametrize(
    "cfg", [DODGER, DRIVER, replace(DODGER, done_weight=1.0), WHOLE], ids=["done", "no done", "light", "all heads"]
)
def test_loss_matches_the_oracle(cfg):
    params, state, chunk, key = draw_params(cfg), draw_state(cfg), draw_chunk(cfg), jax.random.key(3)
    if cfg.predict_done:  # in half of the cases, some of them wrongly
        params["output"]["bias"] = (
            params["output"]["bias"].at[DONE].add(-np.median(oracle_loss(cfg, params, key, state, chunk)[2]))
        )
    nll, others, done_logits = oracle_loss(cfg, params, key, state, chunk)
    floor = (0.5 * np.log(2 * np.pi * np.e) + 0.5 * chunk.log_variance[1:].astype(float)).mean()
    expected = {"nll": nll, "nll_floor": floor, "loss": nll + sum(others.values())} | others
    assert len(others) == cfg.predict_done + cfg.predict_reward + cfg.predict_action
    if cfg.predict_done:
        predicted, done = (done_logits > 0) & ~chunk.is_last[:-1], chunk.is_terminal[1:]
        hits = (predicted & done).sum()
        assert predicted.sum() > hits and done.sum() == 2
        rates = {"done_precision": hits / predicted.sum(), "done_recall": hits / done.sum()}
        expected |= rates
    total, (_, metrics) = loss(cfg, params, key, state, chunk)
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected, rel=1e-5)
    assert float(total) == float(metrics["loss"])


def test_published_done_weight_counts_ends_tenfold():
    assert DOOM.memory.done_weight == 10.0


def test_precision_and_recall_are_zero_where_there_is_nothing_to_find():
    params, chunk = draw_params(DODGER), draw_chunk(DODGER)
    params["output"]["bias"] = params["output"]["bias"].at[DONE].set(-100.0)
    chunk = chunk._replace(is_terminal=np.zeros_like(chunk.is_terminal))
    _, (_, metrics) = loss(DODGER, params, jax.random.key(0), draw_state(DODGER), chunk)
    assert metrics["done_precision"] == metrics["done_recall"] == 0


def test_knowing_the_next_mean_reaches_the_floor():
    """One component whose bias is the posterior of every frame: M can know no more."""
    cfg = MemoryConfig(latent_size=2, action_size=1, hidden_size=1, mixtures=1, predict_done=False)
    mean, log_variance = np.array([1.0, -2.0]), np.array([0.0, -3.0])
    shape = (400, 50, 2)
    data = Chunk(
        np.broadcast_to(mean, shape),
        np.broadcast_to(log_variance, shape),
        np.zeros((400, 50)),
        np.zeros((400, 50)),
        *np.zeros((3, 400, 50), bool),
        np.array(True),
    )
    params = jax.tree.map(jnp.zeros_like, memory.init(cfg, jax.random.key(0)))
    params["output"]["bias"] = jnp.asarray([0.0, 0.0, *mean, *(log_variance / 2)], jnp.float32)
    _, (_, metrics) = loss(cfg, params, jax.random.key(0), memory.start(cfg, (50,)), data)
    floor = 0.5 * np.log(2 * np.pi * np.e) - 3.0 / 4
    assert float(metrics["nll_floor"]) == pytest.approx(floor, rel=1e-5)
    assert float(metrics["nll"]) == pytest.approx(floor, abs=0.02)


def test_latents_are_drawn_afresh_for_every_key():
    params, chunk, state = draw_params(DODGER), draw_chunk(DODGER), draw_state(DODGER)
    one, other = (loss(DODGER, params, jax.random.key(seed), state, chunk)[0] for seed in (0, 1))
    assert abs(one - other) > 1e-3


@each
def test_gradients_match_finite_differences(cfg):
    with jax.enable_x64(True):
        double = partial(jax.tree.map, lambda leaf: jnp.asarray(leaf, jnp.float64))
        key, chunk = jax.random.key(0), draw_chunk(cfg)

        def value(params, state):
            return memory.loss(cfg, params, jax.random.clone(key), state, chunk)[0]

        arguments = (double(draw_params(cfg)), double(draw_state(cfg)))
        check_grads(jax.jit(value), arguments, order=1, modes=["rev"], eps=1e-4, rtol=1e-6, atol=1e-8)


# The seams


@each
def test_the_first_frame_of_an_episode_forgets_the_one_before(cfg):
    params, chunk = draw_params(cfg), draw_chunk(cfg)
    state = draw_state(cfg)
    other = jax.tree.map(lambda leaf: 0.5 - leaf, state)
    after, after_other = (loss(cfg, params, jax.random.key(0), s, chunk)[1][0] for s in (state, other))
    for one, two in zip(after, after_other, strict=True):
        changed = abs(one - two).max(1)
        assert (changed[:2] == 0).all() and (changed[2:] > 1e-4).all()


@each
def test_two_chunks_equal_one_long_sequence(cfg):
    params, state = draw_params(cfg), draw_state(cfg)
    whole = certain(draw_chunk(cfg, 2 * T))
    halves = [whole._replace(**{name: getattr(whole, name)[cut] for name in Chunk._fields[:-1]})
              for cut in (slice(T + 1), slice(T, None))]  # fmt: skip
    total, (expected, _) = loss(cfg, params, jax.random.key(0), state, whole)
    totals = []
    for half in halves:
        value, (state, _) = loss(cfg, params, jax.random.key(1), state, half)
        totals.append(float(value))
    assert np.mean(totals) == pytest.approx(float(total), rel=1e-5)
    chex.assert_trees_all_close(state, expected, atol=1e-6)


@each
def test_no_gradient_runs_through_the_returned_state(cfg):
    params, state, chunk = draw_params(cfg), draw_state(cfg), draw_chunk(cfg)

    def remembered(params, state):
        after = memory.loss(cfg, params, jax.random.key(0), state, chunk)[1][0]
        return after.c.sum() + after.h.sum()

    gradient = jax.jit(jax.grad(remembered, argnums=(0, 1)))(params, state)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient))


def test_what_no_action_led_to_teaches_m_nothing_but_its_latent():
    """Whatever stands at the first step of an episode, and whatever action stands at the last."""
    params, state, chunk, key = draw_params(WHOLE), draw_state(WHOLE), draw_chunk(WHOLE), jax.random.key(0)
    gradient = jax.jit(jax.grad(memory.loss, argnums=1, has_aux=True), static_argnums=0)
    expected, (_, metrics) = gradient(WHOLE, params, key, state, chunk)
    reward, is_terminal, action = chunk.reward.copy(), chunk.is_terminal.copy(), chunk.action.copy()
    reward[chunk.is_first] = 100.0
    is_terminal[chunk.is_first] = True
    action[T, 1:3] = 100.0  # a target only: the last step in the chunk of streams 1 (a first one) and 2 (a last one)
    changed = chunk._replace(reward=reward, is_terminal=is_terminal, action=action)
    assert (changed.reward != chunk.reward).sum() == (changed.is_terminal != chunk.is_terminal).sum() == 3
    got, (_, changed_metrics) = gradient(WHOLE, params, jax.random.clone(key), state, changed)
    chex.assert_trees_all_equal((got, changed_metrics), (expected, metrics))
    for name in ("reward", "is_terminal", "action"):  # and a step that an action led to does teach it
        other = getattr(chunk, name).copy()
        other[3, 3] = ~other[3, 3] if other.dtype == bool else other[3, 3] + 1
        _, (_, metrics_of_other) = gradient(
            WHOLE, params, jax.random.clone(key), state, chunk._replace(**{name: other})
        )
        assert metrics_of_other["loss"] != metrics["loss"]


@each
def test_reset_streams_begin_at_zero(cfg):
    params, chunk = draw_params(cfg), draw_chunk(cfg)._replace(reset=np.array(True))
    from_somewhere = loss(cfg, params, jax.random.key(0), draw_state(cfg), chunk)
    from_zero = loss(cfg, params, jax.random.key(0), memory.start(cfg, (B,)), chunk._replace(reset=np.array(False)))
    chex.assert_trees_all_equal(from_somewhere, from_zero)


@each
def test_sequence_and_single_steps_agree(cfg):
    """Training runs over chunks, acting and dreaming step by step; both must be the same M."""
    params, state = draw_params(cfg), draw_state(cfg)
    chunk = jax.tree.map(jnp.asarray, certain(draw_chunk(cfg)))
    _, (expected, _) = loss(cfg, params, jax.random.key(0), state, chunk)
    for t in range(T):
        first = chunk.is_first[t]
        state = jax.tree.map(lambda leaf, first=first: jnp.where(first[:, None], 0, leaf), state)
        z, action = (x[t].astype(jnp.float32) for x in (chunk.mean, chunk.action))
        state = memory.step(cfg, params, state, z, action, first)
    chex.assert_trees_all_close(state, expected, atol=1e-5)


# Surprise


@each
def test_surprise_is_the_loss_of_each_frame_above_its_floor(cfg):
    params, chunk = draw_params(cfg), certain(draw_chunk(cfg))._replace(reset=np.array(True))
    surprise = memory.surprise(cfg, params, jax.random.key(0), chunk)
    chex.assert_shape(surprise, (T, B))
    for t, b in ((0, 0), (0, 2), (3, 1), (T - 1, 3)):
        # Up to this frame the loss of this stream alone is the sum of what came before, and this.
        total = []
        for end in (t, t + 1):
            part = jax.tree.map(lambda leaf, b=b, end=end: leaf[: end + 1, b : b + 1] if leaf.ndim else leaf, chunk)
            if end:
                start = memory.start(cfg, (1,))
                metrics = memory.loss(cfg, params, jax.random.key(1), start, part)[1][1]
                total.append(float(end * (metrics["nll"] - metrics["nll_floor"])))
            else:
                total.append(0.0)
        assert float(surprise[t, b]) == pytest.approx(total[1] - total[0], rel=1e-3)
