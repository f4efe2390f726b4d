"""OKS, suppression, PCK and person scores against plain Python and closed forms; JSON files."""

import copy
import json
import math
import os
import tracemalloc

import numpy as np
import pytest

from dpose_jax.evaluation import oks as oks_module
from dpose_jax.evaluation.oks import oks, oks_nms, pck
from dpose_jax.evaluation.results import crop_area, score_persons
from dpose_jax.pose.joint_sets import AIC, COCO, CROWDPOSE
from dpose_jax.workdir.files import write_json


def slow_oks(predicted, person, area, box, sigmas):
    """One pair, in plain Python, from the definition."""
    labelled = [j for j in range(len(sigmas)) if person[j][2] > 0]
    total = 0.0
    for j in labelled or range(len(sigmas)):
        x, y = predicted[j]
        if labelled:
            dx, dy = x - person[j][0], y - person[j][1]
        else:
            left, right = box[0] - box[2], box[0] + 2 * box[2]
            top, bottom = box[1] - box[3], box[1] + 2 * box[3]
            dx = left - x if x < left else x - right if x > right else 0.0
            dy = top - y if y < top else y - bottom if y > bottom else 0.0
        total += math.exp(-(dx * dx + dy * dy) / (2 * area * (2 * sigmas[j]) ** 2))
    return total / len(labelled or sigmas)


@pytest.mark.parametrize("joint_set", [COCO, AIC], ids=lambda s: s.name)
def test_oks_equals_a_plain_loop(joint_set):
    rng = np.random.default_rng(0)
    count = joint_set.num_joints
    predicted = rng.uniform(-150, 300, (7, count, 2))
    truth = np.concatenate([rng.uniform(0, 100, (5, count, 2)), rng.integers(0, 3, (5, count, 1))], axis=-1)
    truth[:, :, :2] += rng.normal(size=(5, 1, 2))
    predicted[:4] = truth[:4, :, :2] + rng.normal(size=(4, count, 2)) * 3
    truth[3:, :, 2] = 0
    areas, boxes = rng.uniform(500, 9000, 5), rng.uniform(10, 80, (5, 4))
    got = oks(predicted, truth, areas, boxes, joint_set.sigmas)
    want = [
        [slow_oks(p, t, a, b, joint_set.sigmas) for t, a, b in zip(truth, areas, boxes, strict=True)] for p in predicted
    ]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    assert got.max() <= 1 and (got > 0.1).sum() >= 4


def test_oks_of_one_moved_joint_is_closed_form():
    truth = np.zeros((1, 17, 3))
    truth[0, :10, 2] = 1
    predicted = np.zeros((2, 17, 2))
    predicted[1, 5] = 3, 4
    predicted[1, 16] = 1e6  # unlabelled, so it must not count
    got = oks(predicted, truth, [5000.0], np.zeros((1, 4)), COCO.sigmas)[:, 0]
    moved = math.exp(-25 / (2 * 5000 * (2 * COCO.sigmas[5]) ** 2))
    np.testing.assert_allclose(got, [1, (9 + moved) / 10], rtol=0, atol=1e-14)


def test_oks_of_nobody_and_of_bad_shapes():
    assert oks(np.zeros((0, 17, 2)), np.zeros((3, 17, 3)), np.ones(3), np.ones((3, 4)), COCO.sigmas).shape == (0, 3)
    assert oks(np.zeros((2, 17, 2)), np.zeros((0, 17, 3)), np.ones(0), np.ones((0, 4)), COCO.sigmas).shape == (2, 0)
    with pytest.raises(ValueError, match="14 sigmas"):
        oks(np.zeros((1, 17, 2)), np.zeros((1, 14, 3)), np.ones(1), np.ones((1, 4)), CROWDPOSE.sigmas)
    with pytest.raises(ValueError, match="negative"):
        oks(np.zeros((1, 17, 2)), np.zeros((1, 17, 3)), [-1.0], np.ones((1, 4)), COCO.sigmas)


def person_result(x, score, image=1, size=100.0):
    rng = np.random.default_rng(0)
    joints = np.concatenate([rng.uniform(0, size, (17, 2)) + [x, 0], np.ones((17, 1))], axis=1)
    return {"image_id": image, "keypoints": joints.ravel().tolist(), "score": score, "area": size * size}


def test_nms_removes_the_duplicate_and_keeps_the_neighbour():
    best, duplicate, neighbour = person_result(0, 0.9), person_result(1, 0.8), person_result(60, 0.7)
    elsewhere = person_result(0, 0.1, image=2)
    assert oks_nms([duplicate, neighbour, best, elsewhere], COCO.sigmas, 0.9) == [neighbour, best, elsewhere]
    assert len(oks_nms([duplicate, neighbour, best, elsewhere], COCO.sigmas, 1)) == 4
    assert oks_nms([], COCO.sigmas, 0.9) == []


