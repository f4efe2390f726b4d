"""Every metric of one set of results: COCO's, those of the data set, PCK, and AP and PCK joint by joint."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from hotcoco import primitives

from dpose_jax.evaluation.aic import official_score
from dpose_jax.evaluation.coco import coco_metrics, joint_ap
from dpose_jax.evaluation.oks import oks, pck
from dpose_jax.evaluation.results_check import Inputs
from dpose_jax.pose.joint_sets import AIC

PCK_THRESHOLDS = (0.2, 0.1)  # of PCK_LENGTH
PCK_LENGTH = "longer side of the box as annotated"  # not of the part inside the image, nor of a detected box
CROWD_MEDIUM, CROWD_HARD = 0.2, 0.8  # the crowdIndex from which an image is of that level

Metrics = dict[str, float | None]


class Matched(NamedTuple):
    """Persons beside the joints predicted for them, for PCK."""

    predicted: np.ndarray  # (N, J, 2) image pixels, infinite where nothing was predicted
    truth: np.ndarray  # (N, J, 3) image pixels and visibility
    lengths: np.ndarray  # (N,) PCK_LENGTH of each person, image pixels


def score(
    inputs: Inputs, matched: Matched | None = None, *, engine: str = "hotcoco", name: str = "ground truth"
) -> tuple[Metrics, dict[str, Metrics]]:
    """All metrics, and AP, PCK@0.2 and PCK@0.1 by joint: fractions in [0, 1], None where there is nothing to measure.

    The metrics are COCO's ten (by `engine`), PCK@0.2 and PCK@0.1 of `matched` (by default of `best_assignment`).
    Images with CrowdPose's `crowdIndex` add AP_easy, AP_medium and AP_hard; AI Challenger's joint set adds `AIC`, its
    own score. Raises ValueError as `crowd_slices`; `name` is the ground truth's in errors.
    """
    metrics, crowded = coco_metrics(inputs, crowd_slices(inputs.images, name), engine=engine)
    metrics |= crowded
    if inputs.joint_set.joints == AIC.joints:
        metrics["AIC"] = official_score(inputs)
    joints = {joint: {"AP": value} for joint, value in joint_ap(inputs).items()}
    predicted, truth, lengths = matched or best_assignment(inputs)
    for threshold in PCK_THRESHOLDS:
        column = f"PCK@{threshold}"
        metrics[column], shares = pck(predicted, truth[..., :2], truth[..., 2], lengths, threshold)
        for joint, share in zip(joints.values(), shares, strict=True):
            joint[column] = share
    return metrics, joints


def best_assignment(inputs: Inputs) -> Matched:
    """The annotated persons, crowds and those without a joint left out, each with at most one result of its image.

    The assignment maximises the sum of OKS, whatever the scores (ours). PCK then measures how well the persons' joints
    are placed; it ignores results too many.
    """
    boxes, areas = inputs.boxes, inputs.areas
    crowd = np.array([a["iscrowd"] for a in inputs.annotations], bool)
    counts = ~crowd & (inputs.truth[..., 2] > 0).any(axis=1)
    predicted = np.full((*inputs.truth.shape[:2], 2), np.inf)
    for annotated, found in inputs.by_image():
        persons = [i for i in annotated if counts[i]]
        if persons and found:
            joints = inputs.predicted[found][..., :2]
            likeness = oks(joints, inputs.truth[persons], areas[persons], boxes[persons], inputs.joint_set.sigmas)
            rows, columns = primitives.lsap(likeness, maximize=True)
            predicted[np.array(persons)[columns]] = joints[rows]
    return Matched(predicted[counts], inputs.truth[counts], boxes[counts, 2:].max(axis=1))


def crowd_slices(images: Sequence[dict], name: str = "ground truth") -> dict[str, list[int]]:
    """The ids of the images of each level of CrowdPose (Li et al., CVPR 2019, and its evaluation API), by metric.

    AP_easy: `crowdIndex` below 0.2, AP_medium: below 0.8, AP_hard: from 0.8 on. Empty if no image has a `crowdIndex`.
    Raises ValueError, with the image and the ground truth's `name`, if only some have one, or one is no number from 0
    on.
    """
    if not any("crowdIndex" in image for image in images):
        return {}
    slices: dict[str, list[int]] = {"AP_easy": [], "AP_medium": [], "AP_hard": []}
    for image in images:
        index = image.get("crowdIndex")
        if not isinstance(index, int | float) or not index >= 0:
            raise ValueError(f"{name}: image {image['id']}: crowdIndex must be a number from 0 on, got {index}")
        level = "AP_easy" if index < CROWD_MEDIUM else "AP_medium" if index < CROWD_HARD else "AP_hard"
        slices[level].append(image["id"])
    return slices
