"""Training on several sources, and faults of a camera."""

import cv2
import numpy as np
import pytest
from coco_folder import HEIGHT, WIDTH, content, person, read, write
from image_files import exif_turned

from dpose_jax.data.camera import degrade
from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import train_iterator
from dpose_jax.data.mixed import MixedSource
from dpose_jax.data.statistics import describe, statistics
from dpose_jax.recipe import Recipe
from dpose_jax.training.changes import fingerprint


class Numbered:
    def __init__(self, first, count):
        self.first, self.count = first, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.first + range(self.count)[index]

    def read_image(self, index):
        return np.full((2, 2, 3), self[index], np.uint8)

    def report(self):
        return {"kept": self.count, "crowd": self.first}


def test_every_source_has_its_share_and_each_of_its_items_comes_equally_often():
    mixed = MixedSource({"a": Numbered(0, 3), "b": Numbered(100, 20)}, [3, 1])
    items = [mixed[index] for index in range(len(mixed))]
    assert len(items) == 80  # the second source, once, is a quarter
    counts = dict(zip(*np.unique(items, return_counts=True), strict=True))
    assert set(counts) == {0, 1, 2, *range(100, 120)}
    assert {counts[i] for i in range(3)} == {20} and {counts[i] for i in range(100, 120)} == {1}
    assert mixed.read_image(79)[0, 0, 0] == mixed[79] and mixed.report() == {"kept": 23, "crowd": 100}
    with pytest.raises(IndexError):
        mixed[80]
    with pytest.raises(ValueError, match="data.mix: several sources are for training"):
        mixed.ground_truth()


@pytest.mark.parametrize(
    "mix, shares, error",
    [
        (("synthetic", "photos"), (0.5, 0.5), r"data.mix=\('synthetic', 'photos'\): must be different ones of"),
        (("folder", "folder"), (0.5, 0.5), r"data.mix=\('folder', 'folder'\): must be different ones of"),
        (("folder", "synthetic"), (1.0,), r"data.mix_shares=\(1.0,\): must be one share in \(0, 1\] for each"),
        (("folder", "synthetic"), (1.0, 0.0), r"data.mix_shares=\(1.0, 0.0\): must be one share"),
    ],
)
def test_a_mix_that_does_not_fit_is_refused(mix, shares, error):
    with pytest.raises(ValueError, match=error):
        Recipe().override({"data.mix": mix, "data.mix_shares": shares})


def test_training_reads_the_mix_and_evaluation_the_source(data_root):
    recipe = Recipe().override({
        "data.root": str(data_root / "coco"), "data.train_images": "images/train2017", "data.workers": 0,
        "data.val_images": "images/val2017", "data.mix": ("folder", "synthetic"), "data.mix_shares": (0.5, 0.5),
        "data.synthetic.train_images": 100, "train.batch_size": 16, "augment.camera": 0.5,
    })  # fmt: skip
    source = make_source(recipe, "train", training=True)
    assert len(source) == 720 and len(make_source(recipe, "val", training=False)) == 603
    assert fingerprint(source) != fingerprint(source.sources[0])
    iterator = train_iterator(recipe, source)
    index = next(iterator)["index"]
    iterator.close()
    assert (index < 360).any() and (index >= 360).any()


def test_every_source_of_a_mix_is_doubted_alone(tmp_path):
    facts = content()
    shares = [10 / WIDTH, 8 / HEIGHT, 2, 14.5 / WIDTH, 12 / HEIGHT, 1, 0, 0, 0]
    facts["annotations"] = [person(11, keypoints=shares), person(12, 2, keypoints=shares)]
    write(tmp_path, facts)
    picture = tmp_path / "images" / "1.png"
    picture.write_bytes(exif_turned(cv2.imencode(".jpg", cv2.imread(str(picture)))[1].tobytes(), orientation=3))
    folder = read(tmp_path)
    mixed = MixedSource({"folder": folder, "synthetic": Numbered(0, 1000)}, [1, 1])
    alone = describe(folder, "stored", 2000)
    assert [line.partition(" persons look")[0] for line in alone[1:2]] == ["2 of 2"]
    assert "1 of 2 images looked at have an EXIF orientation" in alone[2]
    told = describe(mixed, "stored", 2000)
    assert told == [f"folder: {line}" for line in alone] + ["synthetic: kept 1000"]
    both = MixedSource({"folder": folder, "full": folder}, [1, 1])
    assert statistics(both, folder.joint_set)["report"]["image_exif_rotated"] == 2


def test_a_camera_keeps_places_and_the_same_seed_gives_the_same_pixels():
    image = np.zeros((64, 48, 3), np.uint8)
    image[20:44, 16:32] = 255
    first = degrade(np.random.default_rng(1), image, 1.0)
    assert np.array_equal(first, degrade(np.random.default_rng(1), image, 1.0))
    assert np.array_equal(degrade(np.random.default_rng(1), image, 0.0), image)
    for seed in range(20):
        found = degrade(np.random.default_rng(seed), image, 0.4)
        assert found.shape == image.shape and found.dtype == np.uint8
    # Without the rectangle that hides: the centre of what is bright stays within half a pixel.
    seeds = [seed for seed in range(400) if np.random.default_rng(seed).random(5)[4] >= 0.4]
    for seed in seeds[:50]:
        weight = degrade(np.random.default_rng(seed), image, 0.4).mean(axis=2)
        y, x = np.indices(weight.shape)
        centre = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
        assert np.abs(np.array(centre) - (23.5, 31.5)).max() < 0.5
