"""Lays out rendered scenes: who stands where, what hides what, and the labels; no colour (ours).

Camera axes are x to the right, y down and z along the viewing direction, in metres. Pixel centres are at integers.
"""

import dataclasses

import numpy as np

from dpose_jax.data.rendered import kernels
from dpose_jax.data.rendered.body import SKIRT
from dpose_jax.data.rendered.person import Person, make_person
from dpose_jax.data.rendered.poses import lift, sample_pose
from dpose_jax.data.synthetic.scene import Settings, generator

# How far behind the first surface a joint may lie and still be visible, m for a person of 1.7 m: the flesh and clothes
# around it. Joints of the face lie on the skin.
FLESH = np.array([0.05] + [0.04] * 4 + [0.13] * 2 + [0.09] * 2 + [0.07] * 2 + [0.2] * 2 + [0.12] * 2 + [0.1] * 2)
_LIFTED = 0.8  # of the people, where there are annotated poses
_MIN_PIXELS, _MIN_SEEN, _MIN_JOINTS = 150, 0.3, 4  # of the subject: pixels, share in view, visible joints
_NEAREST = 1.5  # m from the camera to the subject


@dataclasses.dataclass(eq=False)
class Solid:
    """Triangles in the image."""

    pixels: np.ndarray  # (V, 3) float64 x, y, 1 / depth
    camera: np.ndarray  # (V, 3) float64 camera axes, m
    keep: np.ndarray  # (V,) float32, see kernels.rasterize
    faces: np.ndarray  # (F, 3) int32
    first_id: int  # of its faces in `Scene.ids`
    person: Person | None = None  # None: a thing


@dataclasses.dataclass(eq=False)
class Scene:
    """The content of image `index`; the first solid is the subject, whom the labels describe."""

    settings: Settings
    index: int
    focal: float  # px
    solids: list[Solid]
    inverse: np.ndarray  # (H, W) float64: 1 / depth, 0 where the background shows
    ids: np.ndarray  # (H, W) int32: the face that shows, -1 where none does
    weights: np.ndarray  # (H, W, 2) float64, see kernels.rasterize
    joints: np.ndarray  # (17, 3) float64: x, y in px and depth in m, also outside of the image
    keypoints: np.ndarray  # (17, 3) float32: x, y in px and visibility 0, 1, 2; zeros outside of the image
    silhouette: np.ndarray  # (H, W) bool: the subject, parts hidden by others included

    @property
    def bbox(self) -> tuple[int, int, int, int]:
        """x, y, width and height of the silhouette, px."""
        rows, columns = np.flatnonzero(self.silhouette.any(1)), np.flatnonzero(self.silhouette.any(0))
        x, y = int(columns[0]), int(rows[0])
        return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y

    @property
    def area(self) -> int:
        """Pixels of the silhouette."""
        return int(np.count_nonzero(self.silhouette))


def lay_out(settings: Settings, index: int, poses: np.ndarray | None) -> Scene:
    """The scene of an image: a function of its arguments alone.

    Args:
      settings: of all images of a source.
      index: of the image, not negative.
      poses: (N, 17, 3) annotated joints to lift poses from, or None.
    """
    rng = generator(settings, index, 0)
    scene, attempts = None, 0
    while scene is None:
        # A subject who is hardly in view is drawn anew; after some attempts, alone and whole.
        scene = _attempt(rng, settings, index, poses, settings.difficulty if attempts < 6 else 0.0)
        attempts += 1
    return scene


def project(camera: np.ndarray, focal: float, size: tuple[int, int]) -> np.ndarray:
    """(n, 3) float64 x and y in px and 1 / depth, of (n, 3) points in camera axes; 1 / depth is 0 behind the camera."""
    inverse = np.where(camera[:, 2] > 0.05, 1.0 / np.maximum(camera[:, 2], 0.05), 0.0)
    middle = 0.5 * (np.array([size[1], size[0]]) - 1.0)
    return np.concatenate([camera[:, :2] * (focal * inverse)[:, None] + middle, inverse[:, None]], 1)


