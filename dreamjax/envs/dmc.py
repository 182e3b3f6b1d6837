"""The DeepMind Control Suite, as environments of Gymnasium.

Verified against dm_control 1.0.50 with mujoco 3.17. Pixels need MUJOCO_GL=egl (or osmesa) where there is no screen.
"""

from typing import Any, Literal

import gymnasium
import numpy as np

try:
    import mujoco
    from dm_control import suite
except ModuleNotFoundError as error:  # other import errors are about OpenGL, and say so
    raise ModuleNotFoundError("the Control Suite is an extra: pip install 'dreamjax[suites]'") from error

LIMIT = 1000  # simulated steps of an episode
CAMERAS = {"quadruped": 2}  # that see more than camera 0


class ControlSuite(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """One task, such as "walker_walk": vectors by name (scalars without axes), or one picture named "image".

    Each action is repeated; its reward is the sum. No episode of the suite ends but by its time limit, which is a
    truncation, unless the task says that its future return is zero.

    Raises: ValueError for settings that do not exist, RuntimeError for pixels where MuJoCo cannot draw.
    """

    def __init__(
        self, task: str, repeat: int = 2, observation: Literal["vectors", "pixels"] = "vectors", size: int = 64
    ) -> None:
        known = {f"{domain}_{name}": (domain, name) for domain, name in suite.ALL_TASKS}
        if task not in known:
            raise ValueError(f"unknown task {task!r}; there are {', '.join(sorted(known))}")
        if repeat < 1 or observation not in ("vectors", "pixels"):
            raise ValueError(f'need repeat >= 1 and observation "vectors" or "pixels", got {repeat}, {observation!r}')
        self._task, self._repeat, self._size = known[task], repeat, size
        self._pixels = observation == "pixels"
        self._load(None)
        if self._pixels:
            self._try_to_draw()
        shape = (size, size, 3)
        self.observation_space: Any = gymnasium.spaces.Dict(
            {"image": gymnasium.spaces.Box(0, 255, shape, np.uint8)}
            if self._pixels
            else {
                name: gymnasium.spaces.Box(-np.inf, np.inf, value.shape, np.float32)
                for name, value in _vectors(self._game.observation_spec()).items()
            }
        )
        action = self._game.action_spec()
        low, high = (np.broadcast_to(bound, action.shape) for bound in (action.minimum, action.maximum))
        self.action_space = gymnasium.spaces.Box(low.astype(np.float32), high.astype(np.float32))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._load(seed)
        return self._observe(self._game.reset()), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = 0.0
        for _ in range(self._repeat):
            arrived = self._game.step(action)
            reward += arrived.reward or 0.0
            if arrived.last():
                break
        terminated = arrived.last() and arrived.discount == 0
        return self._observe(arrived), reward, terminated, arrived.last() and not terminated, {}

    def render(self) -> np.ndarray:
        camera = CAMERAS.get(self._task[0], 0)
        return self._game.physics.render(self._size, self._size, camera_id=camera)

    def _try_to_draw(self) -> None:
        try:
            self.render()
        except (RuntimeError, mujoco.FatalError) as error:
            raise RuntimeError(
                "MuJoCo cannot draw: set MUJOCO_GL=egl (needs a GPU, or Mesa's libegl1) or MUJOCO_GL=osmesa (needs "
                "libosmesa6) before Python starts"
            ) from error

    def _load(self, seed: int | None) -> None:
        self._game = suite.load(*self._task, task_kwargs={"random": seed})

    def _observe(self, arrived: Any) -> dict[str, np.ndarray]:
        if self._pixels:
            return {"image": self.render()}
        return {name: np.asarray(value, np.float32) for name, value in _vectors(arrived.observation).items()}


def _vectors(observation: Any) -> dict[str, Any]:
    """Give entries names that paths can hold, and leave out those of no size."""
    return {name.replace("/", "_"): value for name, value in observation.items() if np.prod(value.shape)}
