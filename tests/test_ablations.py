"""Every ablation of the paper is a field: it builds, trains a step and samples, and does what its name says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dpose_jax.diffusion.sampler import SamplerSettings, sample, sampler_settings
from dpose_jax.models import sgdd
from dpose_jax.models.backbones import BACKBONES, hrnet_backbone
from dpose_jax.models.diffusion_pose import build_codec, build_model, build_schedule
from dpose_jax.models.hrnet import HRNetSpec
from dpose_jax.models.initialise import abstract_variables, initial_variables
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.training.state import initial_state
from dpose_jax.training.step import LOSS_TERMS, make_train_step

# HRNet without its stages, which no field here turns: most of the time to compile would be theirs.
BACKBONES["stem"] = hrnet_backbone(HRNetSpec(8, modules=(0, 0, 0), stem=8, stem_blocks=1, stem_width=4))
BATCH, JOINTS = 2, 17
# Each stride, and each value of every field that an ablation of the paper turns, at least once. 96 pixels at
# stride 8 are 12: as with 384 x 288, whose width is then 36, no multiple of 8.
CASES = {
    "everything": {"stride": 1, "input_size": (32, 64), "model__time_embedding": True, "masks__softness": 1.0},
    "keypoint_mask_without_A_s": {
        "stride": 2,
        "input_size": (64, 32),
        "masks__skeleton": False,
        "model__spatial_attention": False,
        "sampler__start": "random",
    },
    "skeleton_mask_without_A_c": {
        "stride": 4,
        "input_size": (96, 64),
        "masks__keypoints": False,
        "model__channel_attention": False,
        "model__detach_coarse": True,
        "sampler__update_rule": "ddim",
        "sampler__start": "coarse_noised",
        "sampler__refresh": True,
    },
    "neither_mask_nor_attention": {
        "stride": 8,
        "input_size": (128, 96),
        "masks__keypoints": False,
        "masks__skeleton": False,
        "model__spatial_attention": False,
        "model__channel_attention": False,
        "codec__name": "rounded",
        "codec__refine": "quarter",
    },
}


def draw_batch(config):
    rng = np.random.default_rng(0)
    height, width = config.input_size
    return {
        "image": rng.integers(0, 256, (BATCH, height, width, 3), np.uint8),
        "keypoints": (rng.random((BATCH, JOINTS, 2)) * (width - 1, height - 1)).astype(np.float32),
        "visible": np.ones((BATCH, JOINTS), np.float32),
        "annotation_id": np.arange(BATCH, dtype=np.int32),
        "bad_index": np.full(BATCH, -1, np.int32),
    }


@pytest.fixture(scope="module")
def ablation(miniature):
    """A function from overrides to a miniature config without HRNet's stages."""
    return lambda **overrides: miniature(model__backbone="stem", diffusion__own_share=0.0, **overrides)


@pytest.mark.parametrize("name", CASES)
def test_builds_trains_a_step_and_samples(ablation, monkeypatch, name):
    if name != "everything":
        monkeypatch.setattr(sgdd, "LEVELS", (1, 2))  # half the depth of D, which is most of the time to compile
    config = ablation(**CASES[name], sampler__steps=(2,))
    model, schedule = build_model(config), build_schedule(config.diffusion)
    optimizer = optax.with_extra_args_support(optax.sgd(1e-2, momentum=0.9))
    state, batch = initial_state(initial_variables(model, 0), optimizer), draw_batch(config)
    state, metrics = jax.jit(make_train_step(config, model, schedule, optimizer))(state, batch, jax.random.key(0))
    assert all(np.isfinite(metrics[name]) and metrics[name] > 0 for name in (*LOSS_TERMS, "loss", "grad_norm"))
    gradients = jax.tree_util.tree_leaves_with_path(state.opt_state[0].trace)
    silent = {"/".join(key.key for key in path) for path, gradient in gradients if not gradient.any()}
    # Only stages read the lower branches. A key's bias adds one number to all logits of a query: softmax drops it.
    lower = {
        name for name in silent if name.startswith("hrnet/transition") and not name.startswith("hrnet/transition1_0")
    }
    assert silent - lower <= {"attention/spatial_key/bias"}

    predict = jax.jit(PoseSampler(model, schedule, sampler_settings(config.sampler), flip=False, seed=0).joints)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    joints = predict(variables, batch["image"], np.arange(BATCH))
    assert set(joints) == {"coarse", "steps_2"}
    for keypoints, scores in joints.values():
        assert keypoints.shape == (BATCH, JOINTS, 2) and scores.shape == (BATCH, JOINTS)
        assert np.isfinite(keypoints).all() and np.isfinite(scores).all()


