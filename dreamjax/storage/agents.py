"""Trained agents, read back in any process: what they are, their parameters, and where their dreams begin.

A description in JSON names the system, its configuration and the spaces of its environment. It stands beside the
parameters: `agent.json` beside `agent.npz` or `agent.safetensors`, or beside the checkpoints of a run folder.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.dreamerv3 import learner as dreamer_learner, model as dreamer
from dreamjax.dreamerv3.config import DreamerConfig
from dreamjax.storage.atomic import jsonable, read_json, write_json
from dreamjax.storage.checkpoints import Checkpoints
from dreamjax.storage.configs import read_config
from dreamjax.storage.specs import spec_from_json, spec_to_json
from dreamjax.storage.weights import SUFFIXES, fit_arrays, read_arrays, save_weights
from dreamjax.types import Agent, AgentParams, EnvSpec, Params, PyTree
from dreamjax.worldmodels import model as world_model
from dreamjax.worldmodels.model import WorldModelConfig

Config = WorldModelConfig | DreamerConfig

_SYSTEMS: dict[str, type[Any]] = {"worldmodels": WorldModelConfig, "dreamerv3": DreamerConfig}
_NAME = "agent"  # of the files in a folder
_STARTS = "starts.npz"  # beside the checkpoints of a run
_VALUE = "value"  # what names of the critic's parameters begin with


class _FormerParams(NamedTuple):
    """`AgentParams` as older files name them."""

    model: Params
    controller: Params
    starts: PyTree


class Stored(NamedTuple):
    """All that is stored of a trained agent."""

    config: Config
    agent: Agent
    params: AgentParams
    value: Params | None  # of the critic of DreamerV3, where it was stored
    task: str | None  # name of the environment that it was trained in, where that is known


def describe(folder: str | os.PathLike[str], cfg: Config, spec: EnvSpec) -> None:
    """Write `agent.json` in a run folder, so that `load` can read the agent in its checkpoints."""
    _describe(Path(folder) / f"{_NAME}.json", cfg, spec)


def write_starts(folder: str | os.PathLike[str], observations: Sequence[PyTree]) -> None:
    """Write first observations of episodes in a run folder, where the dreams of the agent that `load` reads begin."""
    if observations:
        save_weights(Path(folder) / _STARTS, {"starts": jax.tree.map(lambda *leaves: np.stack(leaves), *observations)})


def read_starts(folder: str | os.PathLike[str], spec: EnvSpec) -> PyTree | None:
    """Read what `write_starts` wrote; None if it wrote nothing. Shapes: -> [S, ...]. Raises: as `load` does."""
    path = Path(folder) / _STARTS
    if not path.exists():
        return None
    arrays = read_arrays(path)
    count = _count_starts(arrays)
    like = jax.tree.map(lambda space: jax.ShapeDtypeStruct((count, *space.shape), space.dtype), spec.observation)
    return fit_arrays(arrays, {"starts": like}, os.fspath(path))["starts"]


def save_agent(
    path: str | os.PathLike[str],
    cfg: Config,
    agent: Agent,
    params: AgentParams,
    *,
    value: Params | None = None,
    task: str | None = None,
) -> None:
    """Write the parameters of an agent in float16, half their size, and beside them, in JSON, what it is.

    `agent` is what `make(cfg, spec)` returned. `value` is the critic of DreamerV3, `DreamerParams.value`, which those
    who act with the agent do not need. `task` names its environment for `python -m dreamjax.play`. Equal agents make
    equal bytes.

    Raises: ValueError if `path` ends in neither .npz nor .safetensors, if the same name is there in the other format,
        or a parameter is too large for float16.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"an agent is stored as {' or '.join(SUFFIXES)}, got {path.name!r}")
    others = [path.with_suffix(suffix) for suffix in SUFFIXES if path.with_suffix(suffix) != path]
    if existing := [other.name for other in others if other.exists()]:
        raise ValueError(f"{path.parent} holds {existing[0]}, whose description {path.name} would replace: rename one")
    starts = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params.starts)  # no file holds bfloat16
    _describe(path.with_suffix(".json"), cfg, agent.model.spec, task)
    tree = params._replace(starts=starts)._asdict() | ({} if value is None else {_VALUE: value})
    save_weights(path, tree, np.float16)  # last: what is there can be loaded


def load(path: str | os.PathLike[str]) -> tuple[Agent, AgentParams]:
    """Read a trained agent of either system.

    `path` is a file of `save_agent`, or a folder: with `agent.npz` or `agent.safetensors`, or with the checkpoints of
    a DreamerV3 run, of which the newest is read. Parameters of a file come back as float32. The starts of a run are its
    newest first observations, as its world model encodes them.

    Raises:
        FileNotFoundError: there is no agent at `path`, or no description beside it.
        CheckpointError: the parameters are damaged.
        ModuleNotFoundError: they are a .safetensors, and the extra "export" is not installed.
        ValueError: the agent was made by another version of dreamjax; the message lists the differences.
    """
    found = read_stored(path)
    return found.agent, found.params


def load_learned(path: str | os.PathLike[str]) -> dict[str, PyTree]:
    """Read what `load` reads as trees by name: "model" and "policy", and "value", where there is a critic.

    Raises: as `load` does.
    """
    found = read_stored(path)
    value = {} if found.value is None else {"value": found.value}
    return {"model": found.params.model, "policy": found.params.policy} | value


