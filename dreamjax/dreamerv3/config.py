"""Settings of DreamerV3, with the published values as defaults.

Source: Hafner et al. 2023, tables 4 and W.1, and the published code, which is followed where the two differ: it has
max-pooling encoders, upsampling decoders and no uniform mixture in a discrete actor.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from dreamjax.optim import LaPropConfig


@dataclass(frozen=True)
class RSSMConfig:
    """The recurrent state-space model."""

    deter: int = 8192  # D, size of the recurrent state
    hidden: int = 1024  # units of hidden layers
    stoch: int = 32  # S, number of categorical latents
    classes: int = 64  # K, of each latent
    blocks: int = 8  # of the block-diagonal recurrent layers
    prior_layers: int = 2
    posterior_layers: int = 1
    unimix: float = 0.01  # share of a uniform distribution mixed into every latent; 0 switches it off

    def __post_init__(self) -> None:
        layers = self.prior_layers, self.posterior_layers
        if min(self.deter, self.hidden, self.stoch, self.classes, self.blocks, *layers) < 1:
            raise ValueError(f"every size of the RSSM must be positive, got {self}")
        if self.classes > 256:
            raise ValueError(f"classes must be at most 256, as the replay keeps them as bytes; got {self.classes}")
        if self.deter % self.blocks:
            raise ValueError(f"blocks must divide deter, got {self.blocks} and {self.deter}")
        if not 0 <= self.unimix < 1:
            raise ValueError(f"unimix must lie in [0, 1), got {self.unimix}")


@dataclass(frozen=True)
class CodecConfig:
    """Encoder and decoder of observations."""

    depth: int = 64  # channels of a stage whose multiplier is 1
    multipliers: tuple[int, ...] = (2, 3, 4, 4)
    kernel: int = 5  # width of the convolutions
    encoder_layers: int = 3  # of the vector branch
    decoder_layers: int = 3
    units: int = 1024
    blocks: int = 8  # of the decoder's first layer
    symlog: bool = True  # read and predict the symlog of continuous vectors; off: the vectors as they are

    def __post_init__(self) -> None:
        layers = self.encoder_layers, self.decoder_layers
        if min(self.depth, self.kernel, self.units, self.blocks, *layers, *self.multipliers) < 1:
            raise ValueError(f"every size of the codec must be positive, got {self}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, so that a convolution keeps the size; got {self.kernel}")


@dataclass(frozen=True)
class HeadsConfig:
    """Networks of reward, continue, actor and critic."""

    units: int = 1024
    bins: int = 255  # of the two-hot distributions
    reward_layers: int = 1
    continue_layers: int = 1
    policy_layers: int = 3
    value_layers: int = 3
    twohot: bool = True  # off: reward and value are regressed with squared error in symlog space
    huber: bool = False  # without `twohot`: regressed as they are, with the pseudo-Huber loss
    zero_init: bool = True  # predicted rewards and values are exactly zero at first
    min_std: float = 0.1  # of a continuous action
    max_std: float = 1.0
    policy_unimix: float = 0.0  # of a discrete action; the paper has 0.01, the published code ignores its setting

    def __post_init__(self) -> None:
        layers = self.reward_layers, self.continue_layers, self.policy_layers, self.value_layers
        if min(self.units, *layers) < 1 or self.bins < 2:
            raise ValueError(f"the heads need sizes of at least 1, and 2 bins, got {self}")
        if self.huber and self.twohot:
            raise ValueError("huber replaces the two-hot distribution: set twohot to False with it")
        if not 0 < self.min_std < self.max_std:
            raise ValueError(f"need 0 < min_std < max_std, got {self.min_std} and {self.max_std}")


@dataclass(frozen=True)
class LossConfig:
    """Scales of all losses, and settings of the world model's."""

    reconstruction: float = 1.0
    reward: float = 1.0
    continues: float = 1.0
    dynamics: float = 1.0  # KL that trains the prior
    representation: float = 0.1  # KL that trains the posterior
    policy: float = 1.0
    value: float = 1.0
    replay_value: float = 0.3  # 0 switches it off
    free_nats: float = 1.0  # below this KL, neither KL loss has a gradient; 0 switches it off
    kl_balance: bool = True  # off: one KL loss trains both sides alike, at the scale `dynamics`
    reconstruction_gradient: bool = True  # off: the decoder's gradient stops at the latent states
    reward_value_gradient: bool = True  # off: so do those of reward, continue and replayed value


