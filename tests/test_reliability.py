import numpy as np
import pytest

from benchmarks import reliability
from dpose_jax.data.synthetic.dataset import SyntheticSource
from dpose_jax.evaluation.predict_split import Predictions
from dpose_jax.pose.joint_sets import COCO
from dpose_jax.recipe import Recipe

RECIPE = Recipe().override({"input_size": (64, 64), "eval.nms": 1.0})


@pytest.fixture(scope="module")
def source():
    return SyntheticSource(30, COCO, difficulty=0.0, seed=0, size=(96, 96))


@pytest.fixture(scope="module")
def predictions(source):
    """The truth, and in every third person all joints off by the size of the box."""
    persons = [source[i] for i in range(len(source))]
    keypoints = np.stack([person.keypoints[:, :2] for person in persons]).astype(np.float64)
    for i in range(0, len(persons), 3):
        keypoints[i] += max(persons[i].bbox[2:])
    return Predictions(np.arange(len(persons)), keypoints, np.full(keypoints.shape[:2], 0.9))


def test_errors_are_of_labelled_joints_in_box_sides(source, predictions):
    errors = reliability.joint_errors(source, predictions)
    for i in range(len(source)):
        labelled = source[i].keypoints[:, 2] > 0
        assert np.isnan(errors[i, ~labelled]).all()
        np.testing.assert_allclose(errors[i, labelled], np.sqrt(2) if i % 3 == 0 else 0, atol=1e-6)


def test_rank_correlation():
    rng = np.random.default_rng(0)
    errors = rng.random((200, 17))
    errors[::2, 3] = np.nan
    assert reliability.rank_correlation(np.nan_to_num(errors) ** 3, errors) == pytest.approx(1)
    assert reliability.rank_correlation(-np.nan_to_num(errors), errors) == pytest.approx(-1)
    assert abs(reliability.rank_correlation(rng.random((200, 17)), errors)) < 0.06
    assert reliability.rank_correlation(np.ones((200, 17)), errors) is None


def test_dropping_the_worst(source, predictions):
    """A doubt that knows the wrong third makes AP 1 without it; one that knows nothing leaves it; a lie lowers it."""
    count = len(source)
    wrong = (np.arange(count) % 3 == 0).astype(float)
    share = wrong.sum() / count

    def accuracy(doubt):
        found = reliability.accuracy_without_worst(source, predictions, doubt, (0.0, share), RECIPE)
        return list(found.values())

    plain, best = accuracy(wrong)
    assert best == pytest.approx(1, abs=1e-6) and plain < 0.8
    assert accuracy(-wrong)[1] < plain - 0.05
    blind = accuracy(np.random.default_rng(0).random(count))
    assert blind[0] == plain and abs(blind[1] - plain) < 0.25