class _Stage:
    """Collects the solids of a scene."""

    def __init__(self, focal: float, size: tuple[int, int]):
        self.focal, self.size, self.next_id = focal, size, 0
        self.solids: list[Solid] = []

    def add(self, vertices, faces, position, keep=None, person: Person | None = None) -> Solid:
        """Adds vertices in world axes around a position in camera axes."""
        camera = vertices.astype(np.float64) * (1.0, -1.0, -1.0) + position
        keep = np.ones(len(vertices), np.float32) if keep is None else keep
        pixels = project(camera, self.focal, self.size)
        self.solids.append(Solid(pixels, camera, keep, faces, self.next_id, person))
        self.next_id += len(faces)
        return self.solids[-1]

    def add_person(self, person: Person, position: np.ndarray) -> Solid:
        """Adds a person, then what they carry."""
        solid = self.add(person.vertices, person.faces, position, person.keep, person)
        for vertices, faces in person.things:
            self.add(vertices, faces, position)
        return solid


def _attempt(rng, settings: Settings, index: int, poses, difficulty: float) -> Scene | None:
    """One try of `lay_out`; None if too little of the subject is in view."""
    height, width = settings.size
    subject = make_person(rng, _draw_pose(rng, poses, difficulty))
    focal, position = _frame(rng, subject, settings.size, difficulty)
    stage = _Stage(focal, settings.size)
    body = stage.add_person(subject, position)
    inverse, ids = np.zeros((height, width)), np.full((height, width), -1, np.int32)
    weights = np.zeros((height, width, 2))
    kernels.rasterize(body.pixels, body.keep, body.faces, 0, inverse, ids, weights)
    silhouette = ids >= 0
    joints = subject.joints.astype(np.float64) * (1.0, -1.0, -1.0) + position
    joints = np.concatenate([project(joints, focal, settings.size)[:, :2], joints[:, 2:]], 1)
    if np.count_nonzero(silhouette) < _MIN_PIXELS:
        return None
    for _ in range(_count_others(rng, difficulty)):
        _add_other(rng, stage, position, poses, difficulty)
    for _ in range(int(rng.random() * (1.0 + 1.6 * difficulty)) if difficulty > 0 else 0):
        _add_object(rng, stage, joints, silhouette, position[2])
    for solid in stage.solids[1:]:
        kernels.rasterize(solid.pixels, solid.keep, solid.faces, solid.first_id, inverse, ids, weights)
    keypoints = label(joints, stage.solids, settings.size)
    scene = Scene(settings, index, focal, stage.solids, inverse, ids, weights, joints, keypoints, silhouette)
    seen = np.count_nonzero((ids >= 0) & (ids < len(body.faces)))
    shown = np.count_nonzero(keypoints[:, 2] == 2)
    return scene if seen >= max(_MIN_SEEN * scene.area, _MIN_PIXELS) and shown >= _MIN_JOINTS else None


def _draw_pose(rng, poses, difficulty: float):
    if poses is not None and rng.random() < _LIFTED:
        return lift(poses[int(rng.random() * len(poses))], rng)
    return sample_pose(rng, difficulty)


def _frame(rng, subject: Person, size: tuple[int, int], difficulty: float) -> tuple[float, np.ndarray]:
    """Focal length in px, and the subject's position: whole in the image, or cut by its edges."""
    height, width = size
    low, high = subject.vertices[:, :2].min(0).astype(float), subject.vertices[:, :2].max(0).astype(float)
    fit = min(height / (high[1] - low[1]), width / (high[0] - low[0]))  # px a metre
    cut = rng.random() < 0.6 * difficulty
    if cut:
        scale = fit * (1.0 + 1.8 * rng.random() ** 1.5)
        group = (0, 5, 6, 11, 12) if rng.random() < 0.75 else (11, 12, 13, 14, 15, 16)
        target = subject.joints[list(group), :2].mean(0) + 0.1 * rng.standard_normal(2)
        place = np.array([width, height]) * (0.5 + 0.2 * (rng.random(2) - 0.5))
    else:
        share = 0.95 - (0.2 + 0.55 * difficulty) * rng.random()
        scale, target, place = fit * share, 0.5 * (low + high), 0.5 * np.array([width, height])
    focal = max(height * (0.9 + 1.8 * rng.random()), _NEAREST * scale)
    centre = (place - 0.5 * np.array([width, height])) / scale
    position = np.array([centre[0] - target[0], centre[1] + target[1], focal / scale])
    if not cut:
        # Perspective makes near parts larger, so size and place are set again by the projection.
        room = rng.random(2) - 0.5
        for _ in range(2):
            camera = subject.vertices[::7] * (1.0, -1.0, -1.0) + position
            pixels = project(camera, focal, size)[:, :2]
            low, high = pixels.min(0), pixels.max(0)
            focal *= share * min(width / (high[0] - low[0]), height / (high[1] - low[1]))
            slack = np.maximum((np.array([width, height]) - (high - low)), 0.0) * room
            position[:2] += (0.5 * np.array([width, height]) + slack - 0.5 * (low + high)) * position[2] / focal
    return focal, position


