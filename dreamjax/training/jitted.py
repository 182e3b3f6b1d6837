"""Several agents that learn at once, by `vmap`, on all devices, with their replay; in JAX or in host environments.

Where the devices divide the agents, each device brings up its own, and nothing is exchanged. Otherwise, in environments
written in JAX, they share the environments, the replay and the batches of every agent, and the compiler averages the
gradients. Either way the numbers are those of one device, to rounding.

Source: Hafner et al. 2023.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dreamjax import rollout
from dreamjax.acting import seeds
from dreamjax.acting.evaluation import evaluate
from dreamjax.acting.vector import VectorEnvironment
from dreamjax.dreamerv3 import loop, model
from dreamjax.dreamerv3.config import DreamerConfig
from dreamjax.dreamerv3.learner import Hyper
from dreamjax.dreamerv3.loop import LoopConfig, LoopState, Progress
from dreamjax.dreamerv3.model import Dreamer, DreamerParams, agent_params
from dreamjax.dreamerv3.sweep import stacked
from dreamjax.replay.ring import Ring
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.identity import pin
from dreamjax.storage.metrics import MetricsLog, read_metrics
from dreamjax.training import plan
from dreamjax.training.devices import device_mesh, gathered, replicated, shard, split
from dreamjax.training.hosted import HostedLoop, apart
from dreamjax.training.loop import train
from dreamjax.types import Array, Environment, Key, Metrics, PyTree

Agents = Mapping[str, tuple[int, DreamerConfig]]  # seed and settings by name; they differ in what is traced, no more


class JittedLoop(NamedTuple):
    """The loop for A agents."""

    begin: Callable[[Key, Hyper], LoopState]  # of keys [A] and settings [A] -> [A, ...], see `loop.init`
    place: Callable[[LoopState], LoopState]  # puts a state that was read from a file where `advance` wants it
    advance: Callable[[LoopState, Key], tuple[LoopState, Progress]]  # by keys [A, n] -> [A, ...] and progress [A, n]
    gather: Callable[[PyTree], PyTree]  # makes a part of a state whole, and free to be used on any device

    def shapes(self, keys: Key, hyper: Hyper) -> LoopState:
        """Describe what `begin` returns, and where it is, without making it."""
        return jax.eval_shape(self.begin, keys, hyper)


def jitted_loop(dreamer: Dreamer, environment: Environment, cfg: LoopConfig, agents: int) -> JittedLoop:
    """Make the loop in which so many agents collect and learn at once, over the devices of this process.

    It takes as many devices as divide the agents, or else the environments and the sequences of each. `advance` gives
    up the state that it is given.

    Raises: ValueError if there are several processes.
    """
    if jax.process_count() > 1:
        raise ValueError("the jitted loop learns in one process: start it without the others")
    fits = lambda n: agents % n == 0 or (cfg.envs % n == 0 and cfg.batch_size % n == 0)  # noqa: E731
    mesh = device_mesh("devices", max(filter(fits, range(1, jax.device_count() + 1))))
    own = agents % mesh.size == 0  # each device has agents of its own
    begin = jax.vmap(partial(loop.init, dreamer, environment, cfg))
    shared = None if own else mesh

    @jax.vmap
    def advance(state: LoopState, keys: Key) -> tuple[LoopState, Progress]:
        step = lambda state, key: loop.iterate(dreamer, environment, cfg, key, state, shared)  # noqa: E731
        return jax.lax.scan(step, state, keys)

    gather = partial(gathered, mesh)
    if mesh.size == 1:
        return JittedLoop(jax.jit(begin), lambda state: state, jax.jit(advance, donate_argnums=0), gather)
    if own:
        places: Any = split(mesh)
        return JittedLoop(
            jax.jit(apart(mesh, begin), out_shardings=places),
            partial(shard, places=places),
            jax.jit(apart(mesh, advance), donate_argnums=0),
            gather,
        )
    places = _shared_places(mesh)
    return JittedLoop(
        jax.jit(begin, out_shardings=places),
        partial(shard, places=places),
        jax.jit(advance, donate_argnums=0, out_shardings=(places, replicated(mesh))),
        gather,
    )


def train_agents(
    run: RunFolder,
    log: MetricsLog,
    name: str,
    dreamer: Dreamer,
    environment: Environment | VectorEnvironment,
    cfg: LoopConfig,
    agents: Agents,
    *,
    calls: int,
    per_call: int,
    checkpoint_every: int,
) -> DreamerParams:
    """Train all agents to the end, or from where stage `name` of the folder stands.

    The environment is one in JAX, or so many of the host that each agent has `cfg.envs` of them. The episodes that an
    agent meets on the host depend on who learns beside it, and a resumed run goes on in new ones.

    One step of the stage is a call: `per_call` iterations of `loop.iterate` for every agent. After each the metrics
    hold the environment steps of each agent so far, and of each agent how many episodes ended and their mean return.
    On the host `failures` counts environments that were made anew since training began or was resumed, and
    `info/<name>/<agent>` are means of the numbers that environments tell at the ends of episodes. There are `calls`
    calls, with a checkpoint after every `checkpoint_every`.

    Shapes: -> parameters [agents, ...]. Raises: as `training.loop.train`, `jitted_loop`, `HostedLoop`,
        `dreamerv3.loop.init` and, before anything is made, `training.plan.check_agents` do.
    """
    seeds, configs = zip(*agents.values(), strict=True)
    names, (key_begin, key_train, _) = list(agents), _keys(seeds)
    if isinstance(environment, VectorEnvironment):
        pin(run.path, "environment", environment.name)
        program: JittedLoop | HostedLoop = HostedLoop(dreamer, environment, cfg, len(agents), seeds)
    else:
        program = jitted_loop(dreamer, environment, cfg, len(agents))
    begins = key_begin, stacked(list(configs))
    plan.check_agents(shapes := program.shapes(*begins), cfg.capacity, run.path)

    def go_on(state: LoopState, done: int) -> Iterator[tuple[LoopState, Metrics]]:
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        state = program.place(state if done else program.begin(*begins))
        while True:
            numbers = done * per_call + jnp.arange(per_call)
            state, progress = program.advance(state, fold(key_train, numbers))
            done += 1
            metrics = _told(names, progress) | {"steps": int(state.replay.written[0]) * cfg.envs}
            if isinstance(program, HostedLoop):
                metrics |= _informed(names, program.info) | {"failures": program.environments.failures}
            yield state, metrics

    often: Any = {"checkpoint_every": checkpoint_every, "log_every": 1}
    state = train(run, log, name, shapes, go_on, calls, **often, show="return", unit="call")
    return program.gather(state.learner.params)


def _told(names: list[str], progress: Progress) -> dict[str, Any]:
    """Put together what a call came to: losses, averaged over agents, and the episodes of each that ended."""
    finished, returns = (np.asarray(x).sum(1) for x in (progress.finished, progress.returns))  # [agents]
    metrics: dict[str, Any] = {name: np.mean(x[:, -1]) for name, x in progress.metrics.items()}
    metrics |= {f"episodes/{name}": count for name, count in zip(names, finished, strict=True)}
    metrics |= {f"return/{names[i]}": returns[i] / finished[i] for i in np.flatnonzero(finished)}
    if finished.sum():
        metrics["return"] = returns.sum() / finished.sum()
    return metrics


def _informed(names: list[str], info: list[tuple[int, dict[str, float]]]) -> dict[str, float]:
    """Average what environments told of the episodes of each agent."""
    values: dict[str, list[float]] = {}
    for agent, told in info:
        for name, value in told.items():
            values.setdefault(f"info/{name}/{names[agent]}", []).append(value)
    return {name: sum(some) / len(some) for name, some in values.items()}


def learned(run: RunFolder, name: str, agents: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read how agents learned in stage `name`: environment steps, and the mean return of the episodes of a call.

    Shapes: -> [calls] and [calls] by agent, of the calls in which an episode ended; agents without any are left out.
    """
    told = read_metrics(run.path / "metrics.jsonl")[name]
    steps = dict(zip(*told["steps"], strict=True))
    return {
        agent: (np.array([steps[call] for call in told[f"return/{agent}"][0]]), told[f"return/{agent}"][1])
        for agent in agents
        if f"return/{agent}" in told
    }


