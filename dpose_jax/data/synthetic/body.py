"""The synthetic people's bodies as polygons: limbs of thickness, clothes, heads (ours).

A body is a list of pieces in drawing order, far to near. Polygons are int32 in 1/16 pixel (OpenCV's `shift=4`).
"""

import dataclasses
import math

import cv2
import numpy as np

from dpose_jax.data.synthetic.skeleton import HEAD_AXES, POINT
from dpose_jax.pose.joint_sets import COCO

SHIFT = 4
FIXED = 1 << SHIFT

HEAD, TRUNK, BACK_HAIR, SKIRT = 1, 2, 3, 12
_LIMB_GROUPS = {"arm": (4, 5), "forearm": (6, 7), "thigh": (8, 9), "shin": (10, 11)}
GROUPS = 16  # a person's pieces carry ids below this

# Groups whose drawing shows a joint, by joint name without its side.
_CARRIERS = {
    "nose": (), "eye": (), "ear": (), "shoulder": ("arm",), "elbow": ("arm", "forearm"), "wrist": ("forearm",),
    "hip": ("thigh",), "knee": ("thigh", "shin"), "ankle": ("shin",),
}  # fmt: skip


def _carriers() -> np.ndarray:
    table = np.zeros((COCO.num_joints, GROUPS), bool)
    for j, name in enumerate(COCO.joints):
        side, part = (0 if name.startswith("left") else 1), name.split("_")[-1]
        table[j, [_LIMB_GROUPS[limb][side] for limb in _CARRIERS[part]]] = True
        table[j, HEAD] = j < 5
        table[j, TRUNK] = part in ("shoulder", "hip")
        # Clothes hide nothing: a knee under its skirt counts as seen.
        table[j, SKIRT] = part in ("hip", "knee")
    return table


CARRIERS = _carriers()  # (17, GROUPS): does a piece of this group show this joint?

# A face joint shows while the cosine between its direction and the viewing direction is below this.
_FACE_LIMIT = np.array([0.2, -0.05, -0.05, 0.3, 0.3])

# name, first point, second point, radii there (of standing height), group, material, depth bias.
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
_ACROSS = (("chest", 0.060), ("waist", 0.050), ("hem", 0.060), ("skirt", 0.062), ("hip", 0.050))


def _capsule_table():
    rows = []
    for name, a, b, ra, rb, group, material, bias in _LIMBS:
        for k, side in enumerate(("left", "right")):
            ends = POINT[f"{side}_{a}"], POINT[f"{side}_{b}"]
            rows.append((f"{side}_{name}", *ends, ra, rb, _LIMB_GROUPS[group][k], material, bias))
    for name, radius in _ACROSS:
        rows.append((name, POINT[f"left_{name}"], POINT[f"right_{name}"], radius, radius, TRUNK, "shirt", 0.0))
    rows.append(("neck", POINT["neck"], POINT["head"], 0.034, 0.03, TRUNK, "skin", -0.01))
    rows.append(("back_hair", POINT["head"], POINT["hair_end"], 0.066, 0.06, BACK_HAIR, "hair", 0.0))
    return rows


_TABLE = _capsule_table()
_ROW = {row[0]: k for k, row in enumerate(_TABLE)}
_ENDS = np.array([row[1:3] for row in _TABLE])
_RADII = np.array([row[3:5] for row in _TABLE])
_FIXED_GIRTH = np.array([row[0] in ("neck", "back_hair") or row[0].endswith(("hand", "foot")) for row in _TABLE])

# Sleeves and short trousers lie as deep as the limb that they cover.
_WHOLE = {
    POINT[f"{side}_{part}"]: POINT[f"{side}_{joint}"]
    for side in ("left", "right")
    for part, joint in (("sleeve", "elbow"), ("short", "knee"))
}

_ARC = np.array([[1.0, 0.0], [0.9239, 0.3827], [0.7071, 0.7071], [0.3827, 0.9239]])
_CIRCLE = np.concatenate([_ARC, _ARC @ [[0, 1], [-1, 0]], -_ARC, _ARC @ [[0, -1], [1, 0]]])


@dataclasses.dataclass
class Piece:
    """One polygon of a body: group (see CARRIERS), material, outline and lit part, int32 (n, 2) in 1/16 px.

    The smaller `depth` is, the nearer; a `decorated` piece carries the shirt's pattern, and one `inside`
    the silhouette of its own group changes no label.
    """

    depth: float
    group: int
    material: str
    outer: np.ndarray
    inner: np.ndarray | None = None
    convex: bool = True
    decorated: bool = False
    inside: bool = False


