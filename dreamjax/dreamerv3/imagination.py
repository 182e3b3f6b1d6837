"""Actor and critic that learn in the dream of any `LatentModel`, that of World Models' M for example.

`learner` trains them together with an RSSM, as published; here the world model is given, and stays as it is.

Source: Hafner et al. 2023, "Actor critic learning", equations 6 to 13.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dreamjax import checks, dream, optim, returns
from dreamjax.dreamerv3 import actor_critic
from dreamjax.dreamerv3.actor_critic import ActorCritic, Trajectory
from dreamjax.dreamerv3.codec import leaves_by_name
from dreamjax.dreamerv3.config import BehaviourConfig, HeadsConfig
from dreamjax.optim import LaPropConfig
from dreamjax.returns import ReturnRange
from dreamjax.types import Agent, AgentParams, Array, Key, LatentModel, Metrics, Params, State


@dataclass(frozen=True)
class ActorCriticLearner:
    """The world model that is dreamed of, and how actor and critic learn there. Hashable.

    Raises: ValueError, naming the space, for an action that the actor cannot choose.
    """

    model: LatentModel
    behaviour: BehaviourConfig = BehaviourConfig()
    heads: HeadsConfig = HeadsConfig()
    optimizer: LaPropConfig = LaPropConfig()

    def __post_init__(self) -> None:
        actor_critic.check_actions(self.actor_critic.action)

    @cached_property
    def actor_critic(self) -> ActorCritic:
        action = leaves_by_name(self.model.spec.action, "action")
        return ActorCritic(self.behaviour, self.heads, tuple(action.items()))


class TrainState(NamedTuple):
    """What training carries."""

    step: Array  # [] int32, updates so far
    policy: Params  # of the actor
    value: Params  # of the critic
    slow: Params  # moving average of the critic's parameters
    opt_state: optax.OptState
    range: ReturnRange  # of imagined returns


@lru_cache(maxsize=128)
def agent(learner: ActorCriticLearner) -> Agent:
    """Make the agent of the world model and the actor; its policy takes `TrainState.policy`.

    Equal arguments give the same agent. The policy samples.
    """
    model, actors = learner.model, learner.actor_critic

    def init_actor(key: Key) -> Params:
        return actors.actor.init(key, _features(model))["params"]

    return Agent(model, actor_critic.policy(actors, jax.tree.structure(model.spec.action), init_actor))


def _features(model: LatentModel) -> Array:
    like = jax.eval_shape(lambda key: model.features(model.start(model.init(key))), jax.random.key(0))
    return jnp.zeros(like.shape, like.dtype)


@checks.arguments
def init(learner: ActorCriticLearner, key: Key) -> TrainState:
    """Start training. Shapes: as in `TrainState`."""
    key_policy, key_value = jax.random.split(key)
    policy = agent(learner).policy.init(key_policy)
    value = learner.actor_critic.critic.init(key_value, _features(learner.model))["params"]
    opt_state = optim.laprop(learner.optimizer).init((policy, value))
    # A copy of the critic, as the state is donated.
    return TrainState(jnp.int32(0), policy, value, jax.tree.map(jnp.array, value), opt_state, returns.range_init())


@checks.arguments
def trajectory(
    agent: Agent,
    params: AgentParams,
    key: Key,
    starts: State,
    horizon: int,
    discount: Array | float,
    temperature: Array | float = 1.0,
) -> Trajectory:
    """Dream from N latent states, and predict the rewards and whether the episodes go on, by `model.outcome`.

    Shapes: starts [N, ...] -> as in `Trajectory`, time first.
    """
    model, keys = agent.model, jax.random.split(key, len(jax.tree.leaves(starts)[0]))
    imagine = lambda key, state: dream.imagine(agent, params, key, state, horizon, temperature)  # noqa: E731
    states, actions = jax.vmap(imagine, out_axes=1)(keys, starts)
    reward, continues = jax.vmap(jax.vmap(partial(model.outcome, params.model)))(states)
    features = jax.vmap(jax.vmap(model.features))(states)
    return Trajectory(features, leaves_by_name(actions, "action"), reward, discount * continues)


@checks.arguments
@partial(jax.jit, static_argnums=0, donate_argnums=3)
def train_step(
    learner: ActorCriticLearner,
    params: Params,
    key: Key,
    state: TrainState,
    starts: State,
    temperature: Array | float = 1.0,
) -> tuple[TrainState, Metrics]:
    """Update actor and critic on dreams from N latent states of a world model with parameters `params`.

    The starts are where a real episode may stand: what filtering recorded ones gives, or the posterior of first
    observations. The same key may be passed at every step; `state` is donated. An update that is not finite, as where
    the model predicts a reward that is not, changes nothing but the number of the step; the metric `skipped` counts
    these since training began.

    Shapes: starts [N, ...].
    """
    actors, settings, made = learner.actor_critic, learner.behaviour, agent(learner)
    dreaming = AgentParams(params, state.policy)
    key = jax.random.fold_in(key, state.step)
    imagined = trajectory(made, dreaming, key, starts, settings.horizon, settings.discount, temperature)

    def loss(learned: tuple[Params, Params]) -> tuple[Array, tuple[ReturnRange, Metrics]]:
        parts = (*learned, state.slow)
        found = actor_critic.imagined_losses(actors, parts, state.range, imagined, settings.entropy)
        losses = {"loss/policy": found.policy_loss.mean(), "loss/value": found.value_loss.mean()}
        losses["loss"] = losses["loss/policy"] + losses["loss/value"]
        return losses["loss"], (found.range, found.metrics | losses)

    learned = state.policy, state.value
    grads, (range_, metrics) = jax.grad(loss, has_aux=True)(learned)
    updates, opt_state = optim.laprop(learner.optimizer).update(grads, state.opt_state, learned)
    policy, value = optax.apply_updates(learned, updates)
    slow = optax.incremental_update(value, state.slow, settings.slow_rate)
    metrics |= {"gradient_norm": optim.global_norm(grads), "update_norm": optim.global_norm(updates)}
    is_finite = jnp.isfinite(metrics["loss"] + metrics["gradient_norm"] + metrics["update_norm"])
    new = TrainState(state.step + 1, policy, value, slow, opt_state, range_)
    state = optim.keep_finite(is_finite, new, state._replace(step=new.step))
    return state, metrics | {"skipped": optim.skipped(state.step, state.opt_state)}
