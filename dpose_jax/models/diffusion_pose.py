"""DiffusionPose: HRNet, coarse branch, masks and SC-CA, SGDD, joined as the paper's model forward process."""

import dataclasses
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dpose_jax.diffusion.process import Schedule, q_sample, to_normalised
from dpose_jax.diffusion.sampler import SamplerSettings, sample
from dpose_jax.models.hrnet import PRESETS, HRNet, HRNetSpec
from dpose_jax.models.scca import SCCA, num_heads
from dpose_jax.models.sgdd import SGDD
from dpose_jax.pose.codec import Codec
from dpose_jax.pose.joint_sets import JointSet
from dpose_jax.pose.masks import joint_mask, limb_mask
from dpose_jax.recipe import Diffusion, Masks, Recipe

IMAGE_MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # ImageNet, RGB, 0..255
IMAGE_STD = np.array([58.395, 57.12, 57.375], np.float32)
FEATURE_STRIDE = 4
DENOISER = ("attention", "merge", "decoder")  # the parts of the parameters that a plain HRNet lacks


class DiffusionPose(nn.Module):
    """The whole network. Each public method is one arrow of the paper's figure; `jax.jit` what calls them.

    Attributes:
      joint_set: joints and limbs; codec: coordinates and heatmaps; masks: M^kps and M^ske.
      backbone: HRNet's numbers.
      freeze_backbone: no gradient reaches HRNet, whose BatchNorm uses and keeps its running statistics.
      The rest are the fields of `config.model`.
    """

    joint_set: JointSet
    codec: Codec
    masks: Masks
    backbone: HRNetSpec
    head_dim: tuple[int, int] = (16, 32)
    window: int = 8
    spatial_attention: bool = True
    channel_attention: bool = True
    channel_scale: str = "width"
    decoder_channels: int = 64
    decoder_blocks: int = 2
    time_embedding: bool = False
    detach_coarse: bool = False
    batch_norm: str = "train"
    remat: str = "none"
    freeze_backbone: bool = False
    dtype: Any = jnp.float32

    def setup(self):
        remat = self.remat == "blocks"
        self.hrnet = HRNet(self.backbone, self.dtype, remat)
        self.coarse_head = nn.Dense(self.joint_set.num_joints)
        if self.spatial_attention or self.channel_attention:
            heads = num_heads(self.backbone.width, self.head_dim)
            halves = self.spatial_attention, self.channel_attention
            self.attention = SCCA(heads, self.window, *halves, self.channel_scale, self.dtype)
        self.merge = nn.Dense(self.decoder_channels, dtype=self.dtype)
        self.decoder = SGDD(
            self.joint_set.num_joints,
            self.decoder_channels,
            self.decoder_blocks,
            self.time_embedding,
            self.dtype,
            remat,
        )

    def encode(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """x^fea = HRNet(x) and the coarse heatmaps conv(x^fea).

        Args:
          images: (B, Hx, Wx, 3) uint8 RGB.
          train: BatchNorm uses, and updates, the batch's statistics, unless `batch_norm` is `frozen`.

        Returns:
          x^fea (B, Hx/4, Wx/4, C) and coarse heatmaps (B, H, W, J) float32.
        """
        x = (images.astype(jnp.float32) - IMAGE_MEAN) / IMAGE_STD
        moving = train and self.batch_norm == "train" and not self.freeze_backbone
        features = self.hrnet(x.astype(self.dtype), moving)
        if self.freeze_backbone:
            features = jax.lax.stop_gradient(features)
        source = jax.lax.stop_gradient(features) if self.detach_coarse else features
        coarse = self.coarse_head(source.astype(jnp.float32))
        return features, self._to_heatmap_size(coarse)

    def draw_masks(self, y: jax.Array, visible: jax.Array) -> tuple[jax.Array, jax.Array]:
        """M^kps and M^ske of joints normalised to [-1, 1], (B, J, 2), at stride 4: two (B, Hx/4, Wx/4, 1).

        A mask that is off is a map of ones (ours).
        """
        codec = self.codec.at_stride(FEATURE_STRIDE)
        size, keypoints = codec.size, codec.to_heatmap(self.codec.to_crop(self.codec.denormalise(y)))
        ones = jnp.ones((y.shape[0], *size, 1), jnp.float32)
        kps, ske, soft = ones, ones, self.masks.softness
        if self.masks.keypoints:
            kps = joint_mask(keypoints, visible, size=size, radius=self.masks.radius, softness=soft)
        if self.masks.skeleton:
            ske = limb_mask(
                keypoints,
                visible,
                limbs=self.joint_set.limbs,
                size=size,
                half_width=self.masks.half_width,
                softness=soft,
            )
        return kps, ske

    def condition(self, features: jax.Array, y: jax.Array, visible: jax.Array) -> jax.Array:
        """x^c = C(x^kps (+) A(x^kps, x^ske, x^ske), x^fea), with the masks drawn at joints y.

        Args:
          features: x^fea (B, Hx/4, Wx/4, C).
          y: (B, J, 2) joints normalised to [-1, 1]; visible: (B, J).

        Returns:
          (B, H, W, decoder_channels) in the compute dtype. The 1x1 convolution is ours.
        """
        kps, ske = (mask.astype(features.dtype) for mask in self.draw_masks(y, visible))
        guided = features * kps
        if self.spatial_attention or self.channel_attention:
            guided = guided + self.attention(guided, features * ske)
        merged = self.merge(jnp.concatenate([guided, features], axis=-1))
        return self._to_heatmap_size(merged)

    def denoise(self, heatmaps: jax.Array, condition: jax.Array, t: jax.Array) -> jax.Array:
        """y^_0^hm = D(y_t^hm, x^c): (B, H, W, J), (B, H, W, C), (B,) -> (B, H, W, J) float32."""
        return self.decoder(heatmaps, condition, t)

    def __call__(
        self,
        images: jax.Array,
        keypoints: jax.Array,
        visible: jax.Array,
        t: jax.Array,
        noise: jax.Array,
        own: jax.Array | None,
        *,
        schedule: Schedule,
        train: bool,
    ) -> tuple[jax.Array, jax.Array]:
        """The training pass: forward diffusion of the true joints, then one denoising.

        Args:
          images: (B, Hx, Wx, 3) uint8; keypoints: (B, J, 2) crop pixels; visible: (B, J).
          t: (B,) integer in 0..T; noise: (B, J, 2) standard normal.
          own: (B,) 1 where the decoder is fed the model's own coarse heatmaps and masks, as in sampling,
            instead of the noised joints; None for nowhere (ours).

        Returns:
          y^_0^hm and the coarse heatmaps, both (B, H, W, J) float32.
        """
        features, coarse = self.encode(images, train)
        y_0 = self.codec.normalise(self.codec.to_heatmap(keypoints))
        y = to_normalised(schedule, q_sample(schedule, y_0, t, noise))
        heatmaps = self.codec.render(self.codec.denormalise(y), visible)
        if own is not None:
            start = jax.lax.stop_gradient(coarse)
            y_start = self.codec.normalise(self.codec.peaks(start, "dark")[0])
            share = own[:, None, None]
            y = jnp.where(share > 0, to_normalised(schedule, schedule.zeta * y_start), y)
            heatmaps = jnp.where(share[..., None] > 0, start, heatmaps)
            visible = jnp.where(own[:, None] > 0, 1.0, visible)
        condition = self.condition(features, y, visible)
        return self.denoise(heatmaps, condition, t), coarse

    def _to_heatmap_size(self, maps):
        return self.codec.resample(maps, self.codec.at_stride(FEATURE_STRIDE))


def encode_images(model: DiffusionPose, variables, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x^fea and the coarse heatmaps of (B, Hx, Wx, 3) uint8 images, as `DiffusionPose.encode` gives them."""
    return cast(tuple[jax.Array, jax.Array], model.apply(variables, images, method="encode"))


def sample_heatmaps(
    model: DiffusionPose,
    variables,
    features: jax.Array,
    coarse: jax.Array,
    keys: jax.Array,
    *,
    settings: SamplerSettings,
    schedule: Schedule,
) -> tuple[jax.Array, jax.Array]:
    """The final heatmaps of a sampling run, and its trajectory.

    Args:
      variables: `params` and `batch_stats`.
      features: x^fea (B, Hx/4, Wx/4, C); coarse: (B, H, W, J), of `encode_images`.
      keys: (B K,) random keys, the K hypotheses of an example in a row.

    Returns:
      What `sampler.sample` returns for the B K hypotheses.
    """
    hypotheses = keys.shape[0] // features.shape[0]
    features, starts = (jnp.repeat(maps, hypotheses, axis=0) for maps in (features, coarse))
    seen = jnp.ones((keys.shape[0], model.joint_set.num_joints), jnp.float32)

    def condition(y):
        return model.apply(variables, features, y, seen, method="condition")

    def denoise(*inputs):
        return model.apply(variables, *inputs, method="denoise")

    return sample(
        starts,
        settings=settings,
        schedule=schedule,
        codec=model.codec,
        condition=condition,
        denoise=denoise,
        keys=keys,
    )


def build_codec(recipe: Recipe) -> Codec:
    """The codec of a recipe: `input_size`, `stride` and `codec`."""
    codec = recipe.codec
    return Codec(recipe.input_size, recipe.stride, codec.name, codec.refine, codec.sigma, codec.blur)


def build_schedule(diffusion: Diffusion) -> Schedule:
    """The noise schedule of a recipe."""
    return Schedule(diffusion.schedule, diffusion.timesteps, diffusion.zeta)


def build_model(recipe: Recipe) -> DiffusionPose:
    """The network of a recipe.

    Raises:
      ValueError: if `model.backbone` is unknown, or no `model.head_dim` divides its width; names the field.
    """
    model = recipe.model
    if model.backbone not in PRESETS:
        raise ValueError(f"model.backbone={model.backbone!r}: must be one of {sorted(PRESETS)}")
    spec = PRESETS[model.backbone]
    if model.width is not None:
        spec = dataclasses.replace(spec, width=model.width)
    if model.spatial_attention or model.channel_attention:
        num_heads(spec.width, model.head_dim)
    return DiffusionPose(
        joint_set=recipe.joints,
        codec=build_codec(recipe),
        masks=recipe.masks,
        backbone=spec,
        head_dim=model.head_dim,
        window=model.window,
        spatial_attention=model.spatial_attention,
        channel_attention=model.channel_attention,
        channel_scale=model.channel_scale,
        decoder_channels=model.decoder_channels,
        decoder_blocks=model.decoder_blocks,
        time_embedding=model.time_embedding,
        detach_coarse=model.detach_coarse,
        batch_norm=model.batch_norm,
        remat=model.remat,
        dtype={"float32": jnp.float32, "bfloat16": jnp.bfloat16}[model.dtype],
    )
