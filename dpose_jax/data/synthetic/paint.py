"""Paints the synthetic scenes (ours): (height, width, 3) uint8 RGB. Polygons are (n, 2) int32 in 1/16 px."""

import cv2
import numpy as np

from dpose_jax.data.synthetic.polygons import SHIFT, capsules, to_fixed
from dpose_jax.data.synthetic.scene import Body, Scene, generator, pick
from dpose_jax.data.synthetic.skeleton import POINT, pair

_SKINS = ((255, 224, 196), (241, 194, 160), (224, 172, 125), (198, 134, 88), (141, 85, 48), (92, 56, 36))
_HAIRS = ((28, 22, 18), (58, 38, 24), (96, 62, 34), (150, 105, 55), (208, 172, 108), (128, 126, 124), (130, 58, 30))
_PATTERNS = ("plain", "plain", "stripes", "hoop", "buttons", "logo")
Color = tuple[int, ...]  # red, green, blue


def paint_scene(scene: Scene) -> np.ndarray:
    """Paints a scene: (height, width, 3) uint8 RGB, a function of its settings, index and layers alone."""
    rng, difficulty = generator(scene.settings, scene.index, 1), scene.settings.difficulty
    image = _ground(rng, scene.settings.size, difficulty)
    _clutter(rng, image, int(rng.random() * 26 * difficulty))
    for body in scene.bodies:
        feet = body.points[pair("ankle")]
        if feet[:, 1].max() >= body.points[POINT["neck"], 1]:
            _shadow(image, feet[:, 0].mean(), feet[:, 1].max() + 0.03 * body.scale, 0.16 * body.scale)
    if rng.random() < difficulty:
        image = cv2.blur(image, (5, 5))
    for layer in scene.layers:
        if isinstance(layer, Body):
            _paint_body(rng, image, layer)
        else:
            _paint_object(rng, image, layer)
    return _camera(rng, image, difficulty)


def _shade(color: Color, factor: float) -> Color:
    """A colour made darker or lighter, clipped to 0..255."""
    return tuple(int(min(255.0, max(0.0, channel * factor))) for channel in color)


def _vivid(rng: np.random.Generator) -> Color:
    """A random colour of channels 25..245, greyer than independent channels are."""
    grey, *channels, mix = rng.random(5)
    mix = 0.15 + 0.7 * mix
    return tuple(int(25.0 + 220.0 * (mix * channel + (1.0 - mix) * grey)) for channel in channels)


def _palette(rng: np.random.Generator) -> dict[str, Color]:
    """Colours of one person by material; `trim` is that of the shirt's pattern."""
    skin = _shade(pick(rng, _SKINS), 0.9 + 0.15 * rng.random())
    hair = _shade(pick(rng, _HAIRS), 0.85 + 0.3 * rng.random())
    return {
        "skin": skin, "face": skin, "ear": _shade(skin, 0.9), "nose": _shade(skin, 0.82),
        "mouth": (int(skin[0] * 0.75), int(skin[1] * 0.45), int(skin[2] * 0.45)),
        "hair": hair, "brow": _shade(hair, 0.7), "eye": (245, 245, 245), "pupil": (35, 25, 20),
        "shirt": _vivid(rng), "legs": _shade(_vivid(rng), 0.4 + 0.5 * rng.random()),
        "shoes": _shade(_vivid(rng), 0.3 + 0.7 * rng.random()), "hat": _vivid(rng), "trim": _vivid(rng),
    }  # fmt: skip


def _fill(image: np.ndarray, polygon: np.ndarray, color, convex: bool = True) -> None:
    """Fills one polygon, (n, 2) int32 in 1/16 px, with smooth edges."""
    if convex:
        cv2.fillConvexPoly(image, polygon, color, cv2.LINE_AA, SHIFT)
    else:
        cv2.fillPoly(image, [polygon], color, cv2.LINE_AA, SHIFT)


