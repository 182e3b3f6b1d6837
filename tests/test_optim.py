"""What the optimisers measure of a tree of tensors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamjax import optim

SHAPES = {"a": (5,), "b": (3, 2), "c": (), "d": (300, 300), "e": (7,), "f": (1,), "g": (290, 310), "h": (0,), "i": (6,)}


@pytest.fixture
def tree():
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("norms", [optim._norms_one_by_one, optim._norms_together], ids=["cpu", "accelerators"])
def test_norms_are_those_of_every_leaf(tree, norms):
    wanted = [np.linalg.norm(np.asarray(leaf).ravel()) for leaf in jax.tree.leaves(tree)]
    np.testing.assert_allclose(jax.jit(norms)(*jax.tree.leaves(tree)), wanted, rtol=1e-5)
    np.testing.assert_allclose(optim.norms(tree), wanted, rtol=1e-5)
    np.testing.assert_allclose(optim.global_norm(tree), optax.tree.norm(tree), rtol=1e-5)


def test_a_leaf_that_is_not_finite_is_seen(tree):
    tree["b"] = tree["b"].at[1, 1].set(jnp.nan)
    for found in (optim._norms_one_by_one(*tree.values()), optim._norms_together(*tree.values())):
        assert np.isnan(found).tolist() == [name == "b" for name in SHAPES]
    assert np.isnan(optim.global_norm(tree))


def test_each_gradient_is_limited_by_its_own_parameter(tree):
    params = jax.tree.map(lambda x: 0.5 * x + 1.0, tree)
    tree["d"] = 0.001 * tree["d"]  # within its limit
    clipped, _ = optim.adaptive_gradient_clip(0.3, 1e-3).update(tree, None, params)
    for name in SHAPES:
        norm, most = (float(jnp.linalg.norm(x[name].ravel())) for x in (tree, params))
        wanted = min(norm, 0.3 * max(most, 1e-3))
        np.testing.assert_allclose(jnp.linalg.norm(clipped[name].ravel()), wanted, rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(clipped["d"], tree["d"])
