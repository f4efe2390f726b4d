"""From crops to joints: the sampler with the flip test around it, for evaluation and prediction alike."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dpose_jax.diffusion.sampler import SamplerSettings
from dpose_jax.diffusion.schedule import Schedule
from dpose_jax.models.diffusion_pose import DiffusionPose, sample_heatmaps


def result_names(settings: tuple[SamplerSettings, ...]) -> tuple[str, ...]:
    """`coarse`, then `steps_K` for each of the settings."""
    return ("coarse", *(f"steps_{one.steps}" for one in settings))


def person_keys(seed: int, annotation_ids: jax.Array, *, mirrored: bool = False) -> jax.Array:
    """(B,) int32 ids -> (B,) keys by `fold_in`: a person's noise depends on no batch, order or device."""
    key = jax.random.fold_in(jax.random.key(seed), int(mirrored))
    return jax.vmap(jax.random.fold_in, (None, 0))(key, annotation_ids)


def unflip(heatmaps: jax.Array, flip_order: tuple[int, ...], shift: int) -> jax.Array:
    """Heatmaps of a mirrored crop -> of the crop itself.

    Args:
      heatmaps: (..., H, W, J).
      flip_order: of the joint set.
      shift: pixels to move right after mirroring (`Codec.flip_shift`); the first columns stay as they are.
    """
    mirrored = heatmaps[..., ::-1, :][..., np.asarray(flip_order)]
    if not shift:
        return mirrored
    return jnp.concatenate([mirrored[..., :shift, :], mirrored[..., :-shift, :]], axis=-2)


def make_predict(
    model: DiffusionPose, schedule: Schedule, settings: tuple[SamplerSettings, ...], *, flip: bool, seed: int
) -> Callable:
    """Builds the pure function from a batch of crops to the joints of every result; to be jitted.

    Args:
      settings: sampling runs, which share one pass of the backbone.
      flip: average the final heatmaps with those of the mirrored crop.
      seed: of the sampler's noise, see `person_keys`.

    Returns:
      `(variables, images (B, Hx, Wx, 3) uint8, annotation_ids (B,) int32) -> {name: (keypoints (B, J, 2) in
      crop pixels, scores (B, J))}`, float32, with the names of `result_names`.
    """

    def predict(variables, images, annotation_ids):
        keys = person_keys(seed, annotation_ids)
        if flip:
            images = jnp.concatenate([images, images[:, :, ::-1]])
            keys = jnp.concatenate([keys, person_keys(seed, annotation_ids, mirrored=True)])
        coarse, sampled = sample_heatmaps(model, variables, images, keys, settings=settings, schedule=schedule)
        joints = {}
        for name, heatmaps in zip(result_names(settings), (coarse, *(final for final, _ in sampled)), strict=True):
            if flip:
                plain, mirrored = jnp.split(heatmaps, 2)
                heatmaps = (plain + unflip(mirrored, model.joint_set.flip_order, model.codec.flip_shift)) / 2
            joints[name] = model.codec.decode(heatmaps)
        return joints

    return predict


def to_image_pixels(keypoints: np.ndarray, to_image: np.ndarray) -> np.ndarray:
    """(B, J, 2) crop pixels and (B, 2, 3) affine maps -> (B, J, 2) image pixels, float64."""
    return np.einsum("bij,bkj->bki", to_image[:, :, :2].astype(np.float64), keypoints) + to_image[:, None, :, 2]
