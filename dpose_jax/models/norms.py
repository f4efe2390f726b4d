"""BatchNorm, as torch computes it, for HRNet, and GroupNorm, for the denoiser: one map and one gradient."""

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
        y, shift, spread = normalise(x, scale, bias, self.epsilon, tuple(range(x.ndim - 1)), shape[0])
        if not self.is_initializing():
            count = x.size // x.shape[-1]
            unbiased = spread * (count / max(count - 1, 1))
            mean.value += self.momentum * (shift - mean.value)
            var.value += self.momentum * (unbiased - var.value)
        return y.astype(self.dtype)


class GroupNorm(nn.Module):
    """linen's GroupNorm, to rounding: every example normalised by itself, in groups of channels.

    linen reduces maps cut into groups, whose rows are a few channels long, where a CPU has no vectors; here whole rows
    are summed, and the sums then grouped.

    Attributes:
      groups: divides the channels.
      dtype: of the result; everything is computed in float32.
    """

    groups: int
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, ..., C) -> (B, ..., C)."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        y, _, _ = normalise(x, scale, bias, self.epsilon, tuple(range(1, x.ndim - 1)), self.groups)
        return y.astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axes: tuple[int, ...], groups: int
) -> tuple[jax.Array, ...]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, by the moments of x itself, in float32.

    On the CPU its gradient is written out: derived line by line, it takes more passes over the maps. A TPU moves
    fewer bytes for the derived one (docs/performance.md).

    Args:
      x: (..., C) of any float dtype; scale, bias: (C,) float32.
      axes: over which the moments are taken.
      groups: of neighbouring channels, which share their moments; C for each channel by itself.

    Returns:
      y (..., C) float32, and the mean and the biased variance of x, without `axes`, which pass no gradient on.
    """
    return _plain(x, scale, bias, epsilon, axes, groups)


def _plain(x, scale, bias, epsilon, axes, groups):
    x = x.astype(jnp.float32)
    mean = _shared(jnp.mean(x, axes), groups)
    # One pass over x for both moments; rounding may leave the difference below zero.
    var = jnp.maximum(_shared(jnp.mean(x**2, axes), groups) - mean**2, 0.0)
    return _affine(x, mean, var, scale, bias, epsilon), mean, var


def _affine(x, mean, var, scale, bias, epsilon):
    (factor,) = _vectors(jax.lax.rsqrt(var + epsilon) * scale)
    return (x.astype(jnp.float32) - _over(x, mean)) * _over(x, factor) + bias


def _vectors(*arrays):
    """The arrays themselves; without the barrier XLA:CPU writes each of them out as a whole map."""
    return jax.lax.platform_dependent(
        *arrays, cpu=lambda *its: jax.lax.optimization_barrier(its), default=lambda *its: its
    )


def _forward(x, scale, bias, epsilon, axes, groups):
    y, mean, var = _plain(x, scale, bias, epsilon, axes, groups)
    return (y, mean, var), (x, scale, bias, mean, var)


def _backward(epsilon, axes, groups, saved, gradients):
    settings = {"epsilon": epsilon, "axes": axes, "groups": groups}
    written, derived = (functools.partial(one, **settings) for one in (_written_gradient, _derived_gradient))
    return jax.lax.platform_dependent(gradients[0], *saved, cpu=written, default=derived)


def _derived_gradient(gradient, x, scale, bias, mean, var, *, epsilon, axes, groups):
    """It asks for the moments again, which the compiler finds in the forward pass."""
    plain = lambda *inputs: _plain(*inputs, epsilon, axes, groups)[0]  # noqa: E731
    return jax.vjp(plain, x, scale, bias)[1](gradient)


def _written_gradient(gradient, x, scale, bias, mean, var, *, epsilon, axes, groups):
    """With z the normalised x, g = scale * gradient: (g - the mean of g - z * the mean of g z) / std."""
    centred, inverse = x.astype(jnp.float32) - _over(x, mean), jax.lax.rsqrt(var + epsilon)
    sums = jnp.sum(gradient, axes), jnp.sum(gradient * centred, axes) * inverse
    offset, slope = (_shared(scale * one, groups) / (x.size // one.size) for one in sums)
    factors = _vectors(scale * inverse, slope * inverse**2, offset * inverse)
    factor, slope, offset = (_over(x, one) for one in factors)
    for_bias, for_scale = (jnp.sum(one.reshape(-1, one.shape[-1]), 0) for one in sums)
    return (factor * gradient - slope * centred - offset).astype(x.dtype), for_scale, for_bias


normalise.defvjp(_forward, _backward)


def _shared(moments, groups):
    """(..., C) -> the mean of each group of channels, at each of its channels."""
    channels = moments.shape[-1]
    if groups == channels:
        return moments
    means = jnp.mean(moments.reshape(*moments.shape[:-1], groups, channels // groups), -1)
    return jnp.repeat(means, channels // groups, -1)


def _over(x, moments):
    """(C,), or (B, C), to broadcast against x (B, ..., C)."""
    return moments if moments.ndim == 1 else jnp.expand_dims(moments, range(1, x.ndim - 1))
