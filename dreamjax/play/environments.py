"""The environment that an agent was trained in, by name, opened once for every person who plays in it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import gymnasium
import jax
import numpy as np

from dreamjax.acting import seeds
from dreamjax.acting.pool import Pool
from dreamjax.acting.process import draw_without_screen
from dreamjax.acting.worker import Order
from dreamjax.envs import naming
from dreamjax.envs.host import flatten
from dreamjax.types import Action, Environment, EnvSpec, Key, PyTree, State, Step

TIMEOUT_S = 30.0  # after which a host environment counts as hung
RATES = {"counter": 2.0, "remember": 2.0, "catch": 2.0, "dodge": 15.0, "dodge_state": 15.0}  # steps per second
RATES |= dict.fromkeys(("swingup", "swingup_state", "swingup_both"), 20.0)
RATE = 30.0  # where nobody says another one


class Unplayable(ValueError):
    """There is no environment of that name, or it is not the one that the agent was trained in."""


class Failed(RuntimeError):
    """A host environment raised, died or hung; `reset` makes it anew."""


class Running(Protocol):
    """One environment at play. Steps come as numpy arrays."""

    def reset(self, number: int) -> Step:
        """Begin the episode of a number, the same for equal numbers."""

    def step(self, action: Action) -> Step:
        """Take an action, within its bounds. Raises: Failed, after which only `reset` and `close` may be called."""

    def close(self) -> None:
        """End it, and the process it runs in."""


class Playable(NamedTuple):
    """An environment that can be opened any number of times."""

    name: str
    rate: float  # steps per second
    labels: tuple[str, ...]  # of the choices of a discrete action; empty if they have no names
    open: Callable[[], Running]


def find(name: str, spec: EnvSpec, rate: float | None = None) -> Playable:
    """Find an environment by its name, for an agent whose world model is of `spec`.

    Names, and how environments are adapted, are those of `envs.naming.find_for`.

    Raises: Unplayable for an unknown name, or if the spaces are other than those of `spec`; ModuleNotFoundError, with
        what to install, if a suite is missing.
    """
    draw_without_screen()
    try:
        made = naming.find_for(spec, name)
        if isinstance(made, Environment):
            return Playable(name, rate or RATES.get(name, RATE), (), _pure(made, spec.max_steps))
        with made() as env:
            labels: Sequence[str] = getattr(env.unwrapped, "get_action_meanings", tuple)()
            own_rate = env.metadata.get("render_fps")
    except (ValueError, gymnasium.error.Error) as error:
        raise Unplayable(str(error)) from error
    return Playable(name, rate or own_rate or RATE, tuple(labels), partial(_Host, made, spec))


def _numpy(tree: PyTree) -> PyTree:
    return jax.tree.map(np.asarray, tree)


class _Host:
    """A host environment in a process of its own, so that it neither waits for this one nor takes it along."""

    def __init__(self, make_env: Callable[[], gymnasium.Env], spec: EnvSpec) -> None:
        self._max_steps, self._steps = spec.max_steps, 0
        self._pool = Pool(make_env, 1, 1, groups=1, timeout=TIMEOUT_S)

    def reset(self, number: int) -> Step:
        self._steps = 0
        return self._exchange(seeds.test(1, number)[0])

    def step(self, action: Action) -> Step:
        self._steps += 1
        return self._exchange([np.asarray(leaf) for leaf in flatten(self._pool.action_space, action, "action")])

    def close(self) -> None:
        self._pool.close()

    def _exchange(self, order: Order) -> Step:
        self._pool.send(0, [order])
        try:
            (answer,) = self._pool.receive()
        except ValueError as error:  # what it did not declare
            raise Failed(str(error)) from error
        reply = answer.reply
        if 0 in reply.errors:
            raise Failed(f"the environment failed: {reply.errors[0]}") from reply.errors[0]
        observation = jax.tree.map(lambda leaf: leaf[0].copy(), self._pool.observation(0))
        is_terminal = bool(reply.is_terminal[0])
        is_last = bool(reply.terminated[0] or reply.truncated[0] or self._steps >= self._max_steps)
        flags: Any = (np.bool_(self._steps == 0), np.bool_(is_last and self._steps > 0), np.bool_(is_terminal))
        return Step(observation, np.float32(reply.reward[0] if self._steps else 0.0), *flags)  # type: ignore[arg-type]


def _pure(environment: Environment, max_steps: int) -> Callable[[], Running]:
    """Compile an environment written in JAX once, for all who play in it."""
    reset = jax.jit(environment.reset)

    @jax.jit
    def advance(key: Key, time: int, state: State, action: Action) -> tuple[State, Step]:
        return environment.step(jax.random.fold_in(key, time), state, action)

    class Pure:
        """An environment written in JAX."""

        def reset(self, number: int) -> Step:
            self._key, self._steps = jax.random.key(number), 0
            self._state, step = reset(jax.random.fold_in(self._key, 0))
            return _numpy(step)

        def step(self, action: Action) -> Step:
            self._steps += 1
            self._state, step = advance(self._key, self._steps, self._state, action)
            step = _numpy(step)
            return step._replace(is_last=step.is_last | np.bool_(self._steps >= max_steps))

        def close(self) -> None:
            pass

    return Pure
