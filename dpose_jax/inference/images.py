"""A user's images, whatever they come as: upright RGB arrays."""

import os
import pathlib
from typing import Any

import cv2
import numpy as np

from dpose_jax.data.image_files import decode_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
# cv2.warpAffine addresses the pixels of its source by 16-bit numbers.
MAX_SIDE = 32_766

ImageLike = str | os.PathLike | np.ndarray | Any


def load_image(image: ImageLike) -> np.ndarray:
    """Any image as (height, width, 3) uint8 RGB, upright: the EXIF orientation of a file or PIL image is followed.

    An image is the path of a file that OpenCV reads; an array (h, w, 3) uint8 RGB, (h, w, 4), whose alpha is dropped,
    (h, w) or (h, w, 1), grey; or a PIL image of any mode. Raises OSError if a file cannot be read, and ValueError,
    which names it, if it is no image, cut short, of another shape or dtype, empty, or above 32,766 pixels a side.
    """
    where = "image"
    if isinstance(image, str | os.PathLike):
        where = os.fspath(image)
        try:
            image = decode_image(pathlib.Path(image).read_bytes(), upright=True)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    elif hasattr(image, "getexif") and hasattr(image, "convert"):
        from PIL import ImageOps  # whoever passes a PIL image has it

        image = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))  # type: ignore[arg-type]
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{where}: must be a path, a uint8 array or a PIL image, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ValueError(f"{where}: must be (h, w, 3) uint8 RGB, got {image.shape} {image.dtype}")
    if not 1 <= min(image.shape[:2]) <= max(image.shape[:2]) <= MAX_SIDE:
        raise ValueError(f"{where}: sides must be 1 to {MAX_SIDE} pixels, got {image.shape[1]} x {image.shape[0]}")
    is_grey = image.ndim == 2 or image.shape[2] == 1
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if is_grey else image[..., :3]


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
