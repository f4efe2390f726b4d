"""The benchmarks of the evaluation: what the codec costs, and the detections that the timing is of."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from evaluation_cases import ground_truth

from benchmarks import codec, oks
from benchmarks.annotations import read_ground_truth
from dpose_jax.data import crop
from dpose_jax.pose.joint_sets import AIC, COCO, CROWDPOSE


def as_published(truth, joints):
    """A ground truth with the fields of COCO's files that readers check."""
    truth["categories"][0]["keypoints"] = list(joints)
    for image in truth["images"]:
        image["file_name"] = f"{image['id']}.jpg"
    return truth


@pytest.fixture(scope="module")
def rows():
    """Four persons in crops of 256 x 192; most joints of the second lie outside of its box."""
    truth = ground_truth(COCO, images=2, per_image=2)
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = 0
    truth["annotations"][1]["bbox"] = [300.0, 300.0, 60.0, 80.0]
    found = codec.measure(truth, COCO, ["256x192/4", "256x192/8"], use_area=True)
    return {(row["codec"], row["stride"]): row for row in found}


def test_codec_costs_what_its_largest_error_allows(rows):
    """Unbiased targets with DARK lose nothing; rounding at most half a stride on each axis, and more at stride 8."""
    assert len(rows) == 2 * (1 + 2 * 3)
    assert rows["unbiased+dark", 4]["mean_error_px"] < 1e-2
    for name in ("unbiased", "rounded"):
        bound = rows[f"{name} crop, no heatmaps", None]
        assert bound["mean_error_px"] == 0
        for stride in (4, 8):
            none = rows[f"{name}+none", stride]
            assert 0.2 * stride < none["mean_error_px"] < 0.5 * np.sqrt(2) * stride
            assert none["AP"] <= bound["AP"]
    assert rows["unbiased+dark", 4]["AP"] == pytest.approx(rows["unbiased crop, no heatmaps", None]["AP"], abs=1e-9)
    assert rows["rounded+none", 8]["AP"] < rows["rounded+none", 4]["AP"]


