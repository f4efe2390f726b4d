"""Poses of the synthetic people: joint angles, and the points of the body that follow from them (ours).

The body frame is (left, up, forward) in units of standing height. The camera frame is x to the right, y down and z
away from the camera. A person who faces the camera has their left at the image's right. Angles are in degrees. Only
+, -, *, / and square roots are used (no libm), so that every machine computes the same bits.
"""

import numpy as np

from dpose_jax.pose.joint_sets import COCO

_HEAD = ("head", "head_left", "head_up", "head_forward")
_PAIRS = ("chest", "waist", "hem", "hand", "toe", "sleeve", "short", "skirt")
_LEFT_RIGHT = tuple(f"{side}_{name}" for name in _PAIRS for side in ("left", "right"))
NAMES = (*COCO.joints, "neck", *_HEAD, *_LEFT_RIGHT, "hair_end")
POINT = {name: i for i, name in enumerate(NAMES)}

# Semi-axes of the head, (left, up, forward), in units of its radius.
HEAD_AXES = np.array([1.0, 1.28, 1.1])
# Face joints as multiples of the head's semi-axes: nose, eyes, ears.
FACE = np.array([[0, -0.14, 1.1], [0.4, 0.12, 0.91], [-0.4, 0.12, 0.91], [1.07, -0.05, -0.06], [-1.07, -0.05, -0.06]])
_HEAD_POINTS = np.concatenate([np.zeros((1, 3)), np.eye(3) * HEAD_AXES, FACE * HEAD_AXES])
_HEAD_ROWS = [POINT[name] for name in _HEAD + COCO.joints[:5]]
_SIDES = np.array([1.0, -1.0])  # the body frame's direction of left and right

