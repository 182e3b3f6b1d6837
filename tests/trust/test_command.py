"""The command measures a committed agent, and a run's page gets a section; host environments work as pure ones do."""

import json
import shutil
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v2 as imageio
import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dreamjax.dreamerv3 import model
from dreamjax.dreamerv3.config import debug
from dreamjax.envs.adaptation import adapted
from dreamjax.envs.gymnasium import spec_from_gymnasium
from dreamjax.reporting.pages import Section, write_summary
from dreamjax.reporting.results import read_result
from dreamjax.storage.folder import RunFolder
from dreamjax.trust import TrustConfig, __main__ as command, chart, trust_section
from dreamjax.trust.measurement import Measured
from dreamjax.trust.promise import Learned
from dreamjax.types import Agent, AgentParams

RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "results"


@dataclass(frozen=True)
class Config:
    seed: int = 0
    preset: str = "smoke"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["trust", *arguments])
    monkeypatch.setattr(command, "keep_freed_memory", lambda: None)  # for good, in the process of all tests
    command.main()


def test_the_command_measures_a_committed_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_summary(RunFolder(tmp_path, Config()), "Catch", [], [Section("Learning", "It learned.")])
    few = ("--episodes", "8", "--samples", "2", "--pieces", "1", "--temperatures", "1.0", "--into", str(tmp_path))
    catch = str(RESULTS / "dreamerv3_jax_catch"), "--env", "dreamjax.envs.probes:catch"
    run(monkeypatch, *catch, *few)
    result = read_result(tmp_path / "trust.json")
    assert result["experiment"] == "trust" and result["preset"] == "dreamjax.envs.probes:catch"
    assert result["command"].endswith("catch --seed 0 --episodes 8 --temperatures 1.0 --samples 2 --pieces 1")
    found = {row["name"]: row for row in result["rows"]}
    assert found["return, game"]["n"] == 8 and 0.8 < found["return, game"]["mean"] <= 1
    assert found["return, dream@1.00"]["mean"] == pytest.approx(1, abs=0.3)  # it learned to catch, dreaming
    assert found["goes on, dream@1.00, 3 ahead"]["mean"] < 0.2 and "latent stoch, another episode, 1 ahead" in found
    assert found["observation, dream@1.00, 1 ahead"]["mean"] < 0.5
    assert all(row["interval"][0] <= row["mean"] <= row["interval"][1] for row in found.values())
    told = capsys.readouterr().out
    assert "return, dream@1.00: " in told and f"Open {tmp_path / 'summary.html'}" in told
    assert Image.open(tmp_path / "trust.png").size[0] > 1000
    page = (tmp_path / "summary.html").read_text()
    assert "How far its dreams can be trusted" in page and "It learned." in page and "return, game" in page
    run(monkeypatch, *catch, *few)  # again: its section takes the place of the former
    assert (tmp_path / "summary.html").read_text().count('<section id="how-far-its-dreams-can-be-trusted">') == 1


