"""The Minecraft of DreamerV3 on a stand-in for MineDojo, which takes what the documentation says and shows as much.

https://docs.minedojo.org/minedojo/minedojo.sim.html, and the sections on observations and actions.
"""

import sys
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
from gymnasium.error import ResetNeeded

from dreamjax.acting.vector import VectorEnvironment
from dreamjax.envs import suites
from dreamjax.envs.minecraft import ACTIONS, MILESTONES, Minecraft

ITEMS = ["air", "cobblestone", "crafting_table", "diamond", "dirt", "furnace", "iron_ingot", "iron_ore", "iron_pickaxe"]
ITEMS += ["log", "log2", "planks", "stick", "stone_pickaxe", "wooden_pickaxe"]
KEYS = ["forward", "back", "left", "right", "jump", "sneak", "sprint", "use", "attack", "drop"]
NUMBER = {name: number for number, name in enumerate(ACTIONS)}


class MineDojoSim:
    """Plays a script: after each step, what is in the inventory, and the life that is left."""

    made: ClassVar[list["MineDojoSim"]] = []
    script: ClassVar[list[tuple[dict[str, int], float, bool]]] = []

    def __init__(self, *, image_size, break_speed_multiplier, regenerate_world_after_reset, world_seed, seed) -> None:
        assert image_size == (64, 64) and regenerate_world_after_reset
        assert {"int", "float", "unicode_"} <= set(vars(np))  # MineDojo 0.1 uses these, which NumPy 2 lacks
        self.break_speed, self.world, self.commands, self.is_closed = break_speed_multiplier, world_seed, [], False
        self.made.append(self)

    def reset(self) -> dict[str, Any]:
        self.left = iter(self.script)
        return self.show({}, 20.0)

    def step(self, action: dict[str, Any]) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
        assert set(action) == {*KEYS, "camera", "craft", "craft_with_table", "smelt", "place", "equip"}
        assert all(action[key] in (0, 1) for key in KEYS) and action["camera"].shape == (2,)
        assert all(action[key] in ("none", *ITEMS) for key in ("craft", "craft_with_table", "smelt", "place", "equip"))
        self.commands.append({key: given for key, given in action.items() if np.any(given != self.noop(key))})
        inventory, life, is_over = next(self.left, ({}, 20.0, False))
        return self.show(inventory, life), 0, is_over, {}

    def noop(self, key: str) -> Any:
        return 0 if key in KEYS or key == "camera" else "none"

    def show(self, inventory: dict[str, int], life: float) -> dict[str, Any]:
        names, quantity = np.full(36, "air", "<U30"), np.zeros(36, np.float32)
        for slot, (name, count) in enumerate(inventory.items(), 1):
            names[slot], quantity[slot] = name.replace("_", " "), count
        held = np.array(["wooden pickaxe" if inventory else "air", *["air"] * 5])
        stats = {name: np.array([full], np.float32) for name, full in (("life", life), ("food", 20), ("oxygen", 300))}
        picture = np.zeros((3, 64, 64), np.uint8)
        picture[0] = 200
        return {
            "rgb": picture,
            "inventory": {"name": names, "quantity": quantity},
            "equipment": {"name": held},
            "life_stats": stats | {"food": np.array([10.0])},
        }

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture(autouse=True)
def minedojo(monkeypatch: pytest.MonkeyPatch) -> type[MineDojoSim]:
    package, sim = ModuleType("minedojo"), ModuleType("minedojo.sim")
    sim.ALL_ITEMS, sim.MineDojoSim = ITEMS, MineDojoSim
    monkeypatch.setitem(sys.modules, "minedojo", package)
    monkeypatch.setitem(sys.modules, "minedojo.sim", sim)
    monkeypatch.setattr(MineDojoSim, "made", [])
    monkeypatch.setattr(MineDojoSim, "script", [])
    return MineDojoSim


def commands(env: Minecraft, *names: str) -> list[dict[str, Any]]:
    """Take actions, and tell what the game got."""
    begun = len(MineDojoSim.made[-1].commands)
    for name in names:
        env.step(NUMBER[name])
    told = MineDojoSim.made[-1].commands[begun:]
    return [{k: v.tolist() if k == "camera" else v for k, v in command.items()} for command in told]


def test_what_the_agent_sees(minedojo: type[MineDojoSim]) -> None:
    minedojo.script = [({"log": 3, "log2": 2, "iron_ore": 1}, 15.0, False), ({"log": 1}, 15.0, False)]
    found = suites.task("minecraft_diamond", render_mode="rgb_array")
    env = found.make_env()
    first, _ = env.reset(seed=0)
    assert env.observation_space.contains(first) and not first["equipped"].any()
    assert first["image"].shape == (64, 64, 3) and first["image"][..., 0].min() == 200
    env.step(0)
    second = env.step(0)[0]
    items = [name for name in ITEMS if name not in ("air", "log2")]
    assert {items[i]: second["inventory"][i] for i in second["inventory"].nonzero()[0]} == {"log": 1}
    assert {items[i]: second["inventory_max"][i] for i in second["inventory_max"].nonzero()[0]} == {
        "log": 5,
        "iron_ore": 1,
    }
    assert [items[i] for i in second["equipped"].nonzero()[0]] == ["wooden_pickaxe"]
    assert [float(second[name]) for name in ("health", "hunger", "breath")] == [0.75, 0.5, 1.0]
    np.testing.assert_array_equal(env.render(), second["image"])
    assert found.suite.max_steps == 36_000 and minedojo.made[0].break_speed == 100


