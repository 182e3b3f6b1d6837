"""Puts what the experiments measured into the README: `python -m dreamjax.run.readme`, from the top of a checkout."""

from pathlib import Path

from dreamjax.run.atomic import replacing
from dreamjax.run.folder import results_table

BEGIN, END = "<!-- results -->\n", "<!-- /results -->"


def main() -> None:
    """Replace the table between the two marks."""
    readme = Path("README.md")
    head, rest = readme.read_text().split(BEGIN)
    table = results_table(sorted(Path("experiments/results").glob("*/result.json")))
    with replacing(readme) as temporary:
        temporary.write_text(head + BEGIN + table + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
