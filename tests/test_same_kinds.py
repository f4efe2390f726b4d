"""Other inputs of the kinds of faults that the field reported: names, ids, boxes and labels by other tools' habits."""

import json
import os
import unicodedata
import zlib

import cv2
import numpy as np
import pytest
from coco_folder import TINY, content, person, read, write
from PIL import Image
from test_convert import LINE, write_set
from test_exports import folder
from test_image_ids import ROW, detections, found

from dpose_jax.data.categories import listed_categories, person_category
from dpose_jax.data.convert import convert_yolo
from dpose_jax.data.doubts import doubts, in_percent, like_centre
from dpose_jax.data.exports import as_results
from dpose_jax.data.image_headers import read_header
from dpose_jax.evaluation.results_file import score_files
from dpose_jax.inference.boxes import BoxFile
from dpose_jax.inference.images import list_images, load_image
from dpose_jax.inference.predict_files import predict
from dpose_jax.runtime.recipe_file import _RecipeFile
from dpose_jax.training.metrics import MetricsWriter


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("https://host/b/1.png?X-Signature=a/b", "b/1.png"),
        ("/data/local-files/?d=b/1.png", "b/1.png"),
        ("https://host/b/my%20photo.png", "b/my photo.png"),
        ("../../label-studio/data/upload/7/b/1.png", "b/1.png"),
        ("../a/../b/1.png", None),
        ("50%25.png", None),
    ],
)
def test_urls_and_paths_of_other_machines(tmp_path, name, file):
    assert folder(tmp_path, "a/1.png", "b/1.png", "b/my photo.png", "50%.png").find(name) == file


def test_results_find_images_by_number_or_name(tmp_path):
    images = [
        {"id": 3, "file_name": "a/x.v1.jpg"},
        {"id": 4, "file_name": "b/y.jpg"},
        {"id": 5, "file_name": "c/y.jpg"},
    ]
    asked = ["3", 4.0, "x.v1", "x.v1.jpg", "b/y", "y", "z", True]
    rows = [{"image_id": each, "category_id": 1.0} for each in asked]
    assert as_results(rows, images) == {"id_converted": 10, "image_by_name": 3}
    assert [row["image_id"] for row in rows] == [3, 4, 3, 3, 4, "y", "z", True]
    assert all(type(row["category_id"]) is int for row in rows)
    write(tmp_path, content(), [ROW | {"image_id": each, "bbox": [5, 4, 9, 9]} for each in ("1", "2.png", 2.0, "gone")])
    source = read(tmp_path, detections="boxes.json")
    assert [source[i].image_id for i in range(3)] == [1, 2, 2] and source.report()["detection_without_image"] == 1
    write(tmp_path, content(), [ROW | {"image_id": "gone"}])
    with pytest.raises(ValueError, match=r"boxes.json: no person is left.*the first: .* image_id 'gone'"):
        read(tmp_path, detections="boxes.json")


def scored(tmp_path, truth, rows):
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(rows))
    files = str(tmp_path / "truth.json"), str(tmp_path / "results.json")
    return [score_files(*files, TINY, use_area=True, engine=engine) for engine in ("hotcoco", "pycocotools")]


def test_scorer_takes_other_fields_and_names_and_refuses_booleans(tmp_path):
    rows = [{"image_id": "1.png", "category_id": 1.0, "keypoints": person(1)["keypoints"], "score": 0.5, "area": "x"}]
    for report in scored(tmp_path, content(), rows):
        assert report["AP"] > 0.3 and report["protocol"]["read"] == {"id_converted": 1, "image_by_name": 1}
    for wrong, message in (
        ({"score": True}, "results.json: result 0: image 1: score must be a finite number, got True"),
        ({"image_id": "2.pgn"}, "image_id '2.pgn': the ground truth has no such image, closest: 2, 1"),
    ):
        with pytest.raises(ValueError, match=message):
            scored(tmp_path, content(), [rows[0] | wrong])


