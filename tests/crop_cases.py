"""A crop, a picture, a person and augmentations, for the tests of crops and of augmentation."""

import numpy as np

from dpose_jax.data.crop import CropSpec
from dpose_jax.data.sample import Person
from dpose_jax.recipe import Augment

NONE = Augment(0, 0, 0, 0, 0, 8, 0.7, 0, 0)
HRNET = Augment(0.5, 0.35, 45, 0.6, 0.3, 8, 0.7, 0, 0)
BOX = np.array([31.3, 22.7, 61.0, 120.5])


def spec(warp, size=(64, 48), padding=1.25, label_margin=0.0):
    return CropSpec(size, padding, warp, label_margin)


def picture(height=200, width=160, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def whole_person(seed=0, bbox=BOX):
    rng = np.random.default_rng(seed)
    points = bbox[:2] + rng.random((17, 2)) * bbox[2:]
    return Person(1, 1, "f", bbox.astype(np.float32), np.c_[points, np.full(17, 2)].astype(np.float32))
