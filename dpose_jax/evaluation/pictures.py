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


def draw_pictures(
    folder: str, recipe: Recipe, source: Source, sampler: PoseSampler, variables, rows: Rows, best: str
) -> bool:
    """Writes predictions.png, heatmaps.png and denoising.png of `eval.pictures` persons, spread evenly over the source.

    predictions.png shows the result named `best` of `rows.outputs`. The other two show the run of most steps, without
    flip test, of the first four persons; a plain HRNet has none. `variables` are on the host. Returns whether there was
    a person to draw.
    """
    count = min(recipe.eval.pictures, len(source))
    chosen = np.flatnonzero(np.isin(rows.index, np.linspace(0, len(source) - 1, count).round()))
    if not len(chosen):
        return False
    model, read = sampler.model, eval_example(recipe, source)
    batch = [read(int(index)) for index in rows.index[chosen]]
    crops, truth, visible, ids = (
        np.stack([row[key] for row in batch]) for key in ("image", "keypoints", "visible", "annotation_id")
    )
    predicted = rows.outputs[best][0][chosen]
    moved = to_image_pixels(predicted, rows.to_image[chosen])
    areas = {entry["id"]: entry["area"] for entry in source.ground_truth()["annotations"]}
    captions = [
        _caption(source[int(index)], joints, areas, model.joint_set)
        for index, joints in zip(rows.index[chosen], moved, strict=True)
    ]
    sheet = draw.prediction_sheet(crops, predicted, truth, visible, model.joint_set, captions)
    draw.write_png(os.path.join(folder, "predictions.png"), sheet)

    if not sampler.settings:
        return True
    few, warp = slice(0, STRIP_PERSONS), model.codec.name
    longest = max(sampler.settings, key=lambda one: one.steps)
    traced = jax.jit(sampler.trace)(variables, crops[few], ids[few])
    trajectory, joints, (of_joints, of_limbs) = jax.device_get(traced)
    titles = [longest.start.replace("_", " "), *(f"step {k}" for k in range(1, longest.steps + 1))]
    strip = draw.denoising_strip(
        crops[few], trajectory, joints, model.joint_set, titles, truth=truth[few], visible=visible[few], warp=warp
    )
    draw.write_png(os.path.join(folder, "denoising.png"), strip)
    sheet = draw.heatmap_sheet(crops[few], trajectory[-1], of_joints, of_limbs, model.joint_set, warp=warp)
    draw.write_png(os.path.join(folder, "heatmaps.png"), sheet)
    return True


def _caption(person: Person, joints: np.ndarray, areas: dict[int, float], joint_set: JointSet) -> str:
    """The person's id, and OKS and PCK of joints (J, 2) in image pixels, where any is labelled."""
    if not (person.keypoints[:, 2] > 0).any():
        return draw.person_caption(person.annotation_id)
    truth, area = person.keypoints[None], np.array([areas[person.annotation_id]])
    similarity = oks(joints[None], truth, area, person.bbox[None], joint_set.sigmas)[0, 0]
    right, _ = pck(joints[None], truth[..., :2], truth[..., 2], np.array([max(person.bbox[2:])]), 0.2)
    return draw.person_caption(person.annotation_id, float(similarity), right)
