"""Poses for the synthetic people: joint angles, and the body's points that they give (ours).

The body frame is (left, up, forward) in units of standing height; the camera frame is x to the right, y down and z
away from the camera. A person who faces the camera has their left at the image's right. Only +, -, * , / and square
roots touch the numbers (no libm), so that every machine gives the same bits.
"""

import numpy as np

from dpose_jax.pose.joint_sets import COCO

NAMES = COCO.joints + (
    "neck", "head", "head_l", "head_u", "head_f",
    "left_chest", "right_chest", "left_waist", "right_waist", "left_hem", "right_hem", "left_hand", "right_hand",
    "left_toe", "right_toe", "left_sleeve", "right_sleeve", "left_short", "right_short", "left_skirt", "right_skirt",
    "hair_end",
)  # fmt: skip
POINT = {name: i for i, name in enumerate(NAMES)}

# Semi-axes of the head, (left, up, forward), in units of its radius.
HEAD_AXES = np.array([1.0, 1.28, 1.1])
# Face joints as multiples of the head's semi-axes: nose, eyes, ears.
FACE = np.array(
    [[0, -0.14, 1.1], [0.4, 0.12, 0.91], [-0.4, 0.12, 0.91], [1.07, -0.05, -0.06], [-1.07, -0.05, -0.06]],
)

# A row: least difficulty, weight, then degrees: body pitch, lean, arms (flex, abduction, inward turn, elbow), legs
# (flex, abduction, knee), left before right. A figure is mirrored half of the time.
_POSES = (
    # stand, hands on hips, wave, walk, one arm up
    (0.0, 3, 0, 0, (4, 9, 25, 15), (4, 9, 25, 15), (1, 5, 3), (1, 5, 3)),
    (0.0, 1, 0, 0, (-12, 46, 75, 92), (-12, 46, 75, 92), (0, 9, 3), (0, 9, 3)),
    (0.0, 1, 0, 0, (0, 80, -80, 75), (5, 10, 20, 20), (0, 6, 2), (0, 6, 5)),
    (0.0, 2, 0, 3, (28, 6, 15, 30), (-24, 8, 15, 25), (-16, 3, 18), (22, 3, 10)),
    (0.0, 1, 0, 0, (0, 152, -60, 22), (4, 12, 20, 15), (2, 6, 3), (2, 8, 4)),
    # T pose, both arms up, reach, phone at the ear, arms folded
    (0.1, 1, 0, 0, (0, 86, 0, 8), (0, 86, 0, 8), (0, 14, 3), (0, 14, 3)),
    (0.1, 1, 0, -3, (0, 148, -70, 25), (0, 148, -70, 25), (0, 12, 4), (0, 12, 4)),
    (0.1, 1, 0, 6, (82, 5, 10, 14), (12, 8, 20, 30), (12, 4, 8), (-8, 5, 8)),
    (0.1, 1, 0, 2, (30, 25, -10, 135), (6, 10, 30, 20), (2, 5, 4), (0, 6, 4)),
    (0.1, 1, 0, 2, (28, 12, 75, 98), (28, 12, 75, 98), (1, 6, 3), (1, 6, 3)),
    # run, sit, sit with hands on the lap, lunge, both arms to one side
    (0.2, 2, 0, 13, (48, 8, 20, 92), (-42, 12, 20, 85), (-22, 3, 62), (58, 4, 72)),
    (0.2, 2, 0, 4, (30, 10, 25, 45), (30, 10, 25, 45), (84, 9, 84), (84, 9, 84)),
    (0.2, 1, 0, 12, (38, 8, 45, 60), (38, 8, 45, 60), (80, 14, 70), (90, 14, 95)),
    (0.3, 1, 0, 8, (25, 50, 0, 40), (20, 40, 10, 50), (68, 8, 75), (-28, 6, 25)),
    (0.3, 1, 0, 14, (70, 35, 10, 30), (62, -22, 20, 25), (16, 16, 22), (12, 18, 24)),
    # jump, kick, squat, bend, ride
    (0.4, 1, 0, -4, (0, 130, -40, 30), (0, 120, -40, 35), (22, 24, 55), (-6, 20, 70)),
    (0.4, 1, -8, -8, (25, 45, 0, 35), (-20, 50, 0, 30), (82, 10, 14), (-6, 6, 12)),
    (0.4, 1, 0, 34, (72, 12, 15, 35), (72, 12, 15, 35), (100, 18, 118), (100, 18, 118)),
    (0.5, 1, 30, 48, (75, 10, 10, 15), (70, 10, 10, 20), (34, 8, 8), (30, 8, 12)),
    (0.5, 1, 12, 32, (62, 14, 10, 28), (62, 14, 10, 28), (62, 8, 92), (82, 8, 62)),
    # split stride, fall, crawl, lie on the back, head down
    (0.6, 1, 0, 10, (90, 20, 0, 15), (-50, 25, 0, 25), (75, 12, 20), (-48, 10, 25)),
    (0.6, 1, -40, -10, (60, 70, 0, 45), (35, 80, 0, 50), (45, 20, 40), (25, 25, 65)),
    (0.7, 1, 82, 0, (82, 8, 0, 8), (86, 8, 0, 12), (80, 6, 85), (88, 6, 80)),
    (0.7, 1, -86, 0, (20, 35, 0, 40), (10, 45, 0, 30), (12, 10, 22), (4, 14, 8)),
    (0.8, 1, 178, 5, (172, 10, 0, 6), (172, 10, 0, 6), (8, 12, 14), (-6, 14, 18)),
)  # fmt: skip

