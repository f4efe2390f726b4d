import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.models.sgdd import SGDD, time_features

JOINTS, CHANNELS = 3, 8
T = np.array([3, 700])


def inputs(size):
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2, *size, channels)).astype(np.float32) for channels in (JOINTS, CHANNELS)]


@pytest.fixture(scope="module")
def build(random_tree):
    def build(size=(9, 7), **fields):
        module = SGDD(JOINTS, CHANNELS, blocks=1, **fields)
        heatmaps, condition = inputs(size)
        shapes = jax.eval_shape(module.init, jax.random.key(0), heatmaps, condition, jnp.asarray(T))
        return module, random_tree(shapes), heatmaps, condition

    return build


@pytest.fixture(scope="module")
def plain(build):
    module, variables, heatmaps, condition = build()
    return jax.jit(module.apply), variables, heatmaps, condition


def test_odd_sizes_lose_no_pixel(plain):
    """Halving 9 x 7 three times and cutting on the way back: every input pixel still reaches the output."""
    apply, variables, heatmaps, condition = plain

    def total(*maps):
        return jnp.sum(apply(variables, *maps, T) ** 2)

    out = apply(variables, heatmaps, condition, T)
    assert out.shape == heatmaps.shape and out.dtype == jnp.float32
    for gradient in jax.jit(jax.grad(total, argnums=(0, 1)))(heatmaps, condition):
        assert (np.abs(gradient) > 1e-6).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (9, 7), (16, 12), (64, 48)])
def test_any_size_goes_down_to_an_eighth_and_back(size):
    module = SGDD(JOINTS, CHANNELS, blocks=2)

    def init(key):
        maps = [jnp.asarray(x) for x in inputs(size)]
        return module.init_with_output(key, *maps, jnp.asarray(T), capture_intermediates=True)

    out, variables = jax.eval_shape(init, jax.random.key(0))
    assert out.shape == (2, *size, JOINTS)
    bottom = variables["intermediates"]["middle3_block1"]["__call__"][0]
    assert bottom.shape == (2, -(-size[0] // 8), -(-size[1] // 8), 2 * CHANNELS)


def test_without_time_embedding_t_is_not_seen(plain, build):
    apply, variables, heatmaps, condition = plain
    np.testing.assert_array_equal(
        apply(variables, heatmaps, condition, T), apply(variables, heatmaps, condition, T[::-1].copy())
    )
    timed = build(time_embedding=True)[1]["params"]
    assert set(timed) - set(variables["params"]) == {"time1", "time2"}


def test_with_time_embedding_each_example_sees_its_own_t(build):
    module, variables, heatmaps, condition = build(time_embedding=True)
    apply = jax.jit(module.apply)
    before = np.asarray(apply(variables, heatmaps, condition, T))
    after = np.asarray(apply(variables, heatmaps, condition, np.array([3, 701])))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).max() > 1e-4


def test_time_features_are_sines_and_cosines():
    frequencies = 10_000.0 ** -(np.arange(4) / 4)
    angles = np.array([[0], [1], [999]]) * frequencies
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    np.testing.assert_allclose(time_features(jnp.array([0, 1, 999]), 8), expected, atol=1e-4)


def test_heatmaps_and_condition_matter_beyond_their_pixel(plain):
    """The U-Net's lowest level sees the whole of a small map."""
    apply, variables, heatmaps, condition = plain
    moved = condition.copy()
    moved[0, 0, 0] += 1
    change = np.asarray(apply(variables, heatmaps, moved, T) - apply(variables, heatmaps, condition, T))
    assert (np.abs(change[0]).max(axis=-1) > 0).all()
    np.testing.assert_array_equal(change[1], 0)
