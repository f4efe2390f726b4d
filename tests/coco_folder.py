"""A tiny data set on disk, for the tests of the folder source and its rules."""

import json

import cv2
import numpy as np

from dpose_jax.data.coco_dataset import FolderSource
from dpose_jax.pose.joint_sets import JointSet

TINY = JointSet("tiny", ("nose", "left_hand", "right_hand"), ((0, 1), (0, 2)), ((1, 2),), (0.05,) * 3, ())
HEIGHT, WIDTH = 30, 40


def person(number, image=1, **changes):
    joints = [10.0, 8.0, 2, 14.5, 12.0, 1, 0, 0, 0]
    entry = {"id": number, "image_id": image, "category_id": 1, "bbox": [5.0, 4.0, 20.0, 16.0], "area": 200.0}
    return entry | {"iscrowd": 0, "num_keypoints": 2, "keypoints": joints} | changes


def content():
    images = [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2)]
    category = {"id": 1, "name": "person", "keypoints": list(TINY.joints)}
    return {"images": images, "annotations": [person(11), person(12), person(13, 2)], "categories": [category]}


def write(tmp_path, facts, detections=None):
    folder = tmp_path / "images"
    folder.mkdir(exist_ok=True)
    for i in (1, 2):
        pixels = np.random.default_rng(i).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), pixels)
    (tmp_path / "truth.json").write_text(facts if isinstance(facts, str) else json.dumps(facts))
    if detections is not None:
        (tmp_path / "boxes.json").write_text(json.dumps(detections))


def read(tmp_path, **options):
    options = {"training": "detections" not in options, "max_bad_share": 1.0} | options
    return FolderSource(str(tmp_path), "truth.json", "images", TINY, **options)


def ids(source):
    return [source[i].annotation_id for i in range(len(source))]
