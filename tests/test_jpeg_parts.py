"""Parts of JPEGs: the same pixels as in the whole, whatever the format."""

import shutil

import cv2
import numpy as np
import pytest
from image_files import exif_turned

from dpose_jax.data import crop, image_files
from dpose_jax.data.image_files import decode_image
from dpose_jax.data.jpeg_parts import Part, cut, decode_part, tile_blocks, with_tiles

SAMPLING = {"4:2:0": 0x221111, "4:2:2": 0x211111, "4:4:4": 0x111111, "4:4:0": 0x121111, "4:1:1": 0x411111}
WINDOWS = [(70, 40, 90, 61), (0, 0, 1, 1), (150, 100, 400, 300), (-50, -50, -20, -20), (500, 60, 600, 70)]


def picture(height, width, seed=0):
    """Smooth colours with noise and lines, which chroma's interpolation smears over the borders of blocks."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([127 + 120 * np.sin(x / 9 + k) * np.cos(y / (7 + k)) for k in range(3)], axis=-1)
    image[:, ::7] = np.random.default_rng(seed).integers(0, 256, (1, 3))
    return np.clip(image + np.random.default_rng(seed).normal(0, 9, image.shape), 0, 255).astype(np.uint8)


def encoded(image, interval=0, sampling=0x221111, **flags):
    options = {"JPEG_QUALITY": 90, "JPEG_RST_INTERVAL": interval, "JPEG_SAMPLING_FACTOR": sampling} | flags
    listed = [number for name, value in options.items() for number in (getattr(cv2, f"IMWRITE_{name}"), value)]
    return cv2.imencode(".jpg", image, listed)[1].tobytes()


def check(data, window):
    """Whether a part was decoded: it is as large as the whole, and equal to it within the window."""
    whole, part = decode_image(data), decode_image(data, window=window)
    assert part.shape == whole.shape
    left, top, right, bottom = np.clip(window, 0, np.tile(whole.shape[1::-1], 2))
    np.testing.assert_array_equal(part[top:bottom, left:right], whole[top:bottom, left:right])
    return not np.array_equal(part, whole)


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("size", [(128, 192), (121, 185), (117, 333)])
@pytest.mark.parametrize("optimize", [0, 1])
def test_windows_have_the_pixels_of_the_whole(size, sampling, optimize):
    block = 8 * (SAMPLING[sampling] >> 20)
    interval = tile_blocks(size[1], block)
    data = encoded(picture(*size), interval, SAMPLING[sampling], JPEG_OPTIMIZE=optimize)
    assert all([check(data, window) for window in WINDOWS])
    assert not check(data, (0, 0, size[1], size[0]))


def test_a_single_channel_has_blocks_of_8_pixels():
    data = encoded(picture(120, 192)[..., 0], tile_blocks(192, 8))
    assert all([check(data, window) for window in WINDOWS])


def test_tiles_divide_a_row():
    assert [tile_blocks(*one) for one in ((640, 8), (640, 16), (481, 16), (30, 16), (1, 8))] == [8, 4, 31, 2, 1]


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture(120, 192)),
        encoded(picture(120, 192), 5),
        encoded(picture(120, 192), 4).replace(b"\xff\xd3", b"\xff\xd5", 1),
        encoded(picture(120, 192), 4).replace(b"\xff\xd3", b"\0\0", 1),
    ],
    ids=["no markers", "markers across rows", "out of turn", "one is missing"],
)
def test_without_tiles_the_rows_above_are_decoded(data):
    for window in WINDOWS:
        part = cut(data, window)
        assert (part is None) == (window[3] > 110)
        assert part is None or (part.origin == (0, 0) and part.size[0] == 192)
        assert check(data, window) == (part is not None)
    cut_only = decode_image(data, window=WINDOWS[0])
    assert not cut_only[80:].any() and cut_only[:61].any()


def test_parts_say_nothing_on_stderr(capfd):
    """libjpeg's own warning is that there is more behind the last row."""
    decode_image(encoded(picture(120, 192)), window=WINDOWS[0])
    assert capfd.readouterr().err == ""


