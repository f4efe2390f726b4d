"""Discs, tapered capsules and convex hulls as polygons for OpenCV."""

import cv2
import numpy as np

SHIFT = 4  # OpenCV's: polygons are drawn in 1/16 px

_ARC = np.array([[1.0, 0.0], [0.9239, 0.3827], [0.7071, 0.7071], [0.3827, 0.9239]])
CIRCLE = np.concatenate([_ARC, _ARC @ [[0, 1], [-1, 0]], -_ARC, _ARC @ [[0, -1], [1, 0]]])  # (16, 2)
_HALF_CIRCLE = np.concatenate([CIRCLE[12:], CIRCLE[:5]])


def capsules(ends: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Outlines of tapered capsules: ends (..., 2, 2) and radii (..., 2) give (..., 18, 2), all in pixels."""
    a, b = ends[..., 0, :], ends[..., 1, :]
    along = b - a
    length = np.sqrt(along[..., 0] * along[..., 0] + along[..., 1] * along[..., 1])
    unit = along / np.maximum(length, 1e-6)[..., None]
    unit[..., 0] = np.where(length < 1e-6, 1.0, unit[..., 0])
    # A foreshortened limb is the disc of its thicker end.
    radius_a = np.maximum(radii[..., 0], radii[..., 1] - length)[..., None, None]
    radius_b = np.maximum(radii[..., 1], radii[..., 0] - length)[..., None, None]
    x, y = unit[..., None, 0], unit[..., None, 1]
    cos, sin = _HALF_CIRCLE.T
    arc = np.stack([cos * x - sin * y, cos * y + sin * x], -1)
    return np.concatenate([b[..., None, :] + radius_b * arc, a[..., None, :] - radius_a * arc], -2)


def to_fixed(points: np.ndarray) -> np.ndarray:
    """Pixels to int32 in 1/16 pixel."""
    return np.rint(points * (1 << SHIFT)).astype(np.int32)


def disc(centre: np.ndarray, radius: float) -> np.ndarray:
    """A regular polygon of 16 corners, (16, 2) pixels."""
    return centre + radius * CIRCLE


def convex_hull(points: np.ndarray) -> np.ndarray:
    """The convex hull of (..., 2) int32 points, (n, 2)."""
    return cv2.convexHull(points.reshape(-1, 2))[:, 0]
