"""SGDD: the denoiser D(y_t^hm, x^c), a U-Net over heatmaps and condition."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dpose_jax.models.layers import Conv3x3, Dense, GroupNorm, upsample_nearest

LEVELS = (1, 1, 2, 2)  # widths in units of C at H x W, H/2, H/4 and H/8: (C, C, 2C, 2C) (ours)


def time_features(t: jax.Array, channels: int) -> jax.Array:
    """Sinusoidal features of t, (B,) integer -> (B, channels) float32, channels even."""
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(channels // 2) / (channels // 2))
    angles = t.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _norm_silu(x: jax.Array, dtype: jnp.dtype, name: str) -> jax.Array:
    """GroupNorm with the most groups, up to 32, that leave four channels or more each; then SiLU."""
    groups = max((g for g in range(1, 33) if x.shape[-1] % g == 0 and x.shape[-1] >= 4 * g), default=1)
    return nn.silu(GroupNorm(groups, dtype=dtype, name=name)(x))


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice, around a skip; t is added between the two."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array | None) -> jax.Array:
        y = Conv3x3(self.features, dtype=self.dtype, name="conv1")(_norm_silu(x, self.dtype, "norm1"))
        if time is not None:
            y += Dense(self.features, dtype=self.dtype, name="time")(nn.silu(time))[:, None, None, :]
        y = Conv3x3(self.features, dtype=self.dtype, name="conv2")(_norm_silu(y, self.dtype, "norm2"))
        if x.shape[-1] != self.features:
            x = Dense(self.features, use_bias=False, dtype=self.dtype, name="skip")(x)
        return x + y


class SGDD(nn.Module):
    """D: a U-Net down to 2C x H/8 x W/8 and back, residual blocks at every scale, skips concatenated (ours)."""

    joints: int  # J, or what a position has of channels that are heatmaps
    channels: int = 64  # C
    blocks: int = 2  # residual blocks a level, on the way down and on the way up
    time_embedding: bool = False  # D sees t (the paper writes D without it)
    dtype: jnp.dtype = jnp.float32
    remat: bool = False  # the backward pass computes the inside of each residual block again instead of keeping it

    @nn.compact
    def __call__(self, heatmaps: jax.Array, condition: jax.Array, t: jax.Array) -> jax.Array:
        """y_t^hm (B, H, W, J), x^c (B, H, W, C) and (B,) integer t -> y^_0^hm, (B, H, W, J) float32."""
        time = _embed(self, t)

        def conv(name, features, stride=1):
            return Conv3x3(features, strides=stride, dtype=self.dtype, name=name)

        x = jnp.concatenate([heatmaps.astype(self.dtype), condition.astype(self.dtype)], axis=-1)
        x = conv("stem", self.channels)(x)
        skips = []
        for index in range(len(LEVELS) - 1):
            x = _level(self, x, time, index, "down")
            skips.append(x)
            x = conv(f"reduce{index}", self.channels * LEVELS[index + 1], stride=2)(x)
        x = _level(self, x, time, len(LEVELS) - 1, "middle")
        for index, skip in reversed(list(enumerate(skips))):
            # Cut, as maps need not be multiples of 8: a level is the ceiling of half the one above it.
            x = upsample_nearest(x, 2)[:, : skip.shape[1], : skip.shape[2]]
            x = _level(self, jnp.concatenate([x, skip], axis=-1), time, index, "up")
        x = _norm_silu(x, self.dtype, "norm")
        return Dense(self.joints, name="head")(x.astype(jnp.float32))


class LightSGDD(SGDD):
    """D with little at full size, where most of the cost is: a 1x1 stem and one 3x3; skips are added (ours)."""

    @nn.compact
    def __call__(self, heatmaps: jax.Array, condition: jax.Array, t: jax.Array) -> jax.Array:
        """As `SGDD`."""
        time, widths = _embed(self, t), [self.channels * level for level in LEVELS]

        def conv(name, x, features, stride=1):
            x = _norm_silu(x, self.dtype, f"norm_{name}")
            return Conv3x3(features, strides=stride, dtype=self.dtype, name=name)(x)

        x = jnp.concatenate([heatmaps.astype(self.dtype), condition.astype(self.dtype)], axis=-1)
        x = Dense(self.channels, dtype=self.dtype, name="stem")(x)
        skips = []
        for index, width in enumerate(widths[1:]):
            skips.append(x)
            x = _level(self, conv(f"reduce{index}", x, width, stride=2), time, index + 1, "down")
        for index, skip in reversed(list(enumerate(skips))):
            x = Dense(widths[index], use_bias=False, dtype=self.dtype, name=f"project{index}")(x)
            x = skip + upsample_nearest(x, 2)[:, : skip.shape[1], : skip.shape[2]]  # cut as above
            x = _level(self, x, time, index, "up") if index else x + conv("up0", x, self.channels)
        x = _norm_silu(x, self.dtype, "norm")
        return Dense(self.joints, name="head")(x.astype(jnp.float32))


def _embed(decoder: SGDD, t: jax.Array) -> jax.Array | None:
    """t as (B, C) features, None without `time_embedding`; a part of `decoder`'s call."""
    if not decoder.time_embedding:
        return None
    time = Dense(decoder.channels, dtype=decoder.dtype, name="time1")(time_features(t, decoder.channels))
    return Dense(decoder.channels, dtype=decoder.dtype, name="time2")(nn.silu(time))


def _level(decoder: SGDD, x: jax.Array, time: jax.Array | None, index: int, name: str) -> jax.Array:
    """The residual blocks of a level, `name` and `index`; a part of `decoder`'s call."""
    block = nn.remat(ResidualBlock) if decoder.remat else ResidualBlock
    for number in range(decoder.blocks):
        x = block(decoder.channels * LEVELS[index], decoder.dtype, name=f"{name}{index}_block{number}")(x, time)
    return x


DECODERS = {"unet": SGDD, "light": LightSGDD}  # by `model.decoder`
