"""Bad input ends in one message and exit code 1, faults keep their traceback; commands, and where results go."""

import runpy
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import pytest

from dreamjax.evolution import EvolutionConfig
from dreamjax.reporting import aggregate
from dreamjax.storage import Begin, RunFolder
from dreamjax.storage.replays import ReplayError
from dreamjax.training.experiment import Options, command, exit_on_bad_input, read_command_line
from tests.scripts import REPO, refused

EXPERIMENTS = sorted((REPO / "experiments").glob("*.py"))


def fail(error: Exception, run: RunFolder | None = None) -> None:
    """Raise an error, in a stage of a run if there is one."""
    with exit_on_bad_input():
        if run is not None:
            with run.stage("train"):
                raise error
        raise error


def test_a_refusal_before_training_is_one_message() -> None:
    for error in (ValueError("resize it"), FileNotFoundError("there is none"), RuntimeError("it cannot render")):
        with pytest.raises(SystemExit) as refusal:
            fail(error)
        assert refusal.value.code == str(error) and refusal.value.__suppress_context__


def test_an_error_in_the_middle_of_a_run_is_a_fault(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, EvolutionConfig())
    for error in (ValueError("shapes"), RuntimeError("a loop"), OSError("no space")):
        with pytest.raises(type(error)):
            fail(error, run)
    with exit_on_bad_input(), run.stage("train"):
        pass
    with pytest.raises(ValueError, match="report"), exit_on_bad_input():
        with run.stage("train"):
            pass
        raise ValueError("in the report")
    for error in (ReplayError("it is damaged"), ModuleNotFoundError("pip install")):  # which say what to do
        with pytest.raises(SystemExit, match=str(error)):
            fail(error, run)


def test_faults_are_no_refusals_whenever_they_come() -> None:
    for error in (TypeError("arguments"), KeyError("name"), RecursionError(), jax.errors.JaxRuntimeError("memory")):
        with pytest.raises(type(error)):
            fail(error)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_refuses_in_this_way(path: Path) -> None:
    assert "exit_on_bad_input()\ndef main() -> None:" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("dreamerv3", "--evaluate nowhere", "nowhere is not the folder of a run"),
        ("dreamerv3", "--preset smoke --offline 10 --folder {}", "name a recording"),
        ("dreamerv3", "--preset smoke --begin.weights nowhere --folder {}", "there is no agent at nowhere"),
        ("dreamerv3_jax", "--per-call 0", "must be positive"),
        ("dreamerv3_jax", "--iterations 15", "must be multiples of per_call, 10"),
        ("dreamerv3_jax", "--workers 2 --folder {}", "'counter' is written in JAX"),
        ("swingup_iterative", "--aggregate nowhere", "there is no nowhere/result.json"),
    ],
)
def test_bad_input_leaves_no_traceback(name: str, arguments: str, said: str, tmp_path: Path) -> None:
    output = refused(REPO / "experiments" / f"{name}.py", *arguments.format(tmp_path / "new").split())
    assert said in output.splitlines()[-1] and "Traceback" not in output


@dataclass(frozen=True)
class Config:
    """Of an experiment."""

    preset: str = "small"
    begin: Begin = Begin()


def test_a_command_can_be_pasted_into_a_shell() -> None:
    cfg, presets = Config(begin=Begin(Path("my runs"), ("policy/*",))), {"small": Config()}
    said = command("walk", cfg, presets)
    assert said == ("python experiments/walk.py --preset small --begin.weights 'my runs' --begin.take 'policy/*'")
    assert read_command_line("walk", None, presets, Options, shlex.split(said)[2:])[0] == cfg


@pytest.mark.parametrize("name", ["dreamerv3", "swingup_iterative"])
def test_aggregated_results_go_beside_the_experiment(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def note(into: Path, *others: Any) -> list[Any]:
        seen.append(into)
        return []

    for function in ("aggregate_runs", "aggregate_repeats"):
        monkeypatch.setattr(aggregate, function, note)
    for function in ("read_run", "episode_returns"):
        monkeypatch.setattr(aggregate, function, lambda *what: None)
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--aggregate", "."])
    runpy.run_path(str(REPO / "experiments" / f"{name}.py"), run_name="__main__")
    assert seen == [REPO / "experiments" / "results" / name]