@pytest.mark.parametrize("number", [-1, 2**63, 10**30])
def test_category_ids_have_the_range_of_image_ids(tmp_path, number):
    truth = content()
    truth["categories"][0]["id"] = number
    truth["annotations"] = [entry | {"category_id": number} for entry in truth["annotations"]]
    with pytest.raises(ValueError, match="truth.json: lists no category with an integer id from 0"):
        scored(tmp_path, truth, [])
    (tmp_path / "b.json").write_text(json.dumps([ROW | {"image_id": "a", "category_id": number}]))
    with pytest.raises(ValueError, match="b.json: .*the category_id .*, which is no integer from 0"):
        BoxFile(str(tmp_path / "b.json")).image_ids(["a.jpg"])


def test_one_id_never_means_two_categories():
    joints = {"id": 1, "name": "person", "keypoints": ["nose"]}
    assert person_category(listed_categories([joints, dict(joints)]), None, "f", "field").name == "person"
    with pytest.raises(ValueError, match="f: categories 1 'person' and 1 'car' have the same id"):
        person_category(listed_categories([joints, {"id": 1, "name": "car"}]), None, "f", "field")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"score": "0.9"}, "2 malformed, the first: .*the score '0.9', which is no number"),
        ({"score": 0.1}, "2 with a score below --min_box_score=0.5"),
        ({"iscrowd": 1}, "2 crowds"),
        ({"bbox": [1, 2, 3, 4, 5]}, "2 malformed, the first: .*no bbox of 4 numbers"),
    ],
)
def test_why_no_box_can_be_used(tmp_path, change, reason):
    (tmp_path / "b.json").write_text(json.dumps([ROW | {"image_id": "a"} | change] * 2))
    for ask in (lambda file: file.image_ids(["a.jpg"]), lambda file: file.check_frames(3)):
        with pytest.raises(ValueError, match=f"b.json: has no box for any of the .*none can be used: {reason}"):
            ask(BoxFile(str(tmp_path / "b.json"), 0.5))


def test_names_beside_ids_and_ids_that_cannot_be_used(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps([ROW | {"image_id": 7, "file_name": "photo_a.jpg"}] * 2))
    assert found(BoxFile(str(tmp_path / "b.json")), ["photo_a.jpg", "7.jpg"]) == {"photo_a.jpg": 1}
    assert found(detections(tmp_path, 139.0), ["000000000139.jpg"]) == {"000000000139.jpg": 0}
    images = [{"id": "3fa8-1", "file_name": "a.jpg"}]
    (tmp_path / "t.json").write_text(json.dumps({"images": images, "annotations": []}))
    with pytest.raises(
        ValueError, match="t.json: image 0 has the id '3fa8-1', which must be an integer.*none of its 1"
    ):
        BoxFile(str(tmp_path / "t.json"))
    (tmp_path / "b.json").write_text(json.dumps([ROW | {"image_id": "a", "score": "x"}] * 500))
    assert len(BoxFile(str(tmp_path / "b.json")).problems) == 21


def test_boxes_in_shares_or_corners_are_told_after_prediction(tmp_path):
    for box, words in (([0.1, 0.1, 0.5, 0.8], "look normalised"), ([50, 20, 150, 110], "look like corners")):
        (tmp_path / "b.json").write_text(json.dumps([ROW | {"image_id": "a", "bbox": box}]))
        file = BoxFile(str(tmp_path / "b.json"))
        file.of(file.image_ids(["a.jpg"])[0], np.zeros((120, 160, 3), np.uint8))
        (doubt,) = file.doubts()
        assert doubt.startswith(f"{file.path}: 1 of 1 persons") and words in doubt


