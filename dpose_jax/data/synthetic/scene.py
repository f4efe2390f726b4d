"""Lays out a synthetic scene by geometry alone: who stands where, what hides what, and the labels (ours)."""

import dataclasses
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from dpose_jax.data.synthetic import skeleton
from dpose_jax.data.synthetic.body import (
    CARRIERS,
    GROUPS,
    SHIFT,
    TRUNK,
    Piece,
    body_pieces,
    capsule_ends,
    capsules,
    disc,
    face_visible,
    make_head,
    to_fixed,
)
from dpose_jax.data.synthetic.paint import pick
from dpose_jax.pose.joint_sets import COCO

MAX_PEOPLE = 12
_OBJECT = 255
_MIN_VISIBLE = 0.1  # of the silhouette: a person who shows less is drawn, but not annotated


@dataclasses.dataclass(eq=False)
class Body:
    """One person of a scene.

    Attributes:
      points: (len(skeleton.NAMES), 3) x and y in pixels, z in standing heights.
      pieces: polygons, far to near.
      scale: standing height, px.
      keypoints: (17, 3) x, y in px, visibility 0, 1 or 2; this and the rest is set by `label`.
      bbox: (4,) x, y, width, height of the silhouette inside the image, px; zeros when it is outside.
      area: pixels of the silhouette inside the image, hidden ones included.
      annotated: whether enough of the person is in view.
    """

    points: np.ndarray
    pieces: list[Piece]
    scale: float
    keypoints: np.ndarray | None = None
    bbox: tuple[int, int, int, int] = (0, 0, 0, 0)
    area: int = 0
    annotated: bool = False


@dataclasses.dataclass(eq=False)
class Scene:
    """What stands in an image, far to near: people (Body) and objects ((n, 2) int32 polygons in 1/16 px)."""

    size: tuple[int, int]
    layers: list

    @property
    def bodies(self) -> list[Body]:
        """The people, far to near."""
        return [layer for layer in self.layers if isinstance(layer, Body)]


def generator(seed: int, index: int, stream: int) -> np.random.Generator:
    """The random numbers of one image; streams are independent."""
    return np.random.Generator(np.random.PCG64((seed, index, stream)))


def _style(rng: np.random.Generator, head_radius: float) -> dict:
    return {
        "sleeves": pick(rng, ("short", "short", "long", "long", "none")),
        "legs": pick(rng, ("long", "long", "long", "short", "short", "skirt")),
        "hair": pick(rng, ("short", "short", "short", "long", "long", "bun", "bald", "hat")),
        "beard": rng.random() < 0.15,
        "head_radius": head_radius,
    }


def _place(rng, low, high, scale, size, difficulty, others) -> tuple[float, np.ndarray]:
    """Scale in px and the pelvis' pixel for a figure whose extent is low..high (2,) in standing heights."""
    cut = rng.random() < 0.5 * difficulty * difficulty
    if cut and rng.random() < 0.6:
        scale *= 1.2 + rng.random()
    extent = high - low
    room = np.array([size[1], size[0]]) - 8.0
    if not cut:
        scale = min(scale, float((room / extent).min()))
    best, best_cost = None, None
    for _ in range(1 + int(5 * (1.0 - difficulty))):
        u = rng.random(2)
        inside = 4.0 + u * np.maximum(room - extent * scale, 0.0)
        # Cut people keep at least 45% of their extent in the image on either axis.
        slack = 0.55 * extent * scale
        start = u * (room + 8.0 - extent * scale + 2 * slack) - slack if cut else inside
        ahead = [max(0.0, 1.0 - abs(start[0] + 0.5 * extent[0] * scale - x) / w) for x, w in others]
        cost = sum(ahead)
        if best is None or cost < best_cost:
            best, best_cost = start, cost
    others.append((best[0] + 0.5 * extent[0] * scale, 0.6 * extent[0] * scale + 1e-3))
    return scale, best - low * scale