def capsules(a: np.ndarray, b: np.ndarray, radius_a: np.ndarray, radius_b: np.ndarray) -> np.ndarray:
    """Outlines of tapered capsules: ends (..., 2), radii (...), to (..., 18, 2), all in pixels."""
    along = b - a
    length = np.sqrt(along[..., 0] * along[..., 0] + along[..., 1] * along[..., 1])
    unit = along / np.maximum(length, 1e-6)[..., None]
    unit[..., 0] = np.where(length < 1e-6, 1.0, unit[..., 0])
    # A foreshortened limb is the disc of its thicker end.
    radius_a, radius_b = np.maximum(radius_a, radius_b - length), np.maximum(radius_b, radius_a - length)
    half = np.concatenate([_CIRCLE[12:], _CIRCLE[:5]])
    x, y = unit[..., None, 0], unit[..., None, 1]
    arc = np.stack([half[:, 0] * x - half[:, 1] * y, half[:, 0] * y + half[:, 1] * x], -1)
    return np.concatenate(
        [b[..., None, :] + radius_b[..., None, None] * arc, a[..., None, :] - radius_a[..., None, None] * arc], -2
    )


def to_fixed(points: np.ndarray) -> np.ndarray:
    """Pixels to int32 in 1/16 pixel."""
    return np.rint(points * FIXED).astype(np.int32)


def disc(centre: np.ndarray, radius: float) -> np.ndarray:
    """A 16-gon, (16, 2) pixels."""
    return centre + radius * _CIRCLE


def capsule_ends(points: np.ndarray, zoom: np.ndarray, sizes: dict[str, np.ndarray]):
    """Ends and radii of every capsule of P people: (P, K, 2) twice and (P, K) twice, in the units of `points`."""
    girth = np.where(_FIXED_GIRTH, 1.0, sizes["build"][:, None])
    first, second = _ENDS[:, 0], _ENDS[:, 1]
    return (
        points[:, first, :2],
        points[:, second, :2],
        _RADII[:, 0] * girth * zoom[:, first],
        _RADII[:, 1] * girth * zoom[:, second],
    )


def _used(style: dict) -> list[str]:
    names = []
    for side in ("left_", "right_"):
        names.append(side + "foot")
        names.append(side + "hand")
        sleeves, legs = style["sleeves"], style["legs"]
        names += [side + "arm", side + "forearm"] if sleeves == "long" else [side + "bare_arm", side + "bare_forearm"]
        if sleeves == "short":
            names.append(side + "sleeve")
        names += [side + "thigh", side + "shin"] if legs == "long" else [side + "bare_thigh", side + "bare_shin"]
        if legs == "short":
            names.append(side + "short")
    return names


def body_pieces(points, outer, inner, style: dict, scale: float, detailed: bool = True) -> list[Piece]:
    """The pieces of one person, far to near.

    Args:
      points: (len(NAMES), 3) camera frame; x and y in pixels, z in standing heights.
      outer, inner: (K, 18, 2) capsule outlines and their lit parts in 1/16 px, int32.
      style: `sleeves` (none, short, long), `legs` (long, short, skirt), `hair` (short, long, bun, bald, hat).
      scale: standing height, pixels.
      detailed: False leaves out what changes no label: `inside` pieces and the lit parts of some.
    """
    z = points[:, 2]
    pieces = []
    for name in _used(style):
        row = _ROW[name]
        _, a, b, _, _, group, material, bias = _TABLE[row]
        b = _WHOLE.get(b, b)
        depth = 0.5 * (z[a] + z[b]) + bias
        pieces.append(Piece(depth, group, material, outer[row], inner[row]))
    trunk = 0.5 * (z[POINT["neck"]] + 0.5 * (z[POINT["left_hip"]] + z[POINT["right_hip"]]))
    neck = _ROW["neck"]
    pieces.append(Piece(trunk + 0.012, TRUNK, "skin", outer[neck], inner[neck]))
    for upper, lower, material, bias in (
        ("hip", "hem", "legs", 0.09),
        ("hem", "skirt", "legs", -0.002),
        ("waist", "hem", "shirt", 0.01),
        ("chest", "waist", "shirt", 0.0),
    ):
        if lower == "skirt" and style["legs"] != "skirt":
            continue
        rows = [_ROW[upper], _ROW[lower]]
        # The chest's lit part reaches down to the hem, so that the waist shows no seam.
        lit = rows + [_ROW["hem"]] if upper == "chest" else rows
        lines = (outer[rows], inner[lit]) if detailed else (outer[rows],)
        hulls = [cv2.convexHull(line.reshape(-1, 2))[:, 0] for line in lines]
        group = SKIRT if lower == "skirt" else TRUNK
        pieces.append(Piece(trunk + bias, group, material, *hulls, decorated=upper == "chest"))
    pieces += head_pieces(points, style, outer, inner, scale, detailed)
    pieces.sort(key=lambda piece: -piece.depth)
    return pieces


