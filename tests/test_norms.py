import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.models import layers_cpu
from dpose_jax.models.layers import UNAVERAGED, BatchNorm, GroupNorm, averaged, relu

RNG = np.random.default_rng(0)
CHANNELS = 4
PARAMS = {"scale": np.arange(1.0, 5.0, dtype=np.float32), "bias": np.full(CHANNELS, 0.5, np.float32)}
STATS = {"mean": np.arange(4.0, dtype=np.float32), "var": np.arange(1.0, 5.0, dtype=np.float32)}
VARIABLES = {"params": PARAMS, "batch_stats": STATS}


def torch_batch_norm(x, train):
    """torch.nn.BatchNorm2d by its documentation, in float64: biased to normalise, unbiased to remember."""
    x = x.astype(np.float64)
    mean, var, running = STATS["mean"], STATS["var"], STATS
    if train:
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        unbiased = x.var((0, 1, 2), ddof=1)
        running = {"mean": 0.9 * STATS["mean"] + 0.1 * mean, "var": 0.9 * STATS["var"] + 0.1 * unbiased}
    return (x - mean) / np.sqrt(var + 1e-5) * PARAMS["scale"] + PARAMS["bias"], running


# Two values a channel: the unbiased variance is twice the biased one.
@pytest.mark.parametrize("shape", [(4, 6, 5, CHANNELS), (2, 1, 1, CHANNELS)])
@pytest.mark.parametrize("train", [True, False])
def test_is_torchs(shape, train):
    x = 3 + 2 * RNG.standard_normal(shape).astype(np.float32)
    out, updated = BatchNorm().apply(VARIABLES, x, train, mutable=["batch_stats"])
    expected, running = torch_batch_norm(x, train)
    np.testing.assert_allclose(out, expected, atol=2e-4)
    for name in STATS:
        np.testing.assert_allclose(updated["batch_stats"][name], running[name], rtol=2e-6)


def test_agrees_with_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed: the reference of the published weights")
    x = RNG.standard_normal((2, 3, 2, CHANNELS)).astype(np.float32)
    layer = torch.nn.BatchNorm2d(CHANNELS)
    state = {"weight": PARAMS["scale"], "bias": PARAMS["bias"]} | {f"running_{n}": v for n, v in STATS.items()}
    layer.load_state_dict({name: torch.tensor(value) for name, value in state.items()}, strict=False)
    theirs = layer.train()(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    ours, updated = BatchNorm().apply(VARIABLES, x, True, mutable=["batch_stats"])
    np.testing.assert_allclose(ours, theirs.detach(), atol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], layer.running_var, rtol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], layer.running_mean, rtol=1e-6)


def test_moments_that_are_averaged_later_give_the_same_statistics():
    x = 3 + 2 * RNG.standard_normal((4, 6, 5, CHANNELS)).astype(np.float32)
    statistics = [
        BatchNorm().apply(VARIABLES, x, True, mutable=["batch_stats", *more])[1]["batch_stats"]
        for more in ([], [UNAVERAGED])
    ]
    np.testing.assert_allclose(statistics[1]["var"], x.var((0, 1, 2), ddof=1), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, statistics[0], averaged(STATS, statistics[1]))


def test_relu_is_linens():
    x = jnp.asarray([[-1.0, 0, 2, 1e-30], [-0.0, jnp.inf, -jnp.inf, 3]])
    (ours, backward), (theirs, theirs_backward) = jax.vjp(relu, x), jax.vjp(nn.relu, x)
    np.testing.assert_array_equal(ours, theirs)
    for gradient in (jnp.ones_like(x), -x.at[1, 1:3].set(5)):
        np.testing.assert_array_equal(backward(gradient)[0], theirs_backward(gradient)[0])


def test_one_value_a_channel_is_not_divided_by_zero():
    _, updated = BatchNorm().apply(VARIABLES, np.ones((1, 1, 1, CHANNELS)), True, mutable=["batch_stats"])
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 * STATS["var"], rtol=1e-6)


def test_statistics_are_float32_in_bfloat16():
    """Sums of bfloat16 itself would stop growing at a few hundred values."""
    x = jnp.asarray(3 + RNG.standard_normal((4, 40, 40, CHANNELS)), jnp.bfloat16)
    out, updated = BatchNorm(dtype=jnp.bfloat16).apply(VARIABLES, x, True, mutable=["batch_stats"])
    expected, running = torch_batch_norm(np.asarray(x, np.float32), True)
    assert out.dtype == jnp.bfloat16
    # Half a unit in the last of bfloat16's 8 bits, and what rounding the coefficients adds.
    np.testing.assert_allclose(np.asarray(out, np.float32), expected, rtol=2**-8, atol=0.05)
    for name in STATS:
        assert updated["batch_stats"][name].dtype == jnp.float32
        np.testing.assert_allclose(updated["batch_stats"][name], running[name], rtol=1e-5)


