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


SNIPPETS = [
    pytest.param(code, id=f"{name.partition('/')[0]}-{number}")
    for name in ("README.md", "experiments/README.md")
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", (REPO / name).read_text(), re.DOTALL))
]


def test_there_is_a_snippet_for_each_wish() -> None:
    assert len(SNIPPETS) == 8
    assert all(len(snippet.values[0].strip().splitlines()) <= 20 for snippet in SNIPPETS)


@pytest.mark.parametrize("code", SNIPPETS)
def test_a_snippet_runs_by_itself(code: str, tmp_path: Path) -> None:
    (tmp_path / "experiments").symlink_to(REPO / "experiments")
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr


@each_document
def test_named_files_exist(name: str) -> None:
    path = REPO / name
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text())
    assert len(targets) > 4
    assert [target for target in targets if not (path.parent / target).exists()] == []
