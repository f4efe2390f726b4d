"""The report that `eval.json` holds: persons scored, suppressed, measured, and the protocol beside them."""

import dataclasses
import json
import math
import os

import numpy as np
import pytest
from evaluation_cases import ground_truth

from dpose_jax.data.sample import Person
from dpose_jax.evaluation.coco import METRICS, evaluate_results
from dpose_jax.evaluation.predict_split import Predictions
from dpose_jax.evaluation.report import format_table, summarise, to_results
from dpose_jax.evaluation.results import write_results
from dpose_jax.evaluation.results_file import score_files
from dpose_jax.pose.joint_sets import COCO, CROWDPOSE
from dpose_jax.recipe import Recipe
from dpose_jax.workdir.files import sha256, write_json

RECIPE = Recipe().override({"data.val_detections": "boxes.json", "eval.min_box_score": 0.1})


class Persons(list):
    """A source over a ground truth, without pixels."""

    def __init__(self, truth):
        self.truth = truth
        self.box_sha256 = sha256(__file__)
        super().__init__(
            Person(
                annotation_id=a["id"],
                image_id=a["image_id"],
                file="",
                bbox=np.array(a["bbox"], np.float32),
                keypoints=np.array(a["keypoints"], np.float32).reshape(-1, 3),
            )
            for a in truth["annotations"]
            if a["num_keypoints"] and not a["iscrowd"]
        )

    def ground_truth(self):
        return self.truth


def predictions(persons, shift=0.0, order=None):
    order = np.arange(len(persons)) if order is None else order
    keypoints = np.stack([persons[i].keypoints[:, :2] for i in order]) + np.float32(shift)
    scores = np.random.default_rng(0).uniform(0.3, 1, (len(persons), keypoints.shape[1])).astype(np.float32)
    return Predictions(index=order.astype(np.int32), keypoints=keypoints, scores=scores[order])


def test_report_of_perfect_and_shifted_predictions(tmp_path):
    persons = Persons(ground_truth(COCO))
    named = {"coarse": predictions(persons, 9.0), "steps_1": predictions(persons), "steps_2": predictions(persons)}
    report, results = summarise(persons, named, COCO, RECIPE, {"codec": "unbiased", "flip": True})
    assert report["results"]["steps_1"] == pytest.approx({**dict.fromkeys(METRICS, 1), "PCK@0.2": 1, "PCK@0.1": 1})
    assert report["best"] == {"name": "steps_1", **{k: pytest.approx(1) for k in ("AP", "AP50", "PCK@0.2")}}
    assert report["results"]["coarse"]["AP"] < 0.9
    labelled = np.stack([p.keypoints[:, 2] > 0 for p in persons])
    near = np.array([math.hypot(9, 9) <= 0.1 * max(p.bbox[2:]) for p in persons])
    assert report["results"]["coarse"]["PCK@0.1"] == pytest.approx((labelled * near[:, None]).sum() / labelled.sum())
    assert report["protocol"]["persons"] == len(persons) and report["protocol"]["skipped"] == 0
    assert report["protocol"]["codec"] == "unbiased" and report["protocol"]["images"] == 13
    assert report["protocol"]["area"] == "annotated, else 0.53 w h of the box" and not report["protocol"]["soft_nms"]
    assert list(report["joints"]["steps_2"]) == list(COCO.joints)
    assert {joint["PCK@0.1"] for joint in report["joints"]["steps_2"].values()} == {1.0}
    path = tmp_path / "new" / "eval.json"
    write_json(str(path), report)
    assert json.loads(path.read_text()) == report
    write_results(str(tmp_path / "results.json"), results["coarse"])
    written = json.loads((tmp_path / "results.json").read_text())
    assert set(written[0]) == {"image_id", "category_id", "keypoints", "score"}
    assert evaluate_results(persons.truth, written, COCO)["APl"] == report["results"]["coarse"]["APl"]
    assert sorted(os.listdir(tmp_path)) == ["new", "results.json"]


def test_report_does_not_depend_on_order_and_counts_the_skipped():
    persons = Persons(ground_truth(CROWDPOSE))
    order = np.random.default_rng(1).permutation(len(persons))
    first, _ = summarise(persons, {"coarse": predictions(persons, 3.0)}, CROWDPOSE, RECIPE)
    second, _ = summarise(persons, {"coarse": predictions(persons, 3.0, order)}, CROWDPOSE, RECIPE)
    assert first["results"] == second["results"]
    third, _ = summarise(persons, {"coarse": predictions(persons, 0.0, order[4:])}, CROWDPOSE, RECIPE)
    missing = sum((persons[i].keypoints[:, 2] > 0).sum() for i in order[:4])
    labelled = sum((p.keypoints[:, 2] > 0).sum() for p in persons)
    assert third["protocol"]["skipped"] == 4
    assert third["results"]["coarse"]["PCK@0.2"] == pytest.approx(1 - missing / labelled)
    assert third["results"]["coarse"]["AR"] == pytest.approx(1 - 4 / len(persons))


