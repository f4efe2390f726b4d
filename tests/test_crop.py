import dataclasses

import cv2
import numpy as np
import pytest
from crop_cases import BOX, HRNET, picture, spec, whole_person

from dpose_jax.data import crop as crop_module
from dpose_jax.data.crop import (
    View,
    draw_view,
    invert,
    map_points,
    padded_view,
    view_matrix,
    warp_image,
    warp_joints,
)
from dpose_jax.data.sample import Person
from dpose_jax.pose.joint_sets import COCO, JointSet

WARPS = ("unbiased", "rounded")


@pytest.mark.parametrize(("box", "size"), [([10, 20, 30, 90], (67.5, 90)), ([10, 20, 90, 30], (90, 120))])
def test_padded_view_has_the_aspect_of_the_crop(box, size):
    view = padded_view(np.array(box), spec("rounded"))
    np.testing.assert_allclose(view.size, 1.25 * np.array(size), rtol=1e-14)
    np.testing.assert_allclose(view.center, [box[0] + box[2] / 2, box[1] + box[3] / 2], rtol=1e-14)


def test_where_the_corners_go():
    view = padded_view(BOX, spec("rounded"))
    corners = np.stack([view.center - view.size / 2, view.center + view.size / 2])
    unbiased = map_points(view_matrix(view, spec("unbiased")), corners)
    np.testing.assert_allclose(unbiased, [[0, 0], [47, 63]], atol=1e-12)
    rounded = map_points(view_matrix(view, spec("rounded")), [*corners, view.center])
    np.testing.assert_allclose(rounded, [[0, 0], [48, 64], [24, 32]], atol=1e-12)


@pytest.mark.parametrize("rotation", [0.0, 30.0, -77.0])
def test_rounded_matrix_is_the_three_point_transform(rotation):
    """HRNet's construction: centre, the point half a width above it (turned), and the corner at a right angle."""
    view = dataclasses.replace(padded_view(BOX, spec("rounded")), rotation=rotation)
    angle = -np.deg2rad(rotation)
    half = view.size[0] / 2
    up = half * np.array([np.sin(angle), -np.cos(angle)])
    side = np.array([up[1], -up[0]])
    source = np.float32([view.center, view.center + up, view.center + up + side])
    target = np.float32([[24, 32], [24, 8], [0, 8]])
    expected = cv2.getAffineTransform(source, target)
    np.testing.assert_allclose(view_matrix(view, spec("rounded")), expected, atol=1e-4)


@pytest.mark.parametrize("rotation", [0.0, 30.0, -77.0])
def test_unbiased_matrix_is_udps(rotation):
    """UDP's closed form, element by element."""
    view = dataclasses.replace(padded_view(BOX, spec("unbiased")), rotation=rotation)
    c, s = np.cos(np.deg2rad(rotation)), np.sin(np.deg2rad(rotation))
    (cx, cy), (w, h) = view.center, view.size
    kx, ky = 47 / w, 63 / h
    expected = [
        [c * kx, -s * kx, kx * (-cx * c + cy * s + w / 2)],
        [s * ky, c * ky, ky * (-cx * s - cy * c + h / 2)],
    ]
    np.testing.assert_allclose(view_matrix(view, spec("unbiased")), expected, atol=1e-10)


@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("rotation", [0.0, 25.0])
def test_a_mirrored_view_is_the_mirrored_crop_to_the_bit(warp, rotation):
    image, person = picture(), whole_person()
    plain = dataclasses.replace(padded_view(BOX, spec(warp)), rotation=rotation)
    mirrored = dataclasses.replace(plain, flip=True)
    np.testing.assert_array_equal(
        warp_image(image, mirrored, spec(warp)), warp_image(image, plain, spec(warp))[:, ::-1]
    )
    points, visible = warp_joints(person.keypoints, plain, spec(warp), COCO)
    other, other_visible = warp_joints(person.keypoints, mirrored, spec(warp), COCO)
    order = list(COCO.flip_order)
    np.testing.assert_allclose(other[:, 0], 47 - points[order, 0], atol=1e-5)
    np.testing.assert_array_equal(other[:, 1], points[order, 1])
    np.testing.assert_array_equal(other_visible, visible[order])


