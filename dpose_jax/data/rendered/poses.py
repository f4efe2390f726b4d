"""Poses of the rendered people: lifted from annotated joints of photos, or sampled from joint angles (ours).

A lifted pose keeps the directions of the limbs in the image. Their depths follow from the mean lengths of bones
(Drillis and Contini, 1966), the signs of the depths from anatomy: knees bend backward, elbows forward.
"""

import numpy as np

from dpose_jax.data.coco_format import Annotations, Audit
from dpose_jax.data.rendered.posing import JOINT, Pose, cross, frame, unit
from dpose_jax.data.synthetic.skeleton import NUM_DRAWS, POINT, body_points, pair
from dpose_jax.pose.joint_sets import COCO

_MIN_HEIGHT = 60  # px of an annotated person: below it joints are too coarse for directions
# Bone lengths in standing heights.
_SHOULDERS, _HIPS, _TRUNK, _HEAD = 0.22, 0.12, 0.28, 0.065
_LIMBS = (("shoulder", "elbow", 0.175), ("elbow", "wrist", 0.146), ("hip", "knee", 0.245), ("knee", "ankle", 0.24))


def read_poses(file: str, max_bad_share: float) -> tuple[np.ndarray, dict[str, int]]:
    """Reads the persons of a COCO annotation file whose twelve joints below the head are all labelled.

    Returns:
      (N, 17, 3) float32 x, y in px and visibility, N at least 1; and counts: `poses`, `poses_incomplete` (a joint is
      not labelled, or the person is lower than 60 px), and those of every rule for malformed entries.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no such file, has too many malformed entries, or no complete person.
    """
    audit = Audit(file)
    annotations = Annotations(file, COCO, audit, None)
    found, incomplete = [], 0
    for annotation in annotations.well_formed():
        if (annotation.joints[5:, 2] > 0).all() and annotation.box[3] >= _MIN_HEIGHT:
            found.append(annotation.joints)
        else:
            incomplete += 1
    report = audit.report(len(annotations.entries), len(found), max_bad_share)
    malformed = {rule: count for rule, count in report.items() if count and rule not in ("records", "kept")}
    return np.array(found, np.float32), {"poses": len(found), "poses_incomplete": incomplete} | malformed


def sample_pose(rng: np.random.Generator, difficulty: float) -> Pose:
    """A pose of the drawn people (`synthetic.skeleton`), with random hands."""
    points, zoom, _ = body_points(rng.random((1, NUM_DRAWS)), difficulty)
    points[..., :2] /= zoom[..., None]
    world = points[0] * np.array([1.0, -1.0, -1.0])
    centre = world[POINT["head"]]
    head = [unit(world[POINT[f"head_{axis}"]] - centre) for axis in ("left", "up", "forward")]
    return Pose(world[:17], world[pair("toe")], np.stack(head, 1), *_hands(rng))


def lift(joints: np.ndarray, rng: np.random.Generator) -> Pose:
    """A pose that looks like (17, 3) float32 annotated joints, of which all below the head are labelled."""
    flat = np.concatenate([joints[:, :2] * np.array([1.0, -1.0]), np.zeros((17, 1))], 1).astype(np.float64)
    scale = _scale(flat)
    at, points = {name: flat[k] for name, k in JOINT.items()}, {}

    def deep(vector: np.ndarray, length: float) -> float:
        return float(np.sqrt(max(0.0, (length * scale) ** 2 - vector @ vector)))

    trunk = 0.5 * (at["left_shoulder"] + at["right_shoulder"] - at["left_hip"] - at["right_hip"])
    shoulders, hips = at["left_shoulder"] - at["right_shoulder"], at["left_hip"] - at["right_hip"]
    sign = _nearer_side(joints, rng)
    shoulders[2], hips[2] = sign * deep(shoulders, _SHOULDERS), sign * min(deep(hips, _HIPS), 0.9 * _HIPS * scale)
    ahead = np.sign(shoulders[0]) or 1.0  # leaning forward is leaning to the camera if that is in front
    trunk[2] = 0.8 * deep(trunk, _TRUNK) * (ahead if rng.random() < 0.75 else -ahead)
    forward = unit(cross(shoulders, trunk))
    for side, half in (("left", 0.5), ("right", -0.5)):
        points[f"{side}_hip"], points[f"{side}_shoulder"] = half * hips, trunk + half * shoulders
        for start, end, length in _LIMBS:
            step = at[f"{side}_{end}"] - at[f"{side}_{start}"]
            depth = deep(step, length)
            # Of the two depths, the likely one turns the bone forward, or the shin backward.
            likely = {"elbow": 0.6, "wrist": 0.85, "knee": 0.85, "ankle": 0.95}[end]
            toward = (forward[2] > 0) != (end == "ankle")
            step[2] = depth if toward == (rng.random() < likely) else -depth
            points[f"{side}_{end}"] = points[f"{side}_{start}"] + step
    world = np.array([points.get(name, np.zeros(3)) for name in COCO.joints])
    toes = [_toe(points, side, forward) for side in ("left", "right")]
    return Pose(world, np.stack(toes), _head(joints, flat, scale, trunk, forward, rng), *_hands(rng))


