"""DiffusionPose: backbone, coarse branch, masks and SC-CA, SGDD, joined as in the paper."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dpose_jax.diffusion.process import Schedule, q_sample, to_normalised
from dpose_jax.models.backbones import Backbone, get_backbone
from dpose_jax.models.layers import Dense, depth_to_space, space_to_depth
from dpose_jax.models.scca import SCCA, num_heads
from dpose_jax.models.sgdd import DECODERS
from dpose_jax.models.weights.fill import BACKBONE
from dpose_jax.pose.codec import Codec
from dpose_jax.pose.joint_sets import JointSet
from dpose_jax.pose.masks import joint_mask, limb_mask
from dpose_jax.recipe import Diffusion, Masks, Model, Recipe
from dpose_jax.runtime.sharding import each_nth

IMAGE_MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # ImageNet, RGB, 0..255
IMAGE_STD = np.array([58.395, 57.12, 57.375], np.float32)
FEATURE_STRIDE = 4


class Outputs(NamedTuple):
    """Heatmaps of a training pass, each (B, H, W, J) float32."""

    diffusion: Array  # y^_0^hm = D(y_t^hm, x^c); of each `every`-th example
    coarse: Array  # conv(x^fea)


class DiffusionPose(nn.Module):
    """The whole network. Each public method is one arrow of the paper's figure; `jax.jit` what calls them."""

    joint_set: JointSet
    codec: Codec
    masks: Masks
    backbone: Backbone
    settings: Model
    freeze_backbone: bool = False  # no gradient reaches it, and its BatchNorm uses and keeps its running statistics

    @property
    def dtype(self):
        """The dtype of compute; heads, losses and statistics are float32."""
        return {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[self.settings.dtype]

    @property
    def subpixels(self) -> int:
        """Heatmap pixels of a position of x^fea, along each axis, that the heads give as channels; 1: no more."""
        return FEATURE_STRIDE // self.codec.stride if self.settings.upsampling == "subpixel" else 1

    def setup(self):
        settings, dtype, remat = self.settings, self.dtype, self.settings.remat == "blocks"
        width, maps = self.backbone.width, self.joint_set.num_joints * self.subpixels**2
        setattr(self, BACKBONE, self.backbone.build(width, dtype, remat, settings.packed))
        self.coarse_head = Dense(maps)
        halves = settings.spatial_attention, settings.channel_attention
        if any(halves):
            heads = num_heads(width, settings.head_dim)
            self.attention = SCCA(heads, settings.window, *halves, settings.channel_scale, dtype)
        channels = settings.decoder_channels
        self.merge = Dense(channels, dtype=dtype)
        decoder = DECODERS[settings.decoder]
        self.decoder = decoder(maps, channels, settings.decoder_blocks, settings.time_embedding, dtype, remat)

    def encode(self, images: Array, train: bool = False) -> tuple[Array, Array]:
        """(B, Hx, Wx, 3) uint8 RGB -> x^fea (B, Hx/4, Wx/4, C) and coarse heatmaps conv(x^fea) (B, H, W, J) float32."""
        x = (images.astype(jnp.float32) - IMAGE_MEAN) / IMAGE_STD
        moving = train and self.settings.batch_norm == "train" and not self.freeze_backbone
        features = getattr(self, BACKBONE)(x.astype(self.dtype), moving)
        expected = (x.shape[0], x.shape[1] // FEATURE_STRIDE, x.shape[2] // FEATURE_STRIDE, self.backbone.width)
        if features.shape != expected:
            raise ValueError(f"model.backbone={self.settings.backbone!r}: gave {features.shape}, must give {expected}")
        features = jax.lax.stop_gradient(features) if self.freeze_backbone else features
        source = jax.lax.stop_gradient(features) if self.settings.detach_coarse else features
        maps = self.coarse_head(source.astype(jnp.float32))
        return features, depth_to_space(maps, self.subpixels) if self.subpixels > 1 else self._to_heatmap_size(maps)

    def draw_masks(self, y: Array, visible: Array) -> tuple[Array, Array]:
        """M^kps, M^ske of joints normalised to [-1, 1], (B, J, 2): two (B, Hx/4, Wx/4, 1); ones where off (ours)."""
        codec, masks = self.codec.at_stride(FEATURE_STRIDE), self.masks
        keypoints = codec.to_heatmap(self.codec.to_crop(self.codec.denormalise(y)))
        kps = ske = jnp.ones((y.shape[0], *codec.size, 1), jnp.float32)
        shape = {"size": codec.size, "softness": masks.softness}
        if masks.keypoints:
            kps = joint_mask(keypoints, visible, radius=masks.radius, **shape)
        if masks.skeleton:
            ske = limb_mask(keypoints, visible, limbs=self.joint_set.limbs, half_width=masks.half_width, **shape)
        return kps, ske

    def condition(self, features: Array, y: Array, visible: Array) -> Array:
        """x^c = C(x^kps (+) A(x^kps, x^ske, x^ske), x^fea), with the masks drawn at joints y. C, 1x1, is ours.

        x^fea (B, Hx/4, Wx/4, C), y as in `draw_masks`, flags (B, J) -> (B, H, W, decoder_channels) in `dtype`; with
        sub-pixels (B, Hx/4, Wx/4, decoder_channels), where the decoder then works.
        """
        kps, ske = (mask.astype(features.dtype) for mask in self.draw_masks(y, visible))
        guided = features * kps
        if self.settings.spatial_attention or self.settings.channel_attention:
            guided = guided + self.attention(guided, features * ske)
        merged = self.merge(jnp.concatenate([guided, features], axis=-1))
        return merged if self.subpixels > 1 else self._to_heatmap_size(merged)

    def denoise(self, heatmaps: Array, condition: Array, t: Array) -> Array:
        """y^_0^hm = D(y_t^hm, x^c): (B, H, W, J), x^c of `condition`, (B,) -> (B, H, W, J) float32."""
        maps = self.decoder(space_to_depth(heatmaps, self.subpixels), condition, t)
        return depth_to_space(maps, self.subpixels)

    def __call__(
        self,
        images: Array,
        keypoints: Array,
        visible: Array,
        t: Array,
        noise: Array,
        coarse_input: Array | None,
        *,
        schedule: Schedule,
        train: bool,
        every: int = 1,
    ) -> Outputs:
        """The training pass: forward diffusion of the true joints, then one denoising.

        Images (B, Hx, Wx, 3) uint8, keypoints (B, J, 2) in crop pixels, visible (B, J), t (B,) integer in 0..T, noise
        (B, J, 2) standard normal. `coarse_input` (B,) or None is 1 where the decoder gets the coarse heatmaps and their
        masks, as in sampling, instead of the noised joints (ours). The denoiser sees each `every`-th example, which
        divides B, backbone and coarse branch see all (ours).
        """
        features, coarse_of_all = self.encode(images, train)
        inputs = features, coarse_of_all, keypoints, visible, t, noise, coarse_input
        if every > 1:
            inputs = jax.tree.map(lambda rows: each_nth(rows, every), inputs)
        features, coarse, keypoints, visible, t, noise, coarse_input = inputs
        y_0 = self.codec.normalise(self.codec.to_heatmap(keypoints))
        y = to_normalised(schedule, q_sample(schedule, y_0, t, noise))
        heatmaps = self.codec.render(self.codec.denormalise(y), visible)
        if coarse_input is not None:
            start = jax.lax.stop_gradient(coarse)
            y_start = self.codec.normalise(self.codec.peaks(start, "dark")[0])
            share = coarse_input[:, None, None]
            y = jnp.where(share > 0, to_normalised(schedule, schedule.zeta * y_start), y)
            heatmaps = jnp.where(share[..., None] > 0, start, heatmaps)
            visible = jnp.where(coarse_input[:, None] > 0, 1.0, visible)
        condition = self.condition(features, y, visible)
        return Outputs(self.denoise(heatmaps, condition, t), coarse_of_all)

    def _to_heatmap_size(self, maps):
        return self.codec.resample(maps, self.codec.at_stride(FEATURE_STRIDE))


def build_codec(recipe: Recipe) -> Codec:
    """The codec of a recipe."""
    codec = recipe.codec
    return Codec(recipe.input_size, recipe.stride, codec.name, codec.refine, codec.sigma, codec.blur)


def build_schedule(diffusion: Diffusion) -> Schedule:
    """The noise schedule of a recipe."""
    return Schedule(diffusion.schedule, diffusion.timesteps, diffusion.zeta)


def build_model(recipe: Recipe) -> DiffusionPose:
    """The network of a recipe; raises ValueError if its backbone is unknown or `model.head_dim` does not fit."""
    settings, backbone = recipe.model, get_backbone(recipe.model)
    if settings.spatial_attention or settings.channel_attention:
        num_heads(backbone.width, settings.head_dim)
    frozen = recipe.optim.backbone_rate == 0
    return DiffusionPose(recipe.joints, build_codec(recipe), recipe.masks, backbone, settings, frozen)
