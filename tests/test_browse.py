"""The pictures show the rows that training gets; the statistics count what the annotations say."""

import json

import cv2
import numpy as np
import pytest
from image_files import exif_turned

from dpose_jax.data import browse as browse_module
from dpose_jax.data.browse import browse, joints_sheet
from dpose_jax.data.datasets import make_source
from dpose_jax.data.loader import train_iterator
from dpose_jax.data.statistics import format_statistics, statistics
from dpose_jax.data.synthetic.dataset import write_coco_folder
from dpose_jax.pose.joint_sets import COCO
from dpose_jax.recipe import Recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    root = tmp_path_factory.mktemp("people")
    write_coco_folder(root, train_images=6, val_images=2, difficulty=0.6)
    turned = sorted((root / "train2017").iterdir())[0]
    turned.write_bytes(exif_turned(turned.read_bytes()))
    values = {"input_size": (64, 64), "model.backbone": "tiny", "data.root": str(root), "data.workers": 0}
    return Recipe().override(values | {"train.batch_size": 4})


def test_browse_writes_pictures_and_statistics(recipe, tmp_path):
    found = browse(recipe, str(tmp_path), persons=5)
    names = {"train_joints.png", "train_targets.png", "train_inputs.png", "val_joints.png", "statistics.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert json.loads((tmp_path / "statistics.json").read_text())["train"]["joints"] == found["train"]["joints"]
    targets, inputs = (cv2.imread(str(tmp_path / f"train_{name}.png")) for name in ("targets", "inputs"))
    assert targets.shape == inputs.shape and targets.shape[0] > 5 * 256
    # The noise moves heatmaps and masks, and leaves the crops (the first of four columns) as they are.
    column = targets.shape[1] // 4
    rows = slice(40, 280)
    np.testing.assert_array_equal(targets[rows, :column], inputs[rows, :column])
    last = slice(targets.shape[0] - 280, targets.shape[0] - 40)
    assert (targets[last, column:] != inputs[last, column:]).mean() > 0.05
    with pytest.raises(ValueError, match="persons=0"):
        browse(recipe, str(tmp_path), persons=0)


def test_joints_are_drawn_where_training_has_them(recipe, monkeypatch):
    source = make_source(recipe, "train", training=True)
    stream = train_iterator(recipe, source)
    batch = next(stream)
    stream.close()
    drawn = []

    def record(image, points, joint_set, *, shown, thickness):
        drawn.append((points, shown))
        return image

    monkeypatch.setattr(browse_module.draw, "draw_pose", record)
    joints_sheet(batch, source, COCO)
    scale = browse_module.CROP_HEIGHT // 64
    for row, (points, shown) in enumerate(drawn):
        np.testing.assert_allclose((points + 0.5) / scale - 0.5, batch["keypoints"][row], atol=1e-4)
        np.testing.assert_array_equal(shown, batch["visible"][row])


def test_names_keep_their_order_and_distance():
    for heights in ([], [5.0], [10, 11, 12, 13], [500, 505, 511], [3, 250, 251, 509], list(range(0, 510, 30))):
        placed = browse_module._spread(np.array(heights, float), 512)
        assert len(placed) == len(heights) and all(8 <= y <= 512 - 8 for y in placed)
        assert all(b - a >= browse_module._LINE - 1 for a, b in zip(placed, placed[1:], strict=False))
    far = np.array([100.0, 200.0, 300.0])
    assert browse_module._spread(far, 512) == far.tolist()


def test_statistics_count_the_annotations(recipe):
    source = make_source(recipe, "train", training=True)
    found = statistics(source, COCO)
    with open(f"{recipe.data.root}/annotations/person_keypoints_train2017.json") as file:
        annotations = json.load(file)["annotations"]
    joints = np.array([entry["keypoints"] for entry in annotations]).reshape(-1, 17, 3)
    assert found["persons"] == len(annotations)
    assert found["images"] == len({entry["image_id"] for entry in annotations})
    assert sum(count * images for count, images in found["persons_an_image"].items()) == len(annotations)
    assert sum(found["labelled_joints"].values()) == len(annotations)
    for j, name in enumerate(COCO.joints):
        visibility = joints[:, j, 2]
        expected = {"labelled": (visibility > 0).sum(), "visible": (visibility == 2).sum()}
        expected |= {"occluded": (visibility == 1).sum(), "share": round((visibility > 0).mean(), 4)}
        assert found["joints"][name] == expected
    boxes = np.array([entry["bbox"] for entry in annotations])
    assert found["boxes"]["width"]["50"] == pytest.approx(np.median(boxes[:, 2]))
    assert found["boxes"]["side"]["100"] == pytest.approx(np.sqrt(boxes[:, 2] * boxes[:, 3]).max(), abs=1e-3)
    assert found["report"]["image_exif_rotated"] == 1 and found["report"]["image_grey"] == 0
    table = format_statistics("train", found)
    assert f"train: {len(annotations)} persons" in table and "image_exif_rotated 1" in table
    assert all(name in table for name in COCO.joints)
    json.dumps(found)