@pytest.mark.parametrize("soft", [False, True])
def test_nms_of_many_persons_is_that_of_few_and_takes_no_gigabytes(soft, monkeypatch):
    """Pairs are compared all at once, or a row at a time where they are many: the same decisions."""
    rng = np.random.default_rng(0)
    some = [person_result(rng.uniform(0, 400), rng.uniform()) for _ in range(60)]
    few = oks_nms(some, COCO.sigmas, 0.5, soft=soft)
    monkeypatch.setattr(oks_module, "_MAX_PAIRED", 10)
    assert oks_nms(some, COCO.sigmas, 0.5, soft=soft) == few and len(few) < len(some)
    crowd = [person_result(1000 * (n % 7), rng.uniform()) for n in range(1500)]
    tracemalloc.start()
    kept = oks_nms(crowd, COCO.sigmas, 0.9, soft=soft)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(kept) == (20 if soft else 7) and peak < 50e6  # all pairs: 1.2 GB


def test_nms_decides_at_the_oks_of_the_mean_area():
    first, second = person_result(0, 0.9), {**person_result(8, 0.8), "area": 30000.0}
    truth = np.array(first["keypoints"]).reshape(1, 17, 3)
    other = np.array(second["keypoints"]).reshape(17, 3)[:, :2].tolist()
    between = slow_oks(other, truth[0], (100 * 100 + 30000) / 2, None, COCO.sigmas)
    assert 0.3 < between < 0.95
    assert len(oks_nms([first, second], COCO.sigmas, between + 1e-9)) == 2
    assert len(oks_nms([first, second], COCO.sigmas, between - 1e-9)) == 1


def test_soft_nms_decays_the_duplicate_and_keeps_twenty():
    results = [person_result(0, 0.9), person_result(0, 0.8), person_result(5000, 0.7)]
    before = copy.deepcopy(results)
    kept = oks_nms(results, COCO.sigmas, 0.9, soft=True)
    assert [r["score"] for r in kept] == pytest.approx([0.9, 0.8 * math.exp(-1 / 0.9), 0.7], abs=1e-12)
    assert results == before
    many = [person_result(1000 * i, 0.5 + 0.01 * i) for i in range(25)]
    assert oks_nms(many, COCO.sigmas, 0.9, soft=True) == many[5:]


def test_pck_counts_labelled_joints_within_the_length():
    truth = np.zeros((2, 3, 2))
    predicted = truth.copy()
    predicted[0, :, 0] = 20, 20.001, 0
    predicted[1, :, 1] = 39, 1000, np.inf
    visible = np.array([[1, 1, 2], [2, 0, 1]])
    mean, per_joint = pck(predicted, truth, visible, np.array([100.0, 200.0]), 0.2)
    assert per_joint == [1.0, 0.0, 0.5]
    assert mean == 3 / 5
    assert pck(predicted, truth, np.zeros((2, 3)), np.ones(2), 0.2) == (None, [None] * 3)
    with pytest.raises(ValueError, match="pck"):
        pck(predicted, truth, visible, np.ones(3), 0.2)


def test_person_score_is_box_score_times_mean_of_joints_above():
    joints = np.array([[0.25, 0.5, 1.0], [0.125, 0.0, 0.25], [0.5, 0.75, -0.5]], np.float32)
    got = score_persons(joints, np.array([0.5, 1.0, 0.25]), 0.25)
    assert got.tolist() == [0.5 * 0.75, 0.0, 0.25 * 0.625]  # strictly above; 0 if none is


def test_crop_area_has_the_aspect_of_the_input():
    assert crop_area([0, 0, 30, 40], 1.25, (256, 192)) == pytest.approx(1.25**2 * 1200)
    assert crop_area([0, 0, 30, 10], 1.0, (256, 192)) == pytest.approx(30 * 40)
    assert crop_area([0, 0, 3, 40], 1.0, (256, 192)) == pytest.approx(30 * 40)


def test_json_is_valid_or_refused_and_an_old_file_survives(tmp_path):
    path = str(tmp_path / "a.json")
    write_json(path, {"x": np.float32(0.5), "n": np.int64(3), "a": np.arange(2), "t": (1, 2)})
    with open(path) as file:
        assert json.load(file) == {"x": 0.5, "n": 3, "a": [0, 1], "t": [1, 2]}
    for bad, error in ((float("nan"), ValueError), (np.float32("inf"), ValueError), (object(), TypeError)):
        with pytest.raises(error):
            write_json(path, {"x": bad})
    with open(path) as file:
        assert json.load(file)["n"] == 3
    assert os.listdir(tmp_path) == ["a.json"]
