"""What `import dreamjax` and each of its packages offer, and that the docstrings together are the reference."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

import dreamjax

PACKAGES = ["dreamjax", *(f"dreamjax.{name}" for name in ("acting", "dreamerv3", "envs", "nets", "replay"))]
PACKAGES += [f"dreamjax.{name}" for name in ("launch", "reporting", "storage", "training", "trust", "worldmodels")]
OWN_EXTRA = {
    "brax",
    "craftax",
    "gymnax",
    "memory_maze",
    "procgen",
}  # modules whose packages are not among those of the tests
MATHEMATICS = re.compile(r"dreamjax\.(worldmodels|dreamerv3|returns|distributions|optim|dream|evolution)\b")
ARRAYS = ("Array", "ndarray", "Latents", "Step")


def public(package: str) -> list[tuple[str, Any]]:
    module = importlib.import_module(package)
    return [(f"{package}.{name}", getattr(module, name)) for name in module.__all__ if name not in OWN_EXTRA]


NAMES = dict(pair for package in PACKAGES for pair in public(package))
FUNCTIONS = {name: value for name, value in NAMES.items() if inspect.isfunction(inspect.unwrap(value))}
each_function = pytest.mark.parametrize("name", FUNCTIONS)


def test_importing_starts_neither_jax_nor_a_game() -> None:
    code = "import sys, dreamjax.acting, dreamjax.envs; print([m for m in ('jax', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_lists_its_names(package: str) -> None:
    module = importlib.import_module(package)
    assert len(module.__all__) == len(set(module.__all__)) >= 3
    assert set(module.__all__) <= set(dir(module))
    assert {"ModuleType", "TYPE_CHECKING", "exports"}.isdisjoint(dir(module))


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"dreamjax\.worldmodels has no 'modle'; it has .*model"):
        _ = dreamjax.worldmodels.modle


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_documented(name: str) -> None:
    value = NAMES[name]
    if isinstance(value, ModuleType):
        assert value.__doc__, name
    elif (inspect.isclass(value) and value.__module__.startswith("dreamjax.")) or name in FUNCTIONS:
        assert inspect.getdoc(value) and not inspect.getdoc(value).startswith(f"{value.__name__}("), name


@each_function
def test_functions_say_what_they_raise(name: str) -> None:
    function = inspect.unwrap(FUNCTIONS[name])
    if re.search(r"^\s+raise [A-Z]", inspect.getsource(function), re.MULTILINE):
        assert "Raise" in (function.__doc__ or ""), name


@each_function
def test_functions_give_shapes(name: str) -> None:
    function = inspect.unwrap(FUNCTIONS[name])
    annotations = [str(one) for one in function.__annotations__.values()]
    if any(re.search(rf"\b{kind}\b", one) for one in annotations for kind in ARRAYS):
        assert re.search(r"\[[^\]]*\]", function.__doc__ or ""), f"{name} takes or returns arrays of unknown shape"


@pytest.mark.parametrize("name", [name for name, f in FUNCTIONS.items() if MATHEMATICS.match(f.__module__)])
def test_mathematics_names_its_source(name: str) -> None:
    function = inspect.unwrap(FUNCTIONS[name])
    module = sys.modules[function.__module__]
    assert re.search(r"Source:|20\d\d", f"{function.__doc__}{module.__doc__}"), name


def test_contracts_explain_each_function() -> None:
    contracts = (dreamjax.Environment, dreamjax.LatentModel, dreamjax.Policy, dreamjax.RecurrentPolicy)
    kinds = {f"{one.__name__}.{field}": kind for one in contracts for field, kind in one.__annotations__.items()}
    functions = {name: kind for name, kind in kinds.items() if not name.endswith(".spec")}
    assert len(functions) == len(kinds) - 2 == 15
    # Of the class itself: an inherited docstring says nothing about the function.
    assert [name for name, kind in functions.items() if not vars(kind)["__call__"].__doc__] == []


@pytest.mark.parametrize("name", ["EnvSpec", "Environment", "Step", "Outcome", "LatentModel", "Agent", "AgentParams"])
def test_help_shows_what_each_field_is(name: str) -> None:
    kind = getattr(dreamjax, name)
    assert [field for field in kind._fields if getattr(kind, field).__doc__.startswith("Alias for field")] == []


def test_a_fresh_interpreter_offers_public_names_and_nothing_else() -> None:
    code = """
import rlcompleter, dreamjax
complete = rlcompleter.Completer({"dreamjax": dreamjax}).complete
found = [complete("dreamjax.worldmodels.", i) for i in range(50)]
print([name for name in found if name and "_" != name.removeprefix("dreamjax.worldmodels.")[0]])
print(dreamjax.worldmodels.model.__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    listed, module = done.stdout.splitlines()
    names = {re.sub(r"^dreamjax\.worldmodels\.(\w+).*$", r"\1", name) for name in ast.literal_eval(listed)}
    assert names == set(dreamjax.worldmodels.__all__)
    assert module == "dreamjax.worldmodels.model"
