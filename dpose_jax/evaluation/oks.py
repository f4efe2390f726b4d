"""Object keypoint similarity (OKS), suppression of duplicate persons by it, and PCK; in float64, as in pycocotools."""

from collections.abc import Sequence

import numpy as np

SOFT_MAX_PERSONS = 20  # COCO scores at most so many persons an image
_MAX_PAIRED = 256  # persons of an image that are compared all at once, in 30 MB


def oks(
    predicted: np.ndarray, truth: np.ndarray, areas: np.ndarray, boxes: np.ndarray, sigmas: Sequence[float]
) -> np.ndarray:
    """OKS of every predicted person with every annotated person of an image, by COCO's rules: (P, G), in [0, 1].

    OKS = mean over labelled joints of exp(-d^2 / (2 area (2 sigma)^2)), d in image pixels. For a person without a
    labelled joint the mean is over all joints, and d is the distance along each axis to the box grown by its own size
    on every side (x - w .. x + 2w). By this rule of pycocotools such persons absorb the predictions near them.

    `predicted` (P, J, 2) and `truth` (G, J, 3: x, y and visibility, labelled above 0) are in image pixels, `areas` (G,)
    in square pixels, `boxes` (G, 4) x, y, width, height. Raises ValueError if shapes disagree or an area is negative.
    """
    predicted, truth, areas, boxes = (np.asarray(array, np.float64) for array in (predicted, truth, areas, boxes))
    joints, persons = len(sigmas), len(truth)
    if predicted.shape[1:] != (joints, 2) or truth.shape[1:] != (joints, 3):
        raise ValueError(f"oks: {joints} sigmas do not fit joints of shape {predicted.shape} and {truth.shape}")
    if areas.shape != (persons,) or boxes.shape != (persons, 4) or np.any(areas < 0):
        raise ValueError(f"oks: needs areas ({persons},), not negative, and boxes ({persons}, 4)")
    labelled = np.asarray(truth[..., 2] > 0)
    unlabelled_person = np.asarray(~labelled.any(axis=1))
    offset = predicted[:, None] - truth[None, :, :, :2]
    low, size = boxes[None, :, None, :2], boxes[None, :, None, 2:]
    joint = predicted[:, None]
    outside = np.maximum(0, low - size - joint) + np.maximum(0, joint - low - 2 * size)
    offset = np.where(unlabelled_person[None, :, None, None], outside, offset)
    weight = np.where(unlabelled_person[:, None], True, labelled)
    return _similarity(np.sum(offset**2, axis=-1), areas[None, :], np.array(sigmas), weight[None])


def _similarity(squared: np.ndarray, areas: np.ndarray, sigmas: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mean over weighted joints of exp(-d^2 / 2 area (2 sigma)^2); squared (..., J), areas (...)."""
    exponent = squared / (2 * sigmas) ** 2 / (areas[..., None] + np.spacing(1)) / 2
    return np.sum(np.exp(-exponent) * weight, axis=-1) / np.sum(weight, axis=-1)


def oks_nms(results: list[dict], sigmas: Sequence[float], threshold: float, *, soft: bool = False) -> list[dict]:
    """Removes duplicate persons within each image, by OKS between results (HRNet's `oks_nms`); keeps their order.

    Two results are compared over all joints, with the mean of their `area`, see `results.make_results`. Hard: in the
    order of the scores, a result is dropped if its OKS with a kept one is above `threshold`. Soft: each better result
    multiplies the score by exp(-OKS^2 / threshold) (Bodla et al., 2017), and the best 20 an image are kept, as copies
    with their decayed scores (ours: HRNet's code only ranks by them). A threshold of 1 turns both off.
    """
    if threshold == 1:
        return list(results)
    by_image: dict[int, list[int]] = {}
    for i, result in enumerate(results):
        by_image.setdefault(result["image_id"], []).append(i)
    kept: dict[int, float] = {}
    for members in by_image.values():
        scores = np.array([results[i]["score"] for i in members], np.float64)
        joints = np.array([results[i]["keypoints"] for i in members], np.float64)
        areas = np.array([results[i]["area"] for i in members], np.float64)
        persons = joints.reshape(len(members), -1, 3)[..., :2], areas
        # All pairs at once are twice as fast, but take gigabytes of thousands of persons.
        pairs = _overlaps(*persons, sigmas, slice(None)) if len(members) <= _MAX_PAIRED else None
        left, room = list(range(len(members))), SOFT_MAX_PERSONS if soft else len(members)
        while left and room:
            best = left[int(np.argmax(scores[left]))]  # of equals the first
            left.remove(best)
            room -= 1
            kept[members[best]] = float(scores[best])
            overlap = _overlaps(*persons, sigmas, [best])[0] if pairs is None else pairs[best]
            if soft:
                scores[left] *= np.exp(-(overlap[left] ** 2) / threshold)
            else:
                left = [i for i in left if overlap[i] <= threshold]
    return [{**results[i], "score": kept[i]} if soft else results[i] for i in sorted(kept)]


def _overlaps(joints: np.ndarray, areas: np.ndarray, sigmas: Sequence[float], rows) -> np.ndarray:
    """(rows, n) OKS of those persons of an image with all n, of joints (n, J, 2) and areas (n,)."""
    squared = np.sum((joints[rows][:, None] - joints[None]) ** 2, axis=-1)
    return _similarity(squared, (areas[rows][:, None] + areas[None]) / 2, np.array(sigmas), np.ones(len(sigmas)))


def pck(
    predicted: np.ndarray, truth: np.ndarray, visible: np.ndarray, lengths: np.ndarray, threshold: float
) -> tuple[float | None, list[float | None]]:
    """Percentage of correct keypoints: the share of labelled joints at most `threshold` x length from the truth.

    `predicted` and `truth` (N, J, 2) are of the same persons, in one unit; a joint that is not finite is wrong. Joints
    are labelled where `visible` (N, J) is above 0. `lengths` (N,) are the persons' own: for us the longer sides of
    their boxes. Returns the share over all labelled joints, and that of each of the J joints, as fractions; None where
    nothing is labelled. Raises ValueError if the shapes do not agree.
    """
    predicted, truth, lengths = (np.asarray(a, np.float64) for a in (predicted, truth, lengths))
    labelled = np.asarray(visible) > 0
    shapes = [array.shape for array in (predicted, truth, labelled, lengths)]
    if shapes != [truth.shape, (*labelled.shape, 2), labelled.shape, labelled.shape[:1]]:
        raise ValueError(f"pck: predicted, truth, visible and lengths have the shapes {shapes}")
    distance = np.linalg.norm(predicted - truth, axis=-1)
    correct = labelled & (distance <= threshold * lengths[:, None])
    count, hits = labelled.sum(axis=0), correct.sum(axis=0)
    per_joint = [int(h) / int(n) if n else None for h, n in zip(hits, count, strict=True)]
    return (int(hits.sum()) / int(count.sum()) if count.sum() else None), per_joint