def test_boxes_as_centres_and_in_percent_are_doubted(tmp_path):
    joints = np.array([[10.0, 10], [40, 30], [12, 50]])
    assert like_centre([25, 30, 32, 44], joints) and not like_centre([9, 8, 32, 44], joints)
    boxes, sizes = np.tile([40.0, 20, 50, 80], (5, 1)), np.tile([480, 640], (5, 1))
    assert in_percent(boxes, sizes) and not in_percent(boxes[:4], sizes[:4])
    assert not in_percent(boxes + 5, sizes) and not in_percent(boxes, sizes // 2)
    assert "percent" in doubts({"kept": 5, "looks_in_percent": 5}, 0, 0, "stored")[0]
    facts = content()
    facts["annotations"][0]["num_keypoints"] = 0
    write(tmp_path, facts)
    assert read(tmp_path).report()["num_keypoints_zero"] == 1


def test_labels_of_yolo_in_other_forms(tmp_path, capsys):
    moved = "\n".join(("path: /content/set", "train: data/images/train", "kpt_shape: [3, 3]", "names: [person]"))
    file = write_set(tmp_path / "set", text=moved, folders=("images/train",))
    images, labels = tmp_path / "set/images/train", tmp_path / "set/labels/train"
    nfc, nfd = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    cv2.imwrite(str(images / f"{nfd}.jpg"), np.zeros((30, 40, 3), np.uint8))
    cv2.imwrite(str(images / "a.png"), np.zeros((30, 40, 3), np.uint8))
    (labels / f"{nfc}.TXT").write_text(LINE.replace("0.5 0.5 0.5 0.4", "0.2 0.2 0.8 0.8"))
    yolo, written = convert_yolo(file, str(tmp_path / "out"))
    assert yolo.moved == {"data/images/train": str(images)}
    counts = written["train"].audit.counts
    assert counts == {"label_of_two_images": 1, "line_like_corners": 1} and written["train"].persons == 3
    for label in labels.iterdir():
        label.write_text("0 0.5\n")
    with pytest.raises(ValueError, match=r"usable: \{'line_columns': 3\}; the first: \S+:1: has 2 numbers, not 14"):
        convert_yolo(file, str(tmp_path / "out"))


def test_names_that_are_no_utf8_are_named_and_do_not_crash(tmp_path):
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((8, 8, 3), np.uint8))
    odd = os.fsdecode(os.fsencode(str(tmp_path)) + b"/b\xff.jpg")
    os.link(tmp_path / "a.jpg", odd)
    names, others = list_images(str(tmp_path))
    assert names == ["a.jpg"] and others == [f"{odd!a}: its name is no UTF-8; rename it"]
    with pytest.raises(ValueError, match=r"input '.*b\\udcff.jpg' and out .* must be UTF-8"):
        predict(None, odd, str(tmp_path / "out"))


def test_png_of_older_tools_and_pil_modes(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    raw = exif.tobytes()
    text = f"\nexif\n{len(raw):8d}\n{raw.hex()}\n".encode()
    png = cv2.imencode(".png", np.zeros((4, 6, 3), np.uint8))[1].tobytes()
    for kind, value in ((b"zTXt", b"\0" + zlib.compress(text)), (b"tEXt", text)):
        body = kind + b"Raw profile type exif\0" + value
        chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
        assert read_header(png[:33] + chunk + png[33:]).orientation == 6
        assert read_header(png[:33] + chunk.replace(b"00", b"zz") + png[33:]).orientation == 1
    grey = Image.fromarray(np.full((4, 4), 90, np.uint8))
    with pytest.raises(ValueError, match="image: PIL's mode 'I' says no range"):  # of 8 bits: the shift made it black
        load_image(grey.convert("I"))
    with pytest.raises(ValueError, match="image: PIL's mode 'La': "):
        load_image(grey.convert("LA").convert("La"))


def test_a_note_at_the_end_and_a_bom_in_metrics(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'\xef\xbb\xbf{"step": 1}\nlowered the rate')
    MetricsWriter(str(tmp_path), 50).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'
    assert (tmp_path / "metrics_set_aside.txt").read_bytes() == b"lowered the rate\n"


@pytest.mark.parametrize(
    ("text", "message"), [("raise SystemExit(3)", r"SystemExit\(3\)"), ("\0", "null bytes|no get_config")]
)
def test_recipe_files_that_end_the_program(tmp_path, text, message):
    (tmp_path / "recipe.py").write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        _RecipeFile().parse(str(tmp_path / "recipe.py"))
    assert "None, line None" not in str(caught.value)
