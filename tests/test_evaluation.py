"""COCO metrics against pycocotools and closed forms, and the report that `eval.json` holds."""

import contextlib
import copy
import dataclasses
import io
import json
import math
import os

import numpy as np
import pytest
from ml_collections import ConfigDict
from pycocotools.coco import COCO as CocoApi
from pycocotools.cocoeval import COCOeval

from dpose_jax.data.records import Person
from dpose_jax.evaluation.coco import METRICS, evaluate_results, write_results
from dpose_jax.evaluation.protocol import Predictions, format_table, summarise, to_results
from dpose_jax.files import write_json
from dpose_jax.skeletons import AIC, COCO, CROWDPOSE

CONFIG = ConfigDict(
    {
        "input_size": (256, 192),
        "crop": {"padding": 1.25},
        "eval": {"boxes": "gt", "min_joint_score": 0.2, "nms": 0.9},
    }
)


def ground_truth(joint_set, seed=0, images=12, per_image=4):
    """Random persons of both sizes with unlabelled joints; crowds, persons without joints and an empty image."""
    rng = np.random.default_rng(seed)
    annotations = []
    for number in range(images * per_image):
        size = rng.uniform(40, 220, 2)
        corner = rng.uniform(0, 400, 2)
        joints = np.zeros((joint_set.num_joints, 3))
        joints[:, :2] = np.round(corner + rng.uniform(size=(joint_set.num_joints, 2)) * size, 1)
        joints[:, 2] = rng.integers(0, 3, joint_set.num_joints)
        if number % 9 == 4:
            joints[:, 2] = 0
        joints[joints[:, 2] == 0] = 0
        annotations.append(
            {
                "id": number,  # from 0, which pycocotools alone mistakes for "unmatched"
                "image_id": 100 + number // per_image,
                "category_id": 1,
                "iscrowd": int(number % 11 == 7),
                "bbox": [float(v) for v in (*corner, *size)],
                "area": float(0.53 * size.prod()),
                "num_keypoints": int((joints[:, 2] > 0).sum()),
                "keypoints": joints.ravel().tolist(),
            }
        )
    return {
        "images": [{"id": 100 + i, "width": 640, "height": 640} for i in range(images + 1)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": annotations,
    }


def jittered(truth, seed=1, amount=8.0):
    """Results: the truth moved by noise of varied size, some missing, some invented."""
    rng = np.random.default_rng(seed)
    results = []
    for annotation in truth["annotations"]:
        if rng.uniform() < 0.1:
            continue
        joints = np.array(annotation["keypoints"]).reshape(-1, 3)
        joints[:, :2] += rng.normal(size=(len(joints), 2)) * amount * rng.uniform()
        for copies in range(1 + (rng.uniform() < 0.2)):
            moved = joints + [30.0 * copies, 0, 0]
            score = round(float(rng.uniform()), 3)
            image = annotation["image_id"]
            results.append({"image_id": image, "category_id": 1, "keypoints": moved.ravel().tolist(), "score": score})
    return results


def perfect(truth):
    return [
        {"image_id": a["image_id"], "category_id": 1, "keypoints": a["keypoints"], "score": 1 - 0.001 * i}
        for i, a in enumerate(truth["annotations"])
        if a["num_keypoints"] and not a["iscrowd"]
    ]


def direct(truth, results, sigmas):
    """pycocotools as its own demo runs it; ids from 1, which it needs."""
    truth = copy.deepcopy(truth)
    for annotation in truth["annotations"]:
        annotation["id"] += 1
    with contextlib.redirect_stdout(io.StringIO()):
        api = CocoApi()
        api.dataset = truth
        api.createIndex()
        run = COCOeval(api, api.loadRes(copy.deepcopy(results)), "keypoints")
        run.params.kpt_oks_sigmas = np.array(sigmas)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats


@pytest.mark.parametrize("joint_set", [COCO, CROWDPOSE, AIC], ids=lambda s: s.name)
@pytest.mark.parametrize("seed", [0, 1])
def test_metrics_agree_with_a_direct_pycocotools_run(joint_set, seed):
    truth = ground_truth(joint_set, seed)
    results = jittered(truth, seed + 10, amount=120 * np.mean(joint_set.sigmas))
    before = copy.deepcopy((truth, results))
    got = evaluate_results(truth, results, joint_set)
    assert tuple(got) == METRICS
    np.testing.assert_allclose(list(got.values()), direct(truth, results, joint_set.sigmas), rtol=0, atol=1e-9)
    assert 0.05 < got["AP"] < 0.95
    assert (truth, results) == before


def test_boxes_in_results_count_as_in_pycocotools():
    truth = ground_truth(COCO)
    results = [{**r, "bbox": [0.0, 0.0, 40.0, 40.0]} for r in jittered(truth)]
    got = evaluate_results(truth, results, COCO)
    np.testing.assert_allclose(list(got.values()), direct(truth, results, COCO.sigmas), rtol=0, atol=1e-9)
    assert got["APl"] != evaluate_results(truth, jittered(truth), COCO)["APl"]


def test_sigmas_of_the_joint_set_are_used():
    truth = ground_truth(CROWDPOSE)
    results = jittered(truth)
    tight = dataclasses.replace(CROWDPOSE, sigmas=tuple(s / 3 for s in CROWDPOSE.sigmas))
    assert evaluate_results(truth, results, tight)["AP"] < evaluate_results(truth, results, CROWDPOSE)["AP"] - 0.05


def test_perfect_predictions_have_ap_one_and_print_nothing(capsys):
    truth = ground_truth(COCO)
    assert evaluate_results(truth, perfect(truth), COCO) == pytest.approx(dict.fromkeys(METRICS, 1.0), abs=1e-12)
    assert capsys.readouterr().out == ""


def test_a_shift_lowers_ap_to_its_closed_form():
    truth = ground_truth(COCO)
    for number, annotation in enumerate(truth["annotations"]):
        joints = np.zeros((17, 3))
        joints[0] = 100 * number, 300, 1  # the nose alone, so that OKS is one exponential; noses far apart
        annotation.update(keypoints=joints.ravel().tolist(), num_keypoints=1, area=4000.0, iscrowd=0)
    # OKS .62: passes the thresholds .5, .55 and .6 of ten
    shift = math.sqrt(-2 * 4000 * (2 * COCO.sigmas[0]) ** 2 * math.log(0.62))
    results = perfect(truth)
    for result in results:
        result["keypoints"] = [v + shift * (i == 0) for i, v in enumerate(result["keypoints"])]
    got = evaluate_results(truth, results, COCO)
    assert [got[k] for k in ("AP", "AP50", "AP75", "AR")] == pytest.approx([0.3, 1, 0, 0.3], abs=1e-12)


def test_empty_results_give_zero_and_absent_sizes_none():
    truth = ground_truth(COCO)
    assert evaluate_results(truth, [], COCO) == dict.fromkeys(METRICS, 0.0)
    for annotation in truth["annotations"]:
        annotation["area"] = 5000.0
    got = evaluate_results(truth, perfect(truth), COCO)
    assert got["APl"] is None and got["ARl"] is None and got["APm"] == pytest.approx(1)
    assert "null" in json.dumps(got, allow_nan=False)


def test_crowds_and_persons_without_joints_are_neither_hits_nor_misses():
    truth = ground_truth(COCO)
    results = perfect(truth)
    inside = next(a for a in truth["annotations"] if a["num_keypoints"] == 0)
    box = inside["bbox"]
    joints = [box[0] + box[2] / 2, box[1] + box[3] / 2, 1] * 17
    results.append({"image_id": inside["image_id"], "category_id": 1, "keypoints": joints, "score": 2.0})
    assert evaluate_results(truth, results, COCO)["AP"] == pytest.approx(1)
    crowd = next(a for a in truth["annotations"] if a["iscrowd"])
    results += [
        {"image_id": crowd["image_id"], "category_id": 1, "keypoints": crowd["keypoints"], "score": s} for s in (3.0, 4)
    ]
    assert evaluate_results(truth, results, COCO)["AP"] == pytest.approx(1)
    crowd["iscrowd"] = 0
    assert evaluate_results(truth, results, COCO)["AP"] < 0.999


def test_optional_fields_of_annotations_are_filled_in():
    truth = ground_truth(COCO)
    truth["annotations"] = [a for a in truth["annotations"] if not a["iscrowd"]]
    bare = copy.deepcopy(truth)
    for annotation in bare["annotations"]:
        del annotation["iscrowd"], annotation["num_keypoints"]
    assert evaluate_results(bare, jittered(truth), COCO) == evaluate_results(truth, jittered(truth), COCO)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 5}, "image 5.*no such image"),
        ({"category_id": 3}, r"category_id must be one of \[1\], got 3"),
        ({"keypoints": [0.0] * 42}, "must be 51 numbers"),
        ({"score": float("nan")}, "must be finite"),
        ({"keypoints": [math.inf] * 51}, "must be finite"),
    ],
)
def test_bad_results_are_named(change, message):
    truth = ground_truth(COCO)
    results = perfect(truth)
    results[3] = {**results[3], **change}
    with pytest.raises(ValueError, match=f"result 3.*{message}"):
        evaluate_results(truth, results, COCO)