def test_detected_boxes_are_rescored_suppressed_and_matched_for_pck():
    persons = Persons(ground_truth(COCO, images=2, per_image=2))
    persons[0] = dataclasses.replace(persons[0], score=0.5)
    persons.append(dataclasses.replace(persons[0], score=0.25))
    recipe = RECIPE.override({"eval.boxes": "detections"})
    report, results = summarise(persons, {"coarse": predictions(persons)}, COCO, recipe)
    assert len(results["coarse"]) == len(persons) - 1
    scores = predictions(persons).scores
    assert results["coarse"][0]["score"] == pytest.approx(0.5 * scores[0].astype(float).mean())
    assert report["results"]["coarse"]["PCK@0.1"] == 1 and report["best"]["PCK@0.2"] == 1
    protocol = report["protocol"]
    assert (protocol["pck_match"], protocol["min_box_score"]) == ("best assignment by OKS", 0.1)
    assert (protocol["detections"], len(protocol["detections_sha256"])) == ("boxes.json", 64)
    assert report["results"]["coarse"]["AP"] == pytest.approx(1)
    soft = to_results(persons, predictions(persons), COCO, recipe.override({"eval.soft_nms": True}))
    assert len(soft) == len(persons)
    duplicate = 0.25 * scores[-1].astype(float).mean()
    assert 0 < soft[-1]["score"] <= duplicate * math.exp(-1 / 0.9) * (1 + 1e-12)
    every = to_results(persons, predictions(persons), COCO, recipe.override({"eval.nms": 1.0}))
    assert len(every) == len(persons)


def test_without_annotations_there_are_results_and_no_metric():
    """An image list such as COCO's test-dev with a detector's boxes."""
    truth = ground_truth(COCO, images=2)
    persons = Persons(truth)
    persons.truth = {**truth, "annotations": []}
    recipe = RECIPE.override({"eval.boxes": "detections"})
    report, results = summarise(persons, {"coarse": predictions(persons)}, COCO, recipe)
    assert set(report["results"]["coarse"].values()) == {None} and report["best"]["AP"] is None
    assert len(results["coarse"]) == len(persons) == report["protocol"]["persons"]
    assert "-" in format_table(report).splitlines()[-2]


def test_results_hold_python_numbers():
    persons = Persons(ground_truth(COCO))
    results = to_results(persons, predictions(persons), COCO, RECIPE)
    assert len(json.dumps(results, allow_nan=False)) > 1000
    assert results[0]["keypoints"][2::3] == pytest.approx(predictions(persons).scores[0].tolist())


def test_table_is_aligned_and_marks_the_best():
    persons = Persons(ground_truth(COCO))
    named = {"coarse": predictions(persons, 9.0), "steps_1": predictions(persons)}
    report, _ = summarise(persons, named, COCO, RECIPE, {"sampler_steps": (1, 2)})
    report["results"]["coarse"]["APl"] = None
    lines = format_table(report).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("result"))
    assert len({len(line) for line in lines[head : head + 3]}) == 1
    assert lines[head + 1].split()[0] == "coarse" and lines[head + 1].split()[5] == "-"
    assert lines[head + 2].split()[:3] == ["steps_1", "*", "1.000"]
    assert all(len(line) <= len(lines[head]) for line in lines[:head])
    assert "nms=0.9" in " ".join(lines[:head]) and "sampler_steps=(1, 2)" in " ".join(lines[:head])


def test_predictions_of_another_joint_set_or_none_are_refused():
    persons = Persons(ground_truth(COCO))
    good = predictions(persons)
    with pytest.raises(ValueError, match="'coarse': have 17 joints, joint set 'crowdpose' has 14"):
        summarise(persons, {"coarse": good}, CROWDPOSE, RECIPE)
    with pytest.raises(ValueError, match="at least one"):
        summarise(persons, {}, COCO, RECIPE)


def test_pck_is_by_the_box_as_annotated_as_the_scorers_is(tmp_path):
    truth = ground_truth(COCO, images=6, per_image=1)
    persons = Persons(truth)
    persons[:] = [dataclasses.replace(one, bbox=one.bbox * np.float32([1, 1, 0.4, 0.4])) for one in persons]  # clipped
    report, results = summarise(persons, {"coarse": predictions(persons, 9.0)}, COCO, RECIPE)
    write_json(str(tmp_path / "truth.json"), truth)
    write_results(str(tmp_path / "results.json"), results["coarse"])
    scored = score_files(str(tmp_path / "truth.json"), str(tmp_path / "results.json"), COCO, use_area=True)
    assert {name: scored[name] for name in report["results"]["coarse"]} == report["results"]["coarse"]
    assert scored["joints"] == report["joints"]["coarse"] and scored["mean_pose"] == report["mean_pose"]
    lengths = {each["protocol"]["pck_length"] for each in (report, scored)}
    assert lengths == {"longer side of the box as annotated"} and 0 < scored["PCK@0.1"] < 1
