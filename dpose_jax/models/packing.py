"""Neighbouring pixels of a row as channels, so that few channels still fill a TPU's 128 lanes (ours).

An array (B, H, W, C) is packed by f as (B, H, W/f, f C): channel p C + c is channel c of the p-th of f pixels. Layers
on packed arrays compute what they compute on plain ones, up to the order of float sums, with kernels that are expanded
from the plain parameters.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from dpose_jax.models.layers import UNDRAWN

LANES = 128  # of a TPU's vector registers, and of the tiles of its arrays


def pixels_that_fill(channels: int, width: int) -> int:
    """Pixels of a row of `width` that are packed: the largest power of two that divides it and fills no more lanes."""
    pixels = 1
    while 2 * pixels * channels <= LANES and width % (2 * pixels) == 0:
        pixels *= 2
    return pixels


def pack(x: Array, pixels: int) -> Array:
    """(B, H, W, C) -> (B, H, W/pixels, pixels C)."""
    return x.reshape(*x.shape[:2], x.shape[2] // pixels, pixels * x.shape[3])


def unpack(x: Array, pixels: int) -> Array:
    """The inverse of `pack`."""
    return x.reshape(*x.shape[:2], x.shape[2] * pixels, x.shape[3] // pixels)


def expand_kernel(kernel: Array, before: int, after: int) -> Array:
    """The kernel on packed arrays of a 3x3 or 1x1 convolution, from `before` to `after` pixels.

    (3, 3, C, D) -> (3, 3, before C, after D), of a stride of before / after along the row. (1, 1, C, D) ->
    (1, 1, before C, after D), where after / before is the factor of the upsampling by repetition that follows.
    """
    height, taps, channels, features = kernel.shape
    shifted = []
    for pixel in range(after):
        # The plain kernel's place among the pixels that the packed one sees.
        first = pixel * before // after if taps == 1 else before - 1 + pixel * before // after
        columns = first, taps * before - taps - first
        shifted.append(jnp.pad(kernel, ((0, 0), columns, (0, 0), (0, 0))))
    return jnp.stack(shifted, -2).reshape(height, taps, before * channels, after * features)


class PackedConv(nn.Module):
    """3x3 (padded by 1) or 1x1 convolution on packed arrays, without bias; its parameter is the plain kernel."""

    features: int
    kernel: int
    stride: int  # of the plain convolution
    pixels: tuple[int, int]  # packed in the input and in the output
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, H, W/f, f C) -> (B, H/stride, W/(stride g), g D) for `pixels` (f, g); 1x1: (B, H, W/f, g D), repeated."""
        before, after = self.pixels
        shape = x.shape[-1] // before, self.features
        kernel = self.param("kernel", UNDRAWN, shape if self.kernel == 1 else (3, 3, *shape))
        wide = expand_kernel(kernel.reshape(self.kernel, self.kernel, *shape).astype(self.dtype), before, after)
        strides = (self.stride, self.stride * after // before) if self.kernel > 1 else (1, 1)
        sides, numbers = (self.kernel // 2,) * 2, ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, wide, strides, (sides, sides), dimension_numbers=numbers)
