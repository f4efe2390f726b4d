"""phi and the mask operator: Gaussians, discs and limbs drawn on the device, for any batch shape.

Everything here is a pure, jit-compiled function of joint positions in heatmap pixels (pixel centres
at integers), vectorised over leading axes and joints, and differentiable where it is smooth.
"""

import functools

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
    distance = _length(_grid(size) - keypoints[..., None, None, :, :])
    return _union(distance, visible, radius * scale, softness * scale)


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
    start = keypoints[..., None, None, first, :]
    along = keypoints[..., None, None, second, :] - start
    offset = _grid(size) - start
    # A limb of zero length is its start point; the floor keeps its division finite.
    length2 = jnp.maximum(jnp.sum(along**2, axis=-1), 1e-12)
    share = jnp.clip(jnp.sum(offset * along, axis=-1) / length2, 0.0, 1.0)
    distance = _length(offset - share[..., None] * along)
    return _union(distance, visible[..., first] * visible[..., second], half_width * scale, softness * scale)


def _grid(size: tuple[int, int]) -> jax.Array:
    """(H, W, 1, 2) pixel positions, x and y."""
    y, x = jnp.mgrid[: size[0], : size[1]]
    return jnp.stack([x, y], axis=-1)[:, :, None, :].astype(jnp.float32)


def _length(vectors: jax.Array) -> jax.Array:
    """(..., 2) -> (...) Euclidean lengths, whose gradient at the zero vector is zero instead of NaN."""
    return jnp.sqrt(jnp.maximum(jnp.sum(vectors**2, axis=-1), 1e-12))


def _union(distance: jax.Array, visible: jax.Array, radius: float, softness: float) -> jax.Array:
    """(..., H, W, N) distances to N shapes and their (..., N) flags -> (..., H, W, 1) mask."""
    if softness:
        inside = jax.nn.sigmoid((radius - distance) / softness)
    else:
        inside = (distance <= radius).astype(jnp.float32)
    return jnp.max(inside * visible[..., None, None, :], axis=-1, keepdims=True, initial=0.0)
