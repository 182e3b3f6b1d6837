"""CMA-ES: it converges, it follows pycma step by step, and ties, failures, checkpoints and tracing cannot upset it."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import chex
import cma
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from evosax.algorithms import CMA_ES

from dreamjax import evolution
from dreamjax.evolution import EvolutionConfig, EvolutionState
from dreamjax.types import Array, Key, Metrics, Params


def ellipsoid(d: int, condition: float) -> tuple[Callable[[Array], Array], Callable[[np.ndarray], float]]:
    """-x' H x for us to maximise, where H is randomly rotated and so conditioned, and x' H x for pycma to minimise."""
    rotation = np.linalg.qr(np.random.default_rng(d).normal(size=(d, d)))[0]
    root = np.sqrt(condition ** (np.arange(d) / (d - 1)))[:, None] * rotation
    root32 = jnp.asarray(root, jnp.float32)
    return lambda x: -jnp.sum(jnp.square(root32 @ x)), lambda x: float(np.sum((root @ x) ** 2))


@partial(jax.jit, static_argnums=(0, 3, 4))
def search(
    cfg: EvolutionConfig, key: Key, state: EvolutionState, fitness: Callable[[Array], Array], generations: int
) -> tuple[EvolutionState, Metrics]:
    def generation(state: EvolutionState, t: Array) -> tuple[EvolutionState, Metrics]:
        state, population = evolution.ask(cfg, jax.random.fold_in(key, t), state)
        return evolution.tell(cfg, state, population, jax.vmap(fitness)(population))

    return jax.lax.scan(generation, state, jnp.arange(generations))


def pycma(cfg: EvolutionConfig, x0: np.ndarray, seed: int = 1) -> cma.CMAEvolutionStrategy:
    return cma.CMAEvolutionStrategy(x0, cfg.sigma, {"popsize": cfg.population_size, "seed": seed, "verbose": -9})


def pycma_with_our_constants(cfg: EvolutionConfig, d: int, patch: pytest.MonkeyPatch) -> cma.CMAEvolutionStrategy:
    """pycma starting from C = I exactly, with evosax's c_mu, c_sigma, d_sigma, chi_n and weights, not its own."""
    es = pycma(cfg, np.zeros(d))
    constants = CMA_ES(cfg.population_size, jnp.zeros(d)).default_params
    patch.setattr(cma.utilities.math.Mh, "chiN", lambda n: float(constants.chi_n))
    es.adapt_sigma.initialize(es)
    es.adapt_sigma.cs, es.adapt_sigma.damps = float(constants.c_std), float(constants.d_std)
    es.sm.parameters(es.sp.weights.mueff, es.sp.weights.lambda_)["cmu"] = float(constants.c_mu)
    es.sp.weights[:] = np.asarray(constants.weights, np.float64).tolist()
    es.sm.C, es.sm.B, es.sm.D = np.eye(d), np.eye(d), np.ones(d)
    return es


@pytest.mark.parametrize(("d", "condition", "generations"), [(10, 1e6, 400), (20, 1e4, 600)])
def test_converges_on_a_rotated_ellipsoid(d: int, condition: float, generations: int) -> None:
    cfg = EvolutionConfig(population_size=16, sigma=0.5)
    fitness, _ = ellipsoid(d, condition)
    state, metrics = search(cfg, jax.random.key(0), evolution.init(cfg, jnp.ones(d)), fitness, generations)
    assert float(fitness(jnp.ones(d))) < -100
    assert float(fitness(state.mean)) > -1e-6
    assert 0.1 * condition < float(metrics["condition_number"][-1]) < 10 * condition, "C learns the inverse Hessian"


def test_takes_as_many_generations_as_pycma() -> None:
    d, target, seeds = 12, 1e-4, 4
    cfg = EvolutionConfig(population_size=12, sigma=0.5)
    fitness, cost = ellipsoid(d, 1e4)
    ours, theirs = [], []
    for seed in range(seeds):
        _, metrics = search(cfg, jax.random.key(seed), evolution.init(cfg, jnp.ones(d)), fitness, 400)
        ours.append(1 + np.flatnonzero(metrics["fitness_max"] > -target)[0])
        es = pycma(cfg, np.ones(d), seed + 1)
        while es.best.f >= target:
            population = es.ask()
            es.tell(population, [cost(x) for x in population])
        theirs.append(es.countiter)
    assert 0.8 < np.mean(ours) / np.mean(theirs) < 1.25, (ours, theirs)


