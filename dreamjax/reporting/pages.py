"""One page about a run, to open in a browser: results, films and plots, stages and configuration."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dreamjax._extras import extra
from dreamjax.reporting.results import show_rows, shown_duration, shown_measurement, shown_number, write_result
from dreamjax.storage.atomic import replacing
from dreamjax.storage.configs import flat
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.provenance import commit, machine

# By suffix: a clip and a video are as wide as they are, a picture has the width of the page.
_KINDS = {".mp4": "video", ".gif": "clip", ".jpg": "clip", ".png": "picture", ".svg": "picture"}
_END = "<!-- end of sections -->\n"


class Section(NamedTuple):
    """A part of the page: a heading, a paragraph, images and videos by their paths within the run folder, and rows."""

    heading: str
    text: str = ""
    media: Sequence[str] = ()
    rows: Sequence[dict[str, Any]] = ()  # those of `write_result`
    warning: str = ""


def write_summary(
    folder: RunFolder, title: str, rows: Iterable[dict[str, Any]], sections: Sequence[Section] = (), lead: str = ""
) -> Path:
    """Write `summary.html` into the run folder and return its path.

    `rows` are those of `write_result`; `lead` is a sentence under the title. The page needs only the files it shows,
    so the folder can be copied or served as it is.

    Raises:
        FileNotFoundError: a file of a section is not in the folder.
        ValueError: a file is neither an image nor a video.
        ModuleNotFoundError: the extra "experiments" is not installed.
    """
    rows = list(rows)
    columns = ["published"] if any(row["published"] is not None for row in rows) else []
    plan = folder.path / "plan.txt"
    page = _template("summary.html").render(
        plan=plan.read_text(encoding="utf-8") if plan.exists() else "",
        title=title,
        lead=lead,
        header=["", "measured", "n", *columns],
        results=[_result_cells(row)[: 3 + len(columns)] for row in rows],
        sections=[_parts(folder.path, one) for one in sections],
        stages=[_stage_cells(record) for record in folder.stage_records()],
        config=[
            (name, value if isinstance(value, str) else json.dumps(value))
            for name, value in flat(folder.read_json("config.json"))
        ],
        machine=machine(),
        commit=commit(),
    )
    path = folder.path / "summary.html"
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def put_section(folder: Path, section: Section) -> Path | None:
    """Put a section into the page that a run folder has, in place of one with its heading, or as the last.

    Return the path of the page; None if there is none. Raises: as `write_summary` does for its files; ValueError if
    the page was written by an older version.
    """
    path = folder / "summary.html"
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    if text.count(_END) != 1:
        raise ValueError(
            f"{path} was written by an older version of dreamjax: write it anew with the run's own command"
        )
    made = _template("section.html").render(section=_parts(folder, section))
    begin = f'<section id="{_id(section)}">'
    if begin in text:
        head, rest = text.split(begin, 1)
        text = head + made + rest.split("</section>\n", 1)[1]
    else:
        text = text.replace(_END, made + _END)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def report(
    run: RunFolder,
    experiment: str,
    command: str,
    rows: Sequence[dict[str, Any]],
    title: str,
    sections: Sequence[Section] = (),
    lead: str = "",
    into: RunFolder | None = None,
    *,
    seeds: Sequence[int] | None = None,
) -> None:
    """Write `result.json` and `summary.html` of a run whose configuration has a preset and a seed; print the rows.

    They go to the run folder, or into another one. Without rows there is no result, but still a summary. `seeds` are
    those of a run of several.

    Raises: as `write_result` and `write_summary` do.
    """
    into = into or run
    preset, path = run.config.preset, into.path / "result.json"
    if rows:
        of = seeds or [run.config.seed]
        write_result(path, experiment, preset, command, of, run.seconds, rows, origin=run.origin)
    page = write_summary(into, title, rows, sections, lead)
    show_rows(rows)
    print(f"Open {page}")


def _template(name: str) -> Any:
    with extra("experiments", "a page"):
        import jinja2
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template(name)


def _parts(folder: Path, section: Section) -> dict[str, Any]:
    """What the template of a section shows."""
    media, rows = [_medium(folder, name) for name in section.media], [_result_cells(row)[:3] for row in section.rows]
    return section._asdict() | {"media": media, "rows": rows, "id": _id(section)}


def _id(section: Section) -> str:
    return re.sub(r"\W+", "-", section.heading).strip("-").lower()


def _result_cells(row: dict[str, Any]) -> tuple[str, ...]:
    published = "" if row["published"] is None else shown_number(row["published"])
    return row["name"], shown_measurement(row), str(row["n"]), published


def _stage_cells(record: dict[str, Any]) -> tuple[str, ...]:
    shown = {name: value for name, value in record["summary"].items() if not isinstance(value, list)}
    outcome = ", ".join(f"{name} {_rounded(value)}" for name, value in shown.items())
    return record["name"], "done" if record["done"] else "not finished", shown_duration(record["seconds"]), outcome


def _medium(folder: Path, name: str) -> dict[str, str]:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{name} is not in {folder}: write it before the summary")
    path = Path(name)
    if path.suffix not in _KINDS:
        raise ValueError(f"{name} is neither an image nor a video: use {', '.join(_KINDS)}")
    caption = path.stem.replace("_", " ").replace("-", " ")
    return {"address": path.as_posix(), "caption": caption, "kind": _KINDS[path.suffix]}


def _rounded(value: Any) -> str:
    return shown_number(value) if isinstance(value, float | str) else json.dumps(value)
