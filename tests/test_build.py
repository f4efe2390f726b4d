"""Records give what the folder gives, whatever is wrong with it, and are built whole or not at all."""

import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from image_files import CMYK_JPEG
from record_cases import broken_folder, built_records, edit, recipe, stored_as_png  # noqa: F401, three of them fixtures

from dpose_jax.data import build as build_module
from dpose_jax.data import image_files, loader
from dpose_jax.data.array_record import writer
from dpose_jax.data.array_record.reader import records_folder
from dpose_jax.data.build import build, format_report
from dpose_jax.data.datasets import make_source
from dpose_jax.data.image_files import decode_image
from dpose_jax.data.sample import BadRecordError

tfds = pytest.importorskip("tensorflow_datasets", reason="the extra [records] is not installed")


def batches(root, kind, count=8, workers=0):
    plain = recipe(root, kind)
    source = make_source(plain, "train", training=True)
    stream = loader.train_iterator(plain.override({"data.workers": workers}), source)
    taken = [next(stream) for _ in range(count)]
    stream.close()
    taken += loader.eval_batches(plain, make_source(plain, "val", training=False), 4)
    return taken, source


def test_full_gives_the_folders_batches_bit_for_bit(folder, records):
    expected, source = batches(folder, "folder")
    given, stored = batches(records[0], "full", workers=1)
    assert len(given) == len(expected)
    for one, other in zip(given, expected, strict=True):
        for key in other:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)
    assert {int(i) for batch in expected for i in batch["bad_index"]} > {-1}
    assert stored.report() == source.report() and stored.ground_truth() == source.ground_truth()


@pytest.mark.skipif(shutil.which("jpegtran") is None, reason="needs jpegtran")
def test_full_with_tiles_gives_them_too(folder, tmp_path, monkeypatch):
    build(recipe(folder), str(tmp_path), "full", tiles=True)
    expected, _ = batches(folder, "folder")
    parts, whole = [], image_files.cut
    monkeypatch.setattr(image_files, "cut", lambda *given: parts.append(whole(*given)) or parts[-1])
    given, source = batches(tmp_path, "full")
    for one, other in zip(given, expected, strict=True):
        for key in other:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)
    assert sum(part is not None for part in parts) > len(parts) / 4
    with pytest.raises(ValueError, match="tiles is True, asked for None"):
        build(recipe(folder), str(tmp_path), "full")


def test_tiles_need_jpegtran(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="jpegtran is not installed: Debian's libjpeg-turbo-progs"):
        build(recipe(folder), str(tmp_path), "full", tiles=True)
    assert not any(tmp_path.rglob("*.json"))


def test_crops_give_the_same_but_for_jpeg_noise(folder, records):
    expected, source = batches(folder, "folder")
    given, stored = batches(records[0], "crops")
    for one, other in zip(given, expected, strict=True):
        for key in other:
            if key != "image":
                np.testing.assert_array_equal(one[key], other[key], err_msg=key)
        noise = np.abs(one["image"].astype(int) - other["image"])
        # The drawn people have hard edges between strong colours, the worst case of chroma at half resolution.
        assert noise.mean() < 3 and np.quantile(noise, 0.99) < 32
    assert stored.report() == source.report() and stored.ground_truth() == source.ground_truth()


def test_crops_are_cut_where_they_should_be(folder, tmp_path, lossless):
    """Stored without loss, they give the folder's pixels but for the rounding of sampling positions (1/32 px)."""
    build(recipe(folder), str(tmp_path), "crops")
    expected, _ = batches(folder, "folder")
    given, source = batches(tmp_path, "crops")
    for one, other in zip(given, expected, strict=True):
        assert np.mean(one["image"] != other["image"]) < 1e-3
    assert max(source[i].origin for i in range(len(source))) > (0, 0)


def test_the_report_says_what_was_dropped_and_why(records):
    out, reports = records
    for kind, report in reports.items():
        at = pathlib.Path(records_folder(str(out), kind))
        assert json.loads((at / "report.json").read_text()) == report
        counts = report["train"]
        assert (counts["image_unreadable"], counts["image_grey"], counts["image_exif_rotated"]) == (2, 1, 1)
        assert counts["image_cmyk"] == 1 and counts["box_entry"] == 1 and counts["image_missing"] > 0
        assert report["val"]["image_16_bit"] == (kind == "full")
        reasons = json.loads((at / "train_index.json").read_text())["unreadable"]
        size = "the image is 320 x 255 px, its annotation says 320 x 256"
        assert sorted(reasons.values()) == ["the JPEG is cut short: no end marker", size]
    assert "box_entry 1" in format_report(reports["full"]) and "no_joints" not in format_report(reports["full"])


