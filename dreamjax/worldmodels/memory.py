"""M: the recurrent network with a mixture density output that remembers and predicts.

Source: Ha & Schmidhuber 2018, appendix A.2 and A.4, and its published code where the two differ.
"""

from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dreamjax.distributions import MixtureDensity, gaussian_sample, mixture_log_prob
from dreamjax.nets.lstm import LSTM, LSTMState, glorot
from dreamjax.replay.latents import Chunk
from dreamjax.types import Array, Key, Metrics, Params


@dataclass(frozen=True)
class MemoryConfig:
    """What shapes M and its loss.

    The Doom values; CarRacing has 32 latents, 3 actions, 256 units and no done head. What is to be dreamed whole, or
    learned in turns with the controller, predicts reward and action as well (section 5, iterative training).
    """

    latent_size: int = 64
    action_size: int = 1
    hidden_size: int = 512
    mixtures: int = 5
    predict_done: bool = True  # with it M also reads whether the episode has just begun, and predicts its end
    predict_reward: bool = False  # the mean of the next reward
    predict_action: bool = False  # the mean of the action after that, so that M learns the skills of who acted
    done_weight: float = 10.0  # of terminal steps, in the loss of the done head

    def __post_init__(self) -> None:
        if min(self.latent_size, self.action_size, self.hidden_size, self.mixtures) < 1:
            raise ValueError(f"every size of M must be positive, got {self}")

    @property
    def input_size(self) -> int:
        return self.latent_size + self.action_size + self.predict_done

    @property
    def output_sizes(self) -> tuple[int, int, int, int]:
        """Of the mixture density, the done logit, the reward and the action; 0 for what is not predicted."""
        density = 3 * self.mixtures * self.latent_size
        return density, int(self.predict_done), int(self.predict_reward), self.predict_action * self.action_size


class Prediction(NamedTuple):
    """What M predicts of the next step."""

    latent: MixtureDensity  # [..., K, Z] of z_{t+1}
    done: Array  # [...] logit of is_terminal_{t+1}; 0 means undecided, and without the head it is -inf
    reward: Array | None  # [...] mean of r_{t+1}; None without the head
    action: Array | None  # [..., A] mean of a_{t+1}; None without the head


class Network(nn.Module):
    """LSTM and output layer."""

    cfg: MemoryConfig

    def setup(self) -> None:
        """Make the layers."""
        cfg = self.cfg
        self.lstm = LSTM(cfg.hidden_size, cfg.input_size)
        self.output = nn.Dense(sum(cfg.output_sizes), kernel_init=glorot, bias_init=glorot)

    def __call__(self, state: LSTMState, x: Array) -> Prediction:
        """Create every parameter."""
        return self.predict(self.lstm(state, x).h)

    def step(self, state: LSTMState, x: Array) -> LSTMState:
        """One step of the LSTM."""
        return self.lstm(state, x)

    def sequence(self, state: LSTMState, xs: Array, resets: Array) -> tuple[LSTMState, Array]:
        """All steps of the LSTM."""
        return self.lstm.sequence(state, xs, resets)

    def predict(self, h: Array) -> Prediction:
        """Output layer: logits, means and log deviations, each [..., K, Z], then done logit, reward and action."""
        cfg = self.cfg
        ends = list(accumulate(cfg.output_sizes))
        density, done, reward, action = jnp.split(self.output(h), ends[:-1], -1)
        parts = jnp.split(density, 3, -1)
        return Prediction(
            MixtureDensity(*(part.reshape(*h.shape[:-1], cfg.mixtures, -1) for part in parts)),
            done[..., 0] if cfg.predict_done else jnp.full(h.shape[:-1], -jnp.inf),
            reward[..., 0] if cfg.predict_reward else None,
            action if cfg.predict_action else None,
        )


@partial(jax.jit, static_argnums=0)
def init(cfg: MemoryConfig, key: Key) -> Params:
    """Draw M's parameters."""
    return Network(cfg).init(key, start(cfg), jnp.zeros(cfg.input_size))["params"]


def start(cfg: MemoryConfig, batch: tuple[int, ...] = ()) -> LSTMState:
    """State at the beginning of an episode: zero. Shapes: c and h [*batch, H]."""
    return LSTMState(jnp.zeros((*batch, cfg.hidden_size)), jnp.zeros((*batch, cfg.hidden_size)))


def step(cfg: MemoryConfig, params: Params, state: LSTMState, z: Array, action: Array, is_first: Array) -> LSTMState:
    """Advance the recurrent state by one step and the action chosen after it.

    Shapes: state [..., H], z [..., Z], action [..., A], is_first [...] bool -> state [..., H].
    """
    return _apply(cfg, params, "step", state, _inputs(cfg, z, action, is_first))


def predict(cfg: MemoryConfig, params: Params, h: Array) -> Prediction:
    """Predict the next step from the recurrent state. Shapes: h [..., H]."""
    return _apply(cfg, params, "predict", h)


