"""A new backbone is one module and one entry of BACKBONES: everything else takes it from there."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.diffusion.sampler import SamplerSettings
from dpose_jax.models import sgdd, summary
from dpose_jax.models.backbones import BACKBONES, Backbone, get_backbone
from dpose_jax.models.diffusion_pose import build_model, build_schedule
from dpose_jax.models.initialise import initial_variables
from dpose_jax.models.layers import BatchNorm, Conv3x3
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.models.weights.fill import BACKBONE
from dpose_jax.training.initial_weights import starting_variables
from dpose_jax.training.optimizer import make_optimizer
from dpose_jax.training.state import initial_state
from dpose_jax.training.step import make_train_step
from dpose_jax.workdir import model_folder
from dpose_jax.workdir.compatibility import differences

BATCH, JOINTS = 2, 17


class Plain(nn.Module):
    """Two convolutions of stride 2; a parameter that is no kernel."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images, train):
        x = nn.relu(BatchNorm(dtype=self.dtype)(Conv3x3(8, strides=2, dtype=self.dtype)(images), train))
        offset = self.param("offset", nn.initializers.zeros, (self.width,))
        return Conv3x3(self.width, strides=2, dtype=self.dtype)(x) + offset.astype(self.dtype)


class Bare(nn.Module):
    """Convolutions alone, of these strides."""

    width: int
    strides: tuple[int, ...]

    @nn.compact
    def __call__(self, images, train):
        for stride in self.strides:
            images = Conv3x3(self.width, strides=stride)(images)
        return images


@pytest.fixture
def recipe(monkeypatch, miniature):
    """A recipe of a model with the backbone of this module."""
    plain = Backbone(8, lambda width, dtype, remat, packed: Plain(width, dtype), initial_std=lambda path, shape: 0.25)
    monkeypatch.setitem(BACKBONES, "plain", plain)
    return miniature(input_size=(64, 32), model__backbone="plain", optim__freeze_backbone_steps=1, optim__ema=0.0)


def draw_batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (BATCH, 64, 32, 3), np.uint8),
        "keypoints": (rng.random((BATCH, JOINTS, 2)) * (31, 63)).astype(np.float32),
        "visible": np.ones((BATCH, JOINTS), np.float32),
        "annotation_id": np.arange(BATCH, dtype=np.int32),
        "bad_index": np.full(BATCH, -1, np.int32),
    }


