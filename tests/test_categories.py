"""Which category is the person: one rule from training through boxes and prediction to scoring."""

import json

import pytest
from coco_folder import TINY, content, ids, person, read, write

from dpose_jax.data.categories import Category, closest, detected_id, person_category, person_id
from dpose_jax.evaluation.results_file import score_files
from dpose_jax.inference.boxes import BoxFile
from dpose_jax.recipe import Recipe
from dpose_jax.workdir.compatibility import as_stored, from_stored

CAR, HUMAN, WORKER, DOG = (
    Category(1, "car"),
    Category(0, "Person"),
    Category(3, "worker", ("a",)),
    Category(4, "dog", ("a",)),
)


@pytest.mark.parametrize(
    ("listed", "wanted", "found"),
    [
        ([CAR, WORKER], None, WORKER),
        ([CAR, HUMAN], None, HUMAN),
        ([Category(1, "person"), Category(2, "")], None, Category(1, "person")),
        ([Category(0, "human")], None, Category(0, "human")),
        ([CAR, WORKER, DOG], "dog", DOG),
        ([CAR, WORKER, DOG], "Worker", WORKER),
        ([CAR, WORKER, DOG], "4", DOG),
        ([Category(4, "3"), WORKER], "3", Category(4, "3")),
        ([CAR, WORKER, DOG], None, "f: 2 categories have keypoints: 3 'worker', 4 'dog'; choose one by FLAG"),
        ([CAR, Category(2, "bus")], None, "f: 2 categories could be the person: 1 'car', 2 'bus'; choose one by FLAG"),
        ([CAR, WORKER, DOG], "workers", "f: FLAG='workers': no such category; closest: 3 'worker', "),
        ([], None, "f: lists no category with an integer id"),
    ],
)
def test_the_person_among_categories(listed, wanted, found):
    if isinstance(found, Category):
        assert person_category(listed, wanted, "f", "FLAG") == found
        return
    with pytest.raises(ValueError) as caught:
        person_category(listed, wanted, "f", "FLAG")
    assert str(caught.value).startswith(found)


@pytest.mark.parametrize(
    ("counts", "wanted", "found"),
    [
        ({0: 9}, None, 0),
        ({3: 9}, None, 3),
        ({}, None, 1),
        ({1: 2, 18: 9}, None, 1),
        ({0: 2, 1: 9}, "0", 0),
        (
            {0: 2, 1: 9},
            None,
            r"f: which category id is the person\? It has 1 \(9 entries\), 0 \(2 entries\); .* by FLAG",
        ),
        ({2: 2, 3: 9}, None, "which category id is the person"),
        ({2: 2, 3: 9}, "person", "FLAG='person': .* no such category id .*; closest: 3, 2"),
    ],
)
def test_the_person_among_bare_ids(counts, wanted, found):
    if isinstance(found, int):
        assert person_id(counts, wanted, "f", "FLAG") == found
    else:
        with pytest.raises(ValueError, match=found):
            person_id(counts, wanted, "f", "FLAG")


def test_detections_for_annotations():
    assert detected_id({3: 5, 1: 9}, WORKER, [1, 3], "f") == 3
    assert detected_id({0: 5}, WORKER, [1, 3], "f") == 0
    for counts in ({1: 5}, {0: 5, 7: 2}):  # another category of the annotations; several
        with pytest.raises(ValueError, match="f: no detection has the category of the annotations, 3 'worker'; it has"):
            detected_id(counts, WORKER, [1, 3], "f")


def two_kinds(category_id=3):
    """Cars, boxes only, beside workers with joints; a worker without joints, and a car without a category's joints."""
    facts = content()
    facts["categories"] = [
        {"id": 1, "name": "car"},
        {"id": category_id, "name": "worker", "keypoints": list(TINY.joints)},
    ]
    for entry in facts["annotations"]:
        entry["category_id"] = category_id
    boxes_only = {key: value for key, value in person(14, 2, category_id=category_id).items() if key != "keypoints"}
    facts["annotations"] += [
        {"id": 15, "image_id": 2, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 0},
        boxes_only,
    ]
    return facts


