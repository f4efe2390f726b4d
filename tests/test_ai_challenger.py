"""AI Challenger's own format, on a file made here as the published one is."""

import json

import cv2
import numpy as np

from dpose_jax.data.ai_challenger import to_coco
from dpose_jax.data.coco_dataset import FolderSource
from dpose_jax.pose.joint_sets import AIC

SIZES = {"054d9c": (60, 40), "fa436c": (30, 50)}


def human(seed, left=5.0, top=4.0):
    rng = np.random.default_rng(seed)
    joints = np.c_[rng.integers(6, 25, (14, 2)), rng.integers(1, 4, 14)]
    joints[0, 2], joints[1, 2], joints[2] = 1, 2, (0, 0, 3)
    return joints.ravel().tolist(), [left, top, left + 20, top + 30]


def entry(name, *humans):
    joints, boxes = {}, {}
    for number, (points, corners) in enumerate(humans, start=1):
        joints[f"human{number}"], boxes[f"human{number}"] = points, corners
    url = f"http://example.org/{name}.jpg"
    return {"image_id": name, "url": url, "keypoint_annotations": joints, "human_annotations": boxes}


def write(tmp_path, content):
    (tmp_path / "images").mkdir(exist_ok=True)
    for name, (width, height) in SIZES.items():
        cv2.imwrite(str(tmp_path / "images" / f"{name}.jpg"), np.full((height, width, 3), 90, np.uint8))
    (tmp_path / "own.json").write_text(json.dumps(content))
    return FolderSource(
        str(tmp_path), "own.json", "images", AIC, use_area=False, max_bad_share=1.0, training=True
    )  # fmt: skip


def counted(source):
    return {name: n for name, n in source.report().items() if n and name not in ("records", "kept")}


def test_own_format_reads_as_its_conversion(tmp_path):
    humans = [human(1), human(2, left=-3.0), human(3)]
    humans[1][0][:] = map(float, humans[1][0])  # as some converters write them, flags too
    source = write(tmp_path, [entry("054d9c", *humans[:2]), entry("fa436c", humans[2])])
    assert [source[i].annotation_id for i in range(len(source))] == [1, 2, 3]
    assert [source[i].image_id for i in range(len(source))] == [1, 1, 2]
    for person, (joints, (left, top, right, bottom)) in zip(list(source), humans, strict=True):
        joints = np.array(joints, np.float32).reshape(14, 3)
        # 1 visible, 2 occluded, 3 not labelled becomes COCO's 2, 1, 0.
        visibility = 3 - joints[:, 2]
        np.testing.assert_array_equal(person.keypoints[:, 2], visibility)
        np.testing.assert_array_equal(person.keypoints[:, :2], joints[:, :2] * (visibility > 0)[:, None])
        np.testing.assert_array_equal(person.bbox, np.float32([max(left, 0), top, right - max(left, 0), bottom - top]))
    assert source.read_image(2).shape == (50, 30, 3)
    assert counted(source) == {"box_clipped": 1, "joint_outside_box": 1}
    truth = source.ground_truth()
    assert [(image["file_name"], image["width"], image["height"]) for image in truth["images"]] == [
        (f"{name}.jpg", *size) for name, size in SIZES.items()
    ]
    assert {annotation["area"] for annotation in truth["annotations"]} == {0.53 * 20 * 30}


def test_broken_entries_are_left_out_by_rule(tmp_path):
    joints, box = human(1)
    no_box, no_joints = entry("fa436c", human(2)), entry("fa436c", human(2))
    no_box["human_annotations"], no_joints["keypoint_annotations"] = {}, {}
    broken = {
        "joint_list": entry("fa436c", (joints[:-3], box)),
        "joint_nan": entry("fa436c", ([float("nan"), *joints[1:]], box)),
        "joint_visibility": entry("fa436c", ([*joints[:2], 0, *joints[3:]], box)),
        "box_entry": entry("fa436c", (joints, box[:3])),
        "box_empty": entry("fa436c", (joints, [9, 9, 9, 20])),
        "box_outside": entry("fa436c", (joints, [31, 9, 40, 20])),
        "no_joints": entry("fa436c", ([5, 5, 3] * 14, box)),
        "image_duplicate_id": entry("054d9c", human(2)),
        "image_missing": entry("gone", human(2)),
        "image_outside_folder": entry("../own", human(2)),
    }
    for rule, bad in [*broken.items(), ("box_only", no_joints)]:
        source = write(tmp_path, [entry("054d9c", human(1)), bad])
        assert counted(source) == {rule: 1} and len(source) == 1, rule
    source = write(tmp_path, [entry("054d9c", human(1)), no_box])
    assert counted(source)["box_from_joints"] == 1 and len(source) == 2
    assert counted(write(tmp_path, [entry("054d9c", human(1)), {"image_id": 7}])) == {"image_entry": 1}


def test_ids_are_places_in_the_file():
    content = [entry("a", human(1), human(2)), 5, entry("a", human(3)), entry("b", human(4))]
    coco = to_coco(content, lambda name: (100, 100))
    assert [(each["id"], each["image_id"]) for each in coco["annotations"]] == [(1, 1), (2, 1), (4, 4)]