def _object(rng: np.random.Generator, size: tuple[int, int], body: Body) -> np.ndarray:
    """A box, pole, disc or plank around a part of a person, (n, 2) int32 in 1/16 px."""
    # Faces are spared: a hidden face is hard, and rarer than a hidden limb.
    first = 0 if rng.random() < 0.15 else 5
    joint = body.points[first + int(rng.random() * (COCO.num_joints - first)), :2]
    kind, a, b, c = rng.random(4)
    unit = min(body.scale, 0.7 * size[0])
    if kind < 0.35:
        w, h = unit * (0.1 + 0.25 * a), unit * (0.1 + 0.25 * b)
        polygon = joint + np.array([[-w, -h], [w, -h], [w, h], [-w, h]])
    elif kind < 0.6:
        w = unit * (0.03 + 0.06 * a)
        tilt = (b - 0.5) * 60.0
        polygon = np.array([[joint[0] - w + tilt, 0.0], [joint[0] + w + tilt, 0.0], [joint[0] + w, size[0]],
                            [joint[0] - w, size[0]]])  # fmt: skip
    elif kind < 0.8:
        polygon = disc(joint, unit * (0.08 + 0.14 * a))
    else:
        along = np.array([0.5 * unit, (c - 0.5) * unit])
        across = np.array([0.0, unit * (0.05 + 0.1 * a)])
        polygon = joint + np.stack([-along - across, along - across, along + across, across - along])
    return to_fixed(polygon)


@dataclasses.dataclass(eq=False)
class _Plan:
    """Draws of one image that come before its people's poses."""

    rng: np.random.Generator
    objects: int
    scales: np.ndarray
    poses: np.ndarray


def _plan(seed: int, index: int, difficulty: float, size: tuple[int, int]) -> _Plan:
    rng = generator(seed, index, 0)
    count = min(MAX_PEOPLE, 1 + int(rng.random() * (1.0 + 5.0 * difficulty)))
    objects = int(rng.random() * (1.0 + 3.0 * difficulty)) if difficulty > 0 else 0
    nearest = 160.0 + 80.0 * rng.random() if count < 3 else 120.0 + 90.0 * rng.random()
    scales = nearest * (size[0] / 256.0) * (1.0 - min(0.5, 0.9 * difficulty) * rng.random(count))
    return _Plan(rng, objects, np.sort(scales), rng.random((count, skeleton.NUM_DRAWS)))


def lay_out(
    seed: int, indices: Sequence[int], difficulty: float, size: tuple[int, int], *, detailed: bool = True
) -> list[Scene]:
    """The scenes of some images: pure geometry, no colour; `label` adds the labels.

    A scene depends on its own index alone; many at once are cheaper, for numpy then takes their people together.

    Args:
      seed: not negative.
      indices: of the images, not negative.
      difficulty: in [0, 1].
      size: (height, width), px.
      detailed: False gives the same labels faster, with pieces that are not fit to be painted.
    """
    plans = [_plan(seed, index, difficulty, size) for index in indices]
    points, zoom, sizes = skeleton.body_points(np.concatenate([plan.poses for plan in plans]), difficulty)
    a, b, radius_a, radius_b = capsule_ends(points, zoom, sizes)
    head = points[:, skeleton.POINT["head"], :2]
    around = 1.6 * sizes["head"][:, None]
    low = np.minimum(np.minimum(a - radius_a[..., None], b - radius_b[..., None]).min(1), head - around)
    high = np.maximum(np.maximum(a + radius_a[..., None], b + radius_b[..., None]).max(1), head + around)
    scale, centre, light = np.zeros(len(points)), np.zeros((len(points), 2)), np.zeros((len(points), 1, 2))
    start = 0
    for plan in plans:
        others: list = []
        end = start + len(plan.scales)
        light[start:end] = 0.16 if plan.rng.random() < 0.5 else -0.16, -0.12
        for k in range(start, end):
            scale[k], centre[k] = _place(
                plan.rng, low[k], high[k], float(plan.scales[k - start]), size, difficulty, others
            )
        start = end
    unit = scale[:, None]
    points[..., :2] = points[..., :2] * unit[..., None] + centre[:, None]
    a, b = (ends * unit[..., None] + centre[:, None] for ends in (a, b))
    radius_a, radius_b = radius_a * unit, radius_b * unit
    outer = capsules(a, b, radius_a, radius_b)
    shift_a, shift_b = radius_a[..., None] * light, radius_b[..., None] * light
    inner = capsules(a + shift_a, b + shift_b, 0.76 * radius_a, 0.76 * radius_b)
    people = zip(points, to_fixed(outer), to_fixed(inner), sizes["head"], scale, strict=True)
    return [_assemble(plan, people, size, detailed) for plan in plans]


