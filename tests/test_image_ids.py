"""Boxes belong to images by name, never by order; files are images by their content."""

import json
import os

import cv2
import numpy as np
import pytest

from dpose_jax.inference.boxes import BoxFile
from dpose_jax.inference.image_ids import NameIndex, natural, number_of
from dpose_jax.inference.images import is_image, list_images
from dpose_jax.workdir.files import write_bytes

ROW = {"category_id": 1, "bbox": [1, 2, 30, 40], "score": 0.9}


def detections(tmp_path, *image_ids, **options):
    rows = [ROW | {"image_id": number, "bbox": [place, 0, 9, 9]} for place, number in enumerate(image_ids)]
    (tmp_path / "b.json").write_text(json.dumps(rows))
    return BoxFile(str(tmp_path / "b.json"), **options)


def found(file, names, folder=""):
    """The place of every image's box in the file, by name."""
    boxes = {name: file.of(number) for name, number in zip(names, file.image_ids(names, folder), strict=True)}
    return {name: int(its[0][0]) for name, its in boxes.items() if its}


@pytest.mark.parametrize(
    ("image_ids", "names", "expected"),
    [
        (["photo_a"], ["photo_b.jpg", "photo_a.jpg"], {"photo_a.jpg": 0}),
        (["a.jpg", "v1.2"], ["v1.2.png", "a.jpg"], {"a.jpg": 0, "v1.2.png": 1}),
        (["139"], ["000000000139.jpg"], {"000000000139.jpg": 0}),
        ([139, 7], ["COCO_val2014_000000000139.jpg", "cover.jpg"], {"COCO_val2014_000000000139.jpg": 0}),
        ([285, 139], ["000000000139.jpg", "000000000285.jpg", "cover.jpg"],
         {"000000000139.jpg": 1, "000000000285.jpg": 0}),
        (["cam1/7", "cam2/7"], ["cam1/7.jpg", "cam2/7.jpg"], {"cam1/7.jpg": 0, "cam2/7.jpg": 1}),
    ],
)  # fmt: skip
def test_detections_find_images_by_name(tmp_path, image_ids, names, expected):
    file = detections(tmp_path, *image_ids)
    assert found(file, names) == expected and not file.problems
    assert len(file.notes) == (len(expected) < len(names))


def test_no_image_takes_boxes_by_order(tmp_path):
    names = ["frame_0000.jpg", "frame_0001.jpg", "frame_0002.jpg"]
    for image_ids in ([0, 1, 2], [1, 2, 3]):
        with pytest.raises(ValueError, match=r"'frame_0000.jpg' is no image_id of it, closest: '\d'.*--match=number"):
            detections(tmp_path, *image_ids).image_ids(names)
    assert found(detections(tmp_path, 0, 1, 2, by_number=True), names) == {name: i for i, name in enumerate(names)}
    assert found(detections(tmp_path, 1, 2, 3, by_number=True), names) == {names[1]: 0, names[2]: 1}


def test_what_means_several_images_stops(tmp_path):
    with pytest.raises(ValueError, match=r"image 7 could be each of 'a/7.jpg', 'b/7.jpg'"):
        detections(tmp_path, 7).image_ids(["a/7.jpg", "b/7.jpg"])
    with pytest.raises(ValueError, match=r"image 'a' could be each of 'a.jpg', 'a.png'"):
        detections(tmp_path, "a").image_ids(["a.jpg", "a.png"])


def listing(tmp_path, *names):
    images = [{"id": number, "file_name": name} for number, name in enumerate(names, 1)]
    entries = [{"id": i, "image_id": i, "category_id": 1, "bbox": [i, 0, 9, 9]} for i in range(1, len(names) + 1)]
    (tmp_path / "t.json").write_text(json.dumps({"images": images, "annotations": entries, "categories": None}))
    return BoxFile(str(tmp_path / "t.json"))


