"""What a set seems to mean by other conventions than ours: nothing is changed, but the user is told."""

import numpy as np

_SHARE = 0.1  # of the persons, from which a convention is doubted: single odd boxes are in every set
_SLACK = 2.0  # pixels
_PERSONS = 5  # of fewer, all may stand in a corner
SAMPLE = 2_000  # images whose headers are read at the start of a run


def normalised(numbers, size: tuple[int, int]) -> bool:
    """Whether coordinates of an image of `size` (width, height) lie in 0..1: shares of its sides, and no pixels."""
    values = np.asarray(numbers, np.float64)
    return bool(values.size > 2 and min(size) > 2 and values.min() >= 0 and values.max() <= 1)


def like_corners(box, size: tuple[int, int], joints=()) -> bool:
    """Whether a box is x1, y1, x2, y2 rather than x, y, width, height, in an image of `size` (width, height).

    As corners it lies in the image and holds the joints, (N, 2); as width and height it sticks out.
    """
    low, high, limit = np.asarray(box[:2]), np.asarray(box[2:]), np.asarray(size)
    points = np.asarray(joints, np.float64).reshape(-1, 2)
    fits = (low < high).all() and (low >= -_SLACK).all() and (high <= limit + _SLACK).all()
    holds = ((points >= low - _SLACK) & (points <= high + _SLACK)).all()
    return bool(fits and holds and (low + high > limit + _SLACK).any())


def like_centre(box, joints) -> bool:
    """Whether a box is centre, width and height: so it holds all joints, (N, 2), and as x, y, width, height few."""
    corner, size = np.asarray(box[:2], np.float64), np.asarray(box[2:], np.float64)
    points = np.asarray(joints, np.float64).reshape(-1, 2)

    def held(low: np.ndarray) -> np.ndarray:
        slack = _SLACK + 0.1 * size.max()
        return ((points >= low - slack) & (points <= low + size + slack)).all(axis=1)

    return len(points) > 2 and bool(held(corner - size / 2).all()) and 2 * int(held(corner).sum()) < len(points)


def in_percent(boxes: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether all boxes (N, 4) lie in 0..100 of images (N, 2: height, width) that are all of 250 pixels or more."""
    if len(boxes) < _PERSONS:
        return False
    return bool(sizes.min() >= 250 and (boxes[:, :2] + boxes[:, 2:]).max() <= 101 and boxes.min() >= -1)


def doubts(report: dict[str, int], turned: int, images: int, orientation: str) -> list[str]:
    """Sentences for the user, from a source's `report`, the images that EXIF turns, and `data.orientation`."""
    found, kept = [], report.get("kept", 0)
    for rule, means in (
        ("looks_normalised", "look normalised: a box or joints in 0..1; they must be pixels"),
        ("looks_like_corners", "have boxes that look like corners, x1, y1, x2, y2; they must be x, y, width, height"),
        ("looks_like_centre", "have boxes that look like centre, width and height; x and y must be the corner"),
        ("looks_in_percent", "lie in 0..100 of images of 250 px or more: percent? They must be pixels"),
    ):
        if (count := report.get(rule, 0)) > _SHARE * kept:
            found.append(f"{count} of {kept} persons {means}")
    if turned:
        means = {"stored": "the pixels as stored", "upright": "the pictures as a viewer shows them"}[orientation]
        found.append(
            f"{turned} of {images} images looked at have an EXIF orientation; annotations are taken to mean {means} "
            f"(data.orientation={orientation!r})"
        )
    return found
