import copy
import hashlib
import json
import pickle

import cv2
import numpy as np
import pytest
from coco_folder import HEIGHT, WIDTH, content, ids, person, read, write
from image_files import exif_turned
from pycocotools.coco import COCO as CocoApi
from pycocotools.cocoeval import COCOeval

from dpose_jax.data.coco_dataset import FolderSource
from dpose_jax.data.coco_format import LEFT_OUT, MALFORMED, NOTED
from dpose_jax.data.datasets import make_source
from dpose_jax.data.sample import BadRecordError
from dpose_jax.data.statistics import describe
from dpose_jax.pose.joint_sets import COCO, CROWDPOSE


def test_good_folder(tmp_path):
    write(tmp_path, content())
    source = read(tmp_path)
    assert ids(source) == [11, 12, 13]
    first = source[0]
    np.testing.assert_array_equal(first.bbox, np.float32([5, 4, 20, 16]))
    np.testing.assert_array_equal(first.keypoints, np.float32([[10, 8, 2], [14.5, 12, 1], [0, 0, 0]]))
    assert (first.image_id, first.score, source[2].image_id) == (1, 1.0, 2)
    report = source.report()
    assert report.pop("records") == 3 and report.pop("kept") == 3
    assert set(report) == {*MALFORMED, *LEFT_OUT, *NOTED} and not any(report.values())
    expected = cv2.imread(str(tmp_path / "images" / "1.png"))[..., ::-1]
    np.testing.assert_array_equal(source.read_image(1), expected)
    with pytest.raises(IndexError):
        source[3]


def test_the_source_survives_pickling_and_is_light(tmp_path):
    facts = content()
    facts["annotations"] = [person(100 + i) for i in range(1000)]
    write(tmp_path, facts)
    source = read(tmp_path)
    data = pickle.dumps(source)
    assert len(data) < 1000 * (3 * 3 * 4 + 4 * 4 + 8 + 4 + 4) + 4000
    np.testing.assert_array_equal(pickle.loads(data)[999].keypoints, source[999].keypoints)


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="images"):
        read(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match="images: the image folder is empty"):
        read(tmp_path)
    (tmp_path / "images" / "1.png").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="truth.json"):
        read(tmp_path)
    write(tmp_path, content() | {"annotations": []})
    with pytest.raises(ValueError, match="no person is left of 0"):
        read(tmp_path)


def test_ids_beyond_32_bits(tmp_path):
    facts = content()
    # COCO's own crowds have such ids, and are not persons to train on.
    facts["annotations"][0] |= {"id": 900100002299, "iscrowd": 1}
    write(tmp_path, facts)
    assert ids(read(tmp_path)) == [12, 13]
    facts["annotations"][0]["iscrowd"] = 0
    write(tmp_path, facts)
    with pytest.raises(ValueError, match="truth.json: id 900100002299 does not fit 32 bits"):
        read(tmp_path)


BOXES = [
    {"image_id": 2, "category_id": 1, "bbox": [30, 5, 20, 10], "score": 0.9},
    {"image_id": 1, "category_id": 1, "bbox": [1, 5, 20, 10], "score": 0.1},
    {"image_id": 1, "category_id": 7, "bbox": [1, 5, 20, 10], "score": 0.9},
    {"image_id": 9, "category_id": 1, "bbox": [1, 5, 20, 10], "score": 0.9},
    {"image_id": [1], "category_id": 1, "bbox": [1, 5, 20, 10], "score": 0.9},
    {"image_id": 1, "category_id": 1, "bbox": [1, 5, 0, 10], "score": 0.9},
    {"image_id": 1, "category_id": 1, "bbox": [99, 5, 3, 10], "score": 0.9},
    {"image_id": 1, "category_id": 1, "bbox": [1, 5, 3], "score": 0.9},
    {"image_id": 1, "category_id": 1, "bbox": [1, 5, 3, 4], "score": None},
    {"image_id": 1, "category_id": 1, "bbox": [1, 5, 3, 4], "score": 0.3},
]