def _paint_body(rng: np.random.Generator, image: np.ndarray, body: Body) -> None:
    colors = _palette(rng)
    pattern = _shirt_pattern(pick(rng, _PATTERNS), body.points)
    for piece in body.pieces:
        color = colors[piece.material]
        _fill(image, piece.outer, color if piece.inner is None else _shade(color, 0.7), piece.convex)
        if piece.inner is not None:
            _fill(image, piece.inner, color, piece.convex)
        for polygon in pattern if piece.decorated else ():
            _fill(image, polygon, colors["trim"])


def _shirt_pattern(pattern: str, points: np.ndarray) -> list[np.ndarray]:
    """Polygons on the shirt of a person with these points; buttons and logos are on the front alone."""
    left_top, right_top = points[pair("chest"), :2]
    left_bottom, right_bottom = points[pair("hem"), :2]
    left_shoulder, right_shoulder = points[pair("shoulder"), 0]

    def at(down: float, across: float) -> np.ndarray:
        left = left_top + down * (left_bottom - left_top)
        return left + across * (right_top + down * (right_bottom - right_top) - left)

    def band(top: float, bottom: float, start: float, end: float) -> np.ndarray:
        return to_fixed(np.stack([at(top, start), at(top, end), at(bottom, end), at(bottom, start)]))

    if pattern == "stripes":
        return [band(t, t + 0.1, -0.35, 1.35) for t in (0.0, 0.22, 0.44, 0.66, 0.88)]
    if pattern == "hoop":
        return [band(0.25, 0.5, -0.35, 1.35)]
    if pattern == "plain" or left_shoulder <= right_shoulder:
        return []
    return [band(-0.25, 1.1, 0.45, 0.55) if pattern == "buttons" else band(0.1, 0.5, 0.25, 0.75)]


