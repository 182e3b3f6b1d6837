"""Minecraft, from nothing to a diamond, as an environment of Gymnasium.

Written against MineDojo 0.1, https://docs.minedojo.org/minedojo/minedojo.sim.html, and verified with its Python half,
to which a stand-in answered for the game. Never run with the game itself, which needs Java 8 and downloads more while
it is built. The published runs had MineRL 0.4.4, patched so that blocks break faster, which MineDojo can by itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium
import numpy as np

from dreamjax._extras import by_hand
from dreamjax.envs import pixels

LENGTH = 36_000  # steps of an episode: half an hour of play
BREAK_SPEED = 100.0  # times that of the game
STICKY_ATTACK, STICKY_JUMP = 30, 10  # steps for which an attack goes on, at the game's own speed; and a jump
STEEPEST = 60  # degrees up and down that the agent can look
MILESTONES = (
    *("log", "planks", "stick", "crafting_table", "wooden_pickaxe", "cobblestone"),
    *("stone_pickaxe", "iron_ore", "furnace", "iron_ingot", "iron_pickaxe", "diamond"),
)
ACTIONS: dict[str, dict[str, Any]] = {
    "noop": {},
    "attack": {"attack": 1},
    "look_up": {"camera": (-15, 0)},
    "look_down": {"camera": (15, 0)},
    "turn_left": {"camera": (0, -15)},
    "turn_right": {"camera": (0, 15)},
    "forward": {"forward": 1},
    "back": {"back": 1},
    "left": {"left": 1},
    "right": {"right": 1},
    "jump": {"jump": 1, "forward": 1},
    "place_dirt": {"place": "dirt"},
    **{f"craft_{item}": {"craft": item} for item in ("planks", "stick", "crafting_table")},
    "place_crafting_table": {"place": "crafting_table"},
    **{f"craft_{item}": {"craft_with_table": item} for item in ("wooden_pickaxe", "stone_pickaxe", "iron_pickaxe")},
    **{f"equip_{item}": {"equip": item} for item in ("stone_pickaxe", "wooden_pickaxe", "iron_pickaxe")},
    "craft_furnace": {"craft_with_table": "furnace"},
    "place_furnace": {"place": "furnace"},
    "smelt_iron_ingot": {"smelt": "iron_ingot"},
}
_KEYS = ("forward", "back", "left", "right", "jump", "sneak", "sprint", "use", "attack", "drop")
_CHOICES = ("craft", "craft_with_table", "smelt", "place", "equip")
_FULL = {"health": ("life", 20.0), "hunger": ("food", 20.0), "breath": ("oxygen", 300.0)}
_HEALTH_REWARD = 0.01
_INSTALL = (
    "install Java 8 as https://docs.minedojo.org/sections/getting_started/install.html says, then minedojo by "
    "pip install --no-deps, because it asks for older packages than dreamjax, and then what it says is missing"
)
_OLD_NAMES = {"int": int, "float": float, "unicode_": np.str_}  # of NumPy 1.23, which MineDojo speaks while it starts


@contextmanager
def _old_numpy() -> Iterator[None]:
    """Give NumPy the names that it had when MineDojo was written, for as long as one is made."""
    missing = {name: value for name, value in _OLD_NAMES.items() if name not in vars(np)}
    for name, value in missing.items():
        setattr(np, name, value)
    try:
        yield
    finally:
        for name in missing:
            delattr(np, name)


class Minecraft(gymnasium.Env[dict[str, np.ndarray], np.integer]):
    """Find a diamond in a new world: a picture and what the agent has, 25 actions, 12 rewards on the way.

    Without a screen, MINEDOJO_HEADLESS=1 must be set before Python starts.

    Observations: "image" uint8 [64, 64, 3]; "inventory" and "inventory_max" float32 [items], how many of each item the
    agent has now, and had at most in this episode; "equipped" float32 [items], a 1 for what it holds; "health",
    "hunger", "breath" float32 [], 1 where full. Both kinds of logs count as "log".

    The reward is 1 when an item of `MILESTONES` is first had in an episode, unless it began with it, and 0.01 times the
    change of "health". The last info says for each of them whether it was had, under "milestones". Death terminates;
    the length truncates, and so does a lost connection to the game.

    A jump goes on for ten steps, forward. An attack goes on for thirty, unless blocks break faster than in the game:
    the published runs had 100 times its speed, because random exploration seldom keeps a button down. A look beyond 60
    degrees up or down is left out.

    A reset with a seed starts the game anew, which takes minutes, in the world of that seed; after it, one without a
    seed starts it once more, and then lets the game draw each world by itself, where no seed reaches.

    Source: Hafner et al. 2023 and the environment of the published code.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012, the base class declares it so

    def __init__(self, length: int = LENGTH, break_speed: float = BREAK_SPEED, render_mode: str | None = None) -> None:
        with by_hand("Minecraft", _INSTALL), _old_numpy():
            from minedojo.sim import ALL_ITEMS, MineDojoSim
        if length < 1 or break_speed <= 0:
            raise ValueError(f"need length >= 1 and break_speed > 0, got {length}, {break_speed}")
        self.render_mode = pixels.checked_render_mode(render_mode)
        self._start_game, self._break_speed = MineDojoSim, break_speed
        self._sticky = {"jump": STICKY_JUMP, "attack": STICKY_ATTACK if break_speed <= 1 else 1}
        self._length = length
        self._items = {name: i for i, name in enumerate(item for item in ALL_ITEMS if item not in ("air", "log2"))}
        self._game: Any = None
        self._is_seeded = False  # the world of the game is that of a seed
        self._left: int | None = None  # steps of the episode, None outside of one
        count = (len(self._items),)
        self.observation_space: Any = gymnasium.spaces.Dict(
            {
                "image": gymnasium.spaces.Box(0, 255, (pixels.SIZE, pixels.SIZE, 3), np.uint8),
                "inventory": gymnasium.spaces.Box(0, np.inf, count, np.float32),
                "inventory_max": gymnasium.spaces.Box(0, np.inf, count, np.float32),
                "equipped": gymnasium.spaces.Box(0, 1, count, np.float32),
                **{name: gymnasium.spaces.Box(0, 1, (), np.float32) for name in _FULL},
            }
        )
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._game is None or self._is_seeded:
            self.close()
            drawn = int(self.np_random.integers(1, 2**31))
            with _old_numpy():
                self._game = self._start_game(
                    image_size=(pixels.SIZE, pixels.SIZE),
                    break_speed_multiplier=self._break_speed,
                    regenerate_world_after_reset=True,
                    world_seed=None if seed is None else drawn,
                    seed=drawn,
                )
            self._is_seeded = seed is not None
        seen = self._game.reset()
        self._left, self._pitch = self._length, 0
        self._held = dict.fromkeys(self._sticky, 0)
        self._most = np.zeros(len(self._items), np.float32)
        self._seen = self._observe(seen)
        return self._seen, {}

    def step(self, action: np.integer) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        if self._left is None:
            raise gymnasium.error.ResetNeeded("step needs an episode that is running: call reset first")
        before, had = self._seen, self._had()
        seen, _, is_over, _ = self._game.step(self._command(list(ACTIONS.values())[int(action)]))
        self._seen = self._observe(seen)
        reward = float(len(self._had() - had))
        reward += _HEALTH_REWARD * float(self._seen["health"] - before["health"])
        self._left -= 1
        terminated = bool(self._seen["health"] <= 0)
        truncated = not terminated and (is_over or self._left == 0)
        if not (terminated or truncated):
            return self._seen, reward, False, False, {}
        self._left = None
        return self._seen, reward, terminated, truncated, {"milestones": {i: i in self._had() for i in MILESTONES}}

    def get_action_meanings(self) -> list[str]:
        """What each action is, such as "craft_planks"."""
        return list(ACTIONS)

    def render(self) -> np.ndarray | None:
        """What the agent sees, uint8 [64, 64, 3]."""
        return None if self.render_mode is None or self._game is None else self._seen["image"]

    def close(self) -> None:
        if self._game is not None:
            self._game.close()
            self._game = None

    def _had(self) -> set[str]:
        """Return the milestones that the agent has had in this episode."""
        return {item for item in MILESTONES if self._most[self._items[item]] > 0}

    def _command(self, action: dict[str, Any]) -> dict[str, Any]:
        """Write an action out as MineDojo wants it: every key, every choice, and the camera."""
        command: dict[str, Any] = (
            dict.fromkeys(_KEYS, 0) | dict.fromkeys(_CHOICES, "none") | {"camera": (0, 0)} | action
        )
        for key, steps in self._sticky.items():
            self._held[key] = steps if command[key] else max(self._held[key] - 1, 0)
            command[key] = int(self._held[key] > 0)
        command["forward"] |= command["jump"]
        pitch, yaw = command["camera"]
        if abs(self._pitch + pitch) > STEEPEST:
            pitch = 0
        self._pitch += pitch
        command["camera"] = np.array([pitch, yaw], np.float64)
        return command

    def _observe(self, seen: dict[str, Any]) -> dict[str, np.ndarray]:
        inventory, equipped = np.zeros((2, len(self._items)), np.float32)
        for name, quantity in zip(seen["inventory"]["name"], seen["inventory"]["quantity"], strict=True):
            if (number := self._number(name)) is not None:
                inventory[number] += quantity
        if (number := self._number(seen["equipment"]["name"][0])) is not None:
            equipped[number] = 1
        self._most = np.maximum(self._most, inventory)
        stats = {
            name: np.clip(np.asarray(seen["life_stats"][stat], np.float32).reshape(()) / full, 0, 1, dtype=np.float32)
            for name, (stat, full) in _FULL.items()
        }
        image = np.ascontiguousarray(np.moveaxis(seen["rgb"], 0, -1))
        return {"image": image, "inventory": inventory, "inventory_max": self._most, "equipped": equipped, **stats}

    def _number(self, name: str) -> int | None:
        """Return which item a name of the game is; no item where nothing is."""
        name = str(name).replace(" ", "_")  # MineDojo writes them with blanks
        return self._items.get("log" if name == "log2" else name)
