"""The commands of experiments that documents name, and that results say they were made by, are understood today."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
PATTERNS = ("*.md", "benchmarks/*.md", "experiments/**/*.md", "experiments/*.py", "experiments/results/**/result.json")
WORD = r"""(?:"[^"\n]*"|[^\s`"\\;&#-][^\s`"\\;&#]*)"""
COMMAND = re.compile(rf"python (?:-m dreamjax\.launch [^`\n]*?)?experiments/(\w+\.py)((?: --{WORD}(?: {WORD})*)*)")
ELSEWHERE = re.compile(r" --ray \S+| --distributed")  # what joins others while the command line is read

# Reads each line of arguments as the experiment does, and stops before it begins.
READ = """
import json, runpy, shlex, sys
from dreamjax.training import experiment

class Read(Exception):
    pass

def read(*how):
    understood(*how)
    raise Read

understood, experiment.read_command_line = experiment.read_command_line, read
for line in json.load(sys.stdin):
    sys.argv[1:] = shlex.split(line)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except Read:
        print("understood")
    except SystemExit as error:
        print(f"{line}: {error}")
"""


def commands() -> dict[str, set[str]]:
    """Find the arguments of all commands that start an experiment, by its file."""
    found = defaultdict(set)
    for path in (path for pattern in PATTERNS for path in REPO.glob(pattern)):
        for name, arguments in COMMAND.findall(path.read_text(encoding="utf-8")):
            found[name].add(ELSEWHERE.sub("", arguments).strip())
    return found


COMMANDS = commands()


def test_commands_are_found() -> None:
    assert set(COMMANDS) == {path.name for path in (REPO / "experiments").glob("*.py")}
    assert sum(map(len, COMMANDS.values())) > 50


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_commands_are_understood(name: str) -> None:
    lines = sorted(COMMANDS[name])
    command = [sys.executable, "-c", f"import sys; sys.argv = ['experiments/{name}']\n{READ}"]
    done = subprocess.run(
        command, cwd=REPO, input=json.dumps(lines), capture_output=True, text=True, check=False, timeout=600
    )
    assert done.stdout.splitlines() == ["understood"] * len(lines), done.stdout + done.stderr