@pytest.mark.parametrize("warp", WARPS)
@pytest.mark.parametrize("flip", [False, True])
def test_pixels_follow_the_matrix(warp, flip):
    """Each crop pixel is the bilinear sample of the image where `to_image` says, to OpenCV's precision."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (10, 8, 3), np.uint8), (160, 200), interpolation=cv2.INTER_CUBIC)
    view = View(np.array([80.3, 99.1]), np.array([60.0, 80.0]), 33.0, flip)
    crop = warp_image(image, view, spec(warp))
    x, y = np.meshgrid(np.arange(48), np.arange(64))
    where = map_points(invert(view_matrix(view, spec(warp))), np.stack([x, y], axis=-1))
    low = np.floor(where).astype(int)
    a, b = np.moveaxis(where - low, -1, 0)[..., None]
    at = [[image[low[..., 1] + j, low[..., 0] + i].astype(float) for i in (0, 1)] for j in (0, 1)]
    expected = (1 - b) * ((1 - a) * at[0][0] + a * at[0][1]) + b * ((1 - a) * at[1][0] + a * at[1][1])
    assert np.abs(crop - expected).max() < 1.1


@pytest.mark.parametrize("warp", WARPS)
def test_four_channels_are_sampled_as_three(warp, monkeypatch):
    """To the bit: persons of all sizes, also across the image's edges, and small images that are enlarged."""
    rng, views, crops = np.random.default_rng(2), [], []
    for scale in np.geomspace(0.1, 3, 40):
        center, size = rng.uniform(-20, 180, 2), np.array([60.0, 80.0]) * scale
        views.append(View(center, size, rng.uniform(-60, 60) * rng.integers(2), bool(rng.integers(2))))
    for most in (0, np.inf):
        monkeypatch.setattr(crop_module, "_FOUR_CHANNELS", most)
        crops.append([warp_image(picture(), view, spec(warp)) for view in views])
    np.testing.assert_array_equal(*crops)
    assert len(np.unique(crops[0])) > 250


@pytest.mark.parametrize("scale", [(0.5, 0.5), (0.25, 0.5)])
def test_a_shrunk_part_is_sampled_where_the_whole_is(scale):
    """Of a ramp, means over pixels are the ramp at the larger pixels' centres."""
    y, x = np.mgrid[:200, :160]
    image = np.clip(np.stack([2 * (x - 20), 2 * (y - 40), 0 * x], axis=-1), 0, 255).astype(np.uint8)
    view = View(np.array([80.3, 99.1]), np.array([60.0, 80.0]), 33.0, True)
    part = cv2.resize(image[31:191, 20:140], None, fx=scale[0], fy=scale[1], interpolation=cv2.INTER_AREA)
    whole = warp_image(image, view, spec("unbiased")).astype(float)
    error = warp_image(part, view, spec("unbiased"), (20, 31), scale) - whole
    assert np.abs(error).max() <= 1 and np.abs(error.mean(axis=(0, 1))).max() < 0.05  # a tenth of a pixel is 0.2


@pytest.mark.parametrize("warp", WARPS)
def test_a_marked_spot_stays_under_its_joint(warp):
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:200, :160]
    blob = 255 * np.exp(-((x - 71) ** 2 + (y - 101) ** 2) / (2 * 5.0**2))
    image = np.repeat(blob[..., None], 3, axis=2).astype(np.uint8)
    joint = np.float32([[71, 101, 2]])
    only = JointSet("one", ("nose",), (), (), (0.1,), ())
    person = Person(1, 1, "f", BOX, joint)
    for _ in range(20):
        view = draw_view(rng, person, spec(warp), dataclasses.replace(HRNET, shift=0.1), only)
        crop = warp_image(image, view, spec(warp))[..., 0].astype(float)
        y, x = np.mgrid[:64, :48]
        center = [(crop * x).sum() / crop.sum(), (crop * y).sum() / crop.sum()]
        (found,), (seen,) = warp_joints(joint, view, spec(warp), only)
        assert seen
        np.testing.assert_allclose(center, found, atol=0.05)


def test_outside_of_the_image_is_black():
    view = padded_view(np.array([-100.0, -100, 60, 80]), spec("unbiased"))
    assert not warp_image(picture(), view, spec("unbiased")).any()


