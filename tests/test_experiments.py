"""Every experiment runs in its smallest form, from nothing to its summary, and survives being killed."""

import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

import dreamjax
from dreamjax import rollout
from dreamjax.envs.crafter import ACHIEVEMENTS
from dreamjax.envs.swingup import swingup
from dreamjax.reporting.evaluation import crafter_score
from dreamjax.storage.metrics import MetricsLog
from tests.scripts import REPO, finish, kill_when, outcome, refused, start

DOOM = REPO / "experiments" / "doom_take_cover.py"
DREAMER = REPO / "experiments" / "dreamerv3.py"
TEMPERATURES = REPO / "experiments" / "doom_temperature_sweep.py"
ITERATIVE = REPO / "experiments" / "doom_iterative.py"
CAR = REPO / "experiments" / "car_racing.py"
DREAM = REPO / "experiments" / "doom_dream.py"
PLANNING = REPO / "experiments" / "planning.py"
SWINGUP = REPO / "experiments" / "swingup_iterative.py"
DREAMER_JAX = REPO / "experiments" / "dreamerv3_jax.py"
ABLATIONS = REPO / "experiments" / "dreamerv3_ablations.py"
PPO = REPO / "experiments" / "ppo.py"
DOOM_PPO = REPO / "experiments" / "doom_ppo.py"


@pytest.fixture(scope="module")
def doom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doom") / "run"
    finish(start(DOOM, "--preset", "smoke", "--folder", str(folder)))
    return folder


def test_doom_take_cover_leaves_a_whole_run_folder(doom: Path) -> None:
    metrics, rows = outcome(doom)
    assert {stage for stage, _ in metrics} == {"vision", "memory", "evolve"}
    assert list(rows) == ["real", "dream", "random_held", "random_every_tic"]
    assert all(0 < row["mean"] <= 120 for row in rows.values())
    for name in (
        "summary.html",
        "learning.png",
        "fitness.png",
        "reconstructions.png",
        "dream_and_real.mp4",
        "trust.png",
    ):
        assert (doom / name).stat().st_size > 1000, name
    assert "How far its dreams can be trusted" in (doom / "summary.html").read_text()


def test_a_finished_run_repeats_nothing_and_another_configuration_is_refused(doom: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in doom.glob("checkpoints/*/*")}
    output = finish(start(DOOM, "--preset", "smoke", "--folder", str(doom)))
    assert "summary.html" in output
    assert before == {path: path.stat().st_mtime_ns for path in doom.glob("checkpoints/*/*")}
    output = refused(DOOM, "--preset", "smoke", "--folder", str(doom), "--evolve.temperature", "1.3")
    assert "temperature" in output and "1.3" in output and "1.5" in output


def test_a_stored_agent_is_evaluated_without_training(doom: Path, tmp_path: Path) -> None:
    arguments = ("--evaluate", str(doom), "--episodes", "1", "--folder", str(tmp_path / "out"), "--preset", "smoke")
    output = finish(start(DOOM, *arguments))
    assert "tics survived, 1 episodes" in output
    assert (tmp_path / "out" / "dream_and_real.mp4").exists()
    notes = tmp_path / "out" / "evaluation.jsonl"
    finish(start(DOOM, *arguments, "--skill", "1", "--film-steps", "2"))  # another game, in the same folder
    assert len({json.loads(line)["of"] for line in notes.read_text().splitlines()}) == 2


