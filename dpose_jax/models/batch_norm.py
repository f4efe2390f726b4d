"""Batch normalisation with torch's statistics, which HRNet's published weights were trained with."""

import functools

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
        if not train:
            scale, bias = jax.lax.stop_gradient((scale, bias))
            return _affine(x, mean.value, var.value, scale, bias, self.epsilon).astype(self.dtype)
        y, shift, spread = normalise(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            count = x.size // x.shape[-1]
            unbiased = spread * (count / max(count - 1, 1))
            mean.value += self.momentum * (shift - mean.value)
            var.value += self.momentum * (unbiased - var.value)
        return y.astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[jax.Array, ...]:
    """Normalises by the batch's own moments, in float32.

    Its gradient is written out: derived line by line, a CPU takes more passes over the maps for it.

    Args:
      x: (..., C) of any float dtype; scale, bias: (C,) float32.

    Returns:
      y (..., C) float32, and the mean and the biased variance of x, (C,), which pass no gradient on.
    """
    axes, x = tuple(range(x.ndim - 1)), x.astype(jnp.float32)
    mean = jnp.mean(x, axes)
    # One pass over x for both moments; rounding may leave the difference below zero.
    var = jnp.maximum(jnp.mean(x**2, axes) - mean**2, 0.0)
    return _affine(x, mean, var, scale, bias, epsilon), mean, var


def _affine(x, mean, var, scale, bias, epsilon):
    # Without the barrier XLA:CPU writes the factor out as a whole map.
    factor = jax.lax.optimization_barrier(jax.lax.rsqrt(var + epsilon) * scale)
    return (x.astype(jnp.float32) - mean) * factor + bias


def _forward(x, scale, bias, epsilon):
    y, mean, var = normalise(x, scale, bias, epsilon)
    return (y, mean, var), (x, scale, mean, var)


def _backward(epsilon, saved, gradients):
    """With z the normalised x: scale / std * (gradient - its mean - z * the mean of gradient * z)."""
    x, scale, mean, var = saved
    gradient, centred = gradients[0], x.astype(jnp.float32) - mean
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    inverse = jax.lax.rsqrt(var + epsilon)
    for_bias = jnp.sum(gradient, axes)
    for_scale = jnp.sum(gradient * centred, axes) * inverse
    factor, slope, offset = jax.lax.optimization_barrier(
        (scale * inverse, for_scale * inverse / count, for_bias / count)
    )
    return (factor * (gradient - slope * centred - offset)).astype(x.dtype), for_scale, for_bias


normalise.defvjp(_forward, _backward)
