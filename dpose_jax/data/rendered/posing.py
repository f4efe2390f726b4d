"""Poses the body: directions of limbs to turns of bones, and the bones' turns and moves (ours).

World axes are x to the image's right, y up and z towards the camera, which are the axes of a person in rest who faces
the camera. Turns are (3, 3) matrices.
"""

import math
from typing import NamedTuple

import numpy as np

from dpose_jax.data.rendered.body import Body
from dpose_jax.pose.joint_sets import COCO

_FINGERS = ("index", "middle", "ring", "pinky", "thumb")
JOINT = {name: k for k, name in enumerate(COCO.joints)}


class Pose(NamedTuple):
    """What a person does, in world axes; lengths do not matter, only directions."""

    points: np.ndarray  # (17, 3) joints in COCO's order; those of the face are not used
    toes: np.ndarray  # (2, 3) left and right
    head: np.ndarray  # (3, 3) columns: left, up and forward of the head
    curl: np.ndarray  # (2,) radians by which each finger joint of a hand bends
    twist: np.ndarray  # (2,) radians by which a hand turns around its forearm


def unit(vector: np.ndarray) -> np.ndarray:
    """A vector of length 1; of a zero vector, up."""
    norm = math.sqrt(vector @ vector)
    return vector / norm if norm > 1e-9 else np.array([0.0, 1.0, 0.0])


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cross product of two vectors, a tenth of the time of numpy's."""
    ax, ay, az = a.tolist()
    bx, by, bz = b.tolist()
    return np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])


def frame(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A turn whose first column is along `first`, and whose second is in the plane of both."""
    x = unit(first)
    y = second - x * (x @ second)
    if y @ y < 1e-12:
        y = cross(x, np.eye(3)[np.argmin(np.abs(x))])
    y = unit(y)
    return np.stack([x, y, cross(x, y)], 1)


def around(axis: np.ndarray, angle: float) -> np.ndarray:
    """The turn by `angle` radians around a unit axis (Rodrigues)."""
    x, y, z = axis.tolist()
    c, s = math.cos(angle), math.sin(angle)
    a, b, d = (1.0 - c) * x, (1.0 - c) * y, (1.0 - c) * z
    return np.array([
        [c + a * x, a * y - s * z, a * z + s * y],
        [a * y + s * z, c + b * y, b * z - s * x],
        [a * z - s * y, b * z + s * x, c + d * z],
    ])  # fmt: skip


def between(start: np.ndarray, end: np.ndarray, part: float = 1.0) -> np.ndarray:
    """The smallest turn from one direction to another, or a part of it."""
    start, end = unit(start), unit(end)
    axis = cross(start, end)
    if axis @ axis < 1e-12:
        axis = cross(start, np.eye(3)[np.argmin(np.abs(start))])
    return around(unit(axis), part * math.acos(min(1.0, max(-1.0, float(start @ end)))))


def mixed(first: np.ndarray, second: np.ndarray, part: float) -> np.ndarray:
    """The turn `part` of the way from the first turn to the second."""
    turn = second @ first.T
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    angle = math.acos(min(1.0, max(-1.0, 0.5 * (float(np.trace(turn)) - 1.0))))
    return around(unit(axis), part * angle) @ first


def _hinged(rest, rest_bend, target, bend, default) -> np.ndarray:
    """The turn of an upper limb that lets the joint below it bend as a hinge.

    Args:
      rest, rest_bend: the limb's direction in rest, and that in which the joint below bends it.
      target, bend: the limb's direction, and the next one's.
      default: where `rest_bend` goes when the limb is straight: the turn of the parent says that.
    """
    target, bend = unit(target), unit(bend)
    sideways = bend - target * (target @ bend)
    share = min(1.0, 2.0 * float(sideways @ sideways))  # none of it where straight, all from 45 degrees on
    hint = share * unit(sideways) + (1.0 - share) * default
    return frame(target, hint) @ frame(rest, rest_bend).T


def turn_bones(body: Body, heads: np.ndarray, pose: Pose) -> np.ndarray:
    """Turns of all bones, (B, 3, 3) float64, from the heads (B, 3) of the bones in rest."""
    at = dict(zip(body.bones, heads.astype(np.float64), strict=True))
    point = {name: pose.points[k] for name, k in JOINT.items()}
    turns: dict[str, np.ndarray] = {}
    spine = 0.5 * (point["left_shoulder"] + point["right_shoulder"] - point["left_hip"] - point["right_hip"])
    rest = at["neck_01"] - 0.5 * (at["thigh_l"] + at["thigh_r"])
    across = point["left_hip"] - point["right_hip"], point["left_shoulder"] - point["right_shoulder"]
    pelvis, chest = (frame(spine, x) @ frame(rest, np.array([1.0, 0.0, 0.0])).T for x in across)
    turns["Root"] = turns["pelvis"] = pelvis
    for k, name in enumerate(("spine_01", "spine_02", "spine_03"), 1):
        turns[name] = mixed(pelvis, chest, k / 3)
    turns["neck_01"], turns["head"] = mixed(chest, pose.head, 0.5), pose.head
    for k, (short, side) in enumerate((("l", "left"), ("r", "right"))):
        shoulder, elbow, wrist, hip, knee, ankle = (
            point[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
        )
        bones = [f"{name}_{short}" for name in ("upperarm", "lowerarm", "hand", "thigh", "calf", "foot", "ball")]
        arm, forearm, hand, thigh, calf, foot, ball = bones
        rests = {a: at[b] - at[a] for a, b in zip(bones, bones[1:], strict=False) if a != hand}
        upper, lower = elbow - shoulder, wrist - elbow
        clavicle = between(chest @ rests[arm], upper, 0.2) @ chest
        turns[f"clavicle_{short}"] = clavicle
        turns[arm] = _hinged(rests[arm], rests[forearm], upper, lower, clavicle @ rests[forearm])
        turns[forearm] = between(turns[arm] @ rests[forearm], lower) @ turns[arm]
        turns[forearm] = around(unit(lower), 0.4 * pose.twist[k]) @ turns[forearm]
        turns[hand] = around(unit(lower), 0.6 * pose.twist[k]) @ turns[forearm]
        backward = np.array([0.0, 0.0, -1.0])
        turns[thigh] = _hinged(rests[thigh], backward, knee - hip, ankle - knee, pelvis @ backward)
        turns[calf] = between(turns[thigh] @ rests[calf], ankle - knee) @ turns[thigh]
        turns[foot] = turns[ball] = between(turns[calf] @ rests[foot], pose.toes[k] - ankle) @ turns[calf]
        width = at[f"pinky_01_{short}"] - at[f"index_01_{short}"]
        axis = unit(width if k else -width)
        for level, finger in ((n, f) for n in (1, 2, 3) for f in _FINGERS):
            bend = pose.curl[k] * (0.3 if finger == "thumb" else 1.0) * level
            turns[f"{finger}_0{level}_{short}"] = turns[hand] @ around(axis, bend)
    return np.stack([turns[name] for name in body.bones])


def move_bones(body: Body, heads: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Moves (B, 3) that go with turns, so that every bone stays at its parent: a point p becomes `turn @ p + move`."""
    moved = heads.astype(np.float64)
    for k, parent in enumerate(body.parents):
        if parent >= 0:
            moved[k] = moved[parent] + turns[parent] @ (heads[k] - heads[parent]).astype(np.float64)
    return moved - np.einsum("bij,bj->bi", turns, heads)
