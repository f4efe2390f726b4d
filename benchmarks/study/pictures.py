"""Pages of the persons whom the denoising helps most, and harms most."""

import os
from collections.abc import Mapping

import numpy as np

from benchmarks.study.tables import Reading
from dpose_jax.data.loader import eval_example
from dpose_jax.data.sample import Source
from dpose_jax.evaluation.oks import oks
from dpose_jax.evaluation.report import Predictions, match_by_index
from dpose_jax.models.pose_sampler import to_image_pixels
from dpose_jax.pose.joint_sets import get_joint_set
from dpose_jax.recipe import Recipe
from dpose_jax.visualization import draw

PERSONS = 5  # a page


def write_changes(
    folder: str, recipe: Recipe, source: Source, found: Mapping[Reading, Predictions], before: Reading, after: Reading
) -> None:
    """Writes helps.png and harms.png: both readings beside the ground truth, the largest change of OKS first.

    Args:
      found: predictions by reading, of which `before` and `after` are two.
    """
    similarity = {name: person_oks(recipe, source, found[name]) for name in (before, after)}
    gain = similarity[after] - similarity[before]
    order = np.argsort(np.nan_to_num(gain), kind="stable")
    joints = {str(name): match_by_index(source, found[name]).predicted for name in (before, after)}
    for file, chosen in (("helps.png", order[::-1][:PERSONS]), ("harms.png", order[:PERSONS])):
        captions = [f"OKS {similarity[before][i]:.2f} -> {similarity[after][i]:.2f}" for i in chosen]
        sheet = _sheet(recipe, source, chosen, joints, captions)
        draw.write_png(os.path.join(folder, file), sheet)


def person_oks(recipe: Recipe, source: Source, predictions: Predictions) -> np.ndarray:
    """(N,) OKS of every annotated person with the prediction in its own box; NaN without a labelled joint."""
    areas = {entry["id"]: entry["area"] for entry in source.ground_truth()["annotations"]}
    matched, sigmas = match_by_index(source, predictions), get_joint_set(recipe.joint_set).sigmas
    similarity = np.full(len(source), np.nan)
    for i, (predicted, truth) in enumerate(zip(matched.predicted, matched.truth, strict=True)):
        if np.any(truth[:, 2] > 0):
            person = source[i]
            area = np.array([areas[person.annotation_id]])
            similarity[i] = oks(predicted[None], truth[None], area, person.bbox[None], sigmas)[0, 0]
    return similarity


def _sheet(recipe: Recipe, source: Source, chosen: np.ndarray, joints: Mapping[str, np.ndarray], captions: list[str]):
    """The page of some persons; joints (N, J, 2), image pixels, of all."""
    make = eval_example(recipe, source)
    rows = [make(int(i)) for i in chosen]
    crops, truth, visible = (np.stack([row[key] for row in rows]) for key in ("image", "keypoints", "visible"))
    to_crop = np.stack([np.linalg.inv(np.vstack([row["to_image"], [0, 0, 1]]))[:2] for row in rows])
    poses = {name: to_image_pixels(its[chosen], to_crop) for name, its in joints.items()} | {"ground truth": truth}
    return draw.comparison_sheet(crops, poses, get_joint_set(recipe.joint_set), captions, shown=visible)
