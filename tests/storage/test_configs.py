"""Configurations come back from JSON and from the command line as they were."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import tyro

from dreamjax.dreamerv3.config import DreamerConfig, debug
from dreamjax.storage.configs import command_line, read_config
from dreamjax.storage.folder import ConfigMismatch, RunFolder


@dataclass(frozen=True)
class Config:
    task: str = "a"
    steps: int | None = None
    processes: bool = False
    agent: DreamerConfig = DreamerConfig()


AGENT = debug(DreamerConfig(compute_dtype="float32"))
AGENT = replace(
    AGENT,
    codec=replace(AGENT.codec, multipliers=(1, 2), symlog=False),
    optimizer=replace(AGENT.optimizer, learning_rate=3e-5),
)
CHANGED = [Config(), Config("dmc_walker_walk", 7, True), Config(agent=AGENT)]


@pytest.mark.parametrize("config", CHANGED)
def test_what_a_run_folder_holds_is_read_back(config: Config, tmp_path: Path) -> None:
    assert read_config(Config, RunFolder(tmp_path, config).read_json("config.json")) == config


def test_a_run_of_an_older_version_can_be_opened_and_gone_on_with(tmp_path: Path) -> None:
    written = json.loads(json.dumps(asdict(Config(steps=3))))
    del written["processes"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    opened = RunFolder.opened(tmp_path, Config)
    assert opened.config == Config(steps=3) and opened.path == tmp_path and opened.stage_records() == []
    with pytest.raises(ConfigMismatch, match="processes"):  # which is new, and was not so
        RunFolder(tmp_path, replace(opened.config, processes=not opened.config.processes))
    assert RunFolder(tmp_path, opened.config).config == Config(steps=3)
    with pytest.raises(FileNotFoundError):
        RunFolder.opened(tmp_path / "other", Config)


@pytest.mark.parametrize("config", CHANGED)
def test_the_command_line_makes_the_configuration(config: Config) -> None:
    assert tyro.cli(Config, args=command_line(config, Config())) == config


def test_flags_say_only_what_differs() -> None:
    assert command_line(Config(), Config()) == []
    changed = replace(Config(processes=True), agent=replace(AGENT, compute_dtype="bfloat16"))
    assert command_line(changed, replace(changed, agent=AGENT, processes=False)) == [
        "--processes",
        "--agent.compute-dtype",
        "bfloat16",
    ]


def test_fields_of_another_version_are_named_and_missing_ones_have_their_default() -> None:
    written = json.loads(json.dumps(asdict(Config())))
    del written["agent"]["rssm"]["unimix"]
    assert read_config(Config, written) == Config()
    written["agent"]["rssm"]["temperature"] = 2.0
    with pytest.raises(ValueError, match="RSSMConfig has no temperature"):
        read_config(Config, written)
