"""An agent that was never trained: it plans in a learned world model, beside the one that was evolved in its dreams.

Neither paper plans. What it takes is there in both: a model that says what follows from actions, what it pays, and
whether the episode goes on (`dreamjax.planning`; iCEM is that of Pinneri et al. 2020). At every step the agent imagines
more than a thousand others, those of all its plans, and takes the first action of the best plan.

    game     test episodes of the real environment: the planner, the evolved agent, random play
    dream    the same two in dreams, and what one decision costs
    report   films, result.json and a page to open

    python experiments/planning.py --folder runs/planning  # Doom, committed V and M; 40 minutes on two cores
    python experiments/planning.py --preset swingup --agent runs/swingup/agent-20.npz
    python experiments/planning.py --plan.horizon 20 --plan.candidates 128       # `PlanConfig` has all settings

As many devices imagine as divide the candidates. The same command resumes where it stopped.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax import planning, rollout
from dreamjax.acting import random_play
from dreamjax.envs import swingup, to_gymnasium
from dreamjax.envs.vizdoom import TakeCover
from dreamjax.planning import PlanConfig, Planner
from dreamjax.reporting import Section, film_dream_and_real, pages, result_row
from dreamjax.reporting.timing import measure
from dreamjax.storage import Change, RunFolder
from dreamjax.storage.identity import fingerprint, pin
from dreamjax.training import stages
from dreamjax.training.devices import fitting_mesh
from dreamjax.training.experiment import (
    Options,
    command,
    exit_on_bad_input,
    read_command_line,
    run_folder,
    stored_agent,
)
from dreamjax.types import Agent, AgentParams, Key, Step
from dreamjax.worldmodels import search

NAME = "planning"
COMMITTED = Path(__file__).parent / "results" / "doom_take_cover"
UNITS = {"doom": "tics survived", "swingup": "return"}


@dataclass(frozen=True)
class Config:
    """Settings for two cores."""

    preset: str = "doom"
    seed: int = 0
    environment: Literal["doom", "swingup"] = "doom"
    agent: Path | None = None  # the agent in whose model to plan, a file or folder; for Doom the committed one
    # One action, held for a second: those that change all the time go nowhere. Each plan is tried in several dreams: in
    # a single one, luck decides which is the best.
    plan: PlanConfig = planning.icem(horizon=40, candidates=8, iterations=1, elites=2, held=40, dreams=4)
    temperature: float = 1.0  # of the dreams that are scored and filmed
    episodes: int = 24  # test episodes
    dreams: int = 4  # that are scored
    film_steps: int = 700
    max_steps: int = 2100  # of an episode of Doom


DOOM = Config()
SWINGUP = replace(DOOM, preset="swingup", environment="swingup", plan=planning.icem(15, 128, 3, 12), film_steps=200)
SMOKE = replace(DOOM, preset="smoke", plan=planning.icem(3, 4, 1, 2), episodes=1, dreams=1, film_steps=12, max_steps=40)
PRESETS = {config.preset: config for config in (DOOM, SWINGUP, SMOKE)}


def make_env(cfg: Config) -> partial:
    if cfg.environment == "doom":
        return partial(TakeCover, max_steps=cfg.max_steps)
    return partial(to_gymnasium, swingup.swingup(observation="both"))


def dream(cfg: Config, key: Key, agent: Agent, params: AgentParams) -> dict[str, list[float]]:
    return {"returns": search.score(agent, params, key, cfg.dreams, cfg.temperature).tolist()}


def score(cfg: Config, run: RunFolder, contenders: dict[str, tuple[Agent, AgentParams]]) -> list[dict]:
    """Score all in test episodes, and those that dream in their dreams."""
    key_real, key_dream = jax.random.split(jax.random.key(cfg.seed))
    rows, unit = [], UNITS[cfg.environment]
    for name, (agent, params) in contenders.items():
        returns = stages.evaluate(run, key_real, name, agent, params, make_env(cfg), cfg.episodes)
        rows.append(result_row(f"{name}, real", returns, unit))
        if name != "random":
            dreamed = stages.once(
                run,
                f"dream-{name}",
                fingerprint(cfg.dreams, cfg.temperature, agent, params, key_dream),
                partial(dream, cfg, key_dream, agent, params),
            )
            rows.append(result_row(f"{name}, dream", np.array(dreamed["returns"]), unit))
    return rows


def decision(agent: Agent, params: AgentParams) -> list[dict]:
    """Time one decision of one agent."""
    zeros = jax.tree.map(lambda space: np.zeros(space.shape, space.dtype), agent.model.spec.observation)
    step = Step(zeros, jnp.float32(0), jnp.array(True), jnp.array(False), jnp.array(False))
    state, key = rollout.start(agent, params), jax.random.key(0)
    timed = measure({"decision": lambda: rollout.act(agent, params, key, state, step)}, 20)["decision"]
    return [result_row("planner, one decision", 1000 * timed.seconds, "ms")]


@exit_on_bad_input()
def main() -> None:
    """Do whatever the folder does not hold."""
    cfg, options = read_command_line(NAME, __doc__, PRESETS, Options)
    run = run_folder(NAME, cfg, options, may_change={"episodes": Change(), "dreams": Change(), "film_steps": Change()})
    if cfg.environment != "doom" and cfg.agent is None:
        raise ValueError("--agent is needed: python experiments/swingup_iterative.py trains one")
    evolved = stored_agent(cfg.agent or COMMITTED, "python experiments/doom_take_cover.py --preset cpu")
    mesh = fitting_mesh("candidates", cfg.plan.candidates, "plan.candidates")
    agent, params = planning.agent(Planner(evolved[0].model, cfg.plan, mesh=mesh)), planning.agent_params(evolved[1])
    pin(run.path, "model", fingerprint(params.model, params.starts, code=False))
    random = random_play.random_agent(agent.model.spec, "held" if cfg.environment == "doom" else "uniform")
    contenders = {"planner": (agent, params), "evolved": evolved, "random": (random, random_play.PARAMS)}
    rows = score(cfg, run, contenders) + decision(agent, params)
    film = run.path / "dream_and_real.mp4", agent, params, make_env(cfg), jax.random.key(cfg.seed)
    film_dream_and_real(*film, cfg.film_steps, cfg.temperature)
    filmed = Section("The planner", "Left its dream, right the real environment.", ["dream_and_real.mp4"])
    pages.report(run, NAME, command(NAME, cfg, PRESETS), rows, "Planning in a learned world model", [filmed])


if __name__ == "__main__":
    main()
