"""The inner loops of the renderer, compiled by numba at their first call and cached on disk.

Image coordinates are (x, y) with pixel centres at integers; depths are positive, along the viewing direction. All
arrays are C-contiguous.
"""

import math

import numpy as np

from dpose_jax.data.rendered.body import EXTRA

try:
    import numba
except ImportError as error:
    raise ValueError(EXTRA.format("numba")) from error

_EDGE = 1e-9  # by which triangles overlap, so that no ray passes between two neighbours

_compiled = numba.njit(cache=True, nogil=True)


@_compiled
def vertex_normals(vertices, faces):
    """Unit normals (V, 3) float32 of (V, 3) float32 vertices, weighted by the areas of (F, 3) int32 faces."""
    normals = np.zeros_like(vertices)
    for f in range(len(faces)):
        a, b, c = vertices[faces[f, 0]], vertices[faces[f, 1]], vertices[faces[f, 2]]
        ux, uy, uz = b[0] - a[0], b[1] - a[1], b[2] - a[2]
        vx, vy, vz = c[0] - a[0], c[1] - a[1], c[2] - a[2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for k in range(3):
            row = normals[faces[f, k]]
            row[0] += nx
            row[1] += ny
            row[2] += nz
    for i in range(len(normals)):
        row = normals[i]
        norm = math.sqrt(row[0] * row[0] + row[1] * row[1] + row[2] * row[2])
        if norm > 0:
            row /= norm
    return normals


@_compiled
def skin(points, index, weight, turns, moves, translate):
    """Linear blend skinning.

    Args:
      points: (V, 3) float32.
      index, weight: (V, K) bones and their weights.
      turns, moves: (B, 3, 3) and (B, 3) float32, of each bone.
      translate: whether `moves` apply; directions are only turned.

    Returns:
      (V, 3) float32.
    """
    out = np.zeros_like(points)
    for i in range(len(points)):
        x, y, z = points[i, 0], points[i, 1], points[i, 2]
        for k in range(index.shape[1]):
            w = weight[i, k]
            if w == 0:
                continue
            turn = turns[index[i, k]]
            for axis in range(3):
                value = turn[axis, 0] * x + turn[axis, 1] * y + turn[axis, 2] * z
                if translate:
                    value += moves[index[i, k], axis]
                out[i, axis] += w * value
    return out


@_compiled
def rasterize(pixels, keep, faces, first_id, inverse, ids, weights):
    """Draws triangles into a depth buffer, both sides of each; a pixel is covered if its centre is.

    Args:
      pixels: (V, 3) float64 x, y and 1 / depth; faces with a corner of 1 / depth <= 0 are left out.
      keep: (V,) float32; a surface exists where its interpolation is positive.
      faces: (F, 3) int32.
      first_id: written to `ids` for face 0; face f is `first_id + f`.
      inverse: (H, W) float64, 1 / depth of the nearest surface, 0 where there is none; changed in place.
      ids: (H, W) int32; changed in place.
      weights: (H, W, 2) float64, weights of the second and third corner, correct in perspective; changed in place.
    """
    height, width = inverse.shape
    for f in range(len(faces)):
        a, b, c = pixels[faces[f, 0]], pixels[faces[f, 1]], pixels[faces[f, 2]]
        if a[2] <= 0 or b[2] <= 0 or c[2] <= 0:
            continue
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if abs(area) < 1e-12:
            continue
        ka, kb, kc = keep[faces[f, 0]], keep[faces[f, 1]], keep[faces[f, 2]]
        if ka <= 0 and kb <= 0 and kc <= 0:
            continue
        left = max(0, math.ceil(min(a[0], b[0], c[0])))
        right = min(width - 1, math.floor(max(a[0], b[0], c[0])))
        for y in range(
            max(0, math.ceil(min(a[1], b[1], c[1]))), min(height - 1, math.floor(max(a[1], b[1], c[1]))) + 1
        ):
            for x in range(left, right + 1):
                w1 = ((x - a[0]) * (c[1] - a[1]) - (y - a[1]) * (c[0] - a[0])) / area
                w2 = ((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])) / area
                if w1 < -_EDGE or w2 < -_EDGE or w1 + w2 > 1 + _EDGE:
                    continue
                near = (1 - w1 - w2) * a[2] + w1 * b[2] + w2 * c[2]
                if near <= inverse[y, x]:
                    continue
                w1, w2 = w1 * b[2] / near, w2 * c[2] / near
                if ka + w1 * (kb - ka) + w2 * (kc - ka) <= 0:
                    continue
                inverse[y, x], ids[y, x] = near, first_id + f
                weights[y, x, 0], weights[y, x, 1] = w1, w2


@_compiled
def first_surface(points, pixels, keep, faces, nearest):
    """Follows the camera's rays through (n, 2) float64 points; see `rasterize` for pixels, keep and faces.

    `nearest` is (n,) float64, 1 / depth of the nearest surface on each ray, 0 where there is none; changed in place.
    """
    low_x, high_x, low_y, high_y = points[:, 0].min(), points[:, 0].max(), points[:, 1].min(), points[:, 1].max()
    for f in range(len(faces)):
        a, b, c = pixels[faces[f, 0]], pixels[faces[f, 1]], pixels[faces[f, 2]]
        if a[2] <= 0 or b[2] <= 0 or c[2] <= 0:
            continue
        x0, x1, y0, y1 = min(a[0], b[0], c[0]), max(a[0], b[0], c[0]), min(a[1], b[1], c[1]), max(a[1], b[1], c[1])
        if x1 < low_x or x0 > high_x or y1 < low_y or y0 > high_y:
            continue
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if abs(area) < 1e-12:
            continue
        ka, kb, kc = keep[faces[f, 0]], keep[faces[f, 1]], keep[faces[f, 2]]
        for k in range(len(points)):
            x, y = points[k]
            if x < x0 or x > x1 or y < y0 or y > y1:
                continue
            w1 = ((x - a[0]) * (c[1] - a[1]) - (y - a[1]) * (c[0] - a[0])) / area
            w2 = ((b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])) / area
            if w1 < -_EDGE or w2 < -_EDGE or w1 + w2 > 1 + _EDGE:
                continue
            near = (1 - w1 - w2) * a[2] + w1 * b[2] + w2 * c[2]
            if near > nearest[k] and ka + w1 * b[2] / near * (kb - ka) + w2 * c[2] / near * (kc - ka) > 0:
                nearest[k] = near


@_compiled
def interpolate(values, faces, ids, weights):
    """Values (n, C) float32 at n pixels, from (V, C) float32 of vertices, (n,) faces and (n, 2) their weights."""
    out = np.empty((len(ids), values.shape[1]), np.float32)
    for i in range(len(ids)):
        a, b, c = faces[ids[i]]
        w1, w2 = weights[i]
        for k in range(values.shape[1]):
            out[i, k] = (1 - w1 - w2) * values[a, k] + w1 * values[b, k] + w2 * values[c, k]
    return out
