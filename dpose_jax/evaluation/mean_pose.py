"""What a pose that never looks at the picture gets: the least that any result has to be compared with."""

import dataclasses

import numpy as np

from dpose_jax.evaluation.metrics import Metrics, score
from dpose_jax.evaluation.results_check import Inputs


def mean_pose(inputs: Inputs) -> np.ndarray:
    """(J, 2) mean of the labelled joints of a set's persons, in units of the box: (0, 0) to (1, 1) are its corners.

    A joint that nobody has lies in the middle. Crowds and empty boxes do not count.
    """
    persons = _persons(inputs)
    boxes, truth = inputs.boxes[persons, None], inputs.truth[persons]
    places, weights = (truth[..., :2] - boxes[..., :2]) / boxes[..., 2:], truth[..., 2:] > 0
    count = weights.sum(axis=0)
    return np.where(count > 0, (places * weights).sum(axis=0) / np.maximum(count, 1), 0.5)


def score_mean_pose(inputs: Inputs, *, engine: str = "hotcoco") -> Metrics:
    """Metrics (see `metrics.score`) of the set's own mean pose in every annotated box, each with the score 1 (ours).

    The pose is fitted to the set that it is scored on, so it flatters the trivial answer a little.
    """
    mean, results = mean_pose(inputs), []
    for i in np.flatnonzero(_persons(inputs)):
        entry, (x, y, width, height) = inputs.annotations[i], inputs.boxes[i]
        joints = np.concatenate([mean * (width, height) + (x, y), np.ones((len(mean), 1))], axis=1)
        result = {"image_id": entry["image_id"], "category_id": entry["category_id"], "score": 1.0}
        results.append(result | {"keypoints": joints.ravel().tolist()})
    return score(dataclasses.replace(inputs, results=results), engine=engine)[0]


def _persons(inputs: Inputs) -> np.ndarray:
    """(G,) whether an annotation is a person with a joint and a box."""
    crowd = np.array([entry["iscrowd"] for entry in inputs.annotations], bool)
    return ~crowd & (inputs.truth[..., 2] > 0).any(axis=1) & (inputs.boxes[:, 2:] > 0).all(axis=1)
