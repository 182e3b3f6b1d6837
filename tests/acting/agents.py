"""A small agent that sees, remembers, draws and moves to all sides, so that no part of an episode goes wrong unseen."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamjax.types import Agent, AgentParams, Array, EnvSpec, LatentModel, Outcome, Policy, Space

SPEC = EnvSpec(Space((64, 64, 3), jnp.uint8, 0, 256), Space((), jnp.float32, -1.0, 1.0), max_steps=100)
KEY = jax.random.key(6)


class Latent(NamedTuple):
    """What the model of the agent remembers."""

    memory: Array  # [3]
    seen: Array  # [3]


def _observe(params, key, state, action, embedding, is_first):
    memory = jnp.where(is_first, 0.0, 0.9 * state.memory + action)
    return Latent(memory + 0.3 * jax.random.normal(key, (3,)), embedding)


MODEL = LatentModel(
    init=lambda key: {"kernel": jax.random.normal(key, (6, 3))},
    start=lambda params: Latent(jnp.zeros(3), jnp.zeros(3)),
    encode=lambda params, picture: (picture[0, :2].reshape(6) / 128.0 - 1.0) @ params["kernel"],
    observe=_observe,
    imagine=lambda params, key, state, action, temperature: state,
    features=lambda state: jnp.concatenate(state),
    outcome=lambda params, state: Outcome(jnp.float32(0), jnp.float32(1)),
    decode=lambda params, state: jnp.zeros((64, 64, 3), jnp.uint8),
    spec=SPEC,
)
POLICY = Policy(
    init=lambda key: {"kernel": jax.random.normal(key, (6,)), "bias": jnp.float32(0.1)},
    act=lambda params, key, features: 1.2 * jnp.tanh(features @ params["kernel"] + params["bias"]),  # beyond its bounds
)
AGENT = Agent(MODEL, POLICY)
PARAMS = AgentParams(MODEL.init(jax.random.key(0)), jax.vmap(POLICY.init)(jax.random.split(jax.random.key(1))))
ONE = AgentParams(PARAMS.model, jax.tree.map(lambda leaf: leaf[1], PARAMS.policy))  # the second policy, not stacked