def test_unreadable_images_keep_their_reason(folder, records):
    sources = [make_source(recipe(root, kind), "train", training=True) for root, kind in (
        (folder, "folder"), (records[0], "full"), (records[0], "crops"))]  # fmt: skip
    bad = set()
    for index in range(len(sources[0])):
        try:
            sources[0].read_image(index)
        except BadRecordError as error:
            bad.add(index)
            reason = str(error).split(": ", 1)[1]
            for stored in sources[1:]:
                with pytest.raises(BadRecordError) as found:
                    stored.read_image(index)
                assert reason in str(found.value) and f"id {stored[index].annotation_id}" in str(found.value)
    assert bad


def test_detected_boxes_lie_in_images_without_persons(records):
    detected = {"eval.boxes": "detections"}
    source = make_source(recipe(records[0], "full").override(detected), "val", training=False)
    assert len(source) == 1 and source.read_image(0).shape == (40, 30, 3)
    with pytest.raises(ValueError, match="eval.boxes='detections' needs data.source 'folder' or 'full'"):
        make_source(recipe(records[0], "crops").override(detected), "val", training=False)


def test_a_recipe_beyond_the_margin_is_refused(records):
    wider = recipe(records[0], "crops").override({"augment.scale": 0.5})
    with pytest.raises(ValueError, match="crops.*augment.scale is 0.5, they were built for 0.35"):
        make_source(wider, "train", training=True)
    make_source(wider, "val", training=False)
    make_source(wider.override({"data.source": "full"}), "train", training=True)


def test_other_readers_of_tfds_find_all_about_a_person(folder, records):
    source = make_source(recipe(folder), "train", training=True)
    persons = {source[i].annotation_id: source[i] for i in range(len(source))}
    full = tfds.builder_from_directory(records_folder(str(records[0]), "full")).as_data_source("train")
    seen = 0
    for record in full:
        for id_, bbox, joints in zip(*(record["persons"][key] for key in ("id", "bbox", "keypoints")), strict=True):
            np.testing.assert_array_equal(bbox, persons[id_].bbox)
            np.testing.assert_array_equal(joints, persons[id_].keypoints)
            assert record["image_id"] == persons[id_].image_id and persons[id_].file.endswith(
                record["file_name"].decode()
            )
            seen += 1
    crops = tfds.builder_from_directory(records_folder(str(records[0]), "crops")).as_data_source("train")
    assert seen == len(crops) > 0
    stored = make_source(recipe(records[0], "crops"), "train", training=True)
    origins = {stored[i].annotation_id: (stored[i].origin, i) for i in range(len(stored))}
    for record in crops:
        origin, index = origins[record["id"]]
        assert tuple(record["origin"]) == origin
        np.testing.assert_array_equal(record["image"].shape, stored.read_image(index).shape)
        np.testing.assert_array_equal(record["keypoints"], persons[record["id"]].keypoints)


@pytest.mark.parametrize("kind", writer.KINDS)
def test_a_source_that_was_read_can_be_sent_to_a_worker(records, kind):
    source = make_source(recipe(records[0], kind), "train", training=True)
    index = next(i for i in range(len(source)) if source[i].file.endswith("cmyk.jpg"))
    image = source.read_image(index)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.read_image(index), image)
    if kind == "full":
        np.testing.assert_array_equal(image, decode_image(CMYK_JPEG))


@pytest.mark.parametrize("name", ["coco", "crowdpose", "aic"])
def test_official_samples_go_through_records(data_root, tmp_path, name):
    values = {"input_size": (256, 192), "joint_set": name}
    for split in ("train", "val"):
        values |= {f"data.{split}_annotations": f"test_{name}.json", f"data.{split}_images": ""}
    plain = recipe(data_root / "samples" / name).override(values)
    expected = next(iter(loader.eval_batches(plain, make_source(plain, "train", training=True), 20)))
    for kind in writer.KINDS:
        build(plain, str(tmp_path), kind)
        stored = plain.override({"data.root": str(tmp_path), "data.source": kind})
        given = next(iter(loader.eval_batches(stored, make_source(stored, "train", training=True), 20)))
        noise = np.abs(given["image"].astype(int) - expected["image"])[expected["mask"] > 0]
        assert expected["mask"].sum() > 0 and noise.mean() < (3 if kind == "crops" else 1e-9)
        assert np.quantile(noise, 0.99) < 24
        for key in expected.keys() - {"image"}:
            np.testing.assert_array_equal(given[key], expected[key])


def test_without_the_extra_the_error_says_what_to_install(folder, records, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install -e \"\.\[records\]\""):
        make_source(recipe(records[0], "full"), "val", training=False)
    with pytest.raises(ValueError, match=r"pip install -e \"\.\[records\]\""):
        build(recipe(folder), str(tmp_path), "full")


