"""What is behind the rendered people, and what a camera does to the picture (ours)."""

import os

import cv2
import numpy as np
from absl import logging

from dpose_jax.data.image_files import decode_image, walk_files
from dpose_jax.data.rendered.paint import noise, vivid
from dpose_jax.data.sample import BadRecordError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_TRIES = 10  # unreadable pictures in a row after which the folder is taken to be broken


class Pictures:
    """The pictures of a folder and its sub-folders, in the order of their names."""

    def __init__(self, folder: str):
        """Lists the folder; raises FileNotFoundError if there is none, ValueError if it has no picture."""
        if not os.path.isdir(folder):
            raise FileNotFoundError(f"data.rendered.backgrounds={folder!r}: no such folder")
        self._files = sorted(
            os.path.join(path, name)
            for path, names in walk_files(folder)
            for name in names
            if name.lower().endswith(_SUFFIXES)
        )
        if not self._files:
            raise ValueError(f"data.rendered.backgrounds={folder!r}: must hold pictures ({', '.join(_SUFFIXES)})")

    def __len__(self) -> int:
        """Number of files."""
        return len(self._files)

    def read(self, number: int) -> np.ndarray:
        """The picture at `number`, or the next readable one, (h, w, 3) uint8; raises BadRecordError after ten."""
        for step in range(_TRIES):
            file = self._files[(number + step) % len(self._files)]
            try:
                with open(file, "rb") as stream:
                    return decode_image(stream.read())
            except (OSError, ValueError) as error:
                last = f"{file}: {error}"
                logging.log_first_n(logging.WARNING, "data.rendered.backgrounds: %s", 20, last)
        raise BadRecordError(f"data.rendered.backgrounds: {_TRIES} unreadable pictures in a row; the last: {last}")


