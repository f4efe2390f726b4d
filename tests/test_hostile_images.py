"""Images that would take endless memory or time are refused before anything is decoded."""

import os
import pickle
import struct
import zlib

import cv2
import numpy as np
import pytest

from dpose_jax.data.image_files import MAX_PIXELS, MAX_SIDE, ImageFolder, decode_image, read_file
from dpose_jax.data.image_headers import Header, read_header
from dpose_jax.inference.images import load_image
from dpose_jax.inference.video import VideoReader

PIXELS = np.random.default_rng(0).integers(0, 256, (36, 40, 3), np.uint8)
FORMATS = (".jpg", ".png", ".webp", ".tif", ".avif", ".gif", ".bmp", ".ppm", ".jp2")


def encoded(suffix):
    return cv2.imencode(suffix, PIXELS)[1].tobytes()


@pytest.fixture
def nothing_decodes(monkeypatch):
    def refuse(*unused):
        raise AssertionError("was handed to OpenCV")

    monkeypatch.setattr(cv2, "imdecode", refuse)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def huge(suffix, side=30_000):
    """A file of the format whose header says side x side."""
    big, small = (struct.pack(order + "I", side) for order in "><")
    if suffix == ".png":
        content = zlib.compress(bytes(1_000_000), 9)
        return (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", big + big + b"\x08\2\0\0\0")
            + chunk(b"IDAT", content)
            + chunk(b"IEND", b"")
        )
    data, high, wide = bytearray(encoded(suffix)), *(struct.pack(">H", n) for n in PIXELS.shape[:2])
    if suffix == ".jpg":
        return bytes(data).replace(b"\x08" + high + wide, b"\x08" + 2 * struct.pack(">H", side))
    if suffix == ".ppm":
        return bytes(data).replace(b"40 36", b"%d %d" % (side, side), 1)
    if suffix == ".gif":
        data[6:10] = 2 * struct.pack("<H", side)
    elif suffix == ".bmp":
        data[18:26] = small + small
    elif suffix == ".webp":  # an extended header before the pixels
        extended = b"VP8X" + struct.pack("<II", 10, 0) + 2 * struct.pack("<I", 16_000)[:3]
        return bytes(data[:12]) + extended + bytes(data[12:])
    elif suffix == ".tif":
        for tag in (0x100, 0x101):
            place = data.index(struct.pack("<HH", tag, 3))  # a SHORT
            data[place + 8 : place + 10] = struct.pack("<H", side)
    else:  # AVIF and JPEG 2000: height and width in either order
        kind, skip = (b"ispe", 8) if suffix == ".avif" else (b"ihdr", 4)
        place = data.index(kind) + skip
        data[place : place + 8] = big + big
    return bytes(data)


@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if suffix != ".webp"])
def test_a_huge_picture_is_refused_by_its_header(suffix, nothing_decodes):
    data = huge(suffix)
    assert read_header(data).size == (30_000, 30_000) and len(data) < 10_000
    with pytest.raises(ValueError, match=f"has 30000 x 30000 pixels, more than {MAX_PIXELS:,}"):
        decode_image(data)


