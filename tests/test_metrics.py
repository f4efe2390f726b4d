"""What pycocotools lacks: CrowdPose's levels, AI Challenger's score, PCK of a results file."""

import copy

import numpy as np
import pytest
from evaluation_cases import ground_truth, jittered, perfect, plain_aic, plain_ap, pycocotools_run, result

from dpose_jax.evaluation.aic import official_score, results_from_native
from dpose_jax.evaluation.coco import METRICS
from dpose_jax.evaluation.metrics import best_assignment, crowd_slices, score
from dpose_jax.evaluation.results_check import check_inputs
from dpose_jax.pose.joint_sets import AIC, COCO, CROWDPOSE


def crowded(indices):
    truth = ground_truth(CROWDPOSE, images=len(indices) - 1)
    for image, index in zip(truth["images"], indices, strict=True):
        image["crowdIndex"] = index
    return truth


def test_crowdpose_levels_agree_with_runs_on_their_images_alone():
    indices = [0, 0.19, 0.2, 0.5, 0.79, 0.8, 1.0, 0.1, 0.95]
    truth = crowded(indices)
    results = jittered(truth, amount=14, invented=3)
    metrics, _ = score(check_inputs(truth, results, CROWDPOSE, use_area=False))
    assert tuple(metrics) == (*METRICS, "AP_easy", "AP_medium", "AP_hard", "PCK@0.2", "PCK@0.1")
    levels = {"AP_easy": (0, 1, 7), "AP_medium": (2, 3, 4), "AP_hard": (5, 6, 8)}
    for name, members in levels.items():
        images = [truth["images"][i]["id"] for i in members]
        assert metrics[name] == pytest.approx(plain_ap(truth, results, CROWDPOSE.sigmas, images=images), abs=1e-9)
        want = pycocotools_run(truth, results, CROWDPOSE.sigmas, images)[0]
        assert metrics[name] == pytest.approx(want, abs=1e-12)
    assert len({metrics[name] for name in levels} | {metrics["AP"]}) == 4


def test_crowdpose_levels_without_images_are_none_and_need_every_index():
    truth = crowded([0.1] * 4)
    metrics, _ = score(check_inputs(truth, jittered(truth), CROWDPOSE))
    assert metrics["AP_easy"] == metrics["AP"] > 0 and metrics["AP_medium"] is metrics["AP_hard"] is None
    assert crowd_slices(ground_truth(COCO)["images"]) == {}
    for wrong in (None, -0.5, float("nan"), "0.3"):
        truth["images"][2]["crowdIndex"] = wrong
        with pytest.raises(ValueError, match=f"image 102: crowdIndex must be a number from 0 on, got {wrong}"):
            crowd_slices(truth["images"])
    del truth["images"][2]["crowdIndex"]
    with pytest.raises(ValueError, match="gt.json: image 102: crowdIndex .* got None"):
        crowd_slices(truth["images"], "gt.json")


@pytest.mark.parametrize("seed", [0, 1])
def test_ai_challengers_score_agrees_with_its_description(seed):
    truth = ground_truth(AIC, seed)
    results = jittered(truth, seed, amount=9, invented=2 * seed)
    results = [r for r in results if r["image_id"] != 103]  # an image that nobody predicted
    inputs = check_inputs(truth, results, AIC, use_area=False)
    got = official_score(inputs)
    assert got == pytest.approx(plain_aic(truth, results, AIC.sigmas), abs=1e-12) and 0.05 < got < 0.9
    assert score(inputs)[0]["AIC"] == got
    shuffled = check_inputs(truth, results[::-1], AIC, use_area=False)
    assert official_score(shuffled) == got


def test_ai_challengers_score_in_closed_form():
    truth = ground_truth(AIC, images=2, per_image=2)
    for annotation in truth["annotations"]:
        annotation["keypoints"] = [v for j in range(14) for v in (10.0 * j, 5.0, 2 - (j == 3))]
    exact = perfect({"annotations": [{**a, "num_keypoints": 14, "iscrowd": 0} for a in truth["annotations"]]})

    def measured(results, facts=truth):
        return official_score(check_inputs(facts, results, AIC))

    assert measured(exact) == 1
    assert measured([]) == 0
    assert measured(exact[:2]) == 0.5  # the other image's two persons are missing
    assert measured(exact[:1]) == 0.5  # both persons of the image stand at the one result
    assert measured([*exact, *exact[:2]]) == pytest.approx(4 / 6)  # two results too many
    occluded = copy.deepcopy(exact)
    for entry in occluded:
        entry["keypoints"][9] = 1e4  # joint 3, which is labelled but not visible
    assert measured(occluded) == 1
    unseen = copy.deepcopy(truth)
    unseen["annotations"][0]["keypoints"] = [v for j in range(14) for v in (10.0 * j, 5.0, 1)]
    assert measured(exact, unseen) == pytest.approx(0.75)
    nobody = {**truth, "annotations": []}
    assert measured([], nobody) is None and measured(exact, nobody) == 0


