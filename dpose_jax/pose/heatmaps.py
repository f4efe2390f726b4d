"""Heatmaps of joints: the Gaussians that are drawn, and where a map is highest."""

import functools

import jax
import jax.numpy as jnp


def highest(heatmaps: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The highest pixel of maps (..., H, W, J): column x, row y, (..., J) int32, and the value, (..., J)."""
    # Of equal ones the first column's, and in it the first row's. XLA reduces whole rows as vectors;
    # an argmax over all pixels of a joint would go one by one.
    x = jnp.argmax(jnp.max(heatmaps, axis=-3), axis=-2)
    column = jnp.take_along_axis(heatmaps, x[..., None, None, :], axis=-2)[..., 0, :]
    return x, jnp.argmax(column, axis=-2), jnp.max(column, axis=-2)


def patches(heatmaps: jax.Array, x: jax.Array, y: jax.Array, radius: int) -> jax.Array:
    """(..., J, n, n) pixels, rows first, n = 2 radius + 1, around column x and row y, (..., J); the border repeats."""
    *leading, height, width, joints = heatmaps.shape
    maps = jnp.asarray(heatmaps).reshape(-1, height, width, joints)
    offsets = jnp.arange(-radius, radius + 1)
    rows = jnp.clip(jnp.reshape(y, (-1, joints, 1)) + offsets, 0, height - 1)
    columns = jnp.clip(jnp.reshape(x, (-1, joints, 1)) + offsets, 0, width - 1)
    found = jax.lax.platform_dependent(maps, rows, columns, tpu=by_products, default=by_gather)
    return found.reshape(*leading, joints, len(offsets), len(offsets))


def by_gather(maps: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The pixels where rows (B, J, n) and columns (B, J, m) of each map of (B, H, W, J) cross: (B, J, n, m)."""
    person = jnp.arange(maps.shape[0])[:, None, None, None]
    joint = jnp.arange(maps.shape[-1])[:, None, None]
    return maps.at[person, rows[..., None], columns[..., None, :], joint].get(mode="promise_in_bounds")


def by_products(maps: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """`by_gather` to the bit, as products with ones and zeros: a TPU gathers a tile of memory for every pixel."""
    height, width = maps.shape[1:3]
    pick_rows = jax.nn.one_hot(rows, height, dtype=maps.dtype)
    pick_columns = jax.nn.one_hot(columns, width, dtype=maps.dtype)
    found = jnp.einsum("bjnh,bhwj->bjnw", pick_rows, maps, precision="highest")
    return jnp.einsum("bjnw,bjmw->bjnm", found, pick_columns, precision="highest")


@functools.partial(jax.jit, static_argnames=("size",))
def gaussians(keypoints: jax.Array, visible: jax.Array, *, size: tuple[int, int], sigma: float) -> jax.Array:
    """phi(y, sigma) of the paper: a Gaussian a joint, of peak 1 at its exact position and not truncated (ours).

    Joints (..., J, 2) and the standard deviation are in heatmap pixels; `visible`, (..., J) in [0, 1], scales the
    Gaussians. Returns (..., H, W, J) float32 in [0, 1] for size = (H, W).
    """
    keypoints = keypoints.astype(jnp.float32)

    def profile(centre, length):
        offset = jnp.arange(length, dtype=jnp.float32)[:, None] - centre[..., None, :]
        return jnp.exp(-(offset**2) / (2 * sigma**2))

    # Separable: each joint costs two short vectors and one outer product.
    rows = profile(keypoints[..., 1], size[0]) * visible[..., None, :]
    columns = profile(keypoints[..., 0], size[1])
    return rows[..., :, None, :] * columns[..., None, :, :]
