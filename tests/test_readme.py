"""The README's tables are what the result files say, its code runs, and the files it names are there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dreamjax.reporting.results import read_result
from dreamjax.reporting.tables import TABLES, tables

REPO = Path(__file__).resolve().parents[1]
TEXT = (REPO / "README.md").read_text()


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_up_to_date(name: str) -> None:
    written = TEXT.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0]
    assert written == tables(REPO)[name], "run `make table`"


def test_every_result_is_in_one_table() -> None:
    results = [*REPO.glob("experiments/results/*/result.json"), *REPO.glob("benchmarks/results/*.json")]
    assert len(results) > 5
    commands = [read_result(path)["command"] for path in results]
    assert [TEXT.count(f"`{command}`: preset") for command in commands] == [1] * len(commands)


def test_snippets_run() -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(16, 16) ")


def test_named_files_exist() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT)
    assert len(targets) > 5
    assert [target for target in targets if not (REPO / target).exists()] == []
