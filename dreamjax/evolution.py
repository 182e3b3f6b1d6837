"""CMA-ES over the parameters of any policy: `init`, then `ask` and `tell` every generation. Higher fitness is better.

A generation samples N parameter vectors x_i = m + sigma B D z_i, is told their fitness, and moves the mean m, the step
size sigma and the covariance C = B D^2 B' towards the better half. The update and its constants are those of evosax's
`CMA_ES`, which follows Hansen (2016), "The CMA Evolution Strategy: A Tutorial", https://arxiv.org/abs/1604.00772. This
module adds what a long run needs:

- Equal fitness is common (episodes that reach the time limit). evosax gives tied individuals one averaged rank each, so
  that the recombination weights no longer sum to 1 and the mean shrinks towards 0. Here ranks are always distinct;
  samples are exchangeable, so that breaking ties by index favours nobody.
- C is decomposed only every few generations, in `ask`, by the rule of the tutorial's section B.2, rounded up as pycma
  does. `tell` uses the decomposition that its population was sampled with. Eigenvalues have a floor relative to the
  largest, where evosax adds to C, and limits it, in absolute terms.
- The stall indicator counts generations from 1 as in the tutorial; evosax, left alone, is one ahead.
- The step size stays far enough above 0 for float32 to divide by it, however long a solved problem goes on.
- Matrices are multiplied in full float32 on every device, where GPUs and TPUs would by default round the factors.

`ask` and `tell` are compiled once for each configuration and parameter structure, and may be called inside `jit` and
`scan`. They donate nothing: the mean inside a state is the policy that callers go on to evaluate and deploy, and the
copy costs little beside the decomposition. A state is a pytree of arrays and can be stored as it is.

Ha & Schmidhuber (2018), appendix A.4, evolve their controllers with CMA-ES and N = 64; sigma = 0.1 is their code's.
They used pycma, whose constants differ from these by at most 2 % at their sizes.
"""

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from dreamjax import checks
from dreamjax.optim import parameter_count
from dreamjax.types import Array, Key, Metrics, Params

if TYPE_CHECKING:  # importing evosax computes, which processes that are still to meet may not do
    from evosax.algorithms import CMA_ES
    from evosax.algorithms.distribution_based import cma_es

_MIN_SIGMA = 1e-20  # far below any use, far above where float32 underflows and (x - m) / sigma becomes 0 / 0


@dataclass(frozen=True)
class EvolutionConfig:
    """Settings of CMA-ES; every other constant follows from the population size and the number of parameters.

    Raises: ValueError for a population of fewer than 4 or a sigma that is not positive and finite.
    """

    population_size: int = 64  # N, individuals per generation
    sigma: float = 0.1  # initial standard deviation of every parameter

    def __post_init__(self) -> None:
        if self.population_size < 4:
            raise ValueError(f"population_size must be at least 4 for CMA-ES to rank, got {self.population_size}")
        if not (_MIN_SIGMA < self.sigma < math.inf):
            raise ValueError(f"sigma is the initial standard deviation, positive and finite, got {self.sigma}")


class EvolutionState(NamedTuple):
    """The search distribution N(mean, sigma^2 C) over n parameters, and what adapts it. All float32 but the counter."""

    mean: Params  # m, the policy one evaluates and deploys; n numbers in all
    sigma: Array  # [], step size
    path_sigma: Array  # [n], evolution path of the step size, p_sigma
    path_covariance: Array  # [n], evolution path of the covariance, p_c
    covariance: Array  # [n, n], C
    basis: Array  # [n, n], B, orthonormal columns: eigenvectors of C when it was last decomposed
    scales: Array  # [n], D, square roots of its eigenvalues then
    generation: Array  # [] int32, generations told so far


@checks.arguments
def init(cfg: EvolutionConfig, mean: Params) -> EvolutionState:
    """Start a search around `mean`, a pytree of float32 parameters such as `policy.init(key)` or zeros.

    Raises: ValueError when `mean` holds no parameters, or some that are not float32.
    """
    mean = jax.tree.map(jnp.asarray, mean)
    for path, leaf in jax.tree_util.tree_leaves_with_path(mean):
        if leaf.dtype != jnp.float32:
            name = jax.tree_util.keystr(path) or "the parameter"
            raise ValueError(f"CMA-ES searches in float32, but {name} is {leaf.dtype}; cast it with astype")
    n = parameter_count(mean)
    if n == 0:
        raise ValueError("there is nothing to evolve: the pytree of parameters has no elements")
    return EvolutionState(
        mean=jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), mean),  # no weak types: they would retrace
        sigma=jnp.float32(cfg.sigma),
        path_sigma=jnp.zeros(n, jnp.float32),
        path_covariance=jnp.zeros(n, jnp.float32),
        covariance=jnp.eye(n, dtype=jnp.float32),
        basis=jnp.eye(n, dtype=jnp.float32),
        scales=jnp.ones(n, jnp.float32),
        generation=jnp.int32(0),
    )


@checks.arguments
@partial(jax.jit, static_argnames="cfg")
def ask(cfg: EvolutionConfig, key: Key, state: EvolutionState) -> tuple[EvolutionState, Params]:
    """Sample a generation: a population shaped like the mean, every leaf with a leading axis N.

    Pass the state that comes back to `tell`; it holds the decomposition that the population was sampled with.

    Source: Hansen 2016, equations 38 to 40 and section B.2.
    """
    flat_mean, unravel = ravel_pytree(state.mean)
    _, _, interval = _strategy(cfg.population_size, flat_mean.size)
    is_due = (state.generation > 0) & (state.generation % interval == 0)
    basis, scales = jax.lax.cond(
        is_due,
        lambda: _decompose(state.covariance),
        lambda: (state.basis, state.scales),
    )
    z = jax.random.normal(key, (cfg.population_size, flat_mean.size))
    with jax.default_matmul_precision("float32"):
        y = (scales[None] * z) @ basis.T
    population = jax.vmap(unravel)(flat_mean[None] + state.sigma * y)
    return state._replace(basis=basis, scales=scales), population