def _count_others(rng, difficulty: float) -> int:
    if rng.random() > difficulty:
        return 0
    return 1 + int(rng.random() ** 2 * (1.0 + 4.0 * difficulty))


def _add_other(rng, stage: _Stage, position: np.ndarray, poses, difficulty: float) -> None:
    """Another person on the subject's ground, close to the subject or anywhere, more often behind than in front."""
    person = make_person(rng, _draw_pose(rng, poses, difficulty))
    depth = max(position[2] * np.exp(-0.25 + 1.1 * rng.random()), 1.2)
    if rng.random() < 0.6:
        x = position[0] + (0.35 + 0.9 * rng.random()) * (1.0 if rng.random() < 0.5 else -1.0)
        depth = max(position[2] + 0.9 * (rng.random() - 0.4), 1.2)
    else:
        x = (1.2 * rng.random() - 0.6) * stage.size[1] * depth / stage.focal
    stage.add_person(person, np.array([x, position[1] + 0.15 * rng.standard_normal(), depth]))


def _add_object(rng, stage: _Stage, joints: np.ndarray, silhouette: np.ndarray, depth: float) -> None:
    """A flat board, disc or pole in front of a part of the subject; faces are mostly spared."""
    first = 0 if rng.random() < 0.12 else 7
    x, y = joints[first + int(rng.random() * (17 - first)), :2]
    rows = np.flatnonzero(silhouette.any(1))
    extent = float(rows[-1] - rows[0] + 1)
    kind, a, b, c = rng.random(4)
    if kind < 0.4:  # boards, tables among them
        w, h = extent * (0.08 + 0.35 * a * a), extent * (0.06 + 0.25 * b)
        outline = np.array([[-w, -h], [w, -h], [w, h], [-w, h]])
    elif kind < 0.7:
        angles = np.linspace(0.0, 2 * np.pi, 13)[:-1]
        radii = extent * (0.07 + 0.16 * a) * (1.0 + 0.25 * rng.standard_normal(12).clip(-2, 2) * (b > 0.4))
        outline = np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None] * (1.0, 0.6 + 0.8 * c)
    else:
        w = extent * (0.015 + 0.06 * a)
        outline = np.array([[-w, -3 * extent], [w, -3 * extent], [w, 3 * extent], [-w, 3 * extent]])
    angle = np.pi * (rng.random() - 0.5) * (1.0 if kind > 0.4 and b < 0.5 else 0.15)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    near = depth * (0.55 + 0.1 * rng.random())
    middle = 0.5 * (np.array([stage.size[1], stage.size[0]]) - 1.0)
    flat = (outline @ turn.T + (x, y) - middle) * near / stage.focal
    corners = np.concatenate([flat, np.zeros((len(flat), 1))], 1) * (1.0, -1.0, 1.0)
    fan = np.array([[0, k, k + 1] for k in range(1, len(flat) - 1)], np.int32)
    stage.add(corners, fan, np.array([0.0, 0.0, near]))


def label(joints: np.ndarray, solids: list[Solid], size: tuple[int, int]) -> np.ndarray:
    """Keypoints of the subject, the first solid.

    A joint is visible if no surface on its ray lies further in front of it than the flesh around it (`FLESH`). A skirt
    hides no joint of its own wearer.

    Args:
      joints: (17, 3) x, y in px and depth in m.
      solids: all of the scene.
      size: (height, width) of the image.

    Returns:
      (17, 3) float32: x, y and visibility, 2 visible, 1 hidden, 0 with zeros outside of the image.
    """
    height, width = size
    x, y, depth = joints.T
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    nearest, points = np.zeros(len(joints)), np.ascontiguousarray(joints[:, :2])
    for solid in solids:
        faces = solid.faces
        if solid is solids[0] and solid.person is not None:
            faces = faces[solid.person.part != SKIRT]
        kernels.first_surface(points, solid.pixels, solid.keep, faces, nearest)
    subject = solids[0].person
    assert subject is not None
    allowed = FLESH * subject.stature / 1.7 + max(subject.outfit.loose)
    # A joint that no surface covers is in view: parts of a thin body may lie beside their joint.
    first = np.where(nearest > 0, 1.0 / np.maximum(nearest, 1e-9), np.inf)
    visibility = np.where(inside, np.where(first >= depth - allowed, 2.0, 1.0), 0.0)
    return np.stack([x * inside, y * inside, visibility], -1).astype(np.float32)