def test_the_swing_up_is_learned_iteratively(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    settings = ("--preset", "smoke", "--curiosity", "1", "--units", "2")
    output = finish(start(SWINGUP, *settings, "--folder", str(whole)))
    assert "summary.html" in output
    metrics, rows = outcome(whole)
    assert {stage for stage, _ in metrics} == {"vision", "memory", "search", "iteration"}
    name = "iterated, curious 1, 2 recurrent units"
    assert list(rows) == [name, f"{name}, held upright at the end"]
    for picture in ("summary.html", "learning.png", "iteration-02/dream_and_real.mp4", "trust.png"):
        assert (whole / picture).stat().st_size > 1000, picture
    agent, params = dreamjax.load(whole / "agent-02.npz")  # which dreams and acts without the experiment
    assert params.starts[0].shape[1] == 16
    state = rollout.start(agent, params)
    reset = swingup(observation="both").reset
    _, action = rollout.act(agent, params, jax.random.key(1), state, reset(jax.random.key(0))[1])
    assert -1 <= float(action) <= 1


@pytest.mark.long
def test_runs_of_the_swing_up_are_aggregated(tmp_path: Path) -> None:
    many, once, into = tmp_path / "many", tmp_path / "once", tmp_path / "into"
    finish(start(SWINGUP, "--preset", "smoke", "--folder", str(many)))
    finish(start(SWINGUP, "--preset", "smoke", "--no-iterate", "--folder", str(once)))
    finish(start(SWINGUP, "--aggregate", str(many), str(once), "--into", str(into)))
    aggregated = {row["name"]: row["mean"] for row in json.loads((into / "result.json").read_text())["rows"]}
    rows = outcome(many)[1] | outcome(once)[1]
    assert aggregated == {name: row["mean"] for name, row in rows.items()}
    assert list(rows)[2:] == ["not-iterated", "not-iterated, held upright at the end"]
    assert (into / "repeats.png").stat().st_size > 5000


def test_temperatures_are_swept_with_both_kinds_of_controllers(tmp_path: Path) -> None:
    assert "summary.html" in finish(start(TEMPERATURES, "--preset", "smoke", "--folder", str(tmp_path)))
    metrics, rows = outcome(tmp_path)
    assert {stage for stage, _ in metrics} == {"zch-50", "zch-115", "z-50", "z-115"}
    scores = [f"{kind}{where}@{at}" for kind in ("", "z ") for at in ("0.50", "1.15") for where in ("dream", "real")]
    assert list(rows) == [*scores, "random", "fireballs@0.50", "fireballs@1.15", "fireballs in the game"]
    assert rows["real@1.15"]["published"] == "1092 ± 556 after 1,800 generations"
    assert rows["z real@1.15"]["published"] is None
    names = ("temperatures.png", "cross-zch.png", "cross-z.png", "evolved-at-0.50.mp4", "summary.html")
    for name in names:
        assert (tmp_path / name).stat().st_size > 1000, name


@pytest.mark.parametrize(
    "names", [("full-dream",), pytest.param(("untrained-memory", "full-dream"), marks=pytest.mark.long)]
)
def test_car_racing_evolves_on_the_road_and_in_the_dream(names: tuple[str, ...], tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    for name in names:
        assert "summary.html" in finish(start(CAR, "--preset", "smoke", "--controller", name, "--folder", str(whole)))
    metrics, rows = outcome(whole)
    stages = {"vision", "memory", "full-dream-memory", "full-dream-iteration", *(f"{name}-evolve" for name in names)}
    assert {stage for stage, _ in metrics} == stages
    assert list(rows) == sorted(names)
    for name in ("evolution.png", "learning.png", "full-dream-at-1.00.mp4", "trust.png", "summary.html"):
        assert (whole / name).stat().st_size > 1000, name
    arguments = ("--evaluate", str(whole), "--controller", "full-dream", "--folder", str(tmp_path / "evaluation"))
    assert "return, 2 episodes" in finish(start(CAR, "--preset", "smoke", *arguments, "--episodes", "2"))
    assert (tmp_path / "evaluation" / "full-dream.mp4").stat().st_size > 1000


def test_doom_iterative_goes_on_from_the_committed_agent(tmp_path: Path) -> None:
    assert "summary.html" in finish(start(ITERATIVE, "--preset", "smoke", "--folder", str(tmp_path)))
    metrics, rows = outcome(tmp_path)
    assert {stage for stage, _ in metrics} == {"iterated-evolve", "iterated-iteration", "memory"}
    assert list(rows) == ["real, begun", "dream, begun", "real, iterated", "dream, iterated"]
    for name in ("agent.npz", "iterations.png", "learning.png", "trust.png", "dream_and_real.mp4"):
        assert (tmp_path / name).stat().st_size > 1000, name


def test_a_controller_evolves_in_the_committed_dream_and_plays_the_game(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    kill_when(start(DREAM, "--preset", "smoke", "--folder", str(folder)), folder / "agent.npz")
    output = finish(start(DREAM, "--preset", "smoke", "--folder", str(folder)))
    assert "evolved in" in output and f"Open {folder / 'summary.html'}" in output
    rows = {row["name"]: row for row in json.loads((folder / "result.json").read_text())["rows"]}
    assert set(rows) == {"new, real", "stored, real", "random, real", "new, dream"}
    for name in ("new.mp4", "stored.mp4", "fitness.png"):
        assert (folder / name).stat().st_size > 1000
    stored, evolved = (dreamjax.load(path)[1] for path in (REPO / "experiments/results/doom_take_cover", folder))
    jax.tree.map(np.testing.assert_array_equal, evolved.model, stored.model)
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (evolved.policy, stored.policy)), strict=True))