def test_bad_annotations_are_named():
    truth = ground_truth(COCO)
    del truth["annotations"][6]["area"]
    with pytest.raises(ValueError, match="annotation 6: has no 'area'"):
        evaluate_results(truth, [], COCO)
    with pytest.raises(ValueError, match="annotation 0: keypoints must be 42 numbers"):
        evaluate_results(ground_truth(COCO), [], CROWDPOSE)


class Persons(list):
    """A source over a ground truth, without pixels."""

    def __init__(self, truth):
        self.truth = truth
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
    report, results = summarise(persons, named, COCO, CONFIG, {"codec": "unbiased", "flip": True})
    assert report["results"]["steps_1"] == pytest.approx({**dict.fromkeys(METRICS, 1), "PCK@0.2": 1, "PCK@0.1": 1})
    assert report["best"] == {"name": "steps_1", **{k: pytest.approx(1) for k in ("AP", "AP50", "PCK@0.2")}}
    assert report["results"]["coarse"]["AP"] < 0.9
    labelled = np.stack([p.keypoints[:, 2] > 0 for p in persons])
    near = np.array([math.hypot(9, 9) <= 0.1 * max(p.bbox[2:]) for p in persons])
    assert report["results"]["coarse"]["PCK@0.1"] == pytest.approx((labelled * near[:, None]).sum() / labelled.sum())
    assert report["protocol"]["persons"] == len(persons) and report["protocol"]["skipped"] == 0
    assert report["protocol"]["codec"] == "unbiased" and report["protocol"]["images"] == 13
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
    first, _ = summarise(persons, {"coarse": predictions(persons, 3.0)}, CROWDPOSE, CONFIG)
    second, _ = summarise(persons, {"coarse": predictions(persons, 3.0, order)}, CROWDPOSE, CONFIG)
    assert first["results"] == second["results"]
    third, _ = summarise(persons, {"coarse": predictions(persons, 0.0, order[4:])}, CROWDPOSE, CONFIG)
    missing = sum((persons[i].keypoints[:, 2] > 0).sum() for i in order[:4])
    labelled = sum((p.keypoints[:, 2] > 0).sum() for p in persons)
    assert third["protocol"]["skipped"] == 4
    assert third["results"]["coarse"]["PCK@0.2"] == pytest.approx(1 - missing / labelled)
    assert third["results"]["coarse"]["AR"] == pytest.approx(1 - 4 / len(persons))


