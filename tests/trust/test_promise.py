"""What dreams promise is compared with what the game pays, and a dream that promises too much is named."""

import numpy as np
import pytest

from dreamjax.trust import beside, promise
from dreamjax.trust.episodes import shortened
from dreamjax.trust.measurement import (
    BEST,
    GAME,
    PROMISED,
    RETURN,
    STEPS,
    Measured,
    TrustConfig,
    few,
    rows,
    warning,
)
from dreamjax.types import AgentParams
from tests.trust.toys import measured, params, walk, walker

CFG = TrustConfig(episodes=6, temperatures=(0.5, 1.0), samples=2, pieces=1)
ENVIRONMENT = walk()
AGENT = walker(ENVIRONMENT)


def of(params: AgentParams, cfg: TrustConfig = CFG) -> dict[tuple[str, str], Measured]:
    return {(one.quantity, one.by): one for one in measured(ENVIRONMENT, params, cfg) if not one.ahead}


def test_a_perfect_dream_promises_what_the_game_pays() -> None:
    found = of(params())
    game = found[RETURN, GAME]
    for at in ("dream@0.50", "dream@1.00"):
        assert found[RETURN, at][4:] == pytest.approx(game[4:])  # mean, deviation, interval and number
        assert found[STEPS, at].mean == found[STEPS, GAME].mean
        assert found[PROMISED, at][4:8] == pytest.approx((1, 0, 1, 1))
    assert game.low < game.mean < game.high < found[RETURN, BEST].mean <= 465
    assert warning(list(found.values())) == ""


def test_a_dream_that_pays_twice_as_much_is_warned_of() -> None:
    found = measured(ENVIRONMENT, params(gain=2), CFG)
    times = {one.by: one.mean for one in found if one.quantity == PROMISED}
    assert times == pytest.approx({"dream@0.50": 2, "dream@1.00": 2})
    told = warning(found)
    assert told.startswith("Warning: the dream promises more than the game ever paid")
    assert "at temperature 0.5" in told and "at temperature 1," in told and "best of 6 real episodes" in told
    names = [row["name"] for row in rows(few(found))]
    assert names[:3] == ["return, game", "return, best of the game", "return, dream@0.50"]
    assert "latent, dream@1.00, 1 ahead" in names and "latent, dream@0.50, 1 ahead" not in names


def test_only_the_temperature_that_promises_too_much_is_named() -> None:
    assert promise.overpromises(np.array([1.0, 9.0]), {0.1: 9.2, 0.5: 9.05, 1.0: 4.0}) == [0.1]  # 1 % for rounding
    assert promise.overpromises(np.array([-30.0, -20.0]), {0.1: -19.0, 1.0: -19.9}) == [0.1]


def test_both_are_cut_at_the_same_step() -> None:
    cfg = TrustConfig(episodes=6, temperatures=(1.0,), samples=2, pieces=1, max_steps=7)
    found = of(params(end=1e9), cfg)
    assert found[STEPS, GAME].mean == found[STEPS, "dream@1.00"].mean == 7
    assert found[RETURN, "dream@1.00"].mean == found[RETURN, GAME].mean
    assert shortened(AGENT, 1000) is AGENT  # so that what is compiled is found
    endless = of(params(end=1e9), TrustConfig(episodes=6, temperatures=(1.0,), samples=1, pieces=1))
    assert endless[STEPS, "dream@1.00"].mean == 40 > endless[STEPS, GAME].mean


def test_where_the_game_pays_nothing_there_is_no_ratio() -> None:
    def charged(step):
        return lambda *args: (lambda state, arrived: (state, arrived._replace(reward=-arrived.reward)))(*step(*args))

    costly = ENVIRONMENT._replace(step=charged(ENVIRONMENT.step))
    costs = measured(costly, params(gain=-0.5), CFG)
    found = {(one.quantity, one.by): one for one in costs}
    assert (PROMISED, "dream@1.00") not in found
    assert found[RETURN, "dream@1.00"].mean == pytest.approx(found[RETURN, GAME].mean / 2)
    assert "promises more than the game ever paid" in warning(costs)  # half the costs


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"episodes": 1}, "two episodes"),
        ({"temperatures": ()}, "temperatures"),
        ({"temperatures": (1.0, 1.001)}, "differ"),
        ({"samples": 0}, "samples"),
    ],
)
def test_settings_that_measure_nothing_are_refused(wrong: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        TrustConfig(**wrong)


def test_returns_along_training_stand_at_their_generations() -> None:
    fitness = np.arange(1, 21), np.linspace(1, 20, 20)
    metrics = {
        "x-evolve": {"fitness_mean": fitness},
        "x-iteration": {"evaluation_mean": (np.arange(1, 5), np.array([2.0, 3.0, 5.0, 7.0]))},
    }
    learned = promise.along_training(metrics, "x-evolve", "x-iteration")
    assert learned.paid is not None and learned.paid[0].tolist() == [5, 10, 15, 20]
    assert promise.along_training(metrics, "x-evolve").paid is None


@pytest.mark.parametrize(("temperature", "others"), [(1.5, (0.5, 1.0)), (1.0, (0.5,)), (0.501, (1.0,))])
def test_the_temperature_of_training_is_measured_once(temperature: float, others: tuple[float, ...]) -> None:
    assert TrustConfig(temperatures=beside(temperature)).temperatures == (*others, temperature)
