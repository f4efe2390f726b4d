import numpy as np
import pytest

from dpose_jax.pose import heatmaps, uncertainty

SIZE = (24, 18)


def rotated(angle, long, short):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn @ np.diag([long**2, short**2]) @ turn.T


def gaussian(centre, covariance):
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    offset = np.stack([x, y], axis=-1) - centre
    exponent = np.einsum("yxi,ij,yxj->yx", offset, np.linalg.inv(covariance), offset) / 2
    return 0.7 * np.exp(-exponent)[..., None].astype(np.float32)


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0, 3.0])
def test_a_gaussian_of_sigma_has_its_covariance(sigma):
    """At every sub-pixel centre, beside the border too."""
    rng = np.random.default_rng(0)
    centres = rng.uniform([0, 0], [SIZE[1] - 1, SIZE[0] - 1], (4, 8, 2)).astype(np.float32)
    centres[0, :4] = [[0, 0], [17, 23], [0.4, 11.3], [8.5, 22.8]]
    maps = heatmaps.gaussians(centres, np.ones((4, 8)), size=SIZE, sigma=np.float32(sigma))
    found = np.asarray(uncertainty.peak_covariance(maps))
    assert found.shape == (4, 8, 2, 2)
    np.testing.assert_allclose(found, np.broadcast_to(sigma**2 * np.eye(2), found.shape), atol=2e-3 * sigma**2)


def test_a_turned_ellipse_has_its_covariance():
    for angle in np.linspace(0, np.pi, 7):
        covariance = rotated(angle, 3.0, 1.2)
        found = np.asarray(uncertainty.peak_covariance(gaussian([8.3, 12.6], covariance)))[0]
        np.testing.assert_allclose(found, covariance, rtol=0, atol=2e-2)


def test_the_height_of_the_peak_does_not_matter():
    maps = gaussian([8.3, 12.6], rotated(0.4, 2.0, 1.5))
    some, other = (np.asarray(uncertainty.peak_covariance(scale * maps)) for scale in (1.0, 0.01))
    np.testing.assert_allclose(some, other, rtol=1e-3)


@pytest.mark.parametrize("maps", [np.zeros((*SIZE, 1)), np.full((*SIZE, 1), -0.1), np.full((*SIZE, 1), 0.5)])
def test_a_flat_map_is_as_wide_as_the_map(maps):
    np.testing.assert_allclose(uncertainty.peak_covariance(maps)[0], 24**2 * np.eye(2), rtol=1e-3, atol=1e-3)


def test_noise_has_a_positive_definite_covariance():
    maps = np.random.default_rng(0).standard_normal((32, *SIZE, 8)).astype(np.float32)
    found = np.asarray(uncertainty.peak_covariance(maps), np.float64)
    np.testing.assert_allclose(found, np.swapaxes(found, -1, -2), rtol=1e-4, atol=1e-4)
    values = np.linalg.eigvalsh(found)
    assert values.min() > 0 and values.max() < 24**2 * (1 + 1e-3)


def test_covariance_follows_an_affine_map():
    rng = np.random.default_rng(0)
    linear, factor = rng.standard_normal((3, 2, 2)), rng.standard_normal((3, 5, 2, 2))
    covariance = factor @ np.swapaxes(factor, -1, -2)
    moved = uncertainty.transform_covariance(covariance, linear)
    for b in range(3):
        for j in range(5):
            np.testing.assert_allclose(moved[b, j], linear[b] @ covariance[b, j] @ linear[b].T, rtol=1e-12)


def test_spread_is_the_root_of_the_sample_covariances_trace():
    hypotheses = np.random.default_rng(0).standard_normal((4, 6, 3, 2)) * [1.0, 2.0]
    found = uncertainty.spread(hypotheses)
    for b in range(4):
        for j in range(3):
            assert found[b, j] == pytest.approx(np.sqrt(np.trace(np.cov(hypotheses[b, :, j].T))), rel=1e-12)
    assert uncertainty.spread(np.ones((2, 3, 2))).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"at least two a person .* got \(1, 3, 2\)"):
        uncertainty.spread(np.ones((1, 3, 2)))
