"""DMLab-30, the levels of DeepMind Lab (Beattie et al. 2016), as environments of Gymnasium.

Written against the documentation of DeepMind Lab, docs/users/python_api.md in its repository, and tested with a
stand-in that keeps to it. Never run with DeepMind Lab itself, which no registry has.
"""

import re
import zlib
from functools import lru_cache
from typing import Any, Literal

import gymnasium
import numpy as np

from dreamjax._extras import by_hand
from dreamjax.envs import pixels

REPEAT = 4  # frames for each action, of 60 a second
FOLDER = "contributed/dmlab30"  # where the levels lie
TOKENS, WIDTH = 32, 32  # of an instruction, and numbers for each
BUCKETS = 65_536  # of words; the first is that of no word
_TURN, _PITCH, _STRAFE, _WALK = (
    "LOOK_LEFT_RIGHT_PIXELS_PER_FRAME",
    "LOOK_DOWN_UP_PIXELS_PER_FRAME",
    "STRAFE_LEFT_RIGHT",
    "MOVE_BACK_FORWARD",
)
ACTIONS: dict[str, dict[str, int]] = {
    "forward": {_WALK: 1},
    "backward": {_WALK: -1},
    "strafe_left": {_STRAFE: -1},
    "strafe_right": {_STRAFE: 1},
    "turn_left": {_TURN: -10},
    "turn_right": {_TURN: 10},
    "spin_left": {_TURN: -60},
    "spin_right": {_TURN: 60},
    "look_down": {_PITCH: -10},
    "look_up": {_PITCH: 10},
    "forward_turn_left": {_WALK: 1, _TURN: -10},
    "forward_turn_right": {_WALK: 1, _TURN: 10},
    "forward_spin_left": {_WALK: 1, _TURN: -60},
    "forward_spin_right": {_WALK: 1, _TURN: 60},
    "fire": {"FIRE": 1},
}
_BUILD = "build it as docs/users/build.md and python/pip_package/README.md of google-deepmind/lab say"


class Lab(gymnasium.Env[dict[str, np.ndarray], np.integer]):
    """One level, such as "explore_goal_locations_small": {"image": uint8 [size, size, 3]}, and 15 actions.

    Levels that speak also have "instruction", float32 [1024]: 32 words, each a fixed random vector of 32 numbers, which
    `embed` draws. An action is repeated for four frames by the simulator. Every end is a termination, that of the
    level's clock too, and the step that ends an episode shows the picture before it again. What is named "..._test" is
    trained on its "..._train". Source: the environment of the published code, Hafner et al. 2023, whose word vectors
    are other draws.

    Args:
      level: its name in the folder of DMLab-30.
      size: height and width of the picture.
      renderer: "hardware" draws by EGL on a GPU, "software" by OSMesa.
      render_mode: "rgb_array" makes `render` return what the agent sees, or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 60 // REPEAT}  # noqa: RUF012, the base class declares it so

    def __init__(
        self,
        level: str,
        size: int = 64,
        renderer: Literal["hardware", "software"] = "hardware",
        render_mode: str | None = None,
    ) -> None:
        with by_hand("DeepMind Lab", _BUILD):
            import deepmind_lab
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.render_mode = pixels.checked_render_mode(render_mode)
        self._speaks = level.startswith("language_")
        trained = re.sub("_test$", "_train", level)
        config = {"width": str(size), "height": str(size), "logLevel": "WARNING"}
        seen = ["RGB_INTERLEAVED", *(["INSTR"] if self._speaks else [])]
        self._game = deepmind_lab.Lab(f"{FOLDER}/{trained}", seen, config=config, renderer=renderer)
        names = [control["name"] for control in self._game.action_spec()]
        controls = [[action.get(name, 0) for name in names] for action in ACTIONS.values()]
        self._controls = np.array(controls, np.intc)
        self._seen: dict[str, np.ndarray] = {}
        space: dict[str, gymnasium.Space] = {"image": gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)}
        if self._speaks:
            space["instruction"] = gymnasium.spaces.Box(-np.inf, np.inf, (TOKENS * WIDTH,), np.float32)
        self.observation_space: Any = gymnasium.spaces.Dict(space)
        self.action_space = gymnasium.spaces.Discrete(len(ACTIONS))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._game.reset(seed=int(self.np_random.integers(2**31)))
        return self._observe(), {}

    def step(self, action: np.integer) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        if not self._seen or not self._game.is_running():
            raise gymnasium.error.ResetNeeded("step needs an episode that is running: call reset first")
        reward = float(self._game.step(self._controls[action], num_steps=REPEAT))
        terminated = not self._game.is_running()
        return self._seen if terminated else self._observe(), reward, terminated, False, {}

    def get_action_meanings(self) -> list[str]:
        """What each action is, such as "strafe_left"."""
        return list(ACTIONS)

    def render(self) -> np.ndarray | None:
        """What the agent sees, uint8 [size, size, 3]."""
        return None if self.render_mode is None else self._seen.get("image")

    def close(self) -> None:
        self._game.close()

    def _observe(self) -> dict[str, np.ndarray]:
        seen = self._game.observations()
        self._seen = {"image": np.array(seen["RGB_INTERLEAVED"])}
        if self._speaks:
            self._seen["instruction"] = embed(seen["INSTR"])
        return self._seen


def embed(instruction: str) -> np.ndarray:
    """Turn a sentence into numbers: its first 32 words, each a vector drawn for it once and for all: float32 [1024].

    A word is told by its CRC-32 modulo 65,536, whatever its case; no word is the first of these.
    """
    words = re.findall(r"\w+", instruction.lower())[:TOKENS]
    buckets = [zlib.crc32(word.encode()) % BUCKETS for word in words]
    return np.concatenate([_vector(bucket) for bucket in buckets + [0] * (TOKENS - len(buckets))])


@lru_cache(maxsize=4096)
def _vector(bucket: int) -> np.ndarray:
    return np.random.default_rng(bucket).standard_normal(WIDTH, np.float32)
