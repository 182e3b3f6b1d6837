"""How far the next picture is from the one that a model expects: one number, to compare models with."""

from functools import partial

import jax
import jax.numpy as jnp

from dreamjax import dream, rollout
from dreamjax.rollout import Transition
from dreamjax.types import Agent, AgentParams, Array, Key


@partial(jax.jit, static_argnames=("agent", "name"))
def one_step_error(agent: Agent, params: AgentParams, keys: Key, recorded: Transition, name: str, mask: Array) -> Array:
    """Return how far the next picture is from the one expected: squared, summed over it, averaged over `mask`.

    The likeliest next latent is decoded. This is twice the negative log likelihood of a Gaussian of deviation 1 around
    the expected picture, up to a constant, so that models with different latents can be compared.

    Shapes: keys [2], to observe and to imagine; recorded [E, T, ...], whose observation `name` is uint8 pictures;
    mask [E, T - 1] bool, which of the predicted steps count -> [] float32.
    """
    model, pictures = agent.model, recorded.step.observation[name]
    episodes, length = pictures.shape[:2]

    def expect(key_observe: Key, key_imagine: Key, episode: Transition) -> Array:
        begin = rollout.start(agent, params)
        states = dream.open_loop(model, params.model, key_observe, begin, episode, length)
        imagine = jax.vmap(model.imagine, (None, 0, 0, 0, None))
        following = imagine(params.model, jax.random.split(key_imagine, length), states, episode.action, 0.01)
        return jax.vmap(partial(model.decode, params.model))(following)[name][:-1]

    each = [jax.random.split(key, episodes) for key in keys]
    expected = jax.lax.map(lambda data: expect(*data), (*each, recorded))
    truth = pictures[:, 1:].astype(jnp.float32)
    error = jnp.square((truth - expected.astype(jnp.float32)) / 255).sum((2, 3, 4))
    return (error * mask).sum() / mask.sum()
