"""Uncertainty of a joint: the curvature of its peak, and the spread of hypotheses."""

import jax
import jax.numpy as jnp
import numpy as np

from dpose_jax.pose.heatmaps import highest, patches

FLOOR = 1e-3  # of the peak: what is lower is noise about 0, whose logarithm means nothing


@jax.jit
def peak_covariance(heatmaps: jax.Array) -> jax.Array:
    """The covariance of each joint, by the curvature of its heatmap around the highest pixel (ours).

    Minus the inverse of the Hessian of a quadratic, fitted to the log of 3 x 3 pixels (Laplace's approximation). What
    exceeds the sigma^2 of the targets is uncertainty. Standard deviations are at most the map's longer side, as those
    of a flat map. Maps (..., H, W, J) of at least 3 x 3 pixels give (..., J, 2, 2) float32, positive definite, x before
    y, heatmap pixels squared.
    """
    heatmaps = heatmaps.astype(jnp.float32)
    height, width = heatmaps.shape[-3:-1]
    x, y, peak = highest(heatmaps)
    values = patches(heatmaps, jnp.clip(x, 1, width - 2), jnp.clip(y, 1, height - 2), 1).reshape(*peak.shape, 9)
    logs = jnp.log(jnp.maximum(values, jnp.maximum(FLOOR * peak[..., None], 1e-10)))
    xx, yy, xy = jnp.moveaxis(logs @ _hessian_filter(), -1, 0)
    return _inverse(-xx, -xy, -yy, 1.0 / max(height, width) ** 2)


def _hessian_filter() -> np.ndarray:
    """(9, 3) weights of the least-squares quadratic's second derivatives xx, yy and xy (Savitzky and Golay)."""
    y, x = np.mgrid[-1:2, -1:2].reshape(2, -1).astype(np.float64)
    design = np.stack([x**2 / 2, y**2 / 2, x * y, x, y, np.ones_like(x)], axis=1)
    return np.linalg.pinv(design)[:3].T.astype(np.float32)


def _inverse(xx: jax.Array, xy: jax.Array, yy: jax.Array, least: float) -> jax.Array:
    """Inverse of the symmetric [[xx, xy], [xy, yy]], (..., 2, 2), its eigenvalues raised to `least` first."""
    # In closed form: an eigendecomposition would be a library call that an exported program cannot carry everywhere.
    mean, half = (xx + yy) / 2, (xx - yy) / 2
    radius = jnp.sqrt(half**2 + xy**2)
    high, low = 1 / jnp.maximum(mean + radius, least), 1 / jnp.maximum(mean - radius, least)
    slope = jnp.where(radius > 1e-6 * jnp.abs(mean), (high - low) / (2 * jnp.maximum(radius, 1e-12)), 0.0)
    middle = (high + low) / 2
    rows = [[middle + slope * half, slope * xy], [slope * xy, middle - slope * half]]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def transform_covariance(covariance: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """A Sigma A^T for (..., J, 2, 2) covariances and (..., 2, 2) linear maps, float64."""
    linear = np.asarray(linear, np.float64)[..., None, :, :]
    return linear @ np.asarray(covariance, np.float64) @ np.swapaxes(linear, -1, -2)


def spread(hypotheses: np.ndarray) -> np.ndarray:
    """Root of the trace of the sample covariance, with K - 1, of K >= 2 hypotheses: (..., K, J, 2) -> (..., J)."""
    hypotheses = np.asarray(hypotheses, np.float64)
    if hypotheses.ndim < 3 or hypotheses.shape[-3] < 2:
        raise ValueError(f"hypotheses: at least two a person are needed, (..., K, J, 2), got {hypotheses.shape}")
    offset = hypotheses - hypotheses.mean(axis=-3, keepdims=True)
    return np.sqrt(np.sum(offset**2, axis=(-3, -1)) / (hypotheses.shape[-3] - 1))
