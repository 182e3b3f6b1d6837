"""What keeps the code small and pure, checked by reading its syntax: imports point one way, and files stay short.

The order is drawn in `RANK`. A module imports from lower ranks only, and within a rank as far as `may_import` says.
"""

import ast
import graphlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]

RANK = {
    "_exports": 0,
    "_extras": 0,
    "types": 0,
    "checks": 1,
    "nets": 1,
    "distributions": 1,
    "optim": 1,
    "returns": 1,
    "replay": 2,
    "rollout": 2,
    "dream": 2,
    "evolution": 2,
    "planning": 2,
    "envs": 2,
    "dreamerv3": 3,
    "worldmodels": 3,
    "storage": 4,
    "acting": 5,
    "training": 6,
    "reporting": 7,
    "export": 8,
    "launch": 8,
    "play": 8,
    "trust": 8,
}
LOOPS = 2  # the rank whose modules may import each other: a dream is rolled out

# Below `storage`, the only files that may do input and output.
SUITES = {
    f"dreamjax/envs/{name}.py" for name in ("atari", "car_racing", "crafter", "dmc", "popgym")
}  # need an extra of their own
OWN_EXTRA = {f"dreamjax/envs/{name}.py": name for name in ("brax", "bsuite", "craftax", "gymnax", "sb3")}  # and these
OWN_EXTRA |= {"dreamjax/envs/memory_maze.py": "memory-maze", "dreamjax/envs/procgen.py": "procgen"}
OWN_EXTRA["dreamjax/envs/car_racing.py"] = "envpool"  # for one of its engines
OWN_EXTRA |= dict.fromkeys(["dreamjax/export/artefact.py", "dreamjax/storage/weights.py"], "export")
OWN_EXTRA |= {"dreamjax/launch/jobs.py": "slurm", "dreamjax/storage/trackers.py": "wandb trackio"}
OWN_EXTRA |= {"dreamjax/acting/cluster.py": "ray", "dreamjax/play/server.py": "play"}
OWN_EXTRA |= dict.fromkeys(["experiments/ppo.py", "experiments/doom_ppo.py"], "sb3")
# What no extra can install: imported `by_hand`.
BY_HAND = {"dreamjax/envs/lab.py": {"deepmind_lab"}, "dreamjax/envs/minecraft.py": {"minedojo"}}
BY_HAND["dreamjax/envs/procgen.py"] = {"procgen"}  # on Python 3.11 and 3.12
ADAPTERS = {"dreamjax/envs/dmc.py", "dreamjax/envs/gymnasium.py", "dreamjax/envs/vizdoom.py"}
IMPURE_MODULES = {"argparse", "logging", "matplotlib", "random", "shutil", "socket", "subprocess", "tempfile", "time"}
IMPURE_CALLS = {"open", "print", "input", "np.load", "np.save", "np.savez", "np.savez_compressed", "jax.debug.print"}
IMPURE_NAMES = {"os.environ", "os.getenv", "sys.argv", "jax.debug.callback", "jax.experimental.io_callback"}

MAX_LIBRARY_LINES, MAX_EXPERIMENT_LINES, MAX_FILE_LINES = 300, 200, 400
MAX_FUNCTION_LINES = 60
MAX_SCRIPT_FUNCTION_LINES = 90  # in experiments and benchmarks, which read from top to bottom
MAX_PARAMETERS = 8

LEFT_OVER = re.compile(r"\b(TO[D]O|FIX[M]E|X{3})\b")
MACHINE_PATH = re.compile(r"(?<![\w.~$}])/(?:home|root|work|Users|farm|opt|mnt|tmp)/\w")
REGISTRY = re.compile(r"pythonhosted[.]org|pypi[.]org/simple|registry[.]npmjs|index[-]url|find[-]links")