def test_command_line(tmp_path):
    facts = {"joints": ["hand", "head"], "limbs": [[0, 1]], "flip_pairs": [], "sigmas": [0.05, 0.03]}
    truth = ground_truth(COCO, images=1, per_image=2)
    for annotation in truth["annotations"]:
        annotation.update(keypoints=[*annotation["bbox"][:2], 2, 0, 0, 0], num_keypoints=1, iscrowd=0)
    truth["annotations"].append(truth["annotations"][0] | {"id": 5, "keypoints": []})
    for name, content in (("gt", as_published(truth, facts["joints"])), ("own", facts)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = [f"--annotations={tmp_path}/gt.json", f"--joint_set={tmp_path}/own.json", f"--out={tmp_path}/out.json"]
    program = [sys.executable, "benchmark.py", "codec", "--cases=64x64/4", *files]
    done = subprocess.run(program, cwd=pathlib.Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert len(report["rows"]) == 8 and report["rows"][0]["AP"] == pytest.approx(1)
    assert report["protocol"]["padding"] == 1.25 and report["protocol"]["joint_set"] == "own"
    assert report["protocol"]["read"] == {"records": 2, "kept": 2, "box_only": 1} and "box_only 1" in done.stdout
    assert "unbiased+quarter" in (tmp_path / "out.md").read_text() and "unbiased+quarter" in done.stdout


def test_persons_are_all_but_crowds_and_joints_off_the_crop_are_not_visible():
    truth, spec = ground_truth(COCO, images=1, per_image=2), crop.CropSpec((64, 48), 1.25, "unbiased")
    entry = truth["annotations"][0]
    entry["keypoints"][:3] = -900.0, -900.0, 2
    persons, crops = codec.crop_persons(truth, spec, COCO)
    assert [person["id"] for person in persons] == [0, 1]
    assert crops["labelled"][0, 0] == 1 and crops["visible"][0, 0] == 0
    entry["iscrowd"] = 1
    assert len(codec.crop_persons(truth, spec, COCO)[0]) == 1


@pytest.mark.parametrize("case", ["256x192", "256/4", "axb/4", "256x192x3/4"])
def test_case_of_another_form(case):
    with pytest.raises(ValueError, match=f"--cases='{case}': must be HEIGHTxWIDTH/STRIDE"):
        codec.measure(ground_truth(COCO), COCO, [case], use_area=True)


def test_noisy_detections_hold_every_person_and_the_false_ones():
    truth = ground_truth(CROWDPOSE)
    persons = [a for a in truth["annotations"] if a["num_keypoints"]]
    found = oks.noisy_detections(truth, false_persons=30, seed=1)
    assert len(found) == len(persons) + 30 and json.dumps(found)
    assert [r["image_id"] for r in found[: len(persons)]] == [a["image_id"] for a in persons]
    moved = np.array([r["keypoints"] for r in found[: len(persons)]]).reshape(len(persons), -1, 3)
    exact = np.array([a["keypoints"] for a in persons]).reshape(moved.shape)
    size = np.sqrt([a["area"] for a in persons])[:, None, None]
    assert 0 < np.abs((moved - exact)[..., :2] / size).mean() < 0.05
    assert {r["image_id"] for r in found} <= {i["id"] for i in truth["images"]}
    assert found == oks.noisy_detections(truth, false_persons=30, seed=1)


def test_timing_has_a_row_for_ours_and_each_peer_and_they_agree(tmp_path):
    path = tmp_path / "gt.json"
    path.write_text(
        json.dumps(
            {**(truth := as_published(ground_truth(COCO), COCO.joints)), "annotations": truth["annotations"][1:]}
        )
    )
    found = {row["who"]: row for row in oks.measure(str(path), false_persons=5, calls=2)}
    assert {"ours", "hotcoco", "pycocotools"} <= set(found)
    assert all(row["difference"] < 1e-12 and row["value"] > 0 and row["cpu"] > 0 for row in found.values())


STRANGE = [
    ({"keypoints": None}, {"box_only": 1}),
    ({"bbox": [0, 0, 5, 0]}, {"box_empty": 1}),
    ({"image_id": 7}, {"annotation_without_image": 1}),
    ({"area": None}, {}),
    ({"iscrowd": 1, "num_keypoints": 0, "keypoints": []}, {"crowd": 1}),
    (5, {"annotation_entry": 1}),
]


@pytest.mark.parametrize(("change", "counted"), STRANGE)
def test_strange_annotations_are_counted_and_left_out(change, counted, tmp_path, capsys):
    truth = as_published(ground_truth(COCO, images=1, per_image=2), COCO.joints)
    first = truth["annotations"][0]
    truth["annotations"][1] = change if change == 5 else first | {"id": 1} | change
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    read, counts = read_ground_truth(str(tmp_path / "gt.json"), COCO)
    assert {rule: count for rule, count in counts.items() if rule not in ("records", "kept")} == counted
    printed = capsys.readouterr().out
    assert all(f"{rule} {count}" in printed for rule, count in counted.items()) and bool(printed) == bool(counted)
    kept, _ = codec.crop_persons(read, crop.CropSpec((64, 48), 1.25, "unbiased"), COCO)
    assert len(kept) == counts["kept"] == (2 if change == {"area": None} else 1)
    assert len(oks.noisy_detections(read, false_persons=3)) == len(kept) + 3


def test_ai_challengers_own_annotations_are_read_too(tmp_path):
    humans = {"human1": [10, 20, 1] * 7 + [60, 90, 2] * 7}, {"human1": [1, 2, 100, 150]}
    entry = dict(zip(("keypoint_annotations", "human_annotations"), humans, strict=True))
    (tmp_path / "gt.json").write_text(json.dumps([entry | {"image_id": "a"}]))
    read, counts = read_ground_truth(str(tmp_path / "gt.json"), AIC)
    assert codec.measure(read, AIC, ["64x64/4"], use_area=False)[0]["joints"] == 14 and counts["kept"] == 1


def test_a_file_of_another_format_or_without_a_person_is_refused_by_name(tmp_path):
    truth = as_published(ground_truth(COCO, images=1, per_image=1), COCO.joints)
    truth["annotations"][0]["keypoints"] = []
    for content, message in (([5], "must be an object with the lists"), (truth, "no person is left.*'box_only': 1")):
        (tmp_path / "gt.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"gt.json: {message}"):
            read_ground_truth(str(tmp_path / "gt.json"), COCO)