def test_ai_challengers_own_format_goes_through_records(tmp_path):
    root, joints = tmp_path / "aic", [5, 6, 1, 9, 9, 2, 0, 0, 3] + [12, 20, 1] * 11
    humans = {"human1": joints, "human2": joints[:-1]}
    boxes = dict.fromkeys(humans, [2, 2, 25, 38])
    entry = {"image_id": "a", "url": "", "keypoint_annotations": humans, "human_annotations": boxes}
    (root / "images").mkdir(parents=True)
    cv2.imwrite(str(root / "images" / "a.jpg"), np.full((40, 30, 3), 99, np.uint8))
    (root / "own.json").write_text(json.dumps([entry, entry | {"image_id": "gone"}]))
    values = {"joint_set": "aic", "data.use_area": False, "data.max_bad_share": 1.0}
    for split in ("train", "val"):
        values |= {f"data.{split}_annotations": "own.json", f"data.{split}_images": "images"}
    plain = recipe(root).override(values)
    build(plain, str(tmp_path), "full")
    stored = plain.override({"data.root": str(tmp_path), "data.source": "full"})
    one, other = (make_source(each, "val", training=False) for each in (plain, stored))
    assert one.report() == other.report() and one.report()["image_missing"] == 1
    assert one.ground_truth() == other.ground_truth()
    np.testing.assert_array_equal(one[0].keypoints, other[0].keypoints)
    np.testing.assert_array_equal(one.read_image(0), other.read_image(0))


def test_a_build_that_was_stopped_is_done_anew_and_a_finished_one_is_kept(folder, tmp_path, monkeypatch, capsys):
    plain, out = recipe(folder), str(tmp_path)

    def killed(folder, *args):
        pathlib.Path(folder).mkdir(parents=True)
        (pathlib.Path(folder) / "coco_keypoints-train.array_record-00000").write_bytes(b"half a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("dpose_jax.data.array_record.writer.write_records", killed)
        build(plain, out, "crops")
    with pytest.raises(FileNotFoundError, match="no finished records"):
        make_source(recipe(out, "crops"), "train", training=True)
    report = build(plain, out, "crops")
    at = pathlib.Path(records_folder(out, "crops"))
    made = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in at.iterdir()}
    assert sorted(os.listdir(out)) == [".crops.lock", "coco_keypoints"]
    capsys.readouterr()
    assert build(plain, out, "crops") == report
    assert "is finished" in capsys.readouterr().out
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in at.iterdir()} == made
    with pytest.raises(ValueError, match="holds records of another build: margin is"):
        build(plain.override({"augment.rotation": 10.0}), out, "crops")
    with pytest.raises(ValueError, match="another build: quality is 90, asked for 50"):
        build(recipe(folder), out, "crops", quality=50)
    with build_module._locked(out, "crops"), pytest.raises(ValueError, match="another process builds 'crops' there"):
        build(recipe(folder), out, "crops")


def test_too_many_unreadable_images_stop_the_build(folder, tmp_path):
    copy = tmp_path / "coco"
    shutil.copytree(folder, copy)
    for path in sorted((copy / "train2017").iterdir())[:6]:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="unreadable, more than data.max_bad_share=0.6; .*file is empty"):
        build(recipe(copy), str(tmp_path / "out"), "full")
    assert not os.path.exists(records_folder(str(tmp_path / "out"), "full"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("web",), "kind='web': must be one of"), (("crops", 0), "quality=0: must be in 1..100")],
)
def test_wrong_arguments_are_named(folder, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(recipe(folder), str(tmp_path), *arguments)
    with pytest.raises(ValueError, match="tiles=True: is for kind='full', not 'crops'"):
        build(recipe(folder), str(tmp_path), "crops", tiles=True)
    with pytest.raises(ValueError, match="data.source='full': records are built from a 'folder'"):
        build(recipe(folder, "full"), str(tmp_path), "full")


def test_no_tensorflow_and_no_tfds_before_it_is_needed(records):
    """In a process of its own: what other tests import does not count."""
    code = f"""
import sys
import dpose_jax, dpose_jax.data.datasets
assert "tensorflow_datasets" not in sys.modules
from dpose_jax.data.array_record.reader import RecordSource
from dpose_jax.pose.joint_sets import COCO
source = RecordSource({records_folder(str(records[0]), "full")!r}, "val", COCO, training=False)
source.read_image(0)
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("kind", writer.KINDS)
def test_records_of_upright_pictures_give_what_the_folder_gives(folder, kind, tmp_path):
    """The turned picture, whose annotation has its stored size, is unreadable in both; others stay as they were."""
    upright = recipe(folder).override({"data.orientation": "upright"})
    build(upright, str(tmp_path), kind)
    stored = upright.override({"data.root": str(tmp_path), "data.source": kind})
    sources = [make_source(one, "train", training=True) for one in (upright, stored)]
    for index in range(len(sources[0])):
        texts = []
        for source in sources:
            try:
                source.read_image(index)
            except BadRecordError as error:
                texts.append(str(error).split("): ")[1])
        assert len(texts) in (0, 2)
        if texts and "EXIF" in texts[0]:
            assert texts[0] in texts[1] and "='stored'" in texts[0]
            break
    else:
        raise AssertionError("no picture was turned")
