"""Parts of JPEGs: the blocks around a window alone, which decode to the same pixels as in the whole (ours).

A JPEG is decoded from its first row on: with another height in its header, as far as the window reaches. Restart
markers cut its compressed data into pieces that decode alone. Where as many pieces make a row of blocks, they are
tiles, and any rectangle of tiles is a JPEG by itself: the same header with another size.
"""

import shutil
import struct
import subprocess
from typing import NamedTuple

import numpy as np
import simplejpeg

from dpose_jax.data.image_headers import JPEG_FRAMES, jpeg_segments

Window = tuple[int, int, int, int]  # left, top, right, bottom in pixels; the last two exclusive

JPEGTRAN = "jpegtran"  # of libjpeg-turbo: rewrites a JPEG without decoding it to pixels
_SEQUENTIAL = 0xC0, 0xC1  # the frames whose restart markers cut rows of blocks; others come in several scans
_CONTEXT = 2  # pixels beyond a window that its chroma is interpolated from
_MOST = 0.7  # of the tiles: finding more of them takes as long as decoding all
_TILE = 48  # least width of a tile in pixels: narrower ones cost more bytes and time than they save


class _Layout(NamedTuple):
    """Of a JPEG: places in the file in bytes, sizes in pixels, `interval` in blocks between two restart markers."""

    frame: int  # the content of the frame's header
    scan: int  # the compressed data
    size: tuple[int, int]  # (width, height)
    block: tuple[int, int]  # of all channels together (an MCU)
    interval: int  # 0 without restart markers

    @property
    def across(self) -> int:
        """Blocks in a row."""
        return -(-self.size[0] // self.block[0])


def tile_blocks(width: int, block: int) -> int:
    """Blocks between the restart markers of tiles: the fewest that divide a row and make at least 48 pixels."""
    across = -(-width // block)
    divisors = [count for count in range(1, across + 1) if not across % count]
    return next((count for count in divisors if count * block >= _TILE), across)


class Part(NamedTuple):
    """A JPEG of its own, x, y of its first pixel in the whole, and its (width, height) in pixels."""

    data: bytes
    origin: tuple[int, int]
    size: tuple[int, int]


def cut(data: bytes, window: Window) -> Part | None:
    """The part of a JPEG that holds a window.

    Decoded by `decode_part`, the window's pixels are those of the whole. The part has the tiles around the window, or
    all rows down to its end if there are no tiles or most of them are needed. None if that is the whole, or the JPEG
    is progressive.
    """
    layout = _layout(data)
    if layout is None:
        return None
    return _tiles_around(data, layout, window) or _rows_above(data, layout, window[3])


def decode_part(part: Part, size: tuple[int, int]) -> np.ndarray | None:
    """The pixels of a part in an image of `size` (width, height), black elsewhere; None if they cannot be decoded.

    (height, width, 3) uint8 RGB.
    """
    (left, top), (width, height) = part.origin, part.size
    image = np.empty((size[1], size[0], 3), np.uint8)
    rows = image[top : top + height]
    image[:top], image[top + height :] = 0, 0
    # Not by OpenCV, whose libjpeg writes to stderr of each part that there is more behind its last row.
    try:
        if width == size[0]:
            simplejpeg.decode_jpeg(part.data, buffer=rows, strict=False)
        else:
            rows[:, :left], rows[:, left + width :] = 0, 0
            rows[:, left : left + width] = simplejpeg.decode_jpeg(part.data, strict=False)
    except ValueError:
        return None
    return image


def _rows_above(data: bytes, layout: _Layout, bottom: int) -> Part | None:
    (width, height), side = layout.size, layout.block[1]
    rows = max(1, -(-(bottom + _CONTEXT) // side)) * side
    if rows >= height:
        return None
    shorter = bytearray(data)
    struct.pack_into(">H", shorter, layout.frame + 1, rows)
    return Part(bytes(shorter), (0, 0), (width, rows))


def _tiles_around(data: bytes, layout: _Layout, window: Window) -> Part | None:
    if not layout.interval or layout.across % layout.interval:
        return None
    (width, height), columns = layout.size, layout.across // layout.interval
    rows = -(-height // layout.block[1])
    side = layout.interval * layout.block[0], layout.block[1]  # of a tile
    x, right = _tiles(window[0], window[2], width, side[0])
    y, bottom = _tiles(window[1], window[3], height, side[1])
    if (right - x) * (bottom - y) > _MOST * rows * columns:
        return None
    ends = _pieces(data, layout.scan)
    if ends is None or len(ends) != rows * columns:
        return None
    starts = np.concatenate([[layout.scan], ends[:-1] + 2]).reshape(rows, columns)[y:bottom, x]
    stops = ends.reshape(rows, columns)[y:bottom, x:right]
    body = bytearray(b"\xff\xd0".join(map(data.__getitem__, map(slice, starts.tolist(), stops[:, -1].tolist()))))
    # Counted anew: the markers within the lines, and those that join them.
    lengths = stops[:, -1] - starts + 2
    marks = (stops - starts[:, None] + (np.cumsum(lengths) - lengths)[:, None]).ravel()[:-1]
    np.frombuffer(body, np.uint8)[marks + 1] = 0xD0 + np.arange(len(marks)) % 8
    head, first = bytearray(data[: layout.scan]), (x * side[0], y * side[1])
    size = min(right * side[0], width) - first[0], min(bottom * side[1], height) - first[1]
    struct.pack_into(">HH", head, layout.frame + 1, *reversed(size))
    return Part(bytes(head + body + b"\xff\xd9"), first, size)


def check_jpegtran() -> None:
    """Raises ValueError if the program is missing."""
    if shutil.which(JPEGTRAN) is None:
        raise ValueError(f"{JPEGTRAN} is not installed: Debian's libjpeg-turbo-progs, or jpeg-turbo of Homebrew")


def with_tiles(data: bytes) -> bytes:
    """A JPEG with restart markers for tiles, rewritten by `jpegtran` to the same pixels; else `data`."""
    layout = _layout(data)
    if layout is None or (layout.interval and not layout.across % layout.interval):
        return data
    blocks = tile_blocks(layout.size[0], layout.block[0])
    command = [JPEGTRAN, "-copy", "all", "-optimize", "-restart", f"{blocks}B"]
    done = subprocess.run(command, input=data, capture_output=True)
    return data if done.returncode else done.stdout


def _layout(data: bytes) -> _Layout | None:
    """The layout of a JPEG of one sequential scan with 8 bits a channel; None for all else."""
    frame, interval = 0, 0
    try:
        for marker, start, end in jpeg_segments(data):
            if marker in _SEQUENTIAL:
                frame = start
            elif marker in JPEG_FRAMES:
                return None
            elif marker == 0xDD:
                (interval,) = struct.unpack_from(">H", data, start)
            elif marker == 0xDA:
                bits, height, width, channels = struct.unpack_from(">BHHB", data, frame)
                if not frame or bits != 8 or data[start] != channels or not min(width, height):
                    return None
                factors = [data[frame + 7 + 3 * k] for k in range(channels)]
                # Of a single channel the factors mean nothing: its blocks are of 8 pixels.
                most = (max(f >> 4 for f in factors), max(f & 15 for f in factors)) if channels > 1 else (1, 1)
                return _Layout(frame, end, (width, height), (8 * most[0], 8 * most[1]), interval) if min(most) else None
    except (struct.error, IndexError, ValueError):
        pass
    return None


def _pieces(data: bytes, scan: int) -> np.ndarray | None:
    """Where the pieces of the compressed data end; None if another marker, or one out of turn, is among them."""
    end = len(data) - 2 if data.endswith(b"\xff\xd9") else data.find(b"\xff\xd9", scan)
    content = np.frombuffer(data, np.uint8)[scan : max(end, scan)]
    places = np.flatnonzero(content[:-1] == 0xFF)
    kinds = content[places + 1]
    places, kinds = places[kinds != 0], kinds[kinds != 0]  # FF 00 is a byte of the data
    if end < scan or not np.array_equal(kinds, 0xD0 + np.arange(len(kinds)) % 8):
        return None
    return np.append(places + scan, end)


def _tiles(low: int, high: int, size: int, side: int) -> tuple[int, int]:
    """First and last + 1 of the tiles along an axis that hold [low, high) with its context, at least one."""
    last = -(-size // side)
    first = min(max((low - _CONTEXT) // side, 0), last - 1)
    return first, min(max(-(-(high + _CONTEXT) // side), first + 1), last)
