from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.storage.agents import StoredAgent, load_agent, save_agent
from dreamjax.storage.checkpoints import CheckpointError
from dreamjax.worldmodels import controller, memory, model, vision

WORLD = model.WorldModelConfig(vision.VisionConfig(4), memory.MemoryConfig(4, hidden_size=3))
MODEL = model.make(WORLD)
POLICY = controller.make(controller.ControllerConfig("doom", model.feature_size(WORLD)))


@pytest.fixture
def agent() -> StoredAgent:
    starts = (jnp.arange(20, dtype=jnp.float32).reshape(5, 4), jnp.zeros((5, 4)))
    return StoredAgent(MODEL.init(jax.random.key(0)), {"kernel": jnp.linspace(-1, 1, 10)}, starts)


def test_comes_back_rounded_to_half_precision(agent: StoredAgent, tmp_path: Path) -> None:
    save_agent(tmp_path / "agent.npz", agent)
    back = load_agent(tmp_path / "agent.npz", MODEL, POLICY)
    assert jax.tree.structure(back) == jax.tree.structure(agent)
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(agent), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_array_equal(ours, np.asarray(theirs).astype(np.float16).astype(np.float32))


def test_another_model_is_refused_with_the_difference(agent: StoredAgent, tmp_path: Path) -> None:
    save_agent(tmp_path / "agent.npz", agent)
    other = model.WorldModelConfig(vision.VisionConfig(4), memory.MemoryConfig(4, hidden_size=6))
    policy = controller.make(controller.ControllerConfig("doom", model.feature_size(other)))
    with pytest.raises(ValueError, match="controller/kernel"):
        load_agent(tmp_path / "agent.npz", model.make(other), policy)


def test_damage_and_absence_are_told_apart(agent: StoredAgent, tmp_path: Path) -> None:
    path = tmp_path / "agent.npz"
    with pytest.raises(FileNotFoundError):
        load_agent(path, MODEL, POLICY)
    save_agent(path, agent)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"agent\.npz"):
        load_agent(path, MODEL, POLICY)
    path.write_bytes(content[: len(content) // 3])
    with pytest.raises(CheckpointError, match=r"agent\.npz"):
        load_agent(path, MODEL, POLICY)
