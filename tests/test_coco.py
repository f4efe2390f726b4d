"""COCO's metrics against pycocotools, a plain implementation and closed forms; the checks of what comes in."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
from evaluation_cases import ground_truth, jittered, perfect, plain_ap, pycocotools_run

from dpose_jax.evaluation.coco import ENGINES, METRICS, coco_metrics, evaluate_results, joint_ap
from dpose_jax.evaluation.results_check import check_inputs
from dpose_jax.pose.joint_sets import AIC, COCO, CROWDPOSE


@pytest.mark.parametrize("joint_set", [COCO, CROWDPOSE, AIC], ids=lambda s: s.name)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("engine", ENGINES)
def test_metrics_agree_with_a_direct_pycocotools_run(joint_set, seed, engine):
    """Crowds, persons without joints, id 0, an empty image, all sizes, equal scores, more than 20 results an image."""
    truth = ground_truth(joint_set, seed)
    results = jittered(truth, seed + 10, amount=120 * np.mean(joint_set.sigmas), invented=18 * seed)
    assert seed == 0 or max(sum(r["image_id"] == i["id"] for r in results) for i in truth["images"]) > 20
    assert len({r["score"] for r in results}) < len(results) / 2
    before = copy.deepcopy((truth, results))
    got = evaluate_results(truth, results, joint_set, engine=engine)
    assert tuple(got) == METRICS
    want = pycocotools_run(truth, results, joint_set.sigmas)
    np.testing.assert_allclose(list(got.values()), want, rtol=0, atol=1e-12)
    assert 0.05 < got["AP"] < 0.95
    assert (truth, results) == before


@pytest.mark.parametrize("seed", [2, 3])
def test_some_images_and_single_joints_agree_with_the_definition(seed):
    truth = ground_truth(CROWDPOSE, seed, images=6)
    results = jittered(truth, seed, amount=12, invented=9)
    inputs = check_inputs(truth, results, CROWDPOSE)
    part = [101, 103, 104, 106]
    whole, slices = coco_metrics(inputs, {"part": part, "empty": [106], "none": []})
    assert slices["part"] == pytest.approx(pycocotools_run(truth, results, CROWDPOSE.sigmas, part)[0], abs=1e-12)
    assert slices["part"] == pytest.approx(plain_ap(truth, results, CROWDPOSE.sigmas, images=part), abs=1e-9)
    assert slices["empty"] is None and slices["none"] is None
    assert whole["AP"] == pytest.approx(plain_ap(truth, results, CROWDPOSE.sigmas), abs=1e-9)
    joints = joint_ap(inputs)
    assert tuple(joints) == CROWDPOSE.joints and len(set(joints.values())) > 7
    for j, name in enumerate(CROWDPOSE.joints):
        assert joints[name] == pytest.approx(plain_ap(truth, results, CROWDPOSE.sigmas, joints=[j]), abs=1e-9)


def test_joint_that_nobody_has_is_none_and_the_others_stay():
    truth = ground_truth(CROWDPOSE)
    results = jittered(truth)
    before = joint_ap(check_inputs(truth, results, CROWDPOSE))
    for annotation in truth["annotations"]:
        annotation["keypoints"][5] = 0
    after = joint_ap(check_inputs(truth, results, CROWDPOSE))
    assert after == {**before, "right_shoulder": None} and before["right_shoulder"] > 0.1


def test_boxes_in_results_count_as_in_pycocotools():
    truth = ground_truth(COCO)
    results = [{**r, "bbox": [0.0, 0.0, 40.0, 40.0]} for r in jittered(truth)]
    got = evaluate_results(truth, results, COCO)
    np.testing.assert_allclose(list(got.values()), pycocotools_run(truth, results, COCO.sigmas), rtol=0, atol=1e-9)
    assert got["APl"] != evaluate_results(truth, jittered(truth), COCO)["APl"]


def test_sigmas_of_the_joint_set_are_used():
    truth = ground_truth(CROWDPOSE)
    results = jittered(truth)
    tight = dataclasses.replace(CROWDPOSE, sigmas=tuple(s / 3 for s in CROWDPOSE.sigmas))
    assert evaluate_results(truth, results, tight)["AP"] < evaluate_results(truth, results, CROWDPOSE)["AP"] - 0.05


def test_perfect_predictions_have_ap_one_and_print_nothing(capfd):
    truth = ground_truth(COCO)
    assert evaluate_results(truth, perfect(truth), COCO) == pytest.approx(dict.fromkeys(METRICS, 1.0), abs=1e-12)
    assert capfd.readouterr() == ("", "")


def test_a_shift_lowers_ap_to_its_closed_form():
    truth = ground_truth(COCO)
    for number, annotation in enumerate(truth["annotations"]):
        joints = np.zeros((17, 3))
        joints[0] = 100 * number, 300, 1  # the nose alone, so that OKS is one exponential; noses far apart
        annotation.update(keypoints=joints.ravel().tolist(), num_keypoints=1, area=4000.0, iscrowd=0)
    # OKS .62: passes the thresholds .5, .55 and .6 of ten
    shift = math.sqrt(-2 * 4000 * (2 * COCO.sigmas[0]) ** 2 * math.log(0.62))
    results = perfect(truth)
    for entry in results:
        entry["keypoints"] = [v + shift * (i == 0) for i, v in enumerate(entry["keypoints"])]
    got = evaluate_results(truth, results, COCO)
    assert [got[k] for k in ("AP", "AP50", "AP75", "AR")] == pytest.approx([0.3, 1, 0, 0.3], abs=1e-12)


def test_empty_results_give_zero_and_absent_sizes_none():
    truth = ground_truth(COCO)
    for engine in ENGINES:
        assert evaluate_results(truth, [], COCO, engine=engine) == dict.fromkeys(METRICS, 0.0)
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
        ({"image_id": 5}, "image_id 5: the ground truth has no such image, closest: 105, 112, 111"),
        ({"image_id": [5]}, r"image_id \[5\]: the ground truth has no such image, closest: 105, 112, 111"),
        ({"category_id": 3}, "category_id 3: the ground truth has no such category, its persons are 1"),
        ({"keypoints": [0.0] * 42}, "keypoints must be 51 numbers for 'coco', got 42"),
        ({"keypoints": [0.0] * 50 + [None]}, "keypoints must be finite numbers, got None"),
        ({"keypoints": [math.inf] * 51}, "keypoints must be finite numbers, got inf"),
        ({"keypoints": "no"}, "keypoints must be 51 numbers for 'coco', got str"),
        ({"score": math.nan}, "score must be a finite number, got nan"),
        ({"score": 10**400}, "score must be a finite number, got 10+…"),
        ({"keypoints": [10**400] * 51}, "keypoints must be finite numbers, got 10+…"),
        ({"score": "0.5"}, "score must be a finite number, got '0.5'"),
        ({"bbox": [1, 2, 3]}, r"bbox must be 4 finite numbers, got \[1, 2, 3\]"),
    ],
)
def test_bad_results_are_named(change, message):
    truth = ground_truth(COCO)
    results = perfect(truth)
    results[3] = {**results[3], **change}
    with pytest.raises(ValueError, match=rf"^results: result 3: .*{message}$"):
        evaluate_results(truth, results, COCO)


def test_results_without_a_field_or_that_are_none_are_named():
    truth = ground_truth(COCO)
    results = perfect(truth)
    with pytest.raises(ValueError, match="result 2: must be an object, got 7"):
        evaluate_results(truth, [*results[:2], 7], COCO)
    del results[5]["score"]
    with pytest.raises(ValueError, match="result 5: has no 'score'"):
        evaluate_results(truth, results, COCO)
    with pytest.raises(ValueError, match="results: must be a list, as COCO's result files, got dict"):
        evaluate_results(truth, {"annotations": []}, COCO)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"area": None}, "area must be a finite number, not negative, got None"),
        ({"area": -1.0}, "area must be a finite number, not negative, got -1.0"),
        ({"area": 10**400}, "area must be a finite number, not negative, got 10+…"),
        ({"bbox": [1, 2, 3]}, r"bbox must be 4 finite numbers, got \[1, 2, 3\]"),
        ({"image_id": 99}, "image_id 99: the ground truth has no such image, closest: 109, 112, 111"),
        ({"keypoints": [1.0, 1.0, 3] * 17}, r"visibility must be 0, 1 or 2, got \[3\]"),
        ({"keypoints": [math.nan] * 51}, "keypoints must be finite numbers, got nan"),
    ],
)
def test_bad_annotations_are_named(change, message):
    truth = ground_truth(COCO)
    truth["annotations"][6].update(change)
    with pytest.raises(ValueError, match=f"^ground truth: annotation 6: .*{message}$"):
        evaluate_results(truth, [], COCO)


def test_ground_truth_of_another_form_is_refused():
    truth = ground_truth(COCO)
    with pytest.raises(ValueError, match="annotation 0: .*keypoints must be 42 numbers for 'crowdpose', got 51"):
        evaluate_results(truth, [], CROWDPOSE)
    with pytest.raises(ValueError, match="must be an object with the lists images, categories, annotations"):
        evaluate_results({"images": []}, [], COCO)
    twice = {**truth, "annotations": [*truth["annotations"], truth["annotations"][3]]}
    with pytest.raises(ValueError, match="annotation 3: the id comes twice"):
        evaluate_results(twice, [], COCO)
    with pytest.raises(ValueError, match="image entry 0: must be an object with an integer id, got 5"):
        evaluate_results({**truth, "images": [5]}, [], COCO)
    del truth["annotations"][6]["area"]
    with pytest.raises(ValueError, match="annotation 6: has no 'area'"):
        evaluate_results(truth, [], COCO)


def test_without_areas_the_box_gives_the_scale():
    truth = ground_truth(COCO)
    results = jittered(truth)
    want = evaluate_results(truth, results, COCO)  # the fixture's areas are 0.53 w h
    for annotation in truth["annotations"]:
        annotation["area"] *= 3
    assert evaluate_results(truth, results, COCO)["AP"] > want["AP"] + 0.01
    assert evaluate_results(truth, results, COCO, use_area=False) == pytest.approx(want, abs=1e-12)
    for annotation in truth["annotations"]:
        del annotation["area"]
    assert evaluate_results(truth, results, COCO, use_area=False) == pytest.approx(want, abs=1e-12)


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
