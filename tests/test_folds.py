"""Folds: every image is validated once and trains in all others; what is no single data set is named."""

import json

import pytest

from benchmarks.folds import divide, read_placeable

CATEGORY = [{"id": 1, "name": "person", "keypoints": ["a"]}]


def content(first, count):
    ids = range(first, first + count)
    annotations = [{"id": 10 * i + k, "image_id": i} for i in ids for k in range(2)]
    return {"images": [{"id": i} for i in ids], "annotations": annotations, "categories": CATEGORY}


def test_every_image_is_validated_once():
    parts = divide({"a": content(1, 7), "b": content(20, 4)}, 3)
    whole = {*range(1, 8), *range(20, 24)}
    held = [{image["id"] for image in part["val"]["images"]} for part in parts]
    assert sorted(map(len, held)) == [3, 4, 4] and set.union(*held) == whole
    for ids, part in zip(held, parts, strict=True):
        assert {image["id"] for image in part["train"]["images"]} == whole - ids
        for split, its in (("val", ids), ("train", whole - ids)):
            numbers = sorted(entry["id"] for entry in part[split]["annotations"])
            assert (
                numbers == sorted(10 * i + k for i in its for k in range(2)) and part[split]["categories"] == CATEGORY
            )
    assert divide({"a": content(1, 7), "b": content(20, 4)}, 3) == parts  # the same each time


@pytest.mark.parametrize(
    ("contents", "folds", "message"),
    [
        ({"a": content(1, 3), "b": content(3, 3)}, 2, "a, b: an id of images comes twice"),
        ({"a": content(1, 3), "b": content(5, 3) | {"categories": []}}, 2, "a, b: their categories differ"),
        ({"a": content(1, 3)}, 4, "folds=4: must be at least 2, and at most the 3 images of a"),
        ({"a": content(1, 3)}, 1, "folds=1: must be at least 2"),
    ],
)
def test_what_cannot_be_divided_is_named(contents, folds, message):
    with pytest.raises(ValueError, match=message):
        divide(contents, folds)


def test_entries_without_a_place_are_counted_and_left_out(tmp_path, capsys):
    facts, file = content(1, 4), str(tmp_path / "gt.json")
    facts["images"] += [{"file_name": "no id"}, 5]
    facts["annotations"] += [{"id": 90, "image_id": 9}, {"id": 91}, 5, {"id": 92, "image_id": 1}]  # that has no joints
    (tmp_path / "gt.json").write_text(json.dumps(facts))
    found = read_placeable(file)
    assert found == content(1, 4) | {"annotations": [*content(1, 4)["annotations"], {"id": 92, "image_id": 1}]}
    assert (
        capsys.readouterr().out == f"{file}: left out: image_entry 2, annotation_without_image 1, annotation_entry 2\n"
    )
    parts = divide({file: found}, 2)
    assert sum(len(part["val"]["annotations"]) for part in parts) == 9
    (tmp_path / "gt.json").write_text("[]")
    with pytest.raises(ValueError, match="gt.json: must be an object with the lists"):
        read_placeable(file)


def test_folds_of_ai_challengers_own_file_invent_no_size(tmp_path):
    humans = {"keypoint_annotations": {"h": [1, 2, 1] * 14}, "human_annotations": {"h": [0, 0, 9, 9]}}
    (tmp_path / "gt.json").write_text(json.dumps([humans | {"image_id": name} for name in "ab"]))
    found = read_placeable(str(tmp_path / "gt.json"))
    assert found["images"] == [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]
    assert [entry["image_id"] for entry in found["annotations"]] == [1, 2]
