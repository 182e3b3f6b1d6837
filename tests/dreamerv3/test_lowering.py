"""Updating and acting lower for accelerators that are not here, in both precisions, and every size can be traced."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.dreamerv3 import experience, learner
from dreamjax.dreamerv3.config import SIZES, debug
from dreamjax.dreamerv3.experience import Experience
from dreamjax.dreamerv3.model import Dreamer
from dreamjax.types import EnvSpec, Space

OBSERVATION = {
    "image": Space((64, 64, 3), np.uint8, 0, 256),
    "vector": Space((5,)),
    "token": Space((), np.int32, 0, 3),
}
ACTION = {"steer": Space((2,), np.float32, -1, 1), "press": Space((), np.int32, 0, 4)}
KEY = jax.eval_shape(lambda: jax.random.key(0))


def dreamer_of(cfg, dtype: str = "float32") -> Dreamer:
    return Dreamer.of(replace(cfg, compute_dtype=dtype), EnvSpec(OBSERVATION, ACTION, 1))


def lead(tree, *shape: int):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*shape, *x.shape), x.dtype), tree)


def updating(dreamer: Dreamer):
    state = jax.eval_shape(partial(learner.init, dreamer), KEY)
    return partial(experience.learn, dreamer), (KEY, state, lead(experience.example(dreamer), 2, 5))


def acting(dreamer: Dreamer):
    params = jax.eval_shape(partial(learner.init, dreamer), KEY).params
    memory = jax.eval_shape(lambda: experience.start(dreamer, 3))
    example: Experience = lead(experience.example(dreamer), 3)
    return partial(experience.act, dreamer), (params, KEY, memory, example.step)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("program", [updating, acting])
def test_programs_lower_for_accelerators_and_never_call_back(program, dtype: str, platform: str):
    function, arguments = program(dreamer_of(debug(), dtype))
    text = jax.export.export(jax.jit(function), platforms=[platform])(*arguments).mlir_module()
    assert "func.func public @main" in text
    assert "callback" not in text
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line and "f64" in line]
    assert not products
    if dtype == "bfloat16":
        wide = [line for line in text.splitlines() if "stablehlo.convolution" in line and "xf32>" in line]
        assert not wide


@pytest.mark.parametrize("size", SIZES)
def test_every_size_can_be_traced(size: str):
    dreamer = dreamer_of(SIZES[size], "bfloat16")
    function, arguments = updating(dreamer)
    state, learned = jax.eval_shape(function, *arguments)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(lambda x: (x.shape, x.dtype), arguments[1])
    assert learned.latent.deter.shape == (2, 4, dreamer.cfg.rssm.deter)
    assert learned.priority.dtype == jnp.float32
    function, arguments = acting(dreamer)
    memory, _ = jax.eval_shape(function, *arguments)
    assert memory.action["steer"].shape == (3, 2)
