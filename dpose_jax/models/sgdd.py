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

    joints: int  # J
    channels: int = 64  # C
    blocks: int = 2  # residual blocks a level, on the way down and on the way up
    time_embedding: bool = False  # D sees t (the paper writes D without it)
    dtype: jnp.dtype = jnp.float32
    remat: bool = False  # the backward pass computes the inside of each residual block again instead of keeping it

    @nn.compact
    def __call__(self, heatmaps: jax.Array, condition: jax.Array, t: jax.Array) -> jax.Array:
        """y_t^hm (B, H, W, J), x^c (B, H, W, C) and (B,) integer t -> y^_0^hm, (B, H, W, J) float32."""
        time = None
        if self.time_embedding:
            time = Dense(self.channels, dtype=self.dtype, name="time1")(time_features(t, self.channels))
            time = Dense(self.channels, dtype=self.dtype, name="time2")(nn.silu(time))

        def conv(name, features, stride=1):
            return Conv3x3(features, strides=stride, dtype=self.dtype, name=name)

        residual_block = nn.remat(ResidualBlock) if self.remat else ResidualBlock

        def level(x, index, name):
            for block in range(self.blocks):
                features = self.channels * LEVELS[index]
                x = residual_block(features, self.dtype, name=f"{name}{index}_block{block}")(x, time)
            return x

        x = jnp.concatenate([heatmaps.astype(self.dtype), condition.astype(self.dtype)], axis=-1)
        x = conv("stem", self.channels)(x)
        skips = []
        for index in range(len(LEVELS) - 1):
            x = level(x, index, "down")
            skips.append(x)
            x = conv(f"reduce{index}", self.channels * LEVELS[index + 1], stride=2)(x)
        x = level(x, len(LEVELS) - 1, "middle")
        for index, skip in reversed(list(enumerate(skips))):
            # Cut, as maps need not be multiples of 8: a level is the ceiling of half the one above it.
            x = upsample_nearest(x, 2)[:, : skip.shape[1], : skip.shape[2]]
            x = level(jnp.concatenate([x, skip], axis=-1), index, "up")
        x = _norm_silu(x, self.dtype, "norm")
        return Dense(self.joints, name="head")(x.astype(jnp.float32))
