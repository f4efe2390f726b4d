from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy import stats

from benchmarks import coverage, hypotheses
from dpose_jax.data.crop import crop_spec, map_points, padded_view, view_matrix
from dpose_jax.data.synthetic.dataset import SyntheticSource
from dpose_jax.evaluation.predict_split import Rows
from dpose_jax.pose.codec import Codec
from dpose_jax.pose.joint_sets import COCO
from dpose_jax.recipe import Recipe
from dpose_jax.workdir.compatibility import as_stored
from dpose_jax.workdir.files import write_json

HALF = np.arange(400) % 2 == 1
CODEC = Codec((64, 48), 2, sigma=2.0, blur=5)
FROM_HEATMAPS = jax.jit(hypotheses.from_heatmaps, static_argnums=(0, 4))


def truth(persons=400, joints=3):
    """Labelled joints of boxes of two sizes, the last joint occluded."""
    visible = np.full((persons, joints), 2.0)
    visible[:, -1] = 1
    places = np.random.default_rng(5).random((persons, joints, 2)) * 100
    return coverage.Truth(places, visible, np.where(np.arange(persons) % 3, 100.0, 200.0), HALF[:persons])


def test_best_of_k():
    distances = np.array([[[0.3], [0.5], [0.1], [0.2]], [[0.2], [0.2], [np.nan], [0.1]]])
    found = coverage.best_of(distances)
    np.testing.assert_array_equal(found[0, :, 0], [0.3, 0.3, 0.1, 0.1])
    many = coverage.best_of(np.random.default_rng(0).random((20, 8, 3)))
    assert (np.diff(many, axis=1) <= 0).all()


def test_distances_are_in_box_sides():
    its = truth()
    its.visible[0, 1] = 0
    found = its.distances(its.places[:, None] + np.array([[[30, 40]]]))
    assert found.shape == (400, 1, 3) and np.isnan(found[0, 0, 1]) and np.isfinite(found).sum() == 1199
    np.testing.assert_allclose(found[:2, 0, 0], [0.25, 0.5])


def test_likelihood_of_a_mixture_is_scipys():
    rng = np.random.default_rng(1)
    places, weights, joint = rng.normal(size=(6, 4, 2)), rng.dirichlet(np.ones(4), 6), rng.normal(size=(6, 2))
    distances = np.linalg.norm(places - joint[:, None], axis=-1)[..., None]
    for bandwidth in (0.3, np.linspace(0.1, 2, 6)[:, None]):
        found, each = coverage.mixture_nll(distances, weights[..., None], bandwidth), np.broadcast_to(bandwidth, (6, 1))
        for i in range(6):
            densities = [stats.multivariate_normal(mean, each[i, 0] ** 2).pdf(joint[i]) for mean in places[i]]
            assert found[i, 0] == pytest.approx(-np.log(weights[i] @ densities), rel=1e-9)


def test_the_bandwidth_is_fitted_on_the_other_half():
    """With one hypothesis it is the errors' deviation on an axis, by maximum likelihood."""
    rng = np.random.default_rng(2)
    offsets = rng.normal(size=(400, 50, 2)) * np.where(HALF, 0.02, 0.1)[:, None, None]
    distances = np.linalg.norm(offsets, axis=-1)[:, None]
    loss = lambda one: coverage.mixture_nll(distances, np.ones_like(distances), one)  # noqa: E731
    found = coverage.fitted(loss, HALF, 1e-4, 1.0)
    for side in (False, True):
        expected = np.sqrt(np.mean(offsets[HALF != side] ** 2))
        np.testing.assert_allclose(found[HALF == side], expected, rtol=1e-3)


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 0.0), (0.5, 1.0), (2.0, 0.5)])
def test_calibration(factor, expected):
    """The error is |predicted - observed| / predicted: 1 for a spread of half the error. Rescaled it is 0."""
    rng = np.random.default_rng(3)
    deviation = np.exp(rng.uniform(-4, -1, (400, 100)))
    error = np.linalg.norm(rng.normal(size=(400, 100, 2)), axis=-1) * deviation / np.sqrt(2)
    error[::7, 5] = np.nan
    spread = factor * deviation
    assert coverage.normalised_error(spread, error) == pytest.approx(expected, abs=0.03)
    predicted, observed = coverage.calibration(spread, error)
    np.testing.assert_allclose(observed, predicted / factor, rtol=0.05)
    again = coverage.rescaled(coverage.Candidate(None, error, spread, error), HALF)
    assert coverage.normalised_error(again, error) < 0.03
    assert coverage.normalised_error(0 * spread, error) is None


