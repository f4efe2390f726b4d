"""From a person and an image to a crop: pixels and joints follow one 2 x 3 matrix, mirroring included."""

import dataclasses
import math
from collections.abc import Sequence

import cv2
import numpy as np

from dpose_jax.data.jpeg_parts import Window
from dpose_jax.data.sample import Person
from dpose_jax.pose.joint_sets import JointSet
from dpose_jax.recipe import Augment, Recipe

_HALF_BODY_PADDING = 1.5  # of the joints' extent (HRNet's code)
BORDER = 2  # bilinear sampling reads the next pixel too; one more for the rounding of sampling positions
_HALF_BODY_JOINTS = 3  # a half body needs this many (HRNet's code)
# OpenCV samples four channels, to the same values, in half the time of three. To convert more pixels takes longer.
_FOUR_CHANNELS = 8  # pixels of the image per pixel of the crop


@dataclasses.dataclass(frozen=True)
class CropSpec:
    """How a box becomes a crop.

    `warp` is `unbiased` (UDP, arXiv 1911.07524): the padded box [x, x + w] maps so that the centres of the crop's
    first and last pixel span it, scale (width - 1) / w. Or it is `rounded` (HRNet's code): scale width / w, the
    box's centre goes to (width / 2, height / 2).
    """

    input_size: tuple[int, int]  # (height, width) of the crop, pixels
    padding: float  # factor on the box around its centre, after it is widened to the crop's aspect
    warp: str
    label_margin: float = 0.0  # crop pixels that a joint may lie off the crop and keep its label

    @property
    def aspect(self) -> float:
        """Width / height."""
        return self.input_size[1] / self.input_size[0]


def crop_spec(recipe: Recipe) -> CropSpec:
    """The crop of a recipe; uses `input_size`, `stride`, `crop` and `codec`."""
    margin = recipe.codec.label_margin * recipe.codec.sigma * recipe.stride
    return CropSpec(recipe.input_size, recipe.crop.padding, recipe.crop.warp, margin)


@dataclasses.dataclass(frozen=True)
class View:
    """One crop of an image, mirrored if `flip`."""

    center: np.ndarray  # (2,) x, y in image pixels
    size: np.ndarray  # (2,) width, height in image pixels, of the crop's aspect
    rotation: float = 0.0  # degrees; positive turns the picture clockwise
    flip: bool = False
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)  # factors of brightness, contrast and saturation


def padded_view(bbox: np.ndarray, spec: CropSpec) -> View:
    """The view of a box without augmentation; see `widened_view`."""
    return widened_view(bbox, spec.aspect, spec.padding)


def widened_view(bbox: np.ndarray, aspect: float, padding: float) -> View:
    """The view around a box [x, y, w, h]: widened to aspect = width / height, then multiplied by `padding`."""
    x, y, w, h = np.asarray(bbox, np.float64).tolist()
    width = max(w, h * aspect)
    return View(np.array([x + w / 2, y + h / 2]), np.array([width * padding, width / aspect * padding]))


def draw_view(rng: np.random.Generator, person: Person, spec: CropSpec, augment: Augment, joint_set: JointSet) -> View:
    """A random view of a person. Takes the same count of random numbers whatever happens."""
    flip, rotate, half, upper, *others = rng.random(9).tolist()
    shift, color = others[:2], others[2:]
    resize, turn = rng.standard_normal(2).tolist()
    view = padded_view(person.bbox, spec)
    if half < augment.half_body and (person.keypoints[:, 2] > 0).sum() > augment.half_body_min_joints:
        wants_upper = upper < augment.half_body_upper
        view = half_body_view(person.keypoints, joint_set.upper_body, wants_upper, spec.aspect) or view
    center = view.center
    if augment.shift:
        center = center + (2 * np.array(shift) - 1) * augment.shift * person.bbox[2:]
    size = view.size * min(max(1 + augment.scale * resize, 1 - augment.scale), 1 + augment.scale)
    rotation = min(max(augment.rotation * turn, -2 * augment.rotation), 2 * augment.rotation)
    angle = rotation if rotate < augment.rotation_prob else 0.0
    brightness, contrast, saturation = (1 + augment.color * (2 * u - 1) for u in color)
    return View(center, size, angle, flip < augment.flip, (brightness, contrast, saturation))


def half_body_view(keypoints: np.ndarray, upper_body: Sequence[int], wants_upper: bool, aspect: float) -> View | None:
    """The view of an aspect (width / height) around the labelled joints of half a body, centred on their mean.

    `keypoints` (J, 3) are x, y in image pixels and visibility, `upper_body` indices. After HRNet's code: if fewer than
    three joints of the wanted half are labelled, the other half is taken. None if neither half has three, they span
    less than a pixel, or `upper_body` is empty.
    """
    if not upper_body:
        return None
    labelled = keypoints[:, 2] > 0
    is_upper = np.isin(np.arange(len(keypoints)), upper_body)
    halves = [keypoints[labelled & side, :2].astype(np.float64) for side in (is_upper, ~is_upper)]
    halves = [half for half in (halves if wants_upper else halves[::-1]) if len(half) >= _HALF_BODY_JOINTS]
    if not halves:
        return None
    low, high = halves[0].min(axis=0), halves[0].max(axis=0)
    if (high - low).max() < 1:
        return None
    size = widened_view(np.concatenate([low, high - low]), aspect, _HALF_BODY_PADDING).size
    return View(halves[0].mean(axis=0), size)


