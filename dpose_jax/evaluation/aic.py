"""AI Challenger's submission format, and its own score.

Source: the organisers' published script (AI_Challenger_2017, Evaluation/keypoint_eval); implemented anew.
"""

from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from dpose_jax.data.categories import closest
from dpose_jax.data.coco_format import PERSON_CATEGORY
from dpose_jax.evaluation.results_check import Inputs

THRESHOLDS = np.linspace(0.5, 0.95, 10)


def official_score(inputs: Inputs) -> float | None:
    """AI Challenger's score: the mean over OKS thresholds .5, .55 .. .95 of hits / persons, a fraction in [0, 1].

    It is no average precision: the scores of results do not count, and one result may serve several persons.
    None without an annotated person or result.

    - OKS of an annotated person and a result is the mean over the joints that are labelled visible (not occluded) of
      exp(-d^2 / (2 (2 sigma)^2 (w h + 1))), w h the area of the person's box; without a visible joint it is 0.
    - A person is hit when its highest OKS with a result of its image is strictly above the threshold.
    - An image counts as many persons as it has annotations or results, whichever is more.
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


def results_from_native(content: list, images: Sequence[dict], name: str) -> tuple[list[dict], dict[str, list[str]]]:
    """AI Challenger's submission JSON as COCO results, all of score 1, and the `image_id` of entries left out, by rule.

    The content is a list of `{"image_id": str, "keypoint_annotations": {person: [x, y, flag, ...]}}`. `image_id` is the
    `file_name` of one of `images`, the ground truth's image entries, without its ending. As in the organisers' script,
    an entry of another image (`unknown_image`) is left out, and of an image's several entries the last one counts
    (`repeated_image`). Raises ValueError, with the file's `name` and the entry's place from 0, if an entry is not of
    this form, or if no image is known.
    """
    named = (image for image in images if isinstance(image, dict) and isinstance(image.get("file_name"), str))
    ids = {PurePath(image["file_name"]).stem: image.get("id") for image in named}
    found: dict[str, list[dict]] = {}
    left_out: dict[str, list[str]] = {}
    for place, entry in enumerate(content):
        fields = entry if isinstance(entry, dict) else {}
        image, persons = fields.get("image_id"), fields.get("keypoint_annotations")
        if not isinstance(image, str) or not isinstance(persons, dict):
            raise ValueError(f"{name}: entry {place}: not of AI Challenger's format: {str(entry)[:80]}")
        stem = base if (base := PurePath(image).name) in ids else PurePath(image).stem
        if stem not in ids:
            left_out.setdefault("unknown_image", []).append(image)
            continue
        if stem in found:
            left_out.setdefault("repeated_image", []).append(image)
        shared = {"image_id": ids[stem], "category_id": PERSON_CATEGORY, "score": 1.0}
        found[stem] = [shared | {"keypoints": keypoints} for keypoints in persons.values()]
    if content and not found:
        near = ", ".join(map(repr, closest(str(image), ids))) or "none"
        raise ValueError(f"{name}: the ground truth has none of its images, such as {image!r}; closest: {near}")
    return [result for results in found.values() for result in results], left_out