def test_what_cannot_be_measured_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    catch = str(RESULTS / "dreamerv3_jax_catch")
    for arguments, problem in (
        ((catch, "--env", "dreamjax.envs.probes:chess"), "has no 'chess'"),
        ((catch, "--env", "dreamjax.envs.probes:catch", "--episodes", "1"), "at least two episodes"),
        ((catch + "-er", "--env", "dreamjax.envs.probes:catch"), "there is no agent"),
        ((catch, "--env", "gym_CartPole-v1"), "made for another environment"),
        ((catch, "--temperatures", "nan"), "temperatures must be some positive numbers"),
        ((catch, "--into", __file__), "is a file: name a folder"),
        ((catch, "--seed", "99999999999"), "--seed must be from 0"),
        ((catch, "--env", "dreamjax.envs.probes:counter"), "made for another environment"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(monkeypatch, *arguments)
        assert ended.value.code == 2 and problem in capsys.readouterr().err


def test_code_that_an_agent_names_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("agent.json", "agent.npz"):
        shutil.copy(RESULTS / "dreamerv3_jax_catch" / name, tmp_path)
    written = json.loads((tmp_path / "agent.json").read_text())
    (tmp_path / "agent.json").write_text(json.dumps(written | {"task": "no_such_module:make"}))
    with pytest.raises(SystemExit):
        run(monkeypatch, str(tmp_path))
    assert "if you trust it, add --env no_such_module:make" in capsys.readouterr().err


class Drift(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A place that actions move; the episode of a seed lasts `20 + seed % 5` steps, with reward 1 for each."""

    def __init__(self) -> None:
        self.observation_space: Any = gymnasium.spaces.Dict(
            {
                "image": gymnasium.spaces.Box(0, 255, (48, 64, 1), np.uint8),
                "place": gymnasium.spaces.Box(-np.inf, np.inf, (), np.float32),
            }
        )
        self.action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        assert seed is not None
        self.left, self.place = 20 + seed % 5, float(seed % 7)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place += float(action[0])
        self.left -= 1
        return self._observe(), 1.0, self.left == 0, False, {}

    def _observe(self) -> dict[str, np.ndarray]:
        shade = np.full((48, 64, 1), int(abs(self.place) * 10) % 256, np.uint8)
        return {"image": shade, "place": np.float32(self.place)}


@cache
def trained() -> tuple[Agent, AgentParams]:
    agent = model.make(replace(debug(), compute_dtype="float32"), spec_from_gymnasium(adapted(Drift), 200))
    key_model, key_policy = jax.random.split(jax.random.key(0))
    return agent, AgentParams(jax.jit(agent.model.init)(key_model), jax.jit(agent.policy.init)(key_policy))


def test_a_section_has_a_chart_films_and_rows_and_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, key = RunFolder(tmp_path, Config()), jax.random.key(4)
    cfg = TrustConfig(episodes=3, temperatures=(1.0,), samples=1, pieces=1, max_steps=100)
    section = trust_section(folder, *trained(), Drift, key, cfg, workers=0)
    assert section.media == ["trust.png", "open_loop_image.mp4", "open_loop_image.png"]
    measured = [Measured(*one) for one in folder.stage_record("trust")["summary"]["measured"]]
    of_game = {one.quantity: one for one in measured if one.by == "game"}
    assert (
        of_game["return"].mean
        == of_game["steps"].mean
        == pytest.approx(20 + np.mean([(2**30 + i) % 5 for i in range(3)]))
    )
    assert {one.quantity for one in measured if one.ahead} == {
        *("reward", "goes on", "latent deter", "latent stoch", "observation image", "observation place")
    }
    frames = imageio.mimread(tmp_path / "open_loop_image.mp4")
    assert len(frames) == 1 + 18 + 10  # the first, those ahead, and a pause
    before = (tmp_path / "open_loop_image.mp4").stat().st_mtime_ns
    assert trust_section(folder, *trained(), Drift, key, cfg, workers=0) == section
    assert (tmp_path / "open_loop_image.mp4").stat().st_mtime_ns == before
    unlike = partial(lambda what: Drift(), iter(()))  # which cannot be told from another, and is looked at again
    for _ in range(2):
        assert trust_section(folder, *trained(), unlike, key, cfg, workers=0) == section
        now = (tmp_path / "open_loop_image.mp4").stat().st_mtime_ns
        assert now > before
        before = now
    page = write_summary(folder, "Drift", [], [section]).read_text()
    assert "open_loop_image.mp4" in page and "return, game" in page and "measured" not in json.dumps(section.warning)


def test_the_chart_has_a_panel_for_whatever_errs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw))[1])
    unit = ("", 2.0, 1.0, 1.5, 2.5, 9)
    measured = [Measured("return", by, 0, *unit) for by in ("game", "best of the game", "dream@0.50", "dream@1.00")]
    for by in ("dream@0.50", "dream@1.00", "last seen"):
        measured += [Measured("latent z", by, ahead, *unit) for ahead in (1, 5)]
        measured += [Measured("reward", by, ahead, "", 0.0, 0.0, 0.0, 0.0, 9) for ahead in (1, 5)]
    learned = Learned((np.arange(3), np.ones(3)), None)
    chart.draw(measured, tmp_path / "a.png", learned)
    chart.draw(measured, tmp_path / "b.png")
    both, alone = ([axes for axes in figure.axes if axes.get_visible()] for figure in figures)
    assert [axes.get_title(loc="left") for axes in both] == [
        *("return that dreams promise", "return while it was trained", "latent z")
    ]
    assert [len(one) for one in (both, alone)] == [3, 2]
    np.testing.assert_array_equal(both[2].lines[0].get_xydata(), [[1, 2], [5, 2]])
    band = both[2].collections[0].get_datalim(both[2].transData)
    assert (band.y0, band.y1) == (1.5, 2.5)  # the interval
