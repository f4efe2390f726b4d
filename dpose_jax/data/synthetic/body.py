"""The synthetic people's limbs, clothes and heads (ours): polygons, int32 in 1/16 pixel, in drawing order."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from dpose_jax.data.synthetic.polygons import CIRCLE, convex_hull, disc, to_fixed
from dpose_jax.data.synthetic.skeleton import FACE, HEAD_AXES, POINT, pair
from dpose_jax.pose.joint_sets import COCO

# Groups are the body parts that labels distinguish; those of limbs are (left, right).
HEAD, TRUNK, BACK_HAIR, SKIRT = 1, 2, 3, 12
_LIMB_GROUPS = {"arm": (4, 5), "forearm": (6, 7), "thigh": (8, 9), "shin": (10, 11)}
GROUPS = 16  # a person's groups are below this

# Capsules: name, first point, second point, radii there in standing heights, group, material, depth bias.
_LIMBS = (
    ("thigh", "hip", "knee", 0.054, 0.040, "thigh", "legs", 0.07),
    ("shin", "knee", "ankle", 0.038, 0.026, "shin", "legs", 0.02),
    ("bare_shin", "knee", "ankle", 0.034, 0.021, "shin", "skin", 0.021),
    ("bare_thigh", "hip", "knee", 0.050, 0.035, "thigh", "skin", 0.071),
    ("short", "hip", "short", 0.058, 0.054, "thigh", "legs", 0.069),
    ("foot", "ankle", "toe", 0.026, 0.022, "shin", "shoes", 0.0),
    ("arm", "shoulder", "elbow", 0.039, 0.031, "arm", "shirt", -0.03),
    ("bare_arm", "shoulder", "elbow", 0.034, 0.026, "arm", "skin", -0.03),
    ("sleeve", "shoulder", "sleeve", 0.042, 0.040, "arm", "shirt", -0.031),
    ("hand", "wrist", "hand", 0.018, 0.023, "forearm", "skin", -0.034),
    ("forearm", "elbow", "wrist", 0.030, 0.024, "forearm", "shirt", -0.036),
    ("bare_forearm", "elbow", "wrist", 0.026, 0.018, "forearm", "skin", -0.036),
)
_BANDS = (("chest", 0.060), ("waist", 0.050), ("hem", 0.060), ("skirt", 0.062), ("hip", 0.050))  # across the trunk
# The limbs of one side by what is worn.
_ARMS = {
    "none": ("bare_arm", "bare_forearm"), "short": ("bare_arm", "bare_forearm", "sleeve"), "long": ("arm", "forearm"),
}  # fmt: skip
_LEGS = {"skirt": ("bare_thigh", "bare_shin"), "short": ("bare_thigh", "bare_shin", "short"), "long": ("thigh", "shin")}
# Rows as in _LIMBS, with both ends and both radii in pairs.
_TABLE: list[tuple[Any, ...]] = [
    (f"{side}_{name}", (pair(first)[k], pair(second)[k]), radii, _LIMB_GROUPS[group][k], material, bias)
    for name, first, second, *radii, group, material, bias in _LIMBS
    for k, side in enumerate(("left", "right"))
]
_TABLE += [(name, pair(name), (radius, radius), TRUNK, "shirt", 0.0) for name, radius in _BANDS]
_TABLE.append(("neck", (POINT["neck"], POINT["head"]), (0.034, 0.03), TRUNK, "skin", -0.01))
_TABLE.append(("back_hair", (POINT["head"], POINT["hair_end"]), (0.066, 0.06), BACK_HAIR, "hair", 0.0))
# (17, GROUPS) bool: does a piece of this group show this joint? Clothes hide nothing: a knee under a skirt is visible.
SHOWS_JOINT = np.zeros((COCO.num_joints, GROUPS), bool)
for _row in _TABLE:
    SHOWS_JOINT[[end for end in _row[1] if end < COCO.num_joints], _row[3]] = True
SHOWS_JOINT[:5, HEAD] = True
SHOWS_JOINT[pair("shoulder"), TRUNK] = True
SHOWS_JOINT[pair("hip") + pair("knee"), SKIRT] = True

_ROW = {row[0]: k for k, row in enumerate(_TABLE)}
CAPSULE_ENDS = np.array([row[1] for row in _TABLE])  # (K, 2) indices in skeleton.NAMES
CAPSULE_RADII = np.array([row[2] for row in _TABLE])  # (K, 2) standing heights
# (K,) bool: is it as thick on every person, whatever their girth?
FIXED_GIRTH = np.array([row[0] in ("neck", "back_hair") or row[0].endswith(("hand", "foot")) for row in _TABLE])
# Sleeves and short trousers lie as deep as the limb that they cover.
_DEPTH_POINT = dict(zip(pair("sleeve") + pair("short"), pair("elbow") + pair("knee"), strict=True))


class Look(NamedTuple):
    """What one person wears, and their head."""

    sleeves: str  # none, short, long
    legs: str  # long, short, skirt
    hair: str  # short, long, bun, bald, hat
    beard: bool
    head_radius: float  # standing heights


@dataclasses.dataclass
class Piece:
    """One polygon of a body."""

    depth: float  # standing heights; smaller is nearer
    group: int
    material: str  # a key of paint.palette
    outer: np.ndarray  # outline, (n, 2) int32 in 1/16 px
    inner: np.ndarray | None = None  # lit part, likewise
    convex: bool = True
    decorated: bool = False  # carries the shirt's pattern
    inside: bool = False  # of the silhouette of its own group: changes no label


def body_pieces(
    points: np.ndarray, outer: np.ndarray, inner: np.ndarray, look: Look, scale: float, detailed: bool = True
) -> list[Piece]:
    """Computes the pieces of one person, far to near.

    points: (len(NAMES), 3) camera frame; x and y in pixels, z in standing heights. outer, inner: (K, 18, 2) capsule
    outlines and their lit parts in 1/16 px, int32. scale: standing height, pixels. `detailed=False` leaves out what
    changes no label: `inside` pieces and the lit parts of some.
    """
    z = points[:, 2]
    pieces = []
    for side in ("left", "right"):
        for part in ("foot", "hand", *_ARMS[look.sleeves], *_LEGS[look.legs]):
            row = _ROW[f"{side}_{part}"]
            _, (a, b), _, group, material, bias = _TABLE[row]
            depth = 0.5 * (z[a] + z[_DEPTH_POINT.get(b, b)]) + bias
            pieces.append(Piece(depth, group, material, outer[row], inner[row]))
    trunk = 0.5 * (z[POINT["neck"]] + 0.5 * (z[POINT["left_hip"]] + z[POINT["right_hip"]]))
    neck = _ROW["neck"]
    pieces.append(Piece(trunk + 0.012, TRUNK, "skin", outer[neck], inner[neck]))
    for upper, lower, group, material, bias in (
        ("hip", "hem", TRUNK, "legs", 0.09),
        ("hem", "skirt", SKIRT, "legs", -0.002),
        ("waist", "hem", TRUNK, "shirt", 0.01),
        ("chest", "waist", TRUNK, "shirt", 0.0),
    ):
        if group == SKIRT and look.legs != "skirt":
            continue
        rows, chest = [_ROW[upper], _ROW[lower]], upper == "chest"
        # The chest's lit part reaches down to the hem, so that the waist shows no seam.
        lit = convex_hull(inner[[*rows, _ROW["hem"]] if chest else rows]) if detailed else None
        pieces.append(Piece(trunk + bias, group, material, convex_hull(outer[rows]), lit, decorated=chest))
    if look.hair == "long":
        row = _ROW["back_hair"]
        bias = 0.09 if z[POINT["hair_end"]] > z[POINT["neck"]] else -0.03
        pieces.append(Piece(z[POINT["head"]] - 0.05 + bias, BACK_HAIR, "hair", outer[row], inner[row]))
    pieces += _head_pieces(points, look, scale, detailed)
    return sorted(pieces, key=lambda piece: -piece.depth)


class Head:
    """The ellipsoid of a head. Directions are (left, up, forward) of the head, in units of its semi-axes."""

    def __init__(self, points: np.ndarray, scale: float):
        """The head of a person with these points and standing height; see `body_pieces`."""
        points = points * np.array([1.0, 1.0, scale])
        centre = points[POINT["head"]]
        axes = np.stack([points[POINT[f"head_{axis}"]] - centre for axis in ("left", "up", "forward")], -1)
        view = axes[2] / (HEAD_AXES * HEAD_AXES)
        norm = np.sqrt(view[0] ** 2 + view[1] ** 2 + view[2] ** 2)
        self.centre, self.axes = centre[:2], axes[:2]  # (2,) px, and (2, 3) px per unit direction
        self.view = view / max(norm, 1e-9)  # (3,) unit direction, away from the camera

    def project(self, directions: np.ndarray) -> np.ndarray:
        """Pixels (n, 2) of (n, 3) directions, hidden or not."""
        x = directions[:, :1] * self.axes[:, 0] + directions[:, 1:2] * self.axes[:, 1]
        return self.centre + x + directions[:, 2:] * self.axes[:, 2]

    def project_visible(self, directions: np.ndarray) -> np.ndarray:
        """Pixels (n, 2) of (n, 3) directions; hidden ones are moved to the outline."""
        away = directions[:, :1] * self.view[0] + directions[:, 1:2] * self.view[1] + directions[:, 2:] * self.view[2]
        moved = directions - away * self.view
        norm = np.sqrt(moved[:, 0] ** 2 + moved[:, 1] ** 2 + moved[:, 2] ** 2)
        moved = moved / np.maximum(norm, 1e-6)[:, None]
        return self.project(np.where(away > 0, moved, directions))

    def cosine(self, x: float, y: float, z: float) -> float:
        """Cosine between the direction (x, y, z) and the viewing direction: negative towards the camera."""
        v0, v1, v2 = self.view.tolist()
        return (x * v0 + y * v1 + z * v2) / math.sqrt(x * x + y * y + z * z)

    def face_visible(self) -> np.ndarray:
        """(5,) bool: does the head itself leave each face joint in view?"""
        return np.array([self.cosine(*direction) for direction in FACE.tolist()]) < _FACE_LIMIT

    def outline(self) -> np.ndarray:
        """(16, 3) directions of the silhouette: a circle across the viewing direction."""
        v0, v1, v2 = self.view.tolist()
        a0, a1, a2 = (-v2, 0.0, v0) if abs(v1) < 0.9 else (0.0, v2, -v1)
        norm = math.sqrt(a0 * a0 + a1 * a1 + a2 * a2)
        a0, a1, a2 = a0 / norm, a1 / norm, a2 / norm
        second = v1 * a2 - v2 * a1, v2 * a0 - v0 * a2, v0 * a1 - v1 * a0
        return CIRCLE[:, :1] * np.array((a0, a1, a2)) + CIRCLE[:, 1:] * np.array(second)


def _patch(top: float, side: float, bottom: float) -> np.ndarray:
    """(16, 3) directions around the forward axis, with these cosines to it at the top, the sides and the bottom."""
    vertical = CIRCLE[:, 1]
    cos = side + (np.where(vertical > 0, top, bottom) - side) * vertical * vertical
    sin = np.sqrt(1.0 - cos * cos)
    return np.stack([sin * CIRCLE[:, 0], sin * vertical, cos], -1)


# A face joint is visible while the cosine between its direction and the viewing direction is below this.
_FACE_LIMIT = np.array([0.2, -0.05, -0.05, 0.3, 0.3])
# Parts of the head as directions.
_FACE_PATCH = _patch(0.7, 0.12, -0.15)
_BEARD = _patch(0.62, 0.12, -0.15)
_BEARD[:, 1] = np.minimum(_BEARD[:, 1], -0.42)
_BALD_FACE = _patch(-0.35, -0.1, -0.2)
_HAT_EDGE = _patch(0.35, 0.25, 0.2)[:, [0, 2, 1]]  # around the up axis
_BROW = np.array([[0.2, 0.36, 0.9], [0.62, 0.34, 0.72], [0.62, 0.28, 0.72], [0.2, 0.28, 0.9]])
_MOUTH = np.array([[-0.3, -0.5, 0.8], [0.3, -0.5, 0.8], [0.2, -0.6, 0.77], [-0.2, -0.6, 0.77]])
_NOSE = np.array([[-0.02, 0.12, 0.98], [0.02, 0.12, 0.98], [0.2, -0.2, 0.98], [0.0, -0.26, 1.14], [-0.2, -0.2, 0.98]])
_BRIM = np.array([[-0.8, 0.42, 0.75], [0.8, 0.42, 0.75], [0.5, 0.36, 1.55], [-0.5, 0.36, 1.55]])


def _head_pieces(points: np.ndarray, look: Look, scale: float, detailed: bool) -> list[Piece]:
    """Skull, ears, face and hat of one person, in drawing order; see `body_pieces`."""
    head, radius, bald = Head(points, scale), scale * look.head_radius, look.hair == "bald"
    depth = points[POINT["head"], 2] - 0.05
    pieces = []

    def add(material, polygon, lit=None, bias=0.0, hull=False, **options):
        outer, inner = to_fixed(polygon), None if lit is None else to_fixed(lit)
        pieces.append(Piece(depth + bias, HEAD, material, convex_hull(outer) if hull else outer, inner, **options))

    def add_ears(near: bool):
        for ear, sign in zip(pair("ear"), (1.0, -1.0), strict=True):
            if (head.cosine(sign, -0.05, -0.06) < -0.25) == near:
                add("ear", disc(points[ear, :2], 0.24 * radius), disc(points[ear, :2], 0.13 * radius))

    if look.hair == "bun":
        bun = head.project(np.array([[0.0, 0.55, -1.1]]))[0]
        add("hair", disc(bun, 0.5 * radius), disc(bun, 0.36 * radius), 0.02 if head.view[2] < 0 else -0.02)
    add_ears(near=False)
    outline = head.outline()
    add("face" if bald else "hair", head.project(1.05 * outline), None if bald else head.project(0.85 * outline))
    if detailed and head.view[2] < 0.93:
        add("face", head.project_visible(_BALD_FACE if bald else _FACE_PATCH), convex=False, inside=True)
        if look.beard:
            add("hair", head.project_visible(_BEARD), convex=False, inside=True)
        for eye, sign in zip(pair("eye"), (1.0, -1.0), strict=True):
            if head.cosine(sign * 0.4, 0.12, 0.91) < -0.02:
                add("eye", disc(points[eye, :2], 0.2 * radius), inside=True)
                add("pupil", disc(points[eye, :2], 0.12 * radius), inside=True)
                add("brow", head.project_visible(_BROW * (sign, 1.0, 1.0)), inside=True)
        if head.cosine(0.0, -0.5, 0.85) < -0.05:
            add("mouth", head.project_visible(_MOUTH), inside=True)
    if head.cosine(0.0, -0.14, 1.0) < 0.2:
        add("nose", head.project(_NOSE), hull=True)
    if look.hair == "hat":
        cap = np.concatenate([head.project_visible(_HAT_EDGE), head.project(outline[outline[:, 1] > 0.25])])
        add("hat", head.centre + 1.12 * (cap - head.centre), hull=True)
        if head.view[2] < 0.15:
            add("hat", head.project(_BRIM), hull=True)
    add_ears(near=True)
    return pieces
