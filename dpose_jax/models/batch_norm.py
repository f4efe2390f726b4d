"""Batch normalisation with torch's statistics, which HRNet's published weights were trained with."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """torch.nn.BatchNorm2d: y = (x - mean) / sqrt(var + epsilon) * scale + bias, over all axes but the last.

    linen's own keeps the biased variance as its running statistic, where torch keeps the unbiased one, n / (n - 1)
    times as large; at the lowest resolution of a small batch that is several percent. Statistics are those of the
    global batch when it is sharded over devices, n included. Everything is computed in float32.

    Attributes:
      momentum: share of the batch in the running statistics, torch's 0.1 (linen writes 0.9).
      dtype: of the result.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(..., C) -> (..., C).

        Args:
          train: normalise by the batch and move the running statistics. Otherwise the layer is a constant map, as a
            frozen one is in torch: running statistics, and no gradient to scale and bias.
        """
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        x = x.astype(jnp.float32)
        if not train:
            shift, spread = mean.value, var.value
            scale, bias = jax.lax.stop_gradient((scale, bias))
        else:
            axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
            shift = jnp.mean(x, axes)
            # One pass over x for both moments; rounding may leave the difference below zero.
            spread = jnp.maximum(jnp.mean(x**2, axes) - shift**2, 0.0)
            if not self.is_initializing():
                unbiased = spread * (count / max(count - 1, 1))
                mean.value += self.momentum * (shift - mean.value)
                var.value += self.momentum * (unbiased - var.value)
        y = (x - shift) * (jax.lax.rsqrt(spread + self.epsilon) * scale) + bias
        return y.astype(self.dtype)
