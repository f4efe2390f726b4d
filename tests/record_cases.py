"""A folder with everything that can be wrong with it, and its records, for the tests of both."""

import json
import pathlib

import cv2
import numpy as np
import pytest
from image_files import CMYK_JPEG, exif_turned

from dpose_jax.data.array_record import writer
from dpose_jax.data.build import build
from dpose_jax.data.synthetic.dataset import write_coco_folder
from dpose_jax.recipe import Recipe


def recipe(root, source="folder"):
    values = {"input_size": (128, 96), "data.root": str(root), "data.source": source, "data.workers": 0}
    values |= {"data.max_bad_share": 0.6, "data.val_detections": str(pathlib.Path(root).parent / "boxes.json")}
    return Recipe().override(values | {"train.batch_size": 4})


def edit(path, change):
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


@pytest.fixture(name="folder", scope="module")
def broken_folder(tmp_path_factory):
    """Eight training images, of which one is cut short, one missing and one of another size, and two others noted."""
    root = tmp_path_factory.mktemp("data") / "coco"
    write_coco_folder(root, train_images=8, val_images=2, difficulty=0.6)
    files = sorted((root / "train2017").iterdir())
    files[1].write_bytes(files[1].read_bytes()[:-2])
    files[2].unlink()
    cv2.imwrite(str(files[3]), cv2.imread(str(files[3]))[:-1])
    cv2.imwrite(str(files[4]), cv2.imread(str(files[4]), cv2.IMREAD_GRAYSCALE))
    files[5].write_bytes(exif_turned(files[5].read_bytes()))
    (root / "train2017" / "cmyk.jpg").write_bytes(CMYK_JPEG)
    deep = np.random.default_rng(0).integers(0, 1 << 16, (40, 30, 3), np.uint16)
    cv2.imwrite(str(root / "val2017" / "empty.png"), deep)

    def widen(facts):
        facts["images"].append({"id": 900, "file_name": "cmyk.jpg", "width": 24, "height": 16})
        joints = [[x, y, 2] for x in (4, 12, 20) for y in range(2, 14, 2)][:17]
        entry = {"id": 900, "image_id": 900, "category_id": 1, "bbox": [1, 1, 20, 14], "iscrowd": 0}
        facts["annotations"].append(entry | {"keypoints": np.ravel(joints).tolist()})
        facts["annotations"].append(facts["annotations"][0] | {"id": 901, "bbox": [1, 2, 3]})

    edit(root / "annotations" / "person_keypoints_train2017.json", widen)
    empty = {"id": 5, "file_name": "empty.png", "width": 30, "height": 40}
    edit(root / "annotations" / "person_keypoints_val2017.json", lambda facts: facts["images"].append(empty))
    box = {"image_id": 5, "category_id": 1, "bbox": [2, 3, 20, 30], "score": 0.5}
    (root.parent / "boxes.json").write_text(json.dumps([box]))
    return root


@pytest.fixture(name="records", scope="module")
def built_records(folder):
    """Both kinds, built by this process."""
    out = folder.parent / "records"
    reports = {kind: build(recipe(folder), str(out), kind) for kind in writer.KINDS}
    return out, reports


@pytest.fixture(name="lossless")
def stored_as_png(monkeypatch):
    """Crops are stored without JPEG's noise."""
    monkeypatch.setattr(writer, "encode_jpeg", lambda image, _: cv2.imencode(".png", image[..., ::-1])[1].tobytes())
