"""The README's table is what the result files say, its code runs, and the files it names are there."""

import re
import subprocess
import sys
from pathlib import Path

from dreamjax.run.folder import results_table

REPO = Path(__file__).resolve().parents[1]
TEXT = (REPO / "README.md").read_text()


def test_results_table_is_up_to_date() -> None:
    paths = sorted(REPO.glob("experiments/results/*/result.json"))
    written = TEXT.split("<!-- results -->\n")[1].split("<!-- /results -->")[0]
    assert written == results_table(paths), "run `make table`"


def test_snippets_run() -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(16, 16) ")


def test_named_files_exist() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)]+)\)", TEXT)
    assert len(targets) > 5
    assert [target for target in targets if not (REPO / target).exists()] == []
