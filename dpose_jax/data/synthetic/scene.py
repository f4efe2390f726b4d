"""Lays out synthetic scenes by geometry alone: who stands where, what hides what, and the labels (ours)."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from dpose_jax.data.synthetic import body as parts
from dpose_jax.data.synthetic.polygons import SHIFT, capsules, disc, to_fixed
from dpose_jax.data.synthetic.skeleton import NUM_DRAWS, POINT, body_points
from dpose_jax.pose.joint_sets import COCO

MAX_PEOPLE = 12
_OBJECT = 255
_MIN_VISIBLE = 0.1  # of the silhouette: people of whom less is visible are drawn, but not annotated


class Settings(NamedTuple):
    """What the images of a source have in common: seed, difficulty in [0, 1], and size (height, width) in px."""

    seed: int
    difficulty: float
    size: tuple[int, int]


@dataclasses.dataclass(eq=False)
class Body:
    """One person of a scene; `label` fills in the last four fields."""

    points: np.ndarray  # (len(skeleton.NAMES), 3) x and y in pixels, z in standing heights
    pieces: list[parts.Piece]  # far to near
    scale: float  # standing height, px
    keypoints: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((17, 3)))  # x, y in px, visibility 0..2
    bbox: tuple[int, int, int, int] = (0, 0, 0, 0)  # x, y, width, height of the silhouette in the image, px
    area: int = 0  # pixels of the silhouette in the image, hidden ones included
    annotated: bool = False  # whether enough of the person is in view


@dataclasses.dataclass(eq=False)
class Scene:
    """The content of image `index`, far to near: people and objects ((n, 2) int32 polygons in 1/16 px)."""

    settings: Settings
    index: int
    layers: list[Body | np.ndarray]

    @property
    def bodies(self) -> list[Body]:
        """The people, far to near."""
        return [layer for layer in self.layers if isinstance(layer, Body)]


def generator(settings: Settings, index: int, stream: int) -> np.random.Generator:
    """The random numbers of one image; streams are independent."""
    return np.random.Generator(np.random.PCG64((settings.seed, index, stream)))


def pick(rng: np.random.Generator, options: Sequence):
    """One of the options, uniformly."""
    return options[int(rng.random() * len(options))]


def _plan(settings: Settings, index: int) -> tuple[np.random.Generator, int, np.ndarray, np.ndarray]:
    """Random numbers, number of objects, (n,) standing heights in px, ascending, and (n, NUM_DRAWS) poses."""
    rng, difficulty = generator(settings, index, 0), settings.difficulty
    count = min(MAX_PEOPLE, 1 + int(rng.random() * (1.0 + 5.0 * difficulty)))
    objects = int(rng.random() * (1.0 + 3.0 * difficulty)) if difficulty > 0 else 0
    nearest = 160.0 + 80.0 * rng.random() if count < 3 else 120.0 + 90.0 * rng.random()
    scales = nearest * (settings.size[0] / 256.0) * (1.0 - min(0.5, 0.9 * difficulty) * rng.random(count))
    return rng, objects, np.sort(scales), rng.random((count, NUM_DRAWS))


def lay_out(settings: Settings, indices: Sequence[int], *, detailed: bool = True) -> list[Scene]:
    """Computes the scenes of the images `indices`: pure geometry, no colour; `label` adds the labels.

    A scene depends on its own index alone. Many at once are cheaper, because numpy computes their people together.
    `detailed=False` gives the same labels faster, with pieces that are not fit to be painted.
    """
    rngs, objects, heights, poses = zip(*(_plan(settings, index) for index in indices), strict=True)
    points, zoom, sizes = body_points(np.concatenate(poses), settings.difficulty)
    girth = np.where(parts.FIXED_GIRTH, 1.0, sizes["build"][:, None])
    ends = points[:, parts.CAPSULE_ENDS, :2]
    radii = parts.CAPSULE_RADII * girth[..., None] * zoom[:, parts.CAPSULE_ENDS]
    head, around = points[:, POINT["head"], :2], 1.6 * sizes["head"][:, None]
    low = np.minimum((ends - radii[..., None]).min((1, 2)), head - around)
    high = np.maximum((ends + radii[..., None]).max((1, 2)), head + around)
    scales, centres, light = np.zeros(len(points)), np.zeros((len(points), 2)), np.zeros((len(points), 2))
    # The rows of each image's people in the arrays of all people.
    people = np.split(np.arange(len(points)), np.cumsum([len(each) for each in heights])[:-1])
    for rng, rows, each in zip(rngs, people, heights, strict=True):
        light[rows] = 0.16 if rng.random() < 0.5 else -0.16, -0.12
        others: list[tuple[float, float]] = []
        for k, scale in zip(rows, each.tolist(), strict=True):
            scales[k], centres[k] = _place(rng, low[k], high[k], scale, settings, others)
    points[..., :2] = points[..., :2] * scales[:, None, None] + centres[:, None]
    ends = ends * scales[:, None, None, None] + centres[:, None, None]
    radii = radii * scales[:, None, None]
    outer = to_fixed(capsules(ends, radii))
    inner = to_fixed(capsules(ends + radii[..., None] * light[:, None, None], 0.76 * radii))
    scenes = []
    for index, rng, rows, count in zip(indices, rngs, people, objects, strict=True):
        layers: list[Body | np.ndarray] = []
        for k, scale in zip(rows, scales[rows].tolist(), strict=True):
            pieces = parts.body_pieces(points[k], outer[k], inner[k], _look(rng, sizes["head"][k]), scale, detailed)
            layers.append(Body(points[k], pieces, scale))
        for _ in range(count):
            k = int(rng.random() * len(layers))
            target = layers[k]
            if isinstance(target, Body):
                layers.insert(k + 1, _object(rng, settings.size, target))
        scenes.append(Scene(settings, index, layers))
    return scenes


def _look(rng: np.random.Generator, head_radius: float) -> parts.Look:
    sleeves = pick(rng, ("short", "short", "long", "long", "none"))
    legs = pick(rng, ("long", "long", "long", "short", "short", "skirt"))
    hair = pick(rng, ("short", "short", "short", "long", "long", "bun", "bald", "hat"))
    return parts.Look(sleeves, legs, hair, beard=rng.random() < 0.15, head_radius=float(head_radius))


def _place(
    rng: np.random.Generator, low: np.ndarray, high: np.ndarray, scale: float, settings: Settings, others: list
) -> tuple[float, np.ndarray]:
    """The standing height used and the pelvis (2,), px, of a person placed apart from others where there is room.

    low, high: (2,) the extent around the pelvis, standing heights. others: (centre, width) in px; gets this person's.
    """
    difficulty, (height, width) = settings.difficulty, settings.size
    cut = rng.random() < 0.5 * difficulty * difficulty
    if cut and rng.random() < 0.6:
        scale *= 1.2 + rng.random()
    extent, room = high - low, np.array([width, height]) - 8.0
    if not cut:
        scale = min(scale, float((room / extent).min()))
    spare = room - extent * scale
    # Cut people keep at least 45% of their extent in the image on either axis.
    slack = 0.55 * extent * scale
    best, least = np.zeros(2), np.inf
    for _ in range(1 + int(5 * (1.0 - difficulty))):
        u = rng.random(2)
        start = u * (room + 8.0 - extent * scale + 2 * slack) - slack if cut else 4.0 + u * np.maximum(spare, 0.0)
        overlap = sum(max(0.0, 1.0 - abs(start[0] + 0.5 * extent[0] * scale - x) / w) for x, w in others)
        if overlap < least:
            best, least = start, overlap
    others.append((best[0] + 0.5 * extent[0] * scale, 0.6 * extent[0] * scale + 1e-3))
    return scale, best - low * scale


def _object(rng: np.random.Generator, size: tuple[int, int], body: Body) -> np.ndarray:
    """A box, pole, disc or plank around a part of a person, (n, 2) int32 in 1/16 px."""
    # Faces are mostly spared: a hidden face is hard, and rarer than a hidden limb.
    first = 0 if rng.random() < 0.15 else 5
    joint = body.points[first + int(rng.random() * (COCO.num_joints - first)), :2]
    kind, a, b, c = rng.random(4)
    unit = min(body.scale, 0.7 * size[0])
    if kind < 0.35:
        w, h = unit * (0.1 + 0.25 * a), unit * (0.1 + 0.25 * b)
        polygon = joint + np.array([[-w, -h], [w, -h], [w, h], [-w, h]])
    elif kind < 0.6:
        w, x, tilt = unit * (0.03 + 0.06 * a), joint[0], (b - 0.5) * 60.0
        polygon = np.array([[x - w + tilt, 0.0], [x + w + tilt, 0.0], [x + w, size[0]], [x - w, size[0]]])
    elif kind < 0.8:
        polygon = disc(joint, unit * (0.08 + 0.14 * a))
    else:
        along = np.array([0.5 * unit, (c - 0.5) * unit])
        across = np.array([0.0, unit * (0.05 + 0.1 * a)])
        polygon = joint + np.stack([-along - across, along - across, along + across, across - along])
    return to_fixed(polygon)


def label(scene: Scene) -> None:
    """Fills in every body's keypoints, bbox, area and `annotated`, from which polygon is on top at which pixel."""
    top, person = np.zeros(scene.settings.size, np.uint8), 0
    for layer in scene.layers:
        if isinstance(layer, Body):
            person += 1
            _stamp(top, layer, person * parts.GROUPS)
        else:
            cv2.fillConvexPoly(top, layer, _OBJECT, cv2.LINE_8, SHIFT)
    for person, body in enumerate(scene.bodies, 1):
        body.keypoints = _keypoints(body, top, person)
        x, y, w, h = body.bbox
        seen = np.count_nonzero(top[y : y + h, x : x + w] // parts.GROUPS == person) if body.area else 0
        shown = (body.keypoints[:, 2] == 2).any()
        body.annotated = bool(shown and seen >= max(40, _MIN_VISIBLE * body.area))


def _stamp(top: np.ndarray, body: Body, base: int) -> None:
    """Draws a body as base + group over `top`, (height, width) uint8, and measures its silhouette."""
    mask = np.zeros_like(top)
    for piece in body.pieces:
        if not piece.inside:
            cv2.fillConvexPoly(mask, piece.outer, base + piece.group, cv2.LINE_8, SHIFT)
    x, y, w, h = cv2.boundingRect(mask)
    body.bbox = x, y, w, h
    if w:
        part = mask[y : y + h, x : x + w]
        body.area = cv2.countNonZero(part)
        cv2.copyTo(part, part, top[y : y + h, x : x + w])


def _keypoints(body: Body, top: np.ndarray, person: int) -> np.ndarray:
    """(17, 3) float64, x and y in 1/16 px steps, zeros where outside of the image."""
    height, width = top.shape
    x, y = (np.rint(body.points[:17, k] * 16.0) / 16.0 for k in (0, 1))
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    ids = top[np.rint(y * inside).astype(int), np.rint(x * inside).astype(int)]
    group = ids % parts.GROUPS
    shown = (ids // parts.GROUPS == person) & parts.SHOWS_JOINT[np.arange(17), group]
    z = body.points[:, 2]
    trunk = 0.5 * (z[POINT["neck"]] + 0.5 * (z[11] + z[12]))
    # A shoulder or hip on the trunk's far side is behind the trunk, though the trunk is what shows there.
    shown &= (group != parts.TRUNK) | (z[:17] < trunk + 0.07)
    shown[:5] &= parts.Head(body.points, body.scale).face_visible()
    visibility = np.where(inside, np.where(shown, 2.0, 1.0), 0.0)
    return np.stack([x * inside, y * inside, visibility], -1)