def git_files() -> list[Path]:
    """Every file that is tracked or about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True).stdout
    return sorted(REPO / name for name in listed.split("\0") if name and (REPO / name).is_file())


def unit_of(module: str) -> str:
    """What `RANK` ranks: the second part of dreamjax.envs.vizdoom."""
    return module.split(".")[1]


def name_of(path: Path) -> str:
    return path.relative_to(REPO).as_posix()


def module_of(path: Path) -> str:
    """The dotted name, e.g. dreamjax.envs.vizdoom; a package goes by the name of its folder."""
    return ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


FILES = git_files()
PYTHON = [path for path in FILES if path.suffix == ".py"]
LIBRARY = [path for path in PYTHON if name_of(path).startswith("dreamjax/")]
MODULES = [path for path in LIBRARY if name_of(path) != "dreamjax/__init__.py"]
PACKAGES = {module_of(path) for path in LIBRARY if path.stem == "__init__"}
UPPER = [path for path in MODULES if RANK[unit_of(module_of(path))] >= RANK["storage"]]
EXPERIMENTS = [path for path in PYTHON if path.parent == REPO / "experiments"]
BENCHMARKS = [path for path in PYTHON if path.parent == REPO / "benchmarks"]

each_file = pytest.mark.parametrize("path", FILES, ids=name_of)
each_python = pytest.mark.parametrize("path", PYTHON, ids=name_of)
each_library = pytest.mark.parametrize("path", LIBRARY, ids=name_of)
each_module = pytest.mark.parametrize("path", MODULES, ids=name_of)
each_experiment = pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=name_of(path))


def imports(path: Path) -> Iterator[str]:
    """The dotted name of every module or attribute that is imported anywhere in the file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: write the import out, from dreamjax on"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(path: Path) -> set[str]:
    """The modules of dreamjax that the file imports."""
    modules = {module_of(other) for other in LIBRARY}
    found = {name for name in imports(path) if name.split(".")[0] == "dreamjax"}
    return {name if name in modules else name.rpartition(".")[0] for name in found}


def may_import(importer: str, imported: str) -> bool:
    if importer == imported:
        return True
    return RANK[imported] < RANK[importer] or RANK[imported] == RANK[importer] == LOOPS


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def third_party(path: Path) -> set[str]:
    """The top-level names that the file imports from neither the standard library nor this repository."""
    roots = {name.split(".")[0] for name in imports(path)}
    return roots - sys.stdlib_module_names - {"dreamjax"}