def _scale(flat: np.ndarray) -> float:
    """Pixels of a standing height: bones are never longer in the image than in space, up to one wrong label."""
    lengths = [
        np.linalg.norm(flat[JOINT[f"{side}_{end}"]] - flat[JOINT[f"{side}_{start}"]]) / length
        for side in ("left", "right")
        for start, end, length in _LIMBS
    ]
    middle = 0.5 * (flat[5] + flat[6] - flat[11] - flat[12])
    lengths += [np.linalg.norm(middle) / _TRUNK, np.linalg.norm(flat[5] - flat[6]) / _SHOULDERS / 1.1]
    return max(1.03 * float(np.sort(lengths)[-2]), 1.0)


def _nearer_side(joints: np.ndarray, rng: np.random.Generator) -> float:
    """1 if the left shoulder is nearer to the camera than the right one, else -1; by the face, or at random."""
    labelled = joints[:5, 2] > 0
    if labelled[0] and labelled[3] != labelled[4]:
        return 1.0 if labelled[3] else -1.0
    offset = joints[0, 0] - 0.5 * (joints[5, 0] + joints[6, 0])
    if labelled[0] and offset:
        return -float(np.sign(offset))
    return 1.0 if rng.random() < 0.5 else -1.0


def _toe(points: dict[str, np.ndarray], side: str, forward: np.ndarray) -> np.ndarray:
    shin = unit(points[f"{side}_ankle"] - points[f"{side}_knee"])
    ahead = unit(forward - shin * (forward @ shin))
    return points[f"{side}_ankle"] + ahead + 0.4 * shin


def _head(joints, flat, scale, trunk, forward, rng) -> np.ndarray:
    """The head's turn, from the nose and the ears where they are labelled, else as the chest looks."""
    ears = [k for k in (3, 4) if joints[k, 2] > 0]
    if joints[0, 2] > 0 and ears:
        x, y, _ = (flat[0] - flat[ears].mean(0)) / (_HEAD * scale)
        x, y = np.clip(x, -0.96, 0.96), np.clip(y + 0.15, -0.6, 0.6)
        ahead = np.array([x, y, np.sqrt(max(0.02, 1.0 - x * x - y * y))])
    else:
        ahead = forward + 0.35 * rng.standard_normal(3) * (1.0, 0.5, 1.0)
        if joints[0, 2] > 0:
            ahead[2] = abs(ahead[2])
    upright = unit(unit(trunk) + 0.5 * np.array([0.0, 1.0, 0.0]))
    # A neck turns by less than about 75 degrees.
    flat_ahead = unit(ahead - upright * (ahead @ upright))
    if flat_ahead @ forward < 0.25:
        ahead = flat_ahead + (0.25 - flat_ahead @ forward + 0.5) * forward
    if len(ears) == 2:
        roll = flat[3] - flat[4]
        upright = unit(upright + 0.5 * unit(np.array([-roll[1], roll[0], 0.0])) * np.sign(roll[0]))
    turned = frame(ahead, upright)
    return np.stack([cross(turned[:, 1], turned[:, 0]), turned[:, 1], turned[:, 0]], 1)


def _hands(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Curl of the fingers and twist of the hands, (2,) radians each."""
    return rng.random(2) ** 2 * 0.8, 0.6 * rng.standard_normal(2).clip(-1.5, 1.5)
