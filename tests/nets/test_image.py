"""The codec's convolutions against XLA's own, in values and in gradients, in every form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dreamjax.nets import image


def plain(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def plain_pool(x, kernel):
    y = plain(x, kernel)
    n, h, w, c = y.shape
    return y.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


def plain_upsample(x, kernel):
    return plain(x.repeat(2, 1).repeat(2, 2), kernel)


FORMS = {
    "conv": (image.conv, plain),
    "pool on a CPU": (image._conv_pool_cpu, plain_pool),
    "pool elsewhere": (image._conv_pool, plain_pool),
    "upsample": (image.upsample_conv, plain_upsample),
}


def gradients(form, x, kernel, weight):
    return jax.jit(jax.grad(lambda x, kernel: (form(x, kernel) * weight).sum(), (0, 1)))(x, kernel)


@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("name", FORMS)
def test_forms_agree(name: str, size: int):
    form, wanted = FORMS[name]
    keys = jax.random.split(jax.random.key(size), 3)
    x = jax.random.normal(keys[0], (3, 12, 16, 5))
    kernel = jax.random.normal(keys[1], (size, size, 5, 6))
    y = wanted(x, kernel)
    np.testing.assert_allclose(form(x, kernel), y, rtol=1e-5, atol=1e-5 * float(jnp.abs(y).max()))
    weight = jax.random.normal(keys[2], y.shape)
    for found, right in zip(gradients(form, x, kernel, weight), gradients(wanted, x, kernel, weight), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5 * float(jnp.abs(right).max()))


def test_kernel_gradients_agree_whatever_the_chunks(monkeypatch):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (6, 8, 8, 4))
    dy = jax.random.normal(keys[1], (6, 8, 8, 3))
    wanted = image._kernel_gradient(x, dy, 5)
    for most in (1, 15_000, 10**9):
        monkeypatch.setattr(image, "_PATCHES", most)
        np.testing.assert_allclose(image._kernel_gradient_cpu(x, dy, 5), wanted, rtol=1e-4, atol=1e-4)


def test_ties_share_the_gradient_whatever_the_order_of_additions():
    x = jnp.full((2, 16, 16, 3), 0.37).at[:, 3:5, 4:9].set(0.9)
    kernel = jax.random.normal(jax.random.key(0), (5, 5, 3, 6))
    weight = jax.random.normal(jax.random.key(1), (2, 8, 8, 6))
    wanted = gradients(plain_pool, x, kernel, weight)
    for found, right in zip(gradients(image._conv_pool_cpu, x, kernel, weight), wanted, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5 * float(jnp.abs(right).max()))