def view_matrix(view: View, spec: CropSpec) -> np.ndarray:
    """The affine map of a view, (2, 3) float64: image pixels -> crop pixels, pixel centres at integers.

    A mirrored view is the plain one followed by x -> width - 1 - x, for both warps.
    """
    (a, b, left), below = _plain_map(view, spec)
    if view.flip:
        a, b, left = -a, -b, spec.input_size[1] - 1 - left
    return np.array([(a, b, left), below], np.float64)


def _plain_map(view: View, spec: CropSpec) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """The rows of `view_matrix` without mirroring."""
    height, width = spec.input_size
    edge = 1 if spec.warp == "unbiased" else 0
    across, down = width - edge, height - edge
    cos, sin = math.cos(math.radians(view.rotation)), math.sin(math.radians(view.rotation))
    (x, y), (w, h) = view.center.tolist(), view.size.tolist()
    a, b = across / w * cos, across / w * -sin
    c, d = down / h * sin, down / h * cos
    return (a, b, across / 2 - (a * x + b * y)), (c, d, down / 2 - (c * x + d * y))


def invert(matrix: np.ndarray) -> np.ndarray:
    """The inverse of a (2, 3) affine map, float64: crop pixels -> image pixels for a view's matrix.

    Raises ZeroDivisionError if it has none.
    """
    (a, b, x), (c, d, y) = np.asarray(matrix, np.float64).tolist()
    largest = max(map(abs, (a, b, c, d)))  # divided by it, products of the factors of any box are numbers
    a, b, c, d = a / largest, b / largest, c / largest, d / largest
    area = (a * d - b * c) * largest
    a, b, c, d = a / area, b / area, c / area, d / area
    return np.array([[d, -b, b * y - d * x], [-c, a, c * x - a * y]])


def map_points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Maps points (..., 2) by a (2, 3) affine map, float64."""
    return np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]


def view_window(view: View) -> Window:
    """Left, top, right, bottom of all image pixels that `warp_image` samples for a view, and a few more.

    Whole pixels, right and bottom exclusive; they may lie outside of the image.
    """
    (x, y), (w, h) = view.center.tolist(), view.size.tolist()
    cos, sin = abs(math.cos(math.radians(view.rotation))), abs(math.sin(math.radians(view.rotation)))
    across, down = (w * cos + h * sin) / 2 + BORDER, (w * sin + h * cos) / 2 + BORDER
    return math.floor(x - across), math.floor(y - down), math.ceil(x + across) + 1, math.ceil(y + down) + 1


def part_window(window: Window, origin: Sequence[int], scale: Sequence[float]) -> Window:
    """A window of the whole image in pixels of a part, for `warp_image` with that `origin` and `scale`."""
    (x, y), (across, down), (left, top, right, bottom) = origin, scale, window
    first = math.floor((left - x) * across) - BORDER, math.floor((top - y) * down) - BORDER
    return *first, math.ceil((right - x) * across) + BORDER, math.ceil((bottom - y) * down) + BORDER


def warp_image(
    image: np.ndarray,
    view: View,
    spec: CropSpec,
    origin: tuple[int, int] = (0, 0),
    scale: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """The pixels of a view, (height, width, 3) uint8: bilinear, black outside.

    `image` is a part of the whole image from pixel `origin` on, with `scale` times as many pixels across and down.
    """
    across, down = scale
    # Pixel x of the part is pixel (x + .5) / scale - .5 from the origin.
    x, y = origin[0] + 0.5 / across - 0.5, origin[1] + 0.5 / down - 0.5
    # OpenCV samples at rounded positions, so only turning the finished crop mirrors it to the bit.
    rows = [(a / across, b / down, first + a * x + b * y) for a, b, first in _plain_map(view, spec)]
    crop = _sample(image, np.array(rows), spec.input_size[::-1])
    crop = cv2.flip(crop, 1) if view.flip else crop
    return crop if view.color == (1.0, 1.0, 1.0) else _recolor(crop, view.color)


def _sample(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels (height, width, 3) uint8 of a (width, height), bilinear, by the map to them from `image`."""
    if image.shape[0] * image.shape[1] > _FOUR_CHANNELS * size[0] * size[1]:
        return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR)
    image = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    return cv2.cvtColor(cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR), cv2.COLOR_RGBA2RGB)


def _recolor(image: np.ndarray, factors: tuple[float, float, float]) -> np.ndarray:
    brightness, contrast, saturation = factors
    pixels = image.astype(np.float32) * brightness
    weights = np.array([0.299, 0.587, 0.114], np.float32)  # luma of ITU-R BT.601
    mean = (pixels @ weights).mean()
    pixels = mean + contrast * (pixels - mean)
    grey = (pixels @ weights)[..., None]
    pixels = grey + saturation * (pixels - grey)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def warp_joints(
    keypoints: np.ndarray, view: View, spec: CropSpec, joint_set: JointSet
) -> tuple[np.ndarray, np.ndarray]:
    """The joints of a view, from `keypoints` (J, 3), x, y in image pixels and visibility 0, 1 or 2.

    Returns (J, 2) float32 in crop pixels, 0 where not labelled, and (J,) float32: 1 where labelled and at most
    `spec.label_margin` off the crop, [-.5, width - .5] x [-.5, height - .5]. Mirrored, left and right change places.
    """
    (height, width), margin = spec.input_size, spec.label_margin
    if view.flip:
        keypoints = keypoints[list(joint_set.flip_order)]
    points, labelled = map_points(view_matrix(view, spec), keypoints[:, :2]), keypoints[:, 2] > 0
    points[~labelled] = 0.0
    inside = (points >= -0.5 - margin) & (points <= (width - 0.5 + margin, height - 0.5 + margin))
    return points.astype(np.float32), (labelled & inside.all(axis=1)).astype(np.float32)
