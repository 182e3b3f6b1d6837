"""python -m dreamjax.trust AGENT: measure how far an agent's dreams can be trusted.

Where its file does not say which environment it was trained in, --env names it: a task, such as dmc_walker_walk, or
what makes an environment, such as dreamjax.envs.vizdoom:TakeCover. In the folder of the agent, or in --into, this
writes trust.json and trust.png, and a section into summary.html if that is there.
"""

import argparse
import time
from pathlib import Path

import gymnasium
import jax

from dreamjax.acting.process import draw_without_screen
from dreamjax.envs import naming
from dreamjax.reporting.pages import put_section
from dreamjax.reporting.results import show_rows, write_result
from dreamjax.storage.agents import read_stored
from dreamjax.storage.leaves import CheckpointError
from dreamjax.training.devices import keep_compiled_programs, keep_freed_memory
from dreamjax.trust.measurement import DEFAULT, TrustConfig, few, measure, rows
from dreamjax.trust.section import show


def main() -> None:
    """Read the command line, measure, and write."""
    default = DEFAULT
    parser = argparse.ArgumentParser(prog="python -m dreamjax.trust", description=__doc__)
    parser.add_argument("agent", type=Path, help="a file of save_agent, or the folder of a run")
    parser.add_argument("--env", help="the environment it was trained in, if its file does not say so")
    parser.add_argument("--into", type=Path, help="folder for what is written")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--temperatures", type=float, nargs="+", default=default.temperatures)
    for name in ("episodes", "samples", "pieces", "max_steps"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(default, name))
    chosen = parser.parse_args()
    keep_freed_memory()
    keep_compiled_programs()
    begun = time.monotonic()
    into = chosen.into or (chosen.agent if chosen.agent.is_dir() else chosen.agent.parent)
    try:
        if into.exists() and not into.is_dir():
            raise ValueError(f"{into} is a file: name a folder with --into")
        if not 0 <= chosen.seed < 2**31:
            raise ValueError(f"--seed must be from 0 to 2**31 - 1, got {chosen.seed}")
        cfg = TrustConfig(chosen.episodes, tuple(chosen.temperatures), chosen.samples, chosen.pieces, chosen.max_steps)
        stored = read_stored(chosen.agent)
        task = chosen.env or stored.task
        if task is None:
            raise ValueError(f"{chosen.agent} does not say which environment it was trained in: name it with --env")
        if not chosen.env and ":" in task:  # an agent may come from anybody
            raise ValueError(f"{chosen.agent} names code to run as its environment: if you trust it, add --env {task}")
        draw_without_screen()
        environment = naming.find_for(stored.agent.model.spec, task)
        measured = measure(stored.agent, stored.params, environment, jax.random.key(chosen.seed), cfg).measured
    except (FileNotFoundError, ImportError, CheckpointError, ValueError, gymnasium.error.Error) as error:
        parser.error(str(error))
    into.mkdir(parents=True, exist_ok=True)
    of = f"python -m dreamjax.trust {chosen.agent} --env {task} --seed {chosen.seed}"
    settings = [
        f"--{name.replace('_', '-')} {_text(value)}"
        for name, value in vars(cfg).items()
        if value != getattr(default, name)
    ]
    command, seconds = " ".join([of, *settings]), time.monotonic() - begun
    write_result(into / "trust.json", "trust", task, command, [chosen.seed], seconds, rows(measured))
    section = show(into, measured)
    show_rows(rows(few(measured)))
    if section.warning:
        print(section.warning)
    page = put_section(into, section)
    print(f"Open {page or into / section.media[0]}")


def _text(value: int | tuple[float, ...]) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    main()
