"""Pictures by their pixels: colours where they belong, sizes, alignment, and inputs left alone."""

import os

import cv2
import numpy as np
import pytest

from dpose_jax.pose.joint_sets import AIC, COCO, CROWDPOSE, JointSet
from dpose_jax.visualization import draw, grid


def stick_figure(height, width, joint_set=COCO, seed=0):
    return np.random.default_rng(seed).uniform(0.1, 0.9, (joint_set.num_joints, 2)) * [width, height]


def batch(count, height, width, joint_set):
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (count, height, width, 3), np.uint8)
    joints = np.stack([stick_figure(height, width, joint_set, seed) for seed in range(count)])
    visible = rng.integers(0, 2, joints.shape[:2]).astype(np.float32)
    maps = rng.uniform(-0.5, 1.5, (count, height // 4, width // 4, joint_set.num_joints)).astype(np.float32)
    return crops, joints, visible, maps


@pytest.mark.parametrize("joint_set", [COCO, CROWDPOSE, AIC], ids=lambda s: s.name)
def test_sides_follow_the_names(joint_set):
    for name, side in zip(joint_set.joints, draw.joint_sides(joint_set), strict=True):
        assert side == ("left" if "left" in name else "right" if "right" in name else "centre")


def test_sides_of_nameless_joints_follow_the_flip_pairs():
    joint_set = JointSet("own", ("a", "b", "c"), ((0, 1),), ((2, 0),), (0.1, 0.1, 0.1), ())
    assert draw.joint_sides(joint_set) == ("right", "centre", "left")


@pytest.mark.parametrize("names", [("RElb", "LElb"), ("r_elbow", "l_elbow"), ("elbow.R", "elbow.L"), ("tip", "lTip")])
def test_sides_follow_short_names(names):
    joint_set = JointSet("own", (*names, "rToe", "upright"), (), ((0, 1),), (0.1,) * 4, ())
    assert draw.joint_sides(joint_set) == ("right", "left", "right", "centre")


def test_limbs_and_joints_have_the_colour_of_their_side():
    keypoints = np.zeros((17, 2))
    keypoints[[5, 7]] = (40, 30), (40, 130)  # left arm
    keypoints[[6, 8]] = (120, 30), (120.4, 130.3)  # right arm
    shown = np.zeros(17)
    shown[5:9] = 2
    image = np.full((200, 200, 3), 90, np.uint8)
    drawn = draw.draw_pose(image, keypoints, COCO, shown=shown, thickness=5)
    for (x, y), side in (((40, 80), "left"), ((120, 80), "right"), ((80, 30), "centre"), ((40, 30), "left")):
        assert drawn[y, x].tolist() == list(draw.SIDE_COLORS[side])
    assert drawn[80, 44].sum() < 150  # the outline
    assert (drawn[150:] == 90).all() and (drawn[:, 140:] == 90).all()
    assert (image == 90).all()


@pytest.mark.parametrize("thickness", [1, 2, 3, 6])
def test_a_joint_is_drawn_round_about_its_centre(thickness):
    keypoints = np.zeros((17, 2))
    keypoints[0] = 30, 40
    image = np.zeros((80, 60, 3), np.uint8)
    drawn = draw.draw_pose(image, keypoints, COCO, shown=np.arange(17) == 0, thickness=thickness).astype(float)
    weight = drawn.sum(axis=-1)
    ys, xs = np.mgrid[:80, :60]
    assert (weight * xs).sum() / weight.sum() == pytest.approx(30, abs=0.15)
    assert (weight * ys).sum() / weight.sum() == pytest.approx(40, abs=0.15)
    spread = [(weight * (xs - 30) ** 2).sum(), (weight * (ys - 40) ** 2).sum()]
    assert spread[0] == pytest.approx(spread[1], rel=0.2)


def test_joints_that_are_hidden_or_not_finite_are_left_out():
    image = np.full((100, 100, 3), 77, np.uint8)
    keypoints = np.full((17, 2), np.nan)
    assert (draw.draw_pose(image, keypoints, COCO) == image).all()
    keypoints[5] = 50, 50
    assert (draw.draw_pose(image, keypoints, COCO) != image).any()
    assert (draw.draw_pose(image, keypoints, COCO, shown=np.zeros(17)) == image).all()
    keypoints[:] = 1e30
    assert draw.draw_pose(image, keypoints, COCO).shape == image.shape


@pytest.mark.parametrize(("size", "at"), [((60, 12_000), (11_900, 30)), ((12_000, 60), (30, 11_900))])
def test_joints_of_large_images_are_drawn_at_their_place(size, at):
    keypoints = np.full((17, 2), np.nan)
    keypoints[5] = at
    drawn = draw.draw_pose(np.zeros((*size, 3), np.uint8), keypoints, COCO, thickness=2)
    assert drawn[at[1], at[0]].tolist() == list(draw.SIDE_COLORS["left"])
    ys, xs = np.nonzero(drawn.any(axis=-1))
    assert abs(xs - at[0]).max() < 8 and abs(ys - at[1]).max() < 8


def test_lines_are_thinner_on_small_persons_and_thicker_on_large_images():
    def coloured(image_size, extent):
        keypoints = np.zeros((17, 2))
        keypoints[[5, 7]] = (20, 20), (20, 20 + extent)
        shown = np.isin(np.arange(17), (5, 7))
        drawn = draw.draw_pose(np.zeros((image_size, image_size, 3), np.uint8), keypoints, COCO, shown=shown)
        return (drawn[20 + extent // 2] == draw.SIDE_COLORS["left"]).all(axis=-1).sum()

    assert coloured(1000, 40) < coloured(1000, 900)
    assert coloured(250, 200) < coloured(1000, 900)


def test_caption():
    assert draw.person_caption(12, 0.876, 1.0) == "#12  OKS 0.88  PCK 1.00"
    assert draw.person_caption(12) == "#12"


@pytest.mark.parametrize(("size", "scale"), [((128, 96), 2), ((256, 192), 1), ((96, 96), 3)])
def test_prediction_sheet_shows_both_poses_at_the_scale(size, scale):
    crops, joints, visible, _ = batch(7, *size, CROWDPOSE)
    predicted = joints + 3
    copies = [a.copy() for a in (crops, predicted, joints, visible)]
    captions = [draw.person_caption(i, 0.5, 0.25) for i in range(7)]
    sheet = draw.prediction_sheet(crops, predicted, joints, visible, CROWDPOSE, captions)
    assert sheet.dtype == np.uint8 and sheet.shape[1] <= draw.SHEET_WIDTH + grid.GAP
    height, width = size[0] * scale, size[1] * scale
    top, left = 34 + grid.GAP, grid.GAP
    big = cv2.resize(crops[0], None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    at = (np.stack([predicted[0], joints[0]]) + 0.5) * scale - 0.5
    shown = (np.ones(14), visible[0])
    for start, keypoints, which in zip((left, left + width + 3), at, shown, strict=True):
        want = draw.draw_pose(big, keypoints, CROWDPOSE, shown=which)
        np.testing.assert_array_equal(sheet[top : top + height, start : start + width], want)
    caption = sheet[top + height : top + height + 26, left : left + 2 * width]
    assert caption.min() < 80 and (caption == grid.PAPER[0]).mean() > 0.7
    for before, after in zip(copies, (crops, predicted, joints, visible), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_narrow_sheet_shows_its_whole_legend():
    colors = {"left": (250, 0, 0), "centre": (0, 250, 0)}
    for width in (120, 200, 900):
        strip = grid.legend("a long title", width, colors).astype(int)
        assert strip.shape[1] == width
        for channel in (0, 1):
            others = np.delete(strip, channel, axis=-1).max(axis=-1)
            assert ((strip[..., channel] > 180) & (others < 70)).any()


@pytest.mark.parametrize("warp", ["unbiased", "rounded"])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_heatmaps_lie_on_their_joint(warp, scale):
    joint = np.array([40.0, 70.0])
    height, width = 32, 24
    centre = joint * [23 / 95, 31 / 127] if warp == "unbiased" else joint / 4
    ys, xs = np.mgrid[:height, :width]
    maps = np.zeros((height, width, 14), np.float32)
    maps[..., 3] = np.exp(-((xs - centre[0]) ** 2 + (ys - centre[1]) ** 2) / 8)
    black = np.zeros((128, 96, 3), np.uint8)
    drawn = draw.overlay_heatmaps(black, maps, CROWDPOSE, scale=scale, warp=warp).sum(axis=-1).astype(float)
    ys, xs = np.mgrid[: 128 * scale, : 96 * scale]
    got = np.array([(drawn * xs).sum(), (drawn * ys).sum()]) / drawn.sum()
    np.testing.assert_allclose((got + 0.5) / scale - 0.5, joint, atol=0.02)


def test_a_heatmap_has_its_joints_colour_and_values_are_clipped():
    crop = np.zeros((128, 96, 3), np.uint8)
    maps = np.full((32, 24, 14), -5, np.float32)
    assert (draw.overlay_heatmaps(crop, maps, CROWDPOSE) == 0).all()
    maps[..., 6] = 40
    want = np.round(0.9 * draw.joint_colors(CROWDPOSE)[6].astype(float))
    assert (draw.overlay_heatmaps(crop, maps, CROWDPOSE) == want).all()
    assert len(np.unique(draw.joint_colors(COCO), axis=0)) == 17


def test_heatmap_sheet_tints_inside_the_masks_and_dims_outside():
    crops, _, _, maps = batch(2, 128, 96, CROWDPOSE)
    crops[:] = 200
    mask = np.zeros((2, 32, 24, 1), np.float32)
    mask[:, :16] = 1
    inputs = crops.copy(), maps.copy(), mask.copy()
    sheet = draw.heatmap_sheet(crops, maps, mask, 1 - mask, CROWDPOSE, captions=["one", "two"])
    gap = grid.GAP
    assert sheet.shape == (32 + gap + 2 * (256 + 22 + gap), gap + 4 * (192 + gap), 3)
    top = 32 + gap
    columns = [sheet[top : top + 256, gap + k * (192 + gap) :][:, :192] for k in range(4)]
    assert (columns[0] == 200).all()
    for column, inside, outside, color in zip(
        columns[2:],
        (slice(0, 100), slice(160, 256)),
        (slice(160, 256), slice(0, 100)),
        draw.MASK_COLORS,
        strict=True,
    ):
        np.testing.assert_allclose(
            column[inside], np.broadcast_to(130 + 0.35 * np.array(color), (*column[inside].shape,)), atol=1
        )
        assert (column[outside] == 110).all()
    for before, after in zip(inputs, (crops, maps, mask), strict=True):
        np.testing.assert_array_equal(before, after)


def test_denoising_strip_has_a_column_a_step():
    crops, joints, visible, maps = batch(3, 128, 96, CROWDPOSE)
    trajectory, keypoints = np.stack([maps * 0, maps]), np.stack([joints, joints + 5])
    titles = ["coarse", "step 1"]
    strip = draw.denoising_strip(crops, trajectory, keypoints, CROWDPOSE, titles)
    wider = draw.denoising_strip(crops, trajectory, keypoints, CROWDPOSE, titles, truth=joints, visible=visible)
    gap = grid.GAP
    assert strip.shape == (32 + gap + 3 * (256 + gap), gap + 2 * (192 + gap), 3)
    assert wider.shape == (strip.shape[0], strip.shape[1] + 192 + gap, 3)
    np.testing.assert_array_equal(wider[:, : strip.shape[1]], strip)
    second = strip[32 + gap :, gap + 192 + gap :][:256, :192]
    base = draw.overlay_heatmaps(crops[0], maps[0], CROWDPOSE, scale=2)
    want = draw.draw_pose(base, (joints[0] + 5.5) * 2 - 0.5, CROWDPOSE, thickness=2)
    np.testing.assert_array_equal(second, want)
    with pytest.raises(ValueError, match="titles: must be 2"):
        draw.denoising_strip(crops, trajectory, keypoints, CROWDPOSE, ["coarse"])
    with pytest.raises(ValueError, match="warp='nearest'"):
        draw.denoising_strip(crops, trajectory, keypoints, CROWDPOSE, titles, warp="nearest")


def test_png_keeps_every_pixel_and_leaves_nothing_beside(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    path = tmp_path / "new" / "a.png"
    draw.write_png(str(path), image)
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], image)
    assert os.listdir(tmp_path / "new") == ["a.png"]
    with pytest.raises(ValueError, match=r"a\.png: image must be"):
        draw.write_png(str(path), image.astype(np.float32))
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], image)
