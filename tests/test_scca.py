import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.models.scca import SCCA, channel_attention, num_heads, window_attention


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def slow_channel(query, key, value, scale="width"):
    """[softmax(Q^T K d^-1/2) V^T]^T or with N^-1/2, one example and one group at a time, in float64."""
    out = np.zeros(value.shape)
    for b in range(query.shape[0]):
        for g in range(query.shape[2]):
            q, k, v = (x[b, :, g].astype(np.float64) for x in (query, key, value))
            count = q.shape[1] if scale == "width" else q.shape[0]
            out[b, :, g] = (softmax(q.T @ k * count**-0.5) @ v.T).T
    return out


def slow_window(query, key, value, window):
    """softmax(Q K^T d^-1/2) V for each window by itself, cut where the map ends: nothing is padded."""
    batch, height, width, heads, dim = query.shape
    out = np.zeros(value.shape)
    for y in range(0, height, window):
        for x in range(0, width, window):
            for b in range(batch):
                for h in range(heads):
                    part = (b, slice(y, y + window), slice(x, x + window), h)
                    q, k, v = (a[part].reshape(-1, dim).astype(np.float64) for a in (query, key, value))
                    out[part] = (softmax(q @ k.T * dim**-0.5) @ v).reshape(out[part].shape)
    return out


@pytest.mark.parametrize("scale", ["width", "positions"])
@pytest.mark.parametrize("shape", [(2, 12, 1, 4), (1, 35, 3, 8)])
def test_channel_half_is_its_equation(shape, scale):
    q, k, v = (draw(*shape, seed=seed) for seed in range(3))
    np.testing.assert_allclose(channel_attention(q, k, v, scale), slow_channel(q, k, v, scale), atol=2e-6)


def test_channel_half_is_linear_in_the_values():
    q, k, v, w = (draw(2, 20, 2, 4, seed=seed) for seed in range(4))
    mixed = channel_attention(q, k, 2 * v - 3 * w)
    np.testing.assert_allclose(mixed, 2 * channel_attention(q, k, v) - 3 * channel_attention(q, k, w), atol=2e-5)
    np.testing.assert_array_equal(channel_attention(q, k, np.zeros_like(v)), 0)


def test_channel_half_does_not_swap_the_roles():
    """The public DaViT code applies softmax(K^T V) to Q: another function, which does not vanish with V."""
    q, k, v = (draw(1, 20, 1, 4, seed=seed) for seed in range(3))
    swapped = slow_channel(v, k, q)
    assert np.abs(np.asarray(channel_attention(q, k, v)) - swapped).max() > 0.1


@pytest.mark.parametrize("size", [(8, 8), (9, 6), (5, 11), (3, 2)])
@pytest.mark.parametrize("window", [4, 8])
def test_window_half_is_each_window_by_itself(size, window):
    q, k, v = (draw(2, *size, 2, 4, seed=seed) for seed in range(3))
    np.testing.assert_allclose(window_attention(q, k, v, window), slow_window(q, k, v, window), atol=2e-6)


def test_a_window_sees_itself_alone():
    q, k, v = (draw(1, 8, 8, 1, 4, seed=seed) for seed in range(3))
    before = np.asarray(window_attention(q, k, v, 4))
    k[:, :4, :4], v[:, :4, :4] = 7, 9
    after = np.asarray(window_attention(q, k, v, 4))
    changed = (before != after).any(axis=(0, 3, 4))
    assert changed[:4, :4].all() and not changed[4:].any() and not changed[:, 4:].any()


@pytest.mark.parametrize("attend", [lambda *a: window_attention(*a, 4), channel_attention])
def test_weights_sum_to_one(attend):
    """Equal values come out as they are, also beside the padding."""
    shape = (2, 9, 6, 2, 4) if attend is not channel_attention else (2, 54, 2, 4)
    out = attend(draw(*shape, seed=0), draw(*shape, seed=1), np.full(shape, 2.5, np.float32))
    np.testing.assert_allclose(out, 2.5, rtol=1e-6)


