"""Evaluating: each seed once, noted as it ends."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dreamjax.acting import evaluation
from dreamjax.acting.evaluation import evaluate, play_all, record_episode
from dreamjax.acting.playing import Played
from tests.acting.agents import AGENT, KEY, MODEL, ONE, POLICY, SPEC
from tests.acting.environments import Faulty, Ragged

SEEDS = [14, 3, 9, 5, 7]
OTHER = ONE._replace(policy=jax.tree.map(lambda leaf: -leaf, ONE.policy))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def returns() -> np.ndarray:
    """Of all seeds, played one after the other."""
    return evaluate(AGENT, ONE, Ragged, SEEDS, KEY, envs=1)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The seeds that every evaluation really plays."""
    asked: list[list[int]] = []

    def watched(agent: Any, params: Any, make_env: Any, seeds: list[int], *args: Any, **kw: Any) -> Iterator[Played]:
        asked.append(list(seeds))
        return play_all(agent, params, make_env, seeds, *args, **kw)

    monkeypatch.setattr(evaluation, "play_all", watched)
    return asked


def test_returns_come_in_the_order_of_the_seeds(returns: np.ndarray) -> None:
    assert returns.dtype == np.float64 and returns.shape == (5,)
    np.testing.assert_array_equal(returns.round() // 1 > 0, True)
    for seed, total in zip(SEEDS, returns, strict=True):
        assert abs(total - seed * (3 + seed % 13)) <= 3 + seed % 13  # as `Ragged` pays
    np.testing.assert_array_equal(evaluate(AGENT, ONE, Ragged, SEEDS[::-1], KEY, envs=3, workers=0), returns[::-1])


@pytest.mark.parametrize("how", ["kill", "hang"])
def test_workers_that_die_or_hang_change_nothing(
    tmp_path: Path, how: str, returns: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "Pool", partial(evaluation.Pool, timeout=6))
    found = evaluate(AGENT, ONE, partial(Faulty, tmp_path, how, 9), SEEDS, KEY, workers=2)
    np.testing.assert_array_equal(found, returns)
    assert len(list(tmp_path.iterdir())) == 1


def test_every_episode_is_noted_when_it_ends_and_not_played_again(
    tmp_path: Path, returns: np.ndarray, played: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "new" / "notes.jsonl"
    whole_reset = Ragged.reset

    def reset(self: Ragged, *, seed: int | None = None, options: dict | None = None) -> tuple:
        if seed == 5:
            raise KeyboardInterrupt
        return whole_reset(self, seed=seed)

    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patched:
        patched.setattr(Ragged, "reset", reset)
        evaluate(AGENT, ONE, Ragged, SEEDS, KEY, envs=1, notes=notes)
    assert [row["seed"] for row in rows(notes)] == [14, 3, 9]
    whole = notes.read_text()
    notes.write_text(whole[:-9])  # a kill came while the last line was written
    np.testing.assert_array_equal(evaluate(AGENT, ONE, Ragged, SEEDS, KEY, envs=2, workers=0, notes=notes), returns)
    np.testing.assert_array_equal(evaluate(AGENT, ONE, Ragged, SEEDS[3:1:-1], KEY, notes=notes), returns[3:1:-1])
    np.testing.assert_array_equal(evaluate(AGENT, ONE, Ragged, SEEDS, KEY, notes=notes), returns)
    assert played == [SEEDS, [9, 5, 7], [], []]
    assert sorted(row["seed"] for row in rows(notes)) == sorted(SEEDS)
    first = rows(notes)[0]
    assert (first["seed"], first["return"], first["steps"], first["terminal"]) == (14, returns[0], 4, False)


class Generous(Ragged):
    """Pays more."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def step(self, action: Any) -> tuple:
        observation, reward, *rest = super().step(action)
        return observation, self.factor * reward, *rest


def test_notes_of_anything_else_are_not_taken_for_ones_own(
    tmp_path: Path, returns: np.ndarray, played: list[list[int]]
) -> None:
    """Of other parameters, keys, agents, step limits and environments."""
    notes, seeds = tmp_path / "notes.jsonl", SEEDS[:2]
    short = AGENT._replace(model=MODEL._replace(spec=SPEC._replace(max_steps=2)))
    still = AGENT._replace(policy=POLICY._replace(act=lambda params, key, features: 0.0 * features[0]))
    calls = [
        (AGENT, ONE, Ragged, KEY),
        (AGENT, OTHER, Ragged, KEY),
        (AGENT, ONE, Ragged, jax.random.key(7)),
        (short, ONE, Ragged, KEY),
        (still, ONE, Ragged, KEY),
        (AGENT, ONE, partial(Generous, 2.0), KEY),
        (AGENT, ONE, partial(Generous, 3.0), KEY),
    ]
    found = [evaluate(*call[:3], seeds, call[3], workers=0, notes=notes) for call in calls]
    assert len({tuple(totals) for totals in found}) == len(calls)
    for call, totals in zip(calls, found, strict=True):
        np.testing.assert_array_equal(evaluate(*call[:3], seeds, call[3], notes=notes), totals)
    np.testing.assert_array_equal(found[0], returns[:2])
    assert played == [seeds] * len(calls) + [[]] * len(calls) and len(rows(notes)) == 2 * len(calls)


def test_a_recorded_episode_is_the_one_that_was_scored(returns: np.ndarray) -> None:
    episode = record_episode(AGENT, ONE, Ragged, SEEDS[2], KEY)
    assert episode.total == returns[2] and episode.recorded is not None
    assert len(episode.recorded.action) == episode.steps + 1 == 13
    assert list(play_all(AGENT, ONE, Ragged, [], KEY)) == []


def test_seeds_may_be_an_array(tmp_path: Path, returns: np.ndarray) -> None:
    seeds, notes = np.array(SEEDS[:2]), tmp_path / "notes.jsonl"
    for _ in range(2):  # played, and read
        np.testing.assert_array_equal(evaluate(AGENT, ONE, Ragged, seeds, KEY, workers=0, notes=notes), returns[:2])
    assert sorted(row["seed"] for row in rows(notes)) == [3, 14]
    assert {one.seed for one in play_all(AGENT, ONE, Ragged, seeds, KEY, workers=0)} == {3, 14}
