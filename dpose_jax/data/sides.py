"""Left and right that contradict each other in a set's labels, found by the x order of flip pairs (rules ours)."""

import numpy as np

from dpose_jax.pose.joint_names import left_first, side_and_part
from dpose_jax.pose.joint_sets import JointSet

# The trunk's pairs have one order; arms and legs cross. Of COCO's val2017 and of Leeds Sports Pose 0.1% and 0.4% of the
# persons have two of them in different orders, each by more than _WIDE of the box's width.
_TRUNK = ("eye", "ear", "shoulder", "hip")
_WIDE = 0.15
# Less is a head seen from above or below: 0.1% of COCO's faces have the eyes in the other order by this.
_EYES = 0.02
# A pair's order agrees with the others' sum in 84% (ankles) to 99% (eyes) of those persons.
_AGREES, _NEEDED, _PAIR_WIDE = 0.5, 10, 0.1


def mixed_sides(joints: np.ndarray, widths: np.ndarray, joint_set: JointSet) -> dict[str, np.ndarray]:
    """Which persons have left and right confused, (N,) bool by rule.

    `joints` are (N, J, 3) x, y in pixels and visibility, `widths` (N,) of the boxes. `sides_mixed`: two pairs of eyes,
    ears, shoulders and hips, or of all joints where the set has none of these, are in different orders.
    `face_mirrored`: nose and both eyes are visible, and the left eye is left of the right one.
    """
    steps = _steps(joints, widths, joint_set)
    parts = [side_and_part(joint_set.joints[left])[1] for left, _ in left_first(joint_set)]
    trunk = [part in _TRUNK for part in parts]
    core = steps[:, trunk if any(trunk) else slice(None)]
    found = {"sides_mixed": np.logical_and((core > _WIDE).any(axis=1), (core < -_WIDE).any(axis=1))}
    names = [side_and_part(joint) for joint in joint_set.joints]
    if {("", "nose"), ("l", "eye"), ("r", "eye")} <= set(names) and "eye" in parts:
        face = [names.index(each) for each in (("", "nose"), ("l", "eye"), ("r", "eye"))]
        visible = (joints[:, face, 2] == 2).all(axis=1)
        found["face_mirrored"] = np.logical_and(visible, steps[:, parts.index("eye")] < -_EYES)
    return found


def swapped_pairs(joints: np.ndarray, widths: np.ndarray, joint_set: JointSet) -> list[tuple[str, str, float, int]]:
    """Flip pairs whose order contradicts the other pairs in most persons: (left, right, their share, persons).

    Arguments are those of `mixed_sides`. Two pairs alone do not show which of them is swapped: then both are given.
    """
    steps = _steps(joints, widths, joint_set)
    others = steps.sum(axis=1, keepdims=True) - steps
    told = (np.abs(steps) > _PAIR_WIDE) & (np.abs(others) > _PAIR_WIDE)
    found = []
    for place, (left, right) in enumerate(left_first(joint_set)):
        persons = told[:, place]
        if persons.sum() >= _NEEDED:
            agrees = float((np.sign(steps) == np.sign(others))[persons, place].mean())
            if agrees < _AGREES:
                found.append((joint_set.joints[left], joint_set.joints[right], 1 - agrees, int(persons.sum())))
    return found


def _steps(joints: np.ndarray, widths: np.ndarray, joint_set: JointSet) -> np.ndarray:
    """(N, pairs): x of the left joint minus that of the right in widths of the box; 0 if one is not labelled."""
    pairs = np.array(left_first(joint_set), int).reshape(-1, 2)
    left, right = joints[:, pairs[:, 0]], joints[:, pairs[:, 1]]
    both = (left[..., 2] > 0) & (right[..., 2] > 0)
    return np.where(both, (left[..., 0] - right[..., 0]) / np.maximum(widths[:, None], 1), 0)
