"""COCO files as annotation tools write them: small examples of each, read by training, prediction and scoring alike."""

import json
import logging
import unicodedata

import cv2
import numpy as np
import pytest
from coco_folder import HEIGHT, TINY, WIDTH, content, ids, person, read, write

from dpose_jax.data.coco_format import format_counts
from dpose_jax.data.exports import box_of_joints
from dpose_jax.data.image_files import ImageFolder
from dpose_jax.evaluation.coco import evaluate_results
from dpose_jax.evaluation.results_file import score_files
from dpose_jax.inference.boxes import BoxFile

JOINTS = [10, 8, 2, 14.5, 12, 1, 0, 0, 0]
EXTENT = [9.55, 7.55, 5.4, 4.9]  # of the two labelled joints, with a tenth of 4.5 on each side
SKELETON = {"keypoints": list(TINY.joints), "skeleton": [[1, 2], [1, 3]]}


def tool(images, annotations, categories):
    """A file of two images and two persons: what a tool writes, over what all write."""
    sizes = {"width": WIDTH, "height": HEIGHT}
    return {
        "images": [{"id": i} | sizes | entry for i, entry in enumerate(images, 1)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": categories[-1]["id"], "keypoints": JOINTS} | entry
            for i, entry in enumerate(annotations, 1)
        ],
        "categories": categories,
    }


BOX = {"bbox": [5.0, 4.0, 20.0, 16.0]}
EXPORTS = {
    # Names from the export's root, other labels among the categories, attributes, no box area of a flat pose.
    "cvat": (
        tool(
            [{"file_name": "images/day/1.png", "license": 0, "date_captured": 0}, {"file_name": "images/day/2.png"}],
            [
                BOX | {"segmentation": [], "area": 320.0, "iscrowd": 0, "attributes": {"occluded": False}},
                {"bbox": [4.0, 9.0, 12.0, 0.0], "area": 0.0, "keypoints": [4, 9, 2, 16.0, 9, 1, 0, 0, 0]},
            ],
            [{"id": 3, "name": "car", "supercategory": ""}, {"id": 21, "name": "person"} | SKELETON],
        ),
        {"image_renamed": 2, "box_from_joints": 1, "area_entry": 1},
    ),
    # Ids from 0, no areas, Windows' slashes; rectangles are a category of their own.
    "label_studio": (
        tool(
            [{"id": 0, "file_name": "images\\day\\1.png"}, {"id": 1, "file_name": "images\\day\\2.png"}],
            [{"id": 0, "image_id": 0, "iscrowd": 0} | BOX, {"id": 1, "image_id": 1, "bbox": [5, 4, 20, 16]}],
            [{"id": 0, "name": "box"}, {"id": 1, "name": "default", "keypoints": list(TINY.joints), "skeleton": []}],
        ),
        {"image_renamed": 2},
    ),
    # Ids from 0, and a category 0 that groups the others.
    "roboflow": (
        tool(
            [{"id": 0, "file_name": "day/1.png", "license": 1}, {"id": 1, "file_name": "day/2.png"}],
            [{"id": 0, "image_id": 0, "segmentation": []} | BOX, {"image_id": 1} | BOX],
            [{"id": 0, "name": "people", "supercategory": "none"}, {"id": 1, "name": "person"} | SKELETON],
        ),
        {},
    ),
    # The server's path beside a bare name, booleans, no box without a polygon, persons without joints.
    "coco_annotator": (
        tool(
            [
                {"file_name": "1.png", "path": "/datasets/set/day/1.png", "dataset_id": 1, "deleted": False},
                {"file_name": "2.png", "path": "/datasets/set/day/2.png"},
            ],
            [
                {"bbox": [0, 0, 0, 0], "area": 0, "iscrowd": False, "isbbox": False, "segmentation": []},
                BOX | {"segmentation": [[5, 4, 25, 4, 25, 20]], "area": 160, "metadata": {}},
                {"id": 9, "image_id": 1, "bbox": [1, 1, 9, 9], "keypoints": []},
            ],
            [{"id": 1, "name": "dog", "keypoints": []}, {"id": 2, "name": "person"} | SKELETON],
        ),
        {"image_renamed": 2, "box_from_joints": 1, "area_entry": 1, "box_only": 1},
    ),
    # As data frames write it: text and floats for ids, no size; a crowd's RLE.
    "text_and_floats": (
        tool(
            [{"id": "0001", "file_name": "day/1.png", "width": None}, {"id": "2", "file_name": "day/2.png"}],
            [
                {"id": "7", "image_id": "0001", "category_id": "5", "segmentation": None} | BOX,
                {"id": 8.0, "image_id": 2.0, "category_id": "5", "iscrowd": 0.0, "area": None} | BOX,
                {"id": 9, "image_id": 2, "category_id": 5.0, "iscrowd": 1, "segmentation": {"counts": [3], "size": [1]}}
                | BOX,
            ],
            [{"id": "5", "name": "person"} | SKELETON],
        ),
        {"id_converted": 10, "image_size_read": 1, "crowd": 1},
    ),
}


