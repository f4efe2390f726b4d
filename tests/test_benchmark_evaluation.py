"""The benchmarks of the evaluation: what the codec costs, and the detections that the timing is of."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from evaluation_cases import ground_truth

from benchmarks import codec, oks
from dpose_jax.data import crop
from dpose_jax.pose.joint_sets import COCO, CROWDPOSE


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
    for name, content in (("gt", truth), ("own", facts)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = [f"--annotations={tmp_path}/gt.json", f"--joint_set={tmp_path}/own.json", f"--out={tmp_path}/out.json"]
    program = [sys.executable, "benchmark.py", "codec", "--cases=64x64/4", *files]
    done = subprocess.run(program, cwd=pathlib.Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert len(report["rows"]) == 8 and report["rows"][0]["AP"] == pytest.approx(1)
    assert report["protocol"]["padding"] == 1.25 and report["protocol"]["joint_set"] == "own"
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
    path.write_text(json.dumps({**(truth := ground_truth(COCO)), "annotations": truth["annotations"][1:]}))
    found = {row["who"]: row for row in oks.measure(str(path), false_persons=5, calls=2)}
    assert {"ours", "hotcoco", "pycocotools"} <= set(found)
    assert all(row["difference"] < 1e-12 and row["value"] > 0 and row["cpu"] > 0 for row in found.values())
