"""EXIF orientation: one rule for all formats, and `data.orientation`."""

import io

import cv2
import numpy as np
import pytest
from coco_folder import content, ids, read, write
from image_files import exif_turned
from PIL import Image, ImageOps

from dpose_jax.data.image_files import ImageFolder, decode_image
from dpose_jax.data.image_headers import read_header
from dpose_jax.data.sample import BadRecordError
from dpose_jax.inference.images import load_image

# Four flat quarters of 32 pixels, which every codec keeps.
QUARTERS = np.repeat(
    np.repeat(np.array([[[250, 0, 0], [0, 0, 250]], [[0, 250, 0], [90, 90, 90]]], np.uint8), 32, 0), 64, 1
)
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")


def encoded(format, orientation):
    """The quarters with the orientation as Pillow writes it: in EXIF, TIFF's own tag, or AVIF's properties."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x112] = orientation
    tag = {"tiffinfo": {0x112: orientation}} if format == "TIFF" else {"exif": exif}
    Image.fromarray(QUARTERS).save(file, format, **tag)
    return file.getvalue()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_formats_are_turned_only_when_asked_for(format, orientation):
    data = encoded(format, orientation)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    header = read_header(data)
    assert header.orientation == orientation and header.size == QUARTERS.shape[1::-1]
    assert header.notes == (("image_exif_rotated",) if orientation > 1 else ())
    assert header.upright_size == upright.shape[1::-1]
    for found, wanted in ((decode_image(data), QUARTERS), (decode_image(data, upright=True), upright)):
        assert found.shape == wanted.shape and found.flags.c_contiguous
        assert np.abs(found.astype(int) - wanted).mean() < 5  # a wrong turn is off by more than 60


@pytest.mark.parametrize("order", "<>")
def test_exif_behind_the_pixels_and_in_either_byte_order_is_found(order, tmp_path):
    jpeg = exif_turned(cv2.imencode(".jpg", QUARTERS)[1].tobytes(), order, 8)
    assert read_header(jpeg).orientation == 8
    png = encoded("PNG", 8)
    start = png.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(png[start : start + 4], "big")
    late = png[:start] + png[end:-12] + png[start:end] + png[-12:]
    (tmp_path / "late.png").write_bytes(late)
    assert read_header(late).orientation == 8
    assert ImageFolder(str(tmp_path)).header("late.png").orientation == 8
    assert ImageFolder(str(tmp_path), upright=True).size("late.png") == (64, 128)
    np.testing.assert_array_equal(load_image(tmp_path / "late.png"), np.rot90(QUARTERS))


def turned_set(tmp_path, orientation, size):
    """A set of two pictures, the first with an orientation; its annotation gives `size`, (width, height)."""
    facts = content()
    facts["images"][0] |= {"file_name": "turned.jpg", "width": size[0], "height": size[1]}
    write(tmp_path, facts)
    stored = cv2.imread(str(tmp_path / "images" / "1.png"))
    jpeg = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()
    (tmp_path / "images" / "turned.jpg").write_bytes(exif_turned(jpeg, orientation=orientation))
    return decode_image(jpeg)


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, -1), (8, 1)])
def test_data_orientation_says_which_pixels_annotations_mean(orientation, turns, tmp_path):
    sizes = [(40, 30), (40, 30) if turns == 2 else (30, 40)]  # stored, upright
    pixels = turned_set(tmp_path, orientation, sizes[0])
    np.testing.assert_array_equal(read(tmp_path).read_image(0), pixels)
    turned_set(tmp_path, orientation, sizes[1])
    source = read(tmp_path, upright=True)
    np.testing.assert_array_equal(source.read_image(0), np.rot90(pixels, turns))
    assert ids(source) == [11, 12, 13] and source.image_notes()[1]["image_exif_rotated"] == 1
    np.testing.assert_array_equal(source.read_image(2), read(tmp_path).read_image(2))  # a picture without orientation


def test_a_size_that_exif_explains_names_the_field(tmp_path):
    turned_set(tmp_path, 6, (30, 40))
    with pytest.raises(BadRecordError, match=r"is 40 x 30 px, .* says 30 x 40: its EXIF orientation, 6, .*='upright'"):
        read(tmp_path).read_image(0)
    turned_set(tmp_path, 6, (40, 30))
    with pytest.raises(BadRecordError, match="is 30 x 40 px, .*='stored'"):
        read(tmp_path, upright=True).read_image(0)
    turned_set(tmp_path, 6, (41, 30))
    with pytest.raises(BadRecordError, match=r"says 41 x 30$"):
        read(tmp_path).read_image(0)


def test_ai_challengers_sizes_follow_the_orientation(tmp_path):
    """Its own format gives no size, so the header's is taken, turned or not."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(encoded("JPEG", 6))
    folder = str(tmp_path / "images")
    assert ImageFolder(folder).size("a.jpg") == (128, 64)
    assert ImageFolder(folder, upright=True).size("a.jpg") == (64, 128)


def test_pils_16_bit_grey_is_read_as_its_file(tmp_path):
    grey = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(8, 0)
    for name in ("g.png", "g.tif"):
        cv2.imwrite(str(tmp_path / name), grey)
        with Image.open(tmp_path / name) as image:
            np.testing.assert_array_equal(load_image(image), load_image(tmp_path / name))
            np.testing.assert_array_equal(load_image(image)[0, :, 0], grey[0] >> 8)
    np.testing.assert_array_equal(load_image(Image.fromarray(grey.astype(np.int32)))[0, :, 0], grey[0] >> 8)
    for unknown in (Image.fromarray(grey.astype(np.float32)), Image.fromarray(grey.astype(np.int32) * 3)):
        with pytest.raises(ValueError, match="image: PIL's mode '[FI]' says no range"):
            load_image(unknown)