# A row: least difficulty, weight, then degrees: body pitch, lean, arms (flexion, abduction, inward rotation, elbow),
# legs (flexion, abduction, knee), left before right. Half of the people are mirrored.
_POSES = (
    (0.0, 3, 0, 0, (4, 9, 25, 15), (4, 9, 25, 15), (1, 5, 3), (1, 5, 3)),  # stand
    (0.0, 1, 0, 0, (-12, 46, 75, 92), (-12, 46, 75, 92), (0, 9, 3), (0, 9, 3)),  # hands on hips
    (0.0, 1, 0, 0, (0, 80, -80, 75), (5, 10, 20, 20), (0, 6, 2), (0, 6, 5)),  # wave
    (0.0, 2, 0, 3, (28, 6, 15, 30), (-24, 8, 15, 25), (-16, 3, 18), (22, 3, 10)),  # walk
    (0.0, 1, 0, 0, (0, 152, -60, 22), (4, 12, 20, 15), (2, 6, 3), (2, 8, 4)),  # one arm up
    (0.1, 1, 0, 0, (0, 86, 0, 8), (0, 86, 0, 8), (0, 14, 3), (0, 14, 3)),  # T pose
    (0.1, 1, 0, -3, (0, 148, -70, 25), (0, 148, -70, 25), (0, 12, 4), (0, 12, 4)),  # both arms up
    (0.1, 1, 0, 6, (82, 5, 10, 14), (12, 8, 20, 30), (12, 4, 8), (-8, 5, 8)),  # reach
    (0.1, 1, 0, 2, (30, 25, -10, 135), (6, 10, 30, 20), (2, 5, 4), (0, 6, 4)),  # phone at the ear
    (0.1, 1, 0, 2, (28, 12, 75, 98), (28, 12, 75, 98), (1, 6, 3), (1, 6, 3)),  # arms folded
    (0.2, 2, 0, 13, (48, 8, 20, 92), (-42, 12, 20, 85), (-22, 3, 62), (58, 4, 72)),  # run
    (0.2, 2, 0, 4, (30, 10, 25, 45), (30, 10, 25, 45), (84, 9, 84), (84, 9, 84)),  # sit
    (0.2, 1, 0, 12, (38, 8, 45, 60), (38, 8, 45, 60), (80, 14, 70), (90, 14, 95)),  # sit with hands on the lap
    (0.3, 1, 0, 8, (25, 50, 0, 40), (20, 40, 10, 50), (68, 8, 75), (-28, 6, 25)),  # lunge
    (0.3, 1, 0, 14, (70, 35, 10, 30), (62, -22, 20, 25), (16, 16, 22), (12, 18, 24)),  # both arms to one side
    (0.4, 1, 0, -4, (0, 130, -40, 30), (0, 120, -40, 35), (22, 24, 55), (-6, 20, 70)),  # jump
    (0.4, 1, -8, -8, (25, 45, 0, 35), (-20, 50, 0, 30), (82, 10, 14), (-6, 6, 12)),  # kick
    (0.4, 1, 0, 34, (72, 12, 15, 35), (72, 12, 15, 35), (100, 18, 118), (100, 18, 118)),  # squat
    (0.5, 1, 30, 48, (75, 10, 10, 15), (70, 10, 10, 20), (34, 8, 8), (30, 8, 12)),  # bend
    (0.5, 1, 12, 32, (62, 14, 10, 28), (62, 14, 10, 28), (62, 8, 92), (82, 8, 62)),  # ride
    (0.6, 1, 0, 10, (90, 20, 0, 15), (-50, 25, 0, 25), (75, 12, 20), (-48, 10, 25)),  # split stride
    (0.6, 1, -40, -10, (60, 70, 0, 45), (35, 80, 0, 50), (45, 20, 40), (25, 25, 65)),  # fall
    (0.7, 1, 82, 0, (82, 8, 0, 8), (86, 8, 0, 12), (80, 6, 85), (88, 6, 80)),  # crawl
    (0.7, 1, -86, 0, (20, 35, 0, 40), (10, 45, 0, 30), (12, 10, 22), (4, 14, 8)),  # lie on the back
    (0.8, 1, 178, 5, (172, 10, 0, 6), (172, 10, 0, 6), (8, 12, 14), (-6, 14, 18)),  # head down
)  # fmt: skip
# Least and largest proportions: arm, leg and trunk relative to the mean; widths and radius in standing heights; girth.
_SIZES = {
    "arm": (0.92, 1.08), "leg": (0.9, 1.06), "trunk": (0.92, 1.08), "shoulder": (0.098, 0.124),
    "hip": (0.055, 0.068), "head": (0.056, 0.072), "build": (0.84, 1.24),
}  # fmt: skip
NUM_DRAWS = 40  # uniform numbers that one person's pose takes


def pair(name: str) -> list[int]:
    """The indices in NAMES of the left and the right point of this name."""
    return [POINT[f"left_{name}"], POINT[f"right_{name}"]]


def sine(degrees: np.ndarray) -> np.ndarray:
    """Sine of an angle in degrees by its Taylor series; error below 1e-8."""
    turns = degrees / 360.0
    turns = turns - np.floor(turns + 0.5)
    turns = np.where(turns > 0.25, 0.5 - turns, np.where(turns < -0.25, -0.5 - turns, turns))
    x = turns * 6.283185307179586
    square = x * x
    total = 1.0 - square / 156.0
    for denominator in (110.0, 72.0, 42.0, 20.0, 6.0):
        total = 1.0 - total * square / denominator
    return x * total


def cosine(degrees: np.ndarray) -> np.ndarray:
    """Cosine of an angle in degrees; see `sine`."""
    return sine(degrees + 90.0)


def turn(points: np.ndarray, first: int, second: int, degrees: np.ndarray) -> np.ndarray:
    """Rotates (..., 3) points from axis `first` towards axis `second` by degrees, which broadcasts with (...)."""
    s, c = sine(np.stack([degrees, degrees + 90.0]))
    out = points.copy()
    out[..., first] = c * points[..., first] - s * points[..., second]
    out[..., second] = s * points[..., first] + c * points[..., second]
    return out


