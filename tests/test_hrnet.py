import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.models.backbones import BACKBONES
from dpose_jax.models.hrnet import ConvBN
from dpose_jax.models.layers import upsample_nearest

RNG = np.random.default_rng(0)


def shapes_of(module, *inputs):
    return jax.eval_shape(lambda key: module.init(key, *inputs, train=False), jax.random.key(0))


def slow_convolution(x, kernel, stride):
    """3x3 convolution with padding 1 by the definition, one output pixel at a time: (B, H, W, C)."""
    batch, height, width, _ = x.shape
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((batch, (height - 1) // stride + 1, (width - 1) // stride + 1, kernel.shape[-1]))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            patch = padded[:, i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[:, i, j] = np.einsum("byxc,yxcd->bd", patch, kernel)
    return out


def build(preset, dtype=jnp.float32, packed=False):
    return BACKBONES[preset].build(BACKBONES[preset].width, dtype, False, packed)


@pytest.mark.parametrize("preset", ["tiny", "w18_small", "w32", "w48"])
@pytest.mark.parametrize("size", [(32, 32), (96, 160)])
def test_features_are_at_stride_4(preset, size):
    net, images = build(preset, jnp.bfloat16), jnp.zeros((2, *size, 3))
    out, _ = jax.eval_shape(lambda key: net.init_with_output(key, images), jax.random.key(0))
    assert (out.shape, out.dtype) == ((2, size[0] // 4, size[1] // 4, BACKBONES[preset].width), jnp.bfloat16)


def test_parameters_stay_float32_in_bfloat16():
    shapes = shapes_of(build("tiny", jnp.bfloat16), jnp.zeros((1, 32, 32, 3)))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(shapes)} == {"float32"}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 6), (7, 5)])
def test_convolution_pads_one_pixel_on_every_side(stride, size, random_tree):
    """As torch does; XLA's "SAME" at stride 2 and even sizes pads below and to the right alone."""
    x = RNG.standard_normal((2, *size, 3)).astype(np.float32)
    layer = ConvBN(4, stride=stride, relu=False)
    variables = random_tree(shapes_of(layer, x))
    stats, norm = variables["batch_stats"]["bn"], variables["params"]["bn"]
    raw = slow_convolution(x, variables["params"]["conv"]["kernel"], stride)
    expected = (raw - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(layer.apply(variables, x, train=False), expected, atol=1e-5)
    np.testing.assert_allclose(
        ConvBN(4, stride=stride).apply(variables, x, train=False), np.maximum(expected, 0), atol=1e-5
    )


def test_one_by_one_convolution_is_the_matrix_product(random_tree):
    x = RNG.standard_normal((2, 4, 5, 3)).astype(np.float32)
    layer = ConvBN(6, kernel=1, relu=False)
    variables = random_tree(shapes_of(layer, x))
    variables["batch_stats"]["bn"] = {"mean": np.zeros(6), "var": np.ones(6) - np.float32(1e-5)}
    variables["params"]["bn"] = {"scale": np.ones(6), "bias": np.zeros(6)}
    expected = np.einsum("byxc,cd->byxd", x, variables["params"]["conv"]["kernel"])
    np.testing.assert_allclose(layer.apply(variables, x, train=False), expected, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_upsampling_repeats_pixels(factor):
    x = RNG.standard_normal((2, 3, 5, 4)).astype(np.float32)
    expected = x.repeat(factor, axis=1).repeat(factor, axis=2)
    np.testing.assert_array_equal(upsample_nearest(jnp.asarray(x), factor), expected)


@pytest.mark.parametrize("columns", [1, 2])
def test_upsampling_repeats_fewer_columns(columns):
    x = RNG.standard_normal((2, 3, 5, 4)).astype(np.float32)
    expected = x.repeat(4, axis=1).repeat(columns, axis=2)
    np.testing.assert_array_equal(upsample_nearest(jnp.asarray(x), 4, columns), expected)


def test_the_blocks_of_a_branch_are_traced_once():
    """W32 has 104 basic blocks (26 modules' branches of 4) of four shapes."""
    net, images = build("w32"), jnp.zeros((1, 64, 64, 3))
    program = jax.jit(net.apply).lower(shapes_of(net, images), images).as_text()
    functions = set(re.findall(r"func.func private @(core_fn\w*)", program))
    calls = re.findall(r"call @(core_fn\w*)", program)
    assert (len(functions), len(calls)) == (4, 26 * 4) and set(calls) == functions
