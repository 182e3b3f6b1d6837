"""The programs lower for accelerators that are not here, and each platform gets the convolutions that suit it."""

import re
from collections import Counter
from functools import cache, partial

import jax
import jax.numpy as jnp
import pytest

from dreamjax import dream, rollout
from dreamjax.envs.probes import dodge
from dreamjax.replay.latents import Chunk
from dreamjax.types import AgentParams
from dreamjax.worldmodels import learner, model
from dreamjax.worldmodels.learner import MemoryLearner, VisionLearner
from dreamjax.worldmodels.memory import MemoryConfig
from dreamjax.worldmodels.model import WorldModelConfig
from dreamjax.worldmodels.vision import VisionConfig

WORLD = WorldModelConfig(VisionConfig(latent_size=4), MemoryConfig(latent_size=4, hidden_size=5, mixtures=2))
GAME = dodge(observation="pixels")
AGENT = model.make(WORLD, GAME.spec)
KEY = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
B, T = 2, 3


def array(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def vision_step():
    vision = VisionLearner(WORLD.vision)
    state = jax.eval_shape(partial(learner.init, vision), KEY)
    return partial(learner.train_step, vision), (KEY, state, array(B, 64, 64, 3, dtype=jnp.uint8))


def memory_step():
    memory = MemoryLearner(WORLD.memory, streams=B)
    state = jax.eval_shape(partial(learner.init, memory), KEY)
    latent = array(T + 1, B, 4, dtype=jnp.float16)
    flags = (array(T + 1, B, dtype=jnp.bool_), array(dtype=jnp.bool_))
    return partial(learner.train_step, memory), (
        KEY,
        state,
        Chunk(latent, latent, array(T + 1, B, dtype=jnp.float16), array(T + 1, B), flags[0], flags[0], *flags),
    )


def dream_returns():
    params, policy = jax.eval_shape(AGENT.model.init, KEY), jax.eval_shape(AGENT.policy.init, KEY)
    population = jax.tree.map(lambda leaf: array(3, *leaf.shape), policy)
    starts, keys = (array(5, 4), array(5, 4)), jax.ShapeDtypeStruct((2,), KEY.dtype)
    return partial(dream.returns, AGENT), (AgentParams(params, population, starts), keys, array())


def real_rollout():
    """The environment, V, M and C in one program."""

    def play(model_params, params, key):
        return rollout.unroll(GAME, rollout.step_policy(AGENT, model_params), params, key, T)[1]

    return play, (jax.eval_shape(AGENT.model.init, KEY), jax.eval_shape(AGENT.policy.init, KEY), KEY)


PROGRAMS = {"vision_step": vision_step, "memory_step": memory_step, "returns": dream_returns, "rollout": real_rollout}


@cache
def lowered(program: str, platform: str) -> str:
    """StableHLO of a program, made here for a platform that need not be here."""
    function, arguments = PROGRAMS[program]()
    exported = jax.export.export(jax.jit(function), platforms=[platform])(*arguments)
    assert exported.platforms == (platform,)
    return exported.mlir_module()


def convolutions(text: str) -> Counter:
    """Kinds of the convolutions: strided, with holes in the input, with holes in the kernel, or plain."""
    kinds = {"stride": "strided", "lhs_dilate": "input holes", "rhs_dilate": "kernel holes"}
    found = Counter()
    for window in re.findall(r"stablehlo\.convolution.*?window = \{(.*?)\}", text):
        named = [kind for name, kind in kinds.items() if re.search(rf"\b{name} = \[2, 2\]", window)]
        found[" and ".join(named) or "plain"] += 1
    assert found.total() == text.count("stablehlo.convolution")
    return found


@pytest.mark.parametrize("platform", ["cuda", "tpu", "cpu"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_lower_for_every_platform_and_never_call_back(program, platform):
    text = lowered(program, platform)
    assert "func.func public @main" in text and "callback" not in text


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_run_the_native_convolutions(platform):
    """V has four layers down and four up. The way up is the transpose of a way down, and so are all gradients."""
    down = up = 4
    assert convolutions(lowered("vision_step", platform)) == {
        "strided": down + up,  # the layers down; the gradients of the inputs of the layers up
        "input holes": up + down - 1,  # the layers up; the gradients of the inputs of all layers down but the first
        "kernel holes": down + up,  # the gradients of the kernels
    }
    assert convolutions(lowered("rollout", platform)) == {"strided": down}


def test_cpus_run_no_convolution_with_holes():
    for program in ("vision_step", "rollout"):
        found = convolutions(lowered(program, "cpu"))
        assert set(found) == {"strided", "plain"}
