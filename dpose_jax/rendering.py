"""phi and the mask operator: Gaussians, discs and limbs drawn on the device, for any batch shape.

Everything here is a pure, jit-compiled function of joint positions in heatmap pixels (pixel centres
at integers), vectorised over leading axes and joints, and differentiable where it is smooth.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

REFERENCE_HEIGHT = 64  # mask widths are given in pixels of a 64 x 48 map


@functools.partial(jax.jit, static_argnames=("size",))
def gaussians(keypoints: jax.Array, visible: jax.Array, *, size: tuple[int, int], sigma: float) -> jax.Array:
    """phi(y, sigma): one clean 2-D Gaussian a joint, of peak 1 at the joint's exact position.

    A Gaussian is separable, so each joint costs two short vectors and one outer product.

    Args:
      keypoints: (..., J, 2) float, x and y in heatmap pixels.
      visible: (..., J) float in [0, 1]; 0 leaves the joint's channel empty.
      size: (H, W) of the map.
      sigma: standard deviation in heatmap pixels, positive.

    Returns:
      (..., H, W, J) float32 in [0, 1]. Source: equation of phi in the paper; not truncated (ours).
    """
    height, width = size
    keypoints = keypoints.astype(jnp.float32)

    def profile(centre, length):
        offset = jnp.arange(length, dtype=jnp.float32)[:, None] - centre[..., None, :]
        return jnp.exp(-(offset**2) / (2 * sigma**2))

    rows = profile(keypoints[..., 1], height) * visible[..., None, :]
    columns = profile(keypoints[..., 0], width)
    return rows[..., :, None, :] * columns[..., None, :, :]


@functools.partial(jax.jit, static_argnames=("size", "softness"))
def joint_mask(
    keypoints: jax.Array, visible: jax.Array, *, size: tuple[int, int], radius: float, softness: float = 0.0
) -> jax.Array:
    """M^kps: the union of discs of radius delta_kps around the joints.

    Args:
      keypoints: (..., J, 2) float, x and y in pixels of the map.
      visible: (..., J) float; a joint at 0 has no disc.
      size: (H, W) of the map.
      radius: delta_kps in pixels at 64 x 48; it scales with the map's height (ours).
      softness: 0 for a binary mask, else the width of its sigmoid edge in the same unit (ours).

    Returns:
      (..., H, W, 1) float32 in [0, 1].
    """
    scale = size[0] / REFERENCE_HEIGHT
    x, y = _offsets(keypoints, size)
    squared = [_outer_sum(y[..., j, :] ** 2, x[..., j, :] ** 2) for j in range(keypoints.shape[-2])]
    return _union(squared, visible, size, radius * scale, softness * scale)


@functools.partial(jax.jit, static_argnames=("size", "limbs", "softness"))
def limb_mask(
    keypoints: jax.Array,
    visible: jax.Array,
    *,
    limbs: tuple[tuple[int, int], ...],
    size: tuple[int, int],
    half_width: float,
    softness: float = 0.0,
) -> jax.Array:
    """M^ske: the union of the limbs, each a segment thickened by delta_ske.

    Args:
      keypoints: (..., J, 2) float, x and y in pixels of the map.
      visible: (..., J) float; a limb with an end at 0 is left out.
      limbs: pairs of joint indices; without any the mask is empty.
      size: (H, W) of the map.
      half_width: delta_ske in pixels at 64 x 48; it scales with the map's height (ours).
      softness: 0 for a binary mask, else the width of its sigmoid edge in the same unit (ours).

    Returns:
      (..., H, W, 1) float32 in [0, 1].
    """
    scale = size[0] / REFERENCE_HEIGHT
    first, second = np.asarray(limbs, np.int32).reshape(-1, 2).T
    start = keypoints[..., first, :]
    along = keypoints[..., second, :] - start
    squared_length = jnp.sum(along**2, axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.maximum(squared_length, 1e-12))
    # In the frame of the limb: its own axis first. A limb of no length may have any axis.
    axis = jnp.where(squared_length > 1e-12, along / length, jnp.array([1.0, 0.0]))
    cos, sin = axis[..., :1], axis[..., 1:]
    x, y = _offsets(start, size)
    forward, sideways = (x * cos, y * sin), (-x * sin, y * cos)
    squared = []
    for k in range(len(limbs)):
        u, v = (_outer_sum(rows[..., k, :], columns[..., k, :]) for columns, rows in (forward, sideways))
        beyond = jnp.maximum(jnp.maximum(-u, u - length[..., k, :, None]), 0.0)
        squared.append(beyond**2 + v**2)
    return _union(squared, visible[..., first] * visible[..., second], size, half_width * scale, softness * scale)


def _offsets(points: jax.Array, size: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """(..., N, 2) -> from each point to the columns, (..., N, W), and to the rows, (..., N, H), of a map."""
    height, width = size
    points = points.astype(jnp.float32)
    return jnp.arange(width) - points[..., :1], jnp.arange(height) - points[..., 1:]


def _outer_sum(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """(..., H) and (..., W) -> (..., H, W)."""
    return rows[..., :, None] + columns[..., None, :]


def _union(
    squared: Sequence[jax.Array], visible: jax.Array, size: tuple[int, int], radius: float, softness: float
) -> jax.Array:
    """N squared distances (..., H, W), one a shape, and their (..., N) flags -> (..., H, W, 1) mask.

    The shapes are a Python loop and not one more axis: so XLA:CPU makes one vectorised pass over the map of them, where
    a reduction over an axis of shapes takes two to five times as long.
    """
    union = jnp.zeros((*visible.shape[:-1], *size), jnp.float32)
    for k, one in enumerate(squared):
        if softness:
            # Its gradient at distance zero is zero instead of NaN.
            inside = jax.nn.sigmoid((radius - jnp.sqrt(jnp.maximum(one, 1e-12))) / softness)
        else:
            inside = (one <= radius**2).astype(jnp.float32)
        union = jnp.maximum(union, inside * visible[..., k, None, None])
    return union[..., None]
