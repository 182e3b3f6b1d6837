"""Write what was measured into the READMEs: `python -m dreamjax.reporting.tables`, from the top of a checkout.

Every result file has a section in `experiments/README.md` or `benchmarks/README.md`, with all that is needed to measure
it again. The README shows the rows of `HIGHLIGHTS`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dreamjax.reporting.results import read_result, shown_duration, shown_intervals, shown_measurement, shown_number
from dreamjax.storage.atomic import replacing


class Highlight(NamedTuple):
    """A row of a result for the README."""

    experiment: str  # as in the result file
    row: str  # its name there
    shown: str  # what it is, in the words of the README


RESULTS = {"experiments": "results/*/result.json", "benchmarks": "results/*.json"}  # folder -> its result files

HIGHLIGHTS = {  # folder -> rows
    "experiments": (
        Highlight("doom_take_cover", "real", "Doom, evolved in dreams only: tics in the real game"),
        Highlight("doom_ppo", "PPO, real", "PPO of stable-baselines3, trained in the dream of the same V and M"),
        Highlight("planning", "planner, real", "no controller: plans in the same V and M, at every tic"),
        Highlight("doom_take_cover", "random_every_tic", "a random agent in the real game"),
        Highlight("car_racing", "full", "CarRacing, evolved on the road, `[z, h]`"),
        Highlight("car_racing", "full-dream", "CarRacing, evolved in dreams, `[z, h]`"),
        Highlight("swingup_iterative", "iterated, held upright at the end", "pole swing-up from pixels, held upright"),
        Highlight("dreamerv3", "gym_CartPole-v1, evaluated", "DreamerV3, CartPole"),
        Highlight(
            "dreamerv3",
            "dmc_ball_in_cup_catch, lr 1.6e-4, evaluated",
            "DreamerV3 1m, ball in cup from vectors, 50,000 frames, 4 x the learning rate",
        ),
    ),
    "benchmarks": (
        Highlight("dream_throughput", "1024 lanes, ratio to PyTorch", "1,024 Doom dreams at once, against PyTorch"),
        Highlight("training_throughput", "V, ours / torch", "training V, against PyTorch"),
        Highlight(
            "dreamerv3_update",
            "1m, images: published code's time / ours",
            "an update of DreamerV3 on images, against the published code",
        ),
        Highlight(
            "dreamerv3_update",
            "1m, vectors: time of torchrl 0.14.1, torch 2.13.0+cpu / ours",
            "an update of DreamerV3 on vectors, against TorchRL",
        ),
        Highlight(
            "dreamerv3_loops",
            "probe, ratio 1, batch 16 x 64: jitted / host",
            "DreamerV3 as one jitted loop, against its host loop, where updates are few",
        ),
    ),
}


def section(path: Path) -> str:
    """Describe one result file in Markdown: its rows as a table, and how they were made.

    Raises: ValueError if the file does not have the form that `write_result` gives it.
    """
    result = read_result(path)
    name = path.parent.name if path.name == "result.json" else path.stem
    notes = path.with_name("README.md")
    seeds = ", ".join(map(str, result["seeds"]))
    commits = ", ".join(one[:12] + one[40:] for one in result["commit"].split(", "))
    made = (
        f"Preset {result['preset']}; seeds {seeds}; {shown_duration(result['wall_s'])} on {result['machine']}; "
        f"commit {commits}."
    )
    if notes.exists():
        made += f" [Notes and plots](results/{name}/README.md)."
    rows = [(row["name"], *_cells(row)) for row in result["rows"]]
    commands = result["command"].replace("; ", "\n")
    return f"### {name}\n\n{_table('Result', rows)}\n{made}\n\n```bash\n{commands}\n```\n"


def highlights(root: Path, folder: str) -> str:
    """Make the table of the rows of a folder that the README shows.

    Raises: ValueError if a highlight is in none of the result files there, or in several.
    """
    results = [read_result(path) for path in sorted((root / folder).glob(RESULTS[folder]))]
    rows = [(one.shown, *_cells(_find(results, one))) for one in HIGHLIGHTS[folder]]
    return _table("", rows)


def documents(root: Path) -> dict[Path, str]:
    """Make the text of every file in a checkout that has tables, with up-to-date ones between its marks.

    Raises: ValueError if a file lacks a mark.
    """
    made = {}
    readme = root / "README.md"
    text = readme.read_text()
    for folder, pattern in RESULTS.items():
        text = _replaced(text, folder, highlights(root, folder), readme)
        path = root / folder / "README.md"
        sections = "\n".join(section(file) for file in sorted((root / folder).glob(pattern)))
        made[path] = _replaced(path.read_text(), folder, sections, path)
    return {readme: text} | made


def main() -> None:
    """Rewrite all tables of the checkout in the current folder."""
    for path, text in documents(Path()).items():
        with replacing(path) as temporary:
            temporary.write_text(text)


def _table(title: str, rows: Sequence[Sequence[str]]) -> str:
    """Make a Markdown table of cells (name, measured, n, published), without the last column where it is empty."""
    columns = 4 if any(row[3] for row in rows) else 3
    lines = [(title, "Measured", "n", "Published"), ("---",) * 4, *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line[:columns]] for line in lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in escaped)


def _cells(row: dict[str, Any]) -> tuple[str, str, str]:
    published = "" if row["published"] is None else shown_number(row["published"])
    return shown_measurement(row) + f" ({shown_intervals(row)})" * ("iqm" in row), str(row["n"]), published


def _find(results: Sequence[dict[str, Any]], one: Highlight) -> dict[str, Any]:
    rows = [row for result in results if result["experiment"] == one.experiment for row in result["rows"]]
    found = [row for row in rows if row["name"] == one.row]
    if len(found) != 1:
        raise ValueError(f"{one.experiment} has {len(found)} rows {one.row!r}, must have one: correct HIGHLIGHTS")
    return found[0]


def _replaced(text: str, mark: str, table: str, path: Path) -> str:
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{path} must have one {begin.strip()} and one {end}, between which its table goes")
    head, rest = text.split(begin)
    return head + begin + table + end + rest.split(end)[1]


if __name__ == "__main__":
    main()
