"""Sessions of real agents for the tests of this folder."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax

from dreamjax import dreamerv3
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.play import environments, programs
from dreamjax.play.controls import Controls
from dreamjax.play.programs import Programs
from dreamjax.play.session import Session
from dreamjax.storage.agents import Stored, read_stored
from dreamjax.types import AgentParams, EnvSpec

RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "results"


@cache
def stored(name: str) -> Stored:
    """Read a committed agent."""
    return read_stored(RESULTS / name)


@cache
def ready(name: str) -> Programs:
    """Make the programs of a committed agent, once for all tests."""
    return programs.make(stored(name))


@cache
def untrained(spec: EnvSpec) -> Stored:
    """Make a small DreamerV3 with a critic, which has learned nothing."""
    cfg = dreamerv3.debug()
    params = dreamerv3.model.init(Dreamer.of(cfg, spec), jax.random.key(0))
    agent = dreamerv3.model.make(cfg, spec)
    return Stored(cfg, agent, AgentParams(params.model, params.policy), params.value, None)


def opened(name: str = "dreamerv3_jax_catch", env: str | None = "catch", **settings: Any) -> Session:
    """Open a session of a committed agent in an environment, or in dreams alone."""
    spec = stored(name).agent.model.spec
    environment = environments.find(env, spec).open() if env else None
    return Session(ready(name), Controls(spec.action), environment, 2.0, **settings)


def until(session: Session, holds: Callable[[dict[str, Any]], bool], limit: int = 100) -> dict[str, Any]:
    """Tick until something is told. Raises AssertionError if it never is."""
    for _ in range(limit):
        told = session.tick().told
        if holds(told):
            return told
    raise AssertionError("it did not happen")