def test_a_planner_plays_doom_beside_the_committed_agent(tmp_path: Path) -> None:
    folder = tmp_path / "planning"
    command = PLANNING, "--preset", "smoke", "--folder", str(folder)
    assert "summary.html" in finish(start(*command))
    rows = {row["name"]: row for row in json.loads((folder / "result.json").read_text())["rows"]}
    names = {f"{name}, {where}" for name in ("planner", "evolved") for where in ("real", "dream")}
    assert set(rows) == names | {"random, real", "planner, one decision"}
    assert (folder / "dream_and_real.mp4").stat().st_size > 1000
    dreamed = (folder / "stages" / "dream-planner.json").read_text()
    finish(start(*command, "--plan.horizon", "3"))
    assert (folder / "stages" / "dream-planner.json").read_text() == dreamed, "a finished stage was repeated"


def test_an_unknown_preset_is_refused() -> None:
    output = refused(DOOM, "--preset", "gigantic")
    assert "gigantic" in output and "paper" in output


def test_dreamerv3_killed_goes_on_to_the_same_number_of_updates(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ("--preset", "smoke", "--folder", str(folder), "--episodes", "2")
    kill_when(start(DREAMER, *arguments, "--workers", "2"), folder / "checkpoints" / "20")
    output = finish(start(DREAMER, *arguments))
    assert "gym_CartPole-v1, evaluated" in output and "2 episodes" in output
    # 24 steps of each environment make the first batch; then one update for two steps.
    assert newest(folder, "learn") == (1 + (400 - 48) // 2) // 10 * 10
    assert newest(folder, "episode") <= 400
    dreamerv3_leaves_what_a_person_looks_at(folder, tmp_path)
    finish(start(DREAMER, *arguments, "--steps", "440", "--episodes", "0"))
    assert newest(folder, "learn") == (1 + (440 - 48) // 2) // 10 * 10
    changed = [text for one in json.loads((folder / "changes.json").read_text()) for text in one["changed"]]
    assert changed[-1] == "steps: the folder has 400, this run 440"
    assert "batch_size" in refused(DREAMER, *arguments, "--batch-size", "8")


@pytest.mark.long
def test_dreamerv3_learns_offline_from_a_recording_and_from_its_own_folder(tmp_path: Path) -> None:
    recorded, other = tmp_path / "recorded", tmp_path / "other"
    short = ("--preset", "smoke", "--steps", "60", "--episodes", "0")
    finish(start(DREAMER, *short, "--folder", str(recorded)))
    offline = (*short, "--folder", str(other), "--offline")
    assert "name a recording" in refused(DREAMER, *offline, "10")
    finish(start(DREAMER, *offline, "10", "--recording", str(recorded)))
    assert (other / "checkpoints" / "10").exists() and (other / "summary.html").exists()
    finish(start(DREAMER, *offline, "20"))
    assert newest(other, "learn") == 20
    assert len(dreamjax.load(other)[1].starts) >= 2  # those of the recording


def newest(folder: Path, stage: str) -> int:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return max(row["step"] for row in rows if row["stage"] == stage)


def dreamerv3_leaves_what_a_person_looks_at(folder: Path, tmp_path: Path) -> None:
    """The folder of the run, a later evaluation of it, and what is aggregated from it."""
    _, rows = outcome(folder)
    assert {name: row["n"] for name, row in rows.items()} == {"gym_CartPole-v1": 5, "gym_CartPole-v1, evaluated": 2}
    for name in ("summary.html", "returns.png", "losses.png", "trust.png", "episode.mp4"):
        assert (folder / name).stat().st_size > 1000, name
    assert "episode.mp4" in (folder / "summary.html").read_text()
    finish(start(DREAMER, "--evaluate", str(folder), "--episodes", "3", "--folder", str(tmp_path / "out")))
    evaluated = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [row["n"] for row in evaluated["rows"]] == [5, 3]
    assert evaluated["rows"][0] == rows["gym_CartPole-v1"]
    flags = evaluated["command"].removeprefix("python experiments/dreamerv3.py ").split()
    small = "--task gym_CartPole-v1 --size debug --steps 400 --envs 2 --batch-size 4 --batch-length 8"
    often = "--train-ratio 16.0 --checkpoint-every 20 --log-every 10 --episodes 3"
    assert set(flags) == {*small.split(), *often.split()}
    assert (tmp_path / "out" / "summary.html").exists()
    finish(start(DREAMER, "--aggregate", str(folder), "--into", str(tmp_path / "all")))
    assert json.loads((tmp_path / "all" / "result.json").read_text())["rows"] == list(rows.values())
    assert (tmp_path / "all" / "curves.png").exists()


def test_dreamerv3_refuses_what_it_does_not_know() -> None:
    output = refused(DREAMER, "--task", "chess")
    assert "there are dmc" in output and "learned by experiments/dreamerv3_jax.py" in output
    assert "walker_walk" in refused(DREAMER, "--task", "dmc_walk")
    assert "steps must be above 0, or left out for that of the suite, got 0" in refused(DREAMER, "--steps", "0")


def test_dreamerv3_scores_crafter_over_all_training_episodes(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        for step, woods in enumerate([0, 2, 1, 0]):
            done = dict.fromkeys(ACHIEVEMENTS, 0) | {"collect_wood": woods}
            log.write("episode", step, {f"info/achievements/{name}": count for name, count in done.items()})
    row = crafter_score(tmp_path)
    assert row["name"].startswith("crafter_reward, ") and "4 episodes" in row["name"]
    assert row["mean"] == pytest.approx(51 ** (1 / 22) - 1)


def test_dreamerv3_jax_trains_seeds_together(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    whole = ("--preset", "smoke", "--episodes", "40", "--folder", str(folder))
    finish(start(DREAMER_JAX, *whole))
    _, scores = outcome(folder)
    assert list(scores) == ["remember, seed 0", "remember, seed 1", "remember, mean of 2 seeds"]
    *each, mean = scores.values()
    assert all(row["n"] == 40 and 0 < row["mean"] < 0.6 for row in each)
    assert (mean["n"], mean["mean"]) == (2, pytest.approx(np.mean([row["mean"] for row in each])))
    assert json.loads((folder / "result.json").read_text())["seeds"] == [0, 1]
    for name in ("summary.html", "returns.png", "losses.png", "trust.png"):
        assert (folder / name).stat().st_size > 1000, name
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # 5 steps of each of two environments make the first batch, then one for every iteration; an episode has 5.
    assert [(row["step"], row["steps"]) for row in rows] == [(1, 14), (2, 18), (3, 22)]
    for seed in range(2):
        assert [row[f"episodes/seed {seed}"] for row in rows] == [0, 0, 2] and f"return/seed {seed}" not in rows[0]
    assert len(dreamjax.load(folder)[1].starts) == 64
    output = refused(DREAMER_JAX, "--task", "chess")
    assert "'chess'; there are" in output and "counter" in output and "dmc1_..." in output
    assert "'take_cover' has no settings for DreamerV3" in refused(DREAMER_JAX, "--task", "take_cover")
    assert "--evaluate" in refused(DREAMER_JAX, "--evaluate", str(folder))
    assert "name a folder for the result: --into" in refused(DREAMER_JAX, "--aggregate", str(folder))
    finish(start(DREAMER_JAX, "--aggregate", str(folder), "--into", str(tmp_path / "all")))
    assert (tmp_path / "all" / "learning.png").stat().st_size > 5000
    put_together = json.loads((tmp_path / "all" / "result.json").read_text())
    assert [row["name"] for row in put_together["rows"]] == ["remember, mean of 2 seeds"]


@pytest.mark.long
def test_dreamerv3_jax_repeats_nothing_and_may_train_longer(tmp_path: Path) -> None:
    whole = ("--preset", "smoke", "--episodes", "4", "--folder", str(tmp_path))
    output = finish(start(DREAMER_JAX, *whole))
    metrics, scores = outcome(tmp_path)
    assert finish(start(DREAMER_JAX, *whole)).splitlines()[-3:] == output.splitlines()[-3:]
    assert outcome(tmp_path) == (metrics, scores)
    finish(start(DREAMER_JAX, *whole, "--iterations", "8"))
    assert outcome(tmp_path)[0].keys() - metrics.keys() == {("train", 4)}
    assert "iterations: the folder has 6, this run 8" in (tmp_path / "changes.json").read_text()


@pytest.mark.long
def test_dreamerv3_jax_sweeps_values_and_seeds_in_environments_of_the_host(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    hosted = "--preset", "smoke", "--task", "gym_CartPole-v1", "--workers", "2", "--episodes", "20"
    output = finish(start(DREAMER_JAX, *hosted, "--folder", str(folder), "--sweep.learning-rate", "1e-4", "1e-2"))
    assert "dreamerv3.py learns gym_CartPole-v1 as with --loop.train-ratio 512" in output
    _, rows = outcome(folder)
    names = [f"gym_CartPole-v1, learning_rate {rate}" for rate in ("0.0001", "0.01")]
    assert list(rows) == [f"{name}, seed {s}" for name in names for s in (0, 1)] + [
        f"{name}, mean of 2 seeds" for name in names
    ]
    assert all({"interval", "iqm", "iqm_interval"} <= rows[f"{name}, mean of 2 seeds"].keys() for name in names)
    assert (folder / "sweep.png").stat().st_size > 5000 and "IQM" in output
    told = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert {f"episodes/learning_rate {rate}, seed {s}" for rate in ("0.0001", "0.01") for s in (0, 1)} <= told.keys()
    agent, params = dreamjax.load(folder)
    assert agent.model.spec.action.high == 2 and len(params.starts) == 8  # two of each agent
    assert len({json.loads(line)["of"] for line in (folder / "evaluation.jsonl").read_text().splitlines()}) == 4
    small = *hosted, "--folder", str(tmp_path / "small"), "--loop.capacity", "5"
    assert "a capacity of 5 steps" in refused(DREAMER_JAX, *small) and not (tmp_path / "small").exists()


def test_ablations_train_each_pair_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ABLATIONS, "--preset", "smoke", "--folder", str(folder)
    finish(start(*command))
    metrics, rows = outcome(folder)
    switches = ["DreamerV3", "no gradient of reward and value", "no gradient of reconstruction"]
    assert list(rows) == switches
    assert all((row["n"], len(row["interval"])) == (2, 2) and -1 < row["mean"] <= 1 for row in rows.values())
    stages = ["memory-" + name.replace(" ", "-") for name in switches]
    assert {key for key in metrics if "-" in key[0]} == {(stage, call) for stage in stages for call in (1, 2)}
    for name in ("ablations.png", "switches.png", "summary.html"):
        assert (folder / name).stat().st_size > 1000, name
    assert not list((folder / "checkpoints").glob("*/*"))  # what is finished needs no replay
    trained = {path.name: path.read_text() for path in (folder / "stages").iterdir()}
    finish(start(*command))
    assert {path.name: path.read_text() for path in (folder / "stages").iterdir()} == trained
    assert outcome(folder) == (metrics, rows)
    other = *command[:3], "--folder", str(tmp_path / "other")
    assert "--per-call must be more than 3, and a multiple of [1]" in refused(*other, "--per-call", "3")
    ratios = "--figures", "ratios", "--per-call", "24", "--loop.envs", "1", "--loop.train-ratio", "2"
    assert "a multiple of [2, 4, 8, 16], got 24" in refused(*other, *ratios)
    assert not (tmp_path / "other").exists()


def test_ppo_is_scored_on_the_same_scale(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = PPO, "--preset", "smoke", "--folder", str(folder)
    kill_when(start(*command), folder / "stages" / "memory-1.json")
    finish(start(*command))
    metrics, rows = outcome(folder)
    assert list(rows) == ["PPO", "PPO, memory"] and rows["PPO"]["n"] == 2
    # An episode has 3 steps, so that two of them end at every sixth step of two environments.
    assert [step for stage, step in metrics if stage == "memory-0"] == list(range(6, 65, 6))
    before = (folder / "stages" / "memory-0.json").read_text()
    finish(start(*command))
    assert outcome(folder) == (metrics, rows) and (folder / "stages" / "memory-0.json").read_text() == before
    recurrent = PPO, "--preset", "smoke", "--recurrent", "--seeds", "1", "--folder", str(tmp_path / "recurrent")
    assert "PPO with an LSTM, memory" in finish(start(*recurrent))
    other = PPO, "--preset", "smoke", "--folder", str(tmp_path / "other"), "--tasks"
    assert "'dmc_walker_walk' is not written in JAX" in refused(*other, "dmc_walker_walk")
    assert "observation that is a single array" in refused(*other, "swingup_both")
    assert "unknown environment 'memry'" in (told := refused(*other, "memry")) and "memory, pixels, sparse" in told
    assert not (tmp_path / "other").exists()
    named = "dreamjax.envs.probes:counter"
    finish(start(*other, named, "memory", "--seeds", "1"))
    assert list(outcome(tmp_path / "other")[1]) == [f"PPO, {named}", "PPO, memory"]


def test_ppo_learns_in_a_dream_and_its_network_acts_in_the_game(tmp_path: Path) -> None:
    command = DOOM_PPO, "--preset", "smoke", "--folder", str(tmp_path)
    finish(start(*command))
    metrics, rows = outcome(tmp_path)
    assert list(rows) == ["PPO, real", "evolved, real", "random, real", "PPO, dream"]
    assert all(0 < row["mean"] <= 2100 for row in rows.values()) and metrics[("learn", 64)]["steps of a dream"] <= 10
    written = (tmp_path / "ppo.npz").read_bytes()
    finish(start(*command))
    assert outcome(tmp_path) == (metrics, rows) and (tmp_path / "ppo.npz").read_bytes() == written


def test_the_network_of_ppo_is_that_of_stable_baselines3() -> None:
    from stable_baselines3 import PPO as Learner

    from dreamjax.envs.sb3 import VectorEnv

    made = runpy.run_path(str(DOOM_PPO))
    environment, cfg = swingup(observation="state"), made["Config"](units=8)
    learner = Learner("MlpPolicy", VectorEnv(environment, 2), policy_kwargs={"net_arch": [8, 8]}, device="cpu", seed=0)
    features = 3 * np.random.default_rng(0).normal(size=(20, *environment.spec.observation.shape)).astype(np.float32)
    learner.policy.action_net.weight.data *= 300  # it begins so small that nothing would be clipped
    act = made["network"](cfg, features.shape[1], environment.spec.action).act
    mine = jax.vmap(act, (None, None, 0))(made["learned"](learner), jax.random.key(0), features)
    theirs = learner.predict(features, deterministic=True)[0]
    np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert (np.abs(theirs) == 1).any() and (np.abs(theirs) < 1).any()