@pytest.mark.parametrize("channels", [64, 128, 256])
def test_the_papers_widths_at_384_x_288_and_stride_8(miniature, channels):
    """The map is 48 x 36, whose width is no multiple of 8: D goes down to 6 x 5 and comes back whole."""
    model = build_model(miniature(input_size=(384, 288), stride=8, model__decoder_channels=channels))
    variables = abstract_variables(model)
    heatmaps, condition = jnp.zeros((1, 48, 36, JOINTS)), jnp.zeros((1, 48, 36, channels))

    def denoise(variables):
        inputs = (heatmaps, condition, jnp.ones((1,), jnp.int32))
        return model.apply(variables, *inputs, method="denoise", capture_intermediates=True, mutable="intermediates")

    out, inner = jax.eval_shape(denoise, variables)
    assert out.shape == heatmaps.shape
    assert inner["intermediates"]["decoder"]["middle3_block0"]["__call__"][0].shape == (1, 6, 5, 2 * channels)
    assert variables["params"]["merge"]["kernel"].shape[-1] == channels


@pytest.mark.parametrize("keypoints", [True, False])
@pytest.mark.parametrize("skeleton", [True, False])
@pytest.mark.parametrize("attention", [True, False])
def test_masks_are_all_that_the_condition_sees_of_the_joints(ablation, random_tree, keypoints, skeleton, attention):
    """A joint alone has a disc and no limb; joints that change names have the same discs and other limbs.

    Without masks x^c does not depend on the joints; without SC-CA nothing reads the limbs.
    """
    halves = {"model__spatial_attention": attention, "model__channel_attention": attention}
    masks = {"masks__keypoints": keypoints, "masks__skeleton": skeleton}
    model = build_model(ablation(**halves, **masks))
    variables = random_tree(abstract_variables(model))
    rng = np.random.default_rng(0)
    y, alone = rng.uniform(-1, 1, (JOINTS, 2)), np.eye(JOINTS)[0]
    features = np.broadcast_to(rng.standard_normal((1, 16, 16, 8)).astype(np.float32), (4, 16, 16, 8))
    joints, visible = np.stack([y, -y, y, np.roll(y, 5, 0)]), np.stack([alone, alone, alone + 1 > 0, alone + 1 > 0])
    out = np.asarray(model.apply(variables, features, joints, visible.astype(np.float32), method="condition"))
    assert (np.abs(out[0] - out[1]).max() > 1e-3) == keypoints
    assert (np.abs(out[2] - out[3]).max() > 1e-3) == (skeleton and attention)


@pytest.mark.parametrize(
    ("off", "gone"),
    [
        ({"model__spatial_attention": False}, "spatial_"),
        ({"model__channel_attention": False}, "channel_"),
        ({"model__spatial_attention": False, "model__channel_attention": False}, ""),
    ],
)
def test_a_half_that_is_off_has_no_parameters(ablation, off, gone):
    whole, rest = (abstract_variables(build_model(ablation(**fields)))["params"] for fields in ({}, off))
    assert set(whole["attention"]) - set(rest.get("attention", {})) == {
        name for name in whole["attention"] if name.startswith(gone)
    }
    assert {name: whole[name] for name in set(whole) - {"attention"}} == {
        name: rest[name] for name in set(rest) - {"attention"}
    }


@pytest.mark.parametrize(("start", "sees"), [("random", False), ("coarse_noised", True), ("coarse", True)])
def test_a_random_start_does_not_see_the_coarse_branch(ablation, start, sees):
    config = ablation(input_size=(64, 32))
    codec, schedule = build_codec(config), build_schedule(config.diffusion)
    rng = np.random.default_rng(0)

    def run(joints):
        coarse = codec.encode(jnp.asarray(joints, jnp.float32), jnp.ones((BATCH, JOINTS)))
        # t_start = 100: at T nothing is left of the joints, whatever the start.
        return sample(
            coarse,
            settings=SamplerSettings(1, start=start, t_start=100),
            schedule=schedule,
            codec=codec,
            condition=lambda y: y.sum(axis=(1, 2)),
            denoise=lambda heatmaps, context, t: heatmaps * context[:, None, None, None],
            keys=jax.random.split(jax.random.key(0), BATCH),
        )[0]

    one, other = (run(rng.random((BATCH, JOINTS, 2)) * (31, 63)) for _ in range(2))
    assert (np.abs(one - other).max() > 1e-3) == sees