@pytest.mark.parametrize("warp", WARPS)
def test_inverse(warp):
    view = View(np.array([80.3, 99.1]), np.array([60.0, 80.0]), 33.0, True)
    matrix = view_matrix(view, spec(warp))
    points = np.random.default_rng(0).normal(size=(5, 2)) * 100
    np.testing.assert_allclose(map_points(invert(matrix), map_points(matrix, points)), points, atol=1e-10)
    for size in (1e-200, 1e200):
        extreme = view_matrix(View(np.zeros(2), np.array([0.75, 1]) * size, 33.0), spec(warp))
        np.testing.assert_allclose(extreme[:, :2] @ invert(extreme)[:, :2], np.eye(2), atol=1e-12)


@pytest.mark.parametrize("flip", [False, True])
def test_visibility_ends_with_the_crop(flip):
    """A joint counts on the closed rectangle that the crop's pixels cover."""
    names = ("on", "off", "unlabelled")
    joints = JointSet("three", names, (), (), (0.1,) * 3, ())
    view = dataclasses.replace(padded_view(np.array([0.0, 0, 48, 64]), spec("rounded", padding=1.0)), flip=flip)
    for on, off in (([-0.5, 9], [-0.52, 9]), ([47.5, 9], [47.52, 9]), ([9, 63.5], [9, 63.52]), ([9, -0.5], [9, -0.52])):
        keypoints = np.float32([[*on, 1], [*off, 2], [5, 5, 0]])
        points, visible = warp_joints(keypoints, view, spec("rounded", padding=1.0), joints)
        expected = [47 - on[0] if flip else on[0], on[1]]
        np.testing.assert_allclose(points[0], expected, atol=1e-5)
        np.testing.assert_array_equal(visible, [1, 0, 0])
        np.testing.assert_array_equal(points[2], [0, 0])


def kept(points, crop_spec):
    """Whether joints at these crop pixels keep their label; the view's scale is 1, its first pixel the image's."""
    height, width = crop_spec.input_size
    view = padded_view(np.array([0.0, 0, width, height]), crop_spec)
    names = tuple(f"joint{i}" for i in range(len(points)))
    joints = JointSet("many", names, (), (), (0.1,) * len(points), ())
    moved, visible = warp_joints(np.c_[points, np.full(len(points), 2.0)], view, crop_spec, joints)
    np.testing.assert_allclose(moved, points, atol=1e-4)
    return visible > 0


def test_the_label_margin_moves_the_border_by_itself():
    """A joint counts up to the margin off each of the four sides, and no further."""
    plain, wide = (spec("rounded", padding=1.0, label_margin=margin) for margin in (0.0, 24.0))
    rng = np.random.default_rng(0)
    points = rng.uniform([-60, -60], [108, 124], (20000, 2))
    off = np.maximum(np.maximum(-0.5 - points, points - [47.5, 63.5]), 0).max(axis=1)
    np.testing.assert_array_equal(kept(points, plain), off == 0)
    np.testing.assert_array_equal(kept(points, wide), off <= 24)
    view = dataclasses.replace(padded_view(BOX, wide), flip=True)
    unflipped = dataclasses.replace(view, flip=False)
    joints = np.c_[rng.uniform(-60, 260, (17, 2)), np.full(17, 2)]
    order = list(COCO.flip_order)
    mirrored, straight = (warp_joints(joints, each, wide, COCO)[1] for each in (view, unflipped))
    np.testing.assert_array_equal(mirrored, straight[order])
    assert 0 < straight.sum() < 17


def test_three_sigmas_are_hrnets_rule_but_for_its_rounding():
    """HRNet drops a joint whose window of 3 sigma lies off the heatmap.

    Its window's end may touch the heatmap's first pixel from outside, and int() truncates towards zero: on the low side
    it keeps joints up to 2.375 heatmap pixels further, on the high side it drops them .375 sooner.
    """
    stride, sigma, (height, width) = 4, 2.0, (256, 192)
    ours = spec("rounded", (height, width), padding=1.0, label_margin=3 * sigma * stride)
    points = np.random.default_rng(0).uniform([-60, -60], [width + 60, height + 60], (20000, 2))
    mu = np.trunc(points / stride + 0.5)
    size = np.array([width, height]) / stride
    hrnets = ~((mu - 3 * sigma >= size) | (mu + 3 * sigma + 1 < 0)).any(axis=1)
    differs = kept(points, ours) != hrnets
    on_map = points / stride
    low = (on_map > -8.5) & (on_map <= -6.125)
    high = (on_map >= size + 5.5) & (on_map <= size + 5.875)
    assert (low | high)[differs].any(axis=1).all()
    assert 0 < differs.mean() < 0.06
