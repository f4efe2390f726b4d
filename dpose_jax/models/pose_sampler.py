"""From crops to joints: the sampler with the flip test around it, for evaluation and prediction alike."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dpose_jax.diffusion.process import Schedule
from dpose_jax.diffusion.sampler import SamplerSettings, sample, sampler_settings
from dpose_jax.models.diffusion_pose import DiffusionPose, build_model, build_schedule
from dpose_jax.pose import uncertainty
from dpose_jax.recipe import Recipe

Joints = tuple[Array, Array]  # keypoints (B, J, 2) in crop pixels, scores (B, J), float32


@dataclasses.dataclass(frozen=True)
class PoseSampler:
    """Pure functions from a batch of crops to heatmaps and joints; `jax.jit` the methods.

    They take `variables` (`params` and `batch_stats`), crops (B, Hx, Wx, 3) uint8 and person_ids (B,) int32, which seed
    the sampler's noise, so that a person's result depends on no batch, order or device. `flip` averages the final
    heatmaps with those of the mirrored crop or, for settings that are not `mirrored`, the coarse ones.
    """

    model: DiffusionPose
    schedule: Schedule
    settings: tuple[SamplerSettings, ...]  # of runs that share one pass of the backbone; none: the coarse branch alone
    flip: bool
    seed: int  # of the sampler's noise, see `person_keys`
    hypotheses: int = 1  # K samples a person, each from its own noise, in one batch; the backbone sees a person once

    @classmethod
    def of(cls, recipe: Recipe) -> PoseSampler:
        """Every run of `recipe.sampler`, none for a plain HRNet, with the flip test of `recipe.eval`."""
        settings = () if recipe.plain else sampler_settings(recipe.sampler)
        schedule = build_schedule(recipe.diffusion)
        return cls(build_model(recipe), schedule, settings, recipe.eval.flip, recipe.sampler.seed)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the results: `coarse`, then `steps_K` for each of the settings."""
        return ("coarse", *(f"steps_{one.steps}" for one in self.settings))

    def heatmaps(self, variables, crops: Array, person_ids: Array) -> dict[str, Array]:
        """The final heatmaps of every result, by `names`: (B, H, W, J) float32; (B, K, H, W, J) of K > 1 samples."""
        views = crops
        if self.flip:  # in pairs: one half after the other would move rows between the devices that share the batch
            views = jnp.stack([crops, crops[:, :, ::-1]], axis=1).reshape(-1, *crops.shape[1:])
        features, coarse = self._apply("encode", variables, views)
        sides = (False, True) if self.flip else (False,)
        keys = [person_keys(self.seed, person_ids, mirrored=side, hypotheses=self.hypotheses) for side in sides]
        every = features, coarse, jnp.stack(keys, axis=1).reshape(-1)
        plain = features[:: len(keys)], self._average(coarse, crops.shape[0]), keys[0].reshape(-1)
        found = {"coarse": plain[1]}
        for name, one in zip(self.names[1:], self.settings, strict=True):
            start = every if one.mirrored else plain
            final, _ = self._sample(one, variables, *start)
            final = self._average(final, crops.shape[0]) if one.mirrored else final
            found[name] = final if self.hypotheses == 1 else final.reshape(-1, self.hypotheses, *final.shape[1:])
        return found

    def joints(self, variables, crops: Array, person_ids: Array) -> dict[str, Joints]:
        """Keypoints and scores of every result, by `names`."""
        found = self.heatmaps(variables, crops, person_ids)
        return {name: self.model.codec.decode(maps) for name, maps in found.items()}

    def poses(self, variables, crops: Array, person_ids: Array) -> dict[str, Array]:
        """keypoints (B, J, 2), scores (B, J), covariances (B, J, 2, 2), hypotheses (B, K, J, 2) if K > 1; crop px."""
        codec, maps = self.model.codec, self.heatmaps(variables, crops, person_ids)[self.names[-1]]
        several = maps.ndim == 5
        mean = jnp.mean(maps, axis=1) if several else maps
        to_crop = codec.to_crop(jnp.eye(2))
        keypoints, scores = codec.decode(mean)
        covariances = to_crop @ uncertainty.peak_covariance(mean) @ to_crop
        found = {"keypoints": keypoints, "scores": scores, "covariances": covariances}
        return found | ({"hypotheses": codec.decode(maps)[0]} if several else {})

    def trace(self, variables, crops: Array, person_ids: Array):
        """Of the longest run, without flip test: trajectory (K + 1, B, H, W, J), joints (K + 1, B, J, 2), two masks."""
        longest, codec = max(self.settings, key=lambda one: one.steps), self.model.codec
        start = *self._apply("encode", variables, crops), person_keys(self.seed, person_ids).reshape(-1)
        _, trajectory = self._sample(longest, variables, *start)
        peaks, _ = codec.peaks(trajectory, "dark")
        joints, _ = codec.decode(trajectory)
        y = jnp.clip(codec.normalise(peaks[0]), -1, 1)
        return trajectory, joints, self._apply("draw_masks", variables, y, jnp.ones(y.shape[:2]))

    def _apply(self, method: str, variables, *inputs) -> Any:
        return self.model.apply(variables, *inputs, method=method)

    def _sample(self, settings: SamplerSettings, variables, features, coarse, keys) -> tuple[Array, Array]:
        """What `sampler.sample` returns for (B K,) keys, the K hypotheses of an example in a row."""
        hypotheses = keys.shape[0] // features.shape[0]
        features, starts = (jnp.repeat(maps, hypotheses, axis=0) for maps in (features, coarse))
        seen = jnp.ones((keys.shape[0], self.model.joint_set.num_joints), jnp.float32)
        return sample(
            starts,
            settings=settings,
            schedule=self.schedule,
            codec=self.model.codec,
            condition=lambda y: self._apply("condition", variables, features, y, seen),
            denoise=lambda *inputs: self._apply("denoise", variables, *inputs),
            keys=keys,
        )

    def _average(self, heatmaps: Array, persons: int) -> Array:
        """Mean of the plain and the mirrored view of each person, (B V K, H, W, J) -> (B K, H, W, J)."""
        if not self.flip:
            return heatmaps
        pairs = heatmaps.reshape(persons, 2, -1, *heatmaps.shape[1:])
        mirrored = unflip(pairs[:, 1], self.model.joint_set.flip_order, self.model.codec.flip_shift)
        return ((pairs[:, 0] + mirrored) / 2).reshape(-1, *heatmaps.shape[1:])


