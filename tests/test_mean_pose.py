"""The mean pose of a set: the trivial answer beside every result."""

import numpy as np
import pytest
from evaluation_cases import ground_truth

from dpose_jax.evaluation.mean_pose import mean_pose, score_mean_pose
from dpose_jax.evaluation.results_check import check_inputs
from dpose_jax.pose.joint_sets import COCO


def same_pose(places, count=6):
    """Ground truth whose persons have one pose, `places` (J, 2) in units of their boxes, and one of them no face."""
    rng, annotations = np.random.default_rng(0), []
    for number in range(1, count + 1):
        x, y, width, height = rng.uniform([10, 10, 60, 80], [90, 90, 200, 300])
        joints = np.concatenate([places * (width, height) + (x, y), np.full((len(places), 1), 2.0)], axis=1)
        if number == 2:
            joints[:5] = 0
        entry = {"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, "bbox": [x, y, width, height]}
        annotations.append(entry | {"area": 0.6 * width * height, "keypoints": joints.ravel().tolist()})
    images = [{"id": number, "width": 640, "height": 480} for number in range(1, count + 1)]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}


def test_a_set_of_one_pose_is_solved_by_its_mean():
    places = np.random.default_rng(1).uniform(0.1, 0.9, (17, 2))
    inputs = check_inputs(same_pose(places), [], COCO)
    np.testing.assert_allclose(mean_pose(inputs), places, atol=1e-9)
    found = score_mean_pose(inputs)
    assert (found["AP"], found["PCK@0.1"]) == (pytest.approx(1), 1)


def test_crowds_empty_boxes_and_unlabelled_joints_do_not_count():
    places = np.random.default_rng(1).uniform(0.1, 0.9, (17, 2))
    truth = same_pose(places)
    truth["annotations"][0] |= {"iscrowd": 1, "keypoints": [500.0, 1.0, 2] * 17}
    truth["annotations"][2]["bbox"][2] = 0
    for entry in truth["annotations"]:
        entry["keypoints"][48:] = [0, 0, 0]
    found = mean_pose(check_inputs(truth, [], COCO))
    np.testing.assert_allclose(found[:16], places[:16], atol=1e-9)
    assert found[16].tolist() == [0.5, 0.5]
    assert score_mean_pose(check_inputs(ground_truth(COCO) | {"annotations": []}, [], COCO))["AP"] is None


def test_poses_that_differ_are_not_solved():
    """The mean of a pose and its mirror image is neither."""
    places = np.random.default_rng(1).uniform(0.1, 0.9, (17, 2))
    truth = same_pose(places)
    for entry in truth["annotations"][::2]:
        joints, (x, _, width, _) = np.reshape(entry["keypoints"], (-1, 3)), entry["bbox"]
        joints[:, 0] = 2 * x + width - joints[:, 0]
        entry["keypoints"] = joints.ravel().tolist()
    found = score_mean_pose(check_inputs(truth, [], COCO))
    assert found["AP"] < 0.2 and found["PCK@0.1"] < 0.6
