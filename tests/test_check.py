"""What is odd about a set is told by name: every rule with an injected fault, and silence on a good set."""

import json

import cv2
import numpy as np
import pytest
from commands import command
from image_files import exif_turned

from dpose_jax.data.check import check
from dpose_jax.data.coco_dataset import AnnotatedSource, FolderSource
from dpose_jax.data.sides import mixed_sides, swapped_pairs
from dpose_jax.data.statistics import describe
from dpose_jax.data.synthetic.dataset import write_coco_folder
from dpose_jax.pose.joint_sets import COCO
from dpose_jax.recipe import Recipe

FILES = {split: f"annotations/person_keypoints_{split}2017.json" for split in ("train", "val")}


@pytest.fixture
def people(tmp_path):
    write_coco_folder(tmp_path, train_images=4, val_images=2, difficulty=0.0)
    return tmp_path


def recipe(root, **changes):
    return Recipe().override({"data.root": str(root)} | {f"data.{name}": value for name, value in changes.items()})


def change(root, edit, split="train"):
    facts = json.loads((root / FILES[split]).read_text())
    edit(facts)
    (root / FILES[split]).write_text(json.dumps(facts))


def found(root, split="train", **changes):
    report = check(recipe(root, **changes), (split,))[0]
    return {finding.rule: (finding.count, finding.first) for finding in report.findings}, report


def test_a_good_set_is_not_odd(people):
    for report in check(recipe(people)):
        odd = {finding.rule for finding in report.findings} - {"joint_outside_image", "box_clipped"}
        assert not odd and not report.error, str(report)


def test_each_fault_is_counted_and_named(people):
    images = sorted((people / "train2017").iterdir())

    def edit(facts):
        first, second = facts["annotations"][:2]
        facts["annotations"].append(first | {"id": 901})
        facts["annotations"].append(second | {"id": 902, "bbox": [1, 1, 5, 5], "keypoints": [9, 9, 2] + [0] * 48})
        facts["annotations"].append(second | {"id": 903, "image_id": 77})
        facts["images"].append(facts["images"][0] | {"id": 800})
        facts["annotations"].append(first | {"id": 904, "image_id": 800})
        facts["images"][1]["width"] += 1

    change(people, edit)
    images[2].write_bytes(exif_turned(images[2].read_bytes()))
    images[1].write_bytes(cv2.imencodemulti(".tif", [cv2.imread(str(images[1]))] * 2)[1].tobytes())
    images[3].write_bytes(images[0].read_bytes())
    (people / "val2017" / sorted(p.name for p in (people / "val2017").iterdir())[0]).write_bytes(images[0].read_bytes())
    rules, report = found(people)
    for rule, name in {
        "person_twice": "id 901",
        "tiny_box": "id 902, image ",
        "annotation_without_image": "id 903",
        "joint_outside_box": "id 902",
        "file_listed_twice": "and 800",
        "image_size_differs": f"{images[1]}'",
        "image_of_several": f"{images[1]}'",
        "image_exif_rotated": f"{images[2]}'",
        "image_twice": f"{images[3]}', as '{images[0]}'",
    }.items():
        assert rules[rule][0] == 1 and name in rules[rule][1][0], (rule, str(report))
        assert f"       1  {rule}" in str(report)
    assert "max_bad_share" in report.error
    leaked = check(recipe(people))[1]
    assert [(f.rule, f.count) for f in leaked.findings if f.rule == "image_in_other_split"] == [
        ("image_in_other_split", 1)
    ]
    assert f"as '{images[0]}'" in str(leaked)


def test_a_set_of_which_nothing_is_left_is_told_too(people):
    for path in (people / "train2017").iterdir():
        path.rename(path.with_suffix(".moved"))
    rules, report = found(people)
    count, first = rules["image_missing"]
    assert count == 4 and len(first) == 3 and str(people / "train2017") in first[0] and ".moved'" in first[0]
    assert "no person is left" in report.error and "training stops" in str(report)


def test_boxes_by_other_conventions(people):
    def corners(facts):
        for entry in facts["annotations"]:
            x, y, w, h = entry["bbox"]
            entry["bbox"] = [x, y, x + w, y + h]

    change(people, corners)
    assert found(people)[0]["looks_like_corners"][0] >= 3

    def shares(facts):
        for entry in facts["annotations"]:
            entry["bbox"] = [0.1, 0.1, 0.5, 0.5]

    change(people, shares)
    rules, _ = found(people)
    assert rules["looks_normalised"][0] == 4 and "bbox [0.1, 0.1, 0.5, 0.5]" in rules["looks_normalised"][1][0]


