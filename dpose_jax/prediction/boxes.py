"""Boxes of persons: checked, clipped to their image, read from detection files."""

import numpy as np


def checked_boxes(boxes, size: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
    """Clips boxes to their image and says what is wrong with those that cannot be used.

    Args:
      boxes: (N, 4) x, y, width, height in image pixels, or (N, 5) with a score in [0, 1]; N may be 0.
      size: (height, width) of the image.

    Returns:
      (N, 5) float64 clipped boxes and scores (1 where none are given), and N texts, empty for a usable box.

    Raises:
      ValueError: if the shape or type is another one.
    """
    try:
        given = np.asarray(boxes, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"boxes: must be numbers, (N, 4) or (N, 5): {error}") from error
    if given.size == 0:
        given = given.reshape(0, 5)
    if given.ndim != 2 or given.shape[1] not in (4, 5):
        raise ValueError(f"boxes: must be (N, 4) x, y, width, height, or (N, 5) with a score, got {given.shape}")
    if given.shape[1] == 4:
        given = np.concatenate([given, np.ones((len(given), 1))], axis=1)
    extent = np.array([size[1], size[0]], np.float64)
    low = np.maximum(given[:, :2], 0)
    high = np.minimum(given[:, :2] + given[:, 2:4], extent)
    rules = (
        (~np.isfinite(given[:, :4]).all(axis=1), "not finite"),
        (~(given[:, 2:4] > 0).all(axis=1), "width and height must be positive"),
        (~(high > low).all(axis=1), f"lies outside of the image, {size[1]} x {size[0]}"),
        (~((given[:, 4] >= 0) & (given[:, 4] <= 1)), "the score must lie in [0, 1]"),
    )
    problems = [""] * len(given)
    for broken, text in reversed(rules):
        for i in np.flatnonzero(broken):
            problems[i] = f"box {i} {np.round(given[i, :4], 2).tolist()}: {text}"
    return np.concatenate([low, high - low, given[:, 4:]], axis=1), problems