def test_detected_boxes(tmp_path):
    write(tmp_path, content(), BOXES)
    source = read(tmp_path, detections="boxes.json", min_box_score=0.3)
    # The id is the place in the file, whatever else is left out.
    assert ids(source) == [0, 9]
    np.testing.assert_array_equal(source[0].bbox, np.float32([30, 5, 10, 10]))
    assert not source[0].keypoints.any() and source[0].keypoints.shape == (3, 3)
    assert source[0].score == np.float32(0.9) and source[0].image_id == 2
    expected = {"records": 10, "kept": 2, "low_score": 1, "other_category": 1, "detection_without_image": 2}
    expected |= {"box_empty": 1, "box_outside": 1, "detection_entry": 2, "box_clipped": 1}
    assert {name: count for name, count in source.report().items() if count} == expected
    assert len(source.ground_truth()["annotations"]) == 3


def test_detection_files_of_another_format(tmp_path):
    write(tmp_path, content(), {"annotations": []})
    with pytest.raises(ValueError, match="boxes.json: must be a list of detections"):
        read(tmp_path, detections="boxes.json")
    with pytest.raises(ValueError, match="training needs annotated persons"):
        read(tmp_path, detections="boxes.json", training=True)


def test_annotations_that_change_during_a_run_are_named(tmp_path):
    """The ground truth is read again at every evaluation; it must be that of the persons."""
    write(tmp_path, content(), BOXES)
    source, detected = read(tmp_path), read(tmp_path, detections="boxes.json")
    before, text = source.ground_truth(), (tmp_path / "truth.json").read_text()
    sum_before = detected.box_sha256
    write(tmp_path, text.replace("14.5", "15.5"), BOXES[:1])
    for changed in (source, pickle.loads(pickle.dumps(source)), detected):
        with pytest.raises(ValueError, match=r"truth\.json: changed while the run was going on"):
            changed.ground_truth()
    assert detected.box_sha256 == sum_before == hashlib.sha256(json.dumps(BOXES).encode()).hexdigest()
    write(tmp_path, text)
    assert source.ground_truth() == before
    (tmp_path / "truth.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"truth\.json: no such file"):
        source.ground_truth()


def test_area_of_the_ground_truth(tmp_path):
    facts = content()
    del facts["annotations"][1]["area"]
    facts["annotations"][2]["area"] = 0
    facts["annotations"].append(person(14, bbox=[0, 0, 0, 0], keypoints=[0] * 9, num_keypoints=0, area=None))
    write(tmp_path, facts)
    own, box = 200.0, 0.53 * 20 * 16
    assert [a["area"] for a in read(tmp_path).ground_truth()["annotations"]] == [own, box, box, 1.0]
    truth = read(tmp_path, use_area=False).ground_truth()
    assert [a["area"] for a in truth["annotations"]] == [box, box, box, 1.0]
    assert [a["num_keypoints"] for a in truth["annotations"]] == [2, 2, 2, 0]
    assert read(tmp_path).report()["area_entry"] == 1  # the 0: an absent area is no fault
    for wrong in (float("nan"), -3.0, "large", 10**400):
        facts["annotations"][1]["area"] = wrong
        write(tmp_path, facts)
        source = read(tmp_path)
        assert source.report()["area_entry"] == 2
        assert [a["area"] for a in source.ground_truth()["annotations"]] == [own, box, box, 1.0]


def evaluate(truth, results):
    api = CocoApi()
    api.dataset = copy.deepcopy(truth)
    api.createIndex()
    run = COCOeval(api, api.loadRes(copy.deepcopy(results)), "keypoints")
    run.evaluate()
    run.accumulate()
    run.summarize()
    return run.stats


def test_ground_truth_scores_as_the_file_does(data_root):
    folder = data_root / "coco"
    name = "annotations/person_keypoints_val2017.json"
    source = FolderSource(str(folder), name, "images/val2017", COCO, training=False)
    original = json.loads((folder / name).read_text())
    results = json.loads((folder / "baselines" / "movenet-thunder_val2017_gtbox.json").read_text())
    assert sum(a["iscrowd"] for a in original["annotations"]) > 0
    np.testing.assert_array_equal(evaluate(source.ground_truth(), results), evaluate(original, results))


def test_real_sets_are_read_whole(data_root):
    train = FolderSource(
        str(data_root / "lspet"), "annotations/lspet_train_crowdpose.json", "images", CROWDPOSE, training=True
    )
    assert len(train) == 3500
    assert sum(train.report()[rule] for rule in MALFORMED) == 0
    sample = FolderSource(
        str(data_root / "samples" / "crowdpose"), "test_crowdpose.json", "", CROWDPOSE,
        detections="test_crowdpose_det_AP_40.json", use_area=False, training=False,
    )  # fmt: skip
    assert len(sample) == 6 and sample.read_image(0).ndim == 3


def jpeg(tmp_path, pixels, name="1.png"):
    data = cv2.imencode(".jpg", pixels)[1].tobytes()
    (tmp_path / "images" / name).write_bytes(data)
    return data


def test_broken_images_name_file_and_id(tmp_path):
    write(tmp_path, content())
    source = read(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    data = jpeg(tmp_path, pixels)
    source.read_image(0)
    path = tmp_path / "images" / "1.png"
    for cut in (b"", b"text", data[:-2], data[: len(data) // 2], data[:40]):
        path.write_bytes(cut)
        with pytest.raises(BadRecordError, match=r"1\.png \(id 11\)"):
            source.read_image(0)
    jpeg(tmp_path, pixels[:, :30])
    with pytest.raises(BadRecordError, match=r"is 30 x 30 px, its annotation says 40 x 30"):
        source.read_image(0)
    path.unlink()
    with pytest.raises(BadRecordError, match=r"1\.png \(id 11\)"):
        source.read_image(0)


def test_normalised_coordinates_and_corner_boxes_are_doubted(tmp_path):
    def told(change):
        facts = content()
        for entry in facts["annotations"]:
            x, y, w, h = entry["bbox"]
            entry |= change(x, y, w, h, entry["keypoints"])
        write(tmp_path, facts)
        return describe(read(tmp_path), "stored")

    shares = [10 / WIDTH, 8 / HEIGHT, 2, 14.5 / WIDTH, 12 / HEIGHT, 1, 0, 0, 0]
    assert len(told(lambda *unused: {})) == 1
    for change in (
        lambda x, y, w, h, joints: {"bbox": [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT], "keypoints": shares},
        lambda x, y, w, h, joints: {"keypoints": shares},
    ):
        counts, doubt = told(change)
        assert "looks_normalised 3" in counts and doubt.startswith("3 of 3 persons look normalised")
    counts, doubt = told(lambda x, y, w, h, joints: {"bbox": [x, y, x + w, y + h + 10]})
    assert "looks_like_corners 3" in counts and doubt.startswith("3 of 3 persons have boxes that look like corners")
    # As corners these would miss a joint, or leave the image.
    assert len(told(lambda x, y, w, h, joints: {"bbox": [13, 4, 30, 29]})) == 1
    assert len(told(lambda x, y, w, h, joints: {"bbox": [5, 4, 60, 20]})) == 1


def test_rotated_photos_are_counted_and_told(tmp_path):
    write(tmp_path, content())
    for number in (1, 2):
        pixels = cv2.imread(str(tmp_path / "images" / f"{number}.png"))
        jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
        (tmp_path / "images" / f"{number}.png").write_bytes(exif_turned(jpeg, orientation=4 - number))
    for most, looked in ((None, 2), (5, 2), (1, 1)):
        counts, doubt = describe(read(tmp_path), "stored", most)
        assert f"{looked} of {looked} images looked at have an EXIF orientation" in doubt and "='stored'" in doubt
        assert ("image_exif_rotated 2" in counts) == (most is None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"data__val_images": "none"},
            r"data\.val_images='none': no such folder: .*none, which an evaluation needs too",
        ),
        ({"data__train_annotations": "a.json"}, r"data\.train_annotations='a\.json': no such file: .*a\.json$"),
        ({"data__val_annotations": ""}, r"data\.val_annotations='': no such file: "),
    ],
)
def test_files_that_are_not_there_are_named_by_their_field(fields, message, miniature, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "truth.json").write_text("{}")
    there = {"data__source": "folder", "data__root": str(tmp_path)}
    there |= {f"data__{split}_images": "images" for split in ("train", "val")}
    there |= {f"data__{split}_annotations": "truth.json" for split in ("train", "val")}
    split = "val" if "val" in next(iter(fields)) else "train"
    with pytest.raises(FileNotFoundError, match=message):
        make_source(miniature(**there | fields), split, training=False)