def test_step_size_follows_pycmas() -> None:
    d, generations, seeds = 40, 120, 3
    cfg = EvolutionConfig(population_size=16, sigma=0.05)  # too small at first: sigma has to rise, then fall
    fitness, cost = ellipsoid(d, 10.0)
    ours = [
        np.log(search(cfg, jax.random.key(seed), evolution.init(cfg, jnp.ones(d)), fitness, generations)[1]["sigma"])
        for seed in range(seeds)
    ]
    theirs = np.zeros((seeds, generations))
    for seed in range(seeds):
        es = pycma(cfg, np.ones(d), seed + 1)
        for t in range(generations):
            population = es.ask()
            es.tell(population, [cost(x) for x in population])
            theirs[seed, t] = np.log(es.sigma)
    assert np.ptp(theirs.mean(0)) > 0.7, "the step size has something to follow"
    np.testing.assert_allclose(np.mean(ours, 0), theirs.mean(0), atol=0.3)


@pytest.mark.parametrize(
    ("problem", "d", "population_size"), [("ellipsoid", 10, 10), ("slope", 10, 10), ("slope", 9, 40)]
)
def test_every_step_equals_pycmas(problem: str, d: int, population_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same samples told to both: with the same constants, all that either remembers stays the same."""
    cfg = EvolutionConfig(population_size, sigma=0.3)
    cost = ellipsoid(d, 100.0)[1] if problem == "ellipsoid" else lambda x: float(x.sum())
    es = pycma_with_our_constants(cfg, d, monkeypatch)
    state = evolution.init(cfg, jnp.zeros(d))
    stalled = 0
    for t in range(15):
        population = np.asarray(es.ask())
        costs = [cost(x + 1) for x in population]
        state, _ = evolution.ask(cfg, jax.random.key(t), state)  # where C is decomposed, as in pycma's
        state, _ = evolution.tell(cfg, state, jnp.asarray(population, jnp.float32), -jnp.asarray(costs, jnp.float32))
        path_before = es.pc.copy()
        es.tell(population, costs)
        stalled += np.allclose(es.pc, (1 - es.sp.cc) * path_before)
        for ours, theirs in [
            (state.mean, es.mean),
            (state.sigma, es.sigma),
            (state.path_sigma, es.adapt_sigma.ps),
            (state.path_covariance, es.pc),
            (state.covariance, es.sm.C),
        ]:
            np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1, np.abs(theirs).max()))
    assert (stalled > 0) == (problem == "slope"), "the slope is there to stall the rank-one update"


def test_one_step_equals_pycmas_up_to_its_constants() -> None:
    d = 30
    cfg = EvolutionConfig(population_size=16, sigma=0.3)
    es = pycma(cfg, np.zeros(d))
    population = np.asarray(es.ask())
    costs = [float(np.sum((x + 1) ** 2)) for x in population]
    state, _ = evolution.tell(
        cfg, evolution.init(cfg, jnp.zeros(d)), jnp.asarray(population, jnp.float32), -jnp.asarray(costs, jnp.float32)
    )
    es.tell(population, costs)
    np.testing.assert_allclose(state.mean, es.mean, atol=1e-5)
    np.testing.assert_allclose(np.log(state.sigma / cfg.sigma), np.log(es.sigma / cfg.sigma), rtol=0.06)


@pytest.mark.parametrize(
    ("n", "interval", "pycmas"),
    [
        (867, 3, [2.65265e-6, 4.21845e-5, 4.61554e-3, 2.21059e-2, 1.02211, 17.6217]),
        (1088, 4, [1.68550e-6, 2.68128e-5, 3.67773e-3, 1.76991e-2, 1.01770, 17.6217]),
    ],
)
def test_constants_of_world_models(n: int, interval: int, pycmas: list[float]) -> None:
    """At the sizes of the two published controllers, evosax's constants lie within 2 % of pycma's."""
    _, constants, ours = evolution._strategy(64, n)
    got = [constants.c_1, constants.c_mu, constants.c_c, constants.c_std, constants.d_std, constants.mu_eff]
    np.testing.assert_allclose(got, pycmas, rtol=0.02)
    np.testing.assert_allclose(constants.weights[jnp.array([0, 1, 2, 63])], [0.11666, 0.09343, 0.07984, -0.05899], 1e-3)
    assert ours == interval


@pytest.mark.parametrize("tied", [1, 2, 8, 32, 64])
def test_ties_leave_the_recombination_weights_summing_to_one(tied: int) -> None:
    cfg = EvolutionConfig(population_size=64, sigma=1.0)
    state = evolution.init(cfg, jnp.full(5, 3.0))
    fitness = jnp.arange(64.0).at[jnp.arange(tied)].set(100.0)
    population = jnp.full((64, 5), 7.0)
    after, _ = evolution.tell(cfg, state, population, fitness)
    np.testing.assert_allclose(after.mean, 7.0, rtol=1e-5)


def test_fitness_without_information_leaves_the_search_where_it_is() -> None:
    cfg, key = EvolutionConfig(population_size=16, sigma=0.1), jax.random.key(3)
    state, _ = search(cfg, key, evolution.init(cfg, jnp.zeros(100)), lambda x: 0.0 * x[0] + 5.0, generations=100)
    assert 0.05 < float(state.sigma) < 0.2
    assert float(jnp.linalg.norm(state.mean)) < 7.5  # a walk in averages of 16: 0.1 * sqrt(100 * 100 / 16) = 2.5
    assert float(jnp.linalg.cond(state.covariance)) < 10


def test_a_solved_problem_may_go_on_for_ever() -> None:
    cfg = EvolutionConfig(population_size=8, sigma=0.1)
    state, _ = search(cfg, jax.random.key(4), evolution.init(cfg, jnp.zeros(2)), lambda x: -jnp.sum((x - 1) ** 2), 3000)
    chex.assert_tree_all_finite(state)
    assert float(state.sigma) > 0


@pytest.mark.parametrize("failure", [jnp.nan, jnp.inf, -jnp.inf])
def test_failed_evaluations_rank_last(failure: float) -> None:
    cfg = EvolutionConfig(population_size=6)
    state, population = evolution.ask(cfg, jax.random.key(5), evolution.init(cfg, jnp.zeros(4)))
    failed, metrics = evolution.tell(cfg, state, population, jnp.array([1.0, failure, 3.0, failure, 5.0, 2.0]))
    ranked, _ = evolution.tell(cfg, state, population, jnp.array([1.0, -8.0, 3.0, -9.0, 5.0, 2.0]))
    chex.assert_trees_all_equal(failed, ranked)
    shown = {name: float(metrics[f"fitness_{name}"]) for name in ("failed", "mean", "min", "max")}
    assert shown == {"failed": 2, "mean": 2.75, "min": 1, "max": 5}
    assert float(metrics["fitness_std"]) == pytest.approx(np.std([1.0, 3.0, 5.0, 2.0]))


def test_a_generation_of_failures_moves_nothing() -> None:
    cfg = EvolutionConfig(population_size=6)
    state, population = evolution.ask(cfg, jax.random.key(6), evolution.init(cfg, jnp.ones(4)))
    after, metrics = evolution.tell(cfg, state, population, jnp.array([jnp.nan, jnp.inf, -jnp.inf] * 2))
    assert metrics["fitness_failed"] == 6 and after.generation == 1
    chex.assert_trees_all_equal(after._replace(generation=state.generation), state)


def test_metrics_describe_fitness_and_distribution() -> None:
    cfg = EvolutionConfig(population_size=6)
    state, population = evolution.ask(cfg, jax.random.key(7), evolution.init(cfg, jnp.zeros(4)))
    fitness = np.array([1.0, 2.0, 3.0, 6.0, 4.0, 2.0], np.float32)
    state, metrics = evolution.tell(cfg, state, population, fitness)
    for name, value in {"mean": 3.0, "std": fitness.std(), "min": 1.0, "max": 6.0, "failed": 0}.items():
        assert float(metrics[f"fitness_{name}"]) == pytest.approx(value), name
    assert metrics["sigma"] == state.sigma
    assert metrics["coordinate_sd"] == pytest.approx(float(state.sigma * np.sqrt(np.diag(state.covariance)).mean()))
    assert metrics["condition_number"] == 1
    chex.assert_shape(list(metrics.values()), ())


class Layer(NamedTuple):
    kernel: Array
    bias: Array


@pytest.mark.parametrize(
    "params",
    [
        jnp.arange(3.0),
        {"params": {"dense": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}}},
        (Layer(jnp.ones((2, 3)), jnp.zeros(3)), [np.float32(1.5)], None),
    ],
    ids=["array", "flax", "mixed"],
)
def test_any_pytree_of_parameters(params: Params) -> None:
    cfg = EvolutionConfig(population_size=5, sigma=1e-3)
    state = evolution.init(cfg, params)
    chex.assert_trees_all_equal(state.mean, params)
    state, population = evolution.ask(cfg, jax.random.key(8), state)
    chex.assert_trees_all_equal_structs(population, params)
    chex.assert_trees_all_close(population, jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * 5), params), atol=0.01)
    state, _ = evolution.tell(cfg, state, population, jnp.arange(5.0))
    chex.assert_trees_all_equal_shapes_and_dtypes(state.mean, jax.tree.map(jnp.asarray, params))


@pytest.mark.parametrize(("n", "population_size", "interval"), [(10, 16, 1), (150, 8, 4)])
def test_the_covariance_is_decomposed_when_due_and_only_then(n: int, population_size: int, interval: int) -> None:
    cfg = EvolutionConfig(population_size)
    assert evolution._strategy(population_size, n)[2] == interval
    state = evolution.init(cfg, jnp.zeros(n))
    for t in range(2 * interval + 1):
        asked, population = evolution.ask(cfg, jax.random.key(t), state)
        assert np.array_equal(asked.basis, state.basis) == (t == 0 or t % interval != 0)
        if t % interval == 0:
            decomposed = (asked.basis * jnp.square(asked.scales)[None]) @ asked.basis.T
            np.testing.assert_allclose(decomposed, asked.covariance, atol=1e-5)
        state, _ = evolution.tell(cfg, asked, population, population[:, 0])


def test_a_covariance_beyond_float32_stays_usable() -> None:
    cfg = EvolutionConfig(population_size=6)
    state = evolution.init(cfg, jnp.zeros(4))._replace(covariance=jnp.full((4, 4), 1e12), generation=jnp.int32(1))
    state, population = evolution.ask(cfg, jax.random.key(9), state)
    assert float(state.scales.min()) > 0
    state, _ = evolution.tell(cfg, state, population, population[:, 0])
    chex.assert_tree_all_finite(state)


@pytest.mark.evosax
def test_a_due_sample_equals_evosaxs() -> None:
    cfg = EvolutionConfig(population_size=16)
    state, _ = search(cfg, jax.random.key(10), evolution.init(cfg, jnp.zeros(10)), lambda x: x[0] - x[1] ** 2, 20)
    plain = CMA_ES(16, jnp.zeros(10))
    theirs = plain.init(jax.random.key(0), jnp.zeros(10), plain.default_params)
    theirs = theirs.replace(mean=state.mean, std=state.sigma, C=state.covariance)
    expected, _ = plain.ask(jax.random.key(11), theirs, plain.default_params)
    _, population = evolution.ask(cfg, jax.random.key(11), state)
    np.testing.assert_allclose(population, expected, rtol=1e-4, atol=1e-5)


def test_a_restored_search_continues_bit_for_bit(tmp_path: Path) -> None:
    cfg = EvolutionConfig(population_size=8)
    fitness, _ = ellipsoid(6, 10.0)
    policy = {"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}

    def score(x: Params) -> Array:
        return fitness(jnp.concatenate([x["w"].ravel(), x["b"]]))

    state, _ = search(cfg, jax.random.key(12), evolution.init(cfg, policy), score, 5)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(5, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
        target = jax.eval_shape(lambda: evolution.init(cfg, policy))
        restored = manager.restore(5, args=ocp.args.StandardRestore(target))
    chex.assert_trees_all_equal(restored, state)
    assert type(restored) is EvolutionState
    key = jax.random.key(13)
    chex.assert_trees_all_equal(
        search(cfg, key, restored, score, 5), search(cfg, jax.random.clone(key), state, score, 5)
    )


def test_equal_configurations_share_one_trace() -> None:
    jitted = evolution.ask.__wrapped__, evolution.tell.__wrapped__
    traced = [one._cache_size() for one in jitted]
    state = evolution.init(EvolutionConfig(population_size=7), {"w": np.zeros(4, np.float32), "b": 0.0})
    for t in range(4):
        cfg = EvolutionConfig(population_size=7)
        state, population = evolution.ask(cfg, jax.random.key(t), state)
        state, _ = evolution.tell(cfg, state, population, population["b"])
    assert [one._cache_size() - before for one, before in zip(jitted, traced, strict=True)] == [1, 1]


def test_first_use_inside_a_trace_leaks_nothing_into_the_next() -> None:
    cfg = EvolutionConfig(population_size=9)  # no other test has built constants for this population
    state, _ = search(cfg, jax.random.key(14), evolution.init(cfg, jnp.zeros(3)), lambda x: x[0], 2)
    state, population = evolution.ask(cfg, jax.random.key(15), state)
    evolution.tell(cfg, state, population, population[:, 0])


def test_the_callers_state_stays_usable() -> None:
    cfg = EvolutionConfig(population_size=6)
    start = evolution.init(cfg, jnp.ones(4))
    state, population = evolution.ask(cfg, jax.random.key(16), start)
    evolution.tell(cfg, state, population, jnp.arange(6.0))
    np.testing.assert_array_equal(start.mean, 1)
    np.testing.assert_array_equal(start.covariance, np.eye(4))


def test_lowers_for_accelerators_with_full_precision() -> None:
    cfg = EvolutionConfig()
    state = jax.eval_shape(lambda: evolution.init(cfg, {"w": jnp.zeros((360, 3)), "b": jnp.zeros(3)}))
    key = jax.eval_shape(lambda: jax.random.key(0))
    _, population = jax.eval_shape(partial(evolution.ask, cfg), key, state)
    fitness = jax.ShapeDtypeStruct((cfg.population_size,), jnp.float32)
    asked = jax.export.export(jax.jit(partial(evolution.ask, cfg)), platforms=["cuda", "tpu"])(key, state)
    told = jax.export.export(jax.jit(partial(evolution.tell, cfg)), platforms=["cuda", "tpu"])(
        state, population, fitness
    )
    for exported in (asked, told):
        products = [line for line in exported.mlir_module().splitlines() if "stablehlo.dot_general" in line]
        assert products
        assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from dreamjax import evolution
cfg = evolution.EvolutionConfig(population_size=8)
mesh = jax.make_mesh((2,), ("lanes",), axis_types=(jax.sharding.AxisType.Auto,))
state, population = evolution.ask(cfg, jax.random.key(0), evolution.init(cfg, {"w": jnp.zeros((2, 3))}))
split = jax.device_put(population, NamedSharding(mesh, PartitionSpec("lanes")))
fitness = jax.vmap(lambda x: x["w"].sum())(split)
assert len(fitness.sharding.device_set) == 2
one, _ = evolution.tell(cfg, state, population, jax.vmap(lambda x: x["w"].sum())(population))
two, _ = evolution.tell(cfg, jax.device_put(state, NamedSharding(mesh, PartitionSpec())), split, fitness)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, two)
"""


def test_a_population_may_be_split_over_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("population_size", "sigma"), [(3, 0.1), (64, 0.0), (64, -1.0), (64, np.inf), (64, np.nan)])
def test_rejects_impossible_settings(population_size: int, sigma: float) -> None:
    with pytest.raises(ValueError, match=r"at least 4|positive and finite"):
        EvolutionConfig(population_size, sigma)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": jnp.zeros(3, jnp.bfloat16)}, r"\['w'\] is bfloat16; cast"),
        ({"w": jnp.zeros(3), "n": jnp.zeros(3, jnp.int32)}, r"\['n'\] is int32; cast"),
        ({}, "nothing to evolve"),
        (jnp.zeros((0, 3)), "nothing to evolve"),
    ],
)
def test_rejects_what_it_cannot_evolve(params: Params, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evolution.init(EvolutionConfig(), params)


@pytest.mark.parametrize(
    ("population", "fitness", "message"),
    [
        ({"w": jnp.zeros((4, 3))}, jnp.zeros((4, 16)), "average over episodes"),
        ({"w": jnp.zeros((5, 3))}, jnp.zeros(5), "shaped as ask returned it"),
        ({"v": jnp.zeros((4, 3))}, jnp.zeros(4), "shaped as ask returned it"),
    ],
)
def test_rejects_what_ask_did_not_return(population: Params, fitness: Array, message: str) -> None:
    cfg = EvolutionConfig(population_size=4)
    with pytest.raises(ValueError, match=message):
        evolution.tell(cfg, evolution.init(cfg, {"w": jnp.zeros(3)}), population, fitness)
