"""Gradients that XLA:CPU computes faster than those JAX derives (ours); programs lowered for others keep JAX's."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

SHIFTS = (slice(None, -1), (1, 0)), (slice(1, None), (0, 1))  # by one: what stays of an axis, zeros beside it


def convolution(plain):
    """`plain(x, kernel, stride)` with the kernel's gradient as one matrix product."""

    # XLA:CPU takes it for a convolution whose window is the whole map, after transposing both of its inputs.
    def backward(stride, saved, gradient):
        x, kernel = saved
        (for_x,) = jax.vjp(lambda x: plain(x, kernel, stride), x)[1](gradient)

        def derived(x, gradient):
            return jax.vjp(lambda kernel: plain(x, kernel, stride), kernel)[1](gradient)[0]

        product = _separable_product if stride == 1 else _gathered_product
        return for_x, lax.platform_dependent(x, gradient, cpu=product, default=derived)

    function = jax.custom_vjp(plain, nondiff_argnums=(2,))
    function.defvjp(lambda x, kernel, stride: (plain(x, kernel, stride), (x, kernel)), backward)
    return function


def _separable_product(x, gradient):
    """The kernel's gradient at stride 1: x shifted along rows against the gradient shifted along columns."""
    # For each row of taps (B H W, C)^T (B H W, 3D): 3 copies of the gradient and 2 of x instead of 9 of x.
    above, below = (jnp.pad(x[:, part], ((0, 0), zeros, (0, 0), (0, 0))) for part, zeros in SHIFTS)
    left, right = (jnp.pad(gradient[:, :, part], ((0, 0), (0, 0), zeros, (0, 0))) for part, zeros in SHIFTS)
    columns = jnp.concatenate([right, gradient, left], axis=-1)
    rows = [_product(one, columns).reshape(x.shape[3], 3, gradient.shape[3]) for one in (above, x, below)]
    return jnp.stack(rows).transpose(0, 2, 1, 3).astype(x.dtype)


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


def normalisation(plain):
    """`plain(x, scale, bias, epsilon, axes, groups, pixels) -> y, mean, var` with the gradient of y written out."""

    # It takes fewer passes over the maps than the derived one does on a CPU. XLA fuses the derived one better on a TPU.

    def forward(x, scale, bias, *settings):
        y, mean, var = plain(x, scale, bias, *settings)
        return (y, mean, var), (x, scale, bias, mean, var)

    def backward(epsilon, axes, groups, pixels, saved, gradients):
        def derived(gradient, x, scale, bias, mean, var):
            # The moments that this asks for again are those of the forward pass to the compiler.
            settings = epsilon, axes, groups, pixels
            return jax.vjp(lambda *inputs: plain(*inputs, *settings)[0], x, scale, bias)[1](gradient)

        shared = {"epsilon": epsilon, "axes": axes, "groups": groups, "pixels": pixels}
        written = functools.partial(normalisation_gradient, **shared)
        return lax.platform_dependent(gradients[0], *saved, cpu=written, default=derived)

    function = jax.custom_vjp(plain, nondiff_argnums=(3, 4, 5, 6))
    function.defvjp(forward, backward)
    return function


def normalisation_gradient(gradient, x, scale, bias, mean, var, *, epsilon, axes, groups, pixels):
    """With z the normalised x, g = scale * gradient: (g - the mean of g - z * the mean of g z) / std."""
    # Maps of the forward pass would be computed once and written out: hence mean - x, not x - mean.
    dtype, x, total = x.dtype, x.astype(jnp.float32), jnp.sum(gradient, axes)
    moment, square = jnp.sum(gradient * x, axes) - mean * total, var + epsilon
    share = jnp.full(x.shape[-1], total.size / x.size)
    if groups == x.shape[-1] and total.ndim == 1:
        factors = keep_small(lax.rsqrt(square) * scale, moment / square, mean, total, share)
        factor, slope, mean, offset, share = (expand(one, x) for one in factors)
        for_x = factor * (gradient - (offset - slope * (mean - x)) * share)
        # Nor the reciprocal root of the forward pass: a vector that is shared is a kernel of its own to XLA.
        return for_x.astype(dtype), moment * jnp.sqrt(1 / square), total
    inverse = lax.rsqrt(square)
    slope, offset = (group_means(scale * one, groups, pixels) * inverse * share for one in (moment, total))
    factors = keep_small(scale * inverse, slope / square, offset, mean)
    factor, slope, offset, mean = (expand(one, x) for one in factors)
    for_scale, for_bias = (jnp.sum(one.reshape(-1, one.shape[-1]), 0) for one in (moment * inverse, total))
    return (factor * gradient - (offset - slope * (mean - x))).astype(dtype), for_scale, for_bias


def group_means(moments: jax.Array, groups: int, pixels: int = 1) -> jax.Array:
    """(..., C) -> the mean of each group of neighbouring channels, at each of its channels.

    With `pixels` packed into channels (`packing`), each of them has all groups, and the mean is over all pixels.
    """
    if pixels > 1:
        means = jnp.mean(moments.reshape(*moments.shape[:-1], pixels, -1), -2)
        return jnp.tile(group_means(means, groups), pixels)
    channels = moments.shape[-1]
    if groups == channels:
        return moments
    means = jnp.mean(moments.reshape(*moments.shape[:-1], groups, channels // groups), -1)
    return jnp.repeat(means, channels // groups, -1)


def expand(moments: jax.Array, x: jax.Array) -> jax.Array:
    """(C,), or (B, C), so that it broadcasts against x (B, ..., C)."""
    return moments if moments.ndim == 1 else jnp.expand_dims(moments, range(1, x.ndim - 1))


def keep_small(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays themselves. Without the barrier XLA:CPU writes each of these vectors out as a whole map."""
    return lax.platform_dependent(*arrays, cpu=lambda *its: lax.optimization_barrier(its), default=lambda *its: its)