def test_one_global_gaussian_finds_the_deviation_of_least_error():
    """Joints off by 20 pixels in any direction: draws far nearer or farther than that cover less."""
    its, rng = truth(), np.random.default_rng(4)
    angle = rng.uniform(0, 2 * np.pi, its.visible.shape)
    best = its.places + 0.2 * its.sides[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    found = coverage.of_gaussian(its, best, 8, seed=0)
    np.testing.assert_allclose(found.error, 0.2, rtol=1e-9)
    deviations = found.spread[:, 0] / np.sqrt(2)
    assert ((deviations > 0.08) & (deviations < 0.25)).all() and len(np.unique(deviations)) == 2
    assert found.best[:, -1].mean() < 0.12 < found.best[:, 0].mean()


def test_summary_by_visibility_and_paired_differences():
    its = truth()
    exact = coverage.of_hypotheses(its, np.repeat(its.places[:, None], 2, axis=1), its.places)
    off = its.places + its.sides[:, None, None] * np.array([[0, 0], [0.05, 0], [0.3, 0]])
    wrong = coverage.of_hypotheses(its, np.stack([off + 900, off], axis=1), off)
    rows, more = coverage.summarise(its, {"exact": exact, "wrong": wrong}, "exact")
    assert rows[0]["occluded error"] == rows[0]["visible error"] == 0 and rows[0]["visible PCK@0.1"] == 1
    assert rows[1]["occluded error"] == pytest.approx(0.3) and rows[1]["occluded PCK@0.1"] == 0
    assert rows[1]["visible error"] == pytest.approx(0.025) and rows[1]["visible PCK@0.1"] == 1
    assert rows[0]["occluded NLL"] < rows[1]["occluded NLL"] and rows[0]["ENCE"] is None
    assert more["curves"]["wrong"]["occluded"][0] > 1 and len(more["curves"]["wrong"]["occluded"]) == 2
    assert more["differences"]["wrong"]["occluded error"] == pytest.approx((0.3, 0), abs=1e-9)
    assert more["differences"]["exact"]["visible NLL"] == (0, 0)


def test_standard_error_is_over_persons():
    """Joints of a person that err together count once."""
    values = np.repeat(np.random.default_rng(6).normal(size=(400, 1)), 17, axis=1)
    mean, error = coverage.mean_of(values, np.ones(values.shape, bool))
    assert mean == pytest.approx(values.mean()) and error == pytest.approx(values[:, 0].std() / 20)


def test_local_maxima_in_order_of_height():
    maps = np.full((1, 32, 24, 2), -0.1, np.float32)
    maps[0, 5, 7, 0], maps[0, 0, 23, 0], maps[0, 20, 3, 0], maps[0, 20, 4, 0] = 0.4, 0.9, 0.6, 0.5
    maps[0, 9, 9, 1] = -0.01
    x, y, heights = jax.jit(hypotheses.local_maxima, static_argnums=1)(maps, 4)
    assert list(zip(x[0, :, 0].tolist(), y[0, :, 0].tolist(), strict=True)) == [(23, 0), (3, 20), (7, 5), (23, 0)]
    np.testing.assert_allclose(heights[0, :, 0], [0.9, 0.6, 0.4, 0])
    assert x[0, :, 1].tolist() == y[0, :, 1].tolist() == [9] * 4 and not heights[0, :, 1].any()


def test_hypotheses_of_a_heatmap():
    """Two Gaussians: their centres as peaks, and draws and deviation of the mixture that they are."""
    joints = np.array([[[20.3, 30.6]], [[34.0, 49.2]]], np.float32)
    one, other = (np.asarray(CODEC.encode(its[None], np.ones((1, 1)))) for its in joints)
    maps, keys = np.repeat(0.75 * one + 0.25 * other, 32, axis=0), jax.random.split(jax.random.key(0), 32)
    truth = np.repeat(CODEC.to_heatmap(joints[:1]), 32, axis=0)
    found = jax.device_get(FROM_HEATMAPS(CODEC, maps, truth, keys, 64))
    np.testing.assert_allclose(found["peaks"][0, :2, 0], joints[:, 0], atol=0.3)
    np.testing.assert_allclose(found["heights"][0, :2, 0], [0.75, 0.25], atol=0.02)
    mean = np.average(joints[:, 0], axis=0, weights=[3, 1])
    width = 2 * np.square(np.asarray(CODEC.to_crop(np.full(2, 2.0)))).mean()
    deviation = np.sqrt(width + np.average(np.sum((joints[:, 0] - mean) ** 2, axis=-1), weights=[3, 1]))
    np.testing.assert_allclose(found["deviation"], deviation, rtol=0.02)
    draws = found["draws"].reshape(-1, 2)
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=0.5)
    assert np.sqrt(np.trace(np.cov(draws.T))) == pytest.approx(deviation, rel=0.03)
    # The Gaussian of weight 3/4 at its own centre, to within half a pixel.
    assert found["at_truth"][0, 0] == pytest.approx(0.75 / (2 * np.pi * 2.0**2), rel=0.05)


