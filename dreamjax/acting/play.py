"""Playing host environments with an agent: several games at once, one batched call per step."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import rollout
from dreamjax.envs.gymnasium import host_reset, host_step
from dreamjax.envs.lanes import within
from dreamjax.envs.vizdoom import GameCrashed
from dreamjax.rollout import Transition
from dreamjax.storage.atomic import replacing
from dreamjax.storage.progress import progress
from dreamjax.types import Action, Agent, AnyPolicy, EnvSpec, Key, LatentModel, Params, PyTree, Step

_CRASHES = 3  # of one episode, before giving up


class Played(NamedTuple):
    """One episode in a host environment."""

    seed: int
    total: float  # sum of rewards
    steps: int
    terminated: bool  # ended by itself, not by the step limit
    recorded: Transition | None  # [steps, ...] what the agent saw and chose, if that was asked for


def play(
    make_env: Callable[[], gymnasium.Env],
    model: LatentModel,
    policy: AnyPolicy,
    params: tuple[Params, Params],
    key: Key,
    seeds: Iterable[int],
    *,
    games: int = 8,
    film: Sequence[int] = (),
) -> Iterator[Played]:
    """Play one episode per seed with a policy that sees through a model, `games` of them at once; yield each that ends.

    An episode depends on the parameters, its seed and `key`, not on which others are played beside it. A game that
    crashes repeats its episode. `params` are those of the model and of the policy; episodes whose seed is in `film`
    come with what was recorded of them. Continuous actions are cut to the bounds of the model's spec.

    Raises: GameCrashed if an episode crashes three times.
    """
    act = partial(_act(model, policy), *params)
    waiting = iter(seeds)
    tables = [_Table(make_env, film, model.spec) for _ in range(games)]
    memories = jax.tree.map(
        lambda leaf: jnp.repeat(leaf[None], games, 0),
        rollout.step_policy(Agent(model, policy), params[0]).start(params[1]),
    )
    try:
        for table in tables:
            table.open(next(waiting, None))
        while any(table.seed is not None for table in tables):
            keys = jax.vmap(lambda seed, step: jax.random.fold_in(jax.random.fold_in(key, seed), step))(
                jnp.array([table.seed or 0 for table in tables], jnp.uint32), jnp.array([t.steps for t in tables])
            )
            steps = jax.tree.map(lambda *leaves: np.stack(leaves), *(table.step for table in tables))
            memories, actions = act(keys, memories, steps)
            actions = jax.device_get(actions)
            for i, table in enumerate(tables):
                played = table.advance(jax.tree.map(lambda leaf, i=i: leaf[i], actions))
                if played is not None:
                    yield played
                    table.open(next(waiting, None))
    finally:
        for table in tables:
            table.env.close()


def _act(model: LatentModel, policy: AnyPolicy) -> Callable[..., tuple[PyTree, Action]]:
    """One jitted call that acts in all games; model parameters are arguments of the program, not constants in it."""

    def act(model_params: Params, policy_params: Params, keys: Key, memories: PyTree, steps: Step) -> Any:
        agent = rollout.step_policy(Agent(model, policy), model_params)
        return jax.vmap(agent.act, in_axes=(None, 0, 0, 0))(policy_params, keys, memories, steps)

    return jax.jit(act)


class _Table:
    """One game and the episode played in it. Without an episode it goes on showing its last step."""

    def __init__(self, make_env: Callable[[], gymnasium.Env], film: Sequence[int], spec: EnvSpec) -> None:
        self.env = make_env()
        self.film = film
        self.spec = spec
        self.seed: int | None = None
        self.crashes = 0
        self.step = _nothing(spec)
        self.steps = 0
        self.total = 0.0
        self.recorded: list[Transition] = []

    def open(self, seed: int | None) -> None:
        """Begin the episode of a seed; with None, idle."""
        if seed != self.seed:
            self.crashes = 0
        self.seed, self.steps, self.total, self.recorded = seed, 0, 0.0, []
        if seed is not None:
            self.step = host_reset(self.env, seed)

    def advance(self, action: Action) -> Played | None:
        """Take one action; return the episode if it ended."""
        if self.seed is None:
            return None
        if self.seed in self.film:
            self.recorded.append(Transition(self.step, action))
        try:
            self.step = host_step(self.env, jax.tree.map(within, self.spec.action, action))
        except GameCrashed:
            self.crashes += 1
            if self.crashes == _CRASHES:
                raise
            self.open(self.seed)
            return None
        self.steps += 1
        self.total += float(self.step.reward)
        if not self.step.is_last:
            return None
        recorded = jax.tree.map(lambda *leaves: np.stack(leaves), *self.recorded) if self.recorded else None
        return Played(self.seed, self.total, self.steps, bool(self.step.is_terminal), recorded)


def _nothing(spec: EnvSpec) -> Step:
    """A step to fill the batch with while a game has no episode; what the agent makes of it is thrown away."""
    blank: dict[str, Any] = {
        "observation": jax.tree.map(lambda space: np.zeros(space.shape, space.dtype), spec.observation),
        "reward": np.float32(0),
    }
    flags: dict[str, Any] = {"is_first": np.array(True), "is_last": np.array(False), "is_terminal": np.array(False)}
    return Step(**blank, **flags)


def play_actions(
    make_env: Callable[[], gymnasium.Env], actions: Callable[[int], np.ndarray], seeds: Iterable[int]
) -> Iterator[Played]:
    """Play one episode per seed with the actions that were fixed before it, [steps, ...]: random play, replays."""
    env = make_env()
    try:
        for seed in seeds:
            step, total = host_reset(env, seed), 0.0
            steps = 0
            for action in actions(seed):
                step = host_step(env, action)
                total += float(step.reward)
                steps += 1
                if step.is_last:
                    break
            yield Played(seed, total, steps, bool(step.is_terminal), None)
    finally:
        env.close()


def returns(
    path: Path, seeds: Sequence[int], label: str, player: Callable[[list[int]], Iterator[Played]]
) -> np.ndarray:
    """Sum of rewards of each seed's episode: those noted in the file at `path`, and the others as `player` plays them.

    Every episode is noted when it ends, so nothing is played twice. Shapes: -> [len(seeds)].
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    noted = [json.loads(line) for line in lines if line.endswith("\n")]  # a kill may have cut off the last one
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in noted))
    totals = {row["seed"]: row["return"] for row in noted}
    missing = [seed for seed in seeds if seed not in totals]
    with progress(len(seeds), label, initial=len(seeds) - len(missing), unit="episode") as bar, path.open("a") as file:
        for played in player(missing):
            row = {"seed": played.seed, "return": played.total, "steps": played.steps, "terminal": played.terminated}
            file.write(json.dumps(row) + "\n")
            file.flush()
            totals[played.seed] = played.total
            bar.update()
            bar.set_postfix(mean=f"{np.mean([totals[seed] for seed in seeds if seed in totals]):.0f}")
    return np.array([totals[seed] for seed in seeds])