def test_ai_challengers_submission_becomes_results():
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "folder/b.jpg"}, None, {"file_name": 5}]
    joints, others = [1, 2, 1] * 14, [3, 4, 1] * 14
    content = [
        {"image_id": "b", "keypoint_annotations": {"human1": others}},
        {"image_id": "gone", "keypoint_annotations": {"human1": others}},
        {"image_id": "b.jpg", "keypoint_annotations": {"human1": joints, "human2": joints}},
        {"image_id": "a", "keypoint_annotations": {}},
    ]
    got, left_out = results_from_native(content, images, "submit.json")
    assert got == [{"image_id": 9, "category_id": 1, "keypoints": joints, "score": 1.0}] * 2
    assert left_out == {"unknown_image": ["gone"], "repeated_image": ["b.jpg"]}
    for wrong in ({"image_id": "a"}, {"image_id": 5, "keypoint_annotations": {}}, 3):
        with pytest.raises(ValueError, match="submit.json: entry 4: not of AI Challenger's format"):
            results_from_native([*content, wrong], images, "submit.json")
    with pytest.raises(ValueError, match="submit.json: .* none of its images, such as 'gone'; closest: 'b', 'a'"):
        results_from_native(content[1:2], images, "submit.json")


def test_pck_of_a_results_file_is_that_of_the_best_assignment():
    """Persons side by side, results in another order and with scores that would mislead a greedy match."""
    truth = ground_truth(COCO, images=1, per_image=3)
    for i, annotation in enumerate(truth["annotations"]):
        joints = [v for j in range(17) for v in (10.0 * j + 60 * i, 7.0 * j, 2)]
        annotation.update(keypoints=joints, iscrowd=0, num_keypoints=17, bbox=[60.0 * i, 0.0, 160.0, 112.0], area=9e3)

    def moved(i, shift):
        return [v + shift * (k % 3 == 0) for k, v in enumerate(truth["annotations"][i]["keypoints"])]

    # The first result, of highest score, is closest to person 1, but person 0 has no other.
    results = [result(100, moved(0, 33.0), 0.9), result(100, moved(1, 1.0), 0.2), result(100, moved(2, -4.0), 0.1)]
    matched = best_assignment(check_inputs(truth, results, COCO))
    shifts = (matched.predicted - matched.truth[..., :2])[..., 0].mean(axis=1)
    np.testing.assert_allclose(shifts, [33, 1, -4])
    np.testing.assert_array_equal(matched.lengths, [160] * 3)
    metrics, joints = score(check_inputs(truth, results, COCO))
    assert metrics["PCK@0.2"] == pytest.approx(2 / 3) and joints["nose"]["PCK@0.1"] == pytest.approx(2 / 3)
    assert score(check_inputs(truth, results[:1], COCO))[0]["PCK@0.2"] in (0, 1 / 3)
    assert score(check_inputs(truth, [], COCO))[0]["PCK@0.2"] == 0


def test_pck_leaves_out_crowds_and_persons_without_joints():
    truth = ground_truth(COCO)
    counted = [a for a in truth["annotations"] if a["num_keypoints"] and not a["iscrowd"]]
    assert 0 < len(counted) < len(truth["annotations"])
    metrics, joints = score(check_inputs(truth, perfect(truth), COCO))
    assert metrics["PCK@0.1"] == 1 and set(joints) == set(COCO.joints)
    assert len(best_assignment(check_inputs(truth, [], COCO)).truth) == len(counted)


def test_without_results_or_annotations_nothing_breaks():
    truth = ground_truth(CROWDPOSE)
    metrics, joints = score(check_inputs(truth, [], CROWDPOSE))
    assert set(metrics.values()) == {0.0} and joints["neck"] == {"AP": 0.0, "PCK@0.2": 0.0, "PCK@0.1": 0.0}
    nobody = {**truth, "annotations": []}
    metrics, joints = score(check_inputs(nobody, jittered(truth), CROWDPOSE))
    assert set(metrics.values()) == {None} and set(joints["neck"].values()) == {None}
