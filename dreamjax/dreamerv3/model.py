"""The world model, actor and critic of one environment, and the agent that they make.

Source: Hafner et al. 2023.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from dreamjax.distributions import symexp
from dreamjax.dreamerv3 import actor_critic, codec, heads, rssm
from dreamjax.dreamerv3.actor_critic import ActorCritic
from dreamjax.dreamerv3.codec import Decoder, Encoder, Spaces, leaves_by_name
from dreamjax.dreamerv3.config import DreamerConfig
from dreamjax.dreamerv3.heads import ContinueHead, ScalarHead
from dreamjax.dreamerv3.rssm import RSSMState
from dreamjax.types import (
    Action,
    Agent,
    AgentParams,
    Array,
    EnvSpec,
    Key,
    LatentModel,
    Outcome,
    Params,
    PyTree,
)


class ModelParams(NamedTuple):
    """Parameters of the world model, named as in the published code."""

    enc: Params  # encoder
    dyn: Params  # RSSM
    dec: Params  # decoder
    rew: Params  # reward head
    con: Params  # continue head


class DreamerParams(NamedTuple):
    """Everything that gradients train."""

    model: ModelParams
    policy: Params  # actor
    value: Params  # critic


@dataclass(frozen=True)
class Dreamer:
    """A configuration for the spaces of one environment. Hashable: jitted functions take it as static.

    Observations and actions are pytrees outside. Inside, their leaves are named by their paths, as `leaves_by_name`
    says; a lone space is named "observation" or "action", as in the published code.
    """

    cfg: DreamerConfig
    observation: Spaces
    action: Spaces
    structures: tuple[Any, Any]  # `jax.tree.structure` of observation and action
    max_steps: int

    @classmethod
    def of(cls, cfg: DreamerConfig, spec: EnvSpec) -> "Dreamer":
        """Bind a configuration to an environment.

        Raises: ValueError, naming the space, where an observation cannot be read or an action cannot be chosen.
        """
        observation = tuple(leaves_by_name(spec.observation, "observation").items())
        action = tuple(leaves_by_name(spec.action, "action").items())
        codec.check_observations(observation)
        actor_critic.check_actions(action)
        structures = jax.tree.structure(spec.observation), jax.tree.structure(spec.action)
        return cls(cfg, observation, action, structures, spec.max_steps)

    @property
    def spec(self) -> EnvSpec:
        """What the environment emits and takes, as it was given to `of`."""
        spaces = self.observation_as_tree(dict(self.observation)), self.action_as_tree(dict(self.action))
        return EnvSpec(*spaces, self.max_steps)

    def observation_by_name(self, observation: PyTree) -> dict[str, Any]:
        """Name the leaves of an observation. Raises ValueError if they are not those of the spec."""
        return _by_name(observation, "observation", self.observation)

    def action_by_name(self, action: Action) -> dict[str, Any]:
        """Name the leaves of an action. Raises ValueError if they are not those of the spec."""
        return _by_name(action, "action", self.action)

    def observation_as_tree(self, leaves: dict[str, Any]) -> PyTree:
        """Undo `observation_by_name`."""
        return jax.tree.unflatten(self.structures[0], [leaves[name] for name, _ in self.observation])

    def action_as_tree(self, leaves: dict[str, Any]) -> Action:
        """Undo `action_by_name`."""
        return jax.tree.unflatten(self.structures[1], [leaves[name] for name, _ in self.action])

    @cached_property
    def encoder(self) -> Encoder:
        module = nn.remat(Encoder) if self.cfg.rematerialize else Encoder
        return module(self.cfg.codec, self.observation, self.cfg.compute_dtype)

    @cached_property
    def decoder(self) -> Decoder:
        return (nn.remat(Decoder) if self.cfg.rematerialize else Decoder)(self.cfg.codec, self.observation)

    @cached_property
    def reward(self) -> ScalarHead:
        return ScalarHead(self.cfg.heads, self.cfg.heads.reward_layers)

    @cached_property
    def continues(self) -> ContinueHead:
        return ContinueHead(self.cfg.heads)

    @cached_property
    def actor_critic(self) -> ActorCritic:
        return ActorCritic(self.cfg.behaviour, self.cfg.heads, self.action, self.cfg.rematerialize)


def _by_name(tree: PyTree, kind: str, spaces: Spaces) -> dict[str, Any]:
    leaves, wanted = leaves_by_name(tree, kind), [name for name, _ in spaces]
    if leaves.keys() != set(wanted):
        raise ValueError(f"expected an {kind} with the leaves {wanted}, got {list(leaves)}")
    return leaves


@partial(jax.jit, static_argnums=0)
def init(dreamer: Dreamer, key: Key) -> DreamerParams:
    """Draw all parameters, in float32."""
    keys = jax.random.split(key, 7)
    dtype, actors = dreamer.cfg.compute_dtype, dreamer.actor_critic
    observation = {name: jnp.zeros(space.shape, space.dtype) for name, space in dreamer.observation}
    action = {name: jnp.zeros(space.shape, space.dtype) for name, space in dreamer.action}
    flat = codec.flatten_actions(dreamer.action, action, dtype)
    state = rssm.start(dreamer.cfg.rssm, (), dtype)
    tokens, enc = dreamer.encoder.init_with_output(keys[0], observation)
    features = rssm.features(state)
    model = ModelParams(
        enc["params"],
        rssm.init(dreamer.cfg.rssm, keys[1], flat.shape[-1], tokens.shape[-1]),
        dreamer.decoder.init(keys[2], *state)["params"],
        dreamer.reward.init(keys[3], features)["params"],
        dreamer.continues.init(keys[4], features)["params"],
    )
    policy, value = actors.actor.init(keys[5], features), actors.critic.init(keys[6], features)
    return DreamerParams(model, policy["params"], value["params"])


def agent_params(params: DreamerParams, starts: PyTree = ()) -> AgentParams:
    """Select what an agent acts and dreams with. Shapes: starts [S, E], encoded first observations."""
    return AgentParams(params.model, params.policy, starts)


def make(cfg: DreamerConfig, spec: EnvSpec) -> Agent:
    """Make the agent for an environment; equal arguments give the same agent, so that compiled programs are found.

    Its model takes `ModelParams`, its policy `DreamerParams.policy`: see `agent_params`. The policy samples, in
    evaluation too, as published. The temperature of a dream divides the logits of the prior.

    Raises: ValueError, naming the space, where an observation cannot be read or an action cannot be chosen.
    """
    return agent(Dreamer.of(cfg, spec))


@lru_cache(maxsize=128)
def agent(dreamer: Dreamer) -> Agent:
    """Make the agent that `dreamer` describes, always the same one: see `make`. All layers take leading axes."""
    policy = actor_critic.policy(dreamer.actor_critic, dreamer.structures[1], lambda key: init(dreamer, key).policy)
    return Agent(_latent_model(dreamer), policy)


def _latent_model(dreamer: Dreamer) -> LatentModel:
    cfg = dreamer.cfg

    def init_model(key: Key) -> ModelParams:
        return init(dreamer, key).model

    def start(params: ModelParams) -> RSSMState:
        del params
        return rssm.start(cfg.rssm, (), cfg.compute_dtype)

    def encode(params: ModelParams, observation: PyTree) -> Array:
        return heads.apply(dreamer.encoder, params.enc, dreamer.observation_by_name(observation))

    def flat(action: Action) -> Array:
        return codec.flatten_actions(dreamer.action, dreamer.action_by_name(action), cfg.compute_dtype)

    def observe(
        params: ModelParams, key: Key, state: RSSMState, action: Action, tokens: Array, is_first: Array
    ) -> RSSMState:
        return rssm.observe(cfg.rssm, params.dyn, key, state, flat(action), tokens, is_first)[0]

    def imagine(
        params: ModelParams, key: Key, state: RSSMState, action: Action, temperature: Array | float
    ) -> RSSMState:
        return rssm.imagine(cfg.rssm, params.dyn, key, state, flat(action), temperature)

    def outcome(params: ModelParams, state: RSSMState) -> Outcome:
        features = rssm.features(state)
        reward = heads.scalar_mean(cfg.heads, heads.apply(dreamer.reward, params.rew, features))
        # The head is trained towards the discount where the episode continues; a dream asks whether it does.
        continues = jax.nn.sigmoid(heads.apply(dreamer.continues, params.con, features)) / cfg.behaviour.discount
        return Outcome(reward, jnp.minimum(continues, 1.0))

    def decode(params: ModelParams, state: RSSMState) -> PyTree:
        pictures, vectors, logits = heads.apply(dreamer.decoder, params.dec, *state)
        spaces = dict(dreamer.observation)
        leaves = {name: jnp.round(255.0 * x.astype(jnp.float32)).astype(jnp.uint8) for name, x in pictures.items()}
        leaves |= {name: symexp(x.astype(jnp.float32)) if cfg.codec.symlog else x for name, x in vectors.items()}
        leaves |= {
            name: (x.argmax(-1) + int(spaces[name].low)).astype(spaces[name].dtype) for name, x in logits.items()
        }
        return dreamer.observation_as_tree(leaves)

    return LatentModel(init_model, start, encode, observe, imagine, rssm.features, outcome, decode, dreamer.spec)
