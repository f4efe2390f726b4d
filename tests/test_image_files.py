"""Image files of every kind that data sets hold: what is read, what is noted, what is refused."""

import io
import pickle
import struct

import cv2
import numpy as np
import pytest
from image_files import CMYK_JPEG, CMYK_RGB, exif_turned
from PIL import Image

from dpose_jax.data.image_files import ImageFolder, decode_image, walk_files
from dpose_jax.data.image_headers import read_header


def test_a_cut_jpeg_with_a_whole_thumbnail_is_bad():
    data = cv2.imencode(".jpg", np.full((30, 40, 3), 99, np.uint8))[1].tobytes()
    thumbnail = b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data
    whole = data[:2] + thumbnail + data[2:]
    assert decode_image(whole).shape == (30, 40, 3)
    # Padding behind the end marker is common and harmless.
    assert decode_image(whole + b"\0" * 16).shape == (30, 40, 3)
    with pytest.raises(ValueError, match="no end marker"):
        decode_image(whole[:-2])


def test_pixel_formats():
    colour = np.random.default_rng(0).integers(0, 256, (6, 7, 3), np.uint8)

    def encoded(pixels):
        return cv2.imencode(".png", pixels)[1].tobytes()

    np.testing.assert_array_equal(decode_image(encoded(colour)), colour[..., ::-1])
    grey = colour[..., 0]
    np.testing.assert_array_equal(decode_image(encoded(grey)), np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(decode_image(encoded(colour.astype(np.uint16) * 257)), colour[..., ::-1])
    alpha = np.concatenate([colour, colour[..., :1]], axis=2)
    np.testing.assert_array_equal(decode_image(encoded(alpha)), colour[..., ::-1])


@pytest.mark.parametrize("largest", [1, 100, 255, 256, 4095, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_a_pnm_of_other_values_than_8_or_16_bits_is_refused(kind, largest):
    """White is white, or an error."""
    count, dtype = 2 * (3 if kind in (3, 6) else 1), ">u1" if largest < 256 else ">u2"
    values = b"%d " % largest * count if kind < 4 else np.full(count, largest, dtype).tobytes()
    data = b"P%d\n# by hand\n2 1 # wide\n%d\n" % (kind, largest) + values
    if largest in (255, 65535):
        assert (decode_image(data) == 255).all()
    else:
        with pytest.raises(ValueError, match=f"the PNM's largest value is {largest}: must be 255 or 65535"):
            decode_image(data)


def test_a_bitmap_has_no_largest_value():
    assert decode_image(b"P1\n2 1\n0 1\n")[0, :, 0].tolist() == decode_image(b"P4\n2 1\n\x40")[0, :, 0].tolist()


@pytest.mark.parametrize("format", ["TIFF", "PNG", "WEBP", "BMP", "JPEG2000", "AVIF"])
def test_colours_are_those_beside_alpha(format):
    file, colour = io.BytesIO(), (200, 100, 50)
    Image.new("RGBA", (16, 8), (*colour, 128)).save(file, format, **({"lossless": True} if format == "WEBP" else {}))
    np.testing.assert_allclose(decode_image(file.getvalue()), np.full((8, 16, 3), colour), atol=3)  # AVIF has a loss


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("channels", "extra"), [(4, 2), (4, 1), (4, 0), (2, 2), (3, None)])
def test_a_tiff_has_its_stored_colours(order, bits, channels, extra):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, channels), np.uint8)
    stored = pixels.astype(f"{order}u{bits // 8}") * (257 if bits == 16 else 1)
    depths, start = struct.pack(f"{order}{channels}H", *[bits] * channels), 8 + stored.nbytes
    fields = [(256, 6), (257, 4), (259, 1), (262, 1 if channels == 2 else 2), (273, 8), (277, channels), (278, 4)]
    fields += [(279, stored.nbytes)] + ([] if extra is None else [(338, extra)])
    # SHORTs stand at the front of an entry's four bytes; of the depths two fit, more stand behind the pixels.
    entries = [struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in fields]
    inside = depths if channels == 2 else struct.pack(f"{order}I", start)
    entries.insert(2, struct.pack(f"{order}HHI", 258, 3, channels) + inside)
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", start + len(depths))
    found = decode_image(head + stored.tobytes() + depths + directory)
    wanted = pixels[..., :3] if channels > 2 else np.repeat(pixels[..., :1], 3, axis=2)
    np.testing.assert_allclose(found, wanted, atol=1)  # OpenCV rounds 16 bits now and then