def test_a_heatmap_as_a_density():
    """A flat map, whatever its sign, has the likelihood of a uniform density over the crop, in box sides."""
    its, size = truth(8, 1), np.prod(CODEC.input_size)
    maps, keys = np.full((8, 32, 24, 1), -0.5, np.float32), jax.random.split(jax.random.key(1), 8)
    found = jax.device_get(FROM_HEATMAPS(CODEC, maps, np.full((8, 1, 2), 5.0, np.float32), keys, 4))
    turns = np.tile(np.array([[2.0, 0, 7], [0, 2.0, -3]]), (8, 1, 1))
    rows = Rows(np.arange(8), turns, found)
    candidates = coverage.of_heatmaps(its, rows, found, CODEC, 0)
    assert list(candidates) == ["peaks", "draws", "heatmap", "Gaussian"]
    pitch = np.prod(np.asarray(CODEC.to_crop(np.ones(2))))
    expected = np.log(32 * 24 * pitch * 4 / its.sides**2)[:, None]
    np.testing.assert_allclose(candidates["heatmap"].nll, expected, rtol=1e-5)
    assert size < 32 * 24 * pitch < 1.1 * size


def test_the_truth_finds_its_person_and_its_pixel():
    """Maps of the true joints, by person: the peaks are the truth in image pixels, in batches of any order."""
    source = SyntheticSource(5, COCO, difficulty=0.3, seed=0, size=(96, 96))
    recipe = Recipe().override({"input_size": (64, 64), "stride": 2, "eval.batch_size": 4, "data.workers": 0})
    spec, codec = crop_spec(recipe), Codec((64, 64), 2, sigma=2.0, blur=5)
    joints = np.zeros((1 + max(source[i].annotation_id for i in range(len(source))), 17, 2), np.float32)
    for person in map(source.__getitem__, range(len(source))):
        matrix = view_matrix(padded_view(person.bbox, spec), spec)
        joints[person.annotation_id] = map_points(matrix, person.keypoints[:, :2])

    class Exact:
        model, seed = SimpleNamespace(codec=codec), 0
        heatmaps = staticmethod(lambda its, crops, ids: {"coarse": codec.encode(its[ids], np.ones((4, 17)))})

    rows = hypotheses.collect(recipe, source, Exact(), joints, 3)
    its = coverage.Truth.of(source, rows.index, 0)
    found = coverage.of_heatmaps(its, rows, rows.outputs["coarse"], codec, 0)
    inside = np.all((joints > 4) & (joints < 60), axis=-1)
    inside = inside[[source[int(i)].annotation_id for i in rows.index]] & (its.visible > 0)
    assert len(rows.index) == len(source) and inside.sum() > 40
    assert found["peaks"].error[inside].max() < 0.005
    density = rows.outputs["coarse"]["at_truth"][inside] * 2 * np.pi * 2.0**2
    assert density.min() > 0.9 and density.max() < 1.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [({}, "loss.diffusion=1: must be 0"), ({"loss.diffusion": 0.0, "joint_set": "crowdpose"}, "must be 'coco'")],
)
def test_the_baseline_is_a_plain_hrnet_of_the_same_joints(tmp_path, changes, message):
    recipe = Recipe()
    write_json(tmp_path / "config.json", as_stored(recipe.override(changes)))
    with pytest.raises(ValueError, match=f"plain='{tmp_path}': .*{message}"):
        hypotheses.plain_network(str(tmp_path), recipe)
