"""The part of a run's page that says how far its dreams can be trusted."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dreamjax.reporting.films import write_open_loop
from dreamjax.reporting.pages import Section
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.identity import fingerprint
from dreamjax.training.stages import once
from dreamjax.trust.chart import draw
from dreamjax.trust.episodes import AnyEnvironment
from dreamjax.trust.measurement import DEFAULT, GAME, RETURN, Measured, Trust, TrustConfig, few, measure, rows, warning
from dreamjax.trust.promise import Learned
from dreamjax.types import Agent, AgentParams, Key

CHART = "trust.png"
HEADING = "How far its dreams can be trusted"


def trust_section(
    run: RunFolder,
    agent: Agent,
    params: AgentParams,
    environment: AnyEnvironment,
    key: Key,
    cfg: TrustConfig = DEFAULT,
    learned: Learned | None = None,
    *,
    workers: int | None = None,
) -> Section:
    """Measure an agent, unless the folder holds that of the same agent, environment and code; draw, and print.

    What was measured is in the record of the stage `trust`, and the chart in `trust.png`. In an environment that cannot
    be told from another, see `storage.identity.describe`, it is measured again. `learned` is what the run noted while
    it trained. Pictures are also filmed, open-loop, framed red where dreamed.

    Shapes: key []. Raises: as `measure` does.
    """
    try:
        of = fingerprint(cfg, agent, params, key, environment)
    except ValueError:
        of = ""
    look = partial(measure, agent, params, environment, key, cfg, workers=workers)
    found = once(run, "trust", of, lambda: _write(run.path, look()))
    section = show(run.path, [Measured(*one) for one in found["measured"]], learned)
    section = section._replace(media=[*section.media, *found["films"]])
    if section.warning:
        print(section.warning)
    return section


def _write(folder: Path, found: Trust) -> dict[str, Any]:
    """Write the films; return what the record of the stage holds."""
    names = []
    for name, (seen, dreamed) in found.films.items():
        names += write_open_loop(folder, f"open_loop_{name.replace('/', '_')}", seen, dreamed, observed=1)
    return {"measured": found.measured, "films": names}


def show(folder: Path, measured: Sequence[Measured], learned: Learned | None = None) -> Section:
    """Draw the chart into a folder, and describe it."""
    draw(measured, folder / CHART, learned)
    game = next(one for one in measured if (one.quantity, one.by) == (RETURN, GAME))
    text = (
        f"Above left, the return of dreams that begin where {game.n} test episodes of the game began, with the agent's "
        "own policy and as many steps at most, beside what the game paid. The other panels: errors of open-loop "
        "predictions, so many steps after the model last saw the game; 1 is the distance between two episodes, which a "
        "dream reaches that knows nothing of this one. Shaded, and as bars: 95 % intervals over episodes. Temperatures "
        "divide the log probabilities of what is drawn; colder dreams err less in a single draw, without knowing more."
    )
    return Section(HEADING, text, [CHART], rows(few(measured)), warning(measured))
