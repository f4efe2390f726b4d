import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.pose.heatmaps import gaussians
from dpose_jax.pose.masks import joint_mask, limb_mask

SIZE = (24, 18)
SCALE = SIZE[0] / 64
LIMBS = ((0, 1), (1, 2), (3, 0), (2, 4))
JOINTS = 5


def people(*leading, seed=0, size=SIZE):
    """Joints over the map and a little beyond it, with flags of which some are 0."""
    rng = np.random.default_rng(seed)
    keypoints = rng.uniform(-0.2, 1.2, (*leading, JOINTS, 2)) * [size[1], size[0]]
    visible = (rng.random((*leading, JOINTS)) < 0.7).astype(np.float32)
    visible[..., :2] = 1
    return keypoints.astype(np.float32), visible


def disc_distance(size, keypoints):
    """(H, W, J) distances of pixel centres to joints, one scalar at a time."""
    out = np.zeros((*size, len(keypoints)))
    for y, x, j in np.ndindex(out.shape):
        out[y, x, j] = math.hypot(x - keypoints[j, 0], y - keypoints[j, 1])
    return out


def limb_distance(size, keypoints, limbs):
    """(H, W, L) distances of pixel centres to segments: to the ends, or to the line where its foot lies between."""
    out = np.zeros((*size, len(limbs)))
    for y, x, k in np.ndindex(out.shape):
        (ax, ay), (bx, by) = (keypoints[end].astype(float) for end in limbs[k])
        angle, length = math.atan2(by - ay, bx - ax), math.hypot(bx - ax, by - ay)
        # In the frame of the limb the segment lies on the first axis, from 0 to its length.
        u = math.cos(angle) * (x - ax) + math.sin(angle) * (y - ay)
        v = math.cos(angle) * (y - ay) - math.sin(angle) * (x - ax)
        out[y, x, k] = abs(v) if 0 <= u <= length else min(math.hypot(u, v), math.hypot(u - length, v))
    return out


def assert_same_away_from_edge(mask, distance, radius, slack=1e-3):
    """`mask` (H, W, 1) is exactly the union of `distance` (H, W, N) <= radius, but for pixels on an edge."""
    nearest = distance.min(axis=-1) if distance.shape[-1] else np.full(distance.shape[:2], np.inf)
    decided = np.abs(nearest - radius) > slack
    assert decided.mean() > 0.95
    np.testing.assert_array_equal(np.asarray(mask)[..., 0][decided], (nearest <= radius)[decided])


@pytest.mark.parametrize("sigma", [0.7, 2.0, 5.0])
def test_gaussians_equal_a_slow_double_loop(sigma):
    keypoints, visible = people()
    expected = np.zeros((*SIZE, JOINTS))
    for y, x, j in np.ndindex(expected.shape):
        squared = (x - float(keypoints[j, 0])) ** 2 + (y - float(keypoints[j, 1])) ** 2
        expected[y, x, j] = visible[j] * math.exp(-squared / (2 * sigma**2))
    np.testing.assert_allclose(gaussians(keypoints, visible, size=SIZE, sigma=sigma), expected, atol=1e-6)


def test_gaussian_peaks_at_exactly_one_on_a_pixel_centre():
    x, y = np.meshgrid(np.arange(SIZE[1]), np.arange(SIZE[0]))
    keypoints = np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32)
    maps = np.asarray(gaussians(keypoints, np.ones(len(keypoints)), size=SIZE, sigma=2.0))
    assert np.all(maps.max(axis=(0, 1)) == 1)
    rows, columns = np.unravel_index(maps.reshape(-1, len(keypoints)).argmax(axis=0), SIZE)
    np.testing.assert_array_equal(np.stack([columns, rows], axis=-1), keypoints)


def draw_gaussians(keypoints, visible):
    return gaussians(keypoints, visible, size=SIZE, sigma=1.5)


def draw_joints(keypoints, visible, softness=0.0):
    return joint_mask(keypoints, visible, size=SIZE, radius=6.0, softness=softness)


def draw_limbs(keypoints, visible, softness=0.0):
    return limb_mask(keypoints, visible, limbs=LIMBS, size=SIZE, half_width=3.0, softness=softness)


DRAWINGS = (draw_gaussians, draw_joints, draw_limbs)


@pytest.mark.parametrize("draw", DRAWINGS)
def test_any_leading_shape_gives_the_same(draw):
    keypoints, visible = people(2, 3)
    both = np.asarray(draw(keypoints, visible))
    one = np.asarray(draw(keypoints.reshape(6, JOINTS, 2), visible.reshape(6, JOINTS)))
    none = np.stack(
        [draw(k, v) for k, v in zip(keypoints.reshape(6, JOINTS, 2), visible.reshape(6, JOINTS), strict=True)]
    )
    np.testing.assert_array_equal(both.reshape(one.shape), one)
    np.testing.assert_array_equal(one, none)
    assert both.dtype == np.float32 and both.min() >= 0 and both.max() <= 1


