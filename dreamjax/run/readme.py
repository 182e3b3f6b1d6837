"""Puts what was measured into the README: `python -m dreamjax.run.readme`, from the top of a checkout."""

from pathlib import Path

from dreamjax.run.atomic import replacing
from dreamjax.run.folder import results_table

TABLES = {  # a file is in the first table that its path matches
    "temperatures": "experiments/results/doom_temperature_sweep/result.json",
    "results": "experiments/results/*/result.json",
    "speed": "benchmarks/results/*.json",
}


def tables(root: Path) -> dict[str, str]:
    """Make every table from the result files of a checkout."""
    made, shown = {}, set[Path]()
    for name, pattern in TABLES.items():
        files = sorted(set(root.glob(pattern)) - shown)
        made[name] = results_table(files)
        shown.update(files)
    return made


def main() -> None:
    """Replace each table between its two marks."""
    readme = Path("README.md")
    text = readme.read_text()
    for name, table in tables(Path()).items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, rest = text.split(begin)
        text = head + begin + table + end + rest.split(end)[1]
    with replacing(readme) as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    main()
