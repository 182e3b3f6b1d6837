"""Results that would be wrong or lost: scores of something else, failed fitness, stages that seem unfinished."""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dreamjax import dreamerv3, evolution, rollout
from dreamjax.dreamerv3 import DreamerConfig
from dreamjax.envs import probes
from dreamjax.evolution import EvolutionConfig, EvolutionState
from dreamjax.reporting import write_summary
from dreamjax.storage import Checkpoints, MetricsLog, RunFolder, load, read_metrics
from dreamjax.storage.atomic import read_json
from dreamjax.storage.configs import read_config
from dreamjax.storage.identity import fingerprint
from dreamjax.training import stages
from dreamjax.training.experiment import Aggregating, Evaluating, read_command_line, stored_agent
from dreamjax.training.loop import generations, train
from dreamjax.types import Metrics


@dataclass(frozen=True)
class Part:
    """Of a configuration."""

    learning_rate: float = 0.5
    width: int = 3  # of a layer


@dataclass(frozen=True)
class Small:
    """A configuration."""

    preset: str = "paper"
    updates: int = 2  # that are made
    agent: Part = Part()


@dataclass(frozen=True)
class Everything(Evaluating, Aggregating):
    """All options."""


def test_a_run_goes_on_past_failures_and_ends_where_all_have_failed(tmp_path: Path) -> None:
    cfg, paid = EvolutionConfig(population_size=4), [jnp.array([1.0, jnp.inf, 2.0, -jnp.inf]), jnp.full(4, -jnp.inf)]

    def generation(state: EvolutionState, number: int) -> tuple[EvolutionState, Metrics]:
        state, population = evolution.ask(cfg, jax.random.key(number), state)
        return evolution.tell(cfg, state, population, paid[number])

    begin = evolution.init(cfg, jnp.zeros(4))
    settings: dict[str, Any] = {"checkpoint_every": 1, "log_every": 1}
    run = RunFolder(tmp_path, cfg)
    with (
        MetricsLog(tmp_path) as log,
        pytest.raises(FloatingPointError, match=r"all 4 individuals of generation 1 .*Look at what they are paid"),
    ):
        train(run, log, "evolve", begin, generations(generation), 2, **settings)
    known = read_metrics(tmp_path / "metrics.jsonl")["evolve"]
    assert (known["fitness_failed"][1].tolist(), known["fitness_mean"][1].tolist()) == ([2], [1.5])
    assert Checkpoints(tmp_path / "checkpoints" / "evolve").steps() == [1]


def test_every_stage_of_a_finished_run_is_done_on_its_page(tmp_path: Path) -> None:
    """Also if it was killed between its last checkpoint and its end."""
    run = RunFolder(tmp_path, EvolutionConfig())

    def count() -> None:
        with MetricsLog(tmp_path) as log:
            train(run, log, "count", 0, generations(lambda state, number: (state + 1, {"loss": 0.5})), 2)

    count()
    run.write_json("stages/count.json", run.stage_record("count") | {"done": False})
    assert "not finished" in write_summary(run, "Counting", []).read_text()
    count()
    page = write_summary(run, "Counting", []).read_text()
    assert "not finished" not in page and "done" in page


def test_a_stage_is_measured_again_where_anything_that_it_depends_on_has_changed(tmp_path: Path) -> None:
    run, measured = RunFolder(tmp_path, EvolutionConfig()), []

    def measure(what: str) -> dict[str, Any]:
        return stages.once(run, "look", fingerprint(what), lambda: {"seen": [measured.append(what), what][1]})

    assert [measure(what)["seen"] for what in ("a", "a", "b", "b", "a")] == ["a", "a", "b", "b", "a"]
    assert measured == ["a", "b", "a"]
    with pytest.raises(KeyboardInterrupt):
        stages.once(run, "look", fingerprint("c"), lambda: signal.raise_signal(signal.SIGINT))
    assert measure("a")["seen"] == "a" and measured == ["a", "b", "a", "a"]


def test_evaluating_an_agent_that_is_not_there_says_which_are_and_how_to_make_it() -> None:
    folder = Path(__file__).parents[2] / "experiments" / "results" / "car_racing"
    with pytest.raises(SystemExit) as refused:
        stored_agent(folder / "agent-full.npz", "python experiments/car_racing.py --controller full")
    message = str(refused.value)
    assert "agent-full.npz" in message and "has agent-full-dream.npz" in message
    assert message.endswith("This command trains it: python experiments/car_racing.py --controller full")


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    arguments: Any = ("dreamerv3", "Trains.", {"paper": Small()}, Everything)
    with pytest.raises(SystemExit):
        read_command_line(*arguments, ["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for text in ("--updates INT that are made", "--agent.width INT of a layer", "--folder {None}|PATH of the run;"):
        assert text in shown
    for text in (
        "evaluate the agent in this folder",
        "folders of finished runs, whose",
        "folder for what is aggregated",
    ):
        assert text in shown
    assert read_command_line(*arguments, ["--updates", "3"])[0].updates == 3


@pytest.mark.parametrize(
    ("flag", "good"),
    [
        ("--agent.lr", "--agent.learning-rate"),
        ("--lr", "--agent.learning-rate"),
        ("--updatse", "--updates"),
        ("--agent.learning_rte", "--agent.learning-rate"),
        ("--forlder", "--folder"),
    ],
)
def test_a_misspelled_option_names_the_one_that_was_meant(flag: str, good: str) -> None:
    with pytest.raises(SystemExit) as refused:
        read_command_line("dreamerv3", "Trains.", {"paper": Small()}, Everything, [flag, "1"])
    assert str(refused.value) == f"dreamerv3.py has no {flag}: did you mean {good}?"


def test_the_committed_agent_of_dreamerv3_catches_nearly_every_ball() -> None:
    folder = Path(__file__).parents[2] / "experiments" / "results" / "dreamerv3_jax_catch"
    assert read_config(DreamerConfig, read_json(folder / "agent.json")["config"]) == dreamerv3.tiny()
    agent, params = load(folder)
    alone = jax.tree.map(lambda leaf: leaf[None], params.policy)
    policy = rollout.step_policy(agent, params.model)
    play = jax.jit(lambda keys: rollout.population_returns(probes.catch(), policy, alone, keys).total)
    assert play(jax.random.split(jax.random.key(0), 16)).mean() > 0.9
    assert len(params.starts) == 64  # where its dreams begin
