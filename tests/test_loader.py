import contextlib
import itertools
import json
import multiprocessing
import pathlib
import time

import cv2
import grain
import numpy as np
import pytest

from dpose_jax.data import crop, loader
from dpose_jax.data.datasets import make_source
from dpose_jax.data.sample import BadRecordError, Person
from dpose_jax.pose.joint_sets import COCO
from dpose_jax.recipe import Recipe

KEYS = {"image", "keypoints", "visible", "annotation_id", "index", "mask", "bad_index", "to_image"}


class Memory:
    """Persons from numbers, of which some images are unreadable."""

    def __init__(self, count, bad=()):
        self.count, self.bad = count, frozenset(bad)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        box = np.array([10, 5, 40, 60], np.float32)
        joints = np.c_[box[:2] + rng.random((17, 2)) * box[2:], rng.integers(0, 3, 17)]
        return Person(1000 + index, index, f"{index}.jpg", box, joints.astype(np.float32))

    def read_image(self, index):
        if index in self.bad:
            raise BadRecordError(f"{index}.jpg (id {1000 + index}): broken")
        return np.random.default_rng(index).integers(0, 256, (90, 80, 3), np.uint8)


def settings(batch_size=4, workers=0, **augment):
    values = {"input_size": (64, 32), "train.batch_size": batch_size, "data.workers": workers}
    return Recipe().override(values | {f"augment.{name}": value for name, value in augment.items()})


def still(batch_size=4):
    return settings(batch_size, flip=0.0, scale=0.0, rotation=0.0, half_body=0.0)


def take(recipe, source, count, shard=(0, 1)):
    batches = loader.train_iterator(recipe, source, shard=shard)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def assert_equal(some, others):
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        assert set(a) == set(b)
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def indices(batches):
    return np.concatenate([batch["index"] for batch in batches])


def test_batch_format():
    (batch,) = take(settings(), Memory(9), 1)
    shapes = {
        "image": (np.uint8, (4, 64, 32, 3)),
        "keypoints": (np.float32, (4, 17, 2)),
        "visible": (np.float32, (4, 17)),
        "annotation_id": (np.int32, (4,)),
        "index": (np.int32, (4,)),
        "mask": (np.float32, (4,)),
        "bad_index": (np.int32, (4,)),
        "to_image": (np.float32, (4, 2, 3)),
    }
    assert {key: (value.dtype.type, value.shape) for key, value in batch.items()} == shapes
    np.testing.assert_array_equal(batch["annotation_id"], 1000 + batch["index"])
    assert (batch["mask"] == 1).all() and (batch["bad_index"] == -1).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_started_iterator_gives_the_same_batches_as_its_spec_says(workers):
    expected = take(settings(), Memory(9), 2)
    with contextlib.closing(loader.train_iterator(settings(workers=workers), Memory(9))) as batches:
        spec = batches.spec()
        assert len(multiprocessing.active_children()) == 0
        batches.start()
        deadline = time.monotonic() + 20
        while len(multiprocessing.active_children()) < workers and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(multiprocessing.active_children()) == workers
        assert_equal([next(batches), next(batches)], expected)
        assert spec == {name: (value.shape, value.dtype) for name, value in expected[0].items()}
        assert batches.get_state() == {"examples": 8}


def test_to_image_brings_the_joints_back():
    source = Memory(9)
    for batch in take(settings(), source, 4):
        for row in range(4):
            joints = source[batch["index"][row]].keypoints
            back = crop.map_points(batch["to_image"][row], batch["keypoints"][row])
            # Of a mirrored crop, whose matrix turns the orientation round, left and right have changed places.
            mirrored = np.linalg.det(batch["to_image"][row][:, :2]) < 0
            order = list(COCO.flip_order) if mirrored else slice(None)
            labelled = joints[order, 2] > 0
            np.testing.assert_allclose(back[labelled], joints[order, :2][labelled], atol=1e-3)
            assert not batch["keypoints"][row][~labelled].any() and not batch["visible"][row][~labelled].any()


def test_each_person_once_an_epoch_in_a_new_order():
    drawn = indices(take(settings(batch_size=5), Memory(12), 12)).reshape(5, 12)
    for epoch in drawn:
        assert sorted(epoch) == list(range(12))
    assert len({tuple(epoch) for epoch in drawn}) == 5


@pytest.mark.parametrize("count", [2, 3])
def test_hosts_share_one_stream(count):
    """The global batch is the same, row by row, for every number of hosts, also where 13 persons do not divide."""
    source, recipe = Memory(13), settings(batch_size=6)
    alone = take(recipe, source, 9)
    hosts = [take(recipe, source, 9, shard=(host, count)) for host in range(count)]
    for batch, *parts in zip(alone, *hosts, strict=True):
        assert all(len(part["index"]) == 6 // count for part in parts)
        for key in KEYS:
            np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), batch[key])