@cache
def declared(*extras: str) -> frozenset[str]:
    """The top-level names of the packages that pyproject.toml asks for, without and with the named extras."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    requirements = sum((project["optional-dependencies"][extra] for extra in extras), project["dependencies"])
    wanted = {canonical(re.split(r"[\[<>=!~; ]", requirement)[0]) for requirement in requirements}
    installed = importlib.metadata.packages_distributions()
    # What is not installed is taken to be imported by the name of its package.
    missing = {package.replace("-", "_") for package in wanted}
    return frozenset(name for name, packages in installed.items() if wanted & set(map(canonical, packages))) | missing


def canonical(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def test_the_tree_is_found() -> None:
    assert {"dreamjax/__init__.py", "dreamjax/types.py", "tests/test_architecture.py"} <= set(map(name_of, PYTHON))


# Imports


def test_every_room_has_a_floor() -> None:
    assert set(RANK) == {unit_of(module_of(path)) for path in MODULES}


@each_module
def test_imports_point_one_way(path: Path) -> None:
    importer = unit_of(module_of(path))
    assert importer in RANK, f"{name_of(path)} has no place in the order of imports, see RANK"
    wrong = sorted(m for m in imported_modules(path) if m != "dreamjax" and not may_import(importer, unit_of(m)))
    assert not wrong, f"{importer} may not import {', '.join(wrong)}"


def test_no_modules_import_each_other() -> None:
    # A package imports its modules when they are asked for, and is imported with any of them: no cycle.
    graph = {module_of(path): imported_modules(path) - PACKAGES for path in MODULES if path.stem != "__init__"}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the modules


@each_library
def test_only_evolution_knows_evosax(path: Path) -> None:
    assert "evosax" not in third_party(path) or name_of(path) == "dreamjax/evolution.py"


@each_python
def test_flax_means_linen(path: Path) -> None:
    assert not [name for name in imports(path) if name.startswith("flax.nnx")]


@each_library
def test_library_imports_what_it_requires(path: Path) -> None:
    extras = ("experiments",) if path in UPPER else ("suites",) * (name_of(path) in SUITES)
    extras += tuple(OWN_EXTRA.get(name_of(path), "").split())
    assert third_party(path) - BY_HAND.get(name_of(path), set()) <= declared(*extras)


@each_experiment
def test_experiments_import_dreamjax_and_packages_only(path: Path) -> None:
    assert third_party(path) <= declared("experiments", *OWN_EXTRA.get(name_of(path), "").split())


# Purity


@pytest.mark.parametrize(
    "path",
    [p for p in MODULES if p not in UPPER and name_of(p) not in ADAPTERS],
    ids=name_of,
)
def test_no_input_or_output_below_storage(path: Path) -> None:
    found = {name for name in imports(path) if name.split(".")[0] in IMPURE_MODULES or name in IMPURE_NAMES}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in IMPURE_CALLS:
            found.add(ast.unparse(node.func))
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in IMPURE_NAMES:
            found.add(ast.unparse(node))
    assert not found, f"{', '.join(sorted(found))}: input and output belong in dreamjax/storage and above"


@each_library
def test_no_function_rebinds_a_global(path: Path) -> None:
    assert not [node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.Global)]


# Size and shape


@each_python
def test_file_is_short(path: Path) -> None:
    limit = MAX_LIBRARY_LINES if path in LIBRARY else MAX_EXPERIMENT_LINES if path in EXPERIMENTS else MAX_FILE_LINES
    assert len(path.read_text().splitlines()) <= limit


@each_python
def test_functions_are_short(path: Path) -> None:
    limit = MAX_SCRIPT_FUNCTION_LINES if path in EXPERIMENTS + BENCHMARKS else MAX_FUNCTION_LINES
    lines = {f"{f.name}:{f.lineno}": (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions(path)}
    assert not {name: count for name, count in lines.items() if count > limit}


@each_python
def test_functions_take_few_parameters(path: Path) -> None:
    def count(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
        arguments = function.args
        # Keyword-only ones are named where they are called, which is what the limit is for.
        names = [a.arg for a in [*arguments.posonlyargs, *arguments.args]]
        return len(names) - (names[:1] in (["self"], ["cls"]))

    counts = {f"{f.name}:{f.lineno}": count(f) for f in functions(path)}
    assert not {name: number for name, number in counts.items() if number > MAX_PARAMETERS}


@each_python
def test_file_name_says_what_is_inside(path: Path) -> None:
    assert path.stem not in {"utils", "util", "common", "helpers", "misc", "tools"}


@each_python
def test_errors_are_not_swallowed(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: name the exceptions that are expected"
            broad = ast.unparse(node.type) in {"Exception", "BaseException"}
            silent = all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body)
            assert not (broad and silent), f"line {node.lineno}: this hides every error"


def documented_call(node: ast.stmt) -> bool:
    """Whether a Protocol of a function documents that function, which says all there is to say."""
    calls = [one for one in getattr(node, "body", []) if isinstance(one, ast.FunctionDef) and one.name == "__call__"]
    return any(ast.get_docstring(call) for call in calls)


@each_library
def test_everything_public_has_a_docstring(path: Path) -> None:
    body = tree(path).body
    definitions = [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    public = [node for node in definitions if not node.name.startswith("_")]
    missing = [
        f"{node.name}:{node.lineno}" for node in public if not (ast.get_docstring(node) or documented_call(node))
    ]
    assert not missing
    assert not body or ast.get_docstring(tree(path)), "the module has no docstring"


# Every file of the repository


@each_file
def test_text_is_finished_and_belongs_to_no_machine(path: Path) -> None:
    content = path.read_bytes()
    if b"\0" in content:  # a picture, a video or arrays
        return
    text = content.decode()
    found = [match.group() for pattern in (LEFT_OVER, MACHINE_PATH, REGISTRY) for match in pattern.finditer(text)]
    assert not found


@pytest.mark.parametrize("path", EXPERIMENTS + BENCHMARKS, ids=name_of)
def test_every_script_is_run_by_a_test(path: Path) -> None:
    test = REPO / "tests" / f"test_{path.parent.name}.py"
    assert re.search(rf"\b{path.stem}\b", test.read_text()), f"{test.name} does not run {name_of(path)}"
