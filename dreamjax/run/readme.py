"""Puts what was measured into the README: `python -m dreamjax.run.readme`, from the top of a checkout."""

from pathlib import Path

from dreamjax.run.atomic import replacing
from dreamjax.run.folder import results_table

TABLES = {"results": "experiments/results/*/result.json", "speed": "benchmarks/results/*.json"}


def main() -> None:
    """Replace each table between its two marks."""
    readme = Path("README.md")
    text = readme.read_text()
    for name, pattern in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        head, rest = text.split(begin)
        text = head + begin + results_table(sorted(Path().glob(pattern))) + end + rest.split(end)[1]
    with replacing(readme) as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    main()
