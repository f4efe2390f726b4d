"""Every metric of one set of results: COCO's, those of the data set, PCK, and AP and PCK joint by joint."""

from typing import NamedTuple

import numpy as np
from hotcoco import primitives

from dpose_jax.evaluation.aic import official_score
from dpose_jax.evaluation.coco import coco_metrics, joint_ap
from dpose_jax.evaluation.crowdpose import crowd_slices
from dpose_jax.evaluation.oks import oks, pck
from dpose_jax.evaluation.results_check import Inputs
from dpose_jax.pose.joint_sets import AIC

PCK_THRESHOLDS = (0.2, 0.1)  # of the longer side of the box

Metrics = dict[str, float | None]


class Matched(NamedTuple):
    """Persons beside the joints predicted for them, for PCK.

    Attributes:
      predicted: (N, J, 2) image pixels, infinite where nothing was predicted.
      truth: (N, J, 3) image pixels and visibility.
      lengths: (N,) the longer side of each person's box, image pixels.
    """

    predicted: np.ndarray
    truth: np.ndarray
    lengths: np.ndarray


def score(
    inputs: Inputs, matched: Matched | None = None, *, engine: str = "hotcoco", name: str = "ground truth"
) -> tuple[Metrics, dict[str, Metrics]]:
    """All metrics, as fractions in [0, 1] or None where there is nothing to measure.

    What is measured follows the data: AP_easy, AP_medium and AP_hard if the images carry CrowdPose's `crowdIndex`, and
    `AIC`, AI Challenger's own score, for its joint set.

    Args:
      matched: of the PCK; by default the results are matched with the persons by `best_assignment`.
      engine: see `coco.coco_metrics`.
      name: of the ground truth, for errors.

    Returns:
      AP .. ARl, the data set's own, PCK@0.2 and PCK@0.1; and, by joint, AP, PCK@0.2 and PCK@0.1.

    Raises:
      ValueError: if some images carry a `crowdIndex` and others do not, or the engine is unknown.
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

    The results are given to the persons so that the sum of OKS is largest, whatever their scores (ours): PCK then says
    how well the persons' joints are placed, and nothing of results too many.
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
