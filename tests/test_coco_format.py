import json
import logging
import pathlib
import re

import numpy as np
import pytest
from coco_folder import content, ids, person, read, write

from dpose_jax.data.coco_dataset import FolderSource
from dpose_jax.data.coco_format import LEFT_OUT, MALFORMED, NOTED, check_joint_names
from dpose_jax.data.image_headers import IMAGE_NOTES
from dpose_jax.pose.joint_sets import AIC, COCO, CROWDPOSE


def test_every_counter_is_documented():
    text = (pathlib.Path(__file__).parents[1] / "docs" / "data.md").read_text()
    rules = text[text.index("## Validation rules") : text.index("## Crops")]
    named = re.findall(r"^\| ?((?:`\w+`(?:, )?)+) ?\|", rules, re.MULTILINE)
    assert {name for cell in named for name in re.findall(r"\w+", cell)} == {
        *MALFORMED, *LEFT_OUT, *NOTED, *IMAGE_NOTES, "image_unreadable"
    }  # fmt: skip


# Rule, change of the annotation with id 12, whether it stays in the ground truth.
ANNOTATION_RULES = [
    ("annotation_entry", {"id": "twelve"}, False),
    ("annotation_entry", {"image_id": None}, False),
    ("annotation_duplicate_id", {"id": 11}, None),
    ("annotation_without_image", {"image_id": 77}, False),
    ("joint_list", {"keypoints": [1, 2, 2] * 2}, False),
    ("box_only", {"keypoints": None}, False),
    ("box_only", {"keypoints": []}, False),
    ("joint_list", {"keypoints": ["1"] * 9}, False),
    ("joint_list", {"keypoints": [[1, 2, 2]] * 3}, False),
    ("joint_list", {"keypoints": [10**400, 1, 2] * 3}, False),
    ("joint_nan", {"keypoints": [float("nan"), 1, 2, 3, 4, 2, 5, 6, 2]}, False),
    ("joint_nan", {"keypoints": [None, 1, 2, 3, 4, 2, 5, 6, 2]}, False),
    ("joint_nan", {"keypoints": [float("inf"), 1, 2, 3, 4, 2, 5, 6, 2]}, False),
    ("joint_visibility", {"keypoints": [9, 9, 3] * 3}, False),
    ("joint_visibility", {"keypoints": [9, 9, 0.5] * 3}, False),
    ("box_entry", {"bbox": [1, 2, 3]}, False),
    ("box_entry", {"bbox": [1, 2, 3, float("nan")]}, False),
    ("box_entry", {"bbox": [1, 2, 3, 10**400]}, False),
    ("box_empty", {"bbox": [5, 5, 0, 8]}, False),
    ("box_empty", {"bbox": [5, 5, 8, -1]}, False),
    ("box_outside", {"bbox": [40, 5, 8, 8]}, False),
    ("box_outside", {"bbox": [-9, -9, 8, 8]}, False),
    ("crowd", {"iscrowd": 1}, True),
    ("crowd", {"iscrowd": 1, "keypoints": None}, True),
    ("no_joints", {"keypoints": [0] * 9}, True),
    ("other_category", {"category_id": 2}, False),
]


@pytest.mark.parametrize(("rule", "change", "stays"), ANNOTATION_RULES)
def test_each_rule_leaves_out_counts_and_names(tmp_path, caplog, rule, change, stays):
    facts = content()
    facts["annotations"][1] |= change
    write(tmp_path, facts)
    with caplog.at_level(logging.WARNING):
        source = read(tmp_path)
    assert ids(source) == [11, 13]
    counted = {name: count for name, count in source.report().items() if count and name not in ("records", "kept")}
    assert counted == {rule: 1}
    if rule in MALFORMED:
        assert "truth.json" in caplog.text and rule in caplog.text
        assert str(facts["annotations"][1]["id"]) in caplog.text
    if stays is not None:
        assert (12 in [entry["id"] for entry in source.ground_truth()["annotations"]]) == stays


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("image_missing", {"file_name": "gone.png"}),
        ("image_missing", {"file_name": "no/such/folder.png"}),
        ("image_outside_folder", {"file_name": "../secret.png"}),
        ("image_outside_folder", {"file_name": "/etc/secret.png"}),
        ("image_outside_folder", {"file_name": "a/../../images/2.png"}),
        ("image_entry", {"file_name": 3}),
        ("image_entry", {"file_name": ""}),
        ("image_entry", {"width": 0}),
        ("image_entry", {"width": 10**400}),
        ("image_entry", {"height": "30"}),
        ("image_entry", {"id": "two"}),
    ],
)
def test_each_rule_of_images(tmp_path, rule, change):
    (tmp_path / "secret.png").write_bytes(b"")
    facts = content()
    facts["images"][1] |= change
    write(tmp_path, facts)
    source = read(tmp_path)
    assert ids(source) == [11, 12]
    assert source.report()[rule] == 1
    assert source.report()["annotation_without_image"] == (rule == "image_entry")


