"""The pictures of an evaluation: predictions beside ground truth, heatmaps and masks, the denoising."""

import os

import jax
import numpy as np

from dpose_jax.data.loader import eval_example
from dpose_jax.data.sample import Person, Source
from dpose_jax.evaluation.oks import oks, pck
from dpose_jax.evaluation.predict_split import Rows
from dpose_jax.models.pose_sampler import PoseSampler, to_image_pixels
from dpose_jax.pose.joint_sets import JointSet
from dpose_jax.recipe import Recipe
from dpose_jax.visualization import draw

STRIP_PERSONS = 4
BOARD_PERSONS = 8  # of an evaluation during training


def draw_pictures(
    folder: str, recipe: Recipe, source: Source, sampler: PoseSampler, variables, rows: Rows, best: str
) -> bool:
    """Writes predictions.png, heatmaps.png and denoising.png of `eval.pictures` persons, spread evenly over the source.

    predictions.png shows the result named `best` of `rows.outputs`. The other two show the run of most steps, without
    flip test, of the first four persons; a plain HRNet has none. `variables` are on the host. Returns whether there was
    a person to draw.
    """
    model, chosen = sampler.model, _spread(rows, source, recipe.eval.pictures)
    if not len(chosen):
        return False
    draw.write_png(os.path.join(folder, "predictions.png"), _sheet(recipe, source, model.joint_set, rows, best, chosen))
    if not sampler.settings:
        return True
    crops, truth, visible, ids = _examples(recipe, source, rows.index[chosen[:STRIP_PERSONS]])
    warp = model.codec.name
    longest = max(sampler.settings, key=lambda one: one.steps)
    traced = jax.jit(sampler.trace)(variables, crops, ids)
    trajectory, joints, (of_joints, of_limbs) = jax.device_get(traced)
    titles = [longest.start.replace("_", " "), *(f"step {k}" for k in range(1, longest.steps + 1))]
    strip = draw.denoising_strip(
        crops, trajectory, joints, model.joint_set, titles, truth=truth, visible=visible, warp=warp
    )
    draw.write_png(os.path.join(folder, "denoising.png"), strip)
    sheet = draw.heatmap_sheet(crops, trajectory[-1], of_joints, of_limbs, model.joint_set, warp=warp)
    draw.write_png(os.path.join(folder, "heatmaps.png"), sheet)
    return True


def prediction_picture(recipe: Recipe, source: Source, joint_set: JointSet, rows: Rows, best: str) -> np.ndarray | None:
    """predictions.png of at most BOARD_PERSONS persons, (h, w, 3) uint8 RGB; None if none is to be drawn."""
    chosen = _spread(rows, source, min(recipe.eval.pictures, BOARD_PERSONS))
    return _sheet(recipe, source, joint_set, rows, best, chosen) if len(chosen) else None


def _spread(rows: Rows, source: Source, count: int) -> np.ndarray:
    """Places in `rows` of `count` persons that are spread evenly over the source; fewer where some are unreadable."""
    wanted = np.linspace(0, len(source) - 1, min(count, len(source))).round()
    return np.flatnonzero(np.isin(rows.index, wanted))


def _examples(recipe: Recipe, source: Source, indices: np.ndarray) -> list[np.ndarray]:
    """Crops, joints in crop pixels, visibilities and ids of the persons at `indices`."""
    batch = [eval_example(recipe, source)(int(index)) for index in indices]
    return [np.stack([row[key] for row in batch]) for key in ("image", "keypoints", "visible", "annotation_id")]


def _sheet(
    recipe: Recipe, source: Source, joint_set: JointSet, rows: Rows, best: str, chosen: np.ndarray
) -> np.ndarray:
    crops, truth, visible, _ = _examples(recipe, source, rows.index[chosen])
    predicted = rows.outputs[best][0][chosen]
    moved = to_image_pixels(predicted, rows.to_image[chosen])
    areas = {entry["id"]: entry["area"] for entry in source.ground_truth()["annotations"]}
    captions = [
        _caption(source[int(index)], joints, areas, joint_set)
        for index, joints in zip(rows.index[chosen], moved, strict=True)
    ]
    return draw.prediction_sheet(crops, predicted, truth, visible, joint_set, captions)


def _caption(person: Person, joints: np.ndarray, areas: dict[int, float], joint_set: JointSet) -> str:
    """The person's id, and OKS and PCK of joints (J, 2) in image pixels, where any is labelled."""
    if not (person.keypoints[:, 2] > 0).any():
        return draw.person_caption(person.annotation_id)
    truth, area = person.keypoints[None], np.array([areas[person.annotation_id]])
    similarity = oks(joints[None], truth, area, person.bbox[None], joint_set.sigmas)[0, 0]
    right, _ = pck(joints[None], truth[..., :2], truth[..., 2], np.array([max(person.bbox[2:])]), 0.2)
    return draw.person_caption(person.annotation_id, float(similarity), right)
