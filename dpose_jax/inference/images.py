"""A user's images, whatever they come as: upright RGB arrays."""

import os
from typing import Any

import cv2
import numpy as np

from dpose_jax.data.image_files import decode_image, read_file

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# cv2.warpAffine addresses the pixels of its source by 16-bit numbers.
MAX_SIDE = 32_766

ImageLike = str | os.PathLike | np.ndarray | Any


def load_image(image: ImageLike) -> np.ndarray:
    """Any image as (height, width, 3) uint8 RGB, upright: the EXIF orientation of a file or PIL image is followed.

    An image is the path of a file that OpenCV reads; an array (h, w, 3) uint8 RGB, (h, w, 4), whose alpha is dropped,
    (h, w) or (h, w, 1), grey; or a PIL image of any mode but floats. 16 bits become 8, as in a file. Raises OSError if
    a file cannot be read or is no regular file, and ValueError, which names it, if it is no image, cut short, of
    another shape or dtype, empty, or above 32,766 pixels a side.
    """
    where = "image"
    if isinstance(image, str | os.PathLike):
        where = os.fspath(image)
        try:
            image = decode_image(read_file(where), upright=True)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    elif hasattr(image, "getexif") and hasattr(image, "convert"):
        image = _of_pil(image)
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{where}: must be a path, a uint8 array or a PIL image, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ValueError(f"{where}: must be (h, w, 3) uint8 RGB, got {image.shape} {image.dtype}")
    if not 1 <= min(image.shape[:2]) <= max(image.shape[:2]) <= MAX_SIDE:
        raise ValueError(f"{where}: sides must be 1 to {MAX_SIDE} pixels, got {image.shape[1]} x {image.shape[0]}")
    is_grey = image.ndim == 2 or image.shape[2] == 1
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if is_grey else image[..., :3]


def _of_pil(image) -> np.ndarray:
    from PIL import ImageOps  # whoever passes a PIL image has it

    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or (image.mode == "I" and not 0 <= image.getextrema()[0] <= image.getextrema()[1] < 1 << 16):
        raise ValueError(f"image: PIL's mode {image.mode!r} says no range of values; convert it to mode 'L' or 'RGB'")
    if image.mode.startswith("I"):  # 16-bit grey, which PIL would clip at 255; as the file itself is read
        return (np.asarray(image) >> 8).astype(np.uint8)
    return np.asarray(image.convert("RGB"))


def list_images(folder: str) -> list[str]:
    """The images of a folder by their suffix, sorted by name, not those of folders in it; ValueError without one."""
    names = sorted(name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES))
    if not names:
        raise ValueError(f"{folder}: holds no image ({', '.join(SUFFIXES)})")
    return [os.path.join(folder, name) for name in names]


def shrink(image: np.ndarray, side: float) -> np.ndarray:
    """The image (height, width, 3) uint8, shrunk by area so that no side is longer than `side` pixels."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    width, height = (max(1, round(scale * length)) for length in image.shape[1::-1])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
