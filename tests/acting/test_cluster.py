"""Workers on a Ray cluster of two nodes on this machine: the numbers of local ones, whatever happens to a node."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster

from dreamjax.acting import cluster, random_play
from dreamjax.acting.collection import CollectConfig, collect
from dreamjax.acting.playing import Played, Request, evaluate_population, play
from dreamjax.acting.pool import Pool
from dreamjax.envs.car_racing import CarRacing
from dreamjax.envs.host import InvalidStep
from dreamjax.envs.vizdoom import TakeCover
from dreamjax.types import Agent, AgentParams, EnvSpec, Policy, Space
from tests.acting.environments import Faulty, Placed, Ragged, Returning

REPO = Path(__file__).resolve().parents[2]
SPEC = EnvSpec(Space((64, 64, 3), np.uint8, 0, 256), Space((), np.float32, -1.0, 1.0), 20)
AGENT, KEY = random_play.random_agent(SPEC), jax.random.key(0)
MEMORY = 2**27  # bytes of a node's object store


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A node for the driver, without a CPU for workers; tests add those that they need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        before = signal.getsignal(signal.SIGTERM)
        made = Cluster(True, head_node_args={"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False})
        try:
            signal.signal(signal.SIGTERM, before)  # the head node has a handler of its own
            with cluster.on_ray(made.address):
                assert signal.getsignal(signal.SIGTERM) == before  # whoever saves at a signal, still does
                yield made
        finally:
            ray.shutdown()
            made.shutdown()
            signal.signal(signal.SIGTERM, before)


@pytest.fixture
def two(nodes: Cluster) -> set[Any]:
    """Two nodes, of two CPUs each; what a test has removed is there again."""
    while len(nodes.worker_nodes) < 2:
        nodes.add_node(num_cpus=2, object_store_memory=MEMORY)
    nodes.wait_for_nodes()
    return nodes.worker_nodes


def played(
    make_env: Any, workers: int, first: Callable[[], None] = lambda: None, count: int = 12, **settings: Any
) -> tuple[list[Played], int]:
    """Play episodes at random, doing something after the first; return them in order, and the workers lost."""
    with Pool(make_env, 4, workers, **settings) as pool:
        playing = play(pool, AGENT, random_play.PARAMS, KEY, map(Request, range(count)), record=True)
        found = [next(playing)]
        first()
        return sorted(found + list(playing)), pool.restarts


def same(ours: Any, theirs: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_episodes_are_those_of_this_process_by_workers_on_both_nodes(two: set[Any]) -> None:
    expected, _ = played(Ragged, 0)
    with Pool(Placed, 4, 2) as pool:
        assert {worker.about[2] for worker in pool._workers} == {node.node_id for node in two}
    got, restarts = played(Ragged, 2)
    same(got, expected)
    assert restarts == 0


@pytest.mark.parametrize(("how", "lost"), [("kill", 1), ("hang", 1), ("raise", 0)])
def test_an_environment_that_fails_costs_its_episodes_a_repetition(
    how: str, lost: int, two: set[Any], tmp_path: Path
) -> None:
    got, restarts = played(partial(Faulty, tmp_path, how, 5), 2, timeout=30.0 if how != "hang" else 6.0)
    same(got, played(Ragged, 0)[0])
    assert restarts == lost


def test_a_node_that_is_removed_costs_its_episodes_a_repetition(nodes: Cluster, two: set[Any]) -> None:
    got, restarts = played(Ragged, 2, lambda: nodes.remove_node(next(iter(two))), count=40)
    same(got, played(Ragged, 0, count=40)[0])
    assert restarts == 1


def test_what_is_wrong_with_an_environment_is_said_as_it_is_here(two: set[Any]) -> None:
    with Pool(partial(Returning, {"1": 3}), 2, 1) as pool, pytest.raises(InvalidStep, match="'inner/1' lies outside"):
        agent = random_play.random_agent(pool.spec(6))
        list(play(pool, agent, random_play.PARAMS, KEY, [Request(5), Request(6)]))
    with pytest.raises(ZeroDivisionError):
        Pool(lambda: 1 / 0, 2, 1)  # type: ignore[arg-type, return-value]


def test_doom_is_collected_as_by_local_workers(two: set[Any], tmp_path: Path) -> None:
    cfg, make_env = CollectConfig(3, name="held"), partial(TakeCover, max_steps=12)
    for folder, workers in (("cluster", 2), ("here", 0)):
        with Pool(make_env, 2, workers) as pool:
            agent = random_play.random_agent(pool.spec(12), "held")
            collect(cfg, tmp_path / folder, pool, agent, random_play.PARAMS)
    files = sorted(path.name for path in (tmp_path / "here").glob("episode_*.npz"))
    assert len(files) == 3
    for name in files:
        ours, theirs = (np.load(tmp_path / folder / name) for folder in ("cluster", "here"))
        assert set(ours) == set(theirs)
        same(dict(ours), dict(theirs))


def test_a_population_drives_as_by_local_workers(two: set[Any]) -> None:
    found = []
    for workers in (2, 0):
        with Pool(partial(CarRacing, max_steps=6), 4, workers) as pool:
            model = random_play.random_agent(pool.spec(6)).model
            policy = Policy(lambda key: {"speed": jnp.zeros(())}, lambda params, key, features: drive(params))
            params = AgentParams((), {"speed": jnp.linspace(0, 1, 3)})
            cars = Agent(model, policy)
            found.append(evaluate_population(pool, cars, params, KEY, np.arange(6).reshape(3, 2)))
    same(*found)
    assert len(np.unique(found[0].total)) > 3


def drive(params: Any) -> Any:
    """Drive straight on, as fast as the parameter says."""
    return jnp.stack([jnp.zeros(()), params["speed"], jnp.zeros(())])


def test_what_is_asked_of_a_cluster_must_make_sense(nodes: Cluster) -> None:
    with pytest.raises(ValueError, match="cpus must be positive, got 0"):
        cluster.connect(nodes.address, 0)


@pytest.mark.long
@pytest.mark.usefixtures("two")
def test_an_experiment_takes_the_address_of_a_cluster(nodes: Cluster, tmp_path: Path) -> None:
    """In a process of its own: DreamerV3 trains, and is evaluated, with workers on the cluster."""
    options = ["--preset", "smoke", "--workers", "2", "--ray", nodes.address, "--folder", str(tmp_path)]
    command = [sys.executable, "experiments/dreamerv3.py", *options, "--steps", "120", "--episodes", "0"]
    ended = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Connected to Ray cluster" in ended.stderr and (tmp_path / "metrics.jsonl").stat().st_size


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:ray"])
def test_a_cluster_that_is_not_there_is_said_in_a_line(address: str) -> None:
    command = [sys.executable, "experiments/dreamerv3.py", "--ray", address, "--steps", "1"]
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run(command, cwd=REPO, env=without, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and f"no Ray cluster at {address}: " in ended.stderr.splitlines()[-1]