@dataclass(frozen=True)
class BehaviourConfig:
    """Imagination, and how actor and critic learn from it. Entropy and discount are traced: see `learner.Hyper`."""

    horizon: int = 15  # H, imagined steps
    discount_horizon: float = 333.0  # steps; the discount is 1 - 1 / discount_horizon
    mix: float = 0.95  # lambda of the returns
    entropy: float = 3e-4  # scale of the actor's entropy
    normalize_returns: bool = True
    normalize_advantages: bool = False  # to mean 0 and standard deviation 1 over all imagined steps of an update
    return_rate: float = 0.01  # of the running percentiles
    return_low: float = 5.0  # percentile, in per cent
    return_high: float = 95.0
    return_limit: float = 1.0  # smallest range that returns are divided by
    slow_rate: float = 0.02  # at which the slow critic moves towards the critic, per update
    slow_regularizer: float = 1.0  # scale at which the critic is regularised towards the slow one; 0 switches it off

    @property
    def discount(self) -> float:
        return 1.0 - 1.0 / self.discount_horizon

    def __post_init__(self) -> None:
        if self.horizon < 1 or self.discount_horizon <= 1 or not 0 <= self.mix <= 1:
            raise ValueError(f"need horizon >= 1, discount_horizon > 1 and mix in [0, 1], got {self}")


@dataclass(frozen=True)
class DreamerConfig:
    """World model, actor, critic and their training."""

    rssm: RSSMConfig = field(default_factory=RSSMConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    heads: HeadsConfig = field(default_factory=HeadsConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    behaviour: BehaviourConfig = field(default_factory=BehaviourConfig)
    optimizer: LaPropConfig = field(default_factory=LaPropConfig)
    compute_dtype: str = "bfloat16"  # of activations; parameters, norms, losses and returns are float32
    rematerialize: bool = False  # compute encoder, decoder, actor and critic again for the gradient, to save memory
    context: int = 1  # replayed steps before the trained ones; training starts from the stored latent of the last

    def __post_init__(self) -> None:
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"compute_dtype must be 'float32' or 'bfloat16', got {self.compute_dtype!r}")
        if self.context < 0:
            raise ValueError(f"context must be 0 or more steps, got {self.context}")


def sized(width: int, base: DreamerConfig | None = None) -> DreamerConfig:
    """Scale every layer by one number, the width of the MLPs. Source: Hafner et al. 2023, table 3."""
    base = base or DreamerConfig()
    return replace(
        base,
        rssm=replace(base.rssm, deter=8 * width, hidden=width, classes=width // 16),
        codec=replace(base.codec, depth=width // 16, units=width),
        heads=replace(base.heads, units=width),
    )


def debug(base: DreamerConfig | None = None) -> DreamerConfig:
    """Scale every layer down to try the code, not to learn, as the published preset of this name does."""
    base = base or DreamerConfig()
    return replace(
        base,
        rssm=replace(base.rssm, deter=8, hidden=4, stoch=2, classes=4, blocks=4),
        codec=replace(base.codec, depth=2, units=8, encoder_layers=1, decoder_layers=1),
        heads=replace(base.heads, units=8, bins=5, policy_layers=1, value_layers=1),
    )


def tiny() -> DreamerConfig:
    """Return a configuration of a few dozen units that learns small problems, with settings that suit them.

    It learns `envs.probes.counter` in 600 updates, with each of three seeds, and is that of the agent in
    experiments/results/dreamerv3_jax_catch, which catches 97 of 100 balls after 6,536 steps.
    """
    base = DreamerConfig()
    return replace(
        base,
        rssm=replace(base.rssm, deter=64, hidden=32, stoch=8, classes=8, blocks=4),
        codec=replace(base.codec, depth=4, units=32, encoder_layers=1, decoder_layers=1, blocks=4),
        heads=replace(base.heads, units=32),
        behaviour=replace(base.behaviour, horizon=7, entropy=0.03),
        optimizer=replace(base.optimizer, learning_rate=1e-3, warmup=50),
        compute_dtype="float32",
    )


Size = Literal["custom", "debug", "1m", "12m", "25m", "50m", "100m", "200m", "400m"]
WIDTHS = {"1m": 64, "12m": 256, "25m": 384, "50m": 512, "100m": 768, "200m": 1024, "400m": 1536}
SIZES = {name: sized(width) for name, width in WIDTHS.items()}


def scaled(agent: DreamerConfig, size: Size) -> DreamerConfig:
    """Set the sizes of all layers to those of a preset; "custom" leaves them as they are."""
    if size == "custom":
        return agent
    return debug(agent) if size == "debug" else sized(WIDTHS[size], agent)
