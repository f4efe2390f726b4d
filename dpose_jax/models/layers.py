"""Layers that the networks share, in their plain form; `layers_cpu` has the gradients that a CPU computes faster."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from dpose_jax.models import layers_cpu
from dpose_jax.models.layers_cpu import expand, group_means


@layers_cpu.convolution
def convolve(x: Array, kernel: Array, stride: int = 1) -> Array:
    """3x3 convolution, padded by 1: (B, H, W, C) and (3, 3, C, D) -> (B, ceil(H / stride), ceil(W / stride), D)."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=numbers)


def _convolve_for_flax(inputs, kernel, strides, padding, **options):
    """`convolve` as nn.Conv calls its convolution; refuses what `convolve` cannot do."""
    plain = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "feature_group_count": 1, "precision": None}
    given = {name: options[name] for name in plain} | {"padding": tuple(padding), "kernel": kernel.shape[:2]}
    if given != plain | {"padding": ((1, 1), (1, 1)), "kernel": (3, 3)} or strides[0] != strides[1]:
        raise ValueError(f"a convolution of strides {strides} with {given} is not the one that is implemented here")
    return convolve(inputs, kernel, strides[0])


# Kernels are drawn by `initialise`. Flax traces the initial value of every kernel that it applies, to learn its shape:
# zeros cost a quarter of its random numbers.
UNDRAWN = nn.initializers.zeros
Dense = functools.partial(nn.Dense, kernel_init=UNDRAWN)
# As torch pads: 1 also at stride 2, where XLA's "SAME" pads below and to the right alone.
Conv3x3 = functools.partial(
    nn.Conv, kernel_size=(3, 3), padding=1, conv_general_dilated=_convolve_for_flax, kernel_init=UNDRAWN
)


MOMENTUM = 0.1  # share of the batch in BatchNorm's running statistics, as torch has it (linen writes 0.9)
UNAVERAGED = "unaveraged"  # a collection that asks each BatchNorm for the batch's moments; it stays empty


@jax.custom_jvp
def relu(x: Array) -> Array:
    """max(x, 0), whose gradient needs the result alone: x is neither kept nor, on a CPU, written out."""
    return jnp.maximum(x, 0)


# Not y > 0, which XLA replaces by x > 0.
relu.defjvps(lambda tangent, y, x: jnp.where(y != 0, tangent, 0))


@layers_cpu.normalisation
def normalise(
    x: Array, scale: Array, bias: Array, epsilon: float, axes: tuple[int, ...], groups: int, pixels: int = 1
) -> tuple[Array, Array, Array]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, by the moments of x itself over `axes`, in float32.

    x is (..., C) of any float dtype, scale and bias (C,) float32. Neighbouring channels, C / groups of them, share
    their moments; so do all `pixels` that are packed into the channels (`packing`). Returns y (..., C) float32, and the
    mean and the biased variance of x, without `axes` and gradient.
    """
    x = x.astype(jnp.float32)
    mean = group_means(jnp.mean(x, axes), groups, pixels)
    # One pass over x for both moments; rounding may leave the difference below zero.
    var = jnp.maximum(group_means(jnp.mean(x**2, axes), groups, pixels) - mean**2, 0.0)
    return _affine(x, mean, var, scale, bias, epsilon), mean, var


def averaged(statistics: Any, moments: Any) -> Any:
    """BatchNorm's running statistics after a batch of these moments, each a tree or, of `runtime.flat`, flat."""
    return jax.tree.map(lambda running, batch: running + MOMENTUM * (batch - running), statistics, moments)


def _affine(x, mean, var, scale, bias, epsilon):
    (factor,) = layers_cpu.keep_small(jax.lax.rsqrt(var + epsilon) * scale)
    return (x.astype(jnp.float32) - expand(mean, x)) * expand(factor, x) + bias


class BatchNorm(nn.Module):
    """torch.nn.BatchNorm2d: y = (x - mean) / sqrt(var + epsilon) * scale + bias, over all axes but the last.

    linen keeps the biased variance as its running statistic, torch the unbiased one, several percent larger in a small
    batch. Statistics are those of the global batch, also over several devices, in float32; the result is of `dtype`.
    Where the collection UNAVERAGED is mutable, the batch's moments take the place of the running statistics.
    """

    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    pixels: int = 1  # packed into the channels of x (`packing`); each has all of the layer's channels
    copies: int = 1  # of every pixel among them

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """(..., C) -> (..., C); by the batch with `train`, else by the running statistics and without gradients."""
        shape = (x.shape[-1] // self.pixels,)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        each = functools.partial(jnp.tile, reps=self.pixels) if self.pixels > 1 else lambda vector: vector
        if not train:
            scale, bias = jax.lax.stop_gradient((scale, bias))
            moments = each(mean.value), each(var.value)
            return _affine(x, *moments, each(scale), each(bias), self.epsilon).astype(self.dtype)
        axes = tuple(range(x.ndim - 1))
        y, *moments = normalise(x, each(scale), each(bias), self.epsilon, axes, shape[0], self.pixels)
        if not self.is_initializing():
            count, (batch_mean, batch_var) = x.size // shape[0] // self.copies, (one[: shape[0]] for one in moments)
            unbiased = batch_var * (count / max(count - 1, 1))
            if self.is_mutable_collection(UNAVERAGED):
                mean.value, var.value = batch_mean, unbiased
            else:
                mean.value, var.value = averaged((mean.value, var.value), (batch_mean, unbiased))
        return y.astype(self.dtype)


class GroupNorm(nn.Module):
    """linen's GroupNorm, to rounding: every example is normalised by itself, in groups of channels, in float32."""

    # linen reduces rows of a few channels, which a CPU does not vectorise. Here whole rows are summed, then grouped.
    groups: int  # divides the channels
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, ..., C) -> (B, ..., C)."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        y, _, _ = normalise(x, scale, bias, self.epsilon, tuple(range(1, x.ndim - 1)), self.groups)
        return y.astype(self.dtype)


def upsample_nearest(x: Array, factor: int, columns: int | None = None) -> Array:
    """Repeats every pixel of (B, H, W, C) `factor` times down and `columns` times (`factor`) across.

    By broadcasting: no gather, no scatter.
    """
    (batch, height, width, channels), columns = x.shape, factor if columns is None else columns
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, factor, width, columns, channels))
    return x.reshape(batch, height * factor, width * columns, channels)


def depth_to_space(x: Array, factor: int) -> Array:
    """(B, H, W, f f C) -> (B, f H, f W, C) for factor f: channel (i f + j) C + c is row i, column j, channel c inside.

    With a convolution before it this is the sub-pixel convolution of Shi et al., CVPR 2016.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, factor, factor, channels // factor**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * factor, width * factor, -1)


def space_to_depth(x: Array, factor: int) -> Array:
    """(B, f H, f W, C) -> (B, H, W, f f C); the inverse of `depth_to_space`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // factor, factor, width // factor, factor, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // factor, width // factor, -1)
