"""python -m dreamjax.export AGENT FOLDER: write a trained agent as a folder that needs only JAX and flatbuffers."""

import argparse
from pathlib import Path

from dreamjax.export.artefact import PLATFORMS, export_agent
from dreamjax.storage.agents import copy_agent, load
from dreamjax.storage.leaves import CheckpointError


def main() -> None:
    """Read the command line, and export."""
    parser = argparse.ArgumentParser(prog="python -m dreamjax.export", description=__doc__)
    parser.add_argument("agent", type=Path, help="a file of save_agent, or the folder of a run")
    parser.add_argument("folder", type=Path, help="where it is written")
    parser.add_argument("--platforms", nargs="+", choices=PLATFORMS, default=PLATFORMS)
    parser.add_argument("--safetensors", action="store_true", help="add agent.safetensors, which dreamjax.load reads")
    chosen = parser.parse_args()
    named = chosen.agent if chosen.agent.is_dir() else chosen.agent.parent
    result = named / "result.json"  # about the agent of its folder, not about others in it
    is_about = result.exists() and chosen.agent.stem in (named.stem, "agent")
    try:
        agent, params = load(chosen.agent)
        export_agent(chosen.folder, agent, params, chosen.platforms, result if is_about else None)
        if chosen.safetensors:
            copy_agent(chosen.agent, chosen.folder / "agent.safetensors")
    except (FileNotFoundError, ModuleNotFoundError, CheckpointError, ValueError) as error:
        parser.error(str(error))
    print(f"Act with {chosen.folder}/run.py, as {chosen.folder}/README.md says")


if __name__ == "__main__":
    main()