def store(tmp_path, facts):
    """Both images in a sub-folder `day`, and the file."""
    write(tmp_path, facts)
    (tmp_path / "images" / "day").mkdir()
    for i in (1, 2):
        (tmp_path / "images" / f"{i}.png").rename(tmp_path / "images" / "day" / f"{i}.png")


@pytest.mark.parametrize("name", EXPORTS)
def test_exports_are_trained_on_predicted_and_scored(tmp_path, name):
    facts, counted = EXPORTS[name]
    store(tmp_path, facts)
    source = read(tmp_path, max_bad_share=0.0)
    assert len(source) == 2 and {n: c for n, c in source.report().items() if c and n not in ("records", "kept")} == {
        **counted
    }, format_counts(source.report())
    for index in range(2):
        assert source[index].file == str(tmp_path / "images" / "day" / f"{index + 1}.png")
        assert source.read_image(index).shape == (HEIGHT, WIDTH, 3)
    truth = source.ground_truth()
    assert all(type(entry[field]) is int for entry in truth["annotations"] for field in ("id", "image_id"))
    boxes = BoxFile(str(tmp_path / "truth.json"))
    found = boxes.image_ids(["day/1.png", "day/2.png"], str(tmp_path / "images"))
    persons = [source[index] for index in range(2)]
    assert found == [each.image_id for each in persons] and not boxes.problems
    for number, each in zip(found, persons, strict=True):
        assert any(np.allclose(box[:4], each.bbox, atol=1e-4) for box in boxes.of(number)), boxes.of(number)
    rows = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "keypoints": a["keypoints"], "score": 0.5}
        for a in truth["annotations"]
        if not a["iscrowd"]
    ]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    for engine in ("hotcoco", "pycocotools"):
        files = str(tmp_path / "truth.json"), str(tmp_path / "results.json")
        report = score_files(*files, TINY, use_area=False, engine=engine)
        assert report["AP"] == pytest.approx(1) and report["protocol"]["persons"] == 2
    # Joints beside the truth, so that AP depends on the areas: those of the evaluation.
    for row in rows:
        row["keypoints"] = [value + 0.3 * (k % 3 == 0) for k, value in enumerate(row["keypoints"])]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    report, want = score_files(*files, TINY, use_area=True), evaluate_results(truth, rows, TINY)
    assert {metric: report[metric] for metric in want} == want and want["AP"] > 0.5
    read_otherwise = report["protocol"]["read"]
    assert read_otherwise.get("box_from_joints", 0) == counted.get("box_from_joints", 0)
    assert read_otherwise.get("area_from_box", 0) == sum(
        not entry.get("area") for entry in facts["annotations"] if entry["keypoints"]
    )


def test_boxes_of_supervision(tmp_path):
    images = [{"id": 0, "license": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT, "date_captured": "x"}]
    box = {"id": 0, "image_id": 0, "bbox": [1.5, 2.0, 9.0, 9.0], "area": 81.0, "segmentation": [1, 2, 3, 4, 5, 6]}
    facts = {"info": {}, "licenses": [], "images": images, "annotations": [box | {"category_id": 0, "iscrowd": 0}]}
    write(tmp_path, facts | {"categories": [{"id": 0, "name": "person", "supercategory": "common-objects"}]})
    boxes = BoxFile(str(tmp_path / "truth.json"))
    assert boxes.of(boxes.image_ids(["a.png"])[0]) == [[1.5, 2.0, 9.0, 9.0, 1.0]] and boxes.category_id == 0
    with pytest.raises(ValueError, match="needs exactly one category with an id and a list of keypoints"):
        read(tmp_path)


def test_a_missing_area_is_scored_as_that_of_the_box(tmp_path):
    facts = content()
    for entry in facts["annotations"]:
        del entry["area"]
    write(tmp_path, facts)
    rows = [{"image_id": 1, "category_id": 1, "keypoints": [11.0, 9, 2] * 3, "score": 0.5}]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    files = str(tmp_path / "truth.json"), str(tmp_path / "results.json")
    with_area, without = (score_files(*files, TINY, use_area=use_area) for use_area in (True, False))
    assert with_area["protocol"]["read"] == {"area_from_box": 3} and without["protocol"]["read"] == {}
    assert with_area["AP"] == without["AP"]


@pytest.mark.parametrize("area", [0, -3.0, float("nan"), "large", 10**400])
def test_an_area_that_is_no_scale_is_scored_as_in_the_evaluation(tmp_path, area):
    facts = content()
    facts["annotations"][0]["area"] = area
    write(tmp_path, facts)
    rows = [{"image_id": 1, "category_id": 1, "keypoints": [10.5, 9, 2, 15, 13, 1, 0, 0, 0], "score": 0.5}]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    report = score_files(str(tmp_path / "truth.json"), str(tmp_path / "results.json"), TINY, use_area=True)
    want = evaluate_results(read(tmp_path).ground_truth(), rows, TINY)
    assert {metric: report[metric] for metric in want} == want and want["AP"] > 0
    assert report["protocol"]["read"] == {"area_from_box": 1}


