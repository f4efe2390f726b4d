import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.pose import heatmaps
from dpose_jax.pose.codec import Codec

RNG = np.random.default_rng(0)
CODEC = Codec((64, 48), 2, sigma=2.0, blur=5)


def noisy_heatmaps():
    """(2, 3, H, W, 5): people over the whole map and to its border."""
    joints = RNG.random((2, 3, 5, 2)) * (np.array(CODEC.input_size[::-1]) - 1)
    clean = np.asarray(CODEC.encode(joints.astype(np.float32), np.ones(joints.shape[:-1], np.float32)))
    return clean + RNG.normal(0, 0.02, clean.shape).astype(np.float32)


@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_highest_is_numpys_column_by_column(levels):
    """Also of equal values, of which there are many with few levels, and of constant maps."""
    maps = RNG.integers(levels, size=(3, 2, 9, 7, 4)).astype(np.float32)
    maps[0, 0] = 0
    x, y, value = heatmaps.highest(maps)
    index = np.swapaxes(maps, -3, -2).reshape(3, 2, -1, 4).argmax(axis=-2)
    np.testing.assert_array_equal(x, index // 9)
    np.testing.assert_array_equal(y, index % 9)
    np.testing.assert_array_equal(value, maps.max(axis=(-3, -2)))


@pytest.mark.parametrize("radius", [0, 1, 4])
def test_patches_repeat_the_border(radius):
    maps = RNG.random((2, 3, 6, 5, 4), np.float32)
    x, y = RNG.integers(5, size=(2, 3, 4)), RNG.integers(6, size=(2, 3, 4))
    found = heatmaps.patches(maps, x, y, radius)
    width = [(0, 0)] * 2 + [(radius, radius)] * 2 + [(0, 0)]
    padded = np.pad(maps, width, mode="edge")
    for i, k, j in np.ndindex(2, 3, 4):
        row, column = y[i, k, j], x[i, k, j]
        expected = padded[i, k, row : row + 2 * radius + 1, column : column + 2 * radius + 1, j]
        np.testing.assert_array_equal(found[i, k, j], expected)


def test_products_give_what_the_gather_does():
    maps = RNG.normal(size=(5, 12, 9, 4)).astype(np.float32)
    rows, columns = RNG.integers(12, size=(5, 4, 3)), RNG.integers(9, size=(5, 4, 2))
    np.testing.assert_array_equal(
        heatmaps.by_products(maps, rows, columns), heatmaps.by_gather(jnp.asarray(maps), rows, columns)
    )


def dark(heatmap):
    """The published way for one map, in float64: OpenCV smooths all of it, Taylor around the highest pixel."""
    height, width = heatmap.shape
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    y, x = np.clip(y, 1, height - 2), np.clip(x, 1, width - 2)
    smooth = cv2.GaussianBlur(heatmap.astype(np.float64), (5, 5), 1.1, borderType=cv2.BORDER_CONSTANT)
    whole = 3 <= x < width - 3 and 3 <= y < height - 3
    logs = np.log(np.maximum(smooth if whole else heatmap.astype(np.float64), 1e-10))[y - 1 : y + 2, x - 1 : x + 2]
    gradient = np.array([logs[1, 2] - logs[1, 0], logs[2, 1] - logs[0, 1]]) / 2
    xy = (logs[2, 2] - logs[2, 0] - logs[0, 2] + logs[0, 0]) / 4
    hessian = np.array([[logs[1, 2] - 2 * logs[1, 1] + logs[1, 0], xy], [xy, logs[2, 1] - 2 * logs[1, 1] + logs[0, 1]]])
    if not (hessian[0, 0] < 0 and hessian[1, 1] < 0 and np.linalg.det(hessian) > 1e-9):
        return np.array([x, y], float)
    return [x, y] + np.clip(-np.linalg.solve(hessian, gradient), -1.5, 1.5)


def test_dark_is_that_of_a_smoothed_map():
    maps = noisy_heatmaps()
    found, scores = CODEC.peaks(maps, "dark")
    expected = [dark(maps[i, k, :, :, j]) for i, k, j in np.ndindex(found.shape[:-1])]
    np.testing.assert_allclose(np.asarray(found).reshape(-1, 2), expected, atol=2e-4)
    np.testing.assert_array_equal(scores, maps.max(axis=(-3, -2)))