@pytest.mark.parametrize("draw", DRAWINGS)
def test_an_unlabelled_joint_changes_nothing(draw):
    keypoints, _ = people(seed=3)
    visible = np.ones(JOINTS, np.float32)
    visible[2] = 0
    moved = keypoints.copy()
    moved[2] = [9, 12]
    drawn = np.asarray(draw(keypoints, visible))
    np.testing.assert_array_equal(drawn, draw(moved, visible))
    assert not np.array_equal(drawn, draw(moved, np.ones(JOINTS, np.float32)))
    assert not np.any(draw(moved, np.zeros(JOINTS, np.float32)))


def test_an_unlabelled_joint_has_an_empty_channel():
    keypoints, visible = people(seed=4)
    visible[:] = [1, 0, 1, 0, 1]
    keypoints[:] = [9, 12]
    maps = np.asarray(draw_gaussians(keypoints, visible))
    np.testing.assert_array_equal(maps.max(axis=(0, 1)), visible)


@pytest.mark.parametrize(
    ("size", "seed"), [((24, 18), 0), ((24, 18), 1), ((64, 48), 2), ((32, 40), 3), ((48, 64), 4), ((72, 97), 5)]
)
def test_masks_agree_with_scalar_geometry(size, seed):
    """Also shows that radius and half-width scale with the map's height, and that maps may be of any width."""
    keypoints, visible = people(seed=seed, size=size)
    scale = size[0] / 64
    seen = np.flatnonzero(visible)
    discs = joint_mask(keypoints, visible, size=size, radius=6.0)
    assert_same_away_from_edge(discs, disc_distance(size, keypoints[seen]), 6 * scale)
    whole = [limb for limb in LIMBS if set(limb) <= set(seen)]
    assert whole
    limbs = limb_mask(keypoints, visible, limbs=LIMBS, size=size, half_width=3.0)
    assert_same_away_from_edge(limbs, limb_distance(size, keypoints, whole), 3 * scale)


@pytest.mark.parametrize("along", [(0, 9), (9, 0), (0, -7), (-7, 0), (1e-5, 9), (9, -1e-5), (0.02, 8)])
@pytest.mark.parametrize("start", [(8, 11), (8.4, 11.3), (-3, 11), (8, 22)])
def test_upright_and_level_limbs(start, along):
    keypoints = np.float32([start, np.add(start, along)])
    mask = limb_mask(keypoints, np.ones(2), limbs=((0, 1),), size=SIZE, half_width=6.6)
    assert_same_away_from_edge(mask, limb_distance(SIZE, keypoints, ((0, 1),)), 6.6 * SCALE)


def test_limb_agrees_with_points_along_it():
    """The nearest of many points on the segment: geometry without a projection."""
    keypoints, _ = people(seed=7)
    visible = np.ones(JOINTS, np.float32)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    pixels = np.stack([x, y], axis=-1)[:, :, None, :]
    share = np.linspace(0, 1, 1001)[:, None]
    points = [keypoints[a] + share * (keypoints[b].astype(float) - keypoints[a]) for a, b in LIMBS]
    distance = np.stack([np.linalg.norm(pixels - line, axis=-1).min(axis=-1) for line in points], axis=-1)
    # A segment of 40 px sampled every 0.04 px is at most 0.02^2 / (2 * 1.1) px further away.
    assert_same_away_from_edge(draw_limbs(keypoints, visible), distance, 3 * SCALE)


@pytest.mark.parametrize("softness", [0.0, 1.0])
def test_masks_are_unions(softness):
    keypoints, visible = people(seed=5)
    alone = [draw_joints(keypoints[j : j + 1], visible[j : j + 1], softness) for j in range(JOINTS)]
    np.testing.assert_allclose(draw_joints(keypoints, visible, softness), np.max(alone, axis=0), atol=1e-6)
    each = [
        limb_mask(keypoints, visible, limbs=(limb,), size=SIZE, half_width=3.0, softness=softness) for limb in LIMBS
    ]
    np.testing.assert_allclose(draw_limbs(keypoints, visible, softness), np.max(each, axis=0), atol=1e-6)


@pytest.mark.parametrize("unlabelled", [(0,), (1,), (0, 1)])
def test_a_limb_with_an_unlabelled_end_is_left_out(unlabelled):
    keypoints = np.float32([[3, 3], [14, 20]])
    visible = np.ones(2, np.float32)
    draw = lambda visible: limb_mask(keypoints, visible, limbs=((0, 1),), size=SIZE, half_width=3.0)  # noqa: E731
    assert np.any(draw(visible))
    visible[list(unlabelled)] = 0
    assert not np.any(draw(visible))


@pytest.mark.parametrize("softness", [0.0, 1.0])
def test_a_limb_of_no_length_is_a_disc(softness):
    keypoints = np.float32([[8.3, 11.6], [8.3, 11.6]])
    limb = limb_mask(keypoints, np.ones(2), limbs=((0, 1),), size=SIZE, half_width=6.0, softness=softness)
    assert 0 < np.sum(limb) < np.prod(SIZE)
    np.testing.assert_allclose(limb, draw_joints(keypoints[:1], np.ones(1), softness), atol=1e-6)


