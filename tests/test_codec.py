import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpose_jax.models.pose_sampler import unflip
from dpose_jax.pose.codec import Codec

# (input_size, stride, sigma, blur)
SIZES = (
    ((256, 192), 4, 2.0, 11),
    ((128, 96), 4, 1.5, 5),
    ((256, 192), 8, 2.0, 11),
    ((128, 96), 2, 2.0, 11),
)
SMALL = Codec((64, 48), 2, sigma=2.0, blur=5)

decode = jax.jit(Codec.decode, static_argnums=0)


def make(case, name, refine):
    input_size, stride, sigma, blur = case
    return Codec(input_size, stride, name, refine, sigma, blur)


def joints_everywhere(codec, count=240, seed=0):
    """(3, count, 2) joints over the whole crop; also on its corners, on its edges, and within two pixels of them."""
    rng = np.random.default_rng(seed)
    last = np.float32(codec.input_size[::-1]) - 1
    share = rng.random((3, count, 2), np.float32)
    share[1, : count // 2, 0] = np.round(share[1, : count // 2, 0])
    share[1, count // 4 : 3 * count // 4, 1] = np.round(share[1, count // 4 : 3 * count // 4, 1])
    joints = share * last
    joints[2] = np.where(share[2] < 0.5, 4 * share[2], last - 4 * (1 - share[2]))
    return joints


def errors(codec, joints, spoil=lambda heatmaps: heatmaps):
    """Absolute encode-decode errors in crop pixels, (N, 2), and the joints' nearest heatmap pixels, (N, 2)."""
    decoded, _ = decode(codec, spoil(codec.encode(joints, np.ones(joints.shape[:-1], np.float32))))
    nearest = np.floor(np.asarray(codec.to_heatmap(joints)) + 0.5)
    return np.abs(np.asarray(decoded) - joints).reshape(-1, 2), nearest.reshape(-1, 2)


def pitch(codec):
    """Crop pixels a heatmap pixel, the larger of both axes."""
    (hx, wx), (h, w) = codec.input_size, codec.size
    return max((hx - 1) / (h - 1), (wx - 1) / (w - 1)) if codec.name == "unbiased" else codec.stride


def shift_one_pixel(axis):
    return lambda heatmaps: jnp.roll(heatmaps, 1, axis=axis)


@pytest.mark.parametrize("case", SIZES)
def test_unbiased_dark_is_exact_to_the_border_and_a_shift_is_not(case):
    codec = make(case, "unbiased", "dark")
    joints = joints_everywhere(codec)
    within = lambda spoil: errors(codec, joints, spoil)[0].max() < 0.02  # noqa: E731
    assert within(lambda heatmaps: heatmaps)
    assert errors(codec, joints)[0].max() < 0.004
    for axis in (-3, -2):
        assert not within(shift_one_pixel(axis))


@pytest.mark.parametrize("case", SIZES)
def test_unbiased_quarter_is_within_a_quarter_pixel_and_a_shift_is_not(case):
    """1.0 crop px at stride 4, up to the factor (Wx - 1) / (s (W - 1)); half a pixel where HRNet does not refine."""
    codec = make(case, "unbiased", "quarter")
    joints = joints_everywhere(codec)

    def within(spoil=lambda heatmaps: heatmaps):
        error, nearest = errors(codec, joints, spoil)
        outermost = np.any((nearest < 1) | (nearest > np.array(codec.size[::-1]) - 2), axis=-1)
        assert outermost.any()
        bound = pitch(codec) * np.where(outermost, 0.5, 0.25) + 1e-3
        return np.all(error <= bound[:, None])

    assert within()
    assert not within(shift_one_pixel(-3)) and not within(shift_one_pixel(-2))


@pytest.mark.parametrize("case", SIZES)
def test_rounded_quarter_is_within_half_a_pixel_and_a_shift_is_not(case):
    """2.0 crop px at stride 4. Beyond the centre of the last heatmap pixel half a stride of the crop has no pixel."""
    codec = make(case, "rounded", "quarter")
    joints = joints_everywhere(codec)

    def within(spoil=lambda heatmaps: heatmaps):
        error, nearest = errors(codec, joints, spoil)
        on_map = nearest < np.array(codec.size[::-1])
        assert 0.5 < on_map.mean() < 1
        return np.all(error <= np.where(on_map, codec.stride / 2, codec.stride - 1) + 1e-3)

    assert within()
    assert not within(shift_one_pixel(-3)) and not within(shift_one_pixel(-2))


def test_another_codecs_decoder_is_caught():
    joints = joints_everywhere(SMALL)
    heatmaps = SMALL.encode(joints, np.ones(joints.shape[:-1]))
    decoded, _ = decode(dataclasses.replace(SMALL, name="rounded"), heatmaps)
    assert np.abs(decoded - joints).max() > 0.5


@pytest.mark.parametrize("refine", ["dark", "quarter", "none"])
def test_scores_are_peaks_for_any_leading_shape(refine):
    codec = dataclasses.replace(SMALL, refine=refine)
    maps = np.random.default_rng(0).normal(size=(2, 3, *codec.size, 4)).astype(np.float32)
    joints, scores = decode(codec, maps)
    np.testing.assert_array_equal(scores, maps.max(axis=(-3, -2)))
    for index in np.ndindex(2, 3):
        one_joints, one_scores = decode(codec, maps[index])
        np.testing.assert_allclose(one_joints, joints[index], atol=1e-4)
        np.testing.assert_array_equal(one_scores, scores[index])


def test_unlabelled_joints_are_empty_maps():
    joints = joints_everywhere(SMALL, count=5)
    visible = np.tile(np.float32([1, 0, 1, 0, 1]), (3, 1))
    heatmaps = np.asarray(SMALL.encode(joints, visible))
    np.testing.assert_array_equal(heatmaps.any(axis=(-3, -2)), visible > 0)
    decoded, scores = decode(SMALL, heatmaps)
    assert np.all(np.isfinite(decoded))
    np.testing.assert_array_equal(np.asarray(scores) == 0, visible == 0)


def test_rounded_targets_peak_at_one_on_the_nearest_pixel():
    codec = Codec((64, 48), 4, "rounded")
    joints = np.float32([[9.9, 10.0], [0, 1.9], [2, 5.99]])  # x / 4, y / 4: 2.475 2.5, 0 .475, .5 1.4975
    heatmaps = np.asarray(codec.encode(joints, np.ones(3)))
    assert np.all(heatmaps.max(axis=(0, 1)) == 1)
    rows, columns = np.unravel_index(heatmaps.reshape(-1, 3).argmax(axis=0), codec.size)
    np.testing.assert_array_equal(np.stack([columns, rows], -1), [[2, 3], [0, 0], [1, 1]])


@pytest.mark.parametrize("name", ["unbiased", "rounded"])
def test_coordinate_maps_are_inverses(name):
    codec = Codec((128, 96), 4, name)
    joints = joints_everywhere(codec)
    there = np.asarray(codec.to_heatmap(joints))
    np.testing.assert_allclose(codec.to_crop(there), joints, atol=1e-4)
    normal = np.asarray(codec.normalise(there))
    np.testing.assert_allclose(codec.denormalise(normal), there, atol=1e-5)
    np.testing.assert_allclose(codec.normalise(np.float32([[0, 0], [23, 31]])), [[-1, -1], [1, 1]])
    ends = codec.to_heatmap(np.float32([[0, 0], [95, 127]]))
    np.testing.assert_allclose(ends, [[0, 0], [23, 31]] if name == "unbiased" else [[0, 0], [23.75, 31.75]], rtol=1e-6)


@pytest.mark.parametrize("name", ["unbiased", "rounded"])
@pytest.mark.parametrize(("stride", "source"), [(8, 4), (2, 4), (1, 4), (4, 8), (4, 4)])
def test_resampled_maps_keep_every_joint_at_its_place(name, stride, source):
    """Maps that hold their own crop coordinates still do so afterwards, up to the outermost source pixels."""
    target = Codec((64, 48), stride, name)
    origin = target.at_stride(source)
    assert origin == Codec((64, 48), source, name)

    def places(codec):
        y, x = np.mgrid[: codec.size[0], : codec.size[1]]
        return np.asarray(codec.to_crop(np.stack([x, y], axis=-1).astype(np.float32)))[None]

    expected = np.minimum(places(target), places(origin)[0, -1, -1])
    np.testing.assert_allclose(target.resample(jnp.asarray(places(origin)), origin), expected, atol=2e-5)


def dark_reference(heatmap, kernel):
    """DARK on one (H, W) map in float64: smooth, expand the log map around the raw peak, one Newton step."""
    height, width = heatmap.shape
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    half, sigma = kernel // 2, 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
    taps = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    padded = np.pad(np.asarray(heatmap, np.float64), half)
    smooth = np.zeros(heatmap.shape)
    for dy, dx in np.ndindex(kernel, kernel):
        smooth += taps[dy] * taps[dx] * padded[dy : dy + height, dx : dx + width]
    m = np.log(np.maximum(smooth, 1e-10))
    gradient = np.array([m[y, x + 1] - m[y, x - 1], m[y + 1, x] - m[y - 1, x]]) / 2
    xx, yy = m[y, x + 1] - 2 * m[y, x] + m[y, x - 1], m[y + 1, x] - 2 * m[y, x] + m[y - 1, x]
    xy = (m[y + 1, x + 1] - m[y + 1, x - 1] - m[y - 1, x + 1] + m[y - 1, x - 1]) / 4
    hessian = np.array([[xx, xy], [xy, yy]])
    assert np.all(np.linalg.eigvalsh(hessian) < 0)
    return np.array([x, y]) - np.linalg.solve(hessian, gradient)


@pytest.mark.parametrize("kernel", [5, 11])
def test_dark_equals_a_reference_on_noisy_maps(kernel):
    codec = Codec((96, 80), 2, "unbiased", "dark", 2.0, kernel)
    rng = np.random.default_rng(kernel)
    margin = kernel // 2 + 3
    centres = rng.uniform(margin, np.array(codec.size[::-1]) - 1 - margin, (40, 2)).astype(np.float32)
    # Stretched and turned by a second Gaussian nearby, so that the mixed derivative counts.
    beside = centres + rng.choice([-1.5, 1.5], centres.shape).astype(np.float32)
    noise = rng.uniform(0, 0.05, (*codec.size, 40))
    clean = codec.render(centres, np.ones(40)) + 0.6 * codec.render(beside, np.ones(40))
    maps = np.asarray(clean) + noise.astype(np.float32)
    expected = np.stack([dark_reference(maps[..., j], kernel) for j in range(40)])
    np.testing.assert_allclose(codec.to_heatmap(decode(codec, maps)[0]), expected, atol=1e-3)
    assert np.abs(expected - np.round(expected)).max() > 0.3


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_dark_does_not_see_the_scale_of_a_map(factor):
    joints = joints_everywhere(SMALL, count=40)
    heatmaps = SMALL.encode(joints, np.ones(joints.shape[:-1]))
    np.testing.assert_allclose(decode(SMALL, factor * heatmaps)[0], decode(SMALL, heatmaps)[0], atol=0.02)


def test_dark_is_the_inverse_of_encode_to_first_order():
    """The Jacobian of decode(encode(y)) is the identity: what the DDIM update's gradients rest on."""
    joints = jnp.float32([[20.3, 31.9], [1.2, 40.4], [46.1, 62.8]])
    jacobian = jax.jit(jax.jacfwd(lambda k: SMALL.decode(SMALL.encode(k, jnp.ones(3)))[0]))(joints)
    np.testing.assert_allclose(jacobian.reshape(6, 6), np.eye(6), atol=5e-3)


def awkward_maps():
    rng = np.random.default_rng(0)
    shape = (*SMALL.size, 1)
    spike = np.zeros(shape)
    spike[7, 9] = 1
    plateau = np.zeros(shape)
    plateau[5:9, 5:9] = 0.5
    corner, beside = np.zeros(shape), np.zeros(shape)
    corner[0, 0] = beside[1, 2] = 1
    return {
        "zero": np.zeros(shape),
        "flat": np.full(shape, 0.3),
        "negative": -1 - rng.random(shape),
        "tiny": 1e-12 * rng.random(shape),
        "at_the_floor": np.full(shape, 1e-10),
        "normal": rng.normal(size=shape),
        "spike": spike,
        "plateau": plateau,
        "corner": corner,
        "spike_beside_the_border": beside,  # where DARK does not smooth
        "checkerboard": np.indices(shape).sum(axis=0) % 2,
        "huge": 1e20 * rng.random(shape),
    }


def test_dark_is_finite_with_finite_gradients_on_any_map():
    maps = awkward_maps()
    stack = jnp.asarray(np.concatenate(list(maps.values()), axis=-1), jnp.float32)

    def joints_twice(stack):
        joints, _ = SMALL.decode(stack)
        return joints, joints

    jacobian, joints = jax.jit(jax.jacrev(joints_twice, has_aux=True))(stack)
    last = np.array(SMALL.input_size[::-1]) - 1
    # No further than half a heatmap pixel outside the outermost pixel centres.
    assert np.all(np.isfinite(joints)) and np.all(joints >= -0.51 * 2.1) and np.all(joints <= last + 0.51 * 2.1)
    finite = np.all(np.isfinite(jacobian), axis=tuple(range(1, jacobian.ndim)))
    assert finite.all(), [name for name, good in zip(maps, finite, strict=True) if not good]


def mirrored_maps(codec, joints, flip_order):
    """What a perfect network gives for the mirrored crop: mirrored joints, left and right changed."""
    mirrored = joints.copy()
    mirrored[..., 0] = codec.input_size[1] - 1 - joints[..., 0]
    return codec.encode(mirrored[..., np.asarray(flip_order), :], np.ones(joints.shape[:-1]))


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_flip_shift_is_the_nearest_to_what_mirroring_moves(stride):
    """Mirroring the crop, then the map: nothing for unbiased maps, 1 - 1/s pixels to the left for rounded ones."""
    for name, off in (("unbiased", 0.0), ("rounded", 1 - 1 / stride)):
        codec = Codec((64, 48), stride, name)
        mirrored = codec.size[1] - 1 - np.asarray(codec.to_heatmap(np.float32([47 - 12.5, 0])))[0]
        moved = np.asarray(codec.to_heatmap(np.float32([12.5, 0])))[0] - mirrored
        np.testing.assert_allclose(moved, off, atol=1e-5)
        assert abs(codec.flip_shift - off) <= 0.5


FLIP_ORDER = (0, 2, 1, 4, 3)


def test_unflip_of_unbiased_maps_is_exact():
    codec = Codec((64, 48), 4)
    assert codec.flip_shift == 0
    joints = joints_everywhere(codec, count=5)
    plain = codec.encode(joints, np.ones((3, 5)))
    np.testing.assert_allclose(unflip(mirrored_maps(codec, joints, FLIP_ORDER), FLIP_ORDER, 0), plain, atol=1e-5)


def test_unflip_of_rounded_maps_needs_its_shift():
    codec = Codec((128, 96), 4, "rounded", "none")
    assert codec.flip_shift == 1
    # Away from the first columns, which the shift copies, and the last, where a rounded target leaves the map.
    joints = joints_everywhere(codec, count=1000)[:1] * np.float32(0.85) + 8
    flips = tuple(np.arange(1000).reshape(-1, 2)[:, ::-1].ravel().tolist())

    def mean_shift(joints, shift):
        decoded, _ = decode(codec, unflip(mirrored_maps(codec, joints, flips), flips, shift))
        return float(np.mean(decoded[..., 0] - joints[..., 0])), np.abs(decoded - joints).max()

    plain = float(np.mean(decode(codec, codec.encode(joints, np.ones((1, 1000))))[0][..., 0] - joints[..., 0]))
    assert abs(plain) < 0.15
    right, worst = mean_shift(joints, 1)
    wrong, _ = mean_shift(joints, 0)
    # Mirroring moves a rounded map by 1 - 1/s heatmap pixels, which is s - 1 = 3 crop pixels.
    assert abs(right - 1) < 0.15 and worst <= 3 + 1e-3
    assert abs(wrong + 3) < 0.15


def test_unflip_of_rounded_maps_is_exact_on_whole_crop_pixels():
    codec = Codec((128, 96), 4, "rounded", "none")
    joints = np.round(joints_everywhere(codec, count=200)[:1] * np.float32([0.9, 0.9]) + 4)
    flips = tuple(range(199, -1, -1))
    plain = codec.encode(joints, np.ones((1, 200)))
    back = unflip(mirrored_maps(codec, joints, flips), flips, codec.flip_shift)
    np.testing.assert_allclose(back[..., 1:, :], plain[..., 1:, :], atol=1e-6)
