"""Headers of image files: format, stored size, orientation. No pixel is decoded, no more is read than the header."""

import contextlib
import itertools
import mmap
import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

# Found in a file's header; each is converted or handled by a rule of docs/data.md, and counted.
IMAGE_NOTES = ("image_of_several", "image_grey", "image_cmyk", "image_16_bit", "image_exif_rotated")

JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..SOF15 without DHT, JPG and DAC
# From the first FF to that of a marker with content: over padding, FF 00 in stray bytes, and markers without content.
# It matches at any FF and is possessive, so that no file makes the search slow.
_TO_MARKER = re.compile(rb"\xff(?:\xff*+[\x00\x01\xd0-\xd7]\xff)*+\xff*+")
_BARE = frozenset((0x00, 0x01, *range(0xD0, 0xD8)))
# In compressed data, FF 00 is a byte of it, FF D0 to FF D7 a restart, and FF FF padding.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_PNM = re.compile(rb"P[1-6]\s+(?:#[^\n]*\n\s*)*(\d{1,9})\s+(?:#[^\n]*\n\s*)*(\d{1,9})\s")
_PNM_HEADER = 4096  # bytes, comments included
_PNM_LARGEST = re.compile(_PNM.pattern + rb"\s*(?:#[^\n]*\n\s*)*(\d{1,9})\s")  # third; bitmaps, P1 and P4, have none
# Tags of TIFF, the first three also of EXIF.
_ORIENTATION, _WIDTH, _LENGTH, _EXTRA_SAMPLE = 0x112, 0x100, 0x101, 0x152
_NEXT = 0  # no tag: of `_tiff_entries` alone
_RAW_PROFILES = (b"Raw profile type exif\0", b"Raw profile type APP1\0")
_SIZES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # TIFF's types of whole numbers
# Quarter turns to the left, and the axis of a mirror after them (1: left to right), to EXIF's orientation.
_HEIF_TURNS = {
    (0, None): 1, (1, None): 8, (2, None): 3, (3, None): 6, (0, 1): 2, (1, 1): 7, (2, 1): 4, (3, 1): 5,
    (0, 0): 4, (1, 0): 5, (2, 0): 2, (3, 0): 7,
}  # fmt: skip

Buffer = bytes | mmap.mmap


class Header(NamedTuple):
    """What the header of an image says.

    `size` is (width, height) as stored, `notes` those of IMAGE_NOTES that apply (of grey, CMYK and 16 bits only for
    JPEG and PNG; of several pictures for animated PNG, WebP, AVIF and GIF, and for pages of TIFF), and `orientation`
    EXIF's: 1 is upright, 6 needs a quarter turn clockwise.
    """

    format: str
    size: tuple[int, int]
    orientation: int = 1
    notes: tuple[str, ...] = ()

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) after the turn that `orientation` asks for."""
        return self.size if self.orientation < 5 else self.size[::-1]


def read_header(data: Buffer) -> Header | None:
    """The header of a JPEG, PNG, WebP, TIFF, AVIF, GIF, BMP, PNM or JPEG 2000 file; None if it is none, or is cut."""
    head = bytes(data[:64])
    try:
        for starts, format, read in _FORMATS:
            if starts(head):
                size, orientation, *notes = read(data)
                found = (*notes, *[False] * (4 - len(notes)), orientation != 1)
                applies = tuple(note for note, has in zip(IMAGE_NOTES, found, strict=True) if has)
                return Header(format, size, orientation, applies) if min(size) > 0 else None
    except (struct.error, IndexError, KeyError, OverflowError, _Missing):
        pass
    return None


def check_decodable(data: bytes) -> None:
    """Raises ValueError for what OpenCV may decode to other pixels than the file's.

    That is a JPEG without an end marker of its own, a PNG of which a chunk reaches beyond the file, and a PNM whose
    largest value is not 255 or 65535.
    """
    # Some OpenCV versions fill the missing part of a cut JPEG with grey and only warn. A film, another picture or
    # padding may follow the end marker, and an embedded thumbnail has one too, so the markers are walked.
    if data[:2] == b"\xff\xd8" and data[-2:] != b"\xff\xd9":
        with contextlib.suppress(struct.error):  # cut inside a length
            if any(marker == 0xD9 for marker, _, _ in jpeg_segments(data)):
                return
        raise ValueError("the JPEG is cut short: no end marker")
    # OpenCV reserves what the length of a chunk says.
    if data[:8] == b"\x89PNG\r\n\x1a\n" and not any(kind == b"IEND" for kind, _, _ in _png_chunks(data)):
        raise ValueError("the PNG is cut short: a chunk reaches beyond the end of the file")
    # OpenCV takes every value as one of 8 or 16 bits, which makes the picture dark.
    if data[:2] in (b"P2", b"P3", b"P5", b"P6"):
        found = _PNM_LARGEST.match(data[:_PNM_HEADER])
        if found is None or int(found[3]) not in (255, 65535):
            largest = int(found[3]) if found else "missing"
            raise ValueError(f"the PNM's largest value is {largest}: must be 255 or 65535")


def tiff_as_stored(data: bytes) -> bytes:
    """The TIFF file, changed so that its pixels are decoded as they are stored: not turned, nor multiplied by alpha."""
    entries, changed = _tiff_entries(data), bytearray(data)
    for tag, said in ((_ORIENTATION, range(2, 9)), (_EXTRA_SAMPLE, (2,))):
        if tag in entries and _value(data, entries[tag]) in said:
            order, place, kind = entries[tag]
            struct.pack_into(order + _SIZES[kind], changed, place, 1)  # upright; alpha that is multiplied already
    return bytes(changed)


class _Missing(Exception):
    """The part that holds the size is not there."""


Found = tuple  # size, orientation, and whether it has several pictures, is grey, CMYK, of 16 bits, where that is known


def jpeg_segments(data: Buffer) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, start, end) of every segment's content up to the end marker, walking over compressed data."""
    place = 2
    # Stray bytes before a marker are passed over, as by libjpeg.
    while (found := _TO_MARKER.search(data, place)) and found.end() < len(data):
        marker, place = data[found.end()], found.end() + 1
        if marker in _BARE:
            continue
        length = 0 if marker == 0xD9 else struct.unpack_from(">H", data, place)[0]
        yield marker, place + 2, place + length
        if length < 2:
            return
        place += length
        if marker == 0xDA:
            following = _NEXT_MARKER.search(data, place)
            place = following.start() if following else len(data)