@dataclasses.dataclass
class _Head:
    """The head's ellipsoid: centre (2,) px, axes (2, 3) px per unit direction, view (3,) unit, away from the camera."""

    centre: np.ndarray
    axes: np.ndarray
    view: np.ndarray

    def at(self, directions: np.ndarray) -> np.ndarray:
        """Pixels of (n, 3) directions; the hidden ones are moved to the outline."""
        away = directions[:, :1] * self.view[0] + directions[:, 1:2] * self.view[1] + directions[:, 2:] * self.view[2]
        moved = directions - away * self.view
        norm = np.sqrt(moved[:, 0] ** 2 + moved[:, 1] ** 2 + moved[:, 2] ** 2)
        moved = moved / np.maximum(norm, 1e-6)[:, None]
        return self.raw(np.where(away > 0, moved, directions))

    def raw(self, directions: np.ndarray) -> np.ndarray:
        """Pixels of (n, 3) directions, hidden or not."""
        x = directions[:, :1] * self.axes[:, 0] + directions[:, 1:2] * self.axes[:, 1]
        return self.centre + x + directions[:, 2:] * self.axes[:, 2]

    def away(self, direction) -> float:
        """Cosine between a direction and the viewing direction: negative towards the camera."""
        d0, d1, d2 = direction
        v0, v1, v2 = self.view.tolist()
        return (d0 * v0 + d1 * v1 + d2 * v2) / math.sqrt(d0 * d0 + d1 * d1 + d2 * d2)

    def rim(self) -> np.ndarray:
        """(16, 3) directions of the silhouette: a circle across the viewing direction."""
        v0, v1, v2 = self.view.tolist()
        if abs(v1) < 0.9:
            norm = math.sqrt(v0 * v0 + v2 * v2)
            first = (-v2 / norm, 0.0, v0 / norm)
        else:
            norm = math.sqrt(v1 * v1 + v2 * v2)
            first = (0.0, v2 / norm, -v1 / norm)
        a0, a1, a2 = first
        second = (v1 * a2 - v2 * a1, v2 * a0 - v0 * a2, v0 * a1 - v1 * a0)
        return _CIRCLE[:, :1] * np.array(first) + _CIRCLE[:, 1:] * np.array(second)


def make_head(points: np.ndarray) -> _Head:
    """The head of one person from its (len(NAMES), 3) points in pixels (z in the same units as x and y)."""
    centre = points[POINT["head"]]
    axes = np.stack([points[POINT[f"head_{axis}"]] - centre for axis in ("left", "up", "forward")], -1)
    view = axes[2] / (HEAD_AXES * HEAD_AXES)
    norm = np.sqrt(view[0] ** 2 + view[1] ** 2 + view[2] ** 2)
    return _Head(centre[:2], axes[:2], view / max(norm, 1e-9))


def face_visible(head: _Head, face: np.ndarray) -> np.ndarray:
    """(5,) bool: does the head itself leave this face joint in view? `face` is (5, 3) directions."""
    return np.array([head.away(d) for d in face.tolist()]) < _FACE_LIMIT


def _patch(top: float, side: float, bottom: float, axis: int) -> np.ndarray:
    """(16, 3) directions around the forward (2) or up (1) axis, at the given cosines of the polar angle."""
    vertical = _CIRCLE[:, 1]
    blend = np.where(vertical > 0, top, bottom)
    cos = side + (blend - side) * vertical * vertical
    sin = np.sqrt(1.0 - cos * cos)
    across, up = sin * _CIRCLE[:, 0], sin * vertical
    return np.stack([across, up, cos], -1) if axis == 2 else np.stack([across, cos, up], -1)


