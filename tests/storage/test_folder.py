"""Run folders: one configuration each, stages that resume, and where their numbers come from."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.storage.atomic import replacing
from dreamjax.storage.folder import Change, ConfigMismatch, RunFolder
from dreamjax.storage.provenance import commit, machine


@dataclass(frozen=True)
class Vision:
    latent: int = 32
    channels: tuple[int, ...] = (32, 64)


@dataclass(frozen=True)
class Config:
    seed: int = 0
    rate: float = 1e-4
    vision: Vision = field(default_factory=Vision)
    dtype: type = jnp.bfloat16


def test_the_configuration_is_written_and_the_same_one_is_accepted(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "a", Config())
    RunFolder(tmp_path / "runs" / "a", Config())
    assert json.loads((folder.path / "config.json").read_text()) == {
        "seed": 0,
        "rate": 1e-4,
        "vision": {"latent": 32, "channels": [32, 64]},
        "dtype": "bfloat16",
    }


def test_another_configuration_is_refused_with_the_differences(tmp_path):
    RunFolder(tmp_path, Config())
    with pytest.raises(ConfigMismatch) as error:
        RunFolder(tmp_path, replace(Config(), seed=3, vision=Vision(channels=(8, 64))))
    assert str(error.value).splitlines() == [
        f"{tmp_path} was begun with another configuration:",
        "  seed: the folder has 0, this run 3",
        "  vision.channels: the folder has [32, 64], this run [8, 64]",
        "Use another folder, or the old values to go on with this run, or delete the folder to start again.",
    ]
    assert isinstance(error.value, ValueError)
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 0


def test_a_result_is_that_of_the_configuration_it_was_made_with(tmp_path):
    (tmp_path / "result.json").write_text("of seed 0")
    RunFolder(tmp_path, Config())
    for seed in (3, 4):
        assert (tmp_path / "result.json").exists() == (seed == 3)
        RunFolder(tmp_path, Config(seed=seed), {"seed": Change()})
    assert [path.name for path in tmp_path.glob("result*")] == ["result-1.json"]
    assert (tmp_path / "result-1.json").read_text() == "of seed 0"


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file: name a folder for the run"):
        RunFolder(tmp_path / "file", Config())


def test_a_new_or_removed_field_is_a_difference(tmp_path):
    RunFolder(tmp_path, Vision())
    with pytest.raises(ConfigMismatch, match="latent: the folder has 32, this run absent"):
        RunFolder(tmp_path, Config())
    with pytest.raises(ConfigMismatch, match="seed: the folder has absent, this run 0"):
        RunFolder(tmp_path, Config())


def test_a_field_that_is_new_was_at_its_default(tmp_path):
    RunFolder(tmp_path, Config(seed=3))
    written = json.loads((tmp_path / "config.json").read_text())
    del written["rate"], written["vision"]["latent"]  # as an older version wrote it
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(ConfigMismatch, match=r"rate: the folder has 0.0001, this run 0.1"):
        RunFolder(tmp_path, Config(seed=3, rate=0.1))
    RunFolder(tmp_path, Config(seed=3))
    assert json.loads((tmp_path / "config.json").read_text())["vision"]["latent"] == 32


@pytest.mark.parametrize("config", [{"seed": 0}, Config])
def test_a_configuration_is_a_dataclass_instance(tmp_path, config):
    with pytest.raises(ValueError, match="instance of a dataclass"):
        RunFolder(tmp_path, config)


def test_json_holds_arrays_and_refuses_what_it_cannot_hold(tmp_path):
    folder = RunFolder(tmp_path, Config())
    folder.write_json("a/b.json", {"x": jnp.arange(2), "y": np.float32(0.5), "z": (Path("c"), None, True)})
    assert folder.read_json("a/b.json") == {"x": [0, 1], "y": 0.5, "z": ["c", None, True]}
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        folder.write_json("a/b.json", {"x": object()})
    assert folder.read_json("a/b.json")["y"] == 0.5
    (tmp_path / "broken.json").write_text('{"x": ')
    with pytest.raises(ValueError, match=r"broken\.json is not JSON"):
        folder.read_json("broken.json")
    with pytest.raises(FileNotFoundError):
        folder.read_json("absent.json")


def test_replacing_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.suffix == ".txt"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_stage_is_done_when_its_block_ends_without_an_error(tmp_path):
    folder = RunFolder(tmp_path, Config())
    assert not folder.stage_done("vision")
    with pytest.raises(KeyboardInterrupt), folder.stage("vision"):
        raise KeyboardInterrupt
    assert not folder.stage_done("vision")
    with folder.stage("memory"):
        folder.finish_stage("memory", {"loss": jnp.float32(0.5)})
    again = RunFolder(tmp_path, Config())
    assert again.stage_done("memory") and not again.stage_done("vision")
    with again.stage("vision") as stage:
        stage.tick()
        assert not folder.stage_done("vision")
    assert folder.stage_done("vision")
    again.finish_stage("memory")
    assert again.stage_record("memory")["summary"] == {"loss": 0.5}
    assert [record["name"] for record in again.stage_records()] == ["vision", "memory"]


def test_a_stage_that_is_taken_up_again_is_not_done_until_it_ends_again(tmp_path):
    folder = RunFolder(tmp_path, Config())
    with folder.stage("evolve"):
        pass
    with pytest.raises(KeyboardInterrupt), folder.stage("evolve"):
        raise KeyboardInterrupt
    assert not folder.stage_done("evolve")
    with pytest.raises(ValueError, match="letters, digits"):
        folder.stage_done("../vision")


def test_seconds_add_up_over_resumed_and_failed_runs(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    folder = RunFolder(tmp_path, Config())
    with pytest.raises(KeyboardInterrupt), folder.stage("vision"):
        clock[0] += 5
        raise KeyboardInterrupt
    with RunFolder(tmp_path, Config()).stage("vision") as stage:
        clock[0] += 2
        stage.tick()
        assert folder.stage_record("vision")["seconds"] == 7
        clock[0] += 1
        assert stage.seconds == 8
        folder.finish_stage("vision", {})
    assert folder.stage_record("vision")["seconds"] == 8 and folder.stage_done("vision")


def test_a_run_knows_all_commits_and_machines_that_made_it(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, Config())
    assert folder.origin == (commit(), machine()) and folder.seconds == 0
    for name, made_by, made_on in (("vision", "a", "slow"), ("memory", "b", "slow"), ("memory", "a", "fast")):
        monkeypatch.setattr("dreamjax.storage.folder.commit", lambda made_by=made_by: made_by)
        monkeypatch.setattr("dreamjax.storage.folder.machine", lambda made_on=made_on: made_on)
        with folder.stage(name):
            pass
    folder.finish_stage("memory", {})
    assert folder.stage_record("memory")["commits"] == ["b", "a"]
    assert folder.origin == ("a, b", "slow and fast")


def test_what_a_kill_left_half_replaced_is_no_stage(tmp_path):
    folder = RunFolder(tmp_path, Config())
    with folder.stage("vision"):
        pass
    shutil.copy(tmp_path / "stages" / "vision.json", tmp_path / "stages" / ".vision.123.json")
    assert [record["name"] for record in folder.stage_records()] == ["vision"]


def test_a_killed_stage_keeps_the_time_of_its_last_tick(tmp_path):
    code = f"""
