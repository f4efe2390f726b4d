import jax
import numpy as np
import pytest

from dpose_jax.diffusion.process import Schedule
from dpose_jax.diffusion.sampler import SamplerSettings
from dpose_jax.models.initialise import abstract_variables
from dpose_jax.models.pose_sampler import PoseSampler, person_keys, to_image_pixels, unflip
from dpose_jax.pose.joint_sets import COCO

SCHEDULE = Schedule()
RECIPE = (SamplerSettings(steps=1), SamplerSettings(steps=2, update_rule="ddim", start="coarse_noised", eta=1.0))
IDS = np.array([11, 22, 33, 44], np.int32)


def draw_images(count=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def model(small_model):
    return small_model(model__backbone="speck")


@pytest.fixture(scope="module")
def variables(model, random_tree):
    return random_tree(abstract_variables(model))


@pytest.fixture(scope="module")
def predict(model, variables):
    """(images, ids) -> joints of the coarse branch, of one `direct` step and of two noisy `ddim` steps."""
    jitted = jax.jit(PoseSampler(model, SCHEDULE, RECIPE, flip=True, seed=0).joints)
    return lambda images, ids: jax.device_get(jitted(variables, images, ids))


def assert_same(some, others, **bounds):
    assert list(some) == list(others) == ["coarse", "steps_1", "steps_2"]
    for name in some:
        for one, other in zip(some[name], others[name], strict=True):
            np.testing.assert_allclose(one, other, err_msg=name, **bounds)


def rows(joints, order):
    return {name: (keypoints[order], scores[order]) for name, (keypoints, scores) in joints.items()}


def test_neighbours_do_not_matter(predict):
    """Other neighbours, another place in the batch: the same joints, to 1e-5 pixels."""
    images = draw_images()
    before = predict(images, IDS)
    others = draw_images(seed=1)
    others[2], ids = images[0], np.array([1, 2, IDS[0], 4], np.int32)
    assert_same(rows(predict(others, ids), [2]), rows(before, [0]), rtol=0, atol=1e-5)
    order = [3, 1, 0, 2]
    assert_same(predict(images[order], IDS[order]), rows(before, order), rtol=0, atol=1e-5)


def test_batch_size_does_not_matter(predict):
    images = draw_images()
    assert_same(predict(images[1:2], IDS[1:2]), rows(predict(images, IDS), [1]), rtol=0, atol=2e-3)


def test_noise_belongs_to_the_person(predict):
    """Another annotation id, another sample; what is deterministic does not change."""
    images = draw_images()
    before, after = predict(images, IDS), predict(images, IDS + 1)
    for name, changes in [("coarse", False), ("steps_1", False), ("steps_2", True)]:
        differs = [(a != b).any() for a, b in zip(before[name][0], after[name][0], strict=True)]
        assert differs == [changes] * 4, name


def test_a_mirrored_person_has_mirrored_joints(predict):
    """With the flip test, left and right change places and x becomes 31 - x."""
    images = draw_images()
    plain, mirrored = predict(images, IDS), predict(images[:, :, ::-1].copy(), IDS)
    for name in ("coarse", "steps_1"):
        (keypoints, scores), (other, other_scores) = plain[name], mirrored[name]
        order = list(COCO.flip_order)
        np.testing.assert_allclose(other[:, order, 0], 31 - keypoints[..., 0], atol=1e-3)
        np.testing.assert_allclose(other[:, order, 1], keypoints[..., 1], atol=1e-3)
        np.testing.assert_allclose(other_scores[:, order], scores, atol=1e-5)
        # The network alone is far from symmetric, so the test would see a wrong pair.
        assert np.abs(other[..., 0] - (31 - keypoints[..., 0])).max() > 1


def test_denoising_the_plain_crop_alone(model, variables):
    """Not `mirrored`: one denoising of the crop as it is, from the average of both crops' coarse heatmaps."""
    images, once = draw_images(), SamplerSettings(steps=1, mirrored=False)

    def compiled(setting, hypotheses=1):
        sampler = PoseSampler(model, SCHEDULE, (setting,), flip=True, seed=0, hypotheses=hypotheses)
        return jax.jit(sampler.heatmaps).lower(variables, images, IDS).compile()

    run = compiled(once)
    found = run(variables, images, IDS)

    @jax.jit
    def by_hand(variables, images):
        features, coarse = model.apply(variables, images, method="encode")
        _, other = model.apply(variables, images[:, :, ::-1], method="encode")
        start = (coarse + other[:, :, ::-1][..., np.array(COCO.flip_order)]) / 2
        y, seen = model.codec.normalise(model.codec.peaks(start, "dark")[0]).clip(-1, 1), np.ones(coarse.shape[::3])
        condition = model.apply(variables, features, y, seen, method="condition")
        return start, model.apply(variables, start, condition, np.full(len(images), 1000), method="denoise")

    start, final = by_hand(variables, images)
    np.testing.assert_allclose(found["coarse"], start, atol=1e-5)
    np.testing.assert_allclose(found["steps_1"], final, atol=1e-4)
    both = compiled(SamplerSettings(steps=1))
    assert np.abs(both(variables, images, IDS)["steps_1"] - final).max() > 0.01
    noisy = SamplerSettings(steps=1, start="coarse_noised", mirrored=False)
    one, three = (compiled(noisy, k) for k in (1, 3))
    samples = three(variables, images, IDS)["steps_1"]
    np.testing.assert_allclose(samples[:, 0], one(variables, images, IDS)["steps_1"], atol=1e-4)
    assert np.abs(samples[:, 0] - samples[:, 1]).max() > 0.01
    flops = [program.cost_analysis()["flops"] for program in (run, both)]
    assert flops[0] < 0.9 * flops[1]


def test_noise_of_hypotheses():
    """The first is the prediction's own; more of them change none; none is another's, mirrored or not."""
    key_data = lambda **options: np.asarray(jax.random.key_data(person_keys(0, IDS, **options)))  # noqa: E731
    plain, three, five = key_data(), key_data(hypotheses=3), key_data(hypotheses=5)
    np.testing.assert_array_equal(three[:, :1], plain)
    np.testing.assert_array_equal(five[:, :3], three)
    everything = np.concatenate([five, key_data(hypotheses=5, mirrored=True)]).reshape(40, -1)
    assert len(np.unique(everything, axis=0)) == 40


@pytest.mark.parametrize("shift", [0, 1])
def test_unflip(shift):
    heatmaps = np.random.default_rng(0).random((2, 3, 5, 17), np.float32)
    expected = np.zeros_like(heatmaps)
    for x in range(5):
        for j in range(17):
            # A column that nothing moves into keeps what is there before the shift.
            source = 4 - (x - shift) if x >= shift else 4 - x
            expected[:, :, x, j] = heatmaps[:, :, source, COCO.flip_order[j]]
    np.testing.assert_array_equal(unflip(heatmaps, COCO.flip_order, shift), expected)


def test_unflip_brings_the_rounded_codec_within_a_pixel(small_model):
    """HRNet's geometry: mirroring crop and joints is a map 1 - 1/s off, which the shift of one pixel takes back."""
    codec = small_model(codec__name="rounded").codec
    keypoints = np.full((1, 17, 2), [12.0, 32.0], np.float32)
    visible = np.ones((1, 17), np.float32)
    there = codec.encode(keypoints, visible)
    mirrored = codec.encode(np.float32([31, 0]) + keypoints * np.float32([-1, 1]), visible)
    back = unflip(mirrored, COCO.flip_order, codec.flip_shift)
    np.testing.assert_array_equal(back[:, :, 1:], there[:, :, 1:])


def test_to_image_pixels():
    rng = np.random.default_rng(0)
    keypoints, maps = rng.random((3, 5, 2)), rng.random((3, 2, 3)).astype(np.float32)
    out = to_image_pixels(keypoints, maps)
    for b in range(3):
        for j in range(5):
            x, y = keypoints[b, j]
            np.testing.assert_allclose(out[b, j], maps[b].astype(np.float64) @ [x, y, 1], rtol=1e-12)


@pytest.fixture(scope="module")
def lowered(model):
    """A function from settings to the lowered sampler, without the flip test."""
    abstract = abstract_variables(model)

    def lower(*settings):
        run = PoseSampler(model, SCHEDULE, settings, flip=False, seed=0).heatmaps
        return jax.jit(run).lower(abstract, draw_images(), IDS)

    return lower


def count_products(program):
    text = program.as_text()
    return text.count("stablehlo.convolution"), text.count("stablehlo.dot_general")


def test_backbone_is_there_once_whatever_the_steps(lowered, model):
    """The lowered program's convolutions are the backbone's once and the decoder's once a sampling run."""
    abstract = abstract_variables(model)
    backbone = jax.jit(lambda v, x: model.apply(v, x, method="encode")).lower(abstract, draw_images())
    run = lambda v, b: model.apply(v, **b, schedule=SCHEDULE, train=False)  # noqa: E731
    batch = {"images": draw_images(), "keypoints": np.zeros((4, 17, 2), np.float32), "visible": np.ones((4, 17))}
    batch |= {"t": np.ones(4, int), "noise": np.zeros((4, 17, 2), np.float32), "coarse_input": np.zeros(4)}
    whole = jax.jit(run).lower(abstract, batch)
    encoder, both = count_products(backbone)[0], count_products(whole)[0]
    assert 0 < encoder < both

    counts = [count_products(lowered(SamplerSettings(steps=steps))) for steps in (1, 4, 25)]
    assert counts[0] == counts[1] == counts[2] and counts[0][0] == both
    noisy = {"update_rule": "ddim", "start": "coarse_noised", "eta": 0.5, "refresh": True}
    assert count_products(lowered(SamplerSettings(steps=4, **noisy)))[0] == both
    three = lowered(*(SamplerSettings(steps=steps) for steps in (1, 2, 4)))
    assert count_products(three)[0] == encoder + 3 * (both - encoder)


def test_compiler_does_not_unroll_the_steps(lowered):
    """Nor does XLA take the scan apart: convolutions of the optimised program, for 2 and for 8 steps."""
    counts = [lowered(SamplerSettings(steps=steps)).compile().as_text().count(" convolution(") for steps in (2, 8)]
    assert counts[0] == counts[1] > 0