NUM_DRAWS = 40  # uniform numbers that one person's pose takes


def sine(degrees: np.ndarray) -> np.ndarray:
    """Sine of an angle in degrees by its Taylor series; error below 1e-8, the same bits on every machine."""
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
    """Angles in degrees by name from (P, NUM_DRAWS) uniform numbers; arms and legs are (P, 2, n), left first."""
    rows = [row for row in _POSES if row[0] <= difficulty]
    weights = np.array([row[1] for row in rows], np.float64)
    chosen = np.searchsorted(np.cumsum(weights) / weights.sum(), u[:, 0], side="right").clip(0, len(rows) - 1)
    trunk = np.array([row[2:4] for row in rows], np.float64)[chosen]
    arms = np.array([row[4:6] for row in rows], np.float64)[chosen]
    legs = np.array([row[6:8] for row in rows], np.float64)[chosen]
    spread = 0.35 + 0.9 * difficulty
    jitter = 2.0 * u - 1.0
    arms = arms + spread * np.array([16.0, 11.0, 25.0, 20.0]) * jitter[:, 1:9].reshape(-1, 2, 4)
    legs = legs + spread * np.array([9.0, 5.0, 9.0]) * jitter[:, 9:15].reshape(-1, 2, 3)
    mirrored = (u[:, 15] < 0.5)[:, None, None]
    arms, legs = np.where(mirrored, arms[:, ::-1], arms), np.where(mirrored, legs[:, ::-1], legs)
    arms[..., 3] = arms[..., 3].clip(0.0, 145.0)
    legs[..., 2] = legs[..., 2].clip(0.0, 145.0)
    # Easy people face the camera; the harder, the more views, a third of them from behind.
    yaw = jitter[:, 16] * min(75.0, 25.0 + 100.0 * difficulty)
    yaw = yaw + np.where(u[:, 17] < min(0.35, 0.7 * difficulty), 180.0, 0.0)
    roll = jitter[:, 18] * np.where(u[:, 19] < 0.3 * difficulty * difficulty, 90.0, 4.0 + 16.0 * difficulty)
    return {
        "pitch": trunk[:, 0] + spread * 3.0 * jitter[:, 20],
        "lean": trunk[:, 1] + spread * 7.0 * jitter[:, 21],
        "side": spread * 9.0 * jitter[:, 22],
        "twist": spread * 16.0 * jitter[:, 23],
        "head": spread * np.array([14.0, 30.0, 9.0]) * jitter[:, 24:27],
        "arms": arms,
        "legs": legs,
        "yaw": yaw,
        "roll": roll,
        "elevation": 18.0 * difficulty * (2.0 * u[:, 27] - 0.7),
    }


