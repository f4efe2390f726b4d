"""The model that comes with the package: whole, small, and as good on drawn people as its card says."""

import os

import numpy as np

from dpose_jax import Predictor
from dpose_jax.data.synthetic.dataset import VAL_FIRST_INDEX, SyntheticSource
from dpose_jax.evaluation.oks import pck
from dpose_jax.pose.joint_sets import COCO
from dpose_jax.workdir import model_folder

PERSONS = 16


def test_the_package_brings_a_model_that_finds_joints():
    files = os.listdir(model_folder.SHIPPED)
    assert sorted(files) == ["README.md", "model.json", "model.safetensors"]
    assert sum(os.path.getsize(os.path.join(model_folder.SHIPPED, name)) for name in files) < 8e6
    predictor = Predictor.load(batch_sizes=(PERSONS,))
    assert predictor.joint_set.joints == COCO.joints and predictor.sampler.settings[0].steps == 1
    source = SyntheticSource(PERSONS, COCO, difficulty=0.1, seed=1, first_index=VAL_FIRST_INDEX)
    persons = [source[index] for index in range(PERSONS)]
    poses = predictor([source.read_image(index) for index in range(PERSONS)], [[one.bbox] for one in persons])
    found = np.concatenate([one.keypoints for one in poses])
    truth = np.stack([one.keypoints for one in persons])
    sides = np.array([one.bbox[2:].max() for one in persons])
    share, _ = pck(found, truth[..., :2], truth[..., 2], sides, 0.1)
    assert share > 0.9
