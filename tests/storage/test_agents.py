"""Agents on disk: what comes back, in this process and in another, and what is refused with advice."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from dreamjax import dream, dreamerv3, rollout
from dreamjax.dreamerv3.config import debug
from dreamjax.envs import probes
from dreamjax.envs.car_racing import car_racing_spec
from dreamjax.envs.vizdoom import take_cover_spec
from dreamjax.storage.agents import copy_agent, describe, load, read_stored, save_agent
from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.storage.leaves import CheckpointError
from dreamjax.types import Agent, AgentParams, Step
from dreamjax.worldmodels.controller import ControllerConfig
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.model import CAR_RACING, DOOM, WorldModelConfig, make
from dreamjax.worldmodels.vision import VisionConfig

RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "results"
WORLD = WorldModelConfig(VisionConfig(4), MemoryConfig(4, 3, hidden_size=3), ControllerConfig(2, clipped=(0, 2)), "zh")
AGENT = make(WORLD, car_racing_spec(max_steps=7))


@pytest.fixture
def params() -> AgentParams:
    starts = (jnp.arange(20, dtype=jnp.float32).reshape(5, 4), jnp.zeros((5, 4)))
    policy = jax.tree.map(lambda leaf: jnp.linspace(-1, 1, leaf.size).reshape(leaf.shape), AGENT.policy.init(None))
    return AgentParams(AGENT.model.init(jax.random.key(0)), policy, starts)


def test_comes_back_as_the_same_agent_rounded_to_half_precision(params: AgentParams, tmp_path: Path) -> None:
    save_agent(tmp_path / "agent.npz", WORLD, AGENT, params)
    for path in (tmp_path / "agent.npz", tmp_path, str(tmp_path)):
        agent, back = load(path)
        assert agent is AGENT
        assert jax.tree.structure(back) == jax.tree.structure(params)
        for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
            assert ours.dtype == jnp.float32
            np.testing.assert_array_equal(ours, np.asarray(theirs).astype(np.float16).astype(np.float32))


def test_an_agent_need_not_have_starts(params: AgentParams, tmp_path: Path) -> None:
    save_agent(tmp_path / "agent.npz", WORLD, AGENT, params._replace(starts=()))
    assert load(tmp_path)[1].starts == ()


def test_an_agent_of_another_shape_is_refused_with_the_difference(params: AgentParams, tmp_path: Path) -> None:
    save_agent(tmp_path / "agent.npz", WORLD, AGENT, params)
    describe(tmp_path, replace(WORLD, memory=replace(WORLD.memory, hidden_size=6)), AGENT.model.spec)
    with pytest.raises(ValueError, match="policy/hidden/kernel"):
        load(tmp_path)


def test_damage_and_absence_are_told_apart(params: AgentParams, tmp_path: Path) -> None:
    path = tmp_path / "agent.npz"
    with pytest.raises(FileNotFoundError, match="there is no agent at"):
        load(path)
    with pytest.raises(
        FileNotFoundError, match=r"neither a stored agent nor checkpoints: name a file of save_agent, or train"
    ):
        load(tmp_path)
    save_agent(path, WORLD, AGENT, params)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"agent\.npz"):
        load(path)
    path.write_bytes(content[: len(content) // 3])
    with pytest.raises(CheckpointError, match=r"agent\.npz"):
        load(path)


def test_an_agent_travels_as_safetensors_and_back(params: AgentParams, tmp_path: Path) -> None:
    save_agent(tmp_path / "agent.npz", WORLD, AGENT, params)
    there, back = tmp_path / "there", tmp_path / "back"
    copy_agent(tmp_path, there / "agent.safetensors")
    with safe_open(there / "agent.safetensors", "numpy") as stored:  # as anyone reads it
        assert "policy/hidden/kernel" in stored.keys()  # noqa: SIM118
        np.testing.assert_allclose(stored.get_tensor("policy/hidden/kernel"), params.policy["hidden"]["kernel"], 1e-3)
    agent, found = load(there)
    assert agent is AGENT
    jax.tree.map(np.testing.assert_array_equal, found, load(tmp_path)[1])
    with pytest.raises(ValueError, match=r"holds agent\.safetensors, whose description agent\.npz would replace"):
        copy_agent(there, there / "agent.npz")
    copy_agent(there, back / "agent.npz")
    assert (back / "agent.npz").read_bytes() == (tmp_path / "agent.npz").read_bytes()
    content = (there / "agent.safetensors").read_bytes()
    (there / "agent.safetensors").write_bytes(content[: len(content) // 3])
    with pytest.raises(CheckpointError, match=r"agent\.safetensors is damaged"):
        load(there)


def test_a_missing_description_says_what_to_do(params: AgentParams, tmp_path: Path) -> None:
    save_agent(tmp_path / "agent.npz", WORLD, AGENT, params)
    (tmp_path / "agent.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"agent\.json is missing.*copy it along with the parameters"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("system", "muzero"),
        ("config", {"sees": "zh"}),
        ("config", {"features": "hz"}),
        ("config", None),
        ("spec", {"observation": {}}),
        ("spec", 3),
    ],
)
def test_a_description_of_another_version_is_refused(
    params: AgentParams, tmp_path: Path, key: str, value: object
) -> None:
    save_agent(tmp_path / "agent.npz", WORLD, AGENT, params)
    written = json.loads((tmp_path / "agent.json").read_text())
    (tmp_path / "agent.json").write_text(json.dumps(written | {key: value}))
    with pytest.raises(ValueError, match=r"agent\.json does not describe an agent of this version of dreamjax"):
        load(tmp_path)


def test_a_folder_with_other_agents_names_them() -> None:
    with pytest.raises(FileNotFoundError, match=r"neither .*has agent-full-dream\.npz"):
        load(RESULTS / "car_racing")


def test_an_agent_needs_a_configuration_of_a_system(params: AgentParams, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="WorldModelConfig or a DreamerConfig, got int"):
        save_agent(tmp_path / "agent.npz", 3, AGENT, params)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"stored as \.npz or \.safetensors, got 'agent\.json'"):
        save_agent(tmp_path / "agent.json", WORLD, AGENT, params)


# DreamerV3

DREAMER, SPEC = debug(), probes.counter().spec


def test_a_run_folder_gives_the_agent_of_its_newest_checkpoint(tmp_path: Path) -> None:
    description = dreamerv3.model.Dreamer.of(DREAMER, SPEC)
    old, new = (dreamerv3.learner.init(description, jax.random.key(seed)) for seed in (0, 1))
    describe(tmp_path, DREAMER, SPEC)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .* train first"):
        load(tmp_path)
    checkpoints.save(1, old)
    checkpoints.save(2, new)
    agent, back = load(tmp_path)
    assert agent is dreamerv3.model.make(DREAMER, SPEC) and back.starts == ()
    expected = AgentParams(new.params.model, new.params.policy)
    jax.tree.map(np.testing.assert_array_equal, back, expected)
    found = read_stored(tmp_path)
    assert found.config == DREAMER and found.task is None
    jax.tree.map(np.testing.assert_array_equal, found.value, new.params.value)
    (tmp_path / "config.json").write_text('{"task": "counter", "seed": 0}')  # of the run
    assert read_stored(tmp_path).task == "counter"
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "state")
    with pytest.warns(UserWarning, match="checkpoint 2 .*left as it is"):  # this may be a run under way
        jax.tree.map(np.testing.assert_array_equal, load(tmp_path)[1].policy, old.params.policy)
    assert checkpoints.steps() == [1, 2]
    (tmp_path / "agent.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"agent\.json is missing"):
        load(tmp_path)


def test_a_dreamer_is_stored_in_a_file_and_dreams(tmp_path: Path) -> None:
    agent = dreamerv3.model.make(DREAMER, SPEC)
    params = dreamerv3.learner.init(dreamerv3.model.Dreamer.of(DREAMER, SPEC), jax.random.key(0)).params
    start = agent.model.encode(params.model, jnp.zeros(SPEC.observation.shape, SPEC.observation.dtype))
    save_agent(tmp_path / "agent.npz", DREAMER, agent, AgentParams(params.model, params.policy, start[None]))
    back = load(tmp_path)
    assert back[0] is agent and back[1].starts.dtype == start.dtype == jnp.bfloat16
    dreamed = dream.imagine(*back, jax.random.key(1), agent.model.start(params.model), 3)
    assert dreamed.actions.shape == (3,) and set(dreamed.actions.tolist()) <= {0, 1}
    assert read_stored(tmp_path).value is None
    save_agent(tmp_path / "whole.npz", DREAMER, *back, value=params.value, task="counter")
    copy_agent(tmp_path / "whole.npz", tmp_path / "copy.npz")
    found = read_stored(tmp_path / "copy.npz")
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), found.value, params.value)  # as float16
    assert found.task == "counter" and (tmp_path / "copy.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    jax.tree.map(np.testing.assert_array_equal, found.params, back[1])


# The committed agents


def frames() -> np.ndarray:
    """Six pictures of coarse noise."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (6, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)


