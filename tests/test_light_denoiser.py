"""What makes the denoiser cheap: a light decoder, heads that give sub-pixels, and a share of the batch."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.diffusion.process import Schedule
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.models.initialise import abstract_variables, initial_variables
from dpose_jax.models.layers import depth_to_space, space_to_depth
from dpose_jax.models.sgdd import LightSGDD
from dpose_jax.training.state import TrainState
from dpose_jax.training.step import INPUTS, draw_inputs, heatmap_loss, make_train_step

JOINTS, BATCH = 17, 8
LIGHT = {"model__decoder": "light", "model__spatial_attention": False, "model__channel_attention": False}
SUB = {"stride": 2, "model__upsampling": "subpixel", "input_size": (64, 32)}


def slow_depth_to_space(x, factor):
    batch, height, width, channels = x.shape
    out = np.zeros((batch, height * factor, width * factor, channels // factor**2), x.dtype)
    for i in range(factor):
        for j in range(factor):
            first = (i * factor + j) * out.shape[-1]
            out[:, i::factor, j::factor] = x[..., first : first + out.shape[-1]]
    return out


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_depth_to_space_puts_channels_inside_their_pixel(factor):
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 3 * factor**2)).astype(np.float32)
    found = np.asarray(depth_to_space(jnp.asarray(x), factor))
    np.testing.assert_array_equal(found, slow_depth_to_space(x, factor))
    np.testing.assert_array_equal(space_to_depth(jnp.asarray(found), factor), x)


@pytest.mark.parametrize("size", [(1, 1), (9, 7), (16, 12)])
def test_the_light_decoder_has_the_same_parameters_at_any_size(size):
    def shapes(size):
        maps = jnp.zeros((2, *size, 3)), jnp.zeros((2, *size, 8)), jnp.zeros(2, jnp.int32)
        return jax.eval_shape(lambda key: LightSGDD(3, 8, 1, True).init_with_output(key, *maps), jax.random.key(0))

    out, variables = shapes(size)
    assert out.shape == (2, *size, 3) and variables == shapes((64, 48))[1]
    blocks = {name for name in variables["params"] if "block" in name}
    assert blocks == {f"{way}_block0" for way in ("down1", "down2", "down3", "up2", "up1")}  # none at full size


def test_every_parameter_of_the_light_decoder_learns_and_no_pixel_is_lost(random_tree):
    module, rng, t = LightSGDD(3, 8, 1), np.random.default_rng(0), jnp.zeros(2, jnp.int32)
    maps = [rng.standard_normal((2, 9, 7, channels)).astype(np.float32) for channels in (3, 8)]
    variables = random_tree(jax.eval_shape(module.init, jax.random.key(0), *maps, t))
    slopes = jax.jit(jax.grad(lambda v, *maps: jnp.sum(module.apply(v, *maps, t) ** 2), argnums=(0, 1, 2)))
    parameters, *pixels = slopes(variables, *maps)
    assert all(np.linalg.norm(leaf) > 1e-4 for leaf in jax.tree.leaves(parameters))
    assert all((np.abs(each) > 1e-6).all() for each in pixels)


def test_the_choice_of_decoder_leaves_the_other_parameters_as_they_were(small_model):
    models = [small_model(**(LIGHT | {"model__decoder": decoder})) for decoder in ("unet", "light")]
    unet, light = (initial_variables(model, 3) for model in models)
    jax.tree.map(np.testing.assert_array_equal, unet.pop("batch_stats"), light.pop("batch_stats"))
    decoders = unet["params"].pop("decoder"), light["params"].pop("decoder")
    jax.tree.map(np.testing.assert_array_equal, unet, light)
    assert decoders[0]["stem"]["kernel"].ndim == 4 and decoders[1]["stem"]["kernel"].ndim == 2


@pytest.mark.parametrize("decoder", ["unet", "light"])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_subpixel_heads_work_at_stride_4(small_model, decoder, stride):
    """Heatmaps have the codec's size; condition and decoder keep that of the features, whatever the stride."""
    model = small_model(stride=stride, model__upsampling="subpixel", **(LIGHT | {"model__decoder": decoder}))
    variables, factor = abstract_variables(model), 4 // stride
    for head in (variables["params"]["coarse_head"], variables["params"]["decoder"]["head"]):
        assert head["kernel"].shape[-1] == JOINTS * factor**2
    features, y, flags = jnp.zeros((2, 16, 8, 16)), jnp.zeros((2, JOINTS, 2)), jnp.ones((2, JOINTS))
    heatmaps, t = jnp.zeros((2, *model.codec.size, JOINTS)), jnp.zeros(2, jnp.int32)

    def run(variables):
        condition = model.apply(variables, features, y, flags, method="condition")
        return condition, model.apply(variables, heatmaps, condition, t, method="denoise")

    condition, out = jax.eval_shape(run, variables)
    assert condition.shape == (2, 16, 8, 8) and out.shape == (2, 64 // stride, 32 // stride, JOINTS)


def test_a_plain_hrnet_gives_subpixels_where_the_codec_draws_them(miniature, random_tree):
    """The head's channels of a position are its 2 x 2 heatmap pixels; what they show is decoded where it was drawn."""
    model = build_model(miniature(**SUB, loss__diffusion=0.0))
    variables = random_tree(abstract_variables(model))
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 32, 3), np.uint8)
    features, coarse = jax.jit(lambda v, x: model.apply(v, x, method="encode"))(variables, images)
    head = variables["params"]["coarse_head"]
    expected = slow_depth_to_space(np.asarray(features) @ head["kernel"] + head["bias"], 2)
    assert coarse.shape == (2, 32, 16, JOINTS)
    np.testing.assert_allclose(coarse, expected, atol=1e-4)
    joints = np.random.default_rng(1).uniform((4, 4), (27, 59), (2, JOINTS, 2)).astype(np.float32)
    channels = space_to_depth(model.codec.encode(joints, np.ones((2, JOINTS))), 2)  # what the head is trained to give
    np.testing.assert_allclose(model.codec.decode(depth_to_space(channels, 2))[0], joints, atol=0.02)
    # The mirrored crop has the mirrored joints at the mirrored pixels.
    mirrored = model.codec.encode(joints * (-1, 1) + (31, 0), np.ones((2, JOINTS)))
    np.testing.assert_allclose(depth_to_space(channels, 2)[:, :, ::-1], mirrored, atol=1e-5)