@pytest.mark.parametrize("category_id", [3, 0])
def test_training_boxes_and_scoring_take_the_same_person(tmp_path, category_id):
    facts = two_kinds(category_id)
    write(tmp_path, facts)
    source = read(tmp_path)
    assert ids(source) == [11, 12, 13]
    assert source.report()["other_category"] == 1 and source.report()["box_only"] == 1
    truth = source.ground_truth()
    assert {entry["category_id"] for entry in truth["annotations"]} == {category_id}
    boxes = BoxFile(str(tmp_path / "truth.json"))
    assert boxes.category_id == category_id and boxes.of(1) == [[5, 4, 20, 16, 1.0]] * 2 and not boxes.problems
    assert boxes.notes == [f"{boxes.path}: the person is category {category_id}; left out: 1 of others"]
    one = {"category_id": category_id, "score": 0.5}
    results = [one | {key: a[key] for key in ("image_id", "keypoints")} for a in truth["annotations"][1:]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    for engine in ("hotcoco", "pycocotools"):
        files = str(tmp_path / "truth.json"), str(tmp_path / "results.json")
        report = score_files(*files, TINY, use_area=True, engine=engine)
        assert report["AP"] == pytest.approx(67 / 101) and report["AR"] == pytest.approx(2 / 3)
        assert report["protocol"]["left_out"] == {"other_category": 1, "box_only": 1}
        assert report["protocol"]["persons"] == 3
    (tmp_path / "results.json").write_text(json.dumps([row | {"category_id": 1} for row in results]))
    with pytest.raises(ValueError, match=f"results.json: result 0: category_id 1: .* its persons are {category_id}"):
        score_files(*files, TINY, use_area=True)


def test_a_field_decides_between_two_categories_with_joints(tmp_path):
    facts = two_kinds()
    facts["categories"][0]["keypoints"] = list(TINY.joints)
    facts["annotations"][2]["category_id"] = 1
    write(tmp_path, facts)
    with pytest.raises(ValueError, match=r"truth.json: 2 categories have keypoints: .*; choose one by data.category"):
        read(tmp_path)
    assert ids(read(tmp_path, category="worker")) == [11, 12] and ids(read(tmp_path, category="1")) == [13]
    with pytest.raises(ValueError, match="choose one by --category"):
        BoxFile(str(tmp_path / "truth.json"))
    assert len(BoxFile(str(tmp_path / "truth.json"), category="car").of(2)) == 2
    rows = [{"image_id": 1, "category_id": number, "keypoints": [1.0] * 9, "score": 0.5} for number in (1, 3, 3)]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    files = str(tmp_path / "truth.json"), str(tmp_path / "results.json")
    found = score_files(*files, TINY, use_area=True, category="worker")["protocol"]
    assert found["predicted"] == 2 and found["left_out"]["results_of_others"] == 1


def test_detections_of_yolo_and_of_the_own_category(tmp_path):
    for number in (0, 3):
        rows = [{"image_id": 1, "category_id": number, "bbox": [1, 2, 9, 9], "score": 0.9}]
        write(tmp_path, two_kinds(), [*rows, rows[0] | {"category_id": "3"}])
        source = read(tmp_path, detections="boxes.json")
        assert len(source) == 1 and source.report()["detection_entry"] == 1


def test_a_stored_recipe_without_the_field_means_the_only_category():
    stored = as_stored(Recipe())
    del stored["data"]["category"]
    assert from_stored(stored, "FILE") == from_stored(as_stored(Recipe()), "FILE")
    assert from_stored(stored, "FILE").data.category is None


@pytest.mark.parametrize(
    "change", [{"iscrowd": "0"}, {"iscrowd": 2}, {"iscrowd": [0]}, {"category_id": "1"}, {"category_id": None}]
)
def test_text_for_a_number_is_malformed_and_named(tmp_path, caplog, change):
    facts = content()
    facts["annotations"][1] |= change
    write(tmp_path, facts)
    source = read(tmp_path)
    assert ids(source) == [11, 13] and source.report()["annotation_entry"] == 1
    assert repr(next(iter(change.values()))) in caplog.text and "id 12" in caplog.text
    file = BoxFile(str(tmp_path / "truth.json"))
    if change != {"category_id": None}:
        assert len(file.of(1)) == 1 and repr(next(iter(change.values()))) in file.problems[0]
    rows = [{"image_id": 1, "category_id": 1, "keypoints": [1.0] * 9, "score": 0.5}]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="truth.json: annotation 12: .*(iscrowd|category_id)"):
        score_files(str(tmp_path / "truth.json"), str(tmp_path / "results.json"), TINY, use_area=True)


@pytest.mark.parametrize("number", [2**63, -1, "5f2a"])
def test_one_range_of_image_ids(tmp_path, number):
    facts = content()
    facts["images"][0]["id"] = number
    for entry in facts["annotations"][:2]:
        entry["image_id"] = number
    write(tmp_path, facts)
    with pytest.raises(ValueError, match=rf"data.max_bad_share=0.1: .*; the first: image_entry: .*{str(number)[-4:]}"):
        read(tmp_path, max_bad_share=0.1)
    assert "image 0 has the id" in BoxFile(str(tmp_path / "truth.json")).problems[0]
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"truth.json: image entry 0: .* an integer id(, 0 to 2\*\*63 - 1)?, got"):
        score_files(str(tmp_path / "truth.json"), str(tmp_path / "results.json"), TINY, use_area=True)


def test_the_largest_image_id(tmp_path):
    text = (
        json.dumps(content())
        .replace('"image_id": 1,', f'"image_id": {2**63 - 1},')
        .replace('{"id": 1, "file_name"', f'{{"id": {2**63 - 1}, "file_name"')
    )
    write(tmp_path, text)
    assert read(tmp_path)[0].image_id == 2**63 - 1


def test_closest_names():
    assert closest("wroker", ["car", "worker", "walker", "dog"])[:2] == ["worker", "walker"]