def acted(agent: Agent, params: AgentParams) -> np.ndarray:
    """Actions on the six frames, the fifth of which opens another episode."""
    state, actions, no = rollout.start(agent, params), [], np.array(False)
    for t, frame in enumerate(frames()):
        step = Step(frame, np.float32(0), np.array(t in (0, 4)), no, no)
        state, action = rollout.act(agent, params, jax.random.key(t), state, step)
        actions.append(action)
    return np.array(actions)


def test_the_committed_doom_agent_acts_as_when_it_was_evolved() -> None:
    """The numbers are those of the code that evolved it."""
    agent, params = load(RESULTS / "doom_take_cover")
    assert agent is make(DOOM, take_cover_spec(2100))
    expected = [-0.98534787, -0.98863423, -0.96535695, 0.52209753, 0.99280685, 0.58281076]
    np.testing.assert_allclose(acted(agent, params), expected, atol=2e-5)


def test_the_committed_driver_acts_as_when_it_was_evolved() -> None:
    agent, params = load(RESULTS / "car_racing" / "agent-full-dream.npz")
    assert agent.model.spec == car_racing_spec(1000)
    expected = [
        [-0.99224997, 0.07662982, 0.81115335],
        [-0.96903288, 0.01702040, 0.0],
        [-0.95744526, 0.00796840, 0.38690290],
        [-0.97716928, 0.10029796, 0.52555382],
        [-0.97728813, 0.00626722, 0.13635270],
        [-0.79073250, 0.34718150, 0.0],
    ]
    np.testing.assert_allclose(acted(agent, params), expected, atol=2e-5)


