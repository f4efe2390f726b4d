import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.diffusion.process import Schedule
from dpose_jax.diffusion.sampler import SamplerSettings
from dpose_jax.models.diffusion_pose import build_model
from dpose_jax.models.initialise import abstract_variables, initial_variables
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.recipe import Masks
from dpose_jax.training.step import heatmap_loss

SCHEDULE = Schedule()
BATCH, JOINTS, SIZE = 3, 17, (64, 32)


def draw_batch(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "images": rng.integers(0, 256, (BATCH, *SIZE, 3), np.uint8),
        "keypoints": (rng.random((BATCH, JOINTS, 2)) * (31, 63)).astype(np.float32),
        "visible": (np.arange(BATCH * JOINTS).reshape(BATCH, JOINTS) % 4 > 0).astype(np.float32),
        "t": np.array([5, 40, 300]),
        "noise": rng.standard_normal((BATCH, JOINTS, 2)).astype(np.float32),
        "coarse_input": np.zeros(BATCH, np.float32),
    }


def paths(tree):
    return {
        "/".join(key.key for key in path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.fixture(scope="module")
def model(small_model):
    return small_model()


@pytest.fixture(scope="module")
def variables(model, random_tree):
    return random_tree(abstract_variables(model))


@pytest.fixture(scope="module")
def differentiate(model, variables):
    """(batch, weights of the two terms) -> terms, outputs, gradients of a training pass: one compile for all tests."""

    @jax.jit
    def run(params, batch, weights):
        def loss(params):
            all_variables = {"params": params, "batch_stats": variables["batch_stats"]}
            outputs, _ = model.apply(all_variables, **batch, schedule=SCHEDULE, train=True, mutable=["batch_stats"])
            target = model.codec.encode(batch["keypoints"], batch["visible"])
            terms = [heatmap_loss(out, target, batch["visible"]) for out in outputs]
            return weights[0] * terms[0] + weights[1] * terms[1], (terms, outputs)

        (_, (terms, outputs)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return terms, outputs, gradients

    def call(batch, weights=(1.0, 1.0)):
        terms, outputs, gradients = jax.device_get(run(variables["params"], batch, weights))
        return terms, outputs, paths(gradients)

    return call


def test_gradients_reach_every_parameter(differentiate):
    gradients = differentiate(draw_batch())[2]
    norms = {name: np.linalg.norm(gradient) for name, gradient in gradients.items()}
    # A bias of the keys adds one number to all logits of a query, which the softmax over keys takes out again.
    without = {"attention/spatial_key/bias"}
    assert {name for name, norm in norms.items() if norm < 1e-6} == without
    assert all(np.isfinite(norm) for norm in norms.values())


def test_each_term_reaches_its_own_branch(differentiate):
    """The coarse term trains backbone and coarse head; the diffusion term everything else and the backbone."""
    batch = draw_batch()
    for weights, silent in [((1.0, 0.0), {"coarse_head"}), ((0.0, 1.0), {"attention", "merge", "decoder"})]:
        gradients = differentiate(batch, weights)[2]
        assert {name.split("/")[0] for name, gradient in gradients.items() if not gradient.any()} == silent
    # Fed with the model's own heatmaps, the decoder still does not train the coarse head.
    gradients = differentiate(batch | {"coarse_input": np.ones(BATCH, np.float32)}, (1.0, 0.0))[2]
    assert not gradients["coarse_head/kernel"].any() and gradients["decoder/stem/kernel"].any()


@pytest.mark.parametrize("coarse_input", [0.0, 1.0])
def test_an_unlabelled_joint_changes_nothing(differentiate, coarse_input):
    batch = draw_batch() | {"coarse_input": np.full(BATCH, coarse_input, np.float32)}
    hidden = batch["visible"] == 0
    moved, noise = batch["keypoints"].copy(), batch["noise"].copy()
    moved[hidden] = [1000.0, -7.0]
    noise[hidden] = 3.0
    before, after = differentiate(batch), differentiate(batch | {"keypoints": moved, "noise": noise})
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(one, other)


def test_loss_is_its_definition(differentiate):
    """Squared error, mean over pixels and labelled joints, against targets drawn in numpy."""
    batch = draw_batch()
    terms, outputs, _ = differentiate(batch)
    y, x = np.mgrid[:16, :8]
    for term, out in zip(terms, outputs, strict=True):
        errors = []
        for b, j in zip(*np.nonzero(batch["visible"]), strict=True):
            # Corner pixel centres of crop and map coincide: 63 crop pixels are 15 of the map.
            cx, cy = batch["keypoints"][b, j] * (7 / 31, 15 / 63)
            target = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 2.0**2))
            errors.append(np.mean((out[b, :, :, j] - target) ** 2))
        np.testing.assert_allclose(term, np.mean(errors), rtol=1e-5)


def test_coarse_heatmaps_replace_the_noised_joints(differentiate):
    batch = draw_batch() | {"coarse_input": np.array([1, 0, 1], np.float32)}
    other = draw_batch(seed=1)
    other = batch | {name: other[name] for name in ("keypoints", "noise")} | {"t": np.array([999, 999, 999])}
    (before, _), (after, _) = differentiate(batch)[1], differentiate(other)[1]
    np.testing.assert_array_equal(before[[0, 2]], after[[0, 2]])
    assert np.abs(before[1] - after[1]).max() > 1e-3


def test_training_on_coarse_heatmaps_is_one_step_of_sampling(model, variables):
    """What own_share feeds the decoder is what the `direct` sampler feeds it in its first step."""
    batch = draw_batch() | {"coarse_input": np.ones(BATCH, np.float32)}
    estimate, coarse = jax.jit(lambda v, b: model.apply(v, **b, schedule=SCHEDULE, train=False))(variables, batch)
    sampler = PoseSampler(model, SCHEDULE, (SamplerSettings(steps=1),), flip=False, seed=0)
    (start, final), *_ = jax.jit(sampler.trace)(variables, batch["images"], np.arange(BATCH))
    np.testing.assert_allclose(start, coarse, atol=1e-5)
    np.testing.assert_allclose(final, estimate, atol=1e-4)


def test_detached_coarse_branch_does_not_train_the_backbone(model, variables):
    model = model.clone(settings=dataclasses.replace(model.settings, detach_coarse=True))

    @jax.jit
    @jax.grad
    def gradient(params):
        stats = variables["batch_stats"]
        out, _ = model.apply(
            {"params": params, "batch_stats": stats},
            draw_batch()["images"],
            True,
            method="encode",
            mutable=["batch_stats"],
        )
        return jnp.sum(out[1] ** 2)

    gradients = paths(gradient(variables["params"]))
    assert gradients["coarse_head/kernel"].any()
    assert not any(g.any() for name, g in gradients.items() if name.startswith("hrnet/"))


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_every_stride_has_its_heatmaps_and_the_same_parameters(model, small_model, stride):
    other = small_model(stride=stride)
    assert jax.tree.map(lambda a: a.shape, abstract_variables(other)) == jax.tree.map(
        lambda a: a.shape, abstract_variables(model)
    )
    run = lambda v, b: other.apply(v, **b, schedule=SCHEDULE, train=False)  # noqa: E731
    for out in jax.eval_shape(run, abstract_variables(other), draw_batch()):
        assert (out.shape, out.dtype) == ((BATCH, 64 // stride, 32 // stride, JOINTS), jnp.float32)


def test_stride_8_runs(model, small_model, variables):
    """The same features and coarse heatmaps at half the size, and an estimate that depends on the noised joints."""
    batch = draw_batch()
    other = small_model(stride=8)
    run = jax.jit(lambda v, b: other.apply(v, **b, schedule=SCHEDULE, train=False))
    estimate, coarse = run(variables, batch)
    encode = jax.jit(lambda v, x: model.apply(v, x, method="encode"))
    reference = np.asarray(encode(variables, batch["images"])[1])
    np.testing.assert_allclose(coarse, slow_resize(reference, (8, 4)), atol=1e-5)
    assert np.abs(estimate - run(variables, batch | {"noise": -batch["noise"]})[0]).max(axis=(1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_features_and_masks_stay_at_stride_4(model, small_model, stride):
    """Only x^c and the coarse heatmaps are resized, and every joint keeps its place in the crop."""
    other = small_model(stride=stride)
    x = np.random.default_rng(0).standard_normal((2, 16, 8, 3)).astype(np.float32)
    resized = other.apply({}, x, method="_to_heatmap_size")
    np.testing.assert_allclose(resized, slow_resize(x, other.codec.size), atol=1e-5)
    batch = draw_batch()
    y = np.random.default_rng(0).uniform(-1, 1, (BATCH, JOINTS, 2))
    for ours, theirs in zip(
        other.apply({}, y, batch["visible"], method="draw_masks"),
        model.apply({}, y, batch["visible"], method="draw_masks"),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def slow_resize(x, size):
    """Linear on one axis after the other, corner pixel centres on corner pixel centres."""
    for axis, length in zip((1, 2), size, strict=True):
        position = np.arange(length) * (x.shape[axis] - 1) / (length - 1)
        low = np.floor(position).astype(int)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        weight = (position - low).reshape(-1, *[1] * (3 - axis))
        x = np.take(x, low, axis) * (1 - weight) + np.take(x, high, axis) * weight
    return x


def test_masks_select_the_pixels_around_joints_and_limbs(model):
    """A joint at [-1, 1]'s corner is the corner pixel; off, a mask is a map of ones."""
    y = np.full((1, JOINTS, 2), -1.0, np.float32)
    y[0, 5], y[0, 6] = [1.0, -1.0], [1.0, 1.0]  # the shoulders, joined by a limb
    visible = np.zeros((1, JOINTS), np.float32)
    visible[0, [5, 6]] = 1
    kps, ske = (np.asarray(m)[0, :, :, 0] for m in model.apply({}, y, visible, method="draw_masks"))
    rows, columns = np.mgrid[:16, :8]
    # Widths are given at 64 rows: 6 and 3 px there are 1.5 and .75 px at 16.
    near = [np.hypot(rows - row, columns - 7) <= 1.5 for row in (0, 15)]
    np.testing.assert_array_equal(kps, near[0] | near[1])
    np.testing.assert_array_equal(ske, columns == 7)
    for settings, ones in [
        (Masks(keypoints=False), [True, False]),
        (Masks(skeleton=False), [False, True]),
        (Masks(keypoints=False, skeleton=False), [True, True]),
    ]:
        masks = model.clone(masks=settings).apply({}, y, visible, method="draw_masks")
        assert [bool((mask == 1).all()) for mask in masks] == ones


def test_initial_variables_belong_to_their_path(small_model):
    first, again, other = (paths(initial_variables(small_model(), seed)) for seed in (0, 0, 1))
    deeper = paths(initial_variables(small_model(model__decoder_blocks=2, model__time_embedding=True), 0))
    kernels = [name for name in first if name.endswith("kernel")]
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
        if value.shape == deeper[name].shape:
            np.testing.assert_array_equal(value, deeper[name])
    assert len({first[name].ravel()[0] for name in kernels}) == len(kernels)
    assert all((first[name] != other[name]).all() for name in kernels)


def test_initial_variables_have_their_spread(small_model):
    values = paths(initial_variables(small_model(model__decoder_channels=64), 0))
    for name, value in values.items():
        kind = name.split("/")[-1]
        if kind != "kernel":
            assert (value == (kind in ("scale", "var"))).all(), name
            continue
        fan_in, fan_out = np.prod(value.shape[:-1]), np.prod(value.shape) / value.shape[-2]
        std = np.sqrt(2 / fan_out) if "/hrnet/" in name else np.sqrt(1 / fan_in)
        if name in ("params/coarse_head/kernel", "params/decoder/head/kernel"):
            std = 0.001
        assert abs(value.std() / std - 1) < 5 / np.sqrt(2 * value.size), name


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("stride", 3, r"stride=3: must be one of"),
        ("input_size", (60, 32), r"input_size=\(60, 32\): must be .* multiples of 32"),
        ("input_size", (0, 32), r"input_size=\(0, 32\): must be"),
        ("input_size", (64,), r"input_size=\(64,\): must be 2 numbers"),
        ("joint_set", "nobody", r"joint_set.*nobody"),
        ("codec__name", "udp", r"codec\.name='udp'"),
        ("codec__sigma", 0.0, r"codec\.sigma=0\.0"),
        ("masks__radius", 0.0, r"masks\.radius=0\.0: must be positive"),
        ("masks__half_width", -1.0, r"masks\.half_width=-1\.0"),
        ("masks__softness", -1.0, r"masks\.softness=-1\.0"),
        ("model__backbone", "w64", r"model\.backbone='w64': must be one of \[.*'tiny', 'w18_small', 'w32', 'w48'\]"),
        ("model__head_dim", (7, 7), r"model\.head_dim=\(7, 7\)"),
        ("model__width", 0, r"model\.width=0: must lie in \[1, "),
        ("model__window", 0, r"model\.window=0: must lie in \[1, "),
        ("model__decoder_channels", 0, r"model\.decoder_channels=0: must lie in \[1, "),
        ("model__decoder_blocks", 0, r"model\.decoder_blocks=0: must lie in \[1, "),
        ("model__head_dim", (32, 16), r"model\.head_dim=\(32, 16\)"),
        ("model__dtype", "float16", r"model\.dtype='float16'"),
        ("codec__refine", "taylor", r"codec\.refine='taylor'.*dark.*quarter.*none"),
        ("codec__sigma", float("nan"), r"codec\.sigma=nan.*finite"),
        ("codec__blur", 4, r"codec\.blur=4.*odd"),
        ("codec__blur", -1, r"codec\.blur=-1.*lie in"),
        ("diffusion__schedule", "sqrt", r"diffusion\.schedule='sqrt'.*cosine.*linear"),
        ("diffusion__timesteps", 0, r"diffusion\.timesteps=0.*lie in"),
        ("diffusion__zeta", 0.0, r"diffusion\.zeta=0\.0.*positive"),
        ("diffusion__zeta", float("nan"), r"diffusion\.zeta=nan.*finite"),
    ],
)
def test_fields_out_of_range_are_named(miniature, field, value, message):
    with pytest.raises(ValueError, match=message):
        build_model(miniature(**{field: value}))
