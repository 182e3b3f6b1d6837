"""The library without its extras: everything it has is there, and what needs more says how to get it, in one way."""

import json
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
OPTIONAL = [
    *("ale_py", "Box2D", "crafter", "dm_control", "mujoco", "pygame", "brax", "craftax", "envpool", "gymnax"),
    *("bsuite", "memory_maze", "popgym", "procgen", "procgen_gym", "sb3_contrib", "stable_baselines3"),
    *("imageio", "jinja2", "matplotlib", "submitit", "tensorboardX", "torch", "tqdm", "trackio", "tyro", "wandb"),
]
BARE = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}))\n"  # None: importing them raises
SUITES = {"atari": "ale_py", "car_racing": "Box2D", "crafter": "crafter", "dmc": "mujoco", "popgym": "popgym"}
SUITES["memory_maze"] = "mujoco"  # asked for first
OWN = {"bsuite": "bsuite", "procgen": "procgen_gym" if sys.version_info >= (3, 13) else "procgen"}
OWN["sb3"] = "stable_baselines3"

WALK = """
import importlib, json, pydoc

packages = ["acting", "dreamerv3", "envs", "nets", "replay", "reporting", "storage", "training", "worldmodels"]
told = {}
for package in ["dreamjax", *(f"dreamjax.{name}" for name in packages)]:
    module = importlib.import_module(package)
    for name in module.__all__:
        try:
            getattr(module, name)
        except AttributeError as error:
            told[name] = str(error)
    pydoc.render_doc(package)
print(json.dumps(told))
"""

USE = """
import json, pathlib
import numpy as np
from dreamjax.envs import brax, craftax, gymnax
from dreamjax.reporting import curves, pages, videos
from dreamjax.storage import MetricsLog, RunFolder, read_metrics
from dreamjax.storage.progress import progress
from dreamjax.training.experiment import Options, read_command_line

folder = pathlib.Path(sys.argv[1])
with MetricsLog(folder) as log, progress(2, "learn") as bar:
    for step in range(2):
        log.write("learn", step, {"loss": 1.5})
        bar.update()
assert read_metrics(folder / "metrics.jsonl")["learn"]["loss"][1].tolist() == [1.5, 1.5]
assert not (folder / "tensorboard").exists()

run = RunFolder(folder, Options())
uses = {
    "experiments": [
        lambda: curves.learning_curves(read_metrics(folder / "metrics.jsonl"), folder / "a.png"),
        lambda: pages.write_summary(run, "title", []),
        lambda: videos.write_video(folder / "a.mp4", np.zeros((1, 16, 16, 3), np.uint8), 10),
    ],
    "brax": [lambda: brax.make("ant")],
    "craftax": [lambda: craftax.make("Craftax-Symbolic-v1")],
    "gymnax": [lambda: gymnax.make("CartPole-v1")],
}
told = []
for extra, functions in uses.items():
    for function in functions:
        try:
            function()
        except ModuleNotFoundError as error:
            told.append([extra, error.name, str(error), error.__cause__ is None and error.__suppress_context__])
print(json.dumps(told))
read_command_line("dreamerv3", "", {"paper": Options()}, Options)
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run code where nothing optional can be imported."""
    command = [sys.executable, "-c", BARE + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO, timeout=300, check=False)


def command(extra: str) -> str:
    return f", which is not installed: in a checkout of dreamjax, run pip install -e '.[{extra}]'"


def test_every_public_name_is_there_but_for_the_suites_and_help_works() -> None:
    done = python(WALK)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told) == {*SUITES, *OWN}
    for name, module in (SUITES | OWN).items():
        assert f" needs {module}{command('suites' if name in SUITES else name)}" in told[name]


def test_training_logs_without_extras_and_the_rest_says_which_it_needs(tmp_path: Path) -> None:
    done = python(USE, str(tmp_path / "run"))
    told = json.loads(done.stdout)
    assert [(extra, module) for extra, module, _, _ in told] == [
        ("experiments", "matplotlib"),
        ("experiments", "jinja2"),
        ("experiments", "imageio"),
        *((name, name) for name in ("brax", "craftax", "gymnax")),
    ]
    for extra, module, message, is_alone in told:
        assert message.endswith(f" needs {module}{command(extra)}") and is_alone
    lines = done.stderr.splitlines()
    assert lines.count(f"metrics.jsonl has all numbers; TensorBoard needs tensorboardX{command('experiments')}") == 1
    assert [line for line in lines if line.startswith("learn: 100% 2/2 [")]
    assert (lines[-1], done.returncode) == (f"this command needs tyro{command('experiments')}", 1)


def test_a_comparison_names_the_extra_of_its_contender() -> None:
    done = python("import runpy; runpy.run_path(sys.argv[1])", "benchmarks/training_throughput.py")
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: the comparison needs torch{command('benchmarks')}"
