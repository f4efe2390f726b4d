"""From crops to joints: the sampler with the flip test around it, for evaluation and prediction alike."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dpose_jax.diffusion.process import Schedule
from dpose_jax.diffusion.sampler import SamplerSettings
from dpose_jax.models.diffusion_pose import DiffusionPose, encode_images, sample_heatmaps
from dpose_jax.pose import uncertainty


def result_names(settings: tuple[SamplerSettings, ...]) -> tuple[str, ...]:
    """`coarse`, then `steps_K` for each of the settings."""
    return ("coarse", *(f"steps_{one.steps}" for one in settings))


def person_keys(seed: int, annotation_ids: jax.Array, *, mirrored: bool = False, hypotheses: int = 1) -> jax.Array:
    """(B,) int32 ids -> (B K,) keys by `fold_in`, the K hypotheses of a person in a row.

    A person's noise depends on no batch, order, device or number of hypotheses.
    """
    keys = [jax.random.fold_in(jax.random.key(seed), 2 * k + int(mirrored)) for k in range(hypotheses)]
    by_person = jax.vmap(lambda annotation_id: jnp.stack([jax.random.fold_in(key, annotation_id) for key in keys]))
    return by_person(annotation_ids).reshape(-1)


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


def _in_turn(plain: jax.Array, mirrored: jax.Array) -> jax.Array:
    """Two arrays (B, ...) -> (2B, ...), the mirrored row of each person after the plain one.

    One half after the other would move rows between the devices over which the batch is split.
    """
    return jnp.stack([plain, mirrored], axis=1).reshape(-1, *plain.shape[1:])


def make_heatmaps(
    model: DiffusionPose,
    schedule: Schedule,
    settings: tuple[SamplerSettings, ...],
    *,
    flip: bool,
    seed: int,
    hypotheses: int = 1,
) -> Callable:
    """Builds the pure function from a batch of crops to the final heatmaps of every result; to be jitted.

    Args:
      settings: sampling runs, which share one pass of the backbone.
      flip: average the final heatmaps with those of the mirrored crop; or, for settings that are not `mirrored`,
        the coarse ones from which they start.
      seed: of the sampler's noise, see `person_keys`.
      hypotheses: K samples a person, each from its own noise, in one batch; the backbone sees a person once.

    Returns:
      `(variables, images (B, Hx, Wx, 3) uint8, annotation_ids (B,) int32) -> {name: heatmaps (B, H, W, J)}`,
      float32, with the names of `result_names`; with K > 1 those of a sampling run are (B, K, H, W, J).
    """

    def run(variables, images, annotation_ids):
        def average(heatmaps):
            pairs = heatmaps.reshape(annotation_ids.shape[0], 2, -1, *heatmaps.shape[1:])
            mirrored = unflip(pairs[:, 1], model.joint_set.flip_order, model.codec.flip_shift)
            return ((pairs[:, 0] + mirrored) / 2).reshape(-1, *heatmaps.shape[1:])

        keys = person_keys(seed, annotation_ids, hypotheses=hypotheses)
        if flip:
            features, coarse = encode_images(model, variables, _in_turn(images, images[:, :, ::-1]))
            mirrored_keys = person_keys(seed, annotation_ids, mirrored=True, hypotheses=hypotheses)
            both = _in_turn(keys.reshape(-1, hypotheses), mirrored_keys.reshape(-1, hypotheses)).reshape(-1)
            halves, whole = (features, coarse, both), (features[::2], average(coarse), keys)
        else:
            halves = whole = (*encode_images(model, variables, images), keys)
        named = {"coarse": whole[1]}
        for name, one in zip(result_names(settings)[1:], settings, strict=True):
            start = halves if one.mirrored else whole
            final, _ = sample_heatmaps(model, variables, *start, settings=one, schedule=schedule)
            if flip and one.mirrored:
                final = average(final)
            named[name] = final if hypotheses == 1 else final.reshape(-1, hypotheses, *final.shape[1:])
        return named

    return run


def make_predict(
    model: DiffusionPose, schedule: Schedule, settings: tuple[SamplerSettings, ...], *, flip: bool, seed: int
) -> Callable:
    """Builds the pure function from a batch of crops to the joints of every result; to be jitted.

    Args: see `make_heatmaps`.

    Returns:
      `(variables, images (B, Hx, Wx, 3) uint8, annotation_ids (B,) int32) -> {name: (keypoints (B, J, 2) in
      crop pixels, scores (B, J))}`, float32, with the names of `result_names`.
    """
    run = make_heatmaps(model, schedule, settings, flip=flip, seed=seed)

    def predict(variables, images, annotation_ids):
        named = run(variables, images, annotation_ids)
        return {name: model.codec.decode(heatmaps) for name, heatmaps in named.items()}

    return predict


def make_poses(
    model: DiffusionPose,
    schedule: Schedule,
    settings: SamplerSettings | None,
    *,
    flip: bool,
    seed: int,
    hypotheses: int = 1,
) -> Callable:
    """Builds the pure function from crops to poses; to be jitted or exported.

    Args:
      settings: the sampling run; None is the coarse branch alone.
      flip, seed, hypotheses: see `make_heatmaps`. With K > 1 the joints are decoded from the mean of the
        K final heatmaps.

    Returns:
      `(variables, images (B, Hx, Wx, 3) uint8, person_ids (B,) int32) -> {keypoints (B, J, 2), scores (B, J),
      covariances (B, J, 2, 2)}`, and `hypotheses (B, K, J, 2)` with K > 1; float32, crop pixels.
    """
    runs = () if settings is None else (settings,)
    heatmaps_of = make_heatmaps(model, schedule, runs, flip=flip, seed=seed, hypotheses=hypotheses)
    name = result_names(runs)[-1]
    to_crop = model.codec.to_crop(jnp.eye(2))

    def poses(variables, images, person_ids):
        heatmaps = heatmaps_of(variables, images, person_ids)[name]
        several = heatmaps.ndim == 5
        mean = jnp.mean(heatmaps, axis=1) if several else heatmaps
        keypoints, scores = model.codec.decode(mean)
        covariances = to_crop @ uncertainty.peak_covariance(mean) @ to_crop
        found = {"keypoints": keypoints, "scores": scores, "covariances": covariances}
        return found | ({"hypotheses": model.codec.decode(heatmaps)[0]} if several else {})

    return poses


def make_trace(model: DiffusionPose, schedule: Schedule, settings: SamplerSettings, *, seed: int) -> Callable:
    """Builds the pure function that shows one sampling run at work, without flip test; to be jitted.

    Returns:
      `(variables, images (B, Hx, Wx, 3) uint8, annotation_ids (B,) int32) -> (trajectory (K + 1, B, H, W, J), its
      joints (K + 1, B, J, 2) in crop pixels, (M^kps, M^ske) of its start, each (B, Hx/4, Wx/4, 1))`.
    """

    def trace(variables, images, annotation_ids):
        keys = person_keys(seed, annotation_ids)
        start = encode_images(model, variables, images)
        _, trajectory = sample_heatmaps(model, variables, *start, keys, settings=settings, schedule=schedule)
        peaks, _ = model.codec.peaks(trajectory, "dark")
        joints, _ = model.codec.decode(trajectory)
        y = jnp.clip(model.codec.normalise(peaks[0]), -1, 1)
        masks = model.apply(variables, y, jnp.ones(y.shape[:2]), method="draw_masks")
        return trajectory, joints, masks

    return trace


def to_image_pixels(keypoints: np.ndarray, to_image: np.ndarray) -> np.ndarray:
    """(B, J, 2) crop pixels and (B, 2, 3) affine maps -> (B, J, 2) image pixels, float64."""
    return np.einsum("bij,bkj->bki", to_image[:, :, :2].astype(np.float64), keypoints) + to_image[:, None, :, 2]