def test_cmyk_is_converted():
    image = decode_image(CMYK_JPEG)
    assert image.shape == (16, 24, 3)
    np.testing.assert_allclose(image[8, [4, 12, 20]], CMYK_RGB, atol=3)


def test_exif_orientation_is_ignored_unless_asked_for():
    data = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8))[1].tobytes()
    turned = exif_turned(data)
    np.testing.assert_array_equal(decode_image(turned), decode_image(data))
    np.testing.assert_array_equal(decode_image(turned, upright=True), np.rot90(decode_image(data), -1))


def of_several(count):
    """Files of every format that can hold several pictures, with `count` of them, of 8 x 16 pixels."""
    pixels = list(np.random.default_rng(0).integers(0, 256, (count, 8, 16, 3), np.uint8))
    (animation := cv2.Animation()).frames, animation.durations = pixels, [100] * count
    for ending in ("png", "webp", "gif", "avif"):
        done, data = cv2.imencodeanimation(f".{ending}", animation)
        assert done
        yield data.tobytes()
    yield cv2.imencodemulti(".tif", pixels)[1].tobytes()


def test_headers_agree_with_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    grey, deep = pixels[..., 0], pixels.astype(np.uint16) * 257
    jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
    progressive = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    files = [
        (jpeg, ()),
        (progressive, ()),
        (cv2.imencode(".jpg", grey)[1].tobytes(), ("image_grey",)),
        (cv2.imencode(".png", pixels)[1].tobytes(), ()),
        (cv2.imencode(".png", grey)[1].tobytes(), ("image_grey",)),
        (cv2.imencode(".png", deep)[1].tobytes(), ("image_16_bit",)),
        (cv2.imencode(".png", np.dstack([pixels, grey]))[1].tobytes(), ()),
        (exif_turned(jpeg), ("image_exif_rotated",)),
        (exif_turned(jpeg, order=">"), ("image_exif_rotated",)),
        (exif_turned(jpeg, orientation=1), ()),
        (CMYK_JPEG, ("image_cmyk",)),
    ]
    files += [(data, ()) for data in of_several(1)] + [(data, ("image_of_several",)) for data in of_several(2)]
    for data, notes in files:
        header = read_header(data)
        assert header.notes == notes, header.format
        assert header.size == decode_image(data).shape[1::-1]
    for nothing in (b"", b"\xff\xd8", b"\xff\xd8\xff", jpeg[:60], b"GIF89a", files[3][0][:20]):
        assert read_header(nothing) is None


def test_a_folder_names_problems_and_reads_sizes(tmp_path):
    (tmp_path / "images" / "deep").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(CMYK_JPEG)
    long_header = CMYK_JPEG[:2] + (b"\xff\xe2\xff\xff" + bytes(65533)) * 2 + CMYK_JPEG[2:]
    (tmp_path / "images" / "deep" / "1.jpg").write_bytes(long_header)
    (tmp_path / "images" / "text.jpg").write_text("no image")
    folder = pickle.loads(pickle.dumps(ImageFolder(str(tmp_path / "images"))))
    assert folder.size("deep/1.jpg") == (24, 16) and folder.problem("deep/1.jpg") is None
    assert folder.size("text.jpg") is None and folder.problem("text.jpg") is None
    for name in ("../secret.jpg", "deep/../../secret.jpg", str(tmp_path / "secret.jpg"), "."):
        assert folder.problem(name) == "image_outside_folder" and folder.size(name) is None
    assert folder.problem("2.jpg") == folder.problem("none/1.jpg") == "image_missing"
    assert folder.size("2.jpg") is None


def test_linked_folders_are_walked_once_and_own_names_come_first(tmp_path):
    for name in ("root/z/1.jpg", "root/.hidden/2.jpg", "other/deep/3.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(CMYK_JPEG)
    root = tmp_path / "root"
    for link, target in (("a", root / "z"), ("b", tmp_path / "other"), ("c", tmp_path / "other"), ("d", root)):
        (root / link).symlink_to(target)
    (tmp_path / "other" / "back").symlink_to(root)
    found = [(folder.removeprefix(str(root)), files) for folder, files in walk_files(str(root))]
    assert found == [("", []), ("/z", ["1.jpg"]), ("/b", []), ("/b/deep", ["3.jpg"])]
    assert [place for place, _ in walk_files(str(root), passed_over=[str(root / "z")])][1] == str(root / "b")
    assert next(walk_files(str(root), passed_over=[str(root)])) == (str(root), [])
    assert ImageFolder(str(root)).find("/elsewhere/b/deep/3.jpg") == "b/deep/3.jpg"