def _ground(rng: np.random.Generator, size: tuple[int, int], difficulty: float) -> np.ndarray:
    """An empty background, (height, width, 3) uint8: plain when easy; gradients, floors and textures when not."""
    height, width = size
    image: np.ndarray = np.full((height, width, 3), _vivid(rng), np.uint8)
    kind = rng.random()
    if rng.random() > 2.0 * difficulty + 0.1:
        return image
    if kind < 0.25:
        coarse: np.ndarray = np.array([[_vivid(rng)], [_vivid(rng)]], np.uint8)
    else:
        grid = 3 + int(rng.random() * (4 + 24 * difficulty))
        cells = np.frombuffer(rng.bytes(grid * grid * 4), np.uint8).reshape(grid, grid, 4).astype(np.int32) - 128
        base = np.array(_vivid(rng), np.int32)
        bright, tint = 20 + int(80 * difficulty * rng.random()), int(60 * difficulty * rng.random())
        coarse = base + cells[..., 3:] * bright // 128 + cells[..., :3] * tint // 128
        coarse = coarse.clip(0, 255).astype(np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR_EXACT)
    if kind > 0.45:
        top = int(height * (0.45 + 0.45 * rng.random()))
        floor = _shade(_vivid(rng), 0.85)
        cv2.rectangle(image, (0, top), (width, height), floor, -1)
        if kind > 0.7:
            for k in range(1, 7):
                y = top + (height - top) * k * k // 36
                cv2.line(image, (0, y), (width, y), _shade(floor, 0.85), 1 + k // 4)
    if kind < 0.12 + 0.1 * difficulty:
        color, step = _vivid(rng), 10 + int(30 * rng.random())
        for x in range(0, width, step):
            cv2.line(image, (x, 0), (x, height), color, 1 + int(step * 0.3 * difficulty))
    return image


def _clutter(rng: np.random.Generator, image: np.ndarray, count: int) -> None:
    """Draws `count` shapes behind the people: boxes, ellipses, bars, triangles and limb-like rods, in place."""
    height, width = image.shape[:2]
    for _ in range(count):
        kind, x, y, a, b, c, d = rng.random(7)
        x, y = int(x * width), int(y * height)
        w, h = int(8 + 0.35 * width * a * a), int(8 + 0.45 * height * b * b)
        color = pick(rng, _SKINS) if kind > 0.92 else _vivid(rng)
        if kind < 0.3:
            cv2.rectangle(image, (x - w, y - h), (x + w, y + h), color, -1)
            cv2.rectangle(image, (x - w, y - h), (x + w, y + h), _shade(color, 0.7), 1 + int(3 * c))
        elif kind < 0.5:
            cv2.ellipse(image, (x, y), (w, h), 180.0 * int(4 * c) / 4, 0, 360, color, -1, cv2.LINE_AA)
        elif kind < 0.7:
            _rod(image, (x, y), (x + (c - 0.5) * width, y + (d - 0.5) * 2 * height), 1.0 + w / 16, color)
        elif kind < 0.82:
            points = [[x - w, y + h], [x + w, y + int(h * c)], [x + int(w * (d - 0.5)), y - h]]
            cv2.fillConvexPoly(image, np.array(points, np.int32), color, cv2.LINE_AA)
        else:
            end = (x + int((c - 0.5) * 120), y + int((d - 0.5) * 120))
            _rod(image, (x, y), end, 7.0, _shade(color, 0.7))
            _rod(image, (x, y), end, 4.5, color)
            cv2.circle(image, end, 8, color, -1, cv2.LINE_AA)


def _rod(image: np.ndarray, start, end, radius: float, color) -> None:
    # Not cv2.line: its smooth thick lines differ between OpenCV 4 and 5.
    _fill(image, to_fixed(capsules(np.array([start, end], np.float64), np.array([radius, radius]))), color)


def _paint_object(rng: np.random.Generator, image: np.ndarray, polygon: np.ndarray) -> None:
    """Paints an object that stands before people: (n, 2) int32 in 1/16 px."""
    color = _vivid(rng)
    _fill(image, polygon, _shade(color, 0.6))
    middle = polygon.mean(0)
    for k in range(int(1 + 3 * rng.random())):
        inside = middle + (0.9 - 0.22 * k) * (polygon - middle)
        _fill(image, np.rint(inside).astype(np.int32), color if k % 2 == 0 else _shade(color, 0.75))


def _shadow(image: np.ndarray, x: float, y: float, radius: float) -> None:
    """Darkens an ellipse on the ground around (x, y) px, in place."""
    r = max(2, int(radius))
    x0, y0 = max(0, int(x) - r), max(0, int(y) - r // 4)
    part = image[y0 : max(0, int(y) + r // 4), x0 : max(0, int(x) + r)]
    if part.size:
        mask = np.zeros(part.shape[:2], np.uint8)
        cv2.ellipse(mask, (int(x) - x0, int(y) - y0), (r, max(1, r // 4)), 0, 0, 360, 255, -1)
        cv2.copyTo((part // 4) * 3, mask, part)


def _camera(rng: np.random.Generator, image: np.ndarray, difficulty: float) -> np.ndarray:
    """Blur, contrast, colour cast and noise that grow with difficulty; returns (height, width, 3) uint8."""
    blur, contrast, low, grey, noise, strength = rng.random(6)
    if blur < 0.45 * difficulty:
        kind = int(3 * rng.random())
        kernel = (3, 3) if strength > difficulty else (5, 5)
        image = cv2.GaussianBlur(image, kernel, 0) if kind < 2 else cv2.blur(image, (7, 1))
    if contrast < 0.8 * difficulty:
        factor = 1.0 - 0.65 * difficulty * low
        lift = (1.0 - factor) * 255.0 * rng.random()
        cast = 1.0 + 0.25 * difficulty * (rng.random(3) - 0.5)
        ramp = np.arange(256.0)[:, None] * factor * cast + lift
        image = cv2.LUT(image, np.rint(ramp.clip(0, 255)).astype(np.uint8)[None])
    if grey < 0.08 * difficulty:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, -1)
    if noise < difficulty:
        bits = 7 if strength > 0.6 * difficulty else 31 if strength < 0.2 * difficulty else 15
        grain = np.frombuffer(rng.bytes(image.size), np.uint8).reshape(image.shape) & np.uint8(bits)
        image = cv2.subtract(cv2.add(image, grain), np.full_like(image, bits // 2))
    return image
