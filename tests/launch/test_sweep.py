"""Settings become command lines, and folders of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

from dreamjax.launch.__main__ import main
from dreamjax.launch.sweep import experiments, variants

SCRIPT = Path("experiments/dreamerv3.py")


def test_all_combinations_are_made_and_named() -> None:
    found = variants(["seed=0,1", "agent.optimizer.learning_rate=4e-5,1e-3"])
    assert [one.name for one in found] == [
        "seed=0,learning-rate=4e-5",
        "seed=0,learning-rate=1e-3",
        "seed=1,learning-rate=4e-5",
        "seed=1,learning-rate=1e-3",
    ]
    assert found[1].flags == ["--seed", "0", "--agent.optimizer.learning-rate", "1e-3"]


def test_switches_and_several_values_are_written_as_options_are() -> None:
    found = variants(["iterate=true,False", "temperatures=0.1 0.5,1.0", "agent.rssm.deter=8", "agent.heads.deter=9"])
    assert [one.flags[0] for one in found] == ["--iterate", "--iterate", "--no-iterate", "--no-iterate"]
    assert found[0].flags[1:4] == ["--temperatures", "0.1", "0.5"]
    assert found[0].name == "iterate=true,temperatures=0.1_0.5,agent.rssm.deter=8,agent.heads.deter=9"
    assert variants(["loss.kl-balance=false"])[0].flags == ["--loss.no-kl-balance"]


def test_without_settings_there_is_one_run() -> None:
    (one,) = experiments(SCRIPT, ["--preset", "cpu"], [], Path("runs/a"))
    assert one.command == "python experiments/dreamerv3.py --preset cpu --folder runs/a"


@pytest.mark.parametrize("setting", ["seed", "seed=", "=1", "seed=0,,1"])
def test_what_is_no_setting_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match="name=value,value"):
        variants([setting])


@pytest.mark.parametrize("settings", [["seed=0,0"], ["seed=0", "--seed=1"]])
def test_what_is_named_twice_is_refused(settings: list[str]) -> None:
    with pytest.raises(ValueError, match="twice"):
        variants(settings)


@pytest.mark.parametrize("given", ["--folder", "--seed=3"])
def test_what_the_launcher_sets_is_not_set_again(given: str) -> None:
    with pytest.raises(ValueError, match=rf"{given.partition('=')[0]} is set by the launcher"):
        experiments(SCRIPT, [given], ["seed=0,1"], Path("runs"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name an experiment"),
        (["experiments/chess.py"], "there is no experiments/chess.py"),
        (["--vary", "seed", __file__], "name=value,value"),
        (["--hours", "0.01", __file__], "more than --warning-s"),
        (["--options", "account", __file__], "name=value"),
        (["--aggregate", "nowhere"], "no run that is finished"),
        (["--vary", "path=runs/a_b,runs/a/b", __file__], "would have the folder path=runs_a_b"),
    ],
)
def test_the_command_line_says_what_is_wrong(arguments: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2 and said in capsys.readouterr().err


def test_where_there_is_no_slurm_it_is_said(tmp_path: Path) -> None:
    """In a process of its own, whose path has no programs."""
    script = tmp_path / "experiment.py"
    script.touch()
    command = [sys.executable, "-m", "dreamjax.launch", "--where", "slurm", str(script)]
    environment = {"PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 2 and "srun" in done.stderr, done.stderr
