"""The code of the READMEs runs, and the files they name are there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
README = (REPO / "README.md").read_text()

each_document = pytest.mark.parametrize("name", ["README.md", "experiments/README.md", "benchmarks/README.md"])


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 200


@pytest.mark.xfail(reason="the snippets are not written yet", strict=True)
@pytest.mark.parametrize("name", ["README.md", "experiments/README.md"])
def test_snippets_run(name: str) -> None:
    text = (REPO / name).read_text()
    assert "<!-- SNIPPET" not in text
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    assert code
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@each_document
def test_named_files_exist(name: str) -> None:
    path = REPO / name
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    assert len(targets) > 4
    assert [target for target in targets if not (path.parent / target).exists()] == []
