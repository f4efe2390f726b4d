"""AI Challenger's own score, and its submission format.

Source: the evaluation script that its organisers published (AI_Challenger_2017, Evaluation/keypoint_eval) and the page
of the task; implemented anew.
"""

import os
from collections.abc import Sequence

import numpy as np

from dpose_jax.evaluation.results_check import Inputs

THRESHOLDS = np.linspace(0.5, 0.95, 10)


def official_score(inputs: Inputs) -> float | None:
    """AI Challenger's score, which it calls mAP: the mean over OKS thresholds .5, .55 .. .95 of hits / persons.

    It is no average precision: the scores of results do not count, and one result may serve several persons.

    - OKS of an annotated person and a result is the mean over the joints that are labelled visible (not occluded) of
      exp(-d^2 / (2 (2 sigma)^2 (w h + 1))), w h the area of the person's box; without a visible joint it is 0.
    - A person is hit when its highest OKS with a result of its image is strictly above the threshold.
    - An image adds to the persons its number of annotated persons or of results, whichever is larger: a result too
      many costs as much as a missed person.

    Returns:
      fraction in [0, 1]; None without an annotated person or result.
    """
    scales = inputs.boxes[:, 2] * inputs.boxes[:, 3] + 1
    variances = (2 * np.array(inputs.joint_set.sigmas)) ** 2
    hits, persons = np.zeros(len(THRESHOLDS)), 0
    for annotated, found in inputs.by_image():
        persons += max(len(annotated), len(found))
        if not annotated or not found:
            continue
        truth, predicted = inputs.truth[annotated], inputs.predicted[found]
        squared = np.sum((truth[:, None, :, :2] - predicted[None, :, :, :2]) ** 2, axis=-1)
        likeness = np.exp(-squared / (2 * variances * scales[annotated][:, None, None]))
        visible = truth[..., 2] == 2
        oks = np.sum(likeness * visible[:, None], axis=-1) / np.maximum(visible.sum(axis=1), 1)[:, None]
        hits += np.sum(oks.max(axis=1)[:, None] > THRESHOLDS, axis=0)
    return float(np.mean(hits / persons)) if persons else None


def results_from_native(content: list, images: Sequence[dict], name: str) -> list[dict]:
    """AI Challenger's submission JSON as COCO results, all of score 1: the format has none.

    Args:
      content: list of `{"image_id": str, "keypoint_annotations": {person: [x, y, flag, ...]}}`.
      images: image entries of the ground truth; `file_name` without its ending is the submission's `image_id`.
      name: of the file, for errors.

    Raises:
      ValueError: if an entry is not of this form or its image unknown; names it by its place, from 0.
    """
    ids = {
        _stem(image["file_name"]): image["id"] for image in images if isinstance(image, dict) and "file_name" in image
    }
    results = []
    for place, entry in enumerate(content):
        try:
            image_id, persons = ids[_stem(entry["image_id"])], entry["keypoint_annotations"].values()
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{name}: entry {place}: not of AI Challenger's format, or of an unknown image: {error!r}"
            ) from error
        results += [{"image_id": image_id, "category_id": 1, "keypoints": p, "score": 1.0} for p in persons]
    return results


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0]