def _limbs(angles: dict[str, np.ndarray], sizes: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Bones of arms (upper arm, forearm, hand) and legs (thigh, shin, foot): vectors, (P, 2, 3, 3), body frame."""
    sign = np.array([1.0, -1.0])[:, None]
    flex, abduction, inward, elbow = (angles["arms"][..., k, None] for k in range(4))
    zero = np.zeros_like(elbow)
    straight = np.concatenate([zero, zero - 1.0, zero], -1)
    bent = np.concatenate([zero, -cosine(elbow), sine(elbow)], -1)
    arms = np.stack([straight, bent, bent], 2)
    arms = turn(arms, 2, 0, -sign * inward)
    arms = turn(turn(arms, 0, 1, sign * abduction), 1, 2, -flex)
    arms = arms * (sizes["arm"][:, None, None, None] * np.array([0.165, 0.145, 0.055])[:, None])
    flex, abduction, knee = (angles["legs"][..., k, None] for k in range(3))
    back = np.concatenate([zero, -cosine(knee), -sine(knee)], -1)
    toes = np.concatenate([zero + 0.25 * sign, -sine(knee), cosine(knee)], -1) + 0.3 * back
    legs = np.stack([straight, back, toes], 2)
    legs = turn(turn(legs, 0, 1, sign * abduction), 1, 2, -flex)
    legs = legs * (sizes["leg"][:, None, None, None] * np.array([0.245, 0.235, 0.085])[:, None])
    return arms, legs


def body_points(u: np.ndarray, difficulty: float) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Poses P people.

    Args:
      u: (P, NUM_DRAWS) uniform numbers in [0, 1).
      difficulty: in [0, 1]; widens angles and views and adds unusual poses.

    Returns:
      points: (P, len(NAMES), 3) camera frame, units of standing height, perspective applied to x and y; the pelvis
        is the origin.
      zoom: (P, len(NAMES)) perspective factor of lengths at each point.
      sizes: (P,) proportions by name: arm, leg, trunk, shoulder, hip, head (radius) and build (girth).
    """
    angles = _angles(u, difficulty)
    wide = 0.6 + 0.4 * difficulty
    low_high = {
        "arm": (0.92, 1.08), "leg": (0.9, 1.06), "trunk": (0.92, 1.08), "shoulder": (0.098, 0.124),
        "hip": (0.055, 0.068), "head": (0.056, 0.072), "build": (0.84, 1.24),
    }  # fmt: skip
    sizes = {}
    for k, (name, (low, high)) in enumerate(low_high.items()):
        sizes[name] = 0.5 * (low + high) + 0.5 * (high - low) * wide * (2.0 * u[:, 28 + k] - 1.0)
    arms, legs = _limbs(angles, sizes)
    p = np.zeros((len(u), len(NAMES), 3))
    up, low = _upper(angles, sizes, arms), _lower(sizes, legs)
    for name, value in {**up, **low}.items():
        if name in POINT:
            p[:, POINT[name]] = value
    for side in ("left", "right"):
        chest, hip = p[:, POINT[f"{side}_chest"]], low[f"{side}_girdle"]
        p[:, POINT[f"{side}_waist"]] = 0.45 * chest + 0.55 * hip
        p[:, POINT[f"{side}_hem"]] = 0.12 * chest + 0.88 * hip
    p = turn(turn(p, 2, 1, -angles["pitch"][:, None]), 2, 0, angles["yaw"][:, None])
    p = turn(turn(p, 2, 1, -angles["elevation"][:, None]), 0, 1, angles["roll"][:, None])
    p = p * np.array([1.0, -1.0, -1.0])
    strength = (0.1 + 0.35 * difficulty) * u[:, 35]
    zoom = 1.0 / (1.0 + strength[:, None] * p[..., 2])
    p[..., :2] *= zoom[..., None]
    return p, zoom, sizes


def _upper(angles, sizes, arms) -> dict[str, np.ndarray]:
    """Points above the waist by name, (P, 3), body frame with the pelvis at the origin."""
    count = len(arms)
    trunk, width, radius = 0.29 * sizes["trunk"], sizes["shoulder"], sizes["head"]
    q = {}
    for k, (side, sign) in enumerate((("left", 1.0), ("right", -1.0))):
        shoulder = np.stack([sign * width, trunk - 0.012, 0.0 * width], -1)
        elbow = shoulder + arms[:, k, 0]
        wrist = elbow + arms[:, k, 1]
        q[f"{side}_shoulder"], q[f"{side}_elbow"], q[f"{side}_wrist"] = shoulder, elbow, wrist
        q[f"{side}_hand"] = wrist + arms[:, k, 2]
        q[f"{side}_sleeve"] = shoulder + 0.62 * arms[:, k, 0]
        q[f"{side}_chest"] = np.stack([sign * (width - 0.052 * sizes["build"]), trunk - 0.05, 0.0 * width], -1)
    head = np.zeros((count, 9, 3))
    head[:, 1:4] = np.eye(3) * HEAD_AXES
    head[:, 4:] = FACE * HEAD_AXES
    head = head * radius[:, None, None]
    pitch, yaw, tilt = (angles["head"][:, k, None] for k in range(3))
    head = turn(turn(turn(head, 2, 1, -pitch - 4.0), 2, 0, yaw), 0, 1, tilt)
    offset = np.stack([0.0 * trunk, trunk + 0.025 + 1.28 * radius, 0.012 + 0.0 * trunk], -1)
    head = head + offset[:, None]
    for k, name in enumerate(("head", "head_l", "head_u", "head_f") + COCO.joints[:5]):
        q[name] = head[:, k]
    q["neck"] = np.stack([0.0 * trunk, trunk - 0.005, 0.0 * trunk], -1)
    q["hair_end"] = np.stack([0.0 * trunk, trunk - 0.05, -0.05 + 0.0 * trunk], -1)
    points = np.stack(list(q.values()), 1)
    points = turn(points, 2, 1, -angles["lean"][:, None])
    points = turn(turn(points, 0, 1, angles["side"][:, None]), 2, 0, angles["twist"][:, None])
    return dict(zip(q, np.moveaxis(points, 1, 0), strict=True))


def _lower(sizes, legs) -> dict[str, np.ndarray]:
    """Points below the waist by name, (P, 3); `left_girdle` and `right_girdle` are the trunk's lower corners."""
    width = sizes["hip"]
    q = {}
    for k, (side, sign) in enumerate((("left", 1.0), ("right", -1.0))):
        hip = np.stack([sign * width, 0.0 * width, 0.0 * width], -1)
        knee = hip + legs[:, k, 0]
        ankle = knee + legs[:, k, 1]
        q[f"{side}_hip"], q[f"{side}_knee"], q[f"{side}_ankle"] = hip, knee, ankle
        q[f"{side}_toe"] = ankle + legs[:, k, 2]
        q[f"{side}_short"] = hip + 0.72 * legs[:, k, 0]
        q[f"{side}_skirt"] = hip + 0.8 * legs[:, k, 0]
        q[f"{side}_girdle"] = hip * 0.75
    return q
