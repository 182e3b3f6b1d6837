"""Random play, which is an agent: the policies that World Models collects with.

Source: Ha & Schmidhuber 2018, section 4 and appendix A, and the published code.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreamjax import rollout
from dreamjax.types import Action, Agent, AgentParams, Array, EnvSpec, Key, Params, RecurrentPolicy, State

PARAMS = AgentParams((), ())  # of an agent that plays at random: none
HOLD = 10  # frames for which an action is held, at the longest


class Held(NamedTuple):
    """What a policy that holds its actions remembers."""

    frame: Array  # [] int32, of the episode
    hold: Array  # [] int32
    longest: Array  # [] int32, hold of this episode
    action: Array  # [] float32


def held(longest: int = HOLD, sometimes: int | None = None) -> RecurrentPolicy:
    """Hold an action a ~ U(-1, 1): on every frame whose number is divisible by r, both a and r ~ U{1, ..., longest}
    are drawn anew, which is not quite the same as holding for r frames. The published policy in Doom, with 10.

    `sometimes` is the longest hold of every other episode, on average. Longer holds reach the walls of Take Cover's
    room more often: a controller evolved in the dream of a model without them was seen to walk to a wall, survive there
    in the dream, and die there in the game.
    """

    def start(params: Params) -> Held:
        del params
        return Held(jnp.int32(0), jnp.int32(1), jnp.int32(longest), jnp.float32(0))

    def act(params: Params, key: Key, memory: Held, features: Array) -> tuple[State, Action]:
        del params, features
        key_action, key_hold, key_longest = jax.random.split(key, 3)
        if sometimes is not None:
            drawn = jnp.where(jax.random.bernoulli(key_longest), sometimes, longest)
            memory = memory._replace(longest=jnp.where(memory.frame == 0, drawn, memory.longest))
        is_due = memory.frame % memory.hold == 0
        action = jnp.where(is_due, jax.random.uniform(key_action, minval=-1.0), memory.action)
        hold = jnp.where(is_due, jax.random.randint(key_hold, (), 1, memory.longest + 1), memory.hold)
        return Held(memory.frame + 1, hold, memory.longest, action), action

    return RecurrentPolicy(lambda key: (), start, act)


class Network(NamedTuple):
    """The random network that drives an episode."""

    is_new: Array  # [] bool, not yet drawn
    kernel: Array  # [32, 3]
    bias: Array  # [3]


def network() -> RecurrentPolicy:
    """Drive with a random network, the published policy in CarRacing: steering, gas and brake.

    A whole agent with random weights drives: Cauchy-distributed, and scaled for each episode by s ~ U(0, 0.01) in C
    and by a ten-thousandth of that in V and M. So V says next to nothing, which makes z ~ N(0, I), and M's output is
    next to zero; what is left is C's bias and its weights on 32 such latents. Gas stays about one half, steering and
    braking are noise; uniform actions would brake half of the time and hardly move.
    """

    def start(params: Params) -> Network:
        del params
        return Network(jnp.array(True), jnp.zeros((32, 3)), jnp.zeros(3))

    def act(params: Params, key: Key, memory: Network, features: Array) -> tuple[State, Action]:
        del params, features
        key_scale, key_kernel, key_bias, key_latent = jax.random.split(key, 4)
        scale = 0.01 * jax.random.uniform(key_scale)
        kernel, bias = scale * jax.random.cauchy(key_kernel, (32, 3)), scale * jax.random.cauchy(key_bias, (3,))
        kernel = jnp.where(memory.is_new, kernel, memory.kernel)
        bias = jnp.where(memory.is_new, bias, memory.bias)
        steer, gas, brake = jnp.tanh(jax.random.normal(key_latent, (32,)) @ kernel + bias)
        action = jnp.stack([steer, (gas + 1) / 2, jnp.clip(brake, 0, 1)])
        return Network(jnp.array(False), kernel, bias), action

    return RecurrentPolicy(lambda key: (), start, act)


POLICIES = {  # by name, for configurations; one object each, so that programs are compiled once
    "held": held(),
    "wandering": held(HOLD, 4 * HOLD),
    "network": network(),
}


def random_agent(spec: EnvSpec, policy: str = "uniform") -> Agent:
    """Return an agent that acts at random, with parameters `PARAMS`: uniformly, or by the name of a policy above."""
    agent = rollout.random_agent(spec)
    return agent if policy == "uniform" else Agent(agent.model, POLICIES[policy])
