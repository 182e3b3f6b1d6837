"""V: the convolutional variational autoencoder that encodes frames.

Source: Ha & Schmidhuber 2018, appendix A.1, and its published code where the two differ.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dreamjax.distributions import gaussian_kl, gaussian_sample
from dreamjax.nets.conv import Conv, ConvTranspose
from dreamjax.types import Array, Key, Metrics, Params

FRAME = (64, 64, 3)
POSTERIOR = tuple[Array, Array]  # mean [..., Z], log variance [..., Z]


@dataclass(frozen=True)
class VisionConfig:
    """What shapes V and its loss. The Doom values; CarRacing has 32 latents."""

    latent_size: int = 64
    free_nats: float = 0.5  # per latent; the KL of a frame below free_nats * latent_size costs nothing

    def __post_init__(self) -> None:
        if self.latent_size < 1 or self.free_nats < 0:
            raise ValueError(f"latent_size must be positive and free_nats not negative, got {self}")


class Autoencoder(nn.Module):
    """Encoder and decoder, layer for layer as published; takes any leading axes."""

    latent_size: int

    def setup(self) -> None:
        """Make the layers."""
        for i, features in enumerate((32, 64, 128, 256), 1):
            setattr(self, f"enc_conv{i}", Conv(features, 4, 2))
        dense = partial(nn.Dense, kernel_init=nn.initializers.glorot_uniform())
        self.enc_fc_mu = dense(self.latent_size)
        self.enc_fc_log_var = dense(self.latent_size)
        self.dec_fc = dense(1024)
        for i, (features, size) in enumerate(((128, 5), (64, 5), (32, 6), (3, 6)), 1):
            setattr(self, f"dec_deconv{i}", ConvTranspose(features, size, 2))

    def encode(self, x: Array) -> POSTERIOR:
        """Frame in [0, 1] [..., 64, 64, 3] -> mean and log variance [..., Z]."""
        for i in range(1, 5):
            x = nn.relu(getattr(self, f"enc_conv{i}")(x))
        x = x.reshape(*x.shape[:-3], -1)
        return self.enc_fc_mu(x), self.enc_fc_log_var(x)

    def decode(self, z: Array) -> Array:
        """Latent [..., Z] -> frame in (0, 1) [..., 64, 64, 3]."""
        x = self.dec_fc(z)[..., None, None, :]
        for i in range(1, 4):
            x = nn.relu(getattr(self, f"dec_deconv{i}")(x))
        return nn.sigmoid(self.dec_deconv4(x))

    def __call__(self, x: Array) -> Array:
        """Decode the mean of the encoding; creates every parameter."""
        return self.decode(self.encode(x)[0])


@partial(jax.jit, static_argnums=0)
def init(cfg: VisionConfig, key: Key) -> Params:
    """Draw V's parameters."""
    return Autoencoder(cfg.latent_size).init(key, jnp.zeros(FRAME))["params"]


def encode(cfg: VisionConfig, params: Params, frame: Array) -> POSTERIOR:
    """Posterior of z. Shapes: frame uint8 [..., 64, 64, 3] -> mean [..., Z], log variance [..., Z].

    Raises: ValueError for a frame of another shape or dtype.
    """
    return _apply(cfg, params, _to_unit(frame), "encode")


def decode(cfg: VisionConfig, params: Params, z: Array) -> Array:
    """Picture of a latent. Shapes: z [..., Z] -> uint8 [..., 64, 64, 3]."""
    return jnp.round(255.0 * _apply(cfg, params, z, "decode")).astype(jnp.uint8)


def loss(cfg: VisionConfig, params: Params, key: Key, frames: Array) -> tuple[Array, Metrics]:
    """Squared error summed over a frame, plus the KL divergence where it exceeds the free nats.

    The KL is clamped as a whole, per frame, at free_nats * latent_size: below that its gradient is zero, so that the
    clamp, and not the prior, limits the information in the latent.

    Shapes: frames uint8 [B, 64, 64, 3] -> [] (mean over the batch).
    """
    x = _to_unit(frames)
    mean, log_variance = _apply(cfg, params, x, "encode")
    z = gaussian_sample(key, mean, log_variance)
    reconstruction = ((x - _apply(cfg, params, z, "decode")) ** 2).sum((-3, -2, -1)).mean()
    kl = gaussian_kl(mean, log_variance)
    clamped = jnp.maximum(kl, cfg.free_nats * cfg.latent_size).mean()
    total = reconstruction + clamped
    return total, {"loss": total, "reconstruction": reconstruction, "kl": kl.mean()}


def _apply(cfg: VisionConfig, params: Params, x: Array, method: str) -> Any:
    return Autoencoder(cfg.latent_size).apply({"params": params}, x, method=method)


def _to_unit(frame: Array) -> Array:
    if frame.shape[-3:] != FRAME or frame.dtype != jnp.uint8:
        raise ValueError(
            f"V reads uint8 frames [..., 64, 64, 3], got {frame.dtype} {list(frame.shape)}; crop and resize the frame "
            "with dreamjax.envs.pixels first, and leave the division by 255 to V"
        )
    return frame.astype(jnp.float32) / 255.0