def _assemble(plan: _Plan, people: Iterator, size: tuple[int, int], detailed: bool) -> Scene:
    """Dresses the next people of an image and puts objects before them."""
    layers: list = []
    for _ in range(len(plan.scales)):
        points, outer, inner, head_radius, scale = next(people)
        style = _style(plan.rng, float(head_radius))
        pieces = body_pieces(points, outer, inner, style, float(scale), detailed)
        layers.append(Body(points, pieces, float(scale)))
    for _ in range(plan.objects):
        k = int(plan.rng.random() * len(layers))
        target = layers[k]
        if isinstance(target, Body):
            layers.insert(k + 1, _object(plan.rng, size, target))
    return Scene(size, layers)


def label(scene: Scene) -> None:
    """Fills in every body's keypoints, bbox, area and `annotated`, from which polygon is on top at which pixel."""
    height, width = scene.size
    top = np.zeros((height, width), np.uint8)
    person = 0
    for layer in scene.layers:
        if isinstance(layer, Body):
            person += 1
            _stamp(top, layer, person * GROUPS)
        else:
            cv2.fillConvexPoly(top, layer, _OBJECT, cv2.LINE_8, SHIFT)
    for k, body in enumerate(scene.bodies, 1):
        body.keypoints = _keypoints(body, top, k)
        x, y, w, h = body.bbox
        seen = int(np.count_nonzero((top[y : y + h, x : x + w] // GROUPS) == k) if body.area else 0)
        body.annotated = bool((body.keypoints[:, 2] == 2).any()) and seen >= max(40, _MIN_VISIBLE * body.area)


def _stamp(top: np.ndarray, body: Body, base: int) -> None:
    """Draws a body's ids over `top` and measures its silhouette."""
    mask = np.zeros_like(top)
    for piece in body.pieces:
        if not piece.inside:
            cv2.fillConvexPoly(mask, piece.outer, base + piece.group, cv2.LINE_8, SHIFT)
    body.bbox = tuple(cv2.boundingRect(mask))
    x, y, w, h = body.bbox
    part = mask[y : y + h, x : x + w]
    body.area = int(cv2.countNonZero(part)) if w else 0
    if w:
        cv2.copyTo(part, part, top[y : y + h, x : x + w])


def _keypoints(body: Body, top: np.ndarray, person: int) -> np.ndarray:
    """(17, 3) float64, x and y in 1/16 px steps, zeros where outside of the image."""
    height, width = top.shape
    x, y = (np.rint(body.points[:17, k] * 16.0) / 16.0 for k in (0, 1))
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    column, row = np.rint(x * inside).astype(np.int64), np.rint(y * inside).astype(np.int64)
    ids = top[row, column].astype(np.int64)
    group = ids % GROUPS
    shown = (ids // GROUPS == person) & CARRIERS[np.arange(17), group]
    z = body.points[:, 2]
    pelvis = 0.5 * (z[11] + z[12])
    trunk = 0.5 * (z[skeleton.POINT["neck"]] + pelvis)
    # A shoulder or hip on the trunk's far side is behind the trunk, though the trunk is what shows there.
    shown &= (group != TRUNK) | (z[:17] < trunk + 0.07)
    head = make_head(body.points * np.array([1.0, 1.0, body.scale]))
    shown[:5] &= face_visible(head, skeleton.FACE)
    visibility = np.where(inside, np.where(shown, 2.0, 1.0), 0.0)
    return np.stack([x * inside, y * inside, visibility], -1)