def evaluate_agents(
    dreamer: Dreamer,
    environment: Environment | Callable[[], gymnasium.Env],
    params: DreamerParams,
    agents: Agents,
    episodes: int,
    *,
    workers: int = 0,
    notes: Path | None = None,
) -> np.ndarray:
    """Play test episodes with trained agents, whose actions are drawn as in training. No agent has trained in them.

    `agents` as they were trained. An environment of the host is given by what makes it; agents play in it one after the
    other, with `workers` and `notes` as in `acting.evaluate`.

    Shapes: params [agents, ...] -> returns [agents, episodes].
    """
    keys = evaluation_keys([seed for seed, _ in agents.values()])
    if isinstance(environment, Environment):

        def play(params: DreamerParams, key: Key) -> Array:
            policy = rollout.step_policy(model.agent(dreamer), params.model)
            one = rollout.population_of_one(params.policy)
            return rollout.population_returns(environment, policy, one, jax.random.split(key, episodes)).total[0]

        return np.asarray(jax.jit(jax.vmap(play))(params, keys))
    agent, tested, returns = model.agent(dreamer), seeds.test(episodes), []
    for i, (name, key) in enumerate(zip(agents, keys, strict=True)):
        one, label = agent_params(jax.tree.map(lambda leaf, i=i: leaf[i], params)), f"evaluate {name}"
        returns.append(evaluate(agent, one, environment, tested, key, workers=workers, notes=notes, label=label))
    return np.stack(returns)


def evaluation_keys(seeds: Sequence[int]) -> Key:
    """Return the keys with which agents are tested, which have nothing to do with those they are trained with.

    Shapes: -> [agents].
    """
    return _keys(seeds)[2]


def _keys(seeds: Sequence[int]) -> tuple[Key, Key, Key]:
    """Return the keys with which each agent begins, trains and is tested. Shapes: -> [agents] each."""
    begin, train, test = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), 3), out_axes=1)(jnp.array(seeds))
    return begin, train, test


def _shared_places(mesh: Mesh) -> Any:
    """Where every device has what each agent has learned, and the environments that are its own with their replay."""
    whole: Any = replicated(mesh)
    rows: Any = split(mesh, 1)
    return LoopState(whole, rows, rows, rows, Ring(rows, whole), rows)