def _angles(u: np.ndarray, difficulty: float) -> dict[str, np.ndarray]:
    """Angles by name, (P,), from (P, NUM_DRAWS) uniform numbers; head (P, 3), arms and legs (P, 2, n), left first."""
    rows = [row for row in _POSES if row[0] <= difficulty]
    weights = np.array([row[1] for row in rows], np.float64)
    chosen = np.searchsorted(np.cumsum(weights) / weights.sum(), u[:, 0], side="right").clip(0, len(rows) - 1)
    trunk, arms, legs = (np.array([row[k : k + 2] for row in rows], np.float64)[chosen] for k in (2, 4, 6))
    spread = 0.35 + 0.9 * difficulty
    jitter = 2.0 * u - 1.0
    arms = arms + spread * np.array([16.0, 11.0, 25.0, 20.0]) * jitter[:, 1:9].reshape(-1, 2, 4)
    legs = legs + spread * np.array([9.0, 5.0, 9.0]) * jitter[:, 9:15].reshape(-1, 2, 3)
    mirrored = (u[:, 15] < 0.5)[:, None, None]
    arms, legs = np.where(mirrored, arms[:, ::-1], arms), np.where(mirrored, legs[:, ::-1], legs)
    arms[..., 3] = arms[..., 3].clip(0.0, 145.0)
    legs[..., 2] = legs[..., 2].clip(0.0, 145.0)
    # Views widen with difficulty, up to a third of them from behind.
    yaw = jitter[:, 16] * min(75.0, 25.0 + 100.0 * difficulty)
    yaw = yaw + np.where(u[:, 17] < min(0.35, 0.7 * difficulty), 180.0, 0.0)
    roll = jitter[:, 18] * np.where(u[:, 19] < 0.3 * difficulty * difficulty, 90.0, 4.0 + 16.0 * difficulty)
    return {
        "pitch": trunk[:, 0] + spread * 3.0 * jitter[:, 20], "lean": trunk[:, 1] + spread * 7.0 * jitter[:, 21],
        "side": spread * 9.0 * jitter[:, 22], "twist": spread * 16.0 * jitter[:, 23],
        "head": spread * np.array([14.0, 30.0, 9.0]) * jitter[:, 24:27], "arms": arms, "legs": legs,
        "yaw": yaw, "roll": roll, "elevation": 18.0 * difficulty * (2.0 * u[:, 27] - 0.7),
    }  # fmt: skip


