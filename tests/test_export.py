"""Exported agents act as they do here, in a process that has JAX alone."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dreamjax
from dreamjax import dreamerv3, rollout
from dreamjax.dreamerv3.codec import leaves_by_name
from dreamjax.export import Exported, export_agent, runner
from dreamjax.types import Agent, AgentParams, EnvSpec, PyTree, Space, Step

RESULTS = Path(__file__).resolve().parents[1] / "experiments" / "results"


def observations(agent: Agent, batch: int, seed: int) -> PyTree:
    """Invent what is seen."""
    rng = np.random.default_rng(seed)
    draw = lambda space: rng.integers(0, 256, (batch, *space.shape)).astype(space.dtype)  # noqa: E731
    return jax.tree.map(draw, agent.model.spec.observation)


def acts_alike(folder: Path, agent: Agent, params: AgentParams, batch: int) -> None:
    """Compare three steps, in the last of which an episode begins for one."""
    exported = Exported(folder)
    theirs, ours = exported.start(batch), rollout.start(agent, params)
    ours = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape)), ours)
    for number in range(3):
        seen = observations(agent, batch, number)
        first = np.full(batch, number == 0) | ((np.arange(batch) == 1) & (number == 2))
        zeros = np.zeros(batch)
        step = Step(seen, jnp.float32(zeros), jnp.array(first), zeros > 0, zeros > 0)
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(number)))(jnp.arange(batch))
        ours, action = jax.vmap(partial(rollout.act, agent), (None, 0, 0, 0))(params, keys, ours, step)
        theirs, found = exported.act(jax.random.key(number), theirs, leaves_by_name(seen, "observation"), first)
        for name, wanted in leaves_by_name(action, "action").items():
            assert found[name].dtype == wanted.dtype
            np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-5)
        for one, other in zip(theirs, jax.tree.leaves(ours), strict=True):
            np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=2e-2, atol=2e-2)  # in bfloat16


@pytest.mark.parametrize("name", ["dreamerv3_jax_catch", "doom_take_cover"])
def test_a_stored_agent_acts_alike_when_exported(name: str, tmp_path: Path) -> None:
    agent, params = dreamjax.load(RESULTS / name)
    with jax.debug_key_reuse(False):  # the check takes a key that is shared under vmap for a used one
        folder = export_agent(tmp_path / "agent", agent, params, result=RESULTS / name / "result.json")
        for batch in (1, 3):
            acts_alike(folder, agent, params, batch)
    program = jax.export.deserialize(bytearray((folder / "act.bin").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    card = (folder / "README.md").read_text()
    assert "| observation | `observation` | [batch, 64, 64, 3] | uint8 | 0 to 256 exclusive |" in card
    assert f"python experiments/{name.removesuffix('_catch')}.py" in card


def test_exported_actions_stay_within_their_bounds(tmp_path: Path) -> None:
    """At home an adapter clips what an actor draws."""
    spec = EnvSpec({"x": Space((3,)), "y": Space(())}, {"a": Space((2,), np.float32, -1.0, 1.0)}, 10)
    agent = dreamerv3.make(dreamerv3.debug(), spec)
    params = AgentParams(agent.model.init(jax.random.key(0)), agent.policy.init(jax.random.key(1)))
    with jax.debug_key_reuse(False):
        exported = Exported(export_agent(tmp_path / "agent", agent, params, ["cpu"]))
        seen = {"x": np.ones((64, 3)), "y": np.zeros(64), "reward": np.zeros(64)}  # more than it reads, and wider
        _, action = exported.act(jax.random.key(0), exported.start(64), seen, [1] * 64)
    assert np.abs(action["a"]).max() == 1.0 and action["a"].std() > 0.1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="other holds other files: name a new folder"):
        export_agent(tmp_path / "other", agent, params)


ALONE = """
import sys
sys.modules["dreamjax"] = sys.modules["flax"] = None  # not to be had
import jax, numpy as np
from run import Exported

agent = Exported()
state = agent.start(batch=5)
seen = {name: np.zeros((5, *like.shape[1:]), like.dtype) for name, like in agent.observation.items()}
for number in range(2):
    state, action = agent.act(jax.random.key(number), state, seen, np.full(5, number == 0))
print({name: (x.shape, str(x.dtype)) for name, x in action.items()})
"""


def test_the_command_line_exports_and_the_folder_needs_jax_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dreamjax.export", str(RESULTS / "dreamerv3_jax_catch"), str(tmp_path / "catch")]
    run = partial(subprocess.run, capture_output=True, text=True)
    written = run([*command, "--safetensors", "--platforms", "cpu"], check=True).stdout
    assert "run.py" in written
    found, stored = (dreamjax.load(folder)[1] for folder in (tmp_path / "catch", RESULTS / "dreamerv3_jax_catch"))
    jax.tree.map(np.testing.assert_array_equal, found, stored)
    alone = run([sys.executable, "-c", ALONE], cwd=tmp_path / "catch", check=True)
    assert alone.stdout.strip() == "{'action': ((5,), 'int32')}"
    (tmp_path / "file").touch()
    taken = run([*command[:4], str(tmp_path / "file")])
    assert taken.returncode == 2 and "is a file: name a folder" in taken.stderr
    agent, params = dreamjax.load(RESULTS / "dreamerv3_jax_catch")
    with jax.debug_key_reuse(False):  # as where the others are exported
        export_agent(tmp_path / "catch", agent, params, ["cpu"])
    assert not [path.name for path in (tmp_path / "catch").glob("agent.*")], "another agent may be exported now"
    missing = run([*command[:3], str(tmp_path / "nothing"), str(tmp_path / "x")])
    assert missing.returncode == 2 and "there is no agent at" in missing.stderr


def test_an_exported_agent_takes_only_what_its_observations_hold() -> None:
    picture = np.full((2, 3), 200, np.int64)
    np.testing.assert_array_equal(runner._cast("observation", picture, np.dtype(np.uint8)), picture)
    assert runner._cast("observation", [1, 2], np.dtype(np.float32)).dtype == np.float32
    for wrong in (picture / 255, picture + 56, np.full(3, np.nan), np.array(["1", "2"])):
        with pytest.raises(ValueError, match="observation must be numbers that uint8 holds"):
            runner._cast("observation", wrong, np.dtype(np.uint8))
    with pytest.raises(ValueError, match="float32 holds"):
        runner._cast("observation", np.array(["1"]), np.dtype(np.float32))