def test_detected_boxes_are_rescored_suppressed_and_have_no_pck():
    persons = Persons(ground_truth(COCO, images=2, per_image=2))
    persons[0] = dataclasses.replace(persons[0], score=0.5)
    persons.append(dataclasses.replace(persons[0], score=0.25))
    config = ConfigDict(CONFIG.to_dict())
    config.eval.boxes = "detections"
    report, results = summarise(persons, {"coarse": predictions(persons)}, COCO, config)
    assert len(results["coarse"]) == len(persons) - 1
    scores = predictions(persons).scores
    assert results["coarse"][0]["score"] == pytest.approx(0.5 * scores[0].astype(float).mean())
    assert report["results"]["coarse"]["PCK@0.2"] is None and report["best"]["PCK@0.2"] is None
    assert report["results"]["coarse"]["AP"] == pytest.approx(1)
    config.eval.nms = 1.0
    assert len(to_results(persons, predictions(persons), COCO, config)) == len(persons)


def test_results_hold_python_numbers():
    persons = Persons(ground_truth(COCO))
    results = to_results(persons, predictions(persons), COCO, CONFIG)
    assert len(json.dumps(results, allow_nan=False)) > 1000
    assert results[0]["keypoints"][2::3] == pytest.approx(predictions(persons).scores[0].tolist())