def cut(rng: np.random.Generator, picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A random part of a picture, (height, width, 3) float32, mirrored in half of the cases."""
    height, width = picture.shape[:2]
    part = min(height / size[0], width / size[1]) * (0.45 + 0.55 * rng.random())
    h, w = max(1, int(part * size[0])), max(1, int(part * size[1]))
    y, x = int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1))
    kind = cv2.INTER_AREA if part > 1 else cv2.INTER_LINEAR
    image = cv2.resize(picture[y : y + h, x : x + w], size[::-1], interpolation=kind).astype(np.float32)
    return np.ascontiguousarray(image[:, ::-1]) if rng.random() < 0.5 else image


def invent(rng: np.random.Generator, size: tuple[int, int], difficulty: float) -> np.ndarray:
    """A procedural background, (height, width, 3) float32: a floor, a wall or a sky, textures, and clutter."""
    height, width = size
    rows = np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None, None]
    image = vivid(rng) + rows * (vivid(rng) - vivid(rng)) * 0.5 + np.zeros((height, width, 3), np.float32)
    image += _texture(rng, size) * 40.0 * rng.random()
    horizon = int(height * (0.3 + 0.6 * rng.random()))
    if rng.random() < 0.75:
        floor = vivid(rng) + _texture(rng, size)[horizon:] * 30.0 * rng.random()
        image[horizon:] = floor * (0.75 + 0.25 * rows[: height - horizon])
    for _ in range(int(rng.random() * (2 + 22 * difficulty))):
        _clutter(rng, image, horizon)
    image = cv2.GaussianBlur(image, (0, 0), 0.3 + 2.5 * rng.random() ** 2)
    return np.clip(image, 0.0, 255.0)


def _texture(rng, size: tuple[int, int]) -> np.ndarray:
    """(height, width, 3) float32 noise of a random fineness, grey or coloured."""
    tile = noise()[..., :3]
    fine = 2.0 ** (-3.5 + 4.0 * rng.random())
    y = (np.arange(size[0]) * fine * (1.0 + rng.random()) + 256 * rng.random()).astype(int) % len(tile)
    x = (np.arange(size[1]) * fine + 256 * rng.random()).astype(int) % len(tile)
    field = tile[y][:, x]
    field = cv2.GaussianBlur(field, (0, 0), 0.5 / min(fine, 1.0))
    return field if rng.random() < 0.3 else np.repeat(field[..., :1], 3, 2)


def _clutter(rng, image: np.ndarray, horizon: int) -> None:
    """Draws one thing: a board with a frame, an ellipse, a post, leaves or a limb-like rod; in place."""
    height, width = image.shape[:2]
    kind, x, a, b, c, shade = rng.random(6)
    y = horizon + (rng.random() - 0.6) * 0.8 * height
    w, h = width * (0.02 + 0.3 * a * a), height * (0.03 + 0.3 * b * b)
    color, x = vivid(rng), x * width
    dark = (color * (0.4 + 0.5 * shade)).tolist()
    left, top, right, bottom = int(x - w), int(y - h), int(x + w), int(y + h)
    if kind < 0.4:
        cv2.rectangle(image, (left, top), (right, bottom), color.tolist(), -1)
        part = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
        if part.size and c < 0.6:
            part += _texture(rng, part.shape[:2]) * 35.0 * c
        cv2.rectangle(image, (left, top), (right, bottom), dark, 1 + int(4 * c))
        for k in range(1, int(5 * shade)):
            cv2.line(image, (left, top + int(2 * h * k / 5)), (right, top + int(2 * h * k / 5)), dark, 1 + int(2 * c))
    elif kind < 0.6:
        cv2.ellipse(image, (int(x), int(y)), (int(w), int(h)), 180 * c, 0, 360, color.tolist(), -1, cv2.LINE_AA)
        cv2.ellipse(
            image, (int(x - 0.2 * w), int(y + 0.2 * h)), (int(0.7 * w), int(0.7 * h)), 180 * c, 0, 360, dark, -1
        )
    elif kind < 0.75:
        angles = rng.random((30, 2)) - 0.5
        for dx, dy in angles:
            place = int(x + 2.4 * w * dx), int(y + 2.4 * h * dy)
            radius = max(1, int(0.25 * min(w, h) * (0.5 + c)))
            cv2.circle(image, place, radius, (color * (0.6 + 0.8 * abs(dx + dy))).tolist(), -1)
    else:
        end = int(x + (c - 0.5) * width * 0.6), int(y + (shade - 0.3) * height * 0.8)
        thick = 2 + int(0.05 * width * a)
        cv2.line(image, (int(x), int(y)), end, dark, thick + 2, cv2.LINE_AA)
        cv2.line(image, (int(x), int(y)), end, color.tolist(), max(1, thick - 2), cv2.LINE_AA)


def photograph(rng: np.random.Generator, image: np.ndarray, difficulty: float) -> np.ndarray:
    """What a camera makes of a scene: exposure, colour cast, low resolution, blur, noise and JPEG; labels stay true.

    Args:
      rng: of the image.
      image: (height, width, 3) float32 in 0..255.
      difficulty: in [0, 1]; the share and the strength of the faults grow with it.

    Returns:
      (height, width, 3) uint8.
    """
    height, width = image.shape[:2]
    u = rng.random(9)
    gamma = np.exp(0.5 * difficulty * (u[0] - 0.5) * 2.0)
    image = 255.0 * cv2.pow(np.clip(image, 0.0, 255.0) / np.float32(255.0), gamma)
    contrast = 1.0 - 0.5 * difficulty * u[1] ** 2
    image = image * contrast + (1.0 - contrast) * 255.0 * u[2]
    image = image * (1.0 + 0.2 * difficulty * (rng.random(3) - 0.5))
    image = image.astype(np.float32)
    small = (height, width)
    if u[3] < 0.6 * difficulty:
        factor = 1.0 + 3.5 * u[4] ** 2
        small = max(24, round(height / factor)), max(24, round(width / factor))
        image = cv2.resize(image, small[::-1], interpolation=cv2.INTER_AREA)
    if u[5] < 0.5 * difficulty:
        image = cv2.GaussianBlur(image, (0, 0), 0.4 + 1.2 * rng.random())
    elif u[5] < 0.65 * difficulty:
        image = cv2.filter2D(image, -1, _streak(2.0 * np.pi * rng.random(), 3 + 2 * int(3 * rng.random())))
    strength = 14.0 * difficulty * u[6] ** 2
    if strength > 0.5:
        grain = rng.standard_normal((*image.shape[:2], 1 if u[7] < 0.5 else 3), np.float32)
        image = image + grain * (strength * (0.5 + 0.5 * np.sqrt(np.clip(image, 0, 255) / 255.0)))
    if small != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC if u[8] < 0.5 else cv2.INTER_LINEAR)
    done = np.rint(np.clip(image, 0.0, 255.0)).astype(np.uint8)
    if rng.random() < 0.04 * difficulty:
        done = np.repeat(cv2.cvtColor(done, cv2.COLOR_RGB2GRAY)[..., None], 3, -1)
    if rng.random() < difficulty:
        quality = int(30 + 65 * rng.random())
        _, coded = cv2.imencode(".jpg", done[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        done = decode_image(coded.tobytes())
    return done


def _streak(angle: float, length: int) -> np.ndarray:
    """The kernel of a movement, (length, length) float32, symmetric so that nothing shifts."""
    kernel: np.ndarray = np.zeros((length, length), np.float32)
    for step in np.linspace(-0.5, 0.5, 4 * length):
        x, y = (int(round((length - 1) * (0.5 + step * f(angle)))) for f in (np.cos, np.sin))
        kernel[y, x] = 1.0
    kernel = kernel + kernel[::-1, ::-1]
    return kernel / kernel.sum()
