"""Image files: what their headers say, their pixels, and the folder that they lie in."""

import os
import re
import struct
from typing import NamedTuple

import cv2
import numpy as np

# Found in a file's header; each is converted or ignored by a rule of docs/data.md, and counted by `build` and `browse`.
IMAGE_NOTES = ("image_grey", "image_cmyk", "image_16_bit", "image_exif_rotated")

_HEAD = 1 << 16  # bytes that hold the header of nearly every file
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..SOF15 without DHT, JPG and DAC
# EXIF's orientation entry in either byte order: tag 0x112, type SHORT, count 1, value. 1 is upright, 2 to 8 are not.
_ORIENTATION = re.compile(rb"\x12\x01\x03\0\x01\0\0\0([\x01-\x08])\0|\x01\x12\0\x03\0\0\0\x01\0([\x01-\x08])")


class Header(NamedTuple):
    """What the header of a JPEG or PNG says: (width, height) as stored, and those of IMAGE_NOTES that apply."""

    size: tuple[int, int]
    notes: tuple[str, ...]


def read_header(data: bytes) -> Header | None:
    """The header of a JPEG or PNG from its first bytes; None for another format, or if the bytes end before it does."""
    # Read here because an image library takes three times as long a file, and AI Challenger's sizes need all headers.
    rotated, place = False, 2
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            width, height, bits, color = struct.unpack_from(">IIBB", data, 16)
            return _header((width, height), color in (0, 4), False, bits > 8, False)
        while data[:2] == b"\xff\xd8" and data[place] == 0xFF:
            marker = data[place + 1]
            if marker == 0xFF:  # fill byte
                place += 1
                continue
            (length,) = struct.unpack_from(">H", data, place + 2)
            if marker in _JPEG_FRAMES:
                bits, height, width, channels = struct.unpack_from(">BHHB", data, place + 4)
                return _header((width, height), channels < 3, channels == 4, bits > 8, rotated)
            if marker == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0":
                found = _ORIENTATION.search(data, place + 10, place + 2 + length)
                rotated = found is not None and b"\1" not in found.groups()
            place += 2 + length
    except (struct.error, IndexError):
        pass
    return None


def _header(size: tuple[int, int], *applies: bool) -> Header:
    return Header(size, tuple(note for note, found in zip(IMAGE_NOTES, applies, strict=True) if found))


def decode_image(data: bytes, *, upright: bool = False) -> np.ndarray:
    """Decodes an image file to (height, width, 3) uint8 RGB; grey, CMYK and 16-bit are converted, alpha is dropped.

    EXIF orientation is ignored, because annotations refer to stored pixels. With `upright` it is applied, as photo
    viewers do. Raises ValueError if the data is empty, cut short or no image.
    """
    if not data:
        raise ValueError("the file is empty")
    # Some OpenCV versions fill the missing part of a cut JPEG with grey and only warn. Padding may follow the end
    # marker, and an embedded thumbnail has one too, so the marker must come after the last scan.
    if data[:2] == b"\xff\xd8" and data[-2:] != b"\xff\xd9" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise ValueError("the JPEG is cut short: no end marker")
    flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"cannot be decoded: {error}") from error
    if image is None:
        raise ValueError("cannot be decoded: no image, or cut short")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


class ImageStore:
    """Encoded images of a folder by file name."""

    def __init__(self, path: str):
        self._path = path

    def place(self, name: str) -> str:
        """Where the image is, for reports."""
        return os.path.join(self._path, name)

    def problem(self, name: str) -> str | None:
        """The rule of docs/data.md that the file name breaks, or None if there is such an image."""
        path = os.path.normpath(name)
        if os.path.isabs(path) or path.split(os.sep)[0] in ("..", "."):
            return "image_outside_folder"
        return None if self._has(name) else "image_missing"

    def _has(self, name: str) -> bool:
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        """The file's bytes; raises OSError or ValueError where it cannot be read."""
        raise NotImplementedError

    def size(self, name: str) -> tuple[int, int] | None:
        """(width, height) in pixels, for annotations that do not say it; None where it is not known."""
        return None


class ImageFolder(ImageStore):
    """The image files of a folder and its sub-folders; each is listed once, not a file at a time."""

    def __init__(self, path: str):
        """Raises FileNotFoundError or ValueError if the folder does not exist or is empty."""
        if not os.path.isdir(path):
            raise FileNotFoundError(f"{path}: no such image folder (data.root joined with the images field)")
        super().__init__(path)
        self._listings = {"": set(os.listdir(path))}
        if not self._listings[""]:
            raise ValueError(f"{path}: the image folder is empty")

    def __getstate__(self):
        return {"_path": self._path, "_listings": {}}  # a worker lists nothing

    def _has(self, name: str) -> bool:
        folder, base = os.path.split(os.path.normpath(name))
        if folder not in self._listings:
            full = self.place(folder)
            self._listings[folder] = set(os.listdir(full)) if os.path.isdir(full) else set()
        return base in self._listings[folder]

    def read(self, name: str) -> bytes:
        with open(self.place(name), "rb") as file:
            return file.read()

    def header(self, name: str) -> Header | None:
        """What the header of a JPEG or PNG says; None where there is no such image, or it is another format."""
        if self.problem(name):
            return None
        with open(self.place(name), "rb") as file:
            head = file.read(_HEAD)
            return read_header(head) or read_header(head + file.read())

    def size(self, name: str) -> tuple[int, int] | None:
        header = self.header(name)
        return header.size if header else None
