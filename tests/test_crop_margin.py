import dataclasses

import numpy as np
import pytest

from dpose_jax.data import crop
from dpose_jax.data.array_record.crop_margin import Margin
from dpose_jax.data.crop import crop_spec
from dpose_jax.data.sample import Person
from dpose_jax.pose.joint_sets import COCO, JointSet
from dpose_jax.recipe import Recipe

HUGE = (10_000, 10_000)


def recipe(**augment):
    values = {f"augment.{name}": value for name, value in augment.items()}
    return Recipe().override({"input_size": (128, 96)} | values)


def person(seed, size=HUGE):
    rng = np.random.default_rng(seed)
    box = np.r_[rng.uniform(0.3, 0.6, 2) * size[::-1], rng.uniform(3, 200, 2)].astype(np.float32)
    joints = np.c_[box[:2] + rng.random((17, 2)) * box[2:], rng.integers(0, 3, 17)].astype(np.float32)
    return Person(1, 1, "1.jpg", box, joints)


def corners(view, spec):
    """Of all pixels that the crop samples, in image pixels."""
    height, width = spec.input_size
    edges = np.array([[x, y] for x in (0, width - 1) for y in (0, height - 1)], np.float64)
    return crop.map_points(crop.invert(crop.view_matrix(view, spec)), edges)


@pytest.mark.parametrize("warp", ["unbiased", "rounded"])
@pytest.mark.parametrize("augment", [{}, {"rotation": 20.0, "shift": 0.2}, {"rotation_prob": 0.0, "scale": 0.0}])
def test_no_view_leaves_the_window_and_some_reach_its_sides(warp, augment):
    drawn = recipe(**augment).override({"crop.warp": warp})
    spec = crop_spec(drawn)
    margin = Margin.of(drawn, training=True)
    slack = []
    for seed in range(12):
        somebody = person(seed)
        left, top, right, bottom = margin.window(somebody, HUGE)
        rng = np.random.default_rng(seed)
        views = [crop.draw_view(rng, somebody, spec, drawn.augment, COCO) for _ in range(120)]
        reached = np.concatenate([corners(view, spec) for view in views])
        low, high = reached.min(axis=0) - (left, top), (right, bottom) - reached.max(axis=0)
        # Bilinear sampling reads the pixel after the one it falls on.
        assert low.min() >= 0 and high.min() > 1
        slack.append(np.r_[low, high] / max(right - left, bottom - top))
    # Not much more than needed: the nearest of 12 x 120 views comes within 8% of the window's side.
    assert np.min(slack, axis=0).max() < 0.08


def test_without_training_the_window_is_the_plain_crop():
    somebody, spec = person(0), crop_spec(recipe())
    left, top, right, bottom = Margin.of(recipe(), training=False).window(somebody, HUGE)
    reached = corners(crop.padded_view(somebody.bbox, spec), spec)
    np.testing.assert_allclose(reached.min(axis=0), (left, top), atol=4)
    np.testing.assert_allclose(reached.max(axis=0), (right, bottom), atol=4)


def test_windows_lie_in_the_image():
    margin = Margin.of(recipe(), training=True)
    for box in ([0, 0, 40, 50], [0, 0, 1, 1], [39.5, 49.5, 0.5, 0.5], [38, 2, 2, 2]):
        somebody = dataclasses.replace(person(0), bbox=np.float32(box))
        left, top, right, bottom = margin.window(somebody, (50, 40))
        assert 0 <= left < right <= 40 and 0 <= top < bottom <= 50


WIDER = [
    ({"crop.padding": 1.3}, "crop.padding is 1.3, they were built for 1.25"),
    ({"augment.scale": 0.4}, "augment.scale is 0.4, they were built for 0.35"),
    ({"augment.rotation": 60.0}, "augment.rotation .* is 120.0, they were built for 90.0"),
    ({"augment.shift": 0.1}, "augment.shift is 0.1"),
    ({"augment.half_body_min_joints": 5}, "augment.half_body_min_joints is 5, they were built for 8"),
    ({"input_size": (64, 64)}, r"input_size \(its aspect\) is 1.0, they were built for 0.75"),
]


@pytest.mark.parametrize(("change", "message"), WIDER)
def test_a_recipe_that_reaches_further_is_refused(change, message):
    margin, wider = (Margin.of(each, training=True) for each in (recipe(), recipe().override(change)))
    margin.check_covers(margin, "here")
    with pytest.raises(ValueError, match=f"here: .*{message}"):
        margin.check_covers(wider, "here")
    if "input_size" not in change:
        wider.check_covers(margin, "here")


def test_half_bodies_must_be_built_for():
    without = Margin.of(recipe(half_body=0.0), training=True)
    margin = Margin.of(recipe(), training=True)
    margin.check_covers(without, "here")
    with pytest.raises(ValueError, match="augment.half_body is True, they were built for False"):
        without.check_covers(margin, "here")
    other = JointSet(COCO.name, COCO.joints, COCO.limbs, COCO.flip_pairs, COCO.sigmas, tuple(range(9)))
    with pytest.raises(ValueError, match="joint_set .its upper_body"):
        margin.check_covers(Margin.of(recipe().override({"joint_set": other}), training=True), "here")
    # A recipe that never turns needs no turned crops, whatever its angle.
    still = Margin.of(recipe(rotation_prob=0.0, rotation=90.0), training=True)
    margin.check_covers(still, "here")
    # The plain crop of an evaluation needs none of it.
    still.check_covers(Margin.of(recipe(rotation=90.0, shift=1.0), training=False), "here")