_FACE_PATCH = _patch(0.7, 0.12, -0.15, 2)
_BEARD_PATCH = _patch(0.62, 0.12, -0.15, 2)
_BEARD_PATCH[:, 1] = np.minimum(_BEARD_PATCH[:, 1], -0.42)
_BALD_PATCH = _patch(-0.35, -0.1, -0.2, 2)
_HAT_EDGE = _patch(0.35, 0.25, 0.2, 1)
_BROW = np.array([[0.2, 0.36, 0.9], [0.62, 0.34, 0.72], [0.62, 0.28, 0.72], [0.2, 0.28, 0.9]])
_MOUTH = np.array([[-0.3, -0.5, 0.8], [0.3, -0.5, 0.8], [0.2, -0.6, 0.77], [-0.2, -0.6, 0.77]])
_NOSE = np.array([[-0.02, 0.12, 0.98], [0.02, 0.12, 0.98], [0.2, -0.2, 0.98], [0.0, -0.26, 1.14], [-0.2, -0.2, 0.98]])
_BRIM = np.array([[-0.8, 0.42, 0.75], [0.8, 0.42, 0.75], [0.5, 0.36, 1.55], [-0.5, 0.36, 1.55]])
_MIRROR = np.array([-1.0, 1.0, 1.0])


def head_pieces(points, style: dict, outer, inner, scale: float, detailed: bool) -> list[Piece]:
    """Hair, skull, ears and face of one person, in drawing order; see `body_pieces`."""
    head = make_head(points * np.array([1.0, 1.0, scale]))
    z = points[:, 2]
    depth = z[POINT["head"]] - 0.05
    radius = scale * style["head_radius"]
    pieces = []

    def add(material, polygon, lit=None, convex=True, step=0.0, inside=False):
        lit = None if lit is None else to_fixed(lit)
        pieces.append(Piece(depth + step, HEAD, material, to_fixed(polygon), lit, convex, inside=inside))

    def ears(near: bool):
        for side, sign in (("left", 1.0), ("right", -1.0)):
            if (head.away((sign, -0.05, -0.06)) < -0.25) == near:
                spot = points[POINT[f"{side}_ear"], :2]
                add("ear", disc(spot, 0.24 * radius), disc(spot, 0.13 * radius))

    if style["hair"] == "long":
        row = _ROW["back_hair"]
        step = 0.09 if z[POINT["hair_end"]] > z[POINT["neck"]] else -0.03
        pieces.append(Piece(depth + step, BACK_HAIR, "hair", outer[row], inner[row]))
    if style["hair"] == "bun":
        spot = head.raw(np.array([[0.0, 0.55, -1.1]]))[0]
        add("hair", disc(spot, 0.5 * radius), disc(spot, 0.36 * radius), step=0.02 if head.view[2] < 0 else -0.02)
    ears(near=False)
    bald = style["hair"] == "bald"
    rim = head.rim()
    add("face" if bald else "hair", head.raw(1.05 * rim), None if bald else head.raw(0.85 * rim))
    if detailed and head.view[2] < 0.93:
        add("face", head.at(_BALD_PATCH if bald else _FACE_PATCH), convex=False, inside=True)
        _features(head, points, style, radius, add)
    if head.away((0.0, -0.14, 1.0)) < 0.2:
        add("nose", cv2.convexHull(to_fixed(head.raw(_NOSE)))[:, 0] / FIXED)
    if style["hair"] == "hat":
        cap = np.concatenate([head.at(_HAT_EDGE), head.raw(rim[rim[:, 1] > 0.25])])
        add("hat", cv2.convexHull(to_fixed(head.centre + 1.12 * (cap - head.centre)))[:, 0] / FIXED)
        if head.view[2] < 0.15:
            add("hat", cv2.convexHull(to_fixed(head.raw(_BRIM)))[:, 0] / FIXED)
    ears(near=True)
    return pieces


def _features(head: _Head, points, style: dict, radius: float, add) -> None:
    """Beard, brows, eyes and mouth, as far as they are in view."""
    if style["beard"]:
        add("hair", head.at(_BEARD_PATCH), convex=False, inside=True)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        if head.away((sign * 0.4, 0.12, 0.91)) < -0.02:
            spot = points[POINT[f"{side}_eye"], :2]
            add("eye", disc(spot, 0.2 * radius), inside=True)
            add("pupil", disc(spot, 0.12 * radius), inside=True)
            add("brow", head.at(_BROW if sign > 0 else _BROW * _MIRROR), inside=True)
    if head.away((0.0, -0.5, 0.85)) < -0.05:
        add("mouth", head.at(_MOUTH), inside=True)
