"""Agents that learn together in host environments: the numbers of the jitted loop, and going on from a file."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.acting.vector import VectorEnvironment
from dreamjax.dreamerv3.config import debug
from dreamjax.dreamerv3.loop import LoopConfig
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.dreamerv3.sweep import stacked
from dreamjax.envs import probes
from dreamjax.envs.gymnasium import to_gymnasium
from dreamjax.optim import LaPropConfig
from dreamjax.storage import MetricsLog, RunFolder, read_metrics
from dreamjax.training.hosted import HostedLoop
from dreamjax.training.jitted import jitted_loop, learned, train_agents

GAME = probes.counter(size=4, max_steps=6)
# A gradient next to nothing, divided by its size, has a sign that the order of sums decides; eps is above that.
CFG = replace(debug(), optimizer=LaPropConfig(1e-3, warmup=1, eps=1e-2), compute_dtype="float32")
LOOP = LoopConfig(envs=2, batch_size=4, batch_length=4, train_ratio=4.0, capacity=40)  # full before the end
DREAMER = Dreamer.of(CFG, GAME.spec)
AGENTS = {f"seed {seed}": (seed, CFG) for seed in range(2)}


@pytest.fixture(autouse=True)
def sliced_keys() -> Iterator[None]:
    """The check of key reuse takes what is left of an array of keys for used once a part was sliced from it."""
    with jax.debug_key_reuse(False):
        yield


@contextmanager
def environments(count: int) -> Iterator[VectorEnvironment]:
    with closing(VectorEnvironment(partial(to_gymnasium, GAME), count, GAME.spec.max_steps)) as made:
        yield made


def test_the_numbers_are_those_of_the_jitted_loop() -> None:
    assert LOOP.rhythm == (1, 2)
    keys, hyper = jax.vmap(jax.random.key)(jnp.arange(2)), stacked([CFG] * 2)
    found = []
    with environments(4) as vector:
        for several in (HostedLoop(DREAMER, vector, LOOP, 2, (0, 1)), jitted_loop(DREAMER, GAME, LOOP, 2)):
            state, told = several.place(several.begin(keys, hyper)), []
            for number in range(3):
                numbers = 4 * number + jnp.arange(4)
                fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
                state, progress = several.advance(state, fold(keys, numbers))
                told.append(progress)
            found.append((state.learner, state.step, state.agent, state.replay, told))
    hosted, pure = found
    assert int(hosted[0].step[0]) == 12 and int(sum(one.finished.sum() for one in hosted[-1])) > 0
    for x, y in zip(*map(jax.tree.leaves, (hosted, pure)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)  # twelve updates of 1e-3 each; the replay is discrete


def test_training_goes_on_in_new_episodes_and_repeats_nothing(tmp_path: Path) -> None:
    run, how = RunFolder(tmp_path, CFG), {"per_call": 3, "checkpoint_every": 1}
    with environments(4) as vector, MetricsLog(tmp_path) as log:
        first = train_agents(run, log, "train", DREAMER, vector, LOOP, AGENTS, calls=2, **how)
    with environments(4) as vector, MetricsLog(tmp_path) as log:
        again = train_agents(run, log, "train", DREAMER, vector, LOOP, AGENTS, calls=2, **how)
        jax.tree.map(np.testing.assert_array_equal, first, again)
        resets = []
        vector.reset = lambda seed, reset=vector.reset: resets.append(seed) or reset(seed)  # type: ignore[method-assign]
        train_agents(run, log, "train", DREAMER, vector, LOOP, AGENTS, calls=4, **how)
    steps, returns = learned(run, "train", list(AGENTS))["seed 1"]
    assert 0 <= returns.min() <= returns.max() <= 1 and len(steps) == len(set(steps.tolist()))
    # 8 steps of each environment make the first batch, and every iteration 2 more.
    assert resets == [(0, 1, 8 + 2 * 2 * 3)]


class Scored(gymnasium.Wrapper):
    """Tells another score with each step, and which environment it is."""

    numbers = count()

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.number = next(self.numbers)

    def step(self, action: Any) -> Any:
        *rest, info = self.env.step(action)
        return *rest, info | {"half": rest[1] / 2, "number": self.number}


def test_what_environments_tell_at_the_ends_of_episodes_is_kept_for_each_agent(tmp_path: Path) -> None:
    run, make = RunFolder(tmp_path, CFG), lambda: Scored(to_gymnasium(GAME))
    with closing(VectorEnvironment(make, 4, GAME.spec.max_steps)) as vector, MetricsLog(tmp_path) as log:
        train_agents(run, log, "train", DREAMER, vector, LOOP, AGENTS, calls=1, per_call=6, checkpoint_every=1)
    told = read_metrics(tmp_path / "metrics.jsonl")["train"]
    for agent in AGENTS:  # whose only reward comes with the last step
        assert told[f"info/half/{agent}"][1][0] == pytest.approx(told[f"return/{agent}"][1][0] / 2)
    first, second = (told[f"info/number/{agent}"][1][0] for agent in AGENTS)
    assert second - first >= 1  # means over the first two environments and the two after them


def test_a_replay_too_large_for_the_machine_is_refused_before_it_is_made(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, CFG)
    large = replace(LOOP, capacity=2**31 - 1), AGENTS
    with pytest.raises(ValueError, match=r"the replays of all agents take up to \d+ GiB, .* set capacity to [1-9]"):
        train_agents(run, MetricsLog(tmp_path), "train", DREAMER, GAME, *large, calls=1, per_call=1, checkpoint_every=1)
    with pytest.raises(ValueError, match=r"capacity must be below 2\*\*31 steps"):
        replace(LOOP, capacity=2**31)
    with environments(4) as vector, pytest.raises(ValueError, match="the replays of all agents take up to"):
        train_agents(
            run, MetricsLog(tmp_path), "train", DREAMER, vector, *large, calls=1, per_call=1, checkpoint_every=1
        )


def test_environments_are_those_of_every_agent() -> None:
    with environments(3) as vector, pytest.raises(ValueError, match="2 agents need 4 environments, got 3"):
        HostedLoop(DREAMER, vector, LOOP, 2, (0, 1))