def test_a_progressive_jpeg_is_decoded_whole():
    data = encoded(picture(120, 192), 4, JPEG_PROGRESSIVE=1)
    assert cut(data, WINDOWS[0]) is None and not check(data, WINDOWS[0])


def test_a_part_that_cannot_be_decoded_gives_the_whole(monkeypatch):
    data = encoded(picture(120, 192))
    monkeypatch.setattr(image_files, "decode_part", lambda part, size: None)
    assert not check(data, WINDOWS[0])
    for size in ((9, 9), (8, 9)):
        assert decode_part(Part(b"no JPEG", (0, 0), (9, 9)), size) is None


def test_every_cut_of_a_file_is_refused_or_read():
    data = encoded(picture(64, 96), 3)
    rng = np.random.default_rng(0)
    for end in range(0, len(data), 97):
        cut(data[:end], WINDOWS[1])
        broken = bytearray(data)
        broken[int(rng.integers(len(data)))] = int(rng.integers(256))
        cut(bytes(broken), WINDOWS[1])


def test_orientation_is_that_of_the_whole():
    turned = exif_turned(encoded(picture(120, 192), 3))
    assert check(turned, WINDOWS[0])
    whole = decode_image(turned, upright=True)
    np.testing.assert_array_equal(decode_image(turned, upright=True, window=WINDOWS[0]), whole)


@pytest.mark.parametrize("warp", ["unbiased", "rounded"])
@pytest.mark.parametrize("interval", [0, 4])
def test_crops_are_equal_to_the_bit(warp, interval):
    """Of the crops `warp_image` makes, whatever the view: turned, mirrored, partly or wholly outside."""
    rng, spec = np.random.default_rng(1), crop.CropSpec((64, 48), 1.25, warp)
    data, parts = encoded(picture(240, 320), interval), 0
    whole = decode_image(data)
    for _ in range(200):
        size = np.array([0.75, 1]) * 2 ** rng.uniform(3, 8)
        view = crop.View(rng.uniform(-60, 380, 2), size, rng.uniform(-90, 90), bool(rng.random() < 0.5))
        part = decode_image(data, window=crop.view_window(view))
        parts += not np.array_equal(part, whole)
        np.testing.assert_array_equal(crop.warp_image(part, view, spec), crop.warp_image(whole, view, spec))
    assert parts > (120 if interval else 80)


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.4, 0.37)])
def test_crops_of_a_stored_part_are_equal_to_the_bit(scale):
    """Its window holds all pixels that are sampled, and leaves some out, also where it was shrunk."""
    rng, spec, origin, parts = np.random.default_rng(1), crop.CropSpec((64, 48), 1.25, "unbiased"), (37, 21), 0
    data = encoded(picture(240, 320), 20)
    whole = decode_image(data)
    for _ in range(200):
        size = np.array([0.75, 1]) * 2 ** rng.uniform(3, 8) / scale
        view = crop.View(
            origin + rng.uniform(-20, 300, 2) / scale, size, rng.uniform(-90, 90), bool(rng.random() < 0.5)
        )
        part = decode_image(data, window=crop.part_window(crop.view_window(view), origin, scale))
        parts += not np.array_equal(part, whole)
        np.testing.assert_array_equal(
            crop.warp_image(part, view, spec, origin, scale), crop.warp_image(whole, view, spec, origin, scale)
        )
    assert parts > 80


@pytest.mark.skipif(shutil.which("jpegtran") is None, reason="needs jpegtran")
def test_tiles_are_added_without_a_change_of_pixels():
    for sampling in SAMPLING.values():
        plain = encoded(picture(117, 333), 0, sampling)
        tiled = with_tiles(plain)
        np.testing.assert_array_equal(decode_image(tiled), decode_image(plain))
        assert check(tiled, WINDOWS[0]) and with_tiles(tiled) == tiled
    progressive = encoded(picture(120, 192), JPEG_PROGRESSIVE=1)
    assert with_tiles(progressive) == progressive
