"""A user's images, whatever they come as: upright RGB arrays."""

import os
from typing import Any

import cv2
import numpy as np

from dpose_jax.data.image_files import MAX_SIDE, decode_image, read_file, walk_files
from dpose_jax.inference.image_ids import natural
from dpose_jax.workdir.files import placed

# Files that lie beside images and are none; every other file that cannot be read is reported.
BESIDE_IMAGES = (".json", ".jsonl", ".txt", ".csv", ".xml", ".yaml", ".yml", ".md", ".html", ".ini", ".db")

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
    low, high = image.getextrema() if image.mode == "I" else (0, 0)
    # Up to 255 they may be of 8 bits, which the shift below would make black.
    if image.mode == "F" or not 0 <= low <= high < 1 << 16 or 0 < high < 1 << 8:
        raise ValueError(f"image: PIL's mode {image.mode!r} says no range of values; convert it to mode 'L' or 'RGB'")
    if image.mode.startswith("I"):  # 16-bit grey, which PIL would clip at 255; as the file itself is read
        return (np.asarray(image) >> 8).astype(np.uint8)
    with placed(f"image: PIL's mode {image.mode!r}"):
        return np.asarray(image.convert("RGB"))


def is_utf8(path: str) -> bool:
    """Whether a path is UTF-8: OpenCV crashes on others, and neither JSON nor a terminal can hold them."""
    return path == path.encode(errors="replace").decode()


def is_image(path: str) -> bool:
    """Whether a file's content, not its name, is of a format that OpenCV reads; an animated GIF is a video."""
    if not os.path.isfile(path) or not os.path.getsize(path) or not cv2.haveImageReader(path):
        return False
    with open(path, "rb") as file:
        return file.read(4) != b"GIF8" or cv2.imcount(path) < 2


def list_images(folder: str, out: str = "") -> tuple[list[str], list[str]]:
    """Names of the images in a folder and its sub-folders, from `folder` on with "/", and what the other files are.

    Images are known by their content and stand in natural order (img2 before img10). Passed over are hidden files,
    those of BESIDE_IMAGES, and what an earlier prediction into the folder `out` has drawn. The texts name every other
    file. Raises ValueError if there is no image.
    """
    names, others = [], []
    drawn = [os.path.realpath(os.path.join(out, kind)) for kind in ("pictures", "denoising")] if out else []

    def unread(error: OSError) -> None:
        others.append(f"{error.filename}: cannot be listed: {error.strerror}")

    for place, files in walk_files(folder, passed_over=drawn, unlisted=unread):
        for name in files:
            path = os.path.join(place, name)
            if name[0] == "." or name.lower().endswith(BESIDE_IMAGES):
                continue
            if not is_utf8(path):
                others.append(f"{path!a}: its name is no UTF-8; rename it")
            elif is_image(path):
                names.append(os.path.relpath(path, folder).replace(os.sep, "/"))
            else:
                others.append(f"{path}: {why_no_image(path)}")
    if not names:
        raise ValueError(f"{folder}: holds no image that OpenCV can read" + "".join(f"; {text}" for text in others[:3]))
    return sorted(names, key=natural), sorted(others, key=natural)


def why_no_image(path: str) -> str:
    """What a file is, of which `is_image` is false."""
    if not os.path.isfile(path):
        return "is no file"
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not head:
        return "the file is empty"
    if head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1"):
        return "HEIC, which OpenCV cannot read; convert it to JPEG"
    if head[4:8] == b"ftyp" or head[:4] in (b"RIFF", b"GIF8", b"\x1aE\xdf\xa3"):
        return "a video; give it alone as --input"
    return "cannot be decoded: no image format that OpenCV knows"


def shrink(image: np.ndarray, side: float) -> np.ndarray:
    """The image (height, width, 3) uint8, shrunk by area so that no side is longer than `side` pixels."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    width, height = (max(1, round(scale * length)) for length in image.shape[1::-1])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