@pytest.mark.parametrize("train", [True, False])
def test_only_a_layer_that_trains_has_gradients(train):
    """Otherwise it is a constant map, which still passes gradients on to what comes before."""
    x, weights = (RNG.standard_normal((2, 3, 2, CHANNELS)).astype(np.float32) for _ in range(2))

    def total(params, x):
        out, _ = BatchNorm().apply({"params": params, "batch_stats": STATS}, x, train, mutable=["batch_stats"])
        return jnp.sum(weights * out)

    of_params, of_x = jax.grad(total, argnums=(0, 1))(PARAMS, x)
    assert all(gradient.all() if train else not gradient.any() for gradient in of_params.values())
    assert (np.abs(of_x) > 0).all()


def batch_norm(x, params):
    return BatchNorm().apply({"params": params, "batch_stats": STATS}, x, True, mutable=["batch_stats"])[0]


def group_norm(x, params):
    return GroupNorm(2, epsilon=1e-5).apply({"params": params}, x)


def definition(x, params, axes, groups):
    """Of either norm, in the precision of x."""
    cut = x.reshape(*x.shape[:-1], groups, -1)
    axes = (*axes, *([cut.ndim - 1] if groups < CHANNELS else []))
    mean, var = cut.mean(axes, keepdims=True), cut.var(axes, keepdims=True)
    return ((cut - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape) * params["scale"] + params["bias"]


FEW = {batch_norm: (2, 1, 1, CHANNELS), group_norm: (2, 2, 1, CHANNELS)}  # two values a moment, and four


@pytest.mark.parametrize(("norm", "axes", "groups"), [(batch_norm, (0, 1, 2), CHANNELS), (group_norm, (1, 2), 2)])
@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("platform", ["cpu", "default"])
def test_value_and_gradient_are_those_of_the_formula(monkeypatch, norm, axes, groups, few, platform):
    """In float64, derived by JAX from the definition; channels of far and near means, and a constant one.

    Both that of the CPU and that of other platforms.
    """
    choose = lambda *inputs, **forms: forms[platform](*inputs)  # noqa: E731
    monkeypatch.setattr(layers_cpu.lax, "platform_dependent", choose)
    shape = FEW[norm] if few else (4, 6, 5, CHANNELS)
    x = (RNG.standard_normal(shape) * [1, 3, 0.2, 0] + [0, 5, -0.3, 1]).astype(np.float32)
    weight = RNG.standard_normal(shape).astype(np.float32)

    def loss(of):
        return lambda x, params: jnp.sum(weight * of(x, params) ** 2)

    found = norm(x, PARAMS), jax.grad(loss(norm), argnums=(0, 1))(x, PARAMS)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (x, PARAMS))
        reference = lambda x, params: definition(x, params, axes, groups)  # noqa: E731
        expected = reference(*wide), jax.grad(loss(reference), argnums=(0, 1))(*wide)
    for ours_leaf, leaf in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours_leaf, leaf, rtol=2e-3, atol=2e-4 * np.abs(leaf).max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_group_norm_is_linens(dtype):
    """In value, gradient and names of its parameters; a batch whose examples differ a hundredfold."""
    x = jnp.asarray(RNG.standard_normal((3, 7, 5, 32)) * [[[[1]]], [[[10]]], [[[100]]]], dtype)
    weight = RNG.standard_normal(x.shape).astype(np.float32)
    ours, theirs = GroupNorm(8, dtype=dtype), nn.GroupNorm(8, dtype=dtype)
    params = {"scale": RNG.standard_normal(32).astype(np.float32), "bias": RNG.standard_normal(32).astype(np.float32)}
    assert jax.tree.map(np.shape, ours.init(jax.random.key(0), x)) == {"params": jax.tree.map(np.shape, params)}

    def value_and_gradient(layer):
        loss = lambda x, params: jnp.sum(weight * layer.apply({"params": params}, x))  # noqa: E731
        out = layer.apply({"params": params}, x)
        assert out.dtype == dtype
        return out, jax.grad(loss, argnums=(0, 1))(x, params)

    # One unit in the last of bfloat16's 8 bits.
    bound = 2**-7 if dtype == jnp.bfloat16 else 2e-5
    for mine, its in zip(*map(jax.tree.leaves, map(value_and_gradient, (ours, theirs))), strict=True):
        mine, its = np.asarray(mine, np.float32), np.asarray(its, np.float32)
        np.testing.assert_allclose(mine, its, rtol=bound, atol=bound * np.abs(its).max())