def draw_batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (BATCH, 64, 32, 3), np.uint8),
        "keypoints": (rng.random((BATCH, JOINTS, 2)) * (31, 63)).astype(np.float32),
        "visible": (rng.random((BATCH, JOINTS)) > 0.3).astype(np.float32),
        "annotation_id": np.arange(BATCH, dtype=np.int32),
        "bad_index": np.full(BATCH, -1, np.int32),
    }


@pytest.fixture(scope="module")
def half(miniature, random_tree):
    """A function from `train.accumulate` to recipe, model, variables and a step: (params, batch) -> metrics, gradient.

    BatchNorm does not see the batch, so that parts of it add up.
    """
    recipe = miniature(**SUB, **LIGHT, model__batch_norm="frozen", diffusion__every=2)
    model, schedule = build_model(recipe), build_schedule(recipe.diffusion)
    variables = random_tree(abstract_variables(model))
    # No update: the optimizer gives the gradient out instead.
    optimizer = types.SimpleNamespace(
        update=lambda gradients, state, params, batch_stats: (jax.tree.map(jnp.zeros_like, gradients), gradients)
    )

    @functools.cache
    def build(parts):
        step = jax.jit(make_train_step(recipe.override({"train.accumulate": parts}), model, schedule, optimizer))

        def run(params, batch):
            state = TrainState(jnp.int32(5), params, variables["batch_stats"], None)
            state, metrics = step(state, batch, jax.random.key(0))
            return metrics, state.opt_state

        return recipe, model, variables, run

    return build


@pytest.mark.parametrize(("parts", "seen"), [(1, [0, 2, 4, 6]), (2, [0, 1, 4, 5])])
def test_the_denoiser_sees_its_share_and_the_coarse_branch_every_row(half, parts, seen):
    """Both terms by their definition, from a pass in which the denoiser sees all; and what other rows change.

    Of two parts, rows 0, 2, 4, 6 and 1, 3, 5, 7, it sees every other row.
    """
    recipe, model, variables, run = half(parts)
    batch = draw_batch()
    inputs = draw_inputs(recipe.diffusion, jnp.int32(5), batch, jax.random.key(0))
    arrays = [inputs[name] for name in INPUTS]
    whole = jax.jit(lambda variables: model.apply(variables, *arrays, schedule=Schedule(), train=False))
    outputs, target = whole(variables), np.asarray(model.codec.encode(batch["keypoints"], batch["visible"]))
    metrics, _ = run(variables["params"], batch)
    rows = np.array(seen)
    diffusion = heatmap_loss(outputs.diffusion[rows], target[rows], batch["visible"][rows])
    np.testing.assert_allclose(metrics["loss_diffusion"], diffusion, rtol=1e-4)
    coarse = heatmap_loss(outputs.coarse, target, batch["visible"])
    np.testing.assert_allclose(metrics["loss_coarse"], coarse, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], diffusion + coarse, rtol=1e-4)
    for row in (4, 7):
        moved = batch["keypoints"].copy()
        moved[row] = moved[row][:, ::-1] / 2
        after, _ = run(variables["params"], batch | {"keypoints": moved})
        assert (after["loss_diffusion"] != metrics["loss_diffusion"]) == (row in seen)
        assert after["loss_coarse"] != metrics["loss_coarse"]


def test_the_gradient_is_that_of_the_loss(half):
    """Along its own direction, by central differences."""
    _, _, variables, run = half(1)
    params, batch = variables["params"], draw_batch()
    metrics, slope = run(params, batch)
    size = float(metrics["grad_norm"])
    step = 1e-2 / size

    def moved(sign):
        return run(jax.tree.map(lambda p, g: p + sign * step / size * g, params, slope), batch)[0]["loss"]

    np.testing.assert_allclose((moved(1) - moved(-1)) / (2 * step), size, rtol=0.02)