@checks.arguments
@partial(jax.jit, static_argnames="cfg")
def tell(
    cfg: EvolutionConfig, state: EvolutionState, population: Params, fitness: Array
) -> tuple[EvolutionState, Metrics]:
    """Move the distribution towards the fitter individuals of a population that `ask` sampled.

    Only the order of `fitness` [N] matters, higher is better. An evaluation whose fitness is not finite, of either sign
    or NaN, has failed and ranks last; the metrics count such individuals and leave them out of the other fitness
    figures. Where all have failed these are NaN, and the distribution stays as it is: `training.loop` ends such a run.

    Metrics: `fitness_mean`, `fitness_std`, `fitness_min`, `fitness_max`, `fitness_failed` (a count), `sigma`,
    `coordinate_sd` (standard deviation of a parameter, averaged over parameters), `condition_number` (of C when last
    decomposed).

    Raises: ValueError when population or fitness are not shaped as `ask` shaped the population.

    Source: Hansen 2016, equations 41 to 47.
    """
    flat_mean, unravel = ravel_pytree(state.mean)
    fitness = jnp.asarray(fitness, jnp.float32)  # it may be a list
    _check_population(cfg, state, population, fitness)
    strategy, constants, _ = _strategy(cfg.population_size, flat_mean.size)
    from evosax.algorithms.distribution_based.cma_es import State

    flat_population = jax.vmap(lambda individual: ravel_pytree(individual)[0])(population)
    fitness = jnp.where(jnp.isfinite(fitness), fitness, jnp.nan)
    before = State(
        mean=flat_mean,
        std=state.sigma,
        p_std=state.path_sigma,
        p_c=state.path_covariance,
        C=state.covariance,
        B=state.basis,
        D=state.scales,
        best_solution=flat_mean,  # evosax's archive of the best, which nothing here reads
        best_fitness=jnp.inf,
        generation_counter=state.generation - 1,  # evosax adds 2 where the tutorial adds 1
    )
    with jax.default_matmul_precision("float32"), jax.numpy_rank_promotion("allow"):
        after, _ = strategy.tell(None, flat_population, -fitness, before, constants)  # evosax minimises
    moved = state._replace(
        mean=unravel(after.mean),
        sigma=after.std,
        path_sigma=after.p_std,
        path_covariance=after.p_c,
        covariance=after.C,
    )
    has_failed = jnp.isnan(fitness).all()
    state = jax.tree.map(lambda old, new: jnp.where(has_failed, old, new), state, moved)
    state = state._replace(generation=state.generation + 1)
    return state, _metrics(state, fitness)


def _metrics(state: EvolutionState, fitness: Array) -> Metrics:
    return {
        "fitness_mean": jnp.nanmean(fitness),
        "fitness_std": jnp.nanstd(fitness),
        "fitness_min": jnp.nanmin(fitness),
        "fitness_max": jnp.nanmax(fitness),
        "fitness_failed": jnp.isnan(fitness).sum(),
        "sigma": state.sigma,
        "coordinate_sd": state.sigma * jnp.sqrt(jnp.diagonal(state.covariance)).mean(),
        "condition_number": jnp.square(state.scales.max() / state.scales.min()),
    }


def _check_population(cfg: EvolutionConfig, state: EvolutionState, population: Params, fitness: Array) -> None:
    expected = jax.tree.map(lambda leaf: (cfg.population_size, *leaf.shape), state.mean)
    got = jax.tree.map(jnp.shape, population)
    if got != expected:
        raise ValueError(f"tell needs a population shaped as ask returned it, {expected}, got {got}")
    if jnp.shape(fitness) != (cfg.population_size,):
        raise ValueError(
            f"tell needs one fitness for each of {cfg.population_size} individuals, got shape {jnp.shape(fitness)}; "
            "average over episodes first"
        )


def _decompose(covariance: Array) -> tuple[Array, Array]:
    """Eigenvectors [n, n], one a column, and roots [n] of the eigenvalues, none below what float32 resolves."""
    variances, basis = jnp.linalg.eigh(covariance)
    return basis, jnp.sqrt(jnp.maximum(variances, jnp.finfo(jnp.float32).eps * variances[-1]))


def _weights_by_distinct_rank(population: Array, cost: Array, state: "cma_es.State", params: "cma_es.Params") -> Array:
    """Recombination weights [N] of individuals with these costs: a stable sort, where NaN comes last."""
    order = jnp.argsort(cost, stable=True)
    return jnp.zeros_like(params.weights).at[order].set(params.weights)


@lru_cache
def _strategy(population_size: int, n: int) -> tuple["CMA_ES", "cma_es.Params", int]:
    """Build the strategy for n parameters, its constants, and the number of generations between decompositions.

    evosax compiles anew for every instance, hence the cache; it holds numbers, even when first called inside a trace.
    """
    with jax.ensure_compile_time_eval():
        from evosax.algorithms import CMA_ES

        strategy = CMA_ES(population_size, jnp.zeros(n), fitness_shaping_fn=_weights_by_distinct_rank)
        constants = strategy.default_params.replace(std_min=_MIN_SIGMA)
        constants = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), constants)
        # C forgets a share c_1 + c_mu of itself per generation; it may lose 1 / (10 n) before it is decomposed again.
        interval = math.ceil(1 / (10 * n * float(constants.c_1 + constants.c_mu)))
    return strategy, constants, interval
