"""An agent as a folder that needs nothing of this library: what acts, as a program for any machine, and its runner."""

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import rollout
from dreamjax._extras import extra
from dreamjax.dreamerv3.codec import leaves_by_name
from dreamjax.export import runner
from dreamjax.planning.beliefs import within
from dreamjax.reporting.results import read_result, shown_measurement
from dreamjax.storage.atomic import replacing
from dreamjax.storage.weights import save_weights
from dreamjax.types import Agent, AgentParams, Array, PyTree, Space, Step

PLATFORMS = ("cpu", "cuda", "tpu")


def export_agent(
    folder: str | os.PathLike[str],
    agent: Agent,
    params: AgentParams,
    platforms: Sequence[str] = PLATFORMS,
    result: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a folder with which an agent acts wherever JAX runs, and return its path.

    `act.bin` is the program of one step, for batches of any size and all of `platforms`, made by `jax.export`: the
    posterior of the world model and the policy, as `rollout.act` computes them with the keys
    `fold_in(key, index in the batch)`, and continuous actions within their bounds. `weights.npz` holds its parameters,
    `run.py` the `Exported` that acts with them, and `README.md` says what it is, with the rows of a `result.json` if
    one is given.

    Raises: ValueError if the folder is a file, or holds other files than those of an exported agent, and
        ModuleNotFoundError without flatbuffers, with which `jax.export` writes.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder for the exported agent")
    if folder.exists() and any(folder.iterdir()) and not (folder / "act.bin").exists():
        raise ValueError(f"{folder} holds other files: name a new folder for the exported agent")
    with extra("export", "an exported agent"):
        import flatbuffers  # noqa: F401
    program = _program(agent, params, platforms)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("agent.safetensors", "agent.json"):  # of an agent that was exported here before
        (folder / name).unlink(missing_ok=True)
    with replacing(folder / "act.bin") as temporary:
        temporary.write_bytes(program.serialize())
    weights = jax.tree.leaves(params._replace(starts=()))
    save_weights(folder / "weights.npz", {str(i): leaf for i, leaf in enumerate(weights)})
    source = inspect.getsource(runner)
    for name, text in {"run.py": source, "README.md": _card(agent, platforms, result)}.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return folder


def _program(agent: Agent, params: AgentParams, platforms: Sequence[str]) -> jax.export.Exported:
    spec, params = agent.model.spec, params._replace(starts=())
    weights, structure = jax.tree.flatten(params)
    state, state_structure = jax.tree.flatten(jax.eval_shape(lambda: rollout.start(agent, params)))

    def act(weights: list, key: Array, state: list, observation: dict, is_first: Array) -> tuple[list, dict]:
        params: AgentParams = jax.tree.unflatten(structure, weights)
        begun = jax.random.wrap_key_data(key, impl="threefry2x32")
        named = [observation[name] for name in leaves_by_name(spec.observation, "observation")]
        seen = jax.tree.unflatten(jax.tree.structure(spec.observation), named)

        def one(index: Array, state: list, seen: PyTree, is_first: Array) -> tuple[list, dict]:
            no = jnp.array(False)
            step = Step(seen, jnp.float32(0), is_first, no, no)
            before = jax.tree.unflatten(state_structure, state)
            after, action = rollout.act(agent, params, jax.random.fold_in(begun, index), before, step)
            return jax.tree.leaves(after), leaves_by_name(jax.tree.map(within, spec.action, action), "action")

        return jax.vmap(one)(jnp.arange(is_first.shape[0]), state, seen, is_first)

    (batch,) = jax.export.symbolic_shape("batch")
    many = lambda like: jax.ShapeDtypeStruct((batch, *like.shape), like.dtype)  # noqa: E731
    arguments = (
        [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in weights],
        jax.ShapeDtypeStruct((2,), np.uint32),
        list(map(many, state)),
        {name: many(space) for name, space in leaves_by_name(spec.observation, "observation").items()},
        jax.ShapeDtypeStruct((batch,), bool),
    )
    return jax.export.export(jax.jit(act), platforms=platforms)(*arguments)


def _card(agent: Agent, platforms: Sequence[str], result: str | os.PathLike[str] | None) -> str:
    """Describe an exported agent."""
    lines = [
        "# An agent of dreamjax",
        "",
        f"It acts on {', '.join(platforms)}, in batches of any size. `run.py` needs only JAX and flatbuffers; JAX "
        f"{jax.__version__} wrote the program, and later versions read it for half a year or more.",
        "",
        "```python",
        "import jax",
        "from run import Exported",
        "",
        "agent = Exported()  # of this folder",
        "state = agent.start(batch=2)",
        "state, action = agent.act(jax.random.key(0), state, observation, is_first)  # at every step, with another key",
        "```",
        "",
        "Spaces are those of training: of resized pictures, and of actions scaled to [-1, 1], where that was done.",
        "",
        "| | name | shape | dtype | range |",
        "|---|---|---|---|---|",
    ]
    for kind, spaces in (("observation", agent.model.spec.observation), ("action", agent.model.spec.action)):
        for name, space in leaves_by_name(spaces, kind).items():
            shape = ", ".join(map(str, ("batch", *space.shape)))
            lines.append(f"| {kind} | `{name}` | [{shape}] | {space.dtype} | {_range(space)} |")
    if result is not None:
        found: dict[str, Any] = read_result(Path(result))
        lines += ["", f"What was measured (`{found['command']}`):", "", "| | | n |", "|---|---|---|"]
        lines += [f"| {row['name']} | {shown_measurement(row)} | {row['n']} |" for row in found["rows"]]
    return "\n".join(lines) + "\n"


def _range(space: Space) -> str:
    if space.is_discrete:
        return f"{space.low} to {space.high} exclusive"
    return f"{space.low} to {space.high}"