def _limbs(angles: dict[str, np.ndarray], sizes: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Bone vectors, body frame, (P, side, bone, 3): upper arm, forearm, hand; then thigh, shin, foot."""
    sign = _SIDES[:, None]
    flex, abduction, inward, elbow = (angles["arms"][..., k, None] for k in range(4))
    zero = np.zeros_like(elbow)
    straight = np.concatenate([zero, zero - 1.0, zero], -1)
    bent = np.concatenate([zero, -cosine(elbow), sine(elbow)], -1)
    arms = np.stack([straight, bent, bent], 2)
    arms = turn(turn(turn(arms, 2, 0, -sign * inward), 0, 1, sign * abduction), 1, 2, -flex)
    arms = arms * (sizes["arm"][:, None, None, None] * np.array([0.165, 0.145, 0.055])[:, None])
    flex, abduction, knee = (angles["legs"][..., k, None] for k in range(3))
    back = np.concatenate([zero, -cosine(knee), -sine(knee)], -1)
    toes = np.concatenate([zero + 0.25 * sign, -sine(knee), cosine(knee)], -1) + 0.3 * back
    legs = np.stack([straight, back, toes], 2)
    legs = turn(turn(legs, 0, 1, sign * abduction), 1, 2, -flex)
    legs = legs * (sizes["leg"][:, None, None, None] * np.array([0.245, 0.235, 0.085])[:, None])
    return arms, legs


def _left_right(x: np.ndarray, y: np.ndarray | float) -> np.ndarray:
    """The points (x, y, 0) and (-x, y, 0) of P people, (P, 2, 3), body frame."""
    points = np.zeros((len(x), 2, 3))
    points[..., 0] = _SIDES * x[:, None]
    points[..., 1] = np.reshape(y, (-1, 1))
    return points


def _upper_body(angles: dict[str, np.ndarray], sizes: dict[str, np.ndarray], arms: np.ndarray) -> np.ndarray:
    """(P, len(NAMES), 3) points, body frame: those above the waist, and zeros for the others."""
    p = np.zeros((len(arms), len(NAMES), 3))
    trunk, radius = 0.29 * sizes["trunk"], sizes["head"]
    shoulder = _left_right(sizes["shoulder"], trunk - 0.012)
    elbow = shoulder + arms[:, :, 0]
    wrist = elbow + arms[:, :, 1]
    p[:, pair("shoulder")], p[:, pair("elbow")], p[:, pair("wrist")] = shoulder, elbow, wrist
    p[:, pair("hand")] = wrist + arms[:, :, 2]
    p[:, pair("sleeve")] = shoulder + 0.62 * arms[:, :, 0]
    p[:, pair("chest")] = _left_right(sizes["shoulder"] - 0.052 * sizes["build"], trunk - 0.05)
    p[:, POINT["neck"], 1] = trunk - 0.005
    p[:, POINT["hair_end"], 1:] = np.stack([trunk - 0.05, np.full_like(trunk, -0.05)], -1)
    pitch, yaw, tilt = (angles["head"][:, k, None] for k in range(3))
    head = _HEAD_POINTS * radius[:, None, None]
    head = turn(turn(turn(head, 2, 1, -pitch - 4.0), 2, 0, yaw), 0, 1, tilt)
    head[..., 1] += (trunk + 0.025 + 1.28 * radius)[:, None]
    head[..., 2] += 0.012
    p[:, _HEAD_ROWS] = head
    p = turn(p, 2, 1, -angles["lean"][:, None])
    return turn(turn(p, 0, 1, angles["side"][:, None]), 2, 0, angles["twist"][:, None])


def body_points(u: np.ndarray, difficulty: float) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Computes points, zoom and sizes of P people from (P, NUM_DRAWS) uniform numbers in [0, 1).

    Points are (P, len(NAMES), 3), camera frame, in standing heights from the pelvis, with perspective applied to x and
    y; zoom, (P, len(NAMES)), is its factor of lengths at each point. Sizes are (P,) by name: arm, leg, trunk, shoulder,
    hip, head (radius), build (girth). Difficulty, in [0, 1], widens angles and views and adds unusual poses.
    """
    angles = _angles(u, difficulty)
    sizes = {}
    for k, (name, (low, high)) in enumerate(_SIZES.items()):
        wide = 0.5 * (high - low) * (0.6 + 0.4 * difficulty)
        sizes[name] = 0.5 * (low + high) + wide * (2.0 * u[:, 28 + k] - 1.0)
    arms, legs = _limbs(angles, sizes)
    p = _upper_body(angles, sizes, arms)
    hip = _left_right(sizes["hip"], 0.0)
    knee = hip + legs[:, :, 0]
    ankle = knee + legs[:, :, 1]
    p[:, pair("hip")], p[:, pair("knee")], p[:, pair("ankle")] = hip, knee, ankle
    p[:, pair("toe")] = ankle + legs[:, :, 2]
    p[:, pair("short")] = hip + 0.72 * legs[:, :, 0]
    p[:, pair("skirt")] = hip + 0.8 * legs[:, :, 0]
    chest, pelvis = p[:, pair("chest")], 0.75 * hip
    p[:, pair("waist")] = 0.45 * chest + 0.55 * pelvis
    p[:, pair("hem")] = 0.12 * chest + 0.88 * pelvis
    p = turn(turn(p, 2, 1, -angles["pitch"][:, None]), 2, 0, angles["yaw"][:, None])
    p = turn(turn(p, 2, 1, -angles["elevation"][:, None]), 0, 1, angles["roll"][:, None])
    p = p * np.array([1.0, -1.0, -1.0])
    strength = (0.1 + 0.35 * difficulty) * u[:, 35]
    zoom = 1.0 / (1.0 + strength[:, None] * p[..., 2])
    p[..., :2] *= zoom[..., None]
    return p, zoom, sizes
