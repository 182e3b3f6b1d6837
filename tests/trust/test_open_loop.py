"""Errors of open-loop predictions are those that a known model must make."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.trust import open_loop
from dreamjax.trust.measurement import Measured, TrustConfig
from dreamjax.trust.open_loop import FILTERING, LAST, OTHER, _distance
from dreamjax.types import AgentParams, Environment, Space
from tests.trust.toys import END, measured, params, played, walk, walker

KEY = jax.random.key(5)


def errors(environment: Environment, of: AgentParams, cfg: TrustConfig) -> dict[tuple[str, str], list[Measured]]:
    """Errors by quantity and by what predicts, in the order of the steps."""
    by: dict[tuple[str, str], list[Measured]] = {}
    for one in measured(environment, of, cfg):
        if one.ahead:
            by.setdefault((one.quantity, one.by), []).append(one)
    return by


CFG = TrustConfig(episodes=8, temperatures=(1.0, 4.0), samples=2)


def test_a_perfect_model_makes_no_error() -> None:
    found = errors(walk(), params(), CFG)
    assert {name for name, _ in found} == {"reward", "goes on", "latent", "observation"}
    for (quantity, by), curve in found.items():
        ahead = [one.ahead for one in curve]
        assert ahead == [1, 2, 3, 5, 8, 12, 18, 27][: len(ahead)] and len(ahead) >= 7
        if by in ("dream@1.00", "dream@4.00", FILTERING):
            assert [one.mean for one in curve] == [one.high for one in curve] == [0] * len(curve), (quantity, by)
        elif by == LAST and quantity != "goes on":
            assert all(one.mean > 0 for one in curve)
    assert all(0 < one.mean < 10 for one in found["latent", OTHER])


def test_a_drift_grows_by_the_step_and_what_was_seen_last_falls_behind() -> None:
    found = errors(walk(end=None), params(drift=-0.25), CFG)  # never ends
    for one in found["reward", "dream@1.00"]:
        assert one.mean == pytest.approx(0.25 * one.ahead) and one.low == pytest.approx(one.high)
    for dream, last in zip(found["latent", "dream@4.00"], found["latent", LAST], strict=True):
        assert dream.mean / last.mean == pytest.approx(0.25**2)  # of (h / 4) squared and h squared
    assert [one.n for one in found["latent", LAST]] == [8] * 9  # up to 40 steps


def test_noise_adds_up_and_the_temperature_scales_it() -> None:
    cfg = TrustConfig(episodes=16, temperatures=(0.5, 2.0), samples=64)
    found = errors(walk(end=None), params(noise=0.5), cfg)
    for at in cfg.temperatures:
        for dream, last in zip(found["latent", open_loop.dream_at(at)], found["latent", LAST], strict=True):
            assert dream.mean / last.mean == pytest.approx(at * 0.25 * dream.ahead / dream.ahead**2, rel=0.12)


def test_a_dream_that_never_ends_disagrees_with_every_episode_that_has() -> None:
    cfg = TrustConfig(episodes=8, temperatures=(1.0,), samples=1, pieces=9)
    found = errors(walk(), params(end=1e9), cfg)
    longest = found["goes on", "dream@1.00"][-1].ahead
    for one, last in zip(found["goes on", "dream@1.00"], found["goes on", LAST], strict=True):
        assert one.mean == last.mean  # what was seen last goes on for ever, too
    assert found["goes on", FILTERING][-1].mean == found["goes on", "dream@1.00"][-1].mean > 0.3
    assert longest in (18, 27)
    early = errors(walk(), params(end=-1), cfg)  # and one that ends at once with those that have not
    for one, never in zip(early["goes on", "dream@1.00"], found["goes on", "dream@1.00"], strict=True):
        assert one.mean == pytest.approx(1 - never.mean)


def test_latents_of_another_episode_are_one_apart() -> None:
    found = errors(walk(end=None), params(), TrustConfig(episodes=12, temperatures=(1.0,), samples=11))
    assert np.mean([one.mean for one in found["latent", OTHER]]) == pytest.approx(1)
    assert np.mean([one.mean for one in found["observation", OTHER]]) == pytest.approx(1)


def test_pieces_follow_one_another_and_each_is_as_likely_as_another() -> None:
    environment = walk(end=None, max_steps=95)
    agent, of = walker(environment), params()
    (episode,) = played(environment, of, KEY, 1)
    states = open_loop.filtered(agent, of, jax.random.key(1), episode)
    assert jax.tree.leaves(states)[0].shape == (2, 96)
    np.testing.assert_array_equal(states[0], episode.step.observation[:, 0])  # over several chunks
    counts = np.zeros(10)
    for draw in np.linspace(0, 0.999, 300):
        piece = open_loop.cut(agent, of, episode, states, [1, 10], 4, float(draw))
        assert piece.known.sum() == 8 - (90 in piece.at)  # the last has 5 steps
        np.testing.assert_array_equal(piece.truth.latent["latent"][:, 0], piece.begin + 1)
        np.testing.assert_array_equal(piece.begin, episode.step.observation[piece.at, 0])
        counts[piece.at // 10] += 1
    np.testing.assert_allclose(counts, 120, atol=4)
    piece = open_loop.cut(agent, of, episode, states, [1, 60], 4, 0.5)  # there are two
    assert (
        piece.at.tolist() == [0, 60, 60, 60] and piece.known.tolist() == [[True] * 2, [True, False]] + [[False] * 2] * 2
    )
    assert not piece.decided[1, 1]  # it was cut, and may have gone on


def test_what_comes_after_an_end_is_known_to_be_over() -> None:
    environment = walk()
    agent, of = walker(environment), params()
    (episode,) = played(environment, of, KEY, 1)
    end = len(episode.step.reward) - 1
    assert episode.step.is_terminal[-1] and episode.step.observation[-1, 0] == END
    states = open_loop.filtered(agent, of, jax.random.key(1), episode)
    piece = open_loop.cut(agent, of, episode, states, [1, end - 1, end, end + 5], 2, 0.0)
    assert piece.truth.goes_on[0].tolist() == piece.filtered.goes_on[0].tolist() == [True, True, False, False]
    assert piece.known.tolist() == [[True, True, True, False], [False] * 4]
    assert piece.decided.tolist() == [[True] * 4, [False] * 4]


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