def _jpeg(data: Buffer) -> Found:
    exif = b""
    for marker, start, end in jpeg_segments(data):
        if marker in JPEG_FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, start)
            return (width, height), _exif(exif), False, channels < 3, channels == 4, bits > 8
        if marker == 0xE1 and data[start : start + 6] == b"Exif\0\0":
            exif = exif or data[start + 6 : end]
    raise _Missing


def _png_chunks(data: Buffer) -> Iterator[tuple[bytes, int, int]]:
    """Yields (type, start, end) of the chunks that lie inside the data."""
    place = 8
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if place + 12 + length > len(data):
            return
        yield kind, place + 8, place + 8 + length
        place += 12 + length


def _png_exif(data: Buffer, kind: bytes, start: int, end: int) -> bytes:
    """The EXIF block of a chunk eXIf, or of the text that older tools wrote: a name, a length, then hexadecimal."""
    if kind == b"eXIf":
        return data[start:end]
    if kind not in (b"tEXt", b"zTXt") or not data[start : start + 22].startswith(_RAW_PROFILES):
        return b""
    text = data[start:end].partition(b"\0")[2]
    try:
        text = zlib.decompressobj().decompress(text[1:], 1 << 18) if kind == b"zTXt" else text
        return bytes.fromhex("".join(text.decode("ascii").split()[2:])).removeprefix(b"Exif\0\0")
    except (zlib.error, ValueError):
        return b""


def _png(data: Buffer) -> Found:
    width, height, bits, color = struct.unpack_from(">IIBB", data, 16)
    exif = next((found for chunk in _png_chunks(data) if (found := _png_exif(data, *chunk))), b"")
    before = itertools.takewhile(lambda kind: kind != b"IDAT", (kind for kind, *_ in _png_chunks(data)))
    return (width, height), _exif(exif), b"acTL" in before, color in (0, 4), False, bits > 8


def _webp(data: Buffer) -> Found:
    place, size, exif, several = 12, None, b"", False
    while place + 8 <= len(data) and not (size and exif):
        kind, length = struct.unpack_from("<4sI", data, place)
        start = place + 8
        if kind == b"VP8X":
            size = tuple(1 + int.from_bytes(data[start + 4 + k : start + 7 + k], "little") for k in (0, 3))
            several = bool(data[start] & 2)
        elif kind == b"VP8L" and size is None:
            (bits,) = struct.unpack_from("<I", data, start + 1)
            size = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif kind == b"VP8 " and size is None:
            size = tuple(side & 0x3FFF for side in struct.unpack_from("<HH", data, start + 6))
        elif kind == b"EXIF":
            exif = data[start : start + length].removeprefix(b"Exif\0\0")
        place = start + length + length % 2
    if size is None:
        raise _Missing
    return size, _exif(exif), several


def _tiff_entries(data: Buffer) -> dict[int, tuple[str, int, int]]:
    """(byte order, place of the value, type) of the whole numbers in the first directory of a TIFF or BigTIFF.

    The key 0, which is no tag, has the place of the next directory.
    """
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    big = struct.unpack_from(order + "H", data, 2) == (43,)
    (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, place)
    place, step, value = place + (8 if big else 2), 20 if big else 12, 12 if big else 8
    found: dict[int, tuple[str, int, int]] = {_NEXT: (order, place + count * step, 16 if big else 4)}
    for entry in range(place, min(place + count * step, len(data) - step + 1), step):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if kind in _SIZES:
            found.setdefault(tag, (order, entry + value, kind))
    return found


def _tiff(data: Buffer) -> Found:
    entries = _tiff_entries(data)
    width, height = (_value(data, entries[tag]) for tag in (_WIDTH, _LENGTH))
    several = False
    with contextlib.suppress(struct.error, OverflowError):  # nothing follows the directory
        several = _value(data, entries[_NEXT]) > 0
    return (width, height), _orientation(data, entries), several


