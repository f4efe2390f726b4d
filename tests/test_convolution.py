import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.models.layers import Conv3x3, convolve


def plain(x, kernel, stride):
    """What convolve stands for, with XLA's own gradients."""
    pads, numbers = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=numbers)


def draw(size, channels, features, stride, dtype=np.float32):
    rng = np.random.default_rng(0)
    shape = (2, *(-(-side // stride) for side in size), features)
    x, kernel, gradient = (rng.standard_normal(s) for s in ((2, *size, channels), (3, 3, channels, features), shape))
    return x.astype(dtype), kernel.astype(dtype), gradient.astype(dtype)


@functools.partial(jax.jit, static_argnums=(0, 4))
def with_gradients(function, x, kernel, gradient, stride):
    out, backward = jax.vjp(lambda x, kernel: function(x, kernel, stride), x, kernel)
    return out, *backward(gradient)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "channels", "features"), [((8, 6), 3, 5), ((7, 5), 8, 4), ((1, 2), 1, 1)])
def test_equals_the_plain_convolution_in_float64(size, channels, features, stride):
    """The same sums in another order: but for rounding, nothing differs."""
    with jax.enable_x64(True):
        x, kernel, gradient = draw(size, channels, features, stride, np.float64)
        for ours, theirs in zip(
            with_gradients(convolve, x, kernel, gradient, stride),
            with_gradients(plain, x, kernel, gradient, stride),
            strict=True,
        ):
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float64
            np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_equals_the_plain_convolution_in_float32(stride):
    """At a size of the real network, against float64: as near to it as XLA's own gradient."""
    draws = draw((32, 24), 16, 24, stride)
    with jax.enable_x64(True):
        exact = jax.device_get(with_gradients(plain, *(np.float64(part) for part in draws), stride))
    found = (jax.device_get(with_gradients(function, *draws, stride)) for function in (convolve, plain))
    for ours, theirs, true in zip(*found, exact, strict=True):
        bound = np.abs(theirs - true).max()
        assert 0 < bound < 1e-3 and np.abs(ours - true).max() <= 2 * bound


def test_gradients_in_bfloat16_are_summed_in_float32():
    draws = [jnp.asarray(part, jnp.bfloat16) for part in draw((32, 24), 4, 4, 1)]
    exact = with_gradients(plain, *(part.astype(jnp.float32) for part in draws), 1)
    for ours, true in zip(with_gradients(convolve, *draws, 1), exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(jnp.float32), true, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("stride", [1, 2])
def test_only_the_cpu_takes_the_product(stride):
    """A program lowered here for another platform is XLA's convolution, forward and both gradients."""
    draws = draw((8, 6), 4, 5, stride)
    traced = with_gradients.trace(convolve, *draws, stride)
    products_on_cpu = {1: 3, 2: 1}[stride]
    for platform, convolutions, products in (("cpu", 2, products_on_cpu), ("tpu", 3, 0), ("cuda", 3, 0)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.convolution") == convolutions, platform
        assert text.count("stablehlo.dot_general") == products, platform


def test_module_is_flax_own_but_for_the_gradient():
    x = draw((8, 6), 3, 5, 2)[0]
    ours, theirs = Conv3x3(5, strides=2), nn.Conv(5, (3, 3), strides=2, padding=1)
    variables = theirs.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)) == jax.tree.map(jnp.shape, variables)
    assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (3, 3, 3, 5), "bias": (5,)}}
    np.testing.assert_array_equal(ours.apply(variables, x), theirs.apply(variables, x))


@pytest.mark.parametrize(
    "fields", [{"padding": 0}, {"strides": (1, 2)}, {"kernel_dilation": 2}, {"kernel_size": (5, 5)}]
)
def test_another_convolution_is_refused(fields):
    with pytest.raises(ValueError, match="not the one that is implemented here"):
        Conv3x3(4, **fields).init(jax.random.key(0), jnp.zeros((1, 8, 8, 4)))
