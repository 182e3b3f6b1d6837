"""One page about a run, to open in a browser: what came out, what it looks like, and how it was made."""

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dreamjax.reporting.results import shown_duration, shown_measurement, shown_number, write_result
from dreamjax.storage.atomic import replacing
from dreamjax.storage.folder import RunFolder
from dreamjax.storage.provenance import commit, machine


class Section(NamedTuple):
    """A part of the page: a heading, a paragraph, and images and videos by their paths within the run folder."""

    heading: str
    text: str = ""
    media: Sequence[str] = ()


def write_summary(
    folder: RunFolder, title: str, rows: Iterable[dict[str, Any]], sections: Sequence[Section] = (), lead: str = ""
) -> Path:
    """Write `summary.html` into the run folder and return its path.

    `rows` are those of `write_result`; `lead` is a sentence under the title. The page needs nothing but the files it
    shows, so the folder can be copied or served as it is.

    Raises:
        FileNotFoundError: a file of a section is not in the folder.
        ValueError: a file is neither an image nor a video.
    """
    results = [
        [
            row["name"],
            shown_measurement(row),
            str(row["n"]),
            "" if row["published"] is None else shown_number(row["published"]),
        ]
        for row in rows
    ]
    stages = [
        [record["name"], "done" if record["done"] else "not finished", shown_duration(record["seconds"])]
        + [", ".join(f"{name} {_rounded(value)}" for name, value in record["summary"].items())]
        for record in folder.stage_records()
    ]
    config = [
        [name, value if isinstance(value, str) else json.dumps(value)]
        for name, value in _flat(folder.read_json("config.json"))
    ]
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [f'<p class="lead">{html.escape(lead)}</p>'] if lead else []
    if results:
        parts += ["<h2>Results</h2>", _table(["", "measured", "n", "published"], results, "results")]
    for section in sections:
        parts += [f"<section><h2>{html.escape(section.heading)}</h2>"]
        parts += [f"<p>{html.escape(section.text)}</p>"] if section.text else []
        figures = [_figure(folder.path, name) for name in section.media]
        parts += ['<div class="media">', *figures, "</div>"] if figures else []
        parts += ["</section>"]
    if stages:
        parts += ["<h2>Stages</h2>", _table(["stage", "", "time", "came out"], stages, "stages")]
    parts += ["<h2>Configuration</h2>", _table(["", ""], config, "config")]
    parts += [f"<footer>{html.escape(machine())}<br>commit {html.escape(commit())}</footer>"]
    path = folder.path / "summary.html"
    page = _PAGE.replace("@title@", html.escape(title)).replace("@style@", _STYLE)
    with replacing(path) as temporary:
        temporary.write_text(page.replace("@body@", "\n".join(parts)), encoding="utf-8")
    return path


def report(
    run: RunFolder,
    experiment: str,
    command: str,
    rows: Sequence[dict[str, Any]],
    title: str,
    sections: Sequence[Section] = (),
    lead: str = "",
) -> None:
    """Write `result.json` and `summary.html` of a run whose configuration has a preset and a seed; print the rows.

    Raises: as `write_result` and `write_summary` do.
    """
    preset, seeds, path = run.config.preset, [run.config.seed], run.path / "result.json"
    write_result(path, experiment, preset, command, seeds, run.seconds, rows, origin=run.origin)
    page = write_summary(run, title, rows, sections, lead)
    for row in rows:
        print(f"{row['name']:>22}: {shown_measurement(row)}, {row['n']} episodes")
    print(f"Open {page}")


def _figure(folder: Path, name: str) -> str:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{name} is not in {folder}: write it before the summary")
    address = html.escape(Path(name).as_posix())
    caption = html.escape(Path(name).stem.replace("_", " ").replace("-", " "))
    suffix = Path(name).suffix
    if suffix == ".mp4":
        shown = f'<video src="{address}" controls loop muted autoplay playsinline></video>'
    elif suffix in {".png", ".gif", ".jpg", ".svg"}:
        shown = f'<a href="{address}"><img src="{address}" alt="{caption}"></a>'
    else:
        raise ValueError(f"{name} is neither an image (.png, .gif, .jpg, .svg) nor a video (.mp4)")
    kind = "wide" if suffix in {".png", ".svg"} else "clip"
    return f'<figure class="{kind}">{shown}<figcaption>{caption}</figcaption></figure>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table class="{kind}">' + (f"<tr>{head}</tr>" if any(header) else "") + f"\n{body}</table>"


def _rounded(value: Any) -> str:
    return shown_number(value) if isinstance(value, float | str) else json.dumps(value)


def _flat(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [pair for name, item in value.items() for pair in _flat(item, f"{prefix}.{name}" if prefix else name)]
    return [(prefix, value)]


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@title@</title>
<style>
@style@</style>
</head>
<body>
<main>
@body@
</main>
</body>
</html>
"""

_STYLE = """\
:root { color-scheme: light dark; --ink: #1d1f23; --soft: #6a6f78; --line: #e2e4e8; --paper: #fff; --card: #f6f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9aa1ab; --line: #30343b; --paper: #16181c; --card: #1e2126; }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.5rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .7rem; }
.lead { color: var(--soft); margin: 0; max-width: 44rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; }
th, td { text-align: left; padding: .35rem 2rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.results td:nth-child(2) { font-weight: 600; }
.config { font-size: .85rem; }
.config td:first-child { color: var(--soft); }
.media { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; background: var(--card); border-radius: 8px; padding: .7rem; box-sizing: border-box; }
figure.wide { width: 100%; }
figure.clip { flex: 0 1 auto; }
img, video { max-width: 100%; display: block; border-radius: 4px; }
.wide img { margin: 0 auto; }
.clip img, .clip video { min-width: min(20rem, 100%); image-rendering: pixelated; }
figcaption { color: var(--soft); font-size: .8rem; margin-top: .45rem; }
footer { color: var(--soft); font-size: .8rem; margin-top: 3rem; border-top: 1px solid var(--line); padding-top: 1rem; }
"""