def copy_agent(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write what `load` reads at `source` to another file, in the format of its suffix. Raises: as both do."""
    found = read_stored(source)
    save_agent(target, found.config, found.agent, found.params, value=found.value, task=found.task)


def read_stored(path: str | os.PathLike[str]) -> Stored:
    """Read all that is stored of the agent that `load` reads. Raises: as `load` does."""
    path = Path(path)
    if path.is_dir():
        files = [path / f"{_NAME}{suffix}" for suffix in SUFFIXES]
        stored = [file for file in files if file.exists()]
        if not stored:
            return _load_run(path)
        path = stored[0]
    if not path.exists():
        raise FileNotFoundError(f"there is no agent at {path}: {_hint(path.parent)}")
    cfg, agent, task = _described(path.with_suffix(".json"))
    arrays = read_arrays(path)
    critic = {name: array for name, array in arrays.items() if name.startswith(f"{_VALUE}/")}
    rest = {name: array for name, array in arrays.items() if name not in critic}
    value = None
    if critic and isinstance(cfg, DreamerConfig):
        like = jax.eval_shape(partial(dreamer.init, dreamer.Dreamer.of(cfg, agent.model.spec)), jax.random.key(0))
        value = fit_arrays(critic, {_VALUE: like.value}, os.fspath(path))[_VALUE]
    return Stored(cfg, agent, _fit_params(rest, agent, os.fspath(path)), value, task)


def _hint(folder: Path) -> str:
    """Say which agents there are to be named instead."""
    found = (file for suffix in SUFFIXES for file in folder.glob(f"*{suffix}"))
    files = sorted(file.name for file in found if file.with_suffix(".json").exists())
    return f"{folder} has {', '.join(files)}" if files else "name a file of save_agent, or train first"


def _load_run(folder: Path) -> Stored:
    """Read the agent in the newest checkpoint of a run, and where its dreams begin."""
    if not (folder / "checkpoints").exists():
        raise FileNotFoundError(f"{folder} holds neither a stored agent nor checkpoints: {_hint(folder)}")
    cfg, agent, task = _described(folder / f"{_NAME}.json")
    if not isinstance(cfg, DreamerConfig):
        raise FileNotFoundError(f"{folder} holds no stored agent yet: its training is not finished")
    like = jax.eval_shape(partial(dreamer_learner.init, dreamer.Dreamer.of(cfg, agent.model.spec)), jax.random.key(0))
    found = Checkpoints(folder / "checkpoints").restore(like)
    if found is None:
        raise FileNotFoundError(f"there is no checkpoint in {folder / 'checkpoints'}: train first")
    params = dreamer.agent_params(found[1].params)
    first = read_starts(folder, agent.model.spec)
    if first is not None:
        params = params._replace(starts=jax.jit(jax.vmap(agent.model.encode, (None, 0)))(params.model, first))
    return Stored(cfg, agent, params, found[1].params.value, task)


def _describe(path: Path, cfg: Config, spec: EnvSpec, task: str | None = None) -> None:
    names = [name for name, kind in _SYSTEMS.items() if isinstance(cfg, kind)]
    if not names:
        raise ValueError(f"an agent is described by a WorldModelConfig or a DreamerConfig, got {type(cfg).__name__}")
    named = {} if task is None else {"task": task}
    write_json(path, {"system": names[0], **named, "config": jsonable(cfg), "spec": spec_to_json(spec)})


def _described(path: Path) -> tuple[Config, Agent, str | None]:
    """Make the agent that a description names; also its task, which the configuration of its run may name instead."""
    try:
        written = read_json(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} is missing, which says what the agent beside it is: copy it along with the parameters, or write "
            "it with dreamjax.storage.agents.describe"
        ) from error
    try:
        kind = _SYSTEMS[written["system"]]
        cfg, spec = read_config(kind, written["config"]), spec_from_json(written["spec"])
        make: Any = world_model.make if kind is WorldModelConfig else dreamer.make
        agent = make(cfg, spec)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} does not describe an agent of this version of dreamjax ({error!r}): load it with the version that "
            "wrote it, or train the agent again"
        ) from error
    run = path.parent / "config.json"
    task = written.get("task") or (read_json(run).get("task") if run.exists() else None)
    return cfg, agent, task if isinstance(task, str) else None


def _fit_params(arrays: dict[str, np.ndarray], agent: Agent, where: str) -> AgentParams:
    key = jax.random.key(0)
    model, policy = jax.eval_shape(agent.model.init, key), jax.eval_shape(agent.policy.init, key)
    count = _count_starts(arrays)
    embedding: PyTree = ()
    if count:
        observation = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), agent.model.spec.observation)
        embedding = jax.eval_shape(agent.model.encode, model, observation)
    starts = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), jnp.float32), embedding)
    is_former = any(name.startswith("controller") for name in arrays)
    like = (_FormerParams if is_former else AgentParams)(model, policy, starts)
    found = AgentParams(*fit_arrays(arrays, like, where))
    return found._replace(starts=jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), found.starts, embedding))


def _count_starts(arrays: dict[str, np.ndarray]) -> int:
    return next((len(array) for name, array in arrays.items() if name.startswith("starts")), 0)
