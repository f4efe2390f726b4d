"""Damaged records and files beside them: noticed, and named."""

import pathlib
import shutil

import numpy as np
import pytest
from record_cases import broken_folder, built_records, edit, recipe  # noqa: F401, two of them fixtures

from dpose_jax.data.array_record import writer
from dpose_jax.data.array_record.reader import records_folder
from dpose_jax.data.datasets import make_source
from dpose_jax.data.sample import BadRecordError

tfds = pytest.importorskip("tensorflow_datasets", reason="the extra [records] is not installed")


def damaged(records, kind, tmp_path):
    """A copy of the records of a kind, for damage."""
    copied = shutil.copytree(records_folder(str(records[0]), kind), records_folder(str(tmp_path), kind))
    return pathlib.Path(copied)


@pytest.mark.parametrize("kind", writer.KINDS)
def test_a_damaged_record_is_a_bad_record_by_name(records, kind, tmp_path):
    """Whatever byte of the records is damaged, each person is read as before, or its file and id are named."""
    folder = damaged(records, kind, tmp_path)
    whole = make_source(recipe(records[0], kind), "train", training=True)
    (path,) = folder.glob("coco_keypoints-train.array_record*")
    data, rng, bad = path.read_bytes(), np.random.default_rng(0), 0

    def outcome(source, index):
        try:
            return source.read_image(index).tobytes()
        except BadRecordError as error:
            return str(error)

    expected = [outcome(whole, index) for index in range(len(whole))]
    cases = [data[: len(data) // 2], b""]
    for place in rng.integers(0, len(data), 12):
        cases.append(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
    for content in cases:
        path.write_bytes(content)
        source = make_source(recipe(tmp_path, kind), "train", training=True)
        for index in range(len(source)):
            if (found := outcome(source, index)) != expected[index] and isinstance(expected[index], bytes):
                bad += 1
                assert isinstance(found, str), "other pixels, without a word"
                assert f"(id {source[index].annotation_id}): record" in found and "is damaged" in found
    assert bad


@pytest.mark.parametrize("kind", writer.KINDS)
def test_json_beside_records_is_checked_before_the_first_batch(records, kind, tmp_path):
    folder = damaged(records, kind, tmp_path)
    for name in ("train_annotations.json", "train_index.json"):
        path = folder / name
        content = path.read_text()
        path.write_text(content.replace("1", "2", 1))
        with pytest.raises(ValueError, match=f"{name}: is damaged or was changed, its SHA-256"):
            make_source(recipe(tmp_path, kind), "train", training=True)
        path.write_text(content)
    # What the first builds did not store is not checked, and was built from the pixels as stored.
    edit(folder / "build.json", lambda facts: (facts.pop("files"), facts.pop("orientation")))
    if kind == "crops":
        edit(folder / "train_index.json", lambda facts: facts["scales"].append([0, 1]) or facts["scales"].pop(0))
        with pytest.raises(ValueError, match="train_index.json: no index of crops: scales must be above 0"):
            make_source(recipe(tmp_path, kind), "train", training=True)
        edit(folder / "train_index.json", lambda facts: facts.pop("scales"))
    assert len(make_source(recipe(tmp_path, kind), "train", training=True))
    with pytest.raises(ValueError, match="was built with data.orientation='stored', the recipe has 'upright'"):
        make_source(recipe(tmp_path, kind).override({"data.orientation": "upright"}), "train", training=True)


def test_a_record_of_another_person_or_image_is_noticed(records, tmp_path):
    for kind, field in (("full", "file_name"), ("crops", "id")):
        folder = damaged(records, kind, tmp_path)

        def swap(facts, rows="images" if kind == "full" else "persons"):
            facts[rows][0], facts[rows][1] = facts[rows][1], facts[rows][0]

        edit(folder / "train_index.json", swap)
        edit(folder / "build.json", lambda facts: facts.pop("files"))
        source = make_source(recipe(tmp_path, kind), "train", training=True)
        with pytest.raises(BadRecordError, match=f"record . of .* has {field} .*, its index says"):
            source.read_image(0)
