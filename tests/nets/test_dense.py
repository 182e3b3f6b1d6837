"""Dense layers against their equations in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.nets import dense


@pytest.mark.parametrize("lead", [(), (7,), (2, 3)])
def test_block_product(lead: tuple):
    keys = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(keys[0], (*lead, 4, 5)), jax.random.normal(keys[1], (4, 5, 6))
    wanted = np.einsum("...gi,gio->...go", np.asarray(x), np.asarray(kernel))
    np.testing.assert_allclose(dense.block_product(x, kernel), wanted, rtol=1e-5, atol=1e-5)


def test_block_linear_starts_from_all_inputs_of_all_blocks():
    layer = dense.BlockLinear(64, 8)
    params = layer.init(jax.random.key(0), jnp.zeros((8, 200)))["params"]
    assert params["kernel"].shape == (8, 200, 8)
    assert float(params["kernel"].std()) == pytest.approx(1600**-0.5, rel=0.03)
    y = layer.apply({"params": params | {"bias": jnp.arange(64.0)}}, jnp.zeros((3, 8, 200)))
    np.testing.assert_array_equal(y, np.broadcast_to(np.arange(64.0).reshape(8, 8), (3, 8, 8)))


def test_rms_norm_is_computed_in_float32():
    x = jax.random.normal(jax.random.key(0), (3, 50)) * 300
    scale = jnp.linspace(0.5, 2, 50)
    wide = np.asarray(x, np.float64)
    wanted = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-4) * np.asarray(scale, np.float64)
    np.testing.assert_allclose(dense.rms_norm(scale, x), wanted, rtol=1e-5)
    half = dense.rms_norm(scale, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), wanted, rtol=0.02)
