"""Iterations of dreaming, acting and learning, where it is known which dreams mislead."""

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

from dreamjax.acting import Pool
from dreamjax.evolution import EvolutionConfig
from dreamjax.optim import AdamConfig
from dreamjax.replay.latents import Latents
from dreamjax.storage import Change, MetricsLog, RunFolder, read_metrics
from dreamjax.training.iterative import IterativeConfig, learn_memory, train_iteratively
from dreamjax.training.stages import TrainMemory
from dreamjax.types import Agent, AgentParams, Array, EnvSpec, Key, LatentModel, Outcome, Params, Policy, Space
from dreamjax.worldmodels import MemoryConfig, VisionConfig, WorldModelConfig, WorldModelParams, memory

STEPS = 4
SPEC = EnvSpec(Space((1,), np.float32, -1.0, 1.0), Space((), np.float32, -1.0, 1.0), STEPS)
SETTINGS = IterativeConfig(3, generations=2, dream_episodes=1, episodes=3, evaluation_episodes=2)
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


def act(params: Params, key: Key, features: Array) -> Array:
    del key
    return jnp.tanh((params * features).sum())


AGENT = Agent(pushing(), Policy(lambda key: jnp.zeros(1), act))
PAYS = [0.5, -1.0]  # what the dream is taught after the first iteration, and after the second


def iterate(folder: Path, taught: list[tuple[int, int]], config: IterativeConfig = SETTINGS) -> AgentParams:
    def learn(number: int, seen: Sequence[Latents]) -> Params:
        taught.append((number, sum(len(one.length) for one in seen)))
        assert all((one.length == STEPS + 1).all() and not one.is_terminal.any() for one in seen)
        return {"pays": jnp.float32(PAYS[number - 1])}

    starts = jnp.zeros((2, 1)), jnp.zeros((2, 1))
    begun = AgentParams(AGENT.model.init(jax.random.key(0)), jnp.zeros(1), starts)
    key, run = jax.random.key(1), RunFolder(folder, config, {"iterations": Change()})
    with MetricsLog(folder) as log:
        return train_iteratively(
            config, EVOLVES, run, log, key, AGENT, begun, learn, open_pool=partial(Pool, Push, 2, 1), name="push"
        )


def test_the_agent_that_scored_best_is_kept_whatever_a_later_dream_says(tmp_path: Path) -> None:
    taught: list[tuple[int, int]] = []
    best = iterate(tmp_path, taught)
    assert taught == [(1, 5), (2, 10)]  # iterations, and the episodes of all of them
    returns = read_metrics(tmp_path / "metrics.jsonl")["push-iteration"]["evaluation_mean"][1]
    assert returns[1] > returns[0] > 0.1, "the dream is right twice"
    assert returns[2] < returns[1], "and then it wants the opposite"
    np.testing.assert_allclose(STEPS * act(best.policy, jax.random.key(0), jnp.ones(1)), returns[1], atol=0.01)
    assert best.model["pays"] == PAYS[0]


def test_a_finished_run_answers_again_without_acting(tmp_path: Path) -> None:
    short = replace(SETTINGS, iterations=1)
    once = iterate(tmp_path, [], short)
    before = (tmp_path / "metrics.jsonl").read_text()
    again = iterate(tmp_path, [], short)
    jax.tree.map(np.testing.assert_array_equal, once, again)
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_fewer_iterations_than_were_done_are_refused(tmp_path: Path) -> None:
    cfg = replace(SETTINGS, iterations=2)
    iterate(tmp_path, [], cfg)
    with pytest.raises(ValueError, match="has 2 iterations already, more than the 1 that were asked for"):
        iterate(tmp_path, [], replace(cfg, iterations=1))


def test_an_iteration_without_episodes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        IterativeConfig(evaluation_episodes=0)


WORLD = WorldModelConfig(VisionConfig(latent_size=2), MemoryConfig(latent_size=2, hidden_size=4, mixtures=1))


def latents_of(episodes: int) -> Latents:
    """Episodes of five steps, all alike."""
    n = 5 * episodes
    mean, flags = np.ones((n, 2), np.float16), np.zeros(n, bool)
    return Latents(mean, -mean, np.zeros(n, np.float16), np.zeros(n, np.float32), flags, np.full(episodes, 5))


def test_memory_learns_further_after_each_iteration_and_leaves_the_first_world_as_it_is(tmp_path: Path) -> None:
    """Two updates each, the second iteration goes on where the first ended, and a restart finds the same parameters."""
    cfg = TrainMemory(2, streams=2, length=3, optimizer=AdamConfig(0.1))
    begun = WorldModelParams({"kernel": jnp.ones(3)}, memory.init(WORLD.memory, jax.random.key(0)))
    before = jax.tree.map(np.array, begun)

    def learned(folder: Path) -> list[WorldModelParams]:
        with MetricsLog(folder) as log:
            run, key = RunFolder(folder, cfg), jax.random.key(1)
            learn = learn_memory(run, log, key, cfg, WORLD, begun, latents_of(2), seed=3)
            return [jax.tree.map(np.array, learn(number, [latents_of(1)] * number)) for number in (1, 2)]

    first, second = learned(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, begun, before)
    np.testing.assert_array_equal(first.vision["kernel"], np.ones(3))
    changed = [
        any((a != b).any() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
        for one, other in ((before.memory, first.memory), (first.memory, second.memory))
    ]
    assert changed == [True, True]
    np.testing.assert_array_equal(read_metrics(tmp_path / "metrics.jsonl")["memory"]["loss"][0], [2, 4])
    jax.tree.map(np.testing.assert_array_equal, learned(tmp_path)[1], second)
