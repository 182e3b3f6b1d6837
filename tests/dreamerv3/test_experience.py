"""Several updates in one call are the same updates."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dreamjax.dreamerv3 import experience, learner
from dreamjax.dreamerv3.config import debug
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.optim import LaPropConfig
from dreamjax.types import EnvSpec, Space

# A gradient next to nothing, divided by its size, has a sign that the order of sums decides; eps is above that.
CFG = replace(debug(), optimizer=LaPropConfig(eps=1e-2), compute_dtype="float32")
DREAMER = Dreamer.of(CFG, EnvSpec(Space((3,)), Space((), np.int32, 0, 2), 100))
KEY = jax.random.key(1)


def batches(count: int) -> experience.Experience:
    """So many batches of two sequences."""
    rng = np.random.default_rng(0)

    def draw(like: jax.ShapeDtypeStruct) -> np.ndarray:
        shape = (count, 2, 6, *like.shape)
        if like.dtype == bool:
            return rng.random(shape) < 0.1
        is_whole = np.issubdtype(like.dtype, np.integer)
        return (rng.integers(0, 2, shape) if is_whole else rng.normal(size=shape)).astype(like.dtype)

    return jax.tree.map(draw, experience.example(DREAMER))


def test_updates_in_one_call_are_those_of_single_calls_however_they_are_divided() -> None:
    drawn, several = batches(4), jax.jit(learner.init, static_argnums=0)(DREAMER, jax.random.key(0))
    single, divided = jax.tree.map(jnp.array, (several, several))
    with jax.debug_key_reuse(False):
        rows = []
        for i in range(4):
            one, later = jax.tree.map(lambda x, i=i: x[i], drawn), jax.tree.map(lambda x, i=i: np.roll(x, -i, 0), drawn)
            single, learned = experience.learn(DREAMER, KEY, single, one)
            divided, rest = experience.learn_several(DREAMER, KEY, divided, later, np.int32(1))
            rows.append(learned)
        several, learned = experience.learn_several(DREAMER, KEY, several, drawn, np.int32(4))
    assert experience.learn_several._cache_size() == 1
    assert int(several.step) == 4 and not jax.tree.leaves(rest.latent)[0][1:].any()
    jax.tree.map(np.testing.assert_array_equal, several, divided)
    rows = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    # One by one they are another program, in which XLA may add in another order.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), (several, learned), (single, rows))
