"""Rounds of dreaming, playing and learning, where it is known which dreams mislead."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.acting.pool import GamePool
from dreamjax.evolution import EvolutionConfig
from dreamjax.replay.latents import Latents
from dreamjax.storage.agents import StoredAgent
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog, read_metrics
from dreamjax.training.iterative import Player, RoundsConfig, evolve_in_rounds
from dreamjax.types import Array, EnvSpec, LatentModel, Outcome, Params, Policy, Space

STEPS = 4
SPEC = EnvSpec(Space((1,), np.float32, -1.0, 1.0), Space((), np.float32, -1.0, 1.0), STEPS)
SETTINGS = RoundsConfig(count=3, generations=2, dreams=1, episodes=3, evaluation_episodes=2)
EVOLVES = EvolutionConfig(population_size=8, sigma=0.1)


class Push(gymnasium.Env):
    """Pays what is pushed, up to 1 a step."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, ())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        return np.zeros(1, np.float32), float(action), False, self.steps == STEPS, {}


def pushing() -> LatentModel:
    """Dreams of paying `pays` for what is pushed. Its state is the last action."""
    return LatentModel(
        init=lambda key: {"pays": jnp.float32(1)},
        start=lambda params: jnp.float32(0),
        encode=lambda params, observation: (observation, observation),
        observe=lambda params, key, state, action, embedding, is_first: action,
        imagine=lambda params, key, state, action, temperature: action,
        features=lambda state: jnp.ones(1),
        outcome=lambda params, state: Outcome(params["pays"] * state, jnp.float32(1)),
        decode=lambda params, state: state[None],
        spec=SPEC,
    )


def act(params: Params, key: Array, features: Array) -> Array:
    del key
    return jnp.tanh((params * features).sum())


MODEL, POLICY = pushing(), Policy(lambda key: jnp.zeros(1), act)
PAYS = [0.5, -1.0]  # what the dream is taught after the first round, and after the second


def rounds(folder: Path, taught: list[tuple[int, int]], config: RoundsConfig = SETTINGS) -> StoredAgent:
    def learn(number: int, seen: Sequence[Latents]) -> Params:
        taught.append((number, sum(len(one.length) for one in seen)))
        assert all((one.length == STEPS + 1).all() and not one.is_terminal.any() for one in seen)
        return {"pays": jnp.float32(PAYS[number - 1])}

    player = Player("push", MODEL, POLICY, partial(GamePool, Push, SPEC.observation, 1, 2))
    starts = jnp.zeros((2, 1)), jnp.zeros((2, 1))
    begun = StoredAgent(MODEL.init(jax.random.key(0)), jnp.zeros(1), starts)
    run = RunFolder(folder, config)
    with MetricsLog(folder) as log:
        return evolve_in_rounds(config, EVOLVES, run, log, jax.random.key(1), player, begun, learn)


def test_the_agent_that_played_best_is_kept_whatever_a_later_dream_says(tmp_path: Path) -> None:
    taught: list[tuple[int, int]] = []
    agent = rounds(tmp_path, taught)
    assert taught == [(1, 5), (2, 10)]  # rounds, and the episodes of all of them
    played = read_metrics(tmp_path / "metrics.jsonl")["push-round"]["evaluation_mean"][1]
    assert played[1] > played[0] > 0.1, "the dream is right twice"
    assert played[2] < played[1], "and then it wants the opposite"
    np.testing.assert_allclose(STEPS * act(agent.controller, jax.random.key(0), jnp.ones(1)), played[1], atol=0.01)
    assert agent.model["pays"] == PAYS[0]


def test_a_finished_run_answers_again_without_playing(tmp_path: Path) -> None:
    short = replace(SETTINGS, count=1)
    once = rounds(tmp_path, [], short)
    before = (tmp_path / "metrics.jsonl").read_text()
    again = rounds(tmp_path, [], short)
    jax.tree.map(np.testing.assert_array_equal, once, again)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_round_without_games_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        RoundsConfig(evaluation_episodes=0)
