"""What a user does with `Poses`: print, draw, save."""

import json

import cv2
import numpy as np
import pytest

from dpose_jax.inference.about import about_published, about_trained
from dpose_jax.inference.poses import Poses
from dpose_jax.pose.joint_sets import COCO
from dpose_jax.recipe import Recipe
from dpose_jax.visualization import draw

IMAGE = np.random.default_rng(0).integers(0, 256, (200, 160, 3), np.uint8)


def make(count, hypotheses=None):
    rng = np.random.default_rng(1)
    points = rng.uniform(20, 140, (count, 17, 2))
    boxes = np.tile([10.0, 10, 140, 180], (count, 1))
    scores = rng.uniform(0, 1, (count, 17)).astype(np.float32)
    covariances = rng.uniform(0, 9, (count, 17, 2, 2))
    return Poses(points, scores, np.linspace(0.9, 0.1, count), covariances, boxes, hypotheses, COCO)


def test_repr_is_a_line():
    assert repr(make(2)) == "Poses(2 persons, 17 joints of 'coco', scores [0.90, 0.10])"
    assert repr(make(9)).endswith("scores [0.90, 0.80, 0.70, 0.60, …])")
    assert repr(make(1)).startswith("Poses(1 person, ")
    assert repr(make(0)) == "Poses(0 persons, 17 joints of 'coco', scores [])"


def test_dict_is_json_with_all_that_was_found():
    poses = make(2, np.random.default_rng(2).uniform(0, 99, (2, 3, 17, 2)))
    found = json.loads(json.dumps(poses.to_dict()))
    assert found["joints"] == list(COCO.joints) and found["limbs"][0] == list(COCO.limbs[0])
    for i, person in enumerate(found["persons"]):
        np.testing.assert_array_equal(person["keypoints"], np.c_[poses.keypoints[i], poses.keypoint_scores[i]])
        np.testing.assert_array_equal(person["covariances"], poses.covariances[i])
        np.testing.assert_array_equal(person["hypotheses"], poses.hypotheses[i])
        assert person["score"] == poses.scores[i] and person["box"] == poses.boxes[i].tolist()
    assert "hypotheses" not in make(1).to_dict()["persons"][0] and make(0).to_dict()["persons"] == []


def test_files(tmp_path):
    poses = make(2)
    poses.save(tmp_path / "poses.json")
    assert json.loads((tmp_path / "poses.json").read_text()) == poses.to_dict()
    cv2.imwrite(str(tmp_path / "photo.png"), IMAGE[..., ::-1])
    poses.save(tmp_path / "drawn.png", tmp_path / "photo.png")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "drawn.png"))[..., ::-1], poses.draw(IMAGE))
    poses.save(str(tmp_path / "drawn.jpg"), IMAGE)
    assert cv2.imread(str(tmp_path / "drawn.jpg")).shape == IMAGE.shape
    for name, image in (("poses.json", IMAGE), ("drawn.png", None), ("poses", None), ("poses.txt", IMAGE)):
        with pytest.raises(ValueError, match=rf"path='{name}' with.* must be FILE.json, or with an image FILE of"):
            poses.save(name, image)


def test_lines_grow_with_the_picture():
    """Also those of a small person: what is shrunk for a screen can still be seen."""

    def width(side):
        joints = np.zeros((17, 2))
        joints[[5, 7]] = (200, 200), (200, 230)
        drawn = draw.draw_pose(np.zeros((side, side, 3), np.uint8), joints, COCO, shown=np.isin(np.arange(17), (5, 7)))
        return (drawn[215] == draw.SIDE_COLORS["left"]).all(axis=-1).sum()

    assert width(4800) == pytest.approx(8, abs=1) and width(1200) == pytest.approx(2, abs=1)


def test_which_model_it_is():
    drawn = Recipe().override({"data.source": "synthetic", "model.pretrained": "none"})
    assert about_trained("m", drawn, {"step": 7}) == "m, 7 steps of training on drawn people alone, no photos"
    both = drawn.override({"data.mix": ("folder", "rendered"), "data.mix_shares": (0.6, 0.4), "data.root": "mine"})
    assert about_trained("m", both, {"step": 7}).endswith(
        "on annotations/person_keypoints_train2017.json of mine and rendered people"
    )
    started = drawn.override({"model.pretrained": "imagenet"})
    assert about_trained("m", started, {"step": 7}).endswith("on drawn people")
    assert about_trained("m", drawn, {"weights": "hrnet_w32"}) == "m, weights of hrnet_w32"
    plain = about_published("hrnet_w32", drawn.override({"input_size": (256, 192)}))
    assert plain.startswith("hrnet_w32, plain HRNet, crops of 256 x 192 px, weights of the official HRNet (MIT")
    assert plain.endswith("AP 74.4 on COCO val2017 by its authors")