def _value(data: Buffer, entry: tuple[str, int, int]) -> int:
    order, place, kind = entry
    return struct.unpack_from(order + _SIZES[kind], data, place)[0]


def _orientation(data: Buffer, entries: dict[int, tuple[str, int, int]]) -> int:
    found = _value(data, entries[_ORIENTATION]) if _ORIENTATION in entries else 1
    return found if 1 <= found <= 8 else 1


def _exif(data: bytes) -> int:
    """The orientation in an EXIF block, a TIFF without pixels; 1 if it has none or is damaged."""
    try:
        return _orientation(data, _tiff_entries(data)) if data else 1
    except (struct.error, IndexError, KeyError, OverflowError):
        return 1


def _boxes(data: Buffer, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields (type, start, end) of the content of the boxes of an ISO media file, such as AVIF and JPEG 2000."""
    while start + 8 <= end:
        length, kind = struct.unpack_from(">I4s", data, start)
        body = start + (16 if length == 1 else 8)
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, start + 8)
        last = end if length == 0 else start + length
        if not body <= last <= end:
            return
        yield kind, body, last
        start = last


def _box(data: Buffer, start: int, end: int, kind: bytes) -> tuple[int, int]:
    for found, body, last in _boxes(data, start, end):
        if found == kind:
            return body, last
    raise _Missing


def _avif(data: Buffer) -> Found:
    """HEIF's own properties of the main picture count; its EXIF only repeats them (ISO 23008-12, 6.5.10)."""
    start, end = _box(data, 0, len(data), b"meta")
    meta = start + 4, end
    place, _ = _box(data, *meta, b"pitm")
    main = int.from_bytes(data[place + 4 : place + (8 if data[place] else 6)], "big")
    items = _box(data, *meta, b"iprp")
    properties = list(_boxes(data, *_box(data, *items, b"ipco")))
    place, _ = _box(data, *items, b"ipma")
    version, wide = data[place], data[place + 3] & 1
    (count,), place = struct.unpack_from(">I", data, place + 4), place + 8
    size, turns, mirror = None, 0, None
    for _ in range(count):
        item, number = struct.unpack_from(">IB" if version else ">HB", data, place)
        place += 5 if version else 3
        for k in range(number if item == main else 0):
            at = place + k * (1 + wide)
            index = int.from_bytes(data[at : at + 1 + wide], "big") & (0x7FFF if wide else 0x7F)
            kind, body, _ = properties[index - 1]
            if kind == b"ispe":
                size = struct.unpack_from(">II", data, body + 4)
            elif kind == b"irot":
                turns = data[body] & 3
            elif kind == b"imir":
                mirror = data[body] & 1
        place += number * (1 + wide)
    if size is None:
        raise _Missing
    brands = data[slice(*_box(data, 0, len(data), b"ftyp"))]
    return size, _HEIF_TURNS[turns, mirror], b"avis" in brands


def _gif(data: Buffer) -> Found:
    def table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    size, pictures, place = struct.unpack_from("<HH", data, 6), 0, 13 + table(data[10])
    with contextlib.suppress(IndexError):  # cut short: what is there counts
        while pictures < 2 and data[place] in (0x21, 0x2C):
            picture = data[place] == 0x2C
            pictures += picture
            place += 11 + table(data[place + 9]) if picture else 2
            while data[place]:
                place += 1 + data[place]
            place += 1
    return size, 1, pictures > 1


def _jpeg2000(data: Buffer) -> Found:
    place, _ = _box(data, *_box(data, 0, len(data), b"jp2h"), b"ihdr")
    height, width = struct.unpack_from(">II", data, place)
    return (width, height), 1


def _pnm(data: Buffer) -> Found:
    found = _PNM.match(data[:_PNM_HEADER])
    if found is None:
        raise _Missing
    return (int(found[1]), int(found[2])), 1


def _bmp(data: Buffer) -> Found:
    old = struct.unpack_from("<I", data, 14) == (12,)  # OS/2's header
    width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
    return (abs(width), abs(height)), 1  # a negative height runs from the top


# (whether the first bytes are of the format, its name, its reader)
_FORMATS = (
    (lambda head: head[:2] == b"\xff\xd8", "JPEG", _jpeg),
    (lambda head: head[:8] == b"\x89PNG\r\n\x1a\n", "PNG", _png),
    (lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", "WebP", _webp),
    (lambda head: head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF", _tiff),
    (lambda head: head[4:8] == b"ftyp" and (b"avif" in head[8:] or b"avis" in head[8:]), "AVIF", _avif),
    (lambda head: head[:6] in (b"GIF87a", b"GIF89a"), "GIF", _gif),
    (lambda head: head[:2] == b"BM", "BMP", _bmp),
    (lambda head: head[:12] == b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000", _jpeg2000),
    (lambda head: re.match(rb"P[1-6]\s", head) is not None, "PNM", _pnm),
)
FORMATS = tuple(name for _, name, _ in _FORMATS)