def test_listed_images_are_found_by_path(tmp_path):
    file = listing(tmp_path, "train/1.jpg", "val/1.jpg", "images\\2.jpg", "caf\u00e9.jpg", "old/3.jpg")
    names = ["train/1.jpg", "val/1.jpg", "images/2.jpg", "cafe\u0301.jpg", "new/3.jpg"]
    assert found(file, names) == dict(zip(names[:4], (1, 2, 3, 4), strict=True))
    assert file.notes == [f"{file.path}: no box for 1 of 5 images, as 'new/3.jpg'"]
    assert found(file, ["1.jpg"], "/data/val") == {"1.jpg": 2}
    assert found(file, ["3.jpg"]) == {"3.jpg": 5}
    with pytest.raises(ValueError, match=r"lists '1.jpg' under the ids \[1, 2\]; if they are of several folders"):
        file.image_ids(["1.jpg"], "/data/test")
    with pytest.raises(ValueError, match=r"'o/4.jpg' is no file_name of it, closest: 'old/3.jpg'"):
        file.image_ids(["o/4.jpg"])


def test_frames_of_a_video(tmp_path):
    file = listing(tmp_path, "frame_000000.PNG", "frame_000001.PNG")
    file.check_frames(3)
    assert [file.of(frame)[0][0] for frame in (0, 1)] == [1, 2] and file.of(2) == []
    for names in (["frame_01.png", "frame_02.png"], ["a.png"], ["a/0.png", "b/0.png"]):
        with pytest.raises(ValueError, match="must end in the frame, from 0"):
            listing(tmp_path, *names).check_frames(3)
    file = detections(tmp_path, 1, 2, 3)
    file.check_frames(3)
    assert file.problems == [f"{file.path}: image_id 3 is no frame, 0 to 2"]


def test_numbers_and_order_of_names():
    assert sorted(["img10.jpg", "img2.jpg", "a.jpg", "1.jpg"], key=natural) == [
        "1.jpg",
        "a.jpg",
        "img2.jpg",
        "img10.jpg",
    ]
    assert [number_of(name) for name in ("7.png", "a7.png", "9" * 19 + ".png", "9" * 30 + ".png")] == [
        7,
        None,
        None,
        None,
    ]
    assert number_of("cam2_frame0012.png", at_end=True) == 12 and number_of("a.png", at_end=True) is None
    assert NameIndex([("a.jpg", 1), ("sub/a.jpg", 2)]).find("sub/a.jpg", "") == {2}


def test_images_are_known_by_their_content(tmp_path):
    pixels = np.full((8, 9, 3), 90, np.uint8)
    jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
    readable = ["b10.jpe", "b2.jfif", "phone.heic", "no_ending", "sub/deep/a.jpg"]
    for name in readable:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg)
    for ending in ("gif", "ppm", "avif", "webp", "tiff"):
        cv2.imwrite(str(tmp_path / f"c.{ending}"), pixels)
    for name in ("._b2.jfif", "list.json", ".hidden/x.jpg", "out/pictures/b2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(jpeg)
    (tmp_path / "real.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(40))
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("text")
    os.symlink(tmp_path, tmp_path / "loop")
    names, others = list_images(str(tmp_path), str(tmp_path / "out"))
    assert names == ["b2.jfif", "b10.jpe", "c.avif", "c.gif", "c.ppm", "c.tiff", "c.webp", "no_ending", "phone.heic",
                     "sub/deep/a.jpg"]  # fmt: skip
    told = {os.path.basename(text.split(": ")[0]): text for text in others}
    assert set(told) == {"real.heic", "film.mp4", "empty.jpg", "text.jpg"}
    for name, words in (
        ("real.heic", "HEIC, which"),
        ("film.mp4", "a video"),
        ("empty.jpg", "is empty"),
        ("text.jpg", "no image"),
    ):
        assert words in told[name]
    assert (
        is_image(str(tmp_path / "b2.jfif")) and not is_image(str(tmp_path / "text.jpg")) and not is_image(str(tmp_path))
    )


def test_a_name_of_255_bytes_is_written(tmp_path):
    name = "\u4eba" * 83 + ".json"
    write_bytes(tmp_path / name, b"content")
    assert (tmp_path / name).read_bytes() == b"content" and len(list(tmp_path.iterdir())) == 1