def test_no_limbs_is_an_empty_mask():
    keypoints, visible = people(2)
    mask = limb_mask(keypoints, visible, limbs=(), size=SIZE, half_width=3.0)
    assert mask.shape == (2, *SIZE, 1) and not np.any(mask)


@pytest.mark.parametrize("draw", (draw_joints, draw_limbs))
def test_soft_masks_fall_with_distance_and_approach_hard_ones(draw):
    keypoints, _ = people(seed=6)
    visible = np.ones(JOINTS, np.float32)
    size = SIZE
    if draw is draw_joints:
        distance, radius = disc_distance(size, keypoints).min(axis=-1), 6 * SCALE
    else:
        distance, radius = limb_distance(size, keypoints, LIMBS).min(axis=-1), 3 * SCALE
    hard = np.asarray(draw(keypoints, visible))[..., 0]
    for softness in (2.0, 0.5, 0.02):
        soft = np.asarray(draw(keypoints, visible, softness))[..., 0]
        assert np.all(np.diff(soft.ravel()[np.argsort(distance.ravel())]) <= 1e-6)
        # A sigmoid is within exp(-|z|) of its step.
        assert np.all(np.abs(soft - hard) <= np.exp(-np.abs(distance - radius) / (softness * SCALE)) + 1e-5)
    assert np.mean(np.abs(soft - hard)) < 2e-3


@pytest.mark.parametrize("far", [50.0, 1e4, 1e7])
@pytest.mark.parametrize("direction", [(1, 1), (-1, 0), (0.3, -1)])
def test_joints_far_outside_draw_nothing(far, direction):
    keypoints = np.float32([[8, 12], [8, 12]] + far * np.array([[1, 1], [1.2, 1]]) * direction)
    visible = np.ones(2, np.float32)
    limbs = ((0, 1),)
    for softness in (0.0, 1.0):
        drawn = [
            joint_mask(keypoints, visible, size=SIZE, radius=6.0, softness=softness),
            limb_mask(keypoints, visible, limbs=limbs, size=SIZE, half_width=3.0, softness=softness),
            gaussians(keypoints, visible, size=SIZE, sigma=2.0),
        ]
        for image in drawn:
            assert np.all(np.isfinite(image)) and np.max(image) < 1e-9


def test_a_limb_may_cross_the_map_from_far_outside():
    keypoints = np.float32([[-400, -500], [300, 420]])
    mask = limb_mask(keypoints, np.ones(2), limbs=((0, 1),), size=SIZE, half_width=6.0)
    assert np.any(mask)
    assert_same_away_from_edge(mask, limb_distance(SIZE, keypoints, ((0, 1),)), 6 * SCALE)


# On pixel centres, off them, a limb without length, far outside.
HARD_PLACES = np.float32([[3, 4], [3, 4], [7.5, 8.5], [11, 20], [-1e4, 1e4]])


@pytest.mark.parametrize("visible", [np.ones(JOINTS), np.zeros(JOINTS)])
@pytest.mark.parametrize("draw", DRAWINGS)
def test_gradients_are_finite_everywhere(draw, visible):
    arguments = () if draw is draw_gaussians else (1.0,)
    weight = np.random.default_rng(0).random((*SIZE, 1), np.float32)
    gradient = jax.grad(lambda k, v: jnp.sum(weight * draw(k, v, *arguments)), argnums=(0, 1))(
        jnp.asarray(HARD_PLACES), jnp.asarray(visible, jnp.float32)
    )
    assert all(np.all(np.isfinite(g)) for g in gradient)
    if visible.all():
        assert np.all(np.any(gradient[0][2:4] != 0, axis=-1))


@pytest.mark.parametrize("draw", DRAWINGS)
def test_gradients_are_those_of_finite_differences(draw):
    """Of one shape alone, since a union has a kink wherever another shape becomes the nearest."""
    keypoints, visible = np.float32([[5.3, 4.2], [9.7, 14.1]]), np.ones(2, np.float32)
    if draw is draw_joints:
        visible[0] = 0
    weight = np.random.default_rng(1).random((*SIZE, 1), np.float32)

    def total(keypoints):
        if draw is draw_limbs:
            drawn = limb_mask(keypoints, visible, limbs=((0, 1),), size=SIZE, half_width=3.0, softness=3.0)
        else:
            drawn = draw(keypoints, visible, *(() if draw is draw_gaussians else (3.0,)))
        return jnp.sum(weight * drawn)

    gradient = jax.grad(total)(jnp.asarray(keypoints))
    step = 1e-2
    moves = step * np.eye(keypoints.size, dtype=np.float32).reshape(-1, *keypoints.shape)
    high, low = (np.asarray(jax.vmap(total)(keypoints + sign * moves), float) for sign in (1, -1))
    assert np.abs(gradient).max() > 0.1
    np.testing.assert_allclose(gradient, (high - low).reshape(keypoints.shape) / (2 * step), atol=2e-3)
