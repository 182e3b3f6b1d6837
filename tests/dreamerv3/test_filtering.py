"""Filtering a sequence is the recurrent step over and over, in its values and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.dreamerv3 import filtering, rssm
from dreamjax.dreamerv3.config import RSSMConfig
from dreamjax.dreamerv3.rssm import RSSMState
from dreamjax.types import Array, Params

T, B, ACTIONS, TOKENS = 6, 3, 2, 10
CFG = RSSMConfig(deter=32, hidden=16, stoch=4, classes=4, blocks=4)
DEEPER = RSSMConfig(deter=32, hidden=16, stoch=4, classes=4, blocks=4, posterior_layers=2, unimix=0.0)
KEY = jax.random.key(7)


def step_by_step(
    cfg: RSSMConfig, params: Params, state: RSSMState, actions: Array, tokens: Array, is_first: Array
) -> tuple[RSSMState, Array]:
    """Filter with the functions for one step, differentiated by JAX."""
    noise = rssm.noise(cfg, jax.random.clone(KEY), (T, B))

    def step(state: RSSMState, data: tuple[Array, ...]) -> tuple[RSSMState, tuple[RSSMState, Array]]:
        action, tokens, is_first, noise = data
        state, action = rssm.reset((state, action), is_first)
        deter = rssm.core(cfg, params, state, action)
        logits = rssm.posterior(cfg, params, deter, tokens)
        probs = (1 - cfg.unimix) * jax.nn.softmax(logits) + cfg.unimix / cfg.classes
        drawn = jax.nn.one_hot((logits + noise).argmax(-1), cfg.classes)
        state = RSSMState(deter, drawn + probs - jax.lax.stop_gradient(probs))
        return state, (state, logits)

    return jax.lax.scan(step, state, (actions, tokens, is_first, noise))[1]


def at_once(cfg: RSSMConfig, params: Params, state: RSSMState, *data: Array) -> tuple[RSSMState, Array]:
    return filtering.observe_sequence(cfg, params, jax.random.clone(KEY), state, *data)


def given(cfg: RSSMConfig) -> tuple:
    """Parameters of which none is zero, a state, and sequences in which episodes begin."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params = jax.tree.map(lambda x: x + 0.1 * normal(*x.shape), rssm.init(cfg, jax.random.key(0), ACTIONS, TOKENS))
    state = RSSMState(normal(B, cfg.deter), jax.nn.one_hot(rng.integers(0, cfg.classes, (B, cfg.stoch)), cfg.classes))
    is_first = jnp.asarray(rng.random((T, B)) < 0.3)
    assert is_first[1:].any() and not is_first.all()
    return params, state, normal(T, B, ACTIONS), normal(T, B, TOKENS), is_first


@pytest.mark.parametrize("cfg", [CFG, DEEPER], ids=["published layers", "deeper, without unimix"])
def test_equals_the_step_taken_again_and_again(cfg):
    params, state, actions, tokens, is_first = given(cfg)
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=(T, B, *shape)) for shape in ((cfg.deter,), *2 * ((cfg.stoch, cfg.classes),))]

    def loss(run):
        def weighted(params, state, tokens):
            (deter, stoch), logits = found = run(cfg, params, state, actions, tokens, is_first)
            return sum((x * jnp.float32(w)).sum() for x, w in zip((deter, stoch, logits), weights, strict=True)), found

        return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1, 2), has_aux=True))(params, state, tokens)

    (_, wanted), gradients = loss(step_by_step)
    (_, found), ours = loss(at_once)
    assert set(np.unique(found[0].stoch)) == {0.0, 1.0}
    for name, pair in {"values": (found, wanted), "gradients": (ours, gradients)}.items():
        for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(pair[0]), jax.tree.leaves(pair[1]), strict=True):
            error = f"{name}{jax.tree_util.keystr(path)}"
            np.testing.assert_allclose(x, y, 1e-4, 1e-5 * float(jnp.abs(y).max() + 1), err_msg=error)


def test_each_loop_keeps_one_array():
    """One array of outputs is one program a step that an accelerator starts, where one per array would be dozens."""
    params, state, *data = given(CFG)
    run = lambda params: sum(x.sum() for x in jax.tree.leaves(at_once(CFG, params, state, *data)))  # noqa: E731
    loops = [eqn for eqn in jax.make_jaxpr(jax.grad(run))(params).eqns if eqn.primitive.name == "cond"]
    branches = [[*branch.jaxpr.eqns] for loop in loops for branch in loop.params["branches"]]
    scans = [eqn for eqns in branches for eqn in eqns if eqn.primitive.name == "scan"]
    kept = [sum(out.aval.shape[:1] == (T,) for out in eqn.outvars) for eqn in scans if eqn.params["length"] == T]
    assert kept == [1, 1, 1, 1]  # forwards and backwards, on CPUs and on accelerators


def test_noise_draws_from_the_mixture():
    cfg = RSSMConfig(deter=8, hidden=4, stoch=1, classes=3, blocks=1, unimix=0.3)
    logits = jnp.log(jnp.array([[0.7, 0.25, 0.05]]))
    drawn = (logits + rssm.noise(cfg, jax.random.key(0), (40_000,))[:, 0]).argmax(-1)
    shares = np.bincount(np.asarray(drawn), minlength=3) / 40_000
    np.testing.assert_allclose(shares, 0.7 * jnp.exp(logits[0]) + 0.1, atol=0.01)
    assert np.isfinite(rssm.noise(cfg, jax.random.key(1), (1000,))).all()
