"""python -m dreamjax.play PATH: meet an agent, in its environment and in its dreams, on a page in the browser."""

import argparse
import socket
import sys
import webbrowser
from pathlib import Path

from dreamjax.dreamerv3.config import DreamerConfig
from dreamjax.play import environments, programs, shown
from dreamjax.play.controls import Controls
from dreamjax.play.session import Session
from dreamjax.storage.agents import read_stored
from dreamjax.storage.leaves import CheckpointError
from dreamjax.training.devices import keep_compiled_programs

try:
    from dreamjax.play import server
except ModuleNotFoundError as error:
    raise SystemExit(str(error)) from None

SHORTEST_TOKEN = 16  # characters
EXAMPLE = "python -m dreamjax.play experiments/results/doom_take_cover"


def main() -> None:
    """Read the command line, and serve until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m dreamjax.play",
        description="Meet an agent, in its environment and in its dreams, on a page in the browser.",
        epilog=f"For example: {EXAMPLE}",
    )
    parser.add_argument("agent", type=Path, help="a file of save_agent, or the folder of a run")
    parser.add_argument("--env", help="its environment, such as take_cover, dmc_walker_walk or package.module:Factory")
    parser.add_argument("--dream", action="store_true", help="dream only; the environment need not be installed")
    parser.add_argument("--rate", type=float, help="steps per second, where the environment's own are not wanted")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen; beyond this machine, --token is needed")
    parser.add_argument("--port", type=int, default=8484, help="0 takes a free one")
    parser.add_argument("--token", help=f"that the page's address must name; at least {SHORTEST_TOKEN} characters")
    parser.add_argument("--browser", action=argparse.BooleanOptionalAction, default=True, help="open the page")
    chosen = parser.parse_args()
    _check(parser, chosen)
    keep_compiled_programs()
    try:
        listening = socket.create_server((chosen.host, chosen.port))
    except OSError as error:
        parser.error(f"cannot listen at {chosen.host}:{chosen.port}: {error}; name another --port, 0 for a free one")
    with listening:
        try:
            offer = _offer(chosen)
        except (OSError, ModuleNotFoundError, CheckpointError, ValueError) as error:
            parser.error(str(error))
        address = f"http://{chosen.host}:{listening.getsockname()[1]}/"
        address += f"?token={chosen.token}" if chosen.token else ""
        print(f"Play at {address}   (Ctrl-C ends it)", flush=True)
        if chosen.browser:
            webbrowser.open(address)  # the socket listens already, so the page waits until it is answered
        server.serve(offer, listening, chosen.token)


def _check(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> None:
    """Exit where the command line asks for what is not done."""
    if chosen.host not in server.LOOPBACK and not chosen.token:
        parser.error(f"--host {chosen.host} can be reached from other machines: add --token, or leave --host out")
    if chosen.token is not None and (len(chosen.token) < SHORTEST_TOKEN or not chosen.token.isalnum()):
        parser.error(f"a token has at least {SHORTEST_TOKEN} letters and digits, and nothing else")
    if chosen.rate is not None and not 0.1 <= chosen.rate <= 240:
        parser.error(f"--rate lies between 0.1 and 240 steps per second, got {chosen.rate}")
    if not 0 <= chosen.port < 2**16:
        parser.error(f"--port lies between 0 and 65535, got {chosen.port}")
    if chosen.dream and chosen.env:
        parser.error("--dream plays without an environment: leave --env out")


def _offer(chosen: argparse.Namespace) -> server.Offer:
    """Load the agent, find its environment, compile. Raises: as these do; ValueError if no environment is known."""
    stored = read_stored(chosen.agent)
    spec, name = stored.agent.model.spec, chosen.env or stored.task
    folder = chosen.agent if chosen.agent.is_dir() else chosen.agent.parent
    playable = None
    if not chosen.dream:
        if name is None:
            raise ValueError(
                f"{chosen.agent} does not say which environment it was trained in: name it with --env, such as --env "
                "dmc_walker_walk or --env package.module:Factory, or dream only with --dream"
            )
        if not chosen.env and ":" in name:  # an agent may come from anybody
            raise ValueError(f"{chosen.agent} names code to run as its environment: if you trust it, say --env {name}")
        playable = environments.find(name, spec, chosen.rate)
    rate = playable.rate if playable else chosen.rate or environments.RATES.get(name or "", environments.RATE)
    controls = Controls(spec.action, playable.labels if playable else ())
    print("Compiling ...", end=" ", file=sys.stderr, flush=True)
    ready = programs.compiled(programs.make(stored))
    print("done.", file=sys.stderr, flush=True)
    if playable is None and not ready.has_starts:
        raise ValueError(f"{chosen.agent} brings no starts for its dreams along: name its environment with --env")
    about = {
        "title": name or folder.resolve().name,
        "rate": rate,
        "views": ["both", "real", "dream"] if playable else ["dream"],
        "entries": controls.described(),
        "numbers": shown.numbers_of(spec.observation),
        "has_value": stored.value is not None,
        "surprise": "nats" if isinstance(stored.config, DreamerConfig) else "nats per latent",
    }

    def open_session() -> Session:
        environment = playable.open() if playable else None
        return Session(ready, controls, environment, rate, films=folder / "films")

    return server.Offer(about, open_session, folder / "films")


if __name__ == "__main__":
    main()