@pytest.mark.parametrize(
    ("change", "box"),
    [
        ({}, EXTENT),
        ({"bbox": None}, EXTENT),
        ({"bbox": []}, EXTENT),
        ({"bbox": [0, 0, 0.0, 0]}, EXTENT),
        ({"bbox": [0, 0, 5, 0]}, None),  # no area, but not the joints' extent: malformed
        ({"bbox": [1, 2, 3]}, None),
        ({"bbox": "none"}, None),
        ({"bbox": [1, 2, 3, 4]}, None),
        ({"iscrowd": 1}, None),
        ({"keypoints": [9, 9, 2] * 3}, None),
        ({"keypoints": [9, 9, 0] * 3}, None),
        ({"keypoints": [9, 9, "2"] * 3}, None),
        ({"keypoints": None}, None),
        ({"keypoints": [1e308, 0, 2, -1e308, 0, 2, 0, 0, 0]}, None),
        ({"bbox": [10, 8, 0, 4], "keypoints": [10, 8, 2, 10, 12, 1, 0, 0, 0]}, [9.6, 7.6, 0.8, 4.8]),
    ],
)
def test_boxes_of_joints(change, box):
    found = box_of_joints({"keypoints": JOINTS} | change)
    assert found is None if box is None else found == pytest.approx(box)


def test_text_that_could_mean_two_things_is_malformed_and_named(tmp_path, caplog):
    facts = content()
    facts["annotations"][1]["category_id"] = "1"  # the category's id is the number 1
    facts["annotations"].append(person("14"))
    facts["annotations"].append(person(15, "1"))
    facts["images"].append(facts["images"][1] | {"id": "02"})  # 2 again
    facts["images"].append(facts["images"][1] | {"id": "5f2a", "file_name": "3.png"})
    write(tmp_path, facts)
    with caplog.at_level(logging.WARNING):
        source = read(tmp_path)
    assert ids(source) == [11, 13, 14, 15]
    expected = {"annotation_entry": 1, "image_duplicate_id": 1, "image_entry": 1, "id_converted": 3}
    assert {n: c for n, c in source.report().items() if c and n not in ("records", "kept")} == expected
    assert "id '5f2a', which must be an integer from 0" in caplog.text and "category_id '1'" in caplog.text


def folder(tmp_path, *names):
    for name in names:
        (tmp_path / "set" / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "set" / "images" / "x.png"), np.zeros((4, 4, 3), np.uint8))
        (tmp_path / "set" / "images" / "x.png").rename(tmp_path / "set" / "images" / name)
    return ImageFolder(str(tmp_path / "set" / "images"))


NFC, NFD = (unicodedata.normalize(form, "caf\u00e9.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("name", "path", "found"),
    [
        ("a/1.png", None, "a/1.png"),
        ("./a//1.png", None, "./a//1.png"),
        ("a\\1.png", None, "a/1.png"),
        (NFC, None, NFD),
        ("images/a/1.png", None, "a/1.png"),
        ("set/images/a/1.png", None, "a/1.png"),
        ("other/a/1.png", None, None),
        ("1.png", None, None),  # of a or b?
        ("b/1.jpg", None, None),
        ("/data/set/b/1.png", None, "b/1.png"),
        ("C:\\data\\b\\1.png", None, "b/1.png"),
        ("https://host/b/1.png", None, "b/1.png"),
        ("/data/../b/1.png", None, None),
        ("1.png", "/datasets/set/b/1.png", "b/1.png"),
        ("top.png", "/datasets/set/a/top.png", "a/top.png"),
        ("top.png", "/datasets/set/top.png", "top.png"),
        ("top.png", "/datasets/set/other.png", "top.png"),
    ],
)
def test_names_of_files(tmp_path, name, path, found):
    images = folder(tmp_path, "a/1.png", "b/1.png", NFD, "top.png", "a/top.png")
    assert images.find(name, path) == found


def test_two_names_of_one_file_stay_missing_with_their_full_path_and_the_closest(tmp_path, caplog):
    facts = content()
    facts["images"][0]["file_name"], facts["images"][1]["file_name"] = "/home/ann/1.png", "/home/bob/1.png"
    write(tmp_path, facts)
    with pytest.raises(ValueError, match="image_outside_folder: id 11, image 1, file '/home/ann/1.png'"):
        read(tmp_path, max_bad_share=0.5)
    facts["images"][0]["file_name"] = "1.PNG"
    write(tmp_path, facts)
    with caplog.at_level(logging.WARNING):
        assert ids(read(tmp_path)) == [13]
    assert f"file '{tmp_path}/images/1.PNG', closest there: '1.png'" in caplog.text
    assert caplog.text.count("closest there") == 1


def test_joints_out_of_their_box_are_counted(tmp_path):
    facts = content()
    facts["annotations"][0]["keypoints"] = [2.9, 8, 2, 3.1, 12, 1, 0, 0, 0]  # a tenth of 20 px left of 5 is 3
    write(tmp_path, facts)
    assert read(tmp_path).report()["joint_outside_box"] == 1
