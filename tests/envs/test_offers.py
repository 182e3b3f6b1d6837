"""What `offers` pays, by hand-played episodes and policies whose returns are known; and the scale of all tasks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax import rollout
from dreamjax.envs import check_environment, normalized
from dreamjax.envs.offers import known_returns, offers
from dreamjax.types import StepPolicy

EPISODES = 1000


def returns_of(environment, act) -> np.ndarray:
    """Returns of a policy, (key, observation) -> action, in many episodes."""
    reads = StepPolicy(lambda params: (), lambda params, key, memory, step: (memory, act(key, step.observation)))
    keys = jax.random.split(jax.random.key(0), EPISODES)
    play = jax.jit(lambda keys: rollout.episodes(environment, reads, jnp.zeros(EPISODES), keys, stages=1).total)
    return np.asarray(play(keys))


def test_refusing_shows_the_next_offer_and_taking_pays_the_one_that_was_seen():
    environment = offers(levels=3, max_steps=3)
    state, step = environment.reset(jax.random.key(3))
    assert step.observation[1] == 3 and bool(step.is_first) and not bool(step.is_last)
    seen = []
    for time in range(2):
        assert float(step.observation[0]) in (1.0, 10.0, 100.0)
        state, step = environment.step(jax.random.key(time), state, jnp.int32(0))
        seen.append((float(step.observation[1]), float(step.reward), bool(step.is_last)))
    assert seen == [(2, 0, False), (1, 0, False)]
    _, refused = environment.step(jax.random.key(5), state, jnp.int32(0))
    _, taken = environment.step(jax.random.key(5), state, jnp.int32(1))
    for end in (refused, taken):
        assert bool(end.is_last) and bool(end.is_terminal) and float(end.observation[0]) == 0
    assert float(refused.reward) == 0 and float(taken.reward) == float(step.observation[0])


def test_the_best_threshold_by_hand():
    # Of the last of two offers, 1 or 10, 5.5 is expected: the first is taken if it is 10. At random half of it, then a
    # quarter.
    assert known_returns(levels=2, max_steps=2) == pytest.approx((5.5 * 0.75, (10 + 5.5) / 2))
    for wrong in ({"levels": 1}, {"levels": 8}, {"max_steps": 0}):
        with pytest.raises(ValueError, match="offers needs"):
            offers(**wrong)


def test_policies_get_what_is_known():
    environment, (random, best) = offers(), known_returns()
    value = [0.0]  # of k offers to come
    for _ in range(8):
        value.append(float(np.maximum(10.0 ** np.arange(5), value[-1]).mean()))
    waits = jnp.array(value, jnp.float32)

    def stops(key, observation):
        return (observation[0] >= waits[observation[1].astype(jnp.int32) - 1]).astype(jnp.int32)

    for act, known in ((stops, best), (lambda key, observation: jax.random.randint(key, (), 0, 2), random)):
        scores = returns_of(environment, act)
        assert abs(scores.mean() - known) < 4 * scores.std() / EPISODES**0.5


@pytest.mark.parametrize("name", normalized.TASKS)
def test_random_play_is_zero_on_the_scale(name: str):
    task = normalized.TASKS[name]()
    with jax.debug_key_reuse(False):  # the check takes keys that are scanned under vmap for used ones
        check_environment(task.environment, steps=40)
    actions = task.environment.spec.action
    scores = task.score(returns_of(task.environment, lambda key, _: jax.random.randint(key, (), 0, actions.high)))
    assert abs(scores.mean()) < 4 * scores.std() / EPISODES**0.5
    assert task.score(np.array([task.random, task.best])).tolist() == [0, 1]