def test_a_longer_side_than_a_crop_can_be_cut_from_is_refused(tmp_path, nothing_decodes):
    """As an array, as a file, and as a record of a set, which is then counted."""
    pixels = np.zeros((MAX_SIDE + 1, 2, 3), np.uint8)
    words = f"2 x {MAX_SIDE + 1}"
    (tmp_path / "long.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    with pytest.raises(ValueError, match=f"sides must be 1 to {MAX_SIDE} pixels, got {words}"):
        load_image(pixels)
    with pytest.raises(ValueError, match=rf"long\.png: has {words} pixels, more than {MAX_SIDE:,} a side"):
        load_image(tmp_path / "long.png")
    folder = ImageFolder(str(tmp_path))
    with pytest.raises(ValueError, match=f"has {words} pixels"):
        folder.decode(folder.read("long.png"), pixels.shape[:2])


def test_a_webp_cannot_say_more_than_is_allowed():
    assert read_header(huge(".webp")).size == (16_001, 16_001)
    assert 16_384**2 <= MAX_PIXELS  # WebP's largest


@pytest.mark.parametrize("length", [1_000, 2**31 - 1, 2**32 - 1])
def test_a_png_whose_chunk_lies_about_its_length_is_cut_short(length, nothing_decodes, tmp_path):
    data = bytearray(encoded(".png"))
    place = data.index(b"IDAT") - 4
    data[place : place + 4] = struct.pack(">I", len(data) + length if length < 2**31 else length)
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.png: the PNG is cut short"):
        load_image(tmp_path / "a.png")


def test_a_film_behind_a_jpeg_is_no_part_of_it():
    """Motion photos: the end marker of the picture counts, whatever the bytes behind it hold."""
    jpeg = encoded(".jpg")
    for quality, flag in ((95, 0), (95, 1), (30, 1)):
        jpeg = cv2.imencode(
            ".jpg", PIXELS, [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, flag,
                             cv2.IMWRITE_JPEG_RST_INTERVAL, 1 - flag]
        )[1].tobytes()  # fmt: skip
        for seed in range(5):
            film = b"\0\0\0\x18ftypmp42" + np.random.default_rng(seed).integers(0, 256, 200_000, np.uint8).tobytes()
            np.testing.assert_array_equal(decode_image(jpeg + film), decode_image(jpeg))
        for cut in (len(jpeg) - 2, len(jpeg) - 40, 700):
            with pytest.raises(ValueError, match="cut short"):
                decode_image(jpeg[:cut])


def test_only_regular_files_are_read(tmp_path):
    """Opening a FIFO that nobody writes to would never return."""
    os.mkfifo(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "a.mp4")
    (tmp_path / "empty.jpg").touch()
    folder = pickle.loads(pickle.dumps(ImageFolder(str(tmp_path))))
    for call in (read_file, load_image, VideoReader):
        with pytest.raises(OSError, match=r"a\.(jpg|mp4): is no regular file"):
            call(str(tmp_path / ("a.mp4" if call is VideoReader else "a.jpg")))
    with pytest.raises(OSError, match="no regular file"):
        folder.read("a.jpg")
    assert folder.header("a.jpg") is folder.size("a.jpg") is folder.header("empty.jpg") is None
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(2**31 + 1)
    with pytest.raises(OSError, match="has 2147483649 bytes, more than"):
        folder.read("sparse.jpg")


@pytest.mark.parametrize("suffix", FORMATS)
def test_damaged_headers_give_none_or_a_header(suffix):
    data, rng = encoded(suffix), np.random.default_rng(0)
    assert read_header(data).size == (40, 36)
    for cut in range(min(len(data), 700)):
        assert isinstance(read_header(data[:cut]), Header | None)
    for _ in range(500):
        damaged = bytearray(data)
        for place in rng.integers(2, min(len(data), 400), rng.integers(1, 6)):
            damaged[place] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        assert isinstance(read_header(bytes(damaged)), Header | None)


def test_padding_and_empty_markers_take_no_time():
    """A file of them is walked by one expression each, not a marker at a time."""
    jpeg = encoded(".jpg")
    for filling in (b"\xff" * 4_000_000, b"\xff\xd0" * 2_000_000, b"\xff\xff\x01" * 1_000_000, b"\xff\0" * 2_000_000):
        assert read_header(jpeg[:2] + filling + jpeg[2:]).size == (40, 36)
        assert read_header(jpeg[:2] + filling) is None
    np.testing.assert_array_equal(decode_image(jpeg + b"\xff" * 100), decode_image(jpeg))
    stray = jpeg[:20] + b"\0\1\xff\0\2" + jpeg[20:]  # before the second marker; libjpeg reads it
    np.testing.assert_array_equal(decode_image(stray), decode_image(jpeg))
