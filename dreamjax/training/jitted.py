"""Agents of environments written in JAX: several learn at once, by `vmap`, and are scored in test episodes.

Source: Hafner et al. 2023.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import rollout
from dreamjax.dreamerv3 import loop, model
from dreamjax.dreamerv3.config import DreamerConfig
from dreamjax.dreamerv3.loop import LoopConfig, LoopState
from dreamjax.dreamerv3.model import Dreamer, DreamerParams
from dreamjax.dreamerv3.sweep import stacked
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.metrics import MetricsLog, read_metrics
from dreamjax.training.loop import train
from dreamjax.types import Array, Environment, Key, Metrics

Agents = Mapping[str, tuple[int, DreamerConfig]]  # seed and settings by name; they differ in what is traced, no more
# What runs once, for a moment, compiles in a fraction of the time when that is not optimised.
_ONCE = {"xla_backend_optimization_level": 0}


def train_agents(
    run: RunFolder,
    log: MetricsLog,
    name: str,
    dreamer: Dreamer,
    environment: Environment,
    cfg: LoopConfig,
    agents: Agents,
    *,
    calls: int,
    per_call: int,
    checkpoint_every: int,
) -> DreamerParams:
    """Train all agents to the end, or from where stage `name` of the folder stands.

    One step of the stage is a call: `per_call` iterations of `loop.iterate` for every agent. After each the metrics
    hold the environment steps of each agent so far, and of each agent how many episodes ended and their mean return.
    There are `calls` of them, with a checkpoint after every `checkpoint_every`.

    Shapes: -> parameters [agents, ...]. Raises: as `training.loop.train` and `dreamerv3.loop.init` do.
    """
    seeds, configs = zip(*agents.values(), strict=True)
    names, keys = list(agents), jax.vmap(jax.random.key)(jnp.array(seeds))
    begin = jax.jit(jax.vmap(partial(loop.init, dreamer, environment, cfg)), compiler_options=_ONCE)

    @partial(jax.jit, donate_argnums=0)
    @jax.vmap
    def advance(state: LoopState, keys: Key) -> tuple[LoopState, loop.Progress]:
        """Do some iterations. Shapes: keys [per_call] -> progress [per_call]."""
        step = lambda state, key: loop.iterate(dreamer, environment, cfg, key, state)  # noqa: E731
        return jax.lax.scan(step, state, keys)

    def go_on(state: LoopState, done: int) -> Iterator[tuple[LoopState, Metrics]]:
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        while True:
            numbers = 1 + done * per_call + jnp.arange(per_call)
            state, progress = advance(state, fold(keys, numbers))
            done += 1
            finished, returns = (np.asarray(x).sum(1) for x in (progress.finished, progress.returns))  # [agents]
            metrics = {name: np.mean(x[:, -1]) for name, x in progress.metrics.items()}
            metrics |= {"steps": int(state.replay.written[0]) * cfg.envs}
            metrics |= {f"episodes/{name}": count for name, count in zip(names, finished, strict=True)}
            metrics |= {f"return/{names[i]}": returns[i] / finished[i] for i in np.flatnonzero(finished)}
            if finished.sum():
                metrics["return"] = returns.sum() / finished.sum()
            yield state, metrics

    state = train(
        run,
        log,
        name,
        begin(keys, stacked(list(configs))),
        go_on,
        calls,
        checkpoint_every=checkpoint_every,
        log_every=1,
        show="return",
    )
    return state.learner.params


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
    dreamer: Dreamer, environment: Environment, params: DreamerParams, seeds: Sequence[int], episodes: int
) -> np.ndarray:
    """Play test episodes with trained agents, whose actions are drawn as in training. No agent has trained in them.

    Shapes: params [agents, ...], seeds [agents] -> returns [agents, episodes].
    """

    def play(params: DreamerParams, key: Key) -> Array:
        policy = rollout.step_policy(model.agent(dreamer), params.model)
        one = jax.tree.map(lambda leaf: leaf[None], params.policy)
        return rollout.population_returns(environment, policy, one, jax.random.split(key, episodes)).total[0]

    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 0))(jnp.array(seeds))
    return np.asarray(jax.jit(jax.vmap(play))(params, keys))  # training folds in numbers from 1 on