def test_table_is_aligned_and_marks_the_best():
    persons = Persons(ground_truth(COCO))
    named = {"coarse": predictions(persons, 9.0), "steps_1": predictions(persons)}
    report, _ = summarise(persons, named, COCO, CONFIG, {"sampler_steps": (1, 2)})
    report["results"]["coarse"]["APl"] = None
    lines = format_table(report).splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("result"))
    assert len({len(line) for line in lines[head : head + 3]}) == 1
    assert lines[head + 1].split()[0] == "coarse" and lines[head + 1].split()[5] == "-"
    assert lines[head + 2].split()[:3] == ["steps_1", "*", "1.000"]
    assert all(len(line) <= len(lines[head]) for line in lines[:head])
    assert "nms=0.9" in " ".join(lines[:head]) and "sampler_steps=(1, 2)" in " ".join(lines[:head])


def test_bad_predictions_are_refused():
    persons = Persons(ground_truth(COCO))
    good = predictions(persons)
    with pytest.raises(ValueError, match=r"must not repeat, got \[0\]"):
        dataclasses.replace(good, index=np.where(good.index == 1, 0, good.index))
    broken = good.keypoints.copy()
    broken[5, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"not finite for index \[5\]"):
        dataclasses.replace(good, keypoints=broken)
    with pytest.raises(ValueError, match="need keypoints"):
        dataclasses.replace(good, scores=good.scores[1:])
    with pytest.raises(ValueError, match="'coarse': have 17 joints, joint set 'crowdpose' has 14"):
        summarise(persons, {"coarse": good}, CROWDPOSE, CONFIG)
    with pytest.raises(ValueError, match="at least one"):
        summarise(persons, {}, COCO, CONFIG)


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("movenet-thunder_val2017_gtbox", {"AP": 0.451, "AP50": 0.679, "AP75": 0.486, "AR": 0.503}),
        ("movenet-thunder_val2017_centernet", {"AP": 0.399, "AR": 0.485}),
        ("movenet-lightning_val2017_gtbox", {"AP": 0.365, "AR": 0.417}),
    ],
)
def test_published_baselines_on_real_data(name, want, data_root):
    truth = json.loads((data_root / "coco/annotations/person_keypoints_val2017.json").read_text())
    results = json.loads((data_root / f"coco/baselines/{name}.json").read_text())
    got = evaluate_results(truth, results, COCO)
    assert {key: got[key] for key in want} == pytest.approx(want, abs=1e-3)