def test_each_milestone_pays_once_and_health_pays_by_the_change(minedojo: type[MineDojoSim]) -> None:
    minedojo.script = [
        ({"log": 1}, 20.0, False),
        ({"planks": 4, "stick": 2}, 20.0, False),
        ({"log": 1, "dirt": 9}, 18.0, False),
        ({"log": 1}, 20.0, False),
        ({"diamond": 1}, 0.0, True),
    ]
    vector = VectorEnvironment(Minecraft, 1, 36_000)
    vector.reset((0,))
    steps = [vector.step(np.array([NUMBER["attack"]])) for _ in range(5)]
    np.testing.assert_allclose([float(step.reward[0]) for step in steps], [1, 2, -0.001, 0.001, 0.99], atol=1e-6)
    assert steps[-1].is_terminal[0] and not any(step.is_last[0] for step in steps[:-1])
    had = {name for name in MILESTONES if vector.info[0][f"milestones/{name}"]}
    assert had == {"log", "planks", "stick", "diamond"} and len(vector.info[0]) == 12
    vector.close()


def test_the_length_and_a_lost_connection_truncate(minedojo: type[MineDojoSim]) -> None:
    env = Minecraft(length=2)
    env.reset(seed=0)
    assert [env.step(0)[2:4] for _ in range(2)] == [(False, False), (False, True)]
    with pytest.raises(ResetNeeded):
        env.step(0)
    minedojo.script = [({}, 20.0, True)]
    env.reset()
    assert env.step(0)[2:4] == (False, True)


def test_actions_are_those_of_the_published_code() -> None:
    env = Minecraft()
    env.reset(seed=0)
    assert env.action_space.n == len(ACTIONS) == 25
    assert commands(env, "noop", "attack", "noop", "left") == [{}, {"attack": 1}, {}, {"left": 1}]
    assert commands(
        env, "craft_stick", "craft_stone_pickaxe", "smelt_iron_ingot", "equip_iron_pickaxe", "place_dirt"
    ) == [
        *({"craft": "stick"}, {"craft_with_table": "stone_pickaxe"}, {"smelt": "iron_ingot"}),
        *({"equip": "iron_pickaxe"}, {"place": "dirt"}),
    ]
    held = commands(env, "jump", *["noop"] * 8, "back", "back")
    assert held[:9] == [{"forward": 1, "jump": 1}] * 9
    assert held[9:] == [{"forward": 1, "jump": 1, "back": 1}, {"back": 1}]


def test_the_agent_cannot_look_further_than_60_degrees() -> None:
    env = Minecraft()
    env.reset(seed=0)
    assert commands(env, *["look_up"] * 5, "turn_left", "look_down") == [
        *[{"camera": [-15, 0]}] * 4,
        *({}, {"camera": [0, -15]}, {"camera": [15, 0]}),
    ]


def test_an_attack_goes_on_at_the_speed_of_the_game() -> None:
    env = Minecraft(break_speed=1)
    env.reset(seed=0)
    told = commands(env, "attack", *["forward"] * 30)
    assert told == [{"attack": 1}, *[{"attack": 1, "forward": 1}] * 29, {"forward": 1}]


def test_seeds_name_worlds_and_without_them_the_game_goes_on(minedojo: type[MineDojoSim]) -> None:
    env = Minecraft()
    for seed in (1, 1, 2):
        env.reset(seed=seed)
    first, again, other = (game.world for game in minedojo.made)
    assert first == again != other
    env.reset()
    env.reset()
    assert [game.world for game in minedojo.made[3:]] == [None]
    assert [game.is_closed for game in minedojo.made] == [True] * 3 + [False]
    assert not hasattr(np, "int")
    env.close()
    assert minedojo.made[-1].is_closed


def test_bad_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="minecraft_diamond"):
        suites.task("minecraft_wood").make_env()
    with pytest.raises(ValueError, match="length >= 1"):
        Minecraft(length=0)
    with pytest.raises(ResetNeeded):
        Minecraft().step(0)
    monkeypatch.setitem(sys.modules, "minedojo", None)
    monkeypatch.delitem(sys.modules, "minedojo.sim")
    with pytest.raises(ModuleNotFoundError, match=r"Minecraft needs minedojo, .* install Java 8"):
        Minecraft()
