"""What tells stored numbers apart: descriptions and fingerprints, in any process."""

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from dreamjax.envs import suites
from dreamjax.envs.vizdoom import TakeCover
from dreamjax.storage.identity import describe, fingerprint, pin

LENGTH = 7
PRINT = """
import sys
from functools import partial
import jax
import numpy as np
from dreamjax import dreamerv3, planning
from dreamjax.acting import random_play
from dreamjax.envs import probes, suites
from dreamjax.envs.vizdoom import TakeCover, take_cover_spec
from dreamjax.storage.identity import fingerprint
from dreamjax.training.devices import device_mesh
agent = dreamerv3.make(dreamerv3.debug(), probes.counter().spec)
planner = planning.agent(planning.Planner(agent.model, mesh=device_mesh("candidates")))
print(fingerprint(agent, planner, np.array([None, "x", 2], object),
                  random_play.random_agent(take_cover_spec(), "held"), partial(TakeCover, skill=4),
                  suites.task("gym_CartPole-v1").make_env, jax.random.key(1), lambda x: x in {"b", "c", "a"}))
"""


@dataclass
class Settings:
    length: int = 3


class Plain:
    def __init__(self, length: int) -> None:
        self.length, self.me = length, self


def make(task: str, **settings: Any) -> gymnasium.Env:
    return gymnasium.make(task, max_episode_steps=LENGTH, **settings)


def made(length: int) -> Any:
    return lambda: gymnasium.make("CartPole-v1", max_episode_steps=length)


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    runs = [
        subprocess.run(
            [sys.executable, "-c", PRINT], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True
        )
        for seed in ("1", "2")
    ]
    assert runs[0].returncode == 0, runs[0].stderr
    assert len(runs[0].stdout.strip()) == 16 and runs[0].stdout == runs[1].stdout


def test_whatever_differs_is_told_apart() -> None:
    box = gymnasium.spaces.Box(0, 1, (2,))
    games = [
        TakeCover,
        partial(TakeCover, skill=4),
        partial(TakeCover, skill=5),
        make,
        partial(make, "a"),
        made(3),
        made(4),
    ]
    games += [suites.task(name).make_env for name in ("gym_CartPole-v1", "gym_Acrobot-v1", "dmc_walker_walk")]
    games += [lambda: gymnasium.make("CartPole-v1"), lambda: gymnasium.make("Acrobot-v1"), lambda x=1: x, lambda x=2: x]
    plain = [Settings(), Settings(4), Plain(3), Plain(4), {"a": 1}, {"a": 2}, (1, 2), [1, 2], (2, 1), {1, 2}, 1, 1.0]
    plain += ["1", b"1", None, True, Path("1/2"), float, np.sin, box, gymnasium.spaces.Discrete(2), np.dtype(np.int8)]
    arrays = [np.zeros(2), np.zeros((2, 1)), np.ones(2), np.zeros(2, np.float32), np.zeros((0, 3)), np.float32(1)]
    arrays += [jax.random.key(0), jax.random.key(1), jnp.bfloat16(2)]
    things: list[Any] = [*games, *plain, *arrays]
    assert len({fingerprint(thing) for thing in things}) == len(things)
    assert fingerprint(made(3)) == fingerprint(made(3)) and fingerprint({"a": 1, "b": 2}) == fingerprint(
        {"b": 2, "a": 1}
    )


def test_globals_and_versions_are_part_of_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"gymnasium@{gymnasium.__version__}" in describe(make) and "LENGTH: 7" in describe(make)
    whole, bare = fingerprint(make), describe(make, code=False)
    assert "@" not in bare
    monkeypatch.setattr(sys.modules[__name__], "LENGTH", 8)
    assert fingerprint(make) != whole and describe(make, code=False) != bare


def test_what_cannot_be_described_is_refused() -> None:
    for thing in (np.random.default_rng(0), object(), partial(make, iter([]))):
        with pytest.raises(ValueError, match=r"next process: use functions, classes and functools\.partial"):
            describe(thing)


def test_models_of_mujoco_and_shapes_are_told_apart() -> None:
    """Which environments of Brax and of gymnax close over."""
    ball = "<mujoco><worldbody><geom size='{}'/></worldbody></mujoco>"
    load = mujoco.MjModel.from_xml_string
    assert describe(load(ball.format(1))) == describe(load(ball.format(1))) != describe(load(ball.format(2)))
    shapes = [jax.eval_shape(lambda length=length: jnp.zeros(length)) for length in (2, 2, 3)]
    assert describe(shapes[0]) == describe(shapes[1]) != describe(shapes[2])


def test_a_run_goes_on_with_what_it_began_with(tmp_path: Path) -> None:
    pin(tmp_path, "world", "a")
    pin(tmp_path, "critic", "b")
    pin(tmp_path, "world", "a")
    with pytest.raises(ValueError, match="another world, a, not c: use another folder"):
        pin(tmp_path, "world", "c")
    pin(tmp_path, "world", "a")