def person_keys(seed: int, person_ids: Array, *, mirrored: bool = False, hypotheses: int = 1) -> Array:
    """(B,) int32 ids -> (B, K) keys by `fold_in`, one for each of a person's hypotheses."""
    keys = [jax.random.fold_in(jax.random.key(seed), 2 * k + int(mirrored)) for k in range(hypotheses)]
    return jax.vmap(lambda person_id: jnp.stack([jax.random.fold_in(key, person_id) for key in keys]))(person_ids)


def unflip(heatmaps: Array, flip_order: tuple[int, ...], shift: int) -> Array:
    """Heatmaps (..., H, W, J) of a mirrored crop -> of the crop itself, moved right by `Codec.flip_shift` pixels."""
    mirrored = heatmaps[..., ::-1, :][..., np.asarray(flip_order)]
    if not shift:
        return mirrored
    return jnp.concatenate([mirrored[..., :shift, :], mirrored[..., :-shift, :]], axis=-2)


def to_image_pixels(keypoints: np.ndarray, to_image: np.ndarray) -> np.ndarray:
    """(B, J, 2) crop pixels and (B, 2, 3) affine maps -> (B, J, 2) image pixels, float64."""
    return np.einsum("bij,bkj->bki", to_image[:, :, :2].astype(np.float64), keypoints) + to_image[:, None, :, 2]