import dataclasses, os, signal, time
from dreamjax.storage.folder import RunFolder
@dataclasses.dataclass(frozen=True)
class Config: seed: int = 0
folder = RunFolder({str(tmp_path)!r}, Config())
clock = [0.0]
time.monotonic = lambda: clock[0]
with folder.stage("vision") as stage:
    clock[0] = 3.0
    stage.tick()
    clock[0] = 9.0
    os.kill(os.getpid(), signal.SIGKILL)
"""
    child = subprocess.run([sys.executable, "-c", code])
    assert child.returncode == -signal.SIGKILL
    record = json.loads((tmp_path / "stages" / "vision.json").read_text())
    assert record["seconds"] == 3.0 and not record["done"]


def test_machine_names_what_computes_and_nothing_private():
    text = machine()
    assert "cores" in text and "jax on 1 x cpu" in text and "Python 3." in text
    assert os.uname().nodename not in text and str(Path.home()) not in text


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_commit_is_that_of_the_checkout_of_the_source(tmp_path):
    source = tmp_path / "package" / "module.py"
    source.parent.mkdir()
    source.write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    assert commit(source) == "unknown"  # installed into somebody's repository, not tracked by it
    git(tmp_path, "add", ".")
    assert commit(source) == "unknown"  # nothing is committed
    git(tmp_path, "commit", "-qm", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert len(head) == 40 and commit(source) == head
    (tmp_path / "result.json").write_text("{}")
    assert commit(source) == head  # results do not change the code
    (tmp_path / "other.py").write_text("b = 1\n")
    git(tmp_path, "add", "other.py")
    assert commit(source) == f"{head}-dirty"