SCRIPT = """
import sys, jax, numpy as np
from dreamjax import dream, dreamerv3, rollout
from dreamjax.dreamerv3.config import debug
from dreamjax.envs import probes
from dreamjax.storage.agents import load
from dreamjax.types import Step
agent, params = load(sys.argv[1])
no = np.array(False)
step = Step(np.zeros((64, 64, 3), np.uint8), np.float32(0), ~no, no, no)
state, action = rollout.act(agent, params, jax.random.key(0), rollout.start(agent, params), step)
assert action.shape == () and -1 <= float(action) <= 1 and len(params.starts[0]) == 1000
"""


def test_a_new_process_needs_no_experiment_file(tmp_path: Path) -> None:
    path = [sys.executable, "-c", SCRIPT, str(RESULTS / "doom_take_cover" / "agent.npz")]
    repository = RESULTS.parents[1]
    result = subprocess.run(path, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(repository)})
    assert result.returncode == 0, result.stderr


def test_the_committed_descriptions_are_those_of_the_presets() -> None:
    racing = replace(
        CAR_RACING,
        memory=replace(CAR_RACING.memory, predict_done=True, predict_reward=True, predict_action=True),
    )
    assert load(RESULTS / "car_racing" / "agent-full-dream.npz")[0] is make(racing, car_racing_spec())
