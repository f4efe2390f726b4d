"""The random views of a person: shares and ranges of each augmentation, half bodies, colours."""

import dataclasses

import numpy as np
import pytest
from crop_cases import BOX, HRNET, NONE, picture, spec, whole_person

from dpose_jax.data.crop import draw_view, padded_view, view_matrix, warp_image
from dpose_jax.pose.joint_sets import COCO


def draws(augment, count=2000, joint_set=COCO, bbox=BOX):
    rng = np.random.default_rng(0)
    return [draw_view(rng, whole_person(bbox=bbox), spec("unbiased"), augment, joint_set) for _ in range(count)]


def test_no_augmentation_is_the_plain_view():
    person, plain = whole_person(), padded_view(BOX.astype(np.float32), spec("unbiased"))
    view = draw_view(np.random.default_rng(0), person, spec("unbiased"), NONE, COCO)
    np.testing.assert_array_equal(view_matrix(view, spec("unbiased")), view_matrix(plain, spec("unbiased")))
    np.testing.assert_array_equal(
        warp_image(picture(), view, spec("unbiased")), warp_image(picture(), plain, spec("unbiased"))
    )


def test_augmentation_statistics():
    """Shares lie within five standard errors, extremes on the clips of HRNet's recipe."""
    views = draws(dataclasses.replace(HRNET, half_body=0.0))
    tolerance = 5 * 0.5 / np.sqrt(len(views))
    assert abs(np.mean([v.flip for v in views]) - 0.5) < tolerance
    turned = np.array([v.rotation for v in views if v.rotation])
    assert abs(len(turned) / len(views) - 0.6) < tolerance
    assert turned.min() == -90 and turned.max() == 90
    assert abs(np.median(np.abs(turned)) - 0.6745 * 45) < 3
    scale = np.array([v.size[0] for v in views]) / padded_view(BOX, spec("unbiased")).size[0]
    np.testing.assert_allclose([scale.min(), scale.max()], [0.65, 1.35], rtol=1e-6)
    # A normal variable is outside of one standard deviation with probability .317.
    assert abs(np.mean((scale < 0.6501) | (scale > 1.3499)) - 0.317) < tolerance
    assert len({tuple(v.center) for v in views}) == 1


def test_shift_is_in_units_of_the_box():
    centers = np.array([v.center for v in draws(dataclasses.replace(NONE, shift=0.2))])
    offset = (centers - (BOX[:2] + BOX[2:] / 2)) / BOX[2:]
    assert np.abs(offset).max() < 0.2 + 1e-6
    assert (np.abs(offset).max(axis=0) > 0.199).all()


def test_half_body():
    augment = dataclasses.replace(NONE, half_body=0.3)
    person = whole_person()
    views = draws(augment)
    plain = padded_view(person.bbox, spec("unbiased"))
    upper, lower = person.keypoints[:11, :2].astype(float), person.keypoints[11:, :2].astype(float)
    counts = dict.fromkeys(("upper", "lower", "whole"), 0)
    for view in views:
        for name, center in (("upper", upper.mean(0)), ("lower", lower.mean(0)), ("whole", plain.center)):
            counts[name] += bool(np.allclose(view.center, center))
    assert sum(counts.values()) == len(views)
    tolerance = 5 * 0.5 / np.sqrt(len(views))
    assert abs(counts["upper"] / len(views) - 0.3 * 0.7) < tolerance
    assert abs(counts["lower"] / len(views) - 0.3 * 0.3) < tolerance
    view = next(v for v in views if np.allclose(v.center, upper.mean(0)))
    width, height = np.ptp(upper, axis=0)
    np.testing.assert_allclose(view.size[0], 1.5 * max(width, height * 48 / 64), rtol=1e-6)


def half_view(keypoints, joint_set=COCO, upper=1.0):
    augment = dataclasses.replace(NONE, half_body=1.0, half_body_upper=upper)
    person = dataclasses.replace(whole_person(), keypoints=keypoints)
    return draw_view(np.random.default_rng(0), person, spec("unbiased"), augment, joint_set)


def test_half_body_rules():
    plain = padded_view(BOX.astype(np.float32), spec("unbiased")).center
    joints = whole_person().keypoints
    few = joints.copy()
    few[8:, 2] = 0
    np.testing.assert_allclose(half_view(few).center, plain)  # eight labelled joints are not more than eight
    lopsided = joints.copy()
    lopsided[11:15, 2] = 0  # two lower joints left: the upper half stands in
    np.testing.assert_allclose(half_view(lopsided, upper=0.0).center, joints[:11, :2].mean(0), rtol=1e-6)
    point = joints.copy()
    point[:, :2] = 50  # joints on one spot span no crop
    np.testing.assert_allclose(half_view(point).center, plain)
    np.testing.assert_allclose(half_view(joints, dataclasses.replace(COCO, upper_body=())).center, plain)


def test_random_numbers_taken_do_not_depend_on_the_person():
    rngs = [np.random.default_rng(3) for _ in range(2)]
    nobody = dataclasses.replace(whole_person(), keypoints=np.zeros((17, 3), np.float32))
    draw_view(rngs[0], whole_person(), spec("unbiased"), HRNET, COCO)
    draw_view(rngs[1], nobody, spec("unbiased"), NONE, COCO)
    assert rngs[0].random() == rngs[1].random()


def test_colour():
    image = np.full((200, 160, 3), (200, 100, 50), np.uint8)
    plain = padded_view(np.array([40.0, 40, 30, 40]), spec("unbiased"))

    def pixel(*factors):
        crop = warp_image(image, dataclasses.replace(plain, color=factors), spec("unbiased"))
        assert (crop == crop[0, 0]).all()
        return crop[0, 0].astype(int)

    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    np.testing.assert_array_equal(pixel(1.0, 1.0, 1.0), [200, 100, 50])
    np.testing.assert_array_equal(pixel(0.5, 1.0, 1.0), [100, 50, 25])
    np.testing.assert_array_equal(pixel(2.0, 1.0, 1.0), [255, 200, 100])
    np.testing.assert_allclose(pixel(1.0, 1.0, 0.0), [luma] * 3, atol=0.51)
    np.testing.assert_allclose(pixel(1.0, 0.5, 1.0), luma + 0.5 * (np.array([200, 100, 50]) - luma), atol=0.51)
    factors = np.array([v.color for v in draws(dataclasses.replace(NONE, color=0.4), 300)])
    assert factors.min() > 0.6 and factors.max() < 1.4 and np.ptp(factors, axis=0).min() > 0.75


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flip", 1.1),
        ("rotation_prob", -0.1),
        ("scale", 1.0),
        ("color", -0.1),
        ("shift", -1.0),
        ("rotation", float("nan")),
    ],
)
def test_augment_names_the_bad_field(field, value):
    with pytest.raises(ValueError, match=rf"augment.{field}={value}: must"):
        dataclasses.replace(HRNET, **{field: value})