def expect(
    cfg: MemoryConfig, params: Params, key: Key, state: LSTMState, data: Chunk
) -> tuple[LSTMState, Prediction, Array]:
    """Draw the latents of recorded streams, and predict from each step but the last the one after it.

    Shapes: state [B, H], data [T+1, B, ...] -> state [B, H], prediction [T, B, ...], latents [T+1, B, Z].
    """
    state = jax.tree.map(lambda leaf: jnp.where(data.reset, 0.0, leaf), state)
    z = gaussian_sample(key, data.mean.astype(jnp.float32), data.log_variance.astype(jnp.float32))
    xs = _inputs(cfg, z, data.action.astype(jnp.float32), data.is_first)[:-1]
    state, hs = _apply(cfg, params, "sequence", state, xs, data.is_first[:-1])
    return state, predict(cfg, params, hs), z


def loss(
    cfg: MemoryConfig, params: Params, key: Key, state: LSTMState, data: Chunk
) -> tuple[Array, tuple[LSTMState, Metrics]]:
    """Negative log likelihood of the next latent, per dimension, plus the losses of the other heads.

    At input t the targets are z_{t+1}, is_terminal_{t+1} (cross entropy), and r_{t+1} and a_{t+1} (half the squared
    error, as of Gaussians with standard deviation 1). After the last step of an episode comes the first of the next.
    Its latent is a target, as published, but it teaches the other heads nothing, because no action led there; nor is
    there an action to predict at a last step. The loss of each head is a mean over all T x B inputs, in which those
    without a target count as 0, so that a transition weighs the same in whatever chunk it falls.

    Latents are drawn from V's posterior anew at every call, so that M cannot fit V's noise. The state is zero at the
    first step of an episode; the returned state continues the streams and carries no gradient.

    Shapes: state [B, H], data [T+1, B, ...] -> [] nats, (state [B, H], metrics).
    """
    state, prediction, z = expect(cfg, params, key, state, data)
    nll = -mixture_log_prob(prediction.latent, z[1:]).mean()
    metrics = {"nll": nll}
    total = nll
    arrives = ~data.is_first[1:]  # an action led from the input to the target
    if cfg.predict_done:
        done = (data.is_terminal[1:] & arrives).astype(jnp.float32)
        weight = 1.0 + (cfg.done_weight - 1.0) * done
        done_loss = (weight * optax.sigmoid_binary_cross_entropy(prediction.done, done) * arrives).mean()
        predicted = (prediction.done > 0) & arrives
        hits = (predicted * done).sum()
        metrics |= {
            "done_loss": done_loss,
            "done_precision": hits / jnp.maximum(predicted.sum(), 1),
            "done_recall": hits / jnp.maximum(done.sum(), 1),
        }
        total += done_loss
    if prediction.reward is not None:
        metrics["reward_loss"] = 0.5 * (jnp.square(prediction.reward - data.reward[1:]) * arrives).mean()
        total += metrics["reward_loss"]
    if prediction.action is not None:
        error = prediction.action - data.action[1:].reshape(prediction.action.shape)
        acts = arrives & ~data.is_last[1:]
        metrics["action_loss"] = 0.5 * (jnp.square(error).mean(-1) * acts).mean()
        total += metrics["action_loss"]
    metrics |= {"loss": total, "nll_floor": _entropy(data.log_variance[1:]).mean()}
    return total, (jax.lax.stop_gradient(state), metrics)


def surprise(cfg: MemoryConfig, params: Params, key: Key, data: Chunk) -> Array:
    """Return how little M expected each step: its loss, minus the part that V's own noise makes unavoidable.

    Streams begin with the state at zero. 0 is a perfect expectation, up to the noise of the draw.

    Shapes: data [T+1, B, ...] -> [T, B] nats per latent, of every step but the first.
    """
    _, prediction, z = expect(cfg, params, key, start(cfg, data.is_first.shape[1:]), data)
    return -(mixture_log_prob(prediction.latent, z[1:]) + _entropy(data.log_variance[1:])).mean(-1)


def _entropy(log_variance: Array) -> Array:
    """Entropy of V's draw, to which M's loss falls when the next posterior is known exactly."""
    return 0.5 * (jnp.log(2 * jnp.pi) + 1.0 + log_variance.astype(jnp.float32))


def _apply(cfg: MemoryConfig, params: Params, method: str, *args: Any) -> Any:
    return Network(cfg).apply({"params": params}, *args, method=method)


def _inputs(cfg: MemoryConfig, z: Array, action: Array, is_first: Array) -> Array:
    parts = [z, action.reshape(*z.shape[:-1], cfg.action_size)]
    if cfg.predict_done:
        parts.append(is_first[..., None].astype(z.dtype))
    return jnp.concatenate(parts, -1)
