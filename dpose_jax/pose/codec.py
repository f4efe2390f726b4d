"""Coordinates to heatmaps and back. One object does both, so that encoder and decoder always match."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dpose_jax.pose.heatmaps import gaussians, highest, patches


@dataclasses.dataclass(frozen=True)
class Codec:
    """How joints become heatmaps of one size, and heatmaps joints."""

    input_size: tuple[int, int]  # (Hx, Wx) of the crop in pixels
    stride: int = 4  # s; heatmaps are (H, W) = (Hx / s, Wx / s)
    # `unbiased`, where corner pixel centres coincide (UDP) and Gaussians sit at sub-pixel centres, or `rounded`,
    # crop / s with Gaussians at the nearest pixel (HRNet).
    name: str = "unbiased"
    refine: str = "dark"  # `dark`, `quarter` (of a pixel, toward the higher neighbour, HRNet) or `none`
    sigma: float = 2.0  # of the Gaussians, heatmap pixels
    blur: int = 11  # side of DARK's smoothing kernel in heatmap pixels, odd; 1 turns it off

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the heatmaps."""
        return self.input_size[0] // self.stride, self.input_size[1] // self.stride

    @property
    def flip_shift(self) -> int:
        """Pixels that a mirrored map must move right: a rounded one is 1 - 1/s off, which HRNet rounds to 1."""
        return 1 if self.name == "rounded" and self.stride > 1 else 0

    def to_heatmap(self, keypoints: jax.Array) -> jax.Array:
        """Crop pixels to heatmap pixels, (..., 2) float x and y, for a map of any resolution."""
        return keypoints / self._pitch()

    def to_crop(self, keypoints: jax.Array) -> jax.Array:
        """Heatmap pixels to crop pixels, (..., 2) float x and y; the inverse of `to_heatmap`."""
        return keypoints * self._pitch()

    def normalise(self, keypoints: jax.Array) -> jax.Array:
        """Heatmap pixels to [-1, 1] over the map on each axis, (..., 2) (ours)."""
        return 2.0 * keypoints / self._extent() - 1.0

    def denormalise(self, y: jax.Array) -> jax.Array:
        """[-1, 1] to heatmap pixels, (..., 2); the inverse of `normalise`."""
        return (y + 1.0) / 2.0 * self._extent()

    def at_stride(self, stride: int) -> "Codec":
        """The same codec for maps of another stride."""
        return dataclasses.replace(self, stride=stride)

    def resample(self, maps: jax.Array, source: "Codec") -> jax.Array:
        """Maps (B, H', W', C) of `source`, a codec of the same crop and name, in this size, (B, H, W, C): bilinear."""
        if source.size == self.size:
            return maps
        # Each joint stays at its place; jax.image.resize takes pixels for areas and would move it.
        ratio = self._pitch() / source._pitch()
        rows = _interpolation(self.size[0], source.size[0], ratio[1])
        columns = _interpolation(self.size[1], source.size[1], ratio[0])
        return jnp.einsum("yv,bvuc,xu->byxc", rows.astype(maps.dtype), maps, columns.astype(maps.dtype))

    def render(self, keypoints: jax.Array, visible: jax.Array) -> jax.Array:
        """phi with this codec's centres: heatmap pixels (..., J, 2), flags (..., J) -> (..., H, W, J)."""
        if self.name == "rounded":
            keypoints = jnp.floor(keypoints + 0.5)
        return gaussians(keypoints, visible, size=self.size, sigma=self.sigma)

    def encode(self, keypoints: jax.Array, visible: jax.Array) -> jax.Array:
        """y_0^hm: heatmaps (..., H, W, J) in [0, 1] of joints (..., J, 2) in crop pixels; empty where the flag is 0."""
        return self.render(self.to_heatmap(keypoints), visible)

    def decode(self, heatmaps: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Heatmaps (..., H, W, J) -> joints (..., J, 2) in crop pixels and peak values (..., J), float32."""
        peaks, scores = self.peaks(heatmaps, self.refine)
        return self.to_crop(peaks), scores

    def peaks(self, heatmaps: jax.Array, refine: str) -> tuple[jax.Array, jax.Array]:
        """Sub-pixel peaks in heatmap pixels, (..., J, 2), and their values, (..., J).

        `dark` (Zhang et al., CVPR 2020) smooths, then expands the log map around the peak; differentiable. Ours takes
        differences of first neighbours, and smooths only where it can: a clean Gaussian decodes exactly everywhere.
        """
        heatmaps = heatmaps.astype(jnp.float32)
        x, y, scores = highest(heatmaps)
        return self.refined(heatmaps, x, y, refine), scores

    def refined(self, heatmaps: jax.Array, x: jax.Array, y: jax.Array, refine: str) -> jax.Array:
        """Sub-pixel places (..., J, 2) of the peaks at column x and row y, (..., J) int32, of float32 maps."""
        if refine == "dark":  # peaks on the border are expanded around their inner neighbour
            x, y = jnp.clip(x, 1, self.size[1] - 2), jnp.clip(y, 1, self.size[0] - 2)
            offset = newton_offset(*log_derivatives(blurred_3x3(heatmaps, x, y, self.blur)))
            return jnp.stack([x, y], axis=-1).astype(jnp.float32) + offset
        pixel = jnp.stack([x, y], axis=-1).astype(jnp.float32)
        return pixel + quarter_offset(heatmaps, x, y) if refine == "quarter" else pixel

    def _pitch(self) -> np.ndarray:
        """(2,) crop pixels a heatmap pixel, x and y."""
        if self.name == "rounded":
            return np.full(2, self.stride, np.float32)
        return (np.array(self.input_size[::-1], np.float32) - 1) / self._extent()

    def _extent(self) -> np.ndarray:
        return np.array(self.size[::-1], np.float32) - 1


def quarter_offset(heatmaps: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """A quarter pixel toward the higher neighbour of (x, y) on each axis, (..., 2)."""
    height, width = heatmaps.shape[-3:-1]
    around = patches(heatmaps, x, y, 1)
    step = jnp.stack([around[..., 1, 2] - around[..., 1, 0], around[..., 2, 1] - around[..., 0, 1]], axis=-1)
    # Peaks on the border stay, on both axes; HRNet's code leaves those at 1 alone as well, which we do not.
    inside = (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
    return jnp.where(inside[..., None], 0.25 * jnp.sign(step), 0.0)


def blurred_3x3(heatmaps: jax.Array, x: jax.Array, y: jax.Array, blur: int) -> jax.Array:
    """(..., J, 3, 3) pixels, rows first, about (x, y), off the border; smoothed, where a kernel of side `blur` fits."""
    height, width = heatmaps.shape[-3:-1]
    reach = blur // 2 + 1
    around = patches(heatmaps, x, y, reach)
    values = around[..., reach - 1 : reach + 2, reach - 1 : reach + 2]
    if blur == 1:
        return values
    # One product for the nine places: separably it is 8 times slower.
    smooth = jnp.matmul(around.reshape(*x.shape, -1), _smoothing(blur), precision="highest").reshape(values.shape)
    whole = (x >= reach) & (x < width - reach) & (y >= reach) & (y < height - reach)
    return jnp.where(whole[..., None, None], smooth, values)


def log_derivatives(values: jax.Array) -> tuple[jax.Array, ...]:
    """First derivatives gx, gy and second ones xx, yy, xy of the log of (..., 3, 3) values at their middle."""
    logs = jnp.log(jnp.maximum(values, 1e-10))
    row, column = logs[..., 1, :], logs[..., :, 1]
    gx, gy = 0.5 * (row[..., 2] - row[..., 0]), 0.5 * (column[..., 2] - column[..., 0])
    xx, yy = (line[..., 2] - 2 * line[..., 1] + line[..., 0] for line in (row, column))
    xy = 0.25 * (logs[..., 2, 2] - logs[..., 2, 0] - logs[..., 0, 2] + logs[..., 0, 0])
    return gx, gy, xx, yy, xy


def newton_offset(gx: jax.Array, gy: jax.Array, xx: jax.Array, yy: jax.Array, xy: jax.Array) -> jax.Array:
    """-H^-1 g, (..., 2): from the pixel to the peak; 0 where the quadratic has no peak."""
    determinant = xx * yy - xy**2
    peaked = (xx < 0) & (yy < 0) & (determinant > 1e-9)
    safe = jnp.where(peaked, determinant, 1.0)
    offset = -jnp.stack([yy * gx - xy * gy, xx * gy - xy * gx], axis=-1) / safe[..., None]
    # 1.5 px: the true peak lies within half a pixel of the argmax, plus one at the border.
    return jnp.where(peaked[..., None], jnp.clip(offset, -1.5, 1.5), 0.0)


def _interpolation(length: int, source: int, pitch: float) -> np.ndarray:
    """(length, source) weights: row i is linear between the source pixels around i * pitch."""
    position = np.clip(np.arange(length) * pitch, 0, source - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(source))).astype(np.float32)


def _smoothing(kernel: int) -> np.ndarray:
    """((kernel + 2)^2, 9) weights: a patch to its smoothed 3 x 3 middle; OpenCV's sigma for a kernel of that side."""
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
    taps = np.exp(-(np.arange(-(kernel // 2), kernel // 2 + 1) ** 2) / (2 * sigma**2))
    line = np.stack([np.pad(taps / taps.sum(), (i, 2 - i)) for i in range(3)])
    return np.einsum("iy,jx->yxij", line, line).reshape(-1, 9).astype(np.float32)
