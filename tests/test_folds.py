"""Folds: every image is validated once and trains in all others; what is no single data set is named."""

import pytest

from benchmarks.folds import divide

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
