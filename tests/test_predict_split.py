"""The loop over a split: every person once, in order, in image pixels, whatever the batch."""

import jax
import numpy as np
import pytest

from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import eval_batches
from dpose_jax.data.sample import BadRecordError
from dpose_jax.evaluation.predict_split import Predictions, Stopped, predict_split
from dpose_jax.runtime.sharding import make_mesh


@pytest.fixture(scope="module")
def recipe(miniature):
    return miniature(data__max_bad_share=0.2)


@pytest.fixture(scope="module")
def source(recipe):
    return make_source(recipe, "val", training=False)


def predict(crops, ids):
    """A joint in the crop's middle, and the end of the ID as its score."""
    joints = np.broadcast_to(np.float32(31.5), (len(crops), 1, 2))
    return {
        "b": (joints, (np.asarray(ids) % 1000).astype(np.float32)[:, None]),
        "a": np.asarray(crops).mean(axis=(1, 2, 3)),
    }


class Unreadable:
    """A source some of whose images cannot be read."""

    def __init__(self, source, bad):
        self._source, self._bad = source, bad

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        return self._source[index]

    def report(self):
        return self._source.report()

    def read_image(self, index):
        if index in self._bad:
            raise BadRecordError("broken")
        return self._source.read_image(index)


@pytest.mark.parametrize("size", [None, 1, 5])
def test_every_person_comes_once_in_order(recipe, source, size):
    rows = predict_split(recipe, source, predict, batch_size=size)
    assert rows.index.tolist() == list(range(len(source))) and list(rows.outputs) == ["a", "b"]
    persons = [source[i] for i in range(len(source))]
    found = rows.predictions(*rows.outputs["b"])
    assert found.scores[:, 0].tolist() == [person.annotation_id % 1000 for person in persons]
    centres = [person.bbox[:2] + person.bbox[2:] / 2 for person in persons]
    np.testing.assert_allclose(found.keypoints[:, 0], centres, atol=1e-3)
    means = np.concatenate([batch["image"].mean(axis=(1, 2, 3)) for batch in eval_batches(recipe, source, 1)])
    np.testing.assert_allclose(rows.outputs["a"], means)


def test_a_mesh_changes_nothing(recipe, source):
    whole = predict_split(recipe, source, predict)
    split = predict_split(recipe, source, jax.jit(lambda crops, ids: [ids % 1000]), mesh=make_mesh())
    np.testing.assert_array_equal(split.outputs[0], whole.outputs["b"][1][:, 0])
    np.testing.assert_array_equal(split.to_image, whole.to_image)


def test_unreadable_persons_are_left_out_up_to_their_share(recipe, source):
    count = len(source)
    rows = predict_split(recipe, Unreadable(source, {1}), predict)
    assert rows.index.tolist() == [i for i in range(count) if i != 1]
    with pytest.raises(ValueError, match="more than data.max_bad_share=0.2"):
        predict_split(recipe, Unreadable(source, set(range(count // 2))), predict)


def test_stops_after_the_batch_that_it_is_asked_at(recipe, source):
    seen = []
    with pytest.raises(Stopped):
        predict_split(recipe, source, lambda *_: seen.append(1), batch_size=1, stop=lambda: len(seen) == 2)
    assert len(seen) == 2


def test_bad_predictions_are_refused():
    index, keypoints, scores = np.arange(4), np.zeros((4, 17, 2)), np.ones((4, 17))
    with pytest.raises(ValueError, match=r"must not repeat, got \[0\]"):
        Predictions(np.array([0, 0, 2, 3]), keypoints, scores)
    broken = keypoints.copy()
    broken[3, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"not finite for index \[3\]"):
        Predictions(index, broken, scores)
    with pytest.raises(ValueError, match="need keypoints"):
        Predictions(index, keypoints, scores[1:])
