"""The mask operator: discs and limbs, drawn on the device from joints in heatmap pixels, for any batch shape.

Pixel centres lie at integers. A soft mask is the maximum over shapes of a sigmoid of the distance to each. A binary one
is `distance <= radius`, drawn row by row as runs of bits, which costs a shape a row instead of a pixel.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

REFERENCE_HEIGHT = 64  # mask widths are given in pixels of a 64 x 48 map
WORD = 32  # pixels of a row that `_fill_rows` draws at once, one bit each

Pairs = tuple[tuple[int, int], ...]
Spans = tuple[Array, Array]  # of N shapes on every row: first and last x, (..., N, H) each; none: first > last


@functools.partial(jax.jit, static_argnames=("size", "softness"))
def joint_mask(
    keypoints: Array, visible: Array, *, size: tuple[int, int], radius: float, softness: float = 0.0
) -> Array:
    """M^kps: the union of discs of radius delta_kps around joints (..., J, 2) in pixels of a map of size (H, W).

    A joint whose flag `visible`, (..., J), is 0 has no disc; soft discs are weighed by it. `radius` is in pixels at
    64 x 48 and scales with the map's height (ours), as does `softness`, the width of a sigmoid edge (ours); 0 makes a
    binary mask. Returns (..., H, W, 1) float32 in [0, 1].
    """
    scale = size[0] / REFERENCE_HEIGHT
    keypoints, radius = keypoints.astype(jnp.float32), radius * scale
    if not softness:
        return _fill_rows(_disc_spans(keypoints, size, radius), visible, size)
    x, y = _offsets(keypoints, size)
    squared = [(y[..., j, :] ** 2)[..., None] + (x[..., j, :] ** 2)[..., None, :] for j in range(keypoints.shape[-2])]
    return _soft_union(squared, visible, size, radius, softness * scale)


@functools.partial(jax.jit, static_argnames=("size", "limbs", "softness"))
def limb_mask(
    keypoints: Array, visible: Array, *, limbs: Pairs, size: tuple[int, int], half_width: float, softness: float = 0.0
) -> Array:
    """M^ske: the union of the limbs, pairs of joints, each a segment thickened by delta_ske = `half_width`.

    A limb has the product of the flags of its ends; without limbs the mask is empty. The rest is as in `joint_mask`.
    """
    scale = size[0] / REFERENCE_HEIGHT
    keypoints, half_width = keypoints.astype(jnp.float32), half_width * scale
    first, second = np.asarray(limbs, np.int32).reshape(-1, 2).T
    start, end = keypoints[..., first, :], keypoints[..., second, :]
    visible = visible[..., first] * visible[..., second]
    if not softness:
        return _fill_rows(_limb_spans(start, end, size, half_width), visible, size)
    cos, sin, length = _frame(start, end)
    x, y = _offsets(start, size)
    forward, sideways = (x * cos, y * sin), (-x * sin, y * cos)
    squared = []
    for k in range(len(limbs)):
        u, v = (rows[..., k, :, None] + columns[..., k, None, :] for columns, rows in (forward, sideways))
        beyond = jnp.maximum(jnp.maximum(-u, u - length[..., k, :, None]), 0.0)
        squared.append(beyond**2 + v**2)
    return _soft_union(squared, visible, size, half_width, softness * scale)


def _frame(start: Array, end: Array) -> tuple[Array, Array, Array]:
    """(..., N, 2) twice -> cosine and sine of the limb's axis, any at length 0, and its length >= 1e-6, (..., N, 1)."""
    along = end - start
    squared = jnp.sum(along**2, axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.maximum(squared, 1e-12))
    axis = jnp.where(squared > 1e-12, along / length, jnp.array([1.0, 0.0]))
    return axis[..., :1], axis[..., 1:], length


def _offsets(points: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """(..., N, 2) -> from each point to the columns, (..., N, W), and to the rows, (..., N, H), of a map."""
    return jnp.arange(size[1]) - points[..., :1], jnp.arange(size[0]) - points[..., 1:]


def _disc_spans(centres: Array, size: tuple[int, int], radius: float) -> Spans:
    _, y = _offsets(centres, size)
    squared = radius**2 - y**2
    half = jnp.where(squared >= 0, jnp.sqrt(jnp.maximum(squared, 0.0)), -jnp.inf)
    return centres[..., :1] - half, centres[..., :1] + half


def _limb_spans(start: Array, end: Array, size: tuple[int, int], half_width: float) -> Spans:
    """Segments from and to (..., N, 2), thickened: a disc at either end and the rectangle between, together convex."""
    cos, sin, length = _frame(start, end)
    # So that the sides of an upright limb, and those of a level one, meet a row far away instead of nowhere.
    cos, sin = (jnp.where(jnp.abs(side) < 1e-6, 1e-6, side) for side in (cos, sin))
    _, y = _offsets(start, size)
    # The rectangle's part of a row is where both its pairs of sides meet it.
    ends = -y * sin / cos, (length - y * sin) / cos
    sides = (y * cos - half_width) / sin, (y * cos + half_width) / sin
    low = jnp.maximum(jnp.minimum(*ends), jnp.minimum(*sides))
    high = jnp.minimum(jnp.maximum(*ends), jnp.maximum(*sides))
    met = low <= high
    low = start[..., :1] + jnp.where(met, low, jnp.inf)
    high = start[..., :1] + jnp.where(met, high, -jnp.inf)
    for first, last in (_disc_spans(start, size, half_width), _disc_spans(end, size, half_width)):
        low, high = jnp.minimum(low, first), jnp.maximum(high, last)
    return low, high


def _fill_rows(spans: Spans, visible: Array, size: tuple[int, int]) -> Array:
    """The union of N shapes whose (..., N) flag is not 0 -> (..., H, W, 1) of zeros and ones; two shifts make a run."""
    width = size[1]
    first = jnp.clip(jnp.ceil(spans[0]), 0, width).astype(jnp.int32)
    after = jnp.clip(jnp.floor(spans[1]) + 1, 0, width).astype(jnp.int32)
    after = jnp.where(visible[..., None] != 0, jnp.maximum(after, first), first)

    def bit(x, word):
        # A shift by the whole word or more gives 0: then the run goes on to the word's end.
        return jnp.uint32(1) << jnp.maximum(x - word, 0).astype(jnp.uint32)

    words = [
        jax.lax.reduce(bit(after, word) - bit(first, word), np.uint32(0), jax.lax.bitwise_or, (first.ndim - 2,))
        for word in range(0, width, WORD)
    ]
    pixels = jnp.stack(words, axis=-1)[..., None] >> jnp.arange(WORD, dtype=jnp.uint32) & 1
    return pixels.reshape(*pixels.shape[:-2], -1)[..., :width, None].astype(jnp.float32)


def _soft_union(
    squared: Sequence[Array], visible: Array, size: tuple[int, int], radius: float, softness: float
) -> Array:
    """N squared distances (..., H, W), one a shape, and their (..., N) flags -> (..., H, W, 1) mask."""
    # A Python loop lets XLA:CPU make one vectorised pass over the map: a reduction over shapes is 2 to 5 times slower.
    union = jnp.zeros((*visible.shape[:-1], *size), jnp.float32)
    for k, one in enumerate(squared):
        # Its gradient at distance zero is zero instead of NaN.
        inside = jax.nn.sigmoid((radius - jnp.sqrt(jnp.maximum(one, 1e-12))) / softness)
        union = jnp.maximum(union, inside * visible[..., k, None, None])
    return union[..., None]