def test_other_sources_and_formats(people):
    with pytest.raises(ValueError, match="data.source='synthetic': must be 'folder'"):
        check(recipe(people, source="synthetic"))
    (people / FILES["train"]).write_text("[]")
    with pytest.raises(ValueError, match="must be an object with the lists"):
        check(recipe(people))


def test_the_command(people, tmp_path):
    done = command(
        "dpose_jax.data.check", "--config=configs/synthetic.py", "--config.data.source=folder",
        f"--config.data.root={people}", "--split=val",
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith(f"val: {people}/{FILES['val']}: 2 of 2 annotations kept")
    assert not done.stderr, done.stderr


def crowd(count=40, seed=0):
    """People who face the camera or turn their back, with all joints; (N, 17, 3) and widths."""
    rng = np.random.default_rng(seed)
    joints = np.zeros((count, 17, 3))
    joints[..., 2] = 2
    joints[..., :2] = rng.normal(50, 1, (count, 17, 2))
    front = rng.random(count) < 0.6
    for left, right in COCO.flip_pairs:
        joints[:, left, 0] += np.where(front, 15, -15)
        joints[:, right, 0] -= np.where(front, 15, -15)
    joints[~front, :3, 2] = 0
    return joints, np.full(count, 60.0)


def test_sides():
    joints, widths = crowd()
    rules = mixed_sides(joints, widths, COCO)
    assert not rules["sides_mixed"].any() and not rules["face_mirrored"].any()
    assert swapped_pairs(joints, widths, COCO) == []
    wrong = joints.copy()
    wrong[:3, [5, 6]] = wrong[:3, [6, 5]]  # the shoulders of three persons
    np.testing.assert_array_equal(np.flatnonzero(mixed_sides(wrong, widths, COCO)["sides_mixed"]), [0, 1, 2])
    wrong[:, [13, 14]] = wrong[:, [14, 13]]  # the knees of all
    (left, right, share, persons), *others = swapped_pairs(wrong, widths, COCO)
    assert (left, right, share, persons, others) == ("left_knee", "right_knee", 1.0, 40, [])
    mirrored = joints[:, list(COCO.flip_order)]
    face = mixed_sides(mirrored, widths, COCO)["face_mirrored"]
    np.testing.assert_array_equal(face, mirrored[:, 0, 2] == 2)
    assert not mixed_sides(mirrored, widths, COCO)["sides_mixed"].any()


def test_few_persons_of_real_sets_have_mixed_sides(data_root):
    source = FolderSource(str(data_root / "coco"), FILES["val"], "images/val2017", COCO, training=True)
    persons = [source[index] for index in range(len(source))]
    joints, boxes = (np.stack([getattr(person, name) for person in persons]) for name in ("keypoints", "bbox"))
    assert all(applies.mean() < 0.01 for applies in mixed_sides(joints, boxes[:, 2], COCO).values())
    assert swapped_pairs(joints, boxes[:, 2], COCO) == []
    joints[:, [11, 12]] = joints[:, [12, 11]]
    assert [found[:2] for found in swapped_pairs(joints, boxes[:, 2], COCO)] == [("left_hip", "right_hip")]
    assert mixed_sides(joints, boxes[:, 2], COCO)["sides_mixed"].mean() > 0.3


def test_odd_flip_pairs_are_told_at_the_start_of_a_run(people):
    pairs = ((5, 8), (6, 7), *(pair for pair in COCO.flip_pairs if pair[0] not in (5, 7)))
    facts = {name: getattr(COCO, name) for name in ("joints", "limbs", "sigmas")} | {"flip_pairs": pairs}
    (people / "own.json").write_text(json.dumps(facts))
    own = recipe(people).override({"joint_set": str(people / "own.json")})
    source = FolderSource(str(people), FILES["train"], "train2017", own.joints, training=True)
    stored = AnnotatedSource(str(people / FILES["train"]), source.folder, own.joints, training=True)  # as of records
    for lines in (describe(source, "stored"), describe(stored, "stored")):
        assert "joint set 'own': 'left_shoulder' and 'right_elbow' are a flip pair" in lines
    rules = {finding.rule: finding.count for finding in check(own, ("train",))[0].findings}
    assert rules["odd_flip_pairs"] == 4


def test_images_that_cannot_be_read(people):
    first = sorted((people / "train2017").iterdir())[0]
    first.write_bytes(b"")
    cv2.imwrite(str(people / "train2017" / "unused.png"), np.zeros((4, 4, 3), np.uint8))
    rules, _ = found(people)
    assert rules["image_unreadable"] == (1, [repr(str(first))])