def rows_by_epoch(recipe, persons, epochs):
    """{(epoch, index): image}."""
    batches = take(recipe, Memory(persons), epochs * persons // recipe.train.batch_size)
    images = np.concatenate([batch["image"] for batch in batches])
    return {(place // persons, int(i)): images[place] for place, i in enumerate(indices(batches))}


def test_a_row_depends_on_seed_epoch_and_index_only():
    first = rows_by_epoch(settings(), 8, 3)
    other = rows_by_epoch(settings().override({"seed": 1}), 8, 3)
    assert not any(np.array_equal(first[place], other[place]) for place in first)
    assert not any(np.array_equal(first[0, i], first[1, i]) for i in range(8))
    # The same rows without any shuffle, so at other places of the stream.
    recipe = settings()
    example = loader.train_example(recipe, Memory(8))
    unshuffled = grain.MapDataset.range(8).seed(recipe.seed).random_map(example).repeat()
    for (epoch, i), image in first.items():
        np.testing.assert_array_equal(image, unshuffled[8 * epoch + i]["image"])


def test_workers_change_nothing_and_a_state_resumes_under_any_number():
    source = Memory(11, bad={3})
    expected = take(settings(), source, 10)
    one = loader.train_iterator(settings(workers=1), source)
    first = list(itertools.islice(one, 5))
    state = json.loads(json.dumps(one.get_state()))
    one.close()
    two = loader.train_iterator(settings(workers=2), source)
    two.set_state(state)
    assert_equal(first + list(itertools.islice(two, 5)), expected)
    two.close()


def test_a_running_iterator_can_be_moved_and_closed():
    source = Memory(11)
    batches = loader.train_iterator(settings(), source)
    first = list(itertools.islice(batches, 4))
    batches.set_state({"examples": 4})
    assert_equal(list(itertools.islice(batches, 3)), first[1:])
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_a_state_resumes_under_another_batch_size_and_more_hosts():
    source = Memory(11)
    rows = indices(take(settings(), source, 9))
    begun = loader.train_iterator(settings(), source)
    for _ in range(3):
        next(begun)
    hosts = [loader.train_iterator(settings(batch_size=6), source, shard=(host, 2)) for host in range(2)]
    for host in hosts:
        host.set_state(begun.get_state())
    parts = [indices(itertools.islice(host, 4)).reshape(4, 3) for host in hosts]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1).ravel(), rows[12:36])


def test_unreadable_records_are_replaced_and_named():
    source = Memory(8, bad={2, 3, 7})
    good = take(still(), Memory(8), 8)
    batches = take(still(), source, 8)
    seen = set()
    for batch, whole in zip(batches, good, strict=True):
        asked, bad = whole["index"], batch["bad_index"]
        replaced = np.isin(asked, [2, 3, 7])
        np.testing.assert_array_equal(bad, np.where(replaced, asked, -1))
        # The next readable one stands in: 4 for 2 and 3, and 0 for the last.
        stand_in = np.where(replaced, np.where(asked == 7, 0, 4), asked)
        np.testing.assert_array_equal(batch["index"], stand_in)
        np.testing.assert_array_equal(batch["annotation_id"], 1000 + stand_in)
        assert (batch["mask"] == 1).all()
        seen |= set(bad[bad >= 0].tolist())
    assert seen == {2, 3, 7}


def test_a_source_without_readable_records_stops():
    with pytest.raises(BadRecordError, match="5 unreadable records in a row.*broken"):
        take(settings(), Memory(5, bad=range(5)), 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_reads_in_order_and_pads(workers):
    source = Memory(10, bad={4})
    batches = loader.eval_batches(settings(workers=workers), source, 4)
    read = list(batches)
    assert len(batches) == len(read) == 3
    np.testing.assert_array_equal(indices(read), [*range(10), -1, -1])
    assert set(read[0]) == KEYS
    joined = {key: np.concatenate([batch[key] for batch in read]) for key in KEYS}
    np.testing.assert_array_equal(joined["mask"], [1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(joined["bad_index"], [-1] * 4 + [4] + [-1] * 7)
    np.testing.assert_array_equal(joined["annotation_id"][:10], 1000 + np.arange(10))
    for row in (4, 10, 11):
        assert not any(joined[key][row].any() for key in ("image", "keypoints", "visible"))
    if workers == 0:
        assert_equal(list(batches), read)


def test_evaluation_does_not_augment():
    recipe = settings(flip=1.0, scale=0.9)
    spec = crop.crop_spec(recipe)
    source = Memory(3)
    (batch,) = loader.eval_batches(recipe, source, 3)
    for index in range(3):
        view = crop.padded_view(source[index].bbox, spec)
        np.testing.assert_array_equal(batch["image"][index], crop.warp_image(source.read_image(index), view, spec))


@pytest.mark.parametrize("persons", [1, 7, 8])
def test_evaluation_over_hosts_counts_each_person_once(persons):
    hosts = [list(loader.eval_batches(settings(), Memory(persons), 4, shard=(host, 2))) for host in range(2)]
    assert len(hosts[0]) == len(hosts[1]) == -(-persons // 4)
    used = [i for batch in hosts[0] + hosts[1] for i, m in zip(batch["index"], batch["mask"], strict=True) if m]
    assert sorted(used) == list(range(persons))
    whole = np.stack([[batch["index"] for batch in host] for host in hosts], axis=1).ravel()
    np.testing.assert_array_equal(whole[:persons], np.arange(persons))


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_a_wrong_shard_is_named(shard):
    with pytest.raises(ValueError, match="shard="):
        loader.train_iterator(settings(), Memory(3), shard=shard)


def test_a_batch_size_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match="train.batch_size=4: must be a positive multiple .* 3"):
        loader.train_iterator(settings(), Memory(3), shard=(0, 3))
    with pytest.raises(ValueError, match="batch_size=0"):
        loader.eval_batches(settings(), Memory(3), 0)


def folder(path: pathlib.Path) -> Recipe:
    (path / "pictures").mkdir(parents=True)
    cv2.imwrite(str(path / "pictures" / "1.png"), np.zeros((50, 40, 3), np.uint8))
    image = {"id": 1, "file_name": "1.png", "width": 40, "height": 50}
    person = {"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "keypoints": [9, 9, 2] * 17}
    category = {"id": 1, "name": "person", "keypoints": list(COCO.joints)}
    truth = {"images": [image], "annotations": [person], "categories": [category]}
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "score": 0.5}
    (path / "val.json").write_text(json.dumps(truth))
    (path / "train.json").write_text(json.dumps(truth | {"annotations": [person | {"id": 6}, person | {"id": 7}]}))
    (path / "boxes.json").write_text(json.dumps([box, box | {"score": 0.1}]))
    values = {"train_annotations": "train.json", "train_images": "pictures", "val_annotations": "val.json"}
    values |= {"val_images": "pictures", "val_detections": "boxes.json"}
    return settings().override({f"data.{name}": value for name, value in values.items()})


def test_make_source_reads_a_folder(tmp_path, monkeypatch):
    recipe = folder(tmp_path / "coco")
    monkeypatch.delenv("DPOSE_DATA", raising=False)
    with pytest.raises(ValueError, match="data.root is not set.*DPOSE_DATA"):
        make_source(recipe, "train", training=True)
    monkeypatch.setenv("DPOSE_DATA", str(tmp_path))
    assert len(make_source(recipe, "train", training=True)) == 2
    monkeypatch.delenv("DPOSE_DATA")
    detected = {"eval.boxes": "detections", "eval.min_box_score": 0.3}
    recipe = recipe.override({"data.root": str(tmp_path / "coco")} | detected)
    found = make_source(recipe, "val", training=False)
    assert len(found) == 1 and found[0].score == 0.5
    assert len(make_source(recipe, "train", training=True)) == 2
    with pytest.raises(ValueError, match="eval.boxes='detections' needs .* got 'folder', 'train'"):
        make_source(recipe, "train", training=False)
    with pytest.raises(FileNotFoundError, match="data.root=.*none"):
        make_source(recipe.override({"data.root": str(tmp_path / "none")}), "train", training=True)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data.source", "web", "data.source='web': must be one of .*'folder'"),
        ("eval.boxes", "yolo", "eval.boxes='yolo': must be one of"),
        ("joint_set", "dog", "joint_set='dog'"),
        ("crop.warp", "udp", "crop.warp='udp': must be one of"),
        ("crop.padding", 0, "crop.padding=0.0: must be positive"),
        ("codec.label_margin", -1, "codec.label_margin=-1.0: must not be negative"),
    ],
)
def test_a_bad_field_is_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        settings().override({field: value})


def test_the_label_margin_is_in_sigmas_of_the_heatmaps():
    assert crop.crop_spec(settings()).label_margin == 0
    wide = settings().override({"codec.label_margin": 3.0, "codec.sigma": 1.5, "stride": 2})
    assert crop.crop_spec(wide).label_margin == 3 * 1.5 * 2


def test_make_source_names_a_split_that_does_not_exist():
    with pytest.raises(ValueError, match="split='test': must be one of"):
        make_source(settings(), "test", training=False)


def test_synthetic_splits_share_no_image():
    images = {"data.synthetic.train_images": 6, "data.synthetic.val_images": 4}
    recipe = settings().override({"data.source": "synthetic"} | images)
    train, val = (make_source(recipe, split, training=split == "train") for split in ("train", "val"))
    images = [{source[i].image_id for i in range(len(source))} for source in (train, val)]
    assert images[0] and images[1] and not images[0] & images[1]


def test_real_people_are_inside_their_crops(data_root):
    values = {"input_size": (128, 96), "joint_set": "crowdpose", "data.root": str(data_root / "lspet")}
    values |= {"data.val_annotations": "annotations/lspet_val_crowdpose.json", "data.val_images": "images"}
    recipe = settings(batch_size=32).override(values)
    source = make_source(recipe, "val", training=False)
    for batch in itertools.islice(loader.eval_batches(recipe, source, 32), 4):
        labelled = np.stack([source[i].keypoints[:, 2] > 0 for i in batch["index"]])
        np.testing.assert_array_equal(batch["visible"], labelled)
        assert batch["image"].std(axis=(1, 2, 3)).min() > 5
