"""Pixels of a row as channels: every packed layer with its gradients against the plain one, and a whole HRNet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.models.hrnet import ConvBN, HRNet, HRNetSpec, packed_pixels
from dpose_jax.models.layers import upsample_nearest
from dpose_jax.models.packing import LANES, expand_kernel, pack, pixels_that_fill, unpack

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("channels", "width", "pixels"),
    [(32, 48, 4), (32, 24, 4), (32, 18, 2), (48, 72, 2), (64, 7, 1), (128, 48, 1), (4, 48, 16)],
)
def test_pixels_fill_the_lanes(channels, width, pixels):
    """As many as fit, and whole in the row. A branch of twice the channels and half the row packs half as many."""
    assert pixels_that_fill(channels, width) == pixels
    assert pixels * channels <= LANES and width % pixels == 0
    if width % 2 == 0:
        assert pixels_that_fill(2 * channels, width // 2) == packed_pixels(pixels, 1) == max(1, pixels // 2)


def test_packing_is_undone():
    x = RNG.standard_normal((2, 3, 8, 5))
    packed = pack(x, 4)
    assert packed.shape == (2, 3, 2, 20)
    np.testing.assert_array_equal(packed[:, :, 1, 5:10], x[:, :, 5])
    np.testing.assert_array_equal(unpack(packed, 4), x)


CONVOLUTIONS = {  # kernel, stride, pixels in and out
    "same": (3, 1, (4, 4)),
    "halved": (3, 2, (4, 2)),
    "halved to one": (3, 2, (2, 1)),
    "1x1, twice": (1, 1, (2, 4)),
    "1x1, from one": (1, 1, (1, 4)),
    "1x1": (1, 1, (2, 2)),
}


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("train", [False, True])
def test_packed_layers_are_the_plain_ones(case, train, random_tree):
    """Outputs, running statistics of the plain pixels alone, and gradients of input and parameters."""
    kernel, stride, pixels = case
    before, after = pixels
    x = RNG.standard_normal((3, 6, 8, 5)).astype(np.float32)
    plain, packed = ConvBN(6, kernel, stride), ConvBN(6, kernel, stride, pixels=pixels)
    variables = random_tree(jax.eval_shape(lambda key: plain.init(key, x, train), jax.random.key(0)))
    wide = jax.eval_shape(lambda key: packed.init(key, pack(x, before), train), jax.random.key(0))
    assert jax.tree.map(jnp.shape, wide) == jax.tree.map(jnp.shape, variables)
    repeated = after // before if kernel == 1 else 1

    def run(layer, into, out_of):
        def total(params, x):
            out, updated = layer.apply(variables | {"params": params}, into(x), train, mutable=["batch_stats"])
            out = out_of(out)
            return jnp.sum(jnp.sin(out)), (out, updated)

        return jax.value_and_grad(total, (0, 1), has_aux=True)(variables["params"], x)

    expected = run(plain, lambda x: x, lambda y: upsample_nearest(y, 1, repeated))
    found = run(packed, lambda x: pack(x, before), lambda y: unpack(y, after))
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5 * np.abs(one).max())


def test_a_packed_hrnet_is_the_plain_one(random_tree):
    """All branches and exchanges; from 32 channels on 4, 2, 1 and 1 pixels are packed."""
    spec = HRNetSpec(32, modules=(0, 1, 1), blocks=1, stem=8, stem_blocks=1, stem_width=8)
    images = RNG.standard_normal((2, 32, 96, 3)).astype(np.float32)
    plain, packed = HRNet(spec), HRNet(spec, packed=True)
    variables = random_tree(jax.eval_shape(lambda key: plain.init(key, images, True), jax.random.key(0)))

    def run(net):
        return jax.jit(lambda variables: net.apply(variables, images, True, mutable=["batch_stats"]))(variables)

    expected, found = run(plain), run(packed)
    assert found[0].shape == (2, 8, 24, 32)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize("packed", [False, True])
def test_a_recipe_packs_its_backbone(miniature, packed):
    assert build_model(miniature(model__packed=packed)).bind({}).hrnet.packed is packed


def test_expanded_kernels_keep_every_tap():
    """Once for each pixel that they make, and zeros elsewhere."""
    kernel = RNG.standard_normal((3, 3, 2, 5))
    wide = np.asarray(expand_kernel(kernel, 4, 2))
    assert wide.shape == (3, 3, 8, 10) and np.count_nonzero(wide) == 2 * kernel.size
    np.testing.assert_allclose(wide.sum((0, 1, 2)), np.tile(kernel.sum((0, 1, 2)), 2), rtol=1e-4)
