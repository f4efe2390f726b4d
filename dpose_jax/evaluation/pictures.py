"""The pictures of an evaluation: predictions beside ground truth, heatmaps and masks, the denoising."""

import os

import jax
import numpy as np

from dpose_jax.data.sample import Source
from dpose_jax.evaluation.oks import oks, pck
from dpose_jax.models.diffusion_pose import DiffusionPose
from dpose_jax.models.pose_sampler import PoseSampler
from dpose_jax.visualization import draw

STRIP_PERSONS = 4


def choose(persons: int, count: int) -> np.ndarray:
    """Indices of `count` persons spread evenly over a source of `persons`."""
    return np.unique(np.linspace(0, persons - 1, min(count, persons)).round().astype(int))


def draw_pictures(
    folder: str,
    source: Source,
    sampler: PoseSampler,
    variables,
    rows: list[dict],
    best: str,
) -> None:
    """Writes predictions.png, heatmaps.png and denoising.png into `folder`.

    Args:
      rows: rows of evaluation batches, each with `joints`: {result name: (J, 2) crop pixels}.
      best: name of the result that predictions.png shows. The other two show the run of most steps, without flip.
    """
    model = sampler.model
    crops, truth = (np.stack([row[key] for row in rows]) for key in ("image", "keypoints"))
    visible = np.stack([row["visible"] for row in rows])
    areas = {entry["id"]: entry["area"] for entry in source.ground_truth()["annotations"]}
    captions = [_caption(source, model, areas, row, row["joints"][best]) for row in rows]
    predicted = np.stack([row["joints"][best] for row in rows])
    sheet = draw.prediction_sheet(crops, predicted, truth, visible, model.joint_set, captions)
    draw.write_png(os.path.join(folder, "predictions.png"), sheet)

    few = slice(0, STRIP_PERSONS)
    ids = np.stack([row["annotation_id"] for row in rows[few]])
    longest = max(sampler.settings, key=lambda one: one.steps)
    trajectory, joints, masks = jax.device_get(jax.jit(sampler.trace)(variables, crops[few], ids))
    warp = model.codec.name
    titles = [longest.start.replace("_", " "), *(f"step {k}" for k in range(1, longest.steps + 1))]
    strip = draw.denoising_strip(
        crops[few], trajectory, joints, model.joint_set, titles, truth=truth[few], visible=visible[few], warp=warp
    )
    draw.write_png(os.path.join(folder, "denoising.png"), strip)
    sheet = draw.heatmap_sheet(crops[few], trajectory[-1], *masks, model.joint_set, warp=warp)
    draw.write_png(os.path.join(folder, "heatmaps.png"), sheet)


def _caption(source: Source, model: DiffusionPose, areas: dict, row: dict, keypoints: np.ndarray) -> str:
    person = source[int(row["index"])]
    labelled = person.keypoints[:, 2] > 0
    if not labelled.any():
        return draw.person_caption(person.annotation_id)
    truth = person.keypoints[None]
    moved = keypoints @ row["to_image"][:, :2].T + row["to_image"][:, 2]
    area = np.array([areas[person.annotation_id]])
    similarity = oks(moved[None], truth, area, person.bbox[None], model.joint_set.sigmas)[0, 0]
    right, _ = pck(moved[None], truth[..., :2], truth[..., 2], np.array([max(person.bbox[2:])]), 0.2)
    return draw.person_caption(person.annotation_id, float(similarity), right)
