"""Image files: what their headers say, their pixels, and the folder that they lie in."""

import os
import struct
from typing import NamedTuple, Protocol

import cv2
import numpy as np

# Found in a file's header; each is converted or ignored by a rule of docs/data.md, and counted by `build` and `browse`.
IMAGE_NOTES = ("image_grey", "image_cmyk", "image_16_bit", "image_exif_rotated")

_HEAD = 1 << 16  # bytes that hold the header of nearly every file
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..SOF15 without DHT, JPG and DAC
_ORIENTATION = 0x112


class Header(NamedTuple):
    """What the header of a JPEG or PNG says: (width, height) as stored, in pixels, and those of IMAGE_NOTES that apply.

    Read here because an image library takes three times as long a file, and AI Challenger's sizes need all headers.
    """

    size: tuple[int, int]
    notes: tuple[str, ...]


def read_header(data: bytes) -> Header | None:
    """The header of a JPEG or PNG from its first bytes; None for another format, or if the bytes end before it does."""
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg_header(data)
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            width, height, bits, color = struct.unpack_from(">IIBB", data, 16)
            return _header((width, height), color in (0, 4), False, bits > 8, False)
    except (struct.error, IndexError):
        pass
    return None


def _header(size: tuple[int, int], *applies: bool) -> Header:
    return Header(size, tuple(note for note, found in zip(IMAGE_NOTES, applies, strict=True) if found))


def _jpeg_header(data: bytes) -> Header | None:
    rotated, place = False, 2
    while data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        (length,) = struct.unpack_from(">H", data, place + 2)
        if marker in _JPEG_FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, place + 4)
            return _header((width, height), channels < 3, channels == 4, bits > 8, rotated)
        if marker == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0":
            rotated = _is_rotated(data[place + 10 : place + 2 + length])
        place += 2 + length
    return None


def _is_rotated(exif: bytes) -> bool:
    """Whether the first directory of an EXIF block (TIFF) has an orientation of 2 to 8; 1 is upright."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    try:
        if order is not None:
            (place,) = struct.unpack_from(f"{order}I", exif, 4)
            (entries,) = struct.unpack_from(f"{order}H", exif, place)
            for entry in range(place + 2, place + 2 + 12 * entries, 12):
                tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
                if tag == _ORIENTATION:
                    return 2 <= value <= 8
    except struct.error:
        pass
    return False


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


class ImageStore(Protocol):
    """Encoded images by file name."""

    def place(self, name: str) -> str:
        """Where the image is, for reports."""

    def problem(self, name: str) -> str | None:
        """The rule of docs/data.md that the file name breaks, or None if there is such an image."""

    def read(self, name: str) -> bytes:
        """The file's bytes; raises OSError or ValueError where it cannot be read."""

    def size(self, name: str) -> tuple[int, int] | None:
        """(width, height) in pixels, for annotations that do not say it; None where it is not known."""


def climbs_out(name: str) -> bool:
    """Whether a file name is absolute, or leaves the folder that it is relative to."""
    path = os.path.normpath(name)
    return os.path.isabs(path) or path.split(os.sep)[0] in ("..", ".")


class ImageFolder:
    """The images of a folder and its sub-folders; an `ImageStore`."""

    def __init__(self, path: str):
        """Raises FileNotFoundError or ValueError if the folder does not exist or is empty."""
        if not os.path.isdir(path):
            raise FileNotFoundError(f"{path}: no such image folder (data.root joined with the images field)")
        with os.scandir(path) as entries:
            if next(entries, None) is None:
                raise ValueError(f"{path}: the image folder is empty")
        self._path = path
        self._listings: dict[str, set[str]] = {}

    def __getstate__(self):
        return {"_path": self._path, "_listings": {}}  # a worker reads and lists nothing

    def place(self, name: str) -> str:
        """The path of a file."""
        return os.path.join(self._path, name)

    def problem(self, name: str) -> str | None:
        """`image_outside_folder`, `image_missing` or None; a folder is listed once, not a file at a time."""
        if climbs_out(name):
            return "image_outside_folder"
        folder, base = os.path.split(os.path.normpath(name))
        if folder not in self._listings:
            full = os.path.join(self._path, folder)
            self._listings[folder] = set(os.listdir(full)) if os.path.isdir(full) else set()
        return None if base in self._listings[folder] else "image_missing"

    def read(self, name: str) -> bytes:
        """The file's bytes."""
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
        """(width, height) of a JPEG or PNG as its header says; None where there is no such image."""
        header = self.header(name)
        return header.size if header else None