@pytest.mark.parametrize("attend", [lambda *a: window_attention(*a, 4), channel_attention])
def test_query_key_and_value_matter(attend):
    shape = (1, 9, 6, 2, 4) if attend is not channel_attention else (1, 54, 2, 4)
    inputs = [draw(*shape, seed=seed) for seed in range(3)]
    gradients = jax.grad(lambda *a: jnp.sum(attend(*a) ** 2), argnums=(0, 1, 2))(*inputs)
    for gradient in gradients:
        assert np.isfinite(gradient).all() and (np.abs(gradient) > 1e-6).mean() > 0.99


@pytest.mark.parametrize("attend", [lambda *a: window_attention(*a, 4), channel_attention])
def test_large_logits_in_bfloat16(attend):
    """The softmax is in float32 and the result in the dtype of the values."""
    shape = (1, 9, 6, 2, 4) if attend is not channel_attention else (1, 54, 2, 4)
    q, k, v = (jnp.asarray(100 * draw(*shape, seed=seed), jnp.bfloat16) for seed in range(3))
    out = attend(q, k, v)
    assert out.dtype == jnp.bfloat16 and np.isfinite(np.asarray(out, np.float32)).all()


@pytest.fixture(scope="module")
def block(random_tree):
    """SCCA's inputs, its variables, and its outputs with both halves and with either."""
    kps, ske = draw(2, 9, 6, 8, seed=0), draw(2, 9, 6, 8, seed=1)
    both = SCCA(heads=2, window=4)
    variables = random_tree(jax.eval_shape(both.init, jax.random.key(0), kps, ske))

    def apply(kps, ske, **halves):
        return np.asarray(SCCA(heads=2, window=4, **halves).apply(variables, kps, ske))

    return kps, ske, variables["params"], apply


def test_scca_is_the_sum_of_its_halves(block):
    kps, ske, _, apply = block
    assert np.abs(apply(kps, ske, channel_scale="positions") - apply(kps, ske)).max() > 1e-3
    halves = apply(kps, ske, channel=False) + apply(kps, ske, spatial=False)
    np.testing.assert_allclose(apply(kps, ske), halves, atol=1e-6)


@pytest.mark.parametrize("name", ["spatial", "channel"])
def test_scca_half_is_its_equation(block, name):
    """Q from x^kps, K and V from x^ske: LayerNorm, projection, attention, projection, all in numpy."""
    kps, ske, params, apply = block

    def norm(x, layer):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * params[layer]["scale"] + params[layer]["bias"]

    def project(x, part):
        return x @ params[f"{name}_{part}"]["kernel"] + params[f"{name}_{part}"]["bias"]

    query, context = norm(kps, "norm_query"), norm(ske, "norm_context")
    q, k, v = (
        project(x, p).reshape(2, 9, 6, 2, 4) for x, p in [(query, "query"), (context, "key"), (context, "value")]
    )
    if name == "spatial":
        out = slow_window(q, k, v, 4)
    else:
        out = slow_channel(*(x.reshape(2, 54, 2, 4) for x in (q, k, v)))
    expected = project(out.reshape(2, 9, 6, 8), "out")
    other = {"spatial": "channel", "channel": "spatial"}[name]
    np.testing.assert_allclose(apply(kps, ske, **{other: False}), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "head_dim", "heads"),
    [(32, (16, 32), 2), (48, (16, 32), 3), (18, (16, 32), 1), (16, (16, 32), 1), (40, (16, 32), 2), (24, (8, 8), 3)],
)
def test_heads_are_as_many_as_fit(channels, head_dim, heads):
    assert num_heads(channels, head_dim) == heads


def test_channels_that_no_head_width_divides():
    with pytest.raises(ValueError, match=r"model\.head_dim=\(16, 32\).* 37 channels"):
        num_heads(37, (16, 32))
