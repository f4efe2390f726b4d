"""The 3x3 convolution, padding 1, with a weight gradient that the CPU computes fast."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """3x3 convolution with one pixel of zeros on every side, as torch pads it.

    The same on every platform but for the gradient of the kernel on the CPU. XLA:CPU takes it for a convolution
    whose window is the whole map, after transposing both of its inputs; here it is a matrix product (ours).

    Args:
      x: (B, H, W, C); kernel: (3, 3, C, D) of the same dtype; stride: 1 or 2.

    Returns:
      (B, ceil(H / stride), ceil(W / stride), D).
    """
    return _plain(x, kernel, stride)


def _convolve_for_flax(inputs, kernel, strides, padding, **options):
    """`convolve` as nn.Conv calls its convolution."""
    plain = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "feature_group_count": 1, "precision": None}
    given = {name: options[name] for name in plain} | {"padding": tuple(padding), "kernel": kernel.shape[:2]}
    if given != plain | {"padding": ((1, 1), (1, 1)), "kernel": (3, 3)} or strides[0] != strides[1]:
        raise ValueError(f"a convolution of strides {strides} with {given} is not the one that is implemented here")
    return convolve(inputs, kernel, strides[0])


# Padding 1 also at stride 2, where XLA's "SAME" pads below and to the right alone.
Conv3x3 = functools.partial(nn.Conv, kernel_size=(3, 3), padding=1, conv_general_dilated=_convolve_for_flax)


def _plain(x, kernel, stride):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=numbers)


def _forward(x, kernel, stride):
    return _plain(x, kernel, stride), (x, kernel)


def _backward(stride, saved, gradient):
    x, kernel = saved
    (for_x,) = jax.vjp(lambda x: _plain(x, kernel, stride), x)[1](gradient)

    def plain(x, gradient):
        return jax.vjp(lambda kernel: _plain(x, kernel, stride), kernel)[1](gradient)[0]

    product = _separable_product if stride == 1 else _gathered_product
    # Chosen when the program is lowered, so that one lowered on a CPU for another platform has the plain form.
    return for_x, lax.platform_dependent(x, gradient, cpu=product, default=plain)


convolve.defvjp(_forward, _backward)


def _separable_product(x, gradient):
    """The kernel's gradient at stride 1: x shifted along columns against the gradient shifted along rows.

    (B H W, 3C)^T (B H W, 3D) has the 9 taps for its 9 blocks, without one product too many, and copies each input
    3 times where gathering the taps of x copies it 9 times.
    """
    height, width, channels, features = x.shape[1], x.shape[2], x.shape[3], gradient.shape[3]
    columns = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    rows = jnp.pad(gradient, ((0, 0), (1, 1), (0, 0), (0, 0)))
    columns = jnp.concatenate([columns[:, :, j : j + width] for j in range(3)], axis=-1)
    rows = jnp.concatenate([rows[:, 2 - i : 2 - i + height] for i in range(3)], axis=-1)
    taps = _product(columns, rows).reshape(3, channels, 3, features)
    return taps.transpose(2, 0, 1, 3).astype(x.dtype)


def _gathered_product(x, gradient):
    """The kernel's gradient at stride 2: the 9 taps of x side by side, against the gradient."""
    height, width = gradient.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [padded[:, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2] for i in range(3) for j in range(3)]
    product = _product(jnp.concatenate(taps, axis=-1), gradient)
    return product.reshape(3, 3, x.shape[-1], gradient.shape[-1]).astype(x.dtype)


def _product(a, b):
    """(B, H, W, M) and (B, H, W, N) -> (M, N) float32, the sum over all positions."""
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    return jnp.matmul(a.T, b, preferred_element_type=jnp.float32)
