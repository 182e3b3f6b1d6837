"""How every test runs: on the CPU, with JAX as strict as it goes, with compiled programs kept between runs.

The strictness is the point. With `jax_debug_key_reuse` a random key that is consumed twice is an error, within a jitted
function and outside; a test that means to use a key twice says `jax.random.clone(key)`. With
`jax_numpy_rank_promotion="raise"` an array of shape [3] does not silently broadcast against one of shape [8, 3].
"""

import os
import signal
from collections.abc import Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import hypothesis
import pytest
from packaging.version import Version

REPO = Path(__file__).resolve().parents[1]

# Before JAX is imported, and in the environment, so that the scripts that tests start as processes inherit it.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPO / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Tests compile for much longer than they compute: with the least care. And without the newer code generator, which goes
# through MLIR for each fusion; XLA then compiles an update of DreamerV3 in a third of the time it takes by default.
# The passes that are left out move work out of loops, and take a seventh of the time to compile an update.
FLAGS = "--xla_backend_optimization_level=0 --xla_disable_hlo_passes=" + ",".join(
    ("simplify-while-loops", "while-loop-invariant-code-motion", "while-loop-constant-sinking")
)
if Version(version("jaxlib")) < Version("0.11.1"):  # later ones have no other, and end at a flag they do not know
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)

import jax

# Shells let what they start in the background ignore Ctrl-C, which tests send, and what they start would as well.
signal.signal(signal.SIGINT, signal.default_int_handler)

LONG = ("test_experiments.py", "test_killed_experiments.py", "test_benchmarks.py")  # up to minutes for each test

# No deadline: the first example pays for a compilation. Derandomised: a suite that passes today passes tomorrow.
hypothesis.settings.register_profile("dreamjax", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("dreamjax")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the tests that take minutes, or one process would be left with them when the others are done.

    `--dist worksteal` gives each process an equal part of the list, one after the other, and an idle one takes the end
    of another's. So the long tests are dealt to the beginnings of the parts; those that share a run stay together.
    """
    long: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.path.name in LONG:
            shares = "doom" in getattr(item, "fixturenames", ())
            long.setdefault("doom" if shares else item.nodeid, []).append(item)
    processes = int(getattr(config, "workerinput", {}).get("workercount", 1))
    begins = [list(chain.from_iterable([*long.values()][i::processes])) for i in range(processes)]
    rest = [item for item in items if item.path.name not in LONG]
    ordered: list[pytest.Item] = []
    for i, begin in enumerate(begins):
        fill = max(0, (len(items) - len(ordered)) // (processes - i) - len(begin))
        ordered += [*begin, *rest[:fill]]
        rest = rest[fill:]
    items[:] = ordered + rest


@pytest.fixture(autouse=True)
def strict_jax(request: pytest.FixtureRequest) -> Iterator[None]:
    """Checked keys for every test, explicit ranks for all but those marked `evosax`, which broadcasts on its own."""
    ranks = "allow" if request.node.get_closest_marker("evosax") else "raise"
    with jax.debug_key_reuse(True), jax.numpy_rank_promotion(ranks):
        yield


def _reference(folder: str) -> Path:
    path = REPO.parent / "shared" / folder
    if not path.is_dir():
        pytest.skip(f"the reference data is not beside this checkout: ../shared/{folder}")
    return path


@pytest.fixture(scope="session")
def world_models_data() -> Path:
    """Weights and logs published with World Models; too large to live in this repository."""
    return _reference("reference/world-models-data")
