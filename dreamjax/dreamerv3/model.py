"""The world model and the actor together: a configuration bound to the spaces of an environment.

Source: Hafner et al. 2023.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from dreamjax.distributions import symexp
from dreamjax.dreamerv3 import heads, rssm
from dreamjax.dreamerv3.codec import Decoder, Encoder, Spaces, named
from dreamjax.dreamerv3.config import DreamerConfig
from dreamjax.dreamerv3.heads import Actor, ContinueHead, ScalarHead
from dreamjax.dreamerv3.rssm import RSSMState
from dreamjax.types import Action, Array, EnvSpec, Key, LatentModel, Outcome, Params, Policy, PyTree


class DreamerParams(NamedTuple):
    """All that gradients train, named as in the published code."""

    enc: Params
    dyn: Params
    dec: Params
    rew: Params
    con: Params
    pol: Params
    val: Params


@dataclass(frozen=True)
class Dreamer:
    """A configuration, and the named spaces of one environment. Hashable: jitted functions take it as static."""

    cfg: DreamerConfig
    observation: Spaces
    action: Spaces

    @classmethod
    def of(cls, cfg: DreamerConfig, observation: PyTree, action: PyTree) -> "Dreamer":
        """Bind to spaces: mappings from name to `Space`, or one `Space`. Raises ValueError for what cannot be used."""
        return cls(cfg, named(by_name(observation, "observation")), heads.check_actions(by_name(action, "action")))

    @cached_property
    def encoder(self) -> Encoder:
        return self._kept(Encoder)(self.cfg.codec, self.observation, self.cfg.compute_dtype)

    @cached_property
    def decoder(self) -> Decoder:
        return self._kept(Decoder)(self.cfg.codec, self.observation)

    @cached_property
    def reward(self) -> ScalarHead:
        return ScalarHead(self.cfg.heads, self.cfg.heads.reward_layers)

    @cached_property
    def continues(self) -> ContinueHead:
        return ContinueHead(self.cfg.heads)

    @cached_property
    def actor(self) -> Actor:
        return self._kept(Actor)(self.cfg.heads, self.action)

    @cached_property
    def critic(self) -> ScalarHead:
        return self._kept(ScalarHead)(self.cfg.heads, self.cfg.heads.value_layers)

    def _kept(self, module: Any) -> Any:
        return nn.remat(module) if self.cfg.rematerialize else module


def by_name(tree: PyTree, name: str) -> Mapping[str, Any]:
    """Give a lone space, observation or action its name."""
    return tree if isinstance(tree, Mapping) else {name: tree}


def init(dreamer: Dreamer, key: Key) -> DreamerParams:
    """Draw all parameters."""
    keys = jax.random.split(key, len(DreamerParams._fields))
    dtype = dreamer.cfg.compute_dtype
    observation = {name: jnp.zeros(space.shape, space.dtype) for name, space in dreamer.observation}
    action = {name: jnp.zeros(space.shape, space.dtype) for name, space in dreamer.action}
    flat = heads.flatten_actions(dreamer.action, action, dtype)
    state = rssm.start(dreamer.cfg.rssm, (), dtype)
    tokens, enc = dreamer.encoder.init_with_output(keys[0], observation)
    features = rssm.features(state)
    made = [
        enc,
        {"params": rssm.init(dreamer.cfg.rssm, keys[1], flat.shape[-1], tokens.shape[-1])},
        dreamer.decoder.init(keys[2], *state),
        dreamer.reward.init(keys[3], features),
        dreamer.continues.init(keys[4], features),
        dreamer.actor.init(keys[5], features),
        dreamer.critic.init(keys[6], features),
    ]
    return DreamerParams(*(variables["params"] for variables in made))


def make(dreamer: Dreamer, spec: EnvSpec) -> LatentModel:
    """World model of the environment that `spec` describes. The temperature of a dream divides the prior's logits."""
    cfg = dreamer.cfg

    def start(params: DreamerParams) -> RSSMState:
        del params
        return rssm.start(cfg.rssm, (), cfg.compute_dtype)

    def encode(params: DreamerParams, observation: PyTree) -> Array:
        return heads.apply(dreamer.encoder, params.enc, by_name(observation, "observation"))

    def flat(action: Action) -> Array:
        return heads.flatten_actions(dreamer.action, by_name(action, "action"), cfg.compute_dtype)

    def observe(
        params: DreamerParams, key: Key, state: RSSMState, action: Action, tokens: Array, is_first: Array
    ) -> RSSMState:
        return rssm.observe(cfg.rssm, params.dyn, key, state, flat(action), tokens, is_first)[0]

    def imagine(
        params: DreamerParams, key: Key, state: RSSMState, action: Action, temperature: Array | float
    ) -> RSSMState:
        return rssm.imagine(cfg.rssm, params.dyn, key, state, flat(action), temperature)

    def outcome(params: DreamerParams, state: RSSMState) -> Outcome:
        features = rssm.features(state)
        reward = heads.scalar_mean(cfg.heads, heads.apply(dreamer.reward, params.rew, features))
        # The head was taught 1 - 1/horizon where the episode goes on; a dream asks whether it does.
        continues = jax.nn.sigmoid(heads.apply(dreamer.continues, params.con, features)) / cfg.behaviour.discount
        return Outcome(reward, jnp.minimum(continues, 1.0))

    def decode(params: DreamerParams, state: RSSMState) -> PyTree:
        pictures, vectors, logits = heads.apply(dreamer.decoder, params.dec, *state)
        seen = {name: jnp.round(255.0 * x.astype(jnp.float32)).astype(jnp.uint8) for name, x in pictures.items()}
        seen |= {name: symexp(x.astype(jnp.float32)) if cfg.codec.symlog else x for name, x in vectors.items()}
        spaces = dict(dreamer.observation)
        seen |= {name: (x.argmax(-1) + int(spaces[name].low)).astype(spaces[name].dtype) for name, x in logits.items()}
        return seen if isinstance(spec.observation, Mapping) else seen["observation"]

    return LatentModel(
        lambda key: init(dreamer, key), start, encode, observe, imagine, rssm.features, outcome, decode, spec
    )


def policy(dreamer: Dreamer, spec: EnvSpec) -> Policy:
    """Actor that samples, also when it is evaluated. Its parameters are `DreamerParams.pol`."""

    def init_actor(key: Key) -> Params:
        return init(dreamer, key).pol

    def act(params: Params, key: Key, features: Array) -> Action:
        drawn = heads.sample_actions(key, heads.apply(dreamer.actor, params, features), dreamer.action)
        return drawn if isinstance(spec.action, Mapping) else drawn["action"]

    return Policy(init_actor, act)
