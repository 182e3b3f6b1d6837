"""DMLab as DreamerV3 has it, on a stand-in for DeepMind Lab, which takes and shows what its documentation says.

docs/users/python_api.md, actions.md and observations.md of google-deepmind/lab.
"""

import sys
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from dreamjax.acting.vector import VectorEnvironment
from dreamjax.envs import suites
from dreamjax.envs.lab import ACTIONS, Lab, embed

CONTROLS = [
    {"max": 512, "min": -512, "name": "LOOK_LEFT_RIGHT_PIXELS_PER_FRAME"},
    {"max": 512, "min": -512, "name": "LOOK_DOWN_UP_PIXELS_PER_FRAME"},
    {"max": 1, "min": -1, "name": "STRAFE_LEFT_RIGHT"},
    {"max": 1, "min": -1, "name": "MOVE_BACK_FORWARD"},
    *({"max": 1, "min": 0, "name": name} for name in ("FIRE", "JUMP", "CROUCH")),
]


class Simulator:
    """Shows the number of frames that have passed on a ground drawn from the seed, and ends after 12 of them."""

    made: ClassVar[list["Simulator"]] = []

    def __init__(self, level: str, observations: list[str], config: dict[str, str], renderer: str = "software") -> None:
        assert all(isinstance(value, str) for value in config.values())
        self.level, self.names, self.renderer, self.status = level, observations, renderer, "made"
        self.shape = (int(config["height"]), int(config["width"]), 3)
        self.commands: list[list[int]] = []
        self.made.append(self)

    def action_spec(self) -> list[dict[str, Any]]:
        return CONTROLS

    def reset(self, episode: int = -1, seed: int | None = None) -> bool:
        assert isinstance(seed, int)
        self.ground = np.random.default_rng(seed).integers(200, size=self.shape, dtype=np.uint8)
        self.frames, self.status = 0, "running"
        return True

    def is_running(self) -> bool:
        return self.status == "running"

    def step(self, action: np.ndarray, num_steps: int = 1) -> float:
        if self.status != "running":
            raise RuntimeError("wrong status to advance")
        assert action.dtype == np.intc and action.shape == (7,)
        for control, value in zip(CONTROLS, action, strict=True):
            assert control["min"] <= value <= control["max"]
        self.commands.append(action.tolist())
        self.frames += num_steps
        self.status = "ended" if self.frames >= 12 else "running"
        return 0.5 * num_steps

    def observations(self) -> dict[str, Any]:
        if self.status != "running":
            raise RuntimeError("wrong status")
        shown = {"RGB_INTERLEAVED": self.ground + np.uint8(self.frames), "INSTR": "Get the red balloon!"}
        return {name: shown[name] for name in self.names}

    def close(self) -> bool:
        self.status = "closed"
        return True


@pytest.fixture(autouse=True)
def simulators(monkeypatch: pytest.MonkeyPatch) -> list[Simulator]:
    module = ModuleType("deepmind_lab")
    module.Lab = Simulator
    monkeypatch.setitem(sys.modules, "deepmind_lab", module)
    monkeypatch.setattr(Simulator, "made", [])
    return Simulator.made


def test_an_episode(simulators: list[Simulator]) -> None:
    found = suites.task("dmlab_explore_goal_locations_small", render_mode="rgb_array")
    with found.make_env() as env:
        first, _ = env.reset(seed=3)
        assert env.observation_space.contains(first) and first["image"].shape == (64, 64, 3)
        assert simulators[0].level == "contributed/dmlab30/explore_goal_locations_small"
        steps = [env.step(0) for _ in range(3)]
        assert [(reward, *flags) for _, reward, *flags, _ in steps] == [(2, False, False)] * 2 + [(2, True, False)]
        shown = [int(seen["image"][0, 0, 0]) - int(first["image"][0, 0, 0]) for seen, *_ in steps]
        assert shown == [4, 8, 8]  # the simulator shows nothing at an end
        np.testing.assert_array_equal(env.render(), steps[-1][0]["image"])
        with pytest.raises(ResetNeeded):
            env.step(0)
        following = env.reset()[0]["image"]
        again = env.reset(seed=3)[0]["image"]
    np.testing.assert_array_equal(first["image"], again)
    assert not np.array_equal(following, again) and not np.array_equal(env.reset(seed=4)[0]["image"], again)
    assert found.suite.repeat == 4


def test_the_actions_are_those_of_the_published_code(simulators: list[Simulator]) -> None:
    env = Lab("rooms_watermaze")
    for number in range(env.action_space.n):
        env.reset(seed=0)
        env.step(number)
    sent = dict(zip(ACTIONS, simulators[0].commands, strict=True))
    assert len(sent) == 15
    assert sent["forward"] == [0, 0, 0, 1, 0, 0, 0] and sent["strafe_left"] == [0, 0, -1, 0, 0, 0, 0]
    assert sent["look_up"] == [0, 10, 0, 0, 0, 0, 0] and sent["spin_right"] == [60, 0, 0, 0, 0, 0, 0]
    assert sent["forward_spin_left"] == [-60, 0, 0, 1, 0, 0, 0] and sent["fire"] == [0, 0, 0, 0, 1, 0, 0]
    assert len({tuple(one) for one in sent.values()}) == 15


def test_levels_that_speak_are_heard() -> None:
    vector = VectorEnvironment(lambda: Lab("language_select_described_object"), 2, 9000)
    step = vector.reset((0,))
    assert step.observation["instruction"].shape == (2, 1024)
    np.testing.assert_array_equal(step.observation["instruction"][0], embed("get THE red, balloon"))
    assert not np.array_equal(step.observation["image"][0], step.observation["image"][1])
    vector.close()


def test_words_are_fixed_vectors() -> None:
    words = embed("red balloon red").reshape(32, 32)
    np.testing.assert_array_equal(words[0], words[2])
    assert np.abs(words[0] - words[1]).max() > 0.1
    np.testing.assert_array_equal(words[3:], embed("").reshape(32, 32)[3:])
    np.testing.assert_array_equal(embed("red " * 40), embed("red " * 32))
    many = np.stack([embed(f"word{i}")[:32] for i in range(500)])
    assert abs(many.mean()) < 0.05 and abs(many.std() - 1) < 0.05


def test_levels_are_trained_on_their_training_half(simulators: list[Simulator]) -> None:
    Lab("rooms_collect_good_objects_test", renderer="software")
    assert simulators[0].level.endswith("/rooms_collect_good_objects_train") and simulators[0].renderer == "software"


def test_bad_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResetNeeded):
        Lab("rooms_watermaze").step(0)
    with pytest.raises(ValueError, match="size must be"):
        Lab("rooms_watermaze", size=0)
    monkeypatch.setitem(sys.modules, "deepmind_lab", None)
    with pytest.raises(ModuleNotFoundError, match=r"DeepMind Lab needs deepmind_lab, .* build it"):
        Lab("rooms_watermaze")