def test_a_new_backbone_starts_trains_freezes_samples_and_is_stored(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(sgdd, "LEVELS", (1, 2))  # half the depth, which is most of the time to compile
    model, schedule = build_model(recipe), build_schedule(recipe.diffusion)
    variables = initial_variables(model, recipe.seed)
    assert abs(variables["params"][BACKBONE]["Conv_1"]["kernel"].std() - 0.25) < 0.02
    assert variables["params"][BACKBONE]["offset"].any()

    optimizer = make_optimizer(recipe.optim, recipe.train)
    state, batch, key = initial_state(variables, optimizer), draw_batch(), jax.random.key(0)
    steps = [
        jax.jit(make_train_step(recipe, model.clone(freeze_backbone=frozen), schedule, optimizer))
        for frozen in (True, False)
    ]
    frozen, _ = steps[0](state, batch, key)
    jax.tree.map(np.testing.assert_array_equal, frozen.params[BACKBONE], state.params[BACKBONE])
    jax.tree.map(np.testing.assert_array_equal, frozen.batch_stats, state.batch_stats)
    # The second step has a learning rate: warm-up starts at 0.
    trained, metrics = steps[1](frozen, batch, key)
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    for leaf, before in zip(*map(jax.tree.leaves, (trained.params[BACKBONE], frozen.params[BACKBONE])), strict=True):
        assert (leaf != before).any()

    found = {"params": trained.params, "batch_stats": trained.batch_stats}
    model_folder.save(str(tmp_path), found, recipe, step=2)
    stored, read, _ = model_folder.load(str(tmp_path))
    assert stored.model.backbone == "plain"
    jax.tree.map(np.testing.assert_array_equal, read, jax.device_get(found))
    sampler = PoseSampler(build_model(stored), schedule, (SamplerSettings(steps=1),), flip=True, seed=0)
    for keypoints, scores in jax.jit(sampler.joints)(read, batch["image"], np.arange(BATCH)).values():
        assert keypoints.shape == (BATCH, JOINTS, 2) and np.isfinite(keypoints).all() and np.isfinite(scores).all()


def test_a_new_backbone_is_summarised(recipe, capsys):
    summary.main(recipe)
    rows = dict(line[2:].split(" | ", 1) for line in capsys.readouterr().out.splitlines() if line.startswith("| "))
    assert list(rows) == ["part", "backbone", *summary.PARTS, "whole"]
    parts = summary.summarise(build_model(recipe))
    assert parts["backbone"].parameters == 27 * 8 + 8 + 16 + 72 * 8 + 8 + 8
    assert parts["backbone"].macs == 32 * 16 * 27 * 8 + 16 * 8 * 72 * 8
    whole = summary.summarise_backbone(recipe, "plain")
    assert whole.macs == parts["backbone"].macs + parts["coarse head"].macs
    assert whole.parameters == parts["backbone"].parameters + parts["coarse head"].parameters


def test_a_new_backbone_without_batch_norm(recipe, monkeypatch):
    monkeypatch.setattr(sgdd, "LEVELS", (1, 2))
    monkeypatch.setitem(BACKBONES, "plain", Backbone(8, lambda width, dtype, remat, packed: Bare(width, (2, 2))))
    recipe = recipe.override({"optim.ema": 0.9})
    model, schedule = build_model(recipe), build_schedule(recipe.diffusion)
    optimizer = make_optimizer(recipe.optim, recipe.train)
    state = initial_state(initial_variables(model, 0), optimizer)
    step = make_train_step(recipe, model, schedule, optimizer)
    after, _ = jax.eval_shape(step, state, draw_batch(), jax.random.key(0))
    assert jax.tree.structure(after) == jax.tree.structure(state) and after.batch_stats == {}
    assert summary.summarise(model)["backbone"].kept > 0


def test_a_backbone_of_another_stride_is_named(recipe, monkeypatch):
    monkeypatch.setitem(BACKBONES, "plain", Backbone(8, lambda width, dtype, remat, packed: Bare(width, (2, 2, 2))))
    with pytest.raises(ValueError, match=r"model\.backbone='plain': gave \(1, 8, 4, 8\), must give \(1, 16, 8, 8\)"):
        initial_variables(build_model(recipe), 0)


def test_a_new_backbone_without_published_weights(recipe, tmp_path):
    with pytest.raises(ValueError, match=r"nobody publishes weights of model\.backbone='plain', only of \['w18_small'"):
        starting_variables(recipe.override({"model.pretrained": "imagenet"}), build_model(recipe))
    (tmp_path / "file.pth").write_bytes(b"")
    source = recipe.override({"model.pretrained": str(tmp_path / "file.pth")})
    with pytest.raises(ValueError, match=r"file\.pth': no published weights are known for model\.backbone='plain'"):
        starting_variables(source, build_model(recipe))


def test_width_of_the_table_and_of_the_recipe(recipe):
    assert get_backbone(recipe.model).width == 8
    wider = recipe.override({"model.width": 16})
    assert get_backbone(wider.model).width == 16 and build_model(wider).backbone.width == 16
    assert differences(wider, recipe, training=False) == ["model.width: 8 there, 16 in the config"]
    assert differences(recipe.override({"model.width": 8}), recipe, training=False) == []


def test_a_leaf_without_a_rule_is_named(recipe, monkeypatch):
    monkeypatch.setitem(BACKBONES, "plain", Backbone(8, lambda width, dtype, remat, packed: Plain(width, dtype)))
    with pytest.raises(ValueError, match="no rule to initialise params/hrnet/offset"):
        initial_variables(build_model(recipe), 0)