def test_an_image_id_given_twice_keeps_the_first(tmp_path):
    facts = content()
    facts["images"].append(facts["images"][0] | {"file_name": "2.png"})
    write(tmp_path, facts)
    source = read(tmp_path)
    assert source.report()["image_duplicate_id"] == 1 and source[0].file.endswith("1.png")


def test_boxes_are_clipped_and_outside_joints_kept(tmp_path):
    facts = content()
    facts["annotations"][0] |= {"bbox": [-5, 20, 20, 30], "keypoints": [-3, 25, 2, 5, 25, 1, -9, -9, 0]}
    write(tmp_path, facts)
    source = read(tmp_path)
    np.testing.assert_array_equal(source[0].bbox, np.float32([0, 20, 15, 10]))
    np.testing.assert_array_equal(source[0].keypoints, np.float32([[-3, 25, 2], [5, 25, 1], [0, 0, 0]]))
    assert source.report()["box_clipped"] == 1 and source.report()["joint_outside_image"] == 1
    assert source.ground_truth()["annotations"][0]["bbox"] == [-5, 20, 20, 30]


def test_too_many_bad_records_stop(tmp_path):
    facts = content()
    facts["annotations"] = [person(i) for i in range(1, 99)] + [person(99, bbox=[5, 5, 0, 8]), person(1)]
    write(tmp_path, facts)
    assert len(read(tmp_path, max_bad_share=0.02)) == 98
    with pytest.raises(ValueError, match=r"2 malformed.*max_bad_share=0.01.*duplicate_id.: 1.*box_empty.: 1"):
        read(tmp_path, max_bad_share=0.01)
    # Records left out by rule are not malformed.
    facts["annotations"] = [person(i, iscrowd=int(i > 1)) for i in range(1, 99)]
    write(tmp_path, facts)
    assert ids(read(tmp_path, max_bad_share=0.0)) == [1]


def test_log_lines_are_capped(tmp_path, caplog):
    facts = content()
    facts["annotations"] = [person(1)] + [person(i, bbox=[1, 2]) for i in range(2, 200)]
    write(tmp_path, facts)
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path).report()["box_entry"] == 198
    assert len(caplog.records) == 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(content())[:-40], "truth.json: not JSON, or cut short"),
        ("", "truth.json: not JSON"),
        ("[" * 100_000, "truth.json: not JSON"),
        ("[]", "truth.json: must be an object with the lists"),
        ('{"images": [], "annotations": {}, "categories": []}', "must be an object with the lists"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}', "exactly one category"),
    ],
)
def test_files_of_another_format(tmp_path, text, message):
    write(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_joint_names():
    check_joint_names(list(COCO.joints), COCO, "f")
    check_joint_names([name.replace("_", " ").title() for name in AIC.joints], AIC, "f")
    alias = ["head" if name == "top_head" else name for name in CROWDPOSE.joints]
    check_joint_names(alias, CROWDPOSE, "f")
    swapped = list(COCO.joints)
    swapped[5], swapped[6] = swapped[6], swapped[5]
    with pytest.raises(ValueError, match="f: .*'coco' does not fit: joint 5 is 'left_shoulder'.*'right_shoulder'"):
        check_joint_names(swapped, COCO, "f")
    with pytest.raises(ValueError, match="joint 1 is 'right_elbow'.*'left_paw'"):
        check_joint_names(["right_shoulder", "left_paw", *AIC.joints[2:]], AIC, "f")
    with pytest.raises(ValueError, match="it has 14 joints, the annotations have 17"):
        check_joint_names(list(COCO.joints), CROWDPOSE, "f")
    with pytest.raises(ValueError, match="does not fit"):
        check_joint_names(list(AIC.joints), CROWDPOSE, "f")
    with pytest.raises(ValueError, match="only 0 of 17 joint names agree"):
        check_joint_names([f"{name.split('_')[0]}_p{i}" for i, name in enumerate(COCO.joints)], COCO, "f")


def test_joint_set_that_does_not_fit_the_file(tmp_path):
    write(tmp_path, content())
    with pytest.raises(ValueError, match="truth.json: joint set 'coco' does not fit: it has 17 joints"):
        FolderSource(str(tmp_path), "truth.json", "images", COCO, training=True)
